"""Which items a model answers rightly, and by how much, from its scores or ranks alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdsclip_hf.metrics.common import choices, triplets, winoground

PAIRS, CHOICE, TRIPLET, CLASS, RETRIEVAL = "pairs", "choice", "triplet", "class", "retrieval"
TRIPLETS = ("sugarcrepe_pp",)
RANKED = (CLASS, RETRIEVAL)


class Verdicts(NamedTuple):
    """A model's answers to N items.

    Args:
        right: (N,) bool; a tie is not.
        tied: (N,) bool, whether the item hangs on a tie.
        margin: (N,) by how much the closest comparison is won, above 0 where the item is right. Of ranks, minus the number
            of wrong candidates that are not below the right one, 0 where the item is right.
    """

    right: np.ndarray
    tied: np.ndarray
    margin: np.ndarray


def form_of(name: str, answers: Sequence[np.ndarray], has_captions: bool) -> str | None:
    """How a benchmark asks: ``pairs`` of two pictures and two captions, a ``choice`` of captions for one picture or of
    pictures for one caption, a ``triplet`` of two true captions and a false one, the ``class`` of a picture among all, or
    ``retrieval``; None where it is none of these.

    Args:
        name: of the benchmark.
        answers: (captions, images) scores in floats, or (questions, 2) ranks in whole numbers, see [`ranks`].
        has_captions: whether the items have captions of their own.
    """
    if all(np.issubdtype(answer.dtype, np.integer) for answer in answers):
        return RETRIEVAL if has_captions else CLASS
    if name in TRIPLETS:
        return TRIPLET
    if all(answer.shape == (2, 2) for answer in answers):
        return PAIRS
    if all(min(answer.shape) == 1 and answer.size > 1 for answer in answers):
        return CHOICE
    return None


def judge(answers: Sequence[np.ndarray], form: str) -> Verdicts:
    """What a benchmark's rule makes of the answers, item by item: the group score's of pairs, accuracy of choices,
    ITT of triplets, accuracy@1 of classes, recall@1 from picture to caption of retrieval.
    """
    if form in RANKED:
        against, favourable = np.stack([answer[0] for answer in answers]).T
        return Verdicts(against == 0, (against > 0) & (favourable == 0), -against.astype(float))
    if form == PAIRS:
        scores = np.stack(answers).astype(float)
        right, tied = winoground.right_items(scores)["group"], winoground.tied_items(scores)
        by_caption = [scores[:, 0, 0] - scores[:, 1, 0], scores[:, 1, 1] - scores[:, 0, 1]]
        by_picture = [scores[:, 0, 0] - scores[:, 0, 1], scores[:, 1, 1] - scores[:, 1, 0]]
        return Verdicts(right, tied, np.min([*by_caption, *by_picture], axis=0))
    if form == TRIPLET:
        scores = np.stack([answer[:, 0] for answer in answers]).astype(float)
        return Verdicts(*triplets.judge_itt(scores), scores[:, :2].min(1) - scores[:, 2])
    true = np.array([answer.flat[0] for answer in answers], dtype=float)
    false = np.array([answer.ravel()[1:].max() for answer in answers], dtype=float)
    return Verdicts(choices.right_items(true, false[:, None]), choices.tied_items(true, false[:, None]), true - false)
