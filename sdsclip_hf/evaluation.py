"""Scorer x benchmark x metric: the one place where the three come together."""

from collections.abc import Sequence
from functools import cache

import evaluate
import numpy as np

from sdsclip_hf import metrics
from sdsclip_hf.benchmarks import load_benchmark

PARTS = ("text", "image", "group")


@cache
def _items(name: str):
    return load_benchmark(name)


@cache
def _metric():
    return evaluate.load(metrics.path("winoground_group_score"))


def score_benchmark(scorer, name: str) -> tuple[np.ndarray, list[str]]:
    """The scores (N, 2, 2) of a benchmark's items, captions in rows, and the tag of each item."""
    items = _items(name)
    return np.stack(scorer.score(items)), [item.tag for item in items]


def summarize(scores: np.ndarray, tags: Sequence[str]) -> dict[str, dict]:
    """Winoground's scores for each tag.

    Args:
        scores: (N, 2, 2), captions in rows, images in columns.
        tags: N tags.

    Returns:
        tag -> ``{"text": fraction, "image": …, "group": …, "intervals": {"text": (low, high), …}, "n": …, "ties": …}``,
        the intervals at 95 % by bootstrap over the items.
    """
    by_tag = _metric().compute(scores=scores.tolist(), tags=list(tags))["tags"]
    return {
        tag: {
            **{part: result[f"winoground_{part}_score"] for part in PARTS},
            "intervals": {part: result["intervals"][f"winoground_{part}_score"] for part in PARTS},
            "n": result["n"],
            "ties": result["ties"],
        }
        for tag, result in by_tag.items()
    }


def evaluate_benchmarks(scorer, names: Sequence[str]) -> dict[str, dict[str, dict]]:
    """benchmark -> tag -> scores, see [`summarize`]."""
    return {name: summarize(*score_benchmark(scorer, name)) for name in names}


def flatten(results: dict[str, dict[str, dict]]) -> dict[str, float]:
    """The scores as one number a key, for logs: ``{"shapes:test/relation/group": 0.57, …}``."""
    return {
        f"{benchmark}/{tag}/{part}".replace(" ", "_"): scores[part]
        for benchmark, tags in results.items()
        for tag, scores in tags.items()
        for part in PARTS
    }
