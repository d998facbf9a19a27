"""Faster inference of frozen models on CPUs: weights are kept in the order in which oneDNN works.

PyTorch puts a convolution's weights in that order at each call, which for a large model and a small batch takes as long as
the convolution itself.
"""

import torch
from torch import Tensor, nn

from sdsclip_hf.students import onednn

MIN_WEIGHTS = 100_000  # of a layer; below, little is gained


def pack_weights(model: nn.Module) -> None:
    """Let the large convolutions and linear layers of a frozen model keep a second copy of their weights, packed by oneDNN.

    It serves calls without gradients on float32 tensors of an x86 CPU; all others go the usual way. The results are the
    same to float32's rounding. A packing suits one shape of input; it is made when that shape first comes, and anew after
    an operation that changed the weights. A write through ``.data``, as PEFT makes when it merges an adapter, goes unseen:
    [`unpack_weights`] first.
    """
    if not can_pack():
        return
    for layer in model.modules():
        packed = PACKED.get(type(layer))
        if packed is not None and layer.weight.numel() >= MIN_WEIGHTS and packed.serves(layer):
            layer.__class__ = packed


def unpack_weights(model: nn.Module) -> None:
    """Undo [`pack_weights`], and free what it took."""
    plain = {packed: kind for kind, packed in PACKED.items()}
    for layer in model.modules():
        if type(layer) in plain:
            layer.__class__ = plain[type(layer)]
            vars(layer).pop("_packing", None)


def can_pack() -> bool:
    """Whether this PyTorch and this CPU can do it."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    )


class _Packed:
    """What packed layers share: the packing, in ``_packing`` with what it was made for."""

    @staticmethod
    def serves(layer: nn.Module) -> bool:
        return True

    def forward(self, input: Tensor) -> Tensor:
        suits = onednn.suits(input, self.weight) and not torch.is_autocast_enabled("cpu")
        if not suits or self.weight.is_inference():  # such a weight does not count its changes
            return super().forward(input)
        return self._forward_packed(input)

    def _convolve(self, input, weight, bias, padding, stride, dilation, groups) -> Tensor:
        made_for = input.shape[1:], self.weight.data_ptr(), self.weight._version
        kept_for, packing = vars(self).get("_packing", (None, None))
        layout = padding, stride, dilation, groups
        if kept_for != made_for:
            packing = torch.ops.mkldnn._reorder_convolution_weight(weight, *layout, input.shape)
            vars(self)["_packing"] = made_for, packing
        return torch.ops.mkldnn._convolution_pointwise(input, packing, bias, *layout, "none", [], "")

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_packing"}  # which cannot be copied


class PackedConv2d(_Packed, nn.Conv2d):
    """A convolution that keeps its weights packed."""

    @staticmethod
    def serves(layer: nn.Conv2d) -> bool:
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)

    def _forward_packed(self, input: Tensor) -> Tensor:
        if input.ndim == 3:
            return self._forward_packed(input[None])[0]
        return self._convolve(input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)


class PackedLinear(_Packed, nn.Linear):
    """A linear layer that keeps its weights packed."""

    def _forward_packed(self, input: Tensor) -> Tensor:
        return onednn.linear(input, self.weight, self.bias, self._convolve)


PACKED = {nn.Conv2d: PackedConv2d, nn.Linear: PackedLinear}
