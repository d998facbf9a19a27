"""What operations on tensors compute and hold in memory, counted while they run."""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
FLOPS = flop_registry | {  # attention as CPUs run it costs what it does on GPUs, but the registry leaves it out
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}


class Phase(NamedTuple):
    """The part of a step that is being run, and at which stage of it."""

    part: str
    stage: str


class Ledger(TorchDispatchMode):
    """In this context, the floating-point operations that are run and the bytes that tensors hold, by phase.

    A multiplication and an addition are two operations; those of matrix products, convolutions and attention count,
    attention without regard to masks. A tensor's bytes count under the phase that made it, until nothing refers to its
    storage any more. What an operation needs for itself alone, while it runs, is not seen.

    Attributes:
        phase: what is being run.
        times: how many of its kind the operations that are being run stand for.
        flops: operations by phase.
        live: bytes by phase, now.
        peak: the same at the moment when they were most in all.
    """

    def __init__(self):
        super().__init__()
        self.phase, self.times = Phase("", ""), 1
        self.flops, self.live, self.peak = Counter(), Counter(), Counter()
        self._storages: set[int] = set()

    @contextmanager
    def during(self, part: str, stage: str, times: int = 1) -> Iterator[None]:
        """Count what runs in this context under the given phase, ``times`` times over."""
        before = self.phase, self.times
        self.phase, self.times = Phase(part, stage), times * self.times
        try:
            yield
        finally:
            self.phase, self.times = before

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count the bytes of tensors from here on, unless they are counted already."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) not in self._storages:
                self._take(storage, self.phase, storage.nbytes())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function._overloadpacket in FLOPS:
            self.flops[self.phase] += self.times * FLOPS[function._overloadpacket](*args, **kwargs, out_val=result)
        self.hold(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result

    def _take(self, storage: torch.UntypedStorage, phase: Phase, size: int) -> None:
        self._storages.add(id(storage))
        weakref.finalize(storage, self._drop, id(storage), phase, size).atexit = False
        self.live[phase] += size
        if self.live.total() > self.peak.total():
            self.peak = self.live.copy()

    def _drop(self, storage: int, phase: Phase, size: int) -> None:
        self._storages.remove(storage)
        self.live[phase] -= size
