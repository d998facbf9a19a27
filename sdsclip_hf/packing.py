"""Faster inference of frozen models on CPUs: weights are kept in the order in which oneDNN works.

PyTorch puts a convolution's weights in that order at each call, which for a large model and a small batch takes as long as
the convolution itself.
"""

import torch
from torch import Tensor, nn

MIN_WEIGHTS = 100_000  # of a layer; below, little is gained


def pack_weights(model: nn.Module) -> None:
    """Let the large convolutions and linear layers of a frozen model keep a second copy of their weights, packed by oneDNN.

    It serves calls without gradients on float32 tensors of an x86 CPU; all others go the usual way. The results are the
    same to float32's rounding. A packing suits one shape of input; it is made when that shape first comes, and anew after
    an operation that changed the weights (but a write through ``.data`` goes unseen).
    """
    for layer in model.modules():
        plain = type(layer) is nn.Linear or (
            type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        )
        if plain and layer.weight.numel() >= MIN_WEIGHTS and _can_pack():
            layer.forward = PackedForward(layer)


def _can_pack() -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    )


class PackedForward:
    """``forward`` of a convolution or a linear layer that keeps its weights packed."""

    def __init__(self, layer: nn.Conv2d | nn.Linear):
        self.layer, self.made_for, self.packing = layer, None, None

    def __call__(self, values: Tensor) -> Tensor:
        layer = self.layer
        if not self._suits(values):
            return type(layer).forward(layer, values)
        if type(layer) is nn.Conv2d:
            return self._convolve(values, layer.weight, layer.padding, layer.stride, layer.dilation, layer.groups)
        rows = values.reshape(1, -1, 1, values.shape[-1]).permute(0, 3, 1, 2)  # (1, I, rows, 1), channels last
        found = self._convolve(rows, layer.weight[:, :, None, None], (0, 0), (1, 1), (1, 1), 1)
        return found.permute(0, 2, 3, 1).reshape(*values.shape[:-1], layer.out_features)

    def _suits(self, values: Tensor) -> bool:
        weight = self.layer.weight
        return (
            not torch.is_grad_enabled()
            and values.device.type == weight.device.type == "cpu"
            and values.dtype == weight.dtype == torch.float32
            and values.numel() > 0
            and (values.ndim == 4 or type(self.layer) is nn.Linear)
            and type(values) is Tensor  # and not what stands for one
        )

    def _convolve(self, values: Tensor, weight: Tensor, *places) -> Tensor:
        owner = self.layer.weight
        made_for = values.shape, owner.data_ptr(), owner._version
        if made_for != self.made_for:
            self.packing = torch.ops.mkldnn._reorder_convolution_weight(weight, *places, values.shape)
            self.made_for = made_for
        bias = self.layer.bias
        return torch.ops.mkldnn._convolution_pointwise(values, self.packing, bias, *places, "none", [], "")

    def __getstate__(self) -> dict:
        return {"layer": self.layer, "made_for": None, "packing": None}  # a packing cannot be copied
