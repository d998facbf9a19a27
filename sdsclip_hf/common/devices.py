"""What GPUs there are and can do; and tensors on their way to and from one, for which neither side waits."""

import logging
import os
import re
from typing import Any, cast

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

TOO_OLD = re.compile(r"driver.*too old[^.]*")


def refuse_old_driver(on_cpu: str = "--use_cpu") -> None:
    """Raise OSError where a GPU is left idle because its driver is older than this PyTorch wants; else say nothing.

    Args:
        on_cpu: how the command is told to do without.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or torch.version.cuda is None or torch.cuda.is_available():
        return
    try:
        torch.cuda.init()
    except Exception as error:  # on machines without a GPU it tells that there is none
        if found := TOO_OLD.search(" ".join(str(error).split())):
            raise OSError(
                f"the GPU's driver does not fit PyTorch {torch.__version__}, which is built for CUDA {torch.version.cuda}: "
                f"the {found[0]}. Update the driver, install PyTorch's build for an older CUDA, or set {on_cpu} to do "
                "without the GPU."
            ) from error


def default_device() -> torch.device:
    """The accelerator, or the CPU where there is none, whatever PyTorch was built for."""
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return there or torch.device("cpu")


class OneGpu:
    """Of [`transformers.TrainingArguments`]: a process computes on one GPU, and deals no batch out over several.

    `torch.nn.DataParallel`, which Trainer would take, gathers what a loss over all pairs of a batch cannot be made of.
    """

    @property
    def n_gpu(self) -> int:
        """1, or 0 without a GPU."""
        return min(1, cast(Any, super()).n_gpu)

    def tell_of_idle_gpus(self) -> None:
        """Warn where a run that was not launched leaves GPUs without work."""
        here, run = torch.cuda.device_count(), cast(Any, self)
        if run.device.type == "cuda" and run.world_size == 1 and here > 1:
            logger.warning(
                f"this process trains on one of {here} GPUs. To take all give --num_processes {here}, or start it by "
                "accelerate launch; or hide the others by CUDA_VISIBLE_DEVICES=0."
            )


def launch_on_cpus() -> None:
    """Let the processes of a launch know of one another where there is no accelerator."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def gpu_names() -> list[str]:
    """Of the GPUs that PyTorch sees, in their order."""
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. To a GPU it goes by pinned memory, since from other the copy would wait for the GPU's queue.

    To Apple's the copy is waited for: others read memory that may have been given away (pytorch/pytorch#139550).
    """
    if tensor.device == device or (tensor.device.type == device.type and device.index is None):
        return tensor
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "mps")


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
