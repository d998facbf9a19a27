"""Faster linear layers on CPUs: by oneDNN, where PyTorch's default is a BLAS that serves some makers' CPUs badly."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def linear(
    values: Tensor, weight: Tensor, bias: Tensor | None = None, convolve: Callable = torch.mkldnn_convolution
) -> Tensor:
    """``values @ weight.T + bias`` as a 1 x 1 convolution by oneDNN: (..., I) and (O, I) to (..., O)."""
    rows = values.reshape(1, -1, 1, values.shape[-1]).permute(0, 3, 1, 2)  # (1, I, rows, 1), channels last
    found = convolve(rows, weight[:, :, None, None], bias, (0, 0), (1, 1), (1, 1), 1)
    return found.permute(0, 2, 3, 1).reshape(*values.shape[:-1], weight.shape[0])


def suits(values: Tensor, weight: Tensor) -> bool:
    """Whether a layer's call is one of inference in float32 on a CPU that has oneDNN."""
    return (
        values.device.type == weight.device.type == "cpu"
        and values.dtype == weight.dtype == torch.float32
        and values.numel() > 0
        and torch.backends.mkldnn.is_available()
        and not torch.is_grad_enabled()
    )


class FastLinear(TorchFunctionMode):
    """In this context the float32 linear layers of a CPU go through oneDNN, which uses AVX-512 whoever made the CPU.

    For inference: the same results to float32's rounding, and on some CPUs much sooner; `benchmarks/evaluation.py`
    measures the gain. Tensors elsewhere and of other dtypes are left alone.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear and len(args) >= 2 and args[1].ndim == 2 and suits(*args[:2]):
            return linear(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))
