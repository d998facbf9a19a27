"""Tensors on their way between the CPU and a GPU, in neither direction of which the one waits for the other."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. To a GPU it goes by pinned memory, since from other the copy would wait for the GPU's queue."""
    if tensor.device == device or (tensor.device.type == device.type and device.index is None):
        return tensor
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Arriving:
    """The values of a tensor, which may still be computed, on their way to the CPU.

    Args:
        values: on any device.
    """

    def __init__(self, values: Tensor):
        self._values, self._event = values.detach(), None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(values.device))

    def read(self) -> list:
        """As numbers; waits until they are there, and for nothing that was begun later."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.tolist()
