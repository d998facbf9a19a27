"""The trainer's side of the log: figures noted in a step and their means, and how the run's progress is told."""

from collections import defaultdict

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, Trainer

from sdsclip_hf.training.progress import RunProgress


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
            values = torch.stack(values).float().to(accelerator.device)
            total, count = accelerator.reduce(torch.stack([values.nansum(), (~values.isnan()).sum()]))
            means[name] = (total / count).item()
        return means


class NotingTrainer(Trainer):
    """[`transformers.Trainer`] that logs the means of what was noted since the last time."""

    def __init__(self, *args, **kwargs):
        self._notes = {"train": Notes(), "eval": Notes()}
        super().__init__(*args, **kwargs)
        self.progress = self._take_over_progress()

    def _take_over_progress(self) -> RunProgress | None:
        """[`RunProgress`] in place of Trainer's bar, or of its printing where there is none; a notebook keeps its table."""
        callbacks = self.callback_handler.callbacks  # Trainer's own stands last, a user's may be of a subclass
        default = next((one for one in reversed(callbacks) if type(one) in (ProgressCallback, PrinterCallback)), None)
        if default is None:
            return None
        callbacks.remove(default)
        progress = RunProgress(with_bar=False if self.args.disable_tqdm else None)
        self.add_callback(progress)
        return progress

    def note(self, values: dict[str, Tensor]) -> None:
        """Have the means of these scalars logged under their names, in training or in evaluation."""
        self._notes["train" if self.model.training else "eval"].add(values)

    def take_notes(self, mode: str) -> dict[str, float]:
        """What was noted since the last time, see [`Notes.take`]; ``mode`` is train or eval."""
        return self._notes[mode].take(self.accelerator)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean of each term since the last time beside ``loss``."""
        if "loss" in logs:
            logs = logs | self.take_notes("train")
        super().log(logs, start_time)
