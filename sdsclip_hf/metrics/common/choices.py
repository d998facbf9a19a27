"""A true caption against false ones, for one image an item. Each metric of that kind has this same file."""

import numpy as np

from .scoring import read_numbers, refuse_nan


def read_choices(true_scores, false_scores):
    """``{"true_scores": (N,), "false_scores": (N, K)}`` in float64; false scores (N,) are taken for (N, 1).

    Raises:
        ValueError: no items, a ragged list, another shape, or lengths that differ.
    """
    true_scores = read_numbers("true_scores", true_scores, "one number an item")
    false_scores = read_numbers("false_scores", false_scores, "one number an item, or K numbers an item")
    if true_scores.ndim != 1:
        raise ValueError(f"true_scores has shape {true_scores.shape}; it must be (items,).")
    if false_scores.ndim not in (1, 2) or false_scores.shape[-1] == 0:
        raise ValueError(
            f"false_scores has shape {false_scores.shape}; it must be (items,) or (items, false captions)."
        )
    if len(true_scores) != len(false_scores):
        raise ValueError(
            f"{len(false_scores)} false_scores for {len(true_scores)} true_scores; give both for each item."
        )
    return {"true_scores": true_scores, "false_scores": false_scores.reshape(len(false_scores), -1)}


def read_pairs(true_scores, false_scores):
    """As ``read_choices``, for benchmarks with a single false caption an item: false scores (N, 1)."""
    inputs = read_choices(true_scores, false_scores)
    shape = inputs["false_scores"].shape
    if shape[1] != 1:
        raise ValueError(f"false_scores has shape {shape}; there is one false caption an item, so it must be (items,).")
    return inputs


def right_items(true_scores, false_scores):
    """Whether the true caption scores strictly higher than every false one, as bool (N,); a tie is wrong.

    Args:
        true_scores: (N,); higher means a better match.
        false_scores: (N, K).
    """
    return np.asarray(true_scores) > np.asarray(false_scores).max(axis=1)


def tied_items(true_scores, false_scores):
    """Whether the true caption scores exactly as high as the best false one, as bool (N,); for (N,) and (N, K)."""
    return np.asarray(true_scores) == np.asarray(false_scores).max(axis=1)


def judge(true_scores, false_scores):
    """[`right_items`] and [`tied_items`] of scores as ``evaluate`` stores them.

    Raises:
        ValueError: what ``read_choices`` refuses, or NaN.
    """
    inputs = read_choices(true_scores, false_scores)
    for name, array in inputs.items():
        refuse_nan(name, array)
    return right_items(**inputs), tied_items(**inputs)


def accuracies(groups):
    """name -> ``{"accuracy": fraction, "n": items}``, from name -> bool (N of the group,)."""
    return {name: {"accuracy": float(right.mean()), "n": len(right)} for name, right in groups.items()}


def summarize(scores, bootstrap, **details):
    """The scores, how many items each is over, the details, and the intervals.

    Args:
        scores: name -> {group -> bool (N of the group,)}; a score is the unweighted mean of its groups' accuracies, so
            that a single group gives the plain accuracy.
        bootstrap: the [`Bootstrap`] of the intervals.
        details: what else belongs into the result.
    """
    means = {name: float(np.mean([right.mean() for right in groups.values()])) for name, groups in scores.items()}
    counts = {name: sum(map(len, groups.values())) for name, groups in scores.items()}
    intervals = bootstrap.intervals({name: groups.values() for name, groups in scores.items()})
    return means | details | {"counts": counts} | intervals
