"""What the answers amount to: accuracy by kind and against the students, by draws and timesteps, and calibration."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from sdsclip_hf.evaluation.significance import clustered_interval
from sdsclip_hf.losses import teacher_confidence
from sdsclip_hf.scoring.caption_errors import visiting_order
from sdsclip_hf.scoring.kinds import KINDS
from sdsclip_hf.scoring.timestep_weights import FEWEST_LABELLED, fit_timestep_weights
from sdsclip_hf.teacher_report.answers import Pairs

ALL, BY_KIND, BY_TAG = "all", "kind", "tag"
MOST_TAGS = 12
BINS, FEWEST_IN_A_BIN = 8, 20
TEMPERATURES = np.logspace(-3, 3, 241)  # of the median gap


def accuracy_rows(pairs: Pairs, gaps: np.ndarray, students: dict[str, np.ndarray]) -> list[dict]:
    """How often the right caption wins, over all pairs, by kind and by the benchmark's tag, beside the students.

    Args:
        pairs: P of them.
        gaps: the teacher's, over all its draws, (P,); above 0 is right, a tie is wrong.
        students: run -> gaps (P,).

    Returns:
        Rows of ``by`` (all, kind, tag), ``name``, ``pairs``, ``pictures`` (or items of a benchmark), ``ties``, ``teacher``
        (``value`` and ``interval``, 95 % by bootstrap over pictures) and ``students``: run -> the same, with ``difference``
        (teacher less student, on the same pairs) and its ``difference_interval``.
    """
    return [_row(by, name, chosen, pairs, gaps, students) for by, name, chosen in _parts(pairs)]


def _parts(pairs: Pairs) -> Iterator[tuple[str, str, np.ndarray]]:
    yield ALL, ALL, np.ones(len(pairs.kinds), bool)
    yield from ((BY_KIND, kind, pairs.kinds == kind) for kind in KINDS if kind in pairs.kinds)
    tags = list(dict.fromkeys(filter(None, pairs.tags.tolist())))
    if 1 < len(tags) <= MOST_TAGS:
        yield from ((BY_TAG, tag, pairs.tags == tag) for tag in tags)


def _row(by: str, name: str, chosen: np.ndarray, pairs: Pairs, gaps: np.ndarray, students: dict) -> dict:
    right, groups = gaps[chosen] > 0, _numbered(pairs.groups[chosen])
    row = {"by": by, "name": name, "pairs": int(chosen.sum()), "pictures": int(groups.max() + 1)}
    row |= {"ties": int((gaps[chosen] == 0).sum()), "teacher": _share(right, groups), "students": {}}
    for run, theirs in students.items():
        also = theirs[chosen] > 0
        difference = _share(right.astype(int) - also, groups)
        compared = {"difference": difference["value"], "difference_interval": difference["interval"]}
        row["students"][run] = _share(also, groups) | compared
    return row


def _numbered(groups: np.ndarray) -> np.ndarray:
    return np.unique(groups, return_inverse=True)[1]


def _share(values: np.ndarray, groups: np.ndarray) -> dict:
    return {"value": float(values.mean()), "interval": list(clustered_interval(values, groups))}


def by_draws(pairs: Pairs, gaps: np.ndarray) -> list[dict]:
    """The accuracy of the first r of R draws, for each r.

    Returns:
        Rows of ``draws``, ``value``, ``interval``, ``loss`` (to all draws, on the same pairs), and ``kinds``, by kind.
    """
    groups, rows = _numbered(pairs.groups), []
    right = np.cumsum(gaps, 1, dtype=np.float64) > 0  # (P, R)
    for draws in range(1, gaps.shape[1] + 1):
        now = right[:, draws - 1]
        row = {"draws": draws, **_share(now, groups), "loss": float(right[:, -1].mean() - now.mean())}
        row["kinds"] = {kind: float(now[pairs.kinds == kind].mean()) for kind in KINDS if kind in pairs.kinds}
        rows.append(row)
    return rows


def by_timestep(pairs: Pairs, gaps: np.ndarray, timesteps: Sequence[int]) -> list[dict]:
    """The accuracy of each draw alone, rows of ``timestep``, ``value`` and ``interval`` by rising timestep.

    Args:
        gaps: (P, R) in the order of the draws.
        timesteps: R of them, rising.
    """
    groups, order = _numbered(pairs.groups), visiting_order(gaps.shape[1])
    place = np.argsort(order)
    return [
        {"timestep": int(timestep), **_share(gaps[:, place[number]] > 0, groups)}
        for number, timestep in enumerate(timesteps)
    ]


def timestep_weights(pairs: Pairs, gaps: np.ndarray, timesteps: Sequence[int]) -> dict | None:
    """Fitted weights of the timesteps, see [`fit_timestep_weights`]; None where there are too few pictures or timesteps.

    Returns:
        ``weights`` by rising timestep with mean 1, ``labelled`` (pictures), ``accuracy`` (cross-validated), and
        ``uniform_accuracy``, with equal weights.
    """
    if len(set(pairs.groups.tolist())) < FEWEST_LABELLED or len(set(timesteps)) < 2:
        return None
    fitted = fit_timestep_weights(gaps, pairs.groups)
    rising = fitted.weights[np.argsort(visiting_order(gaps.shape[1]))]
    told = {"weights": rising.round(4).tolist(), "labelled": fitted.labelled}
    return told | {"accuracy": fitted.accuracy, "uniform_accuracy": fitted.uniform_accuracy}


def calibration(pairs: Pairs, gaps: np.ndarray) -> dict:
    """How often the preferred caption of a pair is right, against how sure the teacher is of it.

    Of several draws the confidence is the probability, by their spread, that more of them would not change the choice,
    (1 + [`teacher_confidence`]) / 2; of one score that of a softmax over the pair, with the temperature that fits best.

    Returns:
        ``by`` (draws, softmax), ``bins`` of equally many pairs (``confidence``, ``value``, ``interval`` and ``pairs``),
        ``error``, the mean distance of the two weighted by the pairs, and ``surer_half``, the accuracy (``value``,
        ``interval``) of those pairs that it is surest of. Of a softmax also ``temperature``, None where none is best (all
        pairs are right, or no more than by chance), and ``untempered``, the mean confidence at temperature 1.
    """
    right, groups = gaps.sum(1) > 0, _numbered(pairs.groups)
    if gaps.shape[1] > 1:
        told: dict = {"by": "draws"}
        sure = (1 + teacher_confidence(torch.from_numpy(np.stack([np.zeros_like(gaps), gaps], 1))).numpy()) / 2
    else:
        temperature, is_best = _fitted_temperature(gaps[:, 0])
        told = {"by": "softmax", "temperature": temperature if is_best else None}
        told["untempered"] = float(_sure(gaps[:, 0]).mean())
        sure = _sure(gaps[:, 0] / temperature)
    order = np.argsort(sure, kind="stable")
    parts = np.array_split(order, max(1, min(BINS, len(order) // FEWEST_IN_A_BIN)))
    bins = [
        {"confidence": float(sure[part].mean()), "pairs": len(part), **_share(right[part], _numbered(groups[part]))}
        for part in parts
    ]
    error = sum(one["pairs"] * abs(one["confidence"] - one["value"]) for one in bins) / len(order)
    half = order[len(order) // 2 :]
    return told | {"bins": bins, "error": float(error), "surer_half": _share(right[half], _numbered(groups[half]))}


def _sure(gaps: np.ndarray) -> np.ndarray:
    """The greater probability of a softmax over each pair."""
    return 1 / (1 + np.exp(-np.abs(gaps)))


def _fitted_temperature(gaps: np.ndarray) -> tuple[float, bool]:
    """Of the softmax over a pair under which the right captions are likeliest; whether it lies within those tried."""
    tried = TEMPERATURES * float(np.median(np.abs(gaps[gaps != 0])))
    best = int(np.argmin([np.logaddexp(0, -gaps / one).mean() for one in tried]))
    return float(tried[best]), 0 < best < len(tried) - 1
