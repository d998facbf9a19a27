"""What a training takes in a process of its own, or in several: seconds and memory of its steps."""

import os
from collections.abc import Callable
from itertools import pairwise

import torch
from transformers import TrainerCallback

from sdsclip_hf.common.processes import end_process_group
from training_speed.bench import Bench
from training_speed.measure import (
    EXACT_MEMORY,
    Clock,
    MemoryWatch,
    can_measure_memory,
    in_fresh_processes,
    process_group,
    read_weights,
    train,
)


def training_seconds(bench: Bench, processes: int = 1, steps: int = 3, **options) -> list[float]:
    """Seconds of each of ``steps`` steps, after one that does not count.

    Args:
        bench: what is trained on.
        processes: that share the machine's threads and the batch.
        steps: how many are measured.
        options: of [`Bench.trainer`], with ``batch`` for the pairs of all processes; by default the random teacher and
            ``bench.size.batch``.
    """
    return _in_processes(bench, processes, {}, _seconds, options, steps)[0]


def training_memory(bench: Bench, processes: int = 1, **options) -> dict[str, float] | None:
    """MiB of all processes together, see [`MemoryWatch.mib`]; None where that cannot be measured. Else as above."""
    if not can_measure_memory():
        return None
    found = _in_processes(bench, processes, EXACT_MEMORY, _memory, options)
    return {kind: sum(one[kind] for one in found) for kind in found[0]}


def _in_processes(
    bench: Bench, processes: int, env: dict[str, str], measure: Callable, options: dict, *further
) -> list:
    options = {"student": "ViT-B/32", "teacher": "random", "batch": bench.size.batch} | options
    bench.student(options["student"])  # is made here, lest the processes do it at once; and so is the teacher
    if options["teacher"] == "random":
        bench.teacher()
    threads = max(1, torch.get_num_threads() // processes)
    env = {"OMP_NUM_THREADS": str(threads)} | env  # as launchers set it, or each would take all threads of the machine
    envs = [own | env for own in process_group(processes)]
    return in_fresh_processes(measure, bench, threads, options, *further, envs=envs)


def _seconds(bench: Bench, threads: int, options: dict, steps: int) -> list[float]:
    clock = Clock()
    _train(bench, threads, options, steps + 1, clock)
    return [after - before for before, after in pairwise(clock.marks[1:])]


def _memory(bench: Bench, threads: int, options: dict) -> dict[str, float]:
    watch = MemoryWatch()
    _train(bench, threads, options, 1 + options.get("distill_every", 1), watch)  # the last one distils
    return watch.mib()


def _train(bench: Bench, threads: int, options: dict, steps: int, callback: TrainerCallback) -> None:
    torch.set_num_threads(threads)
    options = dict(options)
    batch = options.pop("batch") // int(os.environ.get("WORLD_SIZE", 1))
    trainer = bench.trainer(**options, steps=steps, per_device_train_batch_size=batch)
    read_weights(*filter(None, (trainer.student, trainer.teacher)))
    train(trainer, callback)
    end_process_group()
