"""The trainer's side of the Hub: what is pushed while it trains and at the end. Training never fails of it."""

import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml
from huggingface_hub import CommitInfo
from transformers import Trainer
from transformers.trainer import PushInProgress
from transformers.trainer_utils import HubStrategy

from sdsclip_hf.cards.model_card import RunFacts, find_licence, write_card
from sdsclip_hf.cards.push import push_model
from sdsclip_hf.cards.student_facts import StudentFacts
from sdsclip_hf.common.writing import GO_ON, own_name, remove, telling_full_disk, write_text
from sdsclip_hf.data.scores import ranked_by
from sdsclip_hf.hub.attempts import HubError
from sdsclip_hf.hub.commits import check_holds_clip, claim_repo
from sdsclip_hf.students.sdsclip_model import SDSCLIPModel
from sdsclip_hf.training.record import as_yaml

logger = logging.getLogger(__name__)

RUN_ARGUMENTS_FILE = "run.yaml"
LISTS = ("tags", "datasets")
MOST_WAITING = 3


class HubTrainer(Trainer):
    """[`transformers.Trainer`] that pushes exports: each commit is a whole model that ``from_pretrained`` loads.

    A push in mid-training runs beside the training, from a copy, and is tried again with growing waits; one that fails
    all the same is told in the log. ``hub_strategy`` and ``hub_always_push`` mean what they do for Trainer.

    Attributes:
        card_facts: what the model card tells beyond what the trainer knows, by [`RunFacts`]' names, and ``arguments``: the
            content of ``run.yaml``.
    """

    card_facts: dict
    _licence: dict[str, str] | None = None

    def __init__(self, *args, **kwargs):
        self._waiting: list[tuple[Future, Path]] = []
        super().__init__(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, or make sure that this run may push there. Called before training.

        A Hub that is busy or cut off in between is no reason not to train: the repository is then created by the first push.

        Raises:
            ValueError: there is no token, the name cannot be one, or the repository holds something other than a CLIP.
            HubError: the token may not write there, or there is no network.
        """
        self.push_in_progress = None
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        token, revision = token or self.args.hub_token, self.args.hub_revision
        private = self.args.hub_private_repo if private is None else private
        self._read_licence()
        try:
            self.hub_model_id = claim_repo(name, token=token, private=private, revision=revision, needs_network=True)
            if not self.args.hub_force:  # each push looks again
                check_holds_clip(self.hub_model_id, token=token, revision=revision)
        except HubError as error:
            if not error.passing:
                raise HubError(
                    f"{error} Or train without --push_to_hub, and push afterwards with `sdsclip push OUTPUT_DIR {name}`.",
                    passing=False,
                ) from error
            logger.warning("%s Training begins all the same; the first push tries again.", error)
            self.hub_model_id = name

    def _read_licence(self) -> dict[str, str] | None:
        """The licence of the base model, asked for once."""
        if self._licence is None:
            self._licence = find_licence(self.base_name)
        return self._licence

    def run_facts(self, unfinished: bool = False) -> RunFacts:
        """What the model card tells; ``unfinished`` in the middle of training."""
        best, best_step = self.args.load_best_model_at_end and not unfinished, self.state.best_global_step
        return RunFacts(
            config=self.args,
            base_name=self.base_name,
            base_revision=self.base_revision,
            teacher_name=None if self.teacher is None else self.teacher.name_or_path,
            scores_teacher=self.scores and ranked_by(self.scores.settings),
            scores_are_errors=not (self.scores and self.scores.settings.get("ranker")),
            counts=self.student.count_parameters(),
            steps=self.state.global_step,
            max_steps=self.state.max_steps,
            processes=self.args.world_size,
            has_adapter=self.student.has_adapter,
            has_mapper=self.student.mapper is not None,
            unfinished=unfinished,
            best_step=best_step if best and best_step != self.state.global_step else None,
            licence=self._licence if unfinished else self._read_licence(),
            student=self._student_facts(),
            **{name: value for name, value in self.card_facts.items() if name != "arguments"},
        )

    def _student_facts(self) -> StudentFacts:
        """Of what kind the student is, and how it reads captions."""
        model, reader = self.student.base_clip, self.reader
        length = reader.max_length if reader.to_full_length else None
        return StudentFacts(type(model).__name__, model.config.model_type, length, reader.lower, self.contrastive.form)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the card, ``run.yaml`` and ``.eval_results/`` into ``args.output_dir``.

        Args:
            language, license, tags: for the front matter, instead of what is known.
            finetuned_from, dataset_tags: Hub ids of the base model and of the data, instead of what is known.
            dataset: what the data is called, where no id is known.
            model_name, tasks, dataset_args: taken as Trainer does, and not used: the model is called by its repository,
                and the scores tell the rest.
        """
        given = {"language": language, "license": license, "tags": tags, "base_model": finetuned_from}
        given["datasets"] = dataset_tags
        named = ", ".join([dataset] if isinstance(dataset, str) else dataset or [])
        self._write_card(Path(self.args.output_dir), {name: value for name, value in given.items() if value}, named)

    def _write_card(
        self, folder: Path, overrides: dict | None = None, dataset: str = "", unfinished: bool = False
    ) -> None:
        if not self.is_world_process_zero():
            return
        facts = self.run_facts(unfinished)
        overrides = {
            name: [value] if name in LISTS and isinstance(value, str) else value
            for name, value in (overrides or {}).items()
        }
        facts = replace(
            facts, overrides=facts.overrides | overrides, dataset_name=facts.dataset_name or dataset or None
        )
        names = {"model_name_or_path": self.base_name, "teacher_name_or_path": facts.teacher_name}
        known = yaml.safe_dump({name: value for name, value in names.items() if value})
        arguments = self.card_facts.get("arguments") or known + as_yaml(self.args)
        write_text(folder / RUN_ARGUMENTS_FILE, arguments)
        write_card(folder, facts)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """Export to ``args.output_dir`` and push that, in one commit. To be called on all processes.

        Args:
            commit_message, token, revision, private: as for Trainer.
            blocking: whether to wait; otherwise a Future is returned.
            kwargs: for [`create_model_card`].

        Returns:
            The commit on the first process, None on others.

        Raises:
            ValueError: see [`init_hf_repo`].
            HubError: it failed, however often it was tried; the message tells the command that pushes it later.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        self.accelerator.wait_for_everyone()
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        if not self.run_facts().licence_is_known and not kwargs.get("license"):
            logger.warning(
                "the card of the base model %r names no licence, so that of this model says `unknown`; give one with "
                "--hub_license.",
                self.base_name,
            )
        self._finish_current_push()
        push = partial(
            push_model, self.args.output_dir, message=commit_message, **self._where(token, revision, private)
        )
        return push() if blocking else self._pusher().submit(_told, push)

    def _where(self, token: str | None = None, revision: str | None = None, private: bool | None = None) -> dict:
        return {
            "repo_id": self.hub_model_id,
            "token": token or self.args.hub_token,
            "revision": revision or self.args.hub_revision,
            "private": self.args.hub_private_repo if private is None else private,
            "force": self.args.hub_force,
        }

    def _pusher(self) -> ThreadPoolExecutor:
        """One thread, so that commits come in the order of their steps."""
        if getattr(self, "_push_thread", None) is None:
            self._push_thread = ThreadPoolExecutor(1, thread_name_prefix="push")
        return self._push_thread

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the model as it is now, beside the training; with ``hub_strategy`` checkpoint what resuming needs, too."""
        if self.args.hub_strategy == HubStrategy.END:
            return
        student = self.whole_student()
        if not self.is_world_process_zero():
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            logger.info("Step %d is not pushed: the last push is under way.", self.state.global_step)
            return
        try:
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            job = self._start_push(student, Path(checkpoint_folder))
        except Exception as error:  # a full disk, for instance: the training must not know
            reason = str(error).replace(GO_ON, "Make room, and the next push holds it.")
            logger.warning("Step %d is not pushed: %s Training goes on.", self.state.global_step, reason)
            return
        if busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])

    def _start_push(self, student: SDSCLIPModel, checkpoint: Path) -> Future:
        """Copy what is to be pushed, and have it pushed when its turn comes."""
        step = self.state.global_step
        copy = own_name(Path(self.args.output_dir) / f"push-{step}")  # since the training goes on meanwhile
        try:
            student.export(copy, self.processing_class)
            self._write_card(copy, unfinished=True)
            extra, stale = {}, ()
            if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                last = self.args.hub_strategy == HubStrategy.CHECKPOINT
                name = "last-checkpoint" if last else checkpoint.name
                with telling_full_disk(copy / name):
                    shutil.copytree(checkpoint, copy / name, copy_function=_link)  # it may be rotated away meanwhile
                extra = {path.relative_to(copy).as_posix(): path for path in (copy / name).rglob("*") if path.is_file()}
                stale = (f"{name}/*",)
        except BaseException:
            remove(copy)
            raise
        self._drop_waiting()
        job = self._pusher().submit(self._push_copy, copy, f"Training in progress, step {step}", extra, stale)
        self._waiting.append((job, copy))
        return job

    def _drop_waiting(self) -> None:
        """Leave out the oldest pushes that have not begun, where more wait than there shall be copies of the model."""
        self._waiting = [(job, copy) for job, copy in self._waiting if not job.running() and not job.done()]
        while len(self._waiting) > MOST_WAITING:
            job, copy = self._waiting.pop(0)
            if job.cancel():
                remove(copy)
                logger.info("%s is not pushed: too many pushes wait.", copy.name.partition(".")[0])

    def _push_copy(self, copy: Path, message: str, extra: dict[str, Path], stale: tuple[str, ...]) -> None:
        try:
            push_model(copy, message=message, extra=extra, delete_patterns=stale, **self._where())
        except Exception as error:  # whatever it is, the training must not know
            reason = str(error).partition(" The commit “")[0]
            logger.warning(
                "The push “%s” failed; training goes on, and the next push holds it too. %s", message, reason
            )
        finally:
            remove(copy)


def _told(push: Callable[[], CommitInfo]) -> CommitInfo:
    """Push, and log what goes wrong, in case that nobody asks for the result."""
    try:
        return push()
    except Exception as error:
        logger.warning("%s", error)
        raise


def _link(source: str, target: str) -> None:
    """A further name of the same file where the file system has such, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
