"""The teacher's d(x, c) of an image's candidate captions, draw by draw, and no further than their order is certain."""

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

logger = logging.getLogger(__name__)

FEWEST_DRAWS = 4
Settled = Literal["order", "first_choice"]
SETTLED = get_args(Settled)


class Candidates(NamedTuple):
    """An image, as its row among some latents, and the captions to be scored against it."""

    latent: int
    captions: Sequence[str]


class CaptionErrors:
    """Scores items with shared draws of (t, eps) and stops each as soon as the order of its captions is settled.

    Args:
        teacher: whose denoising errors are taken.
        num_draws: R, how many draws an item gets at most; the same as of [`DiffusionTeacher.diffusion_score`].
        timestep_range: first and last timestep; default: see [`DiffusionTeacher.diffusion_score`].
        weighting: w(t), see [`noise_weight`]; default: see [`DiffusionTeacher.denoising_error`].
        seed: of the noise.
        stop_confidence: an item stops when what ``settled`` names is that of all R draws with this probability; 0: never.
        settled: the whole ``order`` of an item's captions, or the ``first_choice`` alone.
        batch_size: denoiser inputs at once; halved, once and for all, where the GPU has no room for them.

    Raises:
        ValueError: the range does not fit the schedule, or ``settled`` is an unknown name.
    """

    def __init__(
        self,
        teacher: DiffusionTeacher,
        num_draws: int = 10,
        timestep_range: Sequence[int] | None = None,
        weighting: str | None = None,
        seed: int = 0,
        stop_confidence: float = 0.0,
        settled: str = "order",
        batch_size: int = 64,
    ):
        if settled not in SETTLED:
            raise ValueError(f"unknown settled {settled!r}; choose from {', '.join(SETTLED)}.")
        self.teacher, self.weighting, self.batch_size = teacher, weighting, batch_size
        self.stop_confidence, self.settled = stop_confidence, settled
        self.order = visiting_order(num_draws)
        self.timesteps, self.noises = teacher.draws(num_draws, timestep_range, seed)

    def score(self, latents: Tensor, items: Sequence[Candidates]) -> list[np.ndarray]:
        """Errors (K, r) of each item's K captions in its first r draws, in the order of [`visiting_order`].

        Args:
            latents: clean latents of the images, (I, C, h, w).
            items: what is scored; an item of fewer than two captions has nothing to order and gets no draw.

        Raises:
            ValueError: an error is not finite.
        """
        distinct = {caption: None for item in items for caption in item.captions}
        prompt_of = {caption: row for row, caption in enumerate(distinct)}
        prompts = self.teacher.encode_captions(list(distinct), self.batch_size) if distinct else None
        found = [np.empty((len(item.captions), 0), np.float32) for item in items]
        active = [place for place, item in enumerate(items) if len(item.captions) > 1]
        for draw in self.order:
            if not active:
                break
            pairs = [(items[place].latent, prompt_of[text]) for place in active for text in items[place].captions]
            latent_rows, prompt_rows = torch.tensor(pairs).unbind(1)
            errors = self._draw(latents, prompts, latent_rows, prompt_rows, self.timesteps[draw], self.noises[draw])
            counts = [len(items[place].captions) for place in active]
            for place, column in zip(active, errors.split(counts), strict=True):
                found[place] = np.column_stack([found[place], column.numpy()])
            active = [place for place in active if not self._is_settled(found[place])]
        return found

    def _draw(self, *pairs) -> Tensor:
        """[`DiffusionTeacher.draw_errors`] by as many pairs at once as fit."""
        while True:
            try:
                return self.teacher.draw_errors(*pairs, weighting=self.weighting, batch_size=self.batch_size)
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
            # Not where it is caught: the exception holds what did not fit.
            too_many, self.batch_size = self.batch_size, self.batch_size // 2
            if self.teacher.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.warning(f"the GPU has no room for a batch of {too_many}; from here on it is {self.batch_size}.")

    def _is_settled(self, errors: np.ndarray) -> bool:
        if not self.stop_confidence or errors.shape[1] < FEWEST_DRAWS:
            return False
        return certainty(errors, self.order, self.settled) >= self.stop_confidence


def visiting_order(num_draws: int) -> list[int]:
    """The R draws of rising timestep in an order of which every beginning is spread about evenly over the range.

    Pairs of draws, one as far from the lower end as the other is from the upper, the lower ones by bit reversal (van der
    Corput's sequence): of 16 first 4 and 11, then 2 and 13, then 6 and 9.
    """
    half = (num_draws + 1) // 2
    bits = half.bit_length()
    lower = sorted(range(half), key=lambda place: (place == 0, int(f"{place:0{bits}b}"[::-1], 2)))
    return list(dict.fromkeys(draw for place in lower for draw in (place, num_draws - 1 - place)))


def certainty(errors: np.ndarray, order: Sequence[int], settled: str = "order") -> float:
    """The probability that all draws will order the captions as those so far do (a lower bound, by Bonferroni).

    Of each pair of neighbours in the order so far the draws to come are predicted by interpolation over the timestep, with
    the noise that the draws so far show around a smooth curve.

    Args:
        errors: (K, r), K at least 2 and r at least 3.
        order: the R draws, numbered by rising timestep, as they are made; the first r are those of ``errors``.
        settled: ``order``, or ``first_choice``: that the first will be the first.
    """
    total, count = len(order), errors.shape[1]
    if count == total:
        return 1.0
    ranked = errors[errors.mean(1).argsort(kind="stable")].astype(np.float64)
    rising = np.argsort(order[:count])
    places = np.asarray(order[:count], np.float64)[rising]
    better = ranked[:-1] if settled == "order" else ranked[:1]
    gaps = (ranked[1:] - better)[:, rising]  # (K - 1, r)
    predicted = np.stack([np.interp(np.arange(total), places, gap) for gap in gaps]).mean(1)
    mean = np.minimum(predicted, gaps.mean(1))
    deviation = np.sqrt(_residual_variance(places, gaps) * (total - count) / (total * count))
    return float(1 - (1 - student_t(mean / np.maximum(deviation, 1e-30), count - 2)).sum())


def _residual_variance(places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(N,) variances of the noise around smooth curves (N, r) over ``places`` (r,).

    From how far each value is off the line through its two neighbours (Gasser, Sroka and Jennen-Steinmetz 1986), so
    that what changes smoothly with the timestep does not count as noise.
    """
    share = (places[2:] - places[1:-1]) / (places[2:] - places[:-2])
    residuals = values[:, 1:-1] - share * values[:, :-2] - (1 - share) * values[:, 2:]
    return (residuals**2 / (1 + share**2 + (1 - share) ** 2)).mean(1)


def student_t(t: np.ndarray, degrees: int) -> np.ndarray:
    """P(T <= t) of Student's t with a whole number of degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = np.arctan(np.asarray(t, np.float64) / np.sqrt(degrees))
    term = np.ones_like(angle) if degrees % 2 == 0 else np.cos(angle)
    total = np.zeros_like(angle)
    for power in range(degrees % 2, degrees - 1, 2):
        total += term
        term = term * np.cos(angle) ** 2 * (power + 1) / (power + 2)
    two_sided = np.sin(angle) * total if degrees % 2 == 0 else 2 / np.pi * (angle + np.sin(angle) * total)
    return (1 + two_sided) / 2
