"""What teachers, rankers and students say of the questions, as gaps between the wrong captions and the right one."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from sdsclip_hf.benchmarks import read_picture
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.rankers.caption_ranker import CaptionRanker
from sdsclip_hf.scoring.caption_errors import Candidates, CaptionErrors
from sdsclip_hf.teacher_report.questions import Question

CHUNK = 32  # questions


class Pairs(NamedTuple):
    """The P pairs of a right and a wrong caption, question after question.

    Args:
        kinds, tags: (P,) texts.
        groups: (P,) numbers, see [`Question`].
    """

    kinds: np.ndarray
    tags: np.ndarray
    groups: np.ndarray


class Answer(NamedTuple):
    """What a teacher or ranker says of the pairs.

    Args:
        gaps: the error of the wrong caption less that of the right one, (P, R) in the order of the draws; above 0 is right.
        calls: how many captions of pictures were scored, each draw counting.
        speed: calls a second, the first chunk left out, which warms up.
    """

    gaps: np.ndarray
    calls: int
    speed: float


def pairs_of(questions: Sequence[Question]) -> Pairs:
    """The pairs of questions."""
    kinds = [kind for one in questions for kind in one.kinds]
    counts = [len(one.kinds) for one in questions]
    tags, groups = np.array([one.item.tag for one in questions]), np.array([one.group for one in questions])
    return Pairs(np.array(kinds), np.repeat(tags, counts), np.repeat(groups, counts))


def ask_ranker(ranker: CaptionErrors | CaptionRanker, questions: Sequence[Question]) -> Answer:
    """What a teacher, as the [`CaptionErrors`] that takes its draws, or a ranker, which has one draw, says of the pairs.

    Raises:
        ValueError: a score is not finite, or all captions of every picture score alike.
        OSError: a picture cannot be read.
    """
    gaps, calls, started, chunks = [], [], [], range(0, len(questions), CHUNK)
    for start in tqdm(chunks, "questions" if len(chunks) > 1 else None, disable=len(chunks) < 2):
        started.append(time.perf_counter())
        chunk = questions[start : start + CHUNK]
        found = _errors(ranker, chunk)
        gaps += [errors[1:] - errors[:1] for errors in found]
        calls.append(sum(errors.size for errors in found))
    seconds = np.diff([*started, time.perf_counter()])
    warm = slice(1 if len(chunks) > 1 else 0, None)
    answer = Answer(np.concatenate(gaps), sum(calls), float(sum(calls[warm]) / max(seconds[warm].sum(), 1e-9)))
    if not answer.gaps.any():
        raise ValueError(
            f"all captions of each of the {len(questions)} pictures score alike, so that nothing is ranked. Give another "
            "teacher or ranker."
        )
    return answer


def _errors(ranker: CaptionErrors | CaptionRanker, questions: Sequence[Question]) -> list[np.ndarray]:
    """Errors (K, R) of each question's captions; of a ranker that scores them alike zeros."""
    images, captions = (
        [read_picture(one.item.images[0]) for one in questions],
        [one.item.captions for one in questions],
    )
    if isinstance(ranker, CaptionErrors):
        latents = torch.cat([ranker.teacher.encode_images([image]) for image in images])
        return ranker.score(latents, [Candidates(row, texts) for row, texts in enumerate(captions)])
    found = ranker.errors(images, captions)
    return [errors if errors.size else np.zeros((len(errors), 1), np.float32) for errors in found]


def ask_student(student: ClipScorer, questions: Sequence[Question]) -> np.ndarray:
    """The cosine of the right caption less that of the wrong one, (P,).

    Raises:
        ValueError: a cosine is NaN.
        OSError: a picture cannot be read.
    """
    cosines = student.score([one.item for one in questions])  # (K, 1) each
    gaps = np.concatenate([(matrix[:1] - matrix[1:])[:, 0] for matrix in cosines])
    if np.isnan(gaps).any():
        raise ValueError("a cosine of the student is NaN; give another --model, or mend it.")
    return gaps
