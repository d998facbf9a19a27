"""Trainer for prompts: what trains is the context and its nets, what is saved a few kilobytes."""

import math
from collections import Counter
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import torch
from huggingface_hub import CommitInfo
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor, set_seed
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from sdsclip_hf import shapes
from sdsclip_hf.common.checkpoints import check_same_run, fingerprint, last_checkpoint
from sdsclip_hf.prompts.card import CardFacts, write_card
from sdsclip_hf.prompts.config import PromptConfig, published_epochs
from sdsclip_hf.prompts.labelled_images import LabelledImages, collate
from sdsclip_hf.prompts.learner import PromptLearner
from sdsclip_hf.prompts.methods import make_learner, method_of
from sdsclip_hf.prompts.push import claim_prompts_repo, push_prompts
from sdsclip_hf.prompts.saved import PromptRecord, load_trained, save_prompts, text_fingerprint
from sdsclip_hf.students.loading import load_clip
from sdsclip_hf.training.callbacks import TellEpoch
from sdsclip_hf.training.notes import NotingTrainer
from sdsclip_hf.training.resumed_options import KEPT, obeyed_options
from sdsclip_hf.training.sealed_checkpoints import SealedCheckpoints

# What decides no prompts.
FREE = {"prompt_chunk_size", "hub_license", "hub_force"}


class PromptTrainer(NotingTrainer, SealedCheckpoints):
    """[`transformers.Trainer`] for CoOp, CoCoOp, KgCoOp and IntCoOp, by the published recipe unless told otherwise.

    Each term of the loss is logged under its name. Evaluation gives ``eval_accuracy`` among the classes of the dataset that
    is evaluated, which may be others than those of training.

    Args:
        model: a CLIPModel, which is frozen and not copied, a folder or a Hub id.
        args: every knob.
        train_dataset: a ``datasets`` dataset of images and ``ClassLabel`` s, for intcoop with attributes.
        eval_dataset: the same without attributes, or a dict of such.
        processing_class: the model's processor; default: the one beside it.
        kwargs: what else Trainer takes: ``callbacks``, ``optimizers``, …

    Raises:
        OSError: the model cannot be loaded.
        ValueError: the parts do not fit one another.

    Example:

    ```python
    from sdsclip_hf import PromptConfig, PromptTrainer
    from sdsclip_hf.prompts.data.shapes import load_labelled_shapes

    data = load_labelled_shapes("train", per_class=4)
    trainer = PromptTrainer("shapes/student", PromptConfig(output_dir="outputs/prompts", max_steps=2), data)
    trainer.train()
    ```
    """

    scores: dict[str, dict]  # what the card tells, see [`CardFacts`]
    dataset_name: str | None = None

    def __init__(
        self,
        model: CLIPModel | str | Path,
        args: PromptConfig | None = None,
        train_dataset: datasets.Dataset | None = None,
        eval_dataset: datasets.Dataset | dict[str, datasets.Dataset] | None = None,
        processing_class: CLIPProcessor | None = None,
        **kwargs,
    ):
        args = args or PromptConfig(output_dir="outputs/prompts")
        args.tell_of_idle_gpus()
        if train_dataset is None:
            raise ValueError("train_dataset is missing; give a dataset of labelled images, whose classes are learned.")
        self.base_name = str(model) if isinstance(model, (str, Path)) else model.config._name_or_path
        if isinstance(model, (str, Path)):
            model, loaded = load_clip(shapes.resolve(model))
            processing_class = processing_class or loaded
        if processing_class is None:
            raise ValueError("processing_class is missing; give the processor that goes with the model.")
        set_seed(args.seed)  # what trains is initialised here, before Trainer sets it
        image_processor, needs = processing_class.image_processor, method_of(args.method).needs_attributes
        train = LabelledImages(train_dataset, image_processor, needs, args.augmentation, args.seed)
        learner = make_learner(model, processing_class.tokenizer, train.class_names, args.settings)
        if args.num_train_epochs is None:
            args.num_train_epochs = published_epochs(args.method, train.shots)
        args.dataloader_drop_last &= len(train) >= args.train_batch_size * args.world_size
        if isinstance(eval_dataset, dict):
            evaluation = {name: LabelledImages(one, image_processor) for name, one in eval_dataset.items()}
        else:
            evaluation = None if eval_dataset is None else LabelledImages(eval_dataset, image_processor)
        self.base_fingerprint, self.scores = fingerprint(model), {}
        self.record = PromptRecord(
            args.settings,
            train.class_names,
            self.base_name,
            getattr(model.config, "_commit_hash", None),
            text_fingerprint(model),
        )
        kwargs.setdefault("data_collator", collate)
        kwargs.setdefault("compute_metrics", accuracy)
        super().__init__(
            model=learner,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=processing_class,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over its batch
        self.label_names = ["labels"]
        self.can_return_loss = True
        self.add_callback(TellEpoch(train))

    @property
    def learner(self) -> PromptLearner:
        """The model without what accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.model)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the terms for one batch; see [`LabelledImages`] for what a batch holds.

        Raises:
            FloatingPointError: a term is NaN or infinite.
        """
        output = model(**inputs)
        self.check_finite(output.terms)
        if self.model.training:
            self.note({name: term.detach() for name, term in output.terms.items()})
        return (output.loss, output) if return_outputs else output.loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss, the logits (B, C) and the labels (B,)."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, output = self.compute_loss(model, inputs, return_outputs=True)
        return loss, None if prediction_loss_only else output.logits, inputs["labels"]

    def evaluation_loop(self, dataloader, *args, **kwargs) -> EvalLoopOutput:
        """Trainer's, among the classes of the dataset that is evaluated."""
        with self.learner.for_classes(dataloader.dataset.class_names):
            return super().evaluation_loop(dataloader, *args, **kwargs)

    def get_eval_dataloader(self, eval_dataset=None):
        """Trainer's; takes a ``datasets`` dataset, too."""
        return super().get_eval_dataloader(self._prepared(eval_dataset))

    def get_test_dataloader(self, test_dataset):
        """Trainer's; takes a ``datasets`` dataset, too."""
        return super().get_test_dataloader(self._prepared(test_dataset))

    def _prepared(self, source):
        is_raw = isinstance(source, datasets.Dataset)
        return LabelledImages(source, self.processing_class.image_processor) if is_raw else source

    def get_decay_parameter_names(self, model) -> list[str]:
        """All that trains: the published recipe decays biases, too."""
        return list(self.learner.trained_parameters())

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """The published schedule; Trainer's for another than ``cosine``, or with its own warm-up."""
        args = self.args
        if args.lr_scheduler_type != "cosine" or args.warmup_steps:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            steps = math.ceil(len(self.get_train_dataloader()) / args.gradient_accumulation_steps)
            schedule = EpochCosine(steps, num_training_steps / steps, args)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, schedule)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Train. ``resume_from_checkpoint`` is a checkpoint folder, or True for the last whole one of the run.

        Raises:
            ValueError: the checkpoint belongs to another model, to other data or to other settings.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
        told = self._told()
        if resume_from_checkpoint:
            told = "\n".join([*check_same_run(Path(resume_from_checkpoint), self._identity(), {}), told])
        if self.is_world_process_zero():
            print(told, flush=True)
        return super().train(resume_from_checkpoint or None, **kwargs)

    def _told(self) -> str:
        """What is about to be trained."""
        count = sum(one.numel() for one in self.learner.trained_parameters().values())
        data: LabelledImages = self.train_dataset
        uneven = sorted(set(Counter(data.labels).values()))
        shots = f"{uneven[0]} to {uneven[-1]}" if len(uneven) > 1 else str(data.shots)
        return (
            f"Training {count:,} numbers of {self.args.method}'s prompts: {len(data.class_names)} classes, {shots} pictures "
            f"of each, {self.args.num_train_epochs:g} epochs."
        )

    def trained_parameters(self) -> dict[str, Tensor]:
        return self.learner.trained_parameters()

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        """The prompts, in checkpoints and exports alike."""
        if self.args.should_save:
            save_prompts(Path(output_dir or self.args.output_dir), self.learner, self.record)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        load_trained(self.learner, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        load_trained(self.learner, Path(self.state.best_model_checkpoint))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, or make sure that this run may push there. Called before training.

        Raises:
            ValueError: there is no token, the name cannot be one, or the repository holds something else.
            HubError: it could not be reached, or refused.
        """
        self.push_in_progress = None
        if self.is_world_process_zero():
            self.hub_model_id = claim_prompts_repo(self._repo_name(), **self._where(token, private=private))

    def _repo_name(self) -> str:
        return self.args.hub_model_id or Path(self.args.output_dir).absolute().name

    def _where(self, token: str | None = None, revision: str | None = None, private: bool | None = None) -> dict:
        args = self.args
        private = args.hub_private_repo if private is None else private
        where = {"token": token or args.hub_token, "revision": revision or args.hub_revision, "private": private}
        return where | {"force": args.hub_force}

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Prompts are pushed at the end alone."""

    def create_model_card(self, *args, **kwargs) -> None:
        """Write the card into ``args.output_dir``; Trainer's arguments are taken and not used."""
        if self.is_world_process_zero():
            write_card(Path(self.args.output_dir), self.card_facts())

    def card_facts(self) -> CardFacts:
        """What the card tells; ``scores`` and ``dataset_name`` are for those who know them to set."""
        data = self.train_dataset
        return CardFacts(
            self.record,
            images=len(data),
            shots=data.shots,
            epochs=self.args.num_train_epochs,
            seed=self.args.seed,
            licence=self.args.hub_license,
            scores=self.scores,
            dataset_name=self.dataset_name,
        )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | None:
        """Save to ``args.output_dir``, write the card, and push both, in one commit. To be called on all processes.

        Raises:
            ValueError: see [`init_hf_repo`].
            HubError: it failed, however often it was tried.
        """
        self.save_model(_internal_call=True)
        self.create_model_card()
        self.accelerator.wait_for_everyone()
        if not self.is_world_process_zero():
            return None
        where = self._where(token, revision, private)
        return push_prompts(self.args.output_dir, self._repo_name(), message=commit_message, **where)

    def _identity(self) -> dict:
        args = self.args
        own = {name: value for name, value in args.own_options().items() if name not in FREE}
        return {
            "base_model": self.base_name,
            "base_fingerprint": self.base_fingerprint,
            "teacher": None,
            "teacher_fingerprint": None,
            "data": self._data_identity,
            "settings": own | {name: getattr(args, name) for name in KEPT},
            "obeyed": obeyed_options(args),
        }

    @cached_property
    def _data_identity(self) -> dict:
        return self.train_dataset.identity()


class EpochCosine:
    """The published schedule as a factor on the learning rate, by the step: a constant while the warm-up epochs last, then

    (1 + cos(pi (e - w) / E)) / 2 in epoch e of E with w warm-up epochs. A whole epoch has one rate.

    Args:
        steps: optimiser steps of an epoch.
        epochs: E.
        args: tell the rates and w.
    """

    def __init__(self, steps: int, epochs: float, args: PromptConfig):
        self.steps, self.epochs, self.warmup = steps, epochs, args.warmup_epochs
        self.first = args.warmup_learning_rate / args.learning_rate if args.learning_rate else 0.0

    def __call__(self, step: int) -> float:
        epoch = step // self.steps
        if epoch < self.warmup:
            return self.first
        return (1 + math.cos(math.pi * (epoch - self.warmup) / self.epochs)) / 2


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of images whose highest logit is that of their class."""
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}
