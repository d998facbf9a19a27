"""Benchmarks of composition: each gives items of images and captions; what is scored how is left to the caller."""

from sdsclip_hf.benchmarks import shapes
from sdsclip_hf.benchmarks.items import Item

BENCHMARKS = {"shapes": shapes.load}


def load_benchmark(name: str) -> list[Item]:
    """The items of a benchmark.

    Args:
        name: the benchmark, optionally with a split: ``shapes``, ``shapes:validation``.

    Raises:
        ValueError: there is no such benchmark or split.
    """
    benchmark, _, split = name.partition(":")
    if benchmark not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {benchmark!r}; choose from {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[benchmark](split or "test")


__all__ = ["BENCHMARKS", "Item", "load_benchmark"]
