"""The temperature that makes probabilities of errors: against teachers whose worth is known, and a plain search."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from sdsclip_hf.losses import calibrated_temperature

COUNT, CANDIDATES = 1500, 4


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def teacher(temperature: float, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    """Errors, and right captions drawn by what a teacher of this worth believes."""
    rng = np.random.default_rng(0)
    errors = rng.gumbel(size=(count, CANDIDATES))
    right = (softmax(-errors / temperature).cumsum(1) > rng.random((count, 1))).argmax(1)
    return errors, right


def fitted(errors: np.ndarray, own: np.ndarray) -> float:
    return calibrated_temperature(torch.from_numpy(errors), torch.from_numpy(own))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 3.0])
def test_softmax_says_how_often_the_teacher_is_right(temperature):
    errors, right = teacher(temperature)

    def unlikely(log_temperature):
        return -np.log(softmax(-errors / math.exp(log_temperature))[np.arange(COUNT), right]).sum()

    found, best = fitted(errors, right), minimize_scalar(unlikely, bounds=(-6, 4), method="bounded")
    assert math.exp(best.x) < found < 1.6 * math.exp(best.x)
    assert unlikely(math.log(found)) < best.fun + 2.5  # what a likelihood ratio tells apart, and the grid
    belief = softmax(-errors / found)
    assert belief.max(1).mean() == pytest.approx((belief.argmax(1) == right).mean(), abs=0.04)


def test_at_chance_it_believes_nothing():
    errors, _ = teacher(0.5)
    right = np.random.default_rng(1).integers(CANDIDATES, size=COUNT)
    assert abs(softmax(-errors / fitted(errors, right)) - 1 / CANDIDATES).mean() < 0.02


def test_one_that_never_errs_is_no_surer_than_its_captions_show():
    errors, _ = teacher(0.5)
    belief = softmax(-errors / fitted(errors, errors.argmin(1)))
    assert 1 < -np.log(belief.max(1)).sum() < 2.1  # of 0 at tau = 0, which fits no better by a likelihood ratio


def test_missing_candidates_count_for_nothing():
    errors, right = teacher(0.5, count=200)
    padded = np.concatenate([np.full((200, 1), np.nan), errors], 1)
    assert fitted(padded, right + 1) == pytest.approx(fitted(errors, right), rel=1e-9)


def test_it_takes_twenty_pictures():
    with pytest.raises(ValueError, match=r"19 pictures.*takes 20"):
        fitted(*teacher(0.5, count=19))
