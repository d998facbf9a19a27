"""Scores of prompt tuning as the literature tells them: means over seeds, base-to-new, across datasets, over shots.

Raises:
    ValueError: scores do not pair, or those of the source or of every target are missing.

Example:

```python
from sdsclip_hf.prompts.tables import base_to_new, base_to_new_table

scores = {"birds": {"base": [80.0, 82.0], "new": [60.0, 62.0]}}  # of two seeds
print(base_to_new(scores)["birds"]["hm"])  # 69.59 ± 12.96
one = {"CoOp": {"birds": {"base": [80.0], "new": [60.0]}}}
print(base_to_new_table(one).splitlines()[-1])  # | birds | CoOp | 80.00 | 60.00 | 68.57 |
```
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Seeds = Sequence[float]  # a score of each seed, in per cent, in one order everywhere
AVERAGE = "average"
# 0.975 quantiles of Student's t with 1, 2, ... degrees of freedom
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
     2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


class Figure(NamedTuple):
    """A mean over seeds, and how far its 95 % interval reaches to either side; None where there is one seed."""

    mean: float
    reach: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.reach is None else f" ± {self.reach:.2f}")


def figure(values: Seeds, mean: float | None = None) -> Figure:
    """The mean over seeds with its 95 % interval by Student's t.

    Args:
        values: one a seed.
        mean: what stands for the mean, where it is not that of the values.
    """
    values = np.asarray(values, dtype=float)
    count = len(values)
    mean = float(values.mean()) if mean is None else mean
    if count < 2:
        return Figure(mean)
    quantile = T[min(count - 2, len(T) - 1)]
    return Figure(mean, float(quantile * values.std(ddof=1) / np.sqrt(count)))


def difference(values: Seeds, others: Seeds) -> Figure:
    """How much higher the first are, seed by seed.

    Raises:
        ValueError: they are not of as many seeds.
    """
    if len(values) != len(others):
        raise ValueError(
            f"scores of {len(values)} and of {len(others)} seeds do not pair; run the seeds that are missing."
        )
    return figure(np.asarray(values) - np.asarray(others))


def harmonic_mean(base, new):
    """2 b n / (b + n), of numbers or arrays; 0 where both are."""
    total = np.asarray(base, dtype=float) + new
    return np.where(total > 0, 2 * np.asarray(base, dtype=float) * new / np.where(total > 0, total, 1), 0.0)


def base_to_new(scores: Mapping[str, Mapping[str, Seeds]]) -> dict[str, dict[str, Figure]]:
    """Base, new and HM of each dataset, and of the average over datasets, whose HM is that of the averages.

    Args:
        scores: dataset -> base and new -> a score of each seed.

    Returns:
        ``average`` and every dataset -> base, new, hm.
    """
    stacked = {half: np.array([scores[name][half] for name in scores], dtype=float) for half in ("base", "new")}
    rows = {AVERAGE: {half: values.mean(axis=0) for half, values in stacked.items()}}
    rows |= {
        name: {half: np.asarray(row[half], dtype=float) for half in ("base", "new")} for name, row in scores.items()
    }
    return {name: _with_hm(row["base"], row["new"]) for name, row in rows.items()}


def _with_hm(base: np.ndarray, new: np.ndarray) -> dict[str, Figure]:
    of_means = float(harmonic_mean(base.mean(), new.mean()))  # as published: the HM of the means, not the mean of HMs
    return {"base": figure(base), "new": figure(new), "hm": figure(harmonic_mean(base, new), of_means)}


def across(scores: Mapping[str, Seeds], source: str) -> dict[str, Figure]:
    """The source's score, each target's, and the average over the targets: cross-dataset, domain generalisation.

    Args:
        scores: dataset -> a score of each seed.
        source: the dataset that was trained on.

    Raises:
        ValueError: the source has no score, or there is no target.
    """
    targets = {name: values for name, values in scores.items() if name != source}
    if source not in scores or not targets:
        raise ValueError(
            f"there must be scores of the source {source!r} and of another dataset; there are those of "
            f"{', '.join(scores) or 'none'}."
        )
    averages = np.array([targets[name] for name in targets], dtype=float).mean(axis=0)
    rows = {source: scores[source]} | targets | {AVERAGE: averages}
    return {name: figure(values) for name, values in rows.items()}


def over_shots(scores: Mapping[str, Mapping[int, Seeds]]) -> dict[str, dict[int, Figure]]:
    """The score at each number of shots, of the average over datasets and of each dataset.

    Args:
        scores: dataset -> shots -> a score of each seed.
    """
    shots = sorted({shots for row in scores.values() for shots in row})
    averages = {k: np.array([row[k] for row in scores.values()], dtype=float).mean(axis=0) for k in shots}
    rows = {AVERAGE: averages, **scores} if len(scores) > 1 else scores
    return {name: {k: figure(row[k]) for k in shots} for name, row in rows.items()}


def base_to_new_table(methods: Mapping[str, Mapping[str, Mapping[str, Seeds]]]) -> str:
    """Markdown of [`base_to_new`] of every method, a block a dataset, the average first."""
    found = {method: base_to_new(scores) for method, scores in methods.items()}
    names = list(next(iter(found.values())))
    names = names if len(names) > 2 else names[1:]  # of one dataset the average is that
    lines = ["| dataset | method | base | new | HM |", "|---|---|---|---|---|"]
    for name in names:
        for method, rows in found.items():
            lines.append(f"| {name} | {method} | {' | '.join(map(str, rows[name].values()))} |")
    return "\n".join(lines)


def across_table(methods: Mapping[str, Mapping[str, Seeds]], source: str) -> str:
    """Markdown of [`across`] of every method, a row a method."""
    return markdown({method: across(scores, source) for method, scores in methods.items()}, "method")


def over_shots_table(methods: Mapping[str, Mapping[str, Mapping[int, Seeds]]]) -> str:
    """Markdown of [`over_shots`] of every method, a block a dataset, the average first."""
    found = {method: over_shots(scores) for method, scores in methods.items()}
    names = list(next(iter(found.values())))
    rows = {f"{name} | {method}": found[method][name] for name in names for method in found}
    return markdown(rows, "dataset | method")


def markdown(rows: Mapping[str, Mapping], head: str) -> str:
    """A table of cells by row and column, as Markdown.

    Args:
        rows: name -> column -> cell; all have the same columns.
        head: of the names, with " | " between those of several columns.
    """
    columns = list(next(iter(rows.values())))
    lines = [f"| {head} | {' | '.join(map(str, columns))} |"]
    lines.append("|---" * (len(columns) + head.count("|") + 1) + "|")
    lines += [f"| {name} | {' | '.join(str(row[column]) for column in columns)} |" for name, row in rows.items()]
    return "\n".join(lines)
