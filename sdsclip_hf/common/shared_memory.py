"""Room for what loader workers hand over: their batches pass through /dev/shm, which in containers is small (64 MB).

Where it is full, PyTorch loses the batch, and the process that waits for it waits for ever.
"""

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from sdsclip_hf.common.writing import NoRoomError, size

logger = logging.getLogger(__name__)

PLACE = Path("/dev/shm")
PAGE = 4096  # bytes; each tensor begins a new one
REMEDY = "Give the container more (docker run --shm-size 8g)"

_told: set[str] = set()  # options, once each in a process


def workers_with_room(asked: int, batch: object, times: float, prefetch: int | None, option: str, stream=False) -> int:
    """How many loader workers to start: those asked for, or none where their batches have no room, which is told.

    Args:
        asked: how many.
        batch: a batch of a few examples, whose tensors are counted.
        times: how many such make a whole one.
        prefetch: batches that each worker makes ahead; default: PyTorch's 2.
        option: the one that asks for them, for the message.
        stream: whether the rows' order depends on it.
    """
    if not asked or not PLACE.is_dir():
        return asked
    needs = bytes_on_their_way(batch, times, asked, prefetch) * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    free = shutil.disk_usage(PLACE).free
    if needs <= free:
        return asked
    order = " The rows of a stream then come in another order." if stream else ""
    if option not in _told:
        logger.warning(
            f"{PLACE} has {size(free)} free, and the batches of {asked} loader workers need {size(needs)}: going on without "
            f"workers, which is slower.{order} {REMEDY}, or set {option} 0."
        )
    _told.add(option)
    return 0


def bytes_on_their_way(batch: object, times: float, workers: int, prefetch: int | None) -> int:
    """What the workers of a process have in shared memory at most; the arguments are those of [`workers_with_room`]."""
    whole = sum(PAGE * -(-int(times * tensor.nbytes) // PAGE) for tensor in _tensors(batch))
    return whole * (workers * (prefetch or 2) + 1)


class HandedOver:
    """A collate function whose batches a worker puts into shared memory itself, so that a lack of room is an error.

    Args:
        collate: makes the batches.
        option: the one that asks for workers, for the message.
    """

    def __init__(self, collate: Callable, option: str):
        self.collate, self.option = collate, option

    def __call__(self, examples: list):
        """What ``collate`` makes of the examples.

        Raises:
            NoRoomError: /dev/shm is full.
        """
        batch = self.collate(examples)
        if get_worker_info() is not None:
            for tensor in _tensors(batch):
                if not shared(tensor).is_shared():
                    free = size(shutil.disk_usage(PLACE).free)
                    raise NoRoomError(
                        f"{PLACE} has no room for a batch of a loader worker ({size(tensor.nbytes)} needed, {free} free). "
                        f"{REMEDY}, or set {self.option} 0."
                    )
        return batch


def shared(tensor: Tensor) -> Tensor:
    """The tensor, moved to shared memory where that has room."""
    try:
        return tensor.share_memory_()
    except RuntimeError as error:
        if not any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EFBIG, errno.ENOMEM)):
            raise
        return tensor


def _tensors(batch: object) -> Iterator[Tensor]:
    """The tensors of a batch on the CPU, but for empty ones."""
    if torch.is_tensor(batch):
        if batch.device.type == "cpu" and batch.untyped_storage().nbytes():
            yield batch
    elif isinstance(batch, (Mapping, list, tuple)):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(part)
