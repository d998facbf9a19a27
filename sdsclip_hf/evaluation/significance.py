"""How sure scores are: intervals of one model's, and paired differences and McNemar's test of two."""

import math
from collections.abc import Sequence

import numpy as np

from sdsclip_hf.evaluation.outcomes import Outcome
from sdsclip_hf.metrics.common.scoring import Bootstrap

RESAMPLES = 10_000
CLUSTER_RESAMPLES = 1000


def score_interval(outcome: Outcome) -> tuple[float, float]:
    """(low, high) of a score, 95 % by bootstrap over the items."""
    if outcome.clusters is not None:
        return clustered_interval(outcome.right, outcome.clusters)
    return Bootstrap().interval(outcome.by_group())


def compare(first: Sequence[Outcome], second: Sequence[Outcome], seed: int = 0) -> list[dict]:
    """The second model's scores minus the first's, outcome by outcome.

    Args:
        first: what [`outcomes`] makes of the first model's answers to a benchmark.
        second: the same of the second model, on the same items.
        seed: of the bootstrap's draws.

    Returns:
        Rows of ``subset``, ``score``, ``value`` (a difference of fractions), ``interval`` (low, high; 95 % by bootstrap
        over the same items for both, within groups where the score is a mean over groups), ``n``, ``only_first`` and
        ``only_second`` (how many questions only one of the two has right), and ``p`` of McNemar's exact test (None
        for means over groups, which it does not test, and where an item has several questions).

    Example:

    ```python
    import numpy as np
    from sdsclip_hf.evaluation.outcomes import Outcome
    from sdsclip_hf.evaluation.significance import compare

    right = np.arange(100)
    first = [Outcome("all", "accuracy", right < 60, ties=0)]
    second = [Outcome("all", "accuracy", right < 75, ties=0)]
    (row,) = compare(first, second)
    print(f"{row['value']:.2f}", row["only_second"], f"{row['p']:.6f}")  # 0.15 15 0.000061
    ```
    """
    return [_compare(one, other, seed) for one, other in zip(first, second, strict=True)]


def _compare(first: Outcome, second: Outcome, seed: int) -> dict:
    only_first = int((first.right & ~second.right).sum())
    only_second = int((second.right & ~first.right).sum())
    groups = zip(first.by_group(), second.by_group(), strict=True)
    return {
        "subset": first.subset,
        "score": first.score,
        "value": float(np.mean([b.mean() - a.mean() for a, b in groups])),
        "interval": _difference_interval(first, second, seed),
        "n": len(first.right),
        "only_first": only_first,
        "only_second": only_second,
        "p": mcnemar(only_first, only_second) if first.clusters is None and first.groups is None else None,
    }


def _difference_interval(first: Outcome, second: Outcome, seed: int) -> tuple[float, float]:
    if first.clusters is not None:
        return clustered_interval(second.right.astype(int) - first.right, first.clusters, seed)
    return difference_interval(list(zip(first.by_group(), second.by_group(), strict=True)), seed)


def difference_interval(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """(low, high) of the unweighted mean over groups of the difference in accuracy, items resampled within groups.

    In a resample the numbers of items that the first model alone, the second alone, and both or neither have right are
    multinomial, so they are drawn as such, and no item is.

    Args:
        pairs: for each group which of its items the first and the second model have right, bool (N,) each.
        seed: of the draws.
        confidence: in (0, 1).
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for first, second in pairs:
        n = len(first)
        lost, won = (first & ~second).sum() / n, (second & ~first).sum() / n
        counts = rng.multinomial(n, [lost, won, max(0.0, 1 - lost - won)], size=RESAMPLES)
        total += (counts[:, 1] - counts[:, 0]) / n
    tail = (1 - confidence) / 2
    low, high = np.quantile(total / len(pairs), [tail, 1 - tail])
    return float(low), float(high)


def clustered_interval(
    values: np.ndarray, clusters: np.ndarray, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """(low, high) of the mean of (N,) values, whole clusters resampled: (N,) numbers from 0."""
    totals, counts = np.bincount(clusters, values), np.bincount(clusters)
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(counts), size=len(counts)) for _ in range(CLUSTER_RESAMPLES))
    means = [totals[drawn].sum() / counts[drawn].sum() for drawn in draws]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p of McNemar's exact test: under the null, questions that only one has right fall evenly.

    Args:
        only_first, only_second: how many questions only the one or the other model has right.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))
