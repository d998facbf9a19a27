"""The items that a model has most wrong, as rows of a table."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from sdsclip_hf.benchmarks import Benchmark, Item, read_picture
from sdsclip_hf.reports.gather import Pictures
from sdsclip_hf.reports.verdicts import form_of, judge

EDGE = 320  # pixels of a picture's longer side


def margins(benchmark: Benchmark, answers: Sequence[np.ndarray]) -> np.ndarray | None:
    """(N,) of the items, see [`Verdicts`]; None where the benchmark is of a form that has none."""
    answers = [np.atleast_2d(answer) for answer in answers]
    form = form_of(benchmark.kind, answers, bool(benchmark.items[0].captions))
    return None if form is None else judge(answers, form).margin


def failures(
    benchmark: Benchmark, answers: Sequence[np.ndarray], count: int, before: np.ndarray | None = None
) -> list[dict]:
    """The ``count`` items of the lowest margins among those that are wrong.

    Args:
        benchmark: the items.
        answers: the model's, see [`outcomes`].
        count: of rows, at most.
        before: (N,) margins at an earlier time.

    Returns:
        Rows of ``item``, ``tag``, ``captions``, ``scores`` or ``places``, ``margin`` and ``margin before``, and of a picture
        each ``picture 1``, … as images, unless the benchmark's licence forbids copies.
    """
    now = margins(benchmark, answers)
    if now is None:
        return []
    is_ranked = np.issubdtype(np.asarray(answers[0]).dtype, np.integer)
    wrong = np.flatnonzero(now < 0 if is_ranked else now <= 0)
    worst = wrong[np.argsort(now[wrong], kind="stable")][:count]
    shows = Pictures().why_not(benchmark.name) is None
    rows = []
    for number in worst:
        item, answer = benchmark.items[number], np.atleast_2d(answers[number])
        row = {"item": item.identifier, "tag": item.tag, "captions": "\n".join(item.captions)}
        row |= {"places": _places(answer)} if is_ranked else {"scores": _scores(answer)}
        row |= {"margin": float(now[number]), "margin before": None if before is None else float(before[number])}
        rows.append(row | (_pictures(item) if shows else {}))
    return rows


def _places(ranks: np.ndarray) -> str:
    return ", ".join(str(rank + 1) for rank in ranks[:, 0])


def _scores(matrix: np.ndarray) -> str:
    """A line a caption, with its scores for each picture."""
    return "\n".join("  ".join(f"{score:.4g}" for score in of_caption) for of_caption in matrix)


def _pictures(item: Item) -> dict[str, Image.Image]:
    shown = {}
    for number, picture in enumerate(item.images, 1):
        image = read_picture(picture).copy()
        image.thumbnail((EDGE, EDGE))
        shown[f"picture {number}"] = image
    return shown
