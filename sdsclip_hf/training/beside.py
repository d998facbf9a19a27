"""The runs that the main run is compared with: made before it, or at the same time where a core would idle."""

import json
import multiprocessing
import os
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock, Thread

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

from sdsclip_hf.common.checkpoints import write_json
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.evaluation import plots
from sdsclip_hf.evaluation.tables import main_line
from sdsclip_hf.training.arguments import DataArguments, ModelArguments
from sdsclip_hf.training.report import LOSSES_PLOT
from sdsclip_hf.training.runs import make_trainer, score

ERRORS = (ValueError, OSError, FloatingPointError)
STEPS_THAT_PAY = 300  # a process of its own takes some ten seconds to begin


class ComparedRuns:
    """Makes the runs of ``compare`` and keeps their scores in ``compared.json``, from which a resumed job goes on.

    Where the job has CPUs alone, one process and two cores or more, another process makes these runs while this one trains
    the main run, each with half of the threads; what that has not begun by then is made here. The scores are the same.

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
            self.scores = json.loads(self.path.read_text())
        self._waiting = deque(name for name in configs if name not in self.scores)
        self._lock, self._thread, self._error = Lock(), None, None
        self._threads = torch.get_num_threads()

    def begin(self) -> None:
        """Make all runs, or have another process begin with them."""
        if not self._pays():
            self._make_all()
            return
        self._waiting = deque(
            sorted(self._waiting, key=lambda name: not self.configs[name].lambda_sds)
        )  # longest first
        torch.set_num_threads(max(1, min(self._threads, _cores() // 2)))
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
            torch.set_num_threads(self._threads)
        return {name: self.scores[name] for name in self.configs if name in self.scores}

    def raise_error(self) -> None:
        """Raise what stopped one of the runs since [`begin`], if anything did."""
        if self._error is not None:
            raise self._error

    def _pays(self) -> bool:
        alone = self.main.world_size == 1 and self.main.device.type == "cpu" and _cores() > 1
        steps = sum(max(0, self.configs[name].max_steps) for name in self._waiting)
        return alone and self.main.dataloader_num_workers == 0 and steps >= STEPS_THAT_PAY

    def _make_all(self) -> None:
        while (name := self._take()) is not None:
            self._keep(name, _make(self.model, self.data, name, self.configs[name]))

    def _make_beside(self) -> None:
        context = multiprocessing.get_context("spawn")
        while (name := self._take()) is not None:
            receiver, sender = context.Pipe(duplex=False)
            work = self.model, self.data, name, self.configs[name], torch.get_num_threads(), os.getpid(), sender
            process = context.Process(target=_make_apart, args=work, daemon=True)
            process.start()
            sender.close()  # so that its end is noticed here
            try:
                scores, error = receiver.recv()
            except EOFError:
                process.join()
                scores, error = (
                    None,
                    OSError(
                        f"the run {name!r} was compared with in a process that ended with exit code {process.exitcode}; its "
                        "memory may not have sufficed. The same command with --resume_from_checkpoint last makes it again."
                    ),
                )
            process.join()
            if error is not None:
                self._error = error
                return
            self._keep(name, scores)

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


def _cores() -> int:
    """Of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make(
    model: ModelArguments,
    data: DataArguments,
    name: str,
    config: SDSCLIPConfig,
    callback: TrainerCallback | None = None,
) -> dict:
    """Train a run to compare with, and score it."""
    trainer = make_trainer(model, data, config, name, eval_data=False)
    if callback is not None:
        trainer.add_callback(callback)
        trainer.progress.position = 1
    trainer.train()
    scores = score(trainer, data)
    if trainer.is_world_process_zero():
        plots.plot_losses(trainer.state.log_history, Path(trainer.args.output_dir) / LOSSES_PLOT)
    return scores


def _make_apart(
    model: ModelArguments,
    data: DataArguments,
    name: str,
    config: SDSCLIPConfig,
    threads: int,
    parent: int,
    sender: Connection,
) -> None:
    """The same in a process of its own; sends the scores and, in their place, the error that there was."""
    hush_libraries()
    torch.set_num_threads(threads)
    try:
        sender.send((_make(model, data, name, config, _EndWithParent(parent)), None))
    except ERRORS as error:
        sender.send((None, type(error)(f"compare: {name!r}: {error}")))


class _EndWithParent(TrainerCallback):
    """Ends this process where the one that it works for was killed."""

    def __init__(self, parent: int):
        self.parent = parent

    def on_step_end(self, args, state, control, **kwargs):
        if os.getppid() != self.parent:
            os._exit(1)
