"""Figures noted in a step, and their means for the log."""

from collections import defaultdict

import torch
from accelerate import Accelerator
from torch import Tensor


class Notes:
    """Values by name, noted one by one on each process, and read as their means over time and processes."""

    def __init__(self):
        self._values: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, values: dict[str, Tensor]) -> None:
        """Note scalars; NaN stands for none."""
        for name, value in values.items():
            self._values[name].append(value.detach())

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The mean of each value since the last time, over all processes. To be called on all of them."""
        noted, self._values = self._values, defaultdict(list)
        means = {}
        for name, values in noted.items():
            values = torch.stack(values).float()
            total, count = accelerator.reduce(torch.stack([values.nansum(), (~values.isnan()).sum()]))
            means[name] = (total / count).item()
        return means
