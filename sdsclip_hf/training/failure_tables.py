"""Tables of what a model has wrong during training, sent to the trackers that show tables."""

import importlib
from collections.abc import Sequence

import numpy as np
from transformers import TrainerCallback

from sdsclip_hf.benchmarks import Benchmark
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.evaluation.results import labels
from sdsclip_hf.reports.failures import failures, margins

TRACKERS = ("trackio", "wandb")


class FailureTables(TrainerCallback):
    """At every evaluation a table a benchmark of the items that are most wrong: ``failures/BENCHMARK``.

    It logs when Trainer has logged the scores, so that the trackers' runs are there.

    Args:
        args: the run's, of which ``log_failures`` is how many rows a table has at most.

    Raises:
        ValueError: no benchmarks are evaluated during the training, or no tracker of [`TRACKERS`] is reported to.
    """

    def __init__(self, args: SDSCLIPConfig):
        self.count = args.log_failures
        self.trackers = [name for name in TRACKERS if name in args.report_to]
        if not args.benchmarks:
            raise ValueError("log_failures shows items of benchmarks, and there are none; give --benchmarks.")
        if not self.trackers:
            raise ValueError(
                f"log_failures logs tables to {' or '.join(TRACKERS)}, and report_to is "
                f"{' '.join(args.report_to) or 'none'}; set --report_to {TRACKERS[0]}."
            )
        self._tables: dict[str, list[dict]] = {}
        self._margins: dict[str, np.ndarray | None] = {}  # at the last evaluation of this process

    def keep(self, benchmark: Benchmark, answers: Sequence[np.ndarray]) -> None:
        """Keep what a model has wrong until it is logged."""
        name = benchmark.name
        self._tables[name] = failures(benchmark, answers, self.count, self._margins.get(name))
        self._margins[name] = margins(benchmark, answers)

    def on_evaluate(self, args, state, control, **kwargs):
        tables, self._tables = self._tables, {}
        if not state.is_world_process_zero:
            return
        names = labels(tables)
        for tracker in map(importlib.import_module, self.trackers):
            for name, rows in tables.items():
                if rows:
                    tracker.log(
                        {f"failures/{names[name]}": _table(tracker, rows), "train/global_step": state.global_step}
                    )


def _table(tracker, rows: list[dict]):
    """A tracker's table; both take a data frame, with images of their own kind in its cells."""
    import pandas  # which datasets brings along, and which takes a second

    frame = pandas.DataFrame(rows)
    for column in (column for column in frame if column.startswith("picture")):
        frame[column] = [tracker.Image(image) for image in frame[column]]
    return tracker.Table(dataframe=frame)
