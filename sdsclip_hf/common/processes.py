"""What the processes of a run do together: they agree when it begins, and part when it ends."""

import os
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from torch import Tensor

PAUSE = 0.5  # seconds
COUNTS = "sdsclip_hf/counts"  # before the names of SharedCount, in the store by which the processes found one another
# Options that may differ: where a process writes, and what it tells.
OF_ONE_PROCESS = {"output_dir", "local_rank", "log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name"}


def cores() -> int:
    """Of this machine's, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gather_ragged(accelerator: Accelerator, rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, of which each may have another number, and where this one's begin. Without a gradient.

    Args:
        accelerator: of the run.
        rows: this process's, (b, ...).
    """
    counts = cast(Tensor, accelerator.gather(torch.tensor([len(rows)], device=rows.device))).tolist()
    padded = cast(Tensor, accelerator.gather(accelerator.pad_across_processes(rows)))
    parts = padded.split(len(padded) // len(counts))
    everyone = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return everyone, sum(counts[: accelerator.process_index])


def group_of_cpus() -> dist.ProcessGroup | None:
    """This run's processes by gloo, for what lies on CPUs, so that no GPU is waited for. To be called on all of them."""
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


class SharedCount:
    """A number that the processes of a run count up together, each when it comes to it, without waiting for the others.

    Args:
        name: a new one for each count; alike on all processes.
    """

    def __init__(self, name: str):
        self._name, self._own = f"{COUNTS}/{name}", 0
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._store = dist.distributed_c10d._get_default_store() if together else None

    def add(self, number: int = 1) -> int:
        """Count up, and tell what the count then is."""
        if self._store is not None:
            return self._store.add(self._name, number)
        self._own += number
        return self._own


def check_agreement(options: Mapping[str, object], lengths: Mapping[str, int | None] = MappingProxyType({})) -> None:
    """Raise the same error on every process, unless all of them were given the same. To be called on all of them.

    One that does not do what the others do would train something else, or wait for ever.

    Args:
        options: what this process was given, by name: settings, or fingerprints of weights.
        lengths: the rows of its datasets, by what they are called; None of a stream.

    Raises:
        ValueError: the processes differ; it names in what, and the values by rank.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    told = {name: str(value) for name, value in options.items() if name not in OF_ONE_PROCESS}
    everyone: list[tuple[dict, dict]] = [({}, {})] * dist.get_world_size()
    dist.all_gather_object(everyone, (told, dict(lengths)))
    options_by_rank, lengths_by_rank = zip(*everyone, strict=True)
    if differing := _differences(options_by_rank):
        raise ValueError(
            f"the processes of this run were given different options: {'; '.join(differing)}. Launch all of them with the "
            "same command, from the same files."
        )
    if differing := _differences(lengths_by_rank):
        raise ValueError(
            f"the processes of this run hold different data: {'; '.join(differing)}. Give every process the whole of the "
            "same dataset (of which each then takes its share), or a stream."
        )


def _differences(by_rank: tuple[dict, ...]) -> list[str]:
    """What differs, each with its values and their ranks."""
    names = dict.fromkeys(name for of_one in by_rank for name in of_one)
    found = []
    for name in names:
        ranks: dict[object, list[str]] = {}
        for rank, of_one in enumerate(by_rank):
            ranks.setdefault(of_one.get(name), []).append(str(rank))
        if len(ranks) > 1:
            values = ", ".join(f"{value} on rank {' and '.join(where)}" for value, where in ranks.items())
            found.append(f"{name} is {values}")
    return found


def end_process_group() -> None:
    """Leave the other processes, at the end of a command. To be called on all of them.

    A gloo thread lets go of a collective's tensors a moment after that is done, for which it needs Python's lock. PyTorch
    destroys the group with that lock held, and would wait for the thread for ever, or abort when the interpreter ends:
    hence the pause, in which the lock is free.
    """
    state = PartialState()
    if state.num_processes > 1:
        state.wait_for_everyone()
        time.sleep(PAUSE)
    state.destroy_process_group()
