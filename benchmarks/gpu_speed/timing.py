"""How time and memory are measured on a GPU, and in a rehearsal on a CPU: medians of repeats after a warm-up."""

import gc
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


def seconds(run: Callable[[], object], device: torch.device, repeats: int = 5, warm_up: int = 2) -> dict:
    """The median of a run's seconds, and the range of the repeats as a share of it, by the device's own clock."""
    for _ in range(warm_up):
        run()
    if device.type != "cuda":
        found = [_timed(run) for _ in range(repeats)]
    else:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        torch.cuda.synchronize(device)
        marks[0].record()
        for mark in marks[1:]:
            run()
            mark.record()
        torch.cuda.synchronize(device)
        found = [before.elapsed_time(after) / 1000 for before, after in pairwise(marks)]
    median = statistics.median(found)
    return {"seconds": median, "spread": (max(found) - min(found)) / median}


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """What tensors hold at most while something runs; None where the device does not tell."""
    if device.type != "cuda":
        run()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Operations a second that the device reaches on products of square matrices."""
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: one @ other, device)["seconds"]


def free(device: torch.device) -> None:
    """Give back what a row has left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
