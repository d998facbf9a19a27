"""How much each draw's error counts in d(x, c), fitted on pictures whose right caption is known."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

FEWEST_LABELLED = 20
RIDGES = tuple(10.0 ** np.arange(1, -4, -1))
UNIFORM = 1e6  # so strong a ridge leaves a common factor alone
FOLDS, REPEATS = 5, 4
CLEARLY = 2.0  # standard errors by which weights must better the held-out loss to be taken


class FittedWeights(NamedTuple):
    """Weights of the draws, and what they are worth on pictures that they were not fitted on.

    Args:
        weights: (R,), not negative, with mean 1; all 1 where no others are clearly better.
        labelled: how many pictures or items they were fitted on.
        accuracy: how often a true caption has a lower error than a wrong one, cross-validated.
        uniform_accuracy: the same of equal weights.
    """

    weights: np.ndarray
    labelled: int
    accuracy: float
    uniform_accuracy: float

    def told(self) -> dict[str, Any]:
        """As ``scores.json`` keeps them."""
        return {
            "weights": [round(float(weight), 6) for weight in self.weights],
            "labelled": self.labelled,
            "accuracy": round(self.accuracy, 4),
            "uniform_accuracy": round(self.uniform_accuracy, 4),
        }


def fit_timestep_weights(gaps: np.ndarray, pictures: Sequence, seed: int = 0) -> FittedWeights:
    """Weights by a logistic regression of the right answer on the gaps of each draw, shrunk towards equal ones.

    Minimises, over w >= 0, ``mean log(1 + exp(-gaps @ w)) + ridge * |w - mean(w)|^2``. The ridge is that of the lowest
    cross-validated loss; its weights are taken where they better that of equal weights by two standard errors.

    Args:
        gaps: the error of a wrong caption less that of the true one, in each draw, (P, R).
        pictures: what each pair belongs to, (P); pairs of one are held out together, and count as one.
        seed: of the folds.

    Raises:
        ValueError: there are fewer than 20 pictures.

    Example:

    ```python
    import numpy as np
    from sdsclip_hf.scoring.timestep_weights import fit_timestep_weights

    gaps = np.random.default_rng(0).normal([0.0, 0.0, 0.0, 1.0], [3.0, 3.0, 3.0, 1.0], (100, 4))
    print(fit_timestep_weights(gaps, range(100)).weights.argmax())  # 3: only the last draw knows
    ```
    """
    groups, counts = np.unique(np.asarray(pictures), return_inverse=True, return_counts=True)[1:]
    if len(counts) < FEWEST_LABELLED:
        raise ValueError(
            f"{len(counts)} labelled pictures are too few to fit timestep weights on; give --fit_weights at least "
            f"{FEWEST_LABELLED}."
        )
    shares = 1 / counts[groups]
    inputs = np.asarray(gaps, np.float64) / (np.sqrt((np.asarray(gaps, np.float64).mean(1) ** 2).mean()) or 1.0)
    losses, rights = _held_out(inputs, groups, shares, seed)  # (1 + ridges, pictures), equal weights first
    best = 1 + int(losses[1:].mean(1).argmin())
    gain = losses[0] - losses[best]
    weights = np.ones(inputs.shape[1])
    if gain.mean() <= CLEARLY * gain.std(ddof=1) / np.sqrt(len(gain)):
        best = 0
    elif (found := minimise(inputs, shares, RIDGES[best - 1])).any():
        weights = found / found.mean()
    return FittedWeights(weights, len(counts), float(rights[best].mean()), float(rights[0].mean()))


def _held_out(inputs: np.ndarray, groups: np.ndarray, shares: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Loss and share of right answers of each ridge on each picture while it is held out, (1 + ridges, pictures) each."""
    total, rng = groups.max() + 1, np.random.default_rng(seed)
    losses, rights = np.zeros((2, 1 + len(RIDGES), total))
    for _ in range(REPEATS):
        folds = rng.permutation(total) % FOLDS
        for fold in range(FOLDS):
            out = folds[groups] == fold
            for row, ridge in enumerate((UNIFORM, *RIDGES)):
                margins = inputs[out] @ minimise(inputs[~out], shares[~out], ridge)
                np.add.at(losses[row], groups[out], shares[out] * np.logaddexp(0, -margins) / REPEATS)
                np.add.at(rights[row], groups[out], shares[out] * ((margins > 0) + (margins == 0) / 2) / REPEATS)
    return losses, rights


def minimise(inputs: np.ndarray, shares: np.ndarray, ridge: float) -> np.ndarray:
    """The weights (R,) of the least regularised loss, by Newton's method on those that are not held at 0 (Bertsekas 1982).

    Args:
        inputs: gaps (P, R), scaled.
        shares: what each pair counts, (P,).
        ridge: on the weights' distance from their mean, (R,).
    """
    draws, shares = inputs.shape[1], shares / shares.sum()
    penalty = ridge * (np.eye(draws) - 1 / draws) / draws + 1e-3 / draws**2  # the last: a bound where all are right

    def value(weights: np.ndarray) -> float:
        return shares @ np.logaddexp(0, -inputs @ weights) + weights @ penalty @ weights

    weights = np.full(draws, 1 / draws)
    for _ in range(100):
        wrong = 0.5 * (1 - np.tanh(inputs @ weights / 2))  # the logistic function of -margin
        slope = 2 * penalty @ weights - inputs.T @ (shares * wrong)
        free = (weights > 1e-10) | (slope < 0)
        if np.abs(slope[free]).max(initial=0) < 1e-7:
            break
        curve = 2 * penalty + (inputs.T * (shares * wrong * (1 - wrong))) @ inputs + 1e-9 * np.eye(draws)
        step = np.zeros(draws)
        step[free] = np.linalg.solve(curve[np.ix_(free, free)], slope[free])
        here, size = value(weights), 1.0
        while value(moved := np.maximum(weights - size * step, 0)) > here - 1e-4 * slope @ (weights - moved):
            size /= 2
            if size < 1e-10:
                return weights
        weights = moved
    return weights
