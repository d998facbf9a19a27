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


def table(runs: dict[str, dict[str, dict[str, dict]]]) -> str:
    """Scores in per cent with their 95 % intervals, as text for a terminal.

    Args:
        runs: run -> benchmark -> tag -> scores, see [`summarize`].
    """
    header = ("benchmark", "tag", "items", "run", *PARTS)
    rows = [header]
    for benchmark, tags in next(iter(runs.values())).items():
        for tag in tags:
            for run, results in runs.items():
                scores = results[benchmark][tag]
                cells = [_cell(scores[part], scores["intervals"][part]) for part in PARTS]
                rows.append((benchmark, tag, str(scores["n"]), run, *cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(max(lines, key=len)), *lines[1:]])


def _cell(score: float, interval: tuple[float, float]) -> str:
    return f"{100 * score:5.1f} [{100 * interval[0]:4.1f}, {100 * interval[1]:4.1f}]"
