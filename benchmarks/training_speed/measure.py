"""How time and memory are measured: in turns, in steps of the whole Trainer, in processes of their own."""

import contextlib
import io
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

from torch import nn
from transformers import Trainer, TrainerCallback

MIB = 2**20
# glibc then gives memory back as soon as it is free, so that what a process holds is what it uses.
EXACT_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def in_fresh_process(function: Callable, *arguments, env: dict[str, str] | None = None):
    """What ``function`` gives in a process of its own, which starts with ``env`` added to the environment."""
    return in_fresh_processes(function, *arguments, envs=[env or {}])[0]


def in_fresh_processes(function: Callable, *arguments, envs: list[dict[str, str]]) -> list:
    """The same in several processes at once, one for each environment."""
    with contextlib.ExitStack() as stack:
        waiting = []
        for env in envs:
            pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
            with _environment(env):
                waiting.append(pool.submit(function, *arguments))
        return [future.result() for future in waiting]


def process_group(count: int) -> list[dict[str, str]]:
    """The environments by which ``count`` processes of this machine find one another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(count)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)] if count > 1 else [{}]


@contextlib.contextmanager
def _environment(added: dict[str, str]) -> Iterator[None]:
    before = os.environ.copy()
    os.environ.update(added)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def timed(function: Callable, *arguments) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def in_turns(rounds: int, runs: dict[str, Callable[[], float]], warm_up: bool = True) -> dict[str, list[float]]:
    """What each of the runs gives in each of the rounds, in which they take turns; a warm-up round does not count."""
    if warm_up:
        for run in runs.values():
            run()
    found = [{name: run() for name, run in runs.items()} for _ in range(rounds)]
    return {name: [one[name] for one in found] for name in runs}


def seconds_a_step(trainer: Trainer) -> float:
    """A step of the whole training loop, data loading included: the mean of those that the trainer's arguments ask for."""
    clock = Clock()
    train(trainer, clock)
    return (clock.marks[-1] - clock.marks[0]) / (len(clock.marks) - 1)


def trainers_in_turns(rounds: int, trainers: dict[str, Trainer]) -> dict[str, list[float]]:
    """Seconds of a step of each of the trainers, in each of the rounds; see [`in_turns`]."""
    return in_turns(rounds, {name: partial(seconds_a_step, trainer) for name, trainer in trainers.items()})


def train(trainer: Trainer, callback: TrainerCallback) -> None:
    """Train from the beginning, whatever was trained before, in silence."""
    trainer.add_callback(callback)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    trainer.remove_callback(callback)


class Clock(TrainerCallback):
    """The moments at which the training began and each of its steps ended, in ``marks``."""

    def __init__(self):
        self.marks: list[float] = []

    def mark(self, *_, **__) -> None:
        self.marks.append(time.perf_counter())

    on_train_begin = on_step_end = mark


class MemoryWatch(TrainerCallback):
    """What the process holds, and at most held, between marks that are set before the first step and after each (Linux)."""

    def __init__(self):
        self.marks: list[tuple[int, int]] = []

    def mark(self, *_, **__) -> None:
        """Note the peak since the last mark and what is held now."""
        self.marks.append((_held("VmHWM"), _held("VmRSS")))
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on

    on_train_begin = on_step_end = mark

    def mib(self) -> dict[str, float]:
        """MiB: ``peak`` of the process in the last step; ``step``, how far that is above what was held before the step:
        activations and gradients; ``training``, how far all steps go above what was held before the first: the state of
        the optimiser, too."""
        peaks, held = zip(*self.marks, strict=True)
        step, training = peaks[-1] - held[-2], max(peaks[1:]) - held[0]
        return {"peak": peaks[-1] / MIB, "step": step / MIB, "training": training / MIB}


def read_weights(*models: nn.Module) -> None:
    """Have all weights in memory: files that are mapped into it are read when they are first used, maybe in a step."""
    for model in models:
        for tensor in model.state_dict().values():
            tensor.sum()


@cache
def can_measure_memory() -> bool:
    """Whether this machine tells a process its peak memory, and lets it begin to count anew."""
    try:
        MemoryWatch().mark()
    except OSError:
        return False
    return True


def _held(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def ratio(what: str, target: str, above: list[float], below: list[float]) -> dict:
    """A figure of a row: the median of paired ratios, beside its target and the pairs."""
    pairs = [one / other for one, other in zip(above, below, strict=True)]
    return {"what": what, "target": target, "value": statistics.median(pairs), "pairs": pairs}


def memory_ratio(what: str, target: str, kind: str, above: dict | None, below: dict | None) -> dict:
    """The same of a kind of memory; without value where it was not measured, or is too small to be."""
    value = above[kind] / below[kind] if above and below and below[kind] else None
    return {"what": what, "target": target, "value": value}
