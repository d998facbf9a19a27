"""SugarCrepe++'s rules (Dumpala et al. 2024): two true captions and a false one, with an image and among themselves."""

import numpy as np

from .scoring import read_numbers


def read_triplets(image_scores, caption_scores):
    """``{"image_scores": (N, 3), "caption_scores": (N, 3)}`` in float64.

    Raises:
        ValueError: no items, a ragged list, another shape, or lengths that differ.
    """
    inputs = {"image_scores": image_scores, "caption_scores": caption_scores}
    inputs = {name: read_numbers(name, values, "N items of 3 numbers") for name, values in inputs.items()}
    for name, array in inputs.items():
        if array.shape[1:] != (3,):
            raise ValueError(f"{name} has shape {array.shape}; it must be (items, 3), see the card for their order.")
    counts = [len(array) for array in inputs.values()]
    if counts[0] != counts[1]:
        raise ValueError(f"{counts[1]} caption_scores for {counts[0]} image_scores; give both for each item.")
    return inputs


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
