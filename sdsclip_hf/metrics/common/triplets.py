"""SugarCrepe++'s rules (Dumpala et al. 2024): two true captions and a false one, with an image and among themselves."""

import numpy as np


def judge_itt(scores):
    """Whether both true captions score strictly higher with the image than the false one, and whether one ties with it.

    Args:
        scores: (N, 3), of the true captions and the false one.

    Returns:
        Two bool (N,).
    """
    scores = np.asarray(scores)
    true, false = scores[:, :2], scores[:, 2:]
    return (true > false).all(axis=1), (true == false).any(axis=1)


def judge_tot(scores):
    """Whether the true captions are strictly more similar to one another than each to the false one, and whether that ties.

    Args:
        scores: (N, 3), similarities of the true ones, of the first and the false one, of the second and the false one.

    Returns:
        Two bool (N,).
    """
    scores = np.asarray(scores)
    same, others = scores[:, :1], scores[:, 1:]
    return (same > others).all(axis=1), (same == others).any(axis=1)
