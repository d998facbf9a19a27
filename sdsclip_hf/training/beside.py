"""The runs that the main run is compared with: made before it, or at the same time where a core would idle."""

import multiprocessing
import os
import signal
import time
from collections import deque
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock, Thread

import torch
from tqdm.auto import tqdm

from sdsclip_hf.common.errors import read_json
from sdsclip_hf.common.processes import cores
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.common.writing import write_json
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.evaluation import plots
from sdsclip_hf.evaluation.tables import main_line
from sdsclip_hf.training.arguments import DataArguments, ModelArguments
from sdsclip_hf.training.compared import run_beside
from sdsclip_hf.training.report import LOSSES_PLOT
from sdsclip_hf.training.runs import make_trainer, score

ERRORS = (ValueError, OSError, FloatingPointError)


class ComparedRuns:
    """Makes the runs of ``compare`` and keeps their scores in ``compared.json``, from which a resumed job goes on.

    Where the job has CPUs alone, one process and two cores or more, another process makes these runs while this one trains
    the main run, each with half of the threads; what that has not begun by then is made here. The scores are the same, but
    for rounding where the number of threads changes.

    Args:
        model, data: of the job.
        configs: name -> the configuration of that run.
        main: the main run's.
    """

    def __init__(
        self, model: ModelArguments, data: DataArguments, configs: dict[str, SDSCLIPConfig], main: SDSCLIPConfig
    ):
        self.model, self.data, self.configs, self.main = model, data, configs, main
        self.path = Path(main.output_dir) / "compared.json"
        self.scores: dict[str, dict] = {}
        if main.resume_from_checkpoint and self.path.exists():
            self.scores = read_json(self.path, "Delete it, and the same command makes it anew.")
        self._waiting = deque(name for name in configs if name not in self.scores)
        self._lock, self._thread, self._error = Lock(), None, None
        self._process, self._connection = None, None
        self._threads = torch.get_num_threads()

    def __enter__(self) -> "ComparedRuns":
        """Where runs are made beside the main one, start the process that will: it imports while the main one loads."""
        if run_beside(self.main, [self.configs[name] for name in self._waiting]):
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_work, args=(os.getpid(), theirs), daemon=True)
            self._process.start()
            theirs.close()  # so that its end is noticed here
        return self

    def begin(self) -> None:
        """Make all runs, or have the other process begin with them."""
        if self._process is None:
            return self._make_all()
        longest_first = sorted(self._waiting, key=lambda name: not self.configs[name].lambda_sds)
        self._waiting = deque(longest_first)
        torch.set_num_threads(max(1, min(self._threads, cores() // 2)))
        self._thread = Thread(target=self._make_beside, daemon=True)
        self._thread.start()

    def finish(self) -> dict[str, dict]:
        """Make what is left, wait for the other process, and return run -> scores in the order of the configurations."""
        if self._thread is not None:
            try:
                self._make_all()
            except ERRORS as error:  # what the main run gave is to be written first
                self._error = error
            self._thread.join()
        if self._process is not None and self._error is None:
            with suppress(ConnectionError):  # it was killed while it had nothing to do
                self._connection.send(None)
            self._process.join()
        return {name: self.scores[name] for name in self.configs if name in self.scores}

    def raise_error(self) -> None:
        """Raise what stopped one of the runs since the beginning, if anything did."""
        if self._error is not None:
            raise self._error

    def __exit__(self, *_) -> None:
        """End what is still under way, where the main run failed."""
        self._waiting.clear()
        if self._process is not None:
            self._process.terminate()
        if self._thread is not None:
            self._thread.join()
            torch.set_num_threads(self._threads)

    def _make_all(self) -> None:
        while (name := self._take()) is not None:
            self._keep(name, _make(self.model, self.data, name, self.configs[name]))

    def _make_beside(self) -> None:
        try:
            while (name := self._take()) is not None:
                self._keep(name, self._made_apart(name))
        except Exception as error:  # whatever it is, the main thread tells it
            self._error = error

    def _made_apart(self, name: str) -> dict:
        """The scores of a run that the other process makes."""
        try:
            self._connection.send((self.model, self.data, name, self.configs[name], torch.get_num_threads()))
            scores, error = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            error = OSError(
                f"the run {name!r} was compared with in a process that ended with exit code {self._process.exitcode}; what "
                "it printed stands above, or its memory did not suffice. The same command with --resume_from_checkpoint "
                "last makes it again."
            )
        if error is not None:
            raise error
        return scores

    def _take(self) -> str | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting and self._error is None else None

    def _keep(self, name: str, scores: dict) -> None:
        with self._lock:
            self.scores[name] = scores
            if self.main.process_index == 0:
                write_json(self.path, self.scores)
                if scores:
                    tqdm.write(f"{name}: {main_line(scores)}\n")


def _make(model: ModelArguments, data: DataArguments, name: str, config: SDSCLIPConfig, position: int = 0) -> dict:
    """Train a run to compare with, its bar at a position of the terminal, and score it."""
    trainer = make_trainer(model, data, config, name, eval_data=False)
    if trainer.progress is not None:
        trainer.progress.position = position
    trainer.train()
    scores = score(trainer, data)
    if trainer.is_world_process_zero():
        plots.plot_losses(trainer.state.log_history, Path(trainer.args.output_dir) / LOSSES_PLOT)
    return scores


def _work(parent: int, connection: Connection) -> None:
    """Make the runs that are asked for; sends the scores of each and, in their place, the error that there was."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    hush_libraries()
    while (work := connection.recv()) is not None:
        model, data, name, config, threads = work
        torch.set_num_threads(threads)
        try:
            found = _make(model, data, name, config, position=1), None
        except ERRORS as error:
            kind = next(kind for kind in ERRORS if isinstance(error, kind))
            found = None, kind(f"compare: {name!r}: {error}")
        connection.send(found)


def _end_with(parent: int) -> None:
    """End this process where the one that it works for was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
