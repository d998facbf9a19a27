"""Trainer for L = lambda_clip * L_CLIP + lambda_sds * L_SDS + lambda_rank * L_rank."""

import copy
from functools import cached_property
from pathlib import Path

import datasets
import torch
from peft import PeftConfig
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, ProcessorMixin, set_seed

from sdsclip_hf import shapes
from sdsclip_hf.common.checkpoints import check_same_run, fingerprint, last_checkpoint
from sdsclip_hf.common.devices import sent
from sdsclip_hf.common.processes import check_agreement
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.data.captioned_images import ImageCaptionDataset
from sdsclip_hf.data.collator import ImageCaptionCollator
from sdsclip_hf.losses import gradient_norms
from sdsclip_hf.students.kinds import needs_mask
from sdsclip_hf.students.loading import check_student, load_student, read_captions
from sdsclip_hf.students.sdsclip_model import SDSCLIPModel, SDSCLIPOutput
from sdsclip_hf.teachers.conditions import as_bytes
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.training.callbacks import ClampLogitScale, TellEpoch
from sdsclip_hf.training.checkpoint_trainer import CheckpointTrainer
from sdsclip_hf.training.contrastive import ContrastiveTerm, contrastive_form
from sdsclip_hf.training.failure_tables import FailureTables
from sdsclip_hf.training.grad_cache import GradCache
from sdsclip_hf.training.loaders import PairLoaders
from sdsclip_hf.training.mapper_warmup import MapperWarmup
from sdsclip_hf.training.notes import NotingTrainer
from sdsclip_hf.training.parts import (
    DatasetMaker,
    cache_prompts,
    compile_student,
    lengths,
    load_scores,
    load_teacher,
    make_student,
    peft_settings,
    place_teacher,
)
from sdsclip_hf.training.resumed_options import earlier_defaults
from sdsclip_hf.training.sharding import is_sharded, prepare_student, whole_weights
from sdsclip_hf.training.terms import (
    DistillationTerm,
    Pairs,
    RankingTerm,
    distinct_texts,
    pair_up,
    pictures_of,
    prompts_of,
    rank_pictures,
)
from sdsclip_hf.training.validation import Validation

Pictures = datasets.Dataset | datasets.IterableDataset | Dataset  # the last is torch's, as of CaptionedImages


class SDSCLIPTrainer(PairLoaders, Validation, NotingTrainer, CheckpointTrainer):
    """[`transformers.Trainer`] with the distillation term and the ranking term.

    Each term is switched by its weight, computed by a function of ``losses``, and logged under its own name, in
    training and in evaluation. What a term does not need is not loaded.

    Args:
        model: the CLIP to fine-tune: a CLIPModel or another dual encoder of transformers, a folder or a Hub id.
        args: every knob, ``ranking_scores`` among them.
        teacher: a [`DiffusionTeacher`], a folder or a Hub id; needed when ``lambda_sds`` is above 0.
        train_dataset, eval_dataset: ``datasets`` datasets with the columns that ``args`` name, or
            [`CaptionedImages`]. ``eval_dataset`` may be a dict of them; it needs no scores, and L_rank is not
            measured on it.
        processing_class: the model's processor; default: the one beside it.
        peft_config: the whole PEFT configuration for ``trainable="lora"``.
        kwargs: what else Trainer takes: ``callbacks``, ``optimizers``, ``data_collator``, …

    Raises:
        OSError: the model or teacher cannot be loaded.
        ValueError: the parts do not fit one another.

    Example:

    ```python
    from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
    from sdsclip_hf.shapes import load_shapes

    trainer = SDSCLIPTrainer(
        model="shapes/student",
        teacher="shapes/teacher",
        args=SDSCLIPConfig(output_dir="outputs/example", max_steps=3),
        train_dataset=load_shapes("train"),
    )
    trainer.train()
    trainer.save_model("outputs/example/export")
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        args: SDSCLIPConfig | None = None,
        teacher: DiffusionTeacher | str | Path | None = None,
        train_dataset: Pictures | None = None,
        eval_dataset: Pictures | dict[str, Pictures] | None = None,
        processing_class: ProcessorMixin | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs,
    ):
        for name in ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics", "model_init"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name} would have no effect: the loss is the sum of this trainer's terms, and evaluation keeps no "
                    "embeddings. Leave it out; for scores give --benchmarks, for another loss override compute_loss."
                )
        args = args or SDSCLIPConfig(output_dir="outputs/sdsclip")
        args.tell_of_idle_gpus()
        peft_config = copy.deepcopy(peft_config)  # PEFT fills it in
        self.peft_settings = peft_settings(peft_config)
        check_agreement(args.to_dict() | {"peft_config": self.peft_settings})
        set_seed(args.seed)  # the mapper and the adapters are initialised here, before Trainer sets it
        if isinstance(model, (str, Path)):
            self.base_name = str(model)
            model, loaded_processor = load_student(shapes.resolve(model))
            processing_class = processing_class or loaded_processor
        else:
            self.base_name = model.config._name_or_path or f"an unnamed {type(model).__name__}"
            check_student(model)
            model = copy.deepcopy(model)  # the caller's stays as it is
        if processing_class is None:
            raise ValueError("processing_class is missing; give the processor that goes with the model.")
        self.reader = read_captions(processing_class, model)
        self.base_revision = getattr(model.config, "_commit_hash", None)
        self.base_fingerprint = fingerprint(model)
        self.teacher_fingerprint = None
        self.card_facts = {}
        given_teacher, teacher = teacher, load_teacher(teacher, args)
        student = make_student(model, teacher, args, peft_config)
        self._start_weights = student.start_weights() if args.wise_ft_alpha < 1 else {}
        self.scores = load_scores(teacher, given_teacher, args)
        needs_candidates = bool(args.lambda_rank or args.hard_negatives)
        as_data = DatasetMaker(args, processing_class.image_processor, self.scores, needs_candidates)
        max_candidates = self.scores.max_candidates if needs_candidates else 0
        train_dataset, eval_dataset = as_data(train_dataset, training=True), as_data(eval_dataset)
        prompts, fingerprints = teacher and as_bytes, {"base_fingerprint": self.base_fingerprint}
        if self.scores is not None:
            fingerprints["scores_fingerprint"] = self.scores.fingerprint
        if teacher is not None:
            self.teacher_fingerprint = fingerprints["teacher_fingerprint"] = fingerprint(teacher.denoiser)
        check_agreement(fingerprints, lengths(train_dataset, eval_dataset))
        if teacher is not None:
            teacher.place_encoders(args.device)
            told = teacher.encode_captions(["a photo"])
            if args.prompt_cache_dir is not None:
                prompts = cache_prompts(teacher, train_dataset, eval_dataset, args)
                if given_teacher is not teacher:
                    teacher.free_text_encoders()  # before the denoiser comes to their device
            place_teacher(teacher, args, told)
        kwargs.setdefault(
            "data_collator",
            ImageCaptionCollator(
                *(
                    processing_class,
                    prompts,
                    max_candidates,
                    args.mask_duplicates,
                    self.reader,
                    args.preprocess_on_device,
                )
            ),
        )
        super().__init__(
            model=student,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        compile_student(student, self.accelerator, self.args)
        self.teacher = teacher
        self.distillation = None if teacher is None else DistillationTerm(self.teacher, self.args)
        weights = {"sds": args.lambda_sds, "ranking": args.lambda_rank, "cosine": args.lambda_cosine}
        weights["ranking_images"] = args.lambda_images
        self.term_weights = {"contrastive": args.lambda_clip} | {
            name: weight for name, weight in weights.items() if weight
        }
        self.contrastive = ContrastiveTerm(args, self.accelerator, contrastive_form(model, args))
        self.ranking = RankingTerm(self.scores, args) if args.lambda_rank else None
        self.model_accepts_loss_kwargs = False  # a contrastive loss is a mean over its batch
        self.can_return_loss = True
        self._calls = 0
        # Captions longer than the text tower reads, and without a word, of those that this process trained on.
        self.odd_captions = {"cut": 0, "empty": 0}
        self.add_callback(ClampLogitScale())
        if args.log_failures:
            self.failure_tables = FailureTables(args)
            self.add_callback(self.failure_tables)
        if isinstance(self.train_dataset, ImageCaptionDataset):
            self.add_callback(TellEpoch(self.train_dataset))
            self.train_dataset.check_scores()
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            prepare_student(self.student, self.accelerator, self.args)

    @property
    def student(self) -> SDSCLIPModel:
        """The model without what accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.model)

    def whole_student(self) -> SDSCLIPModel:
        """The student with all its weights on this process, where FSDP has split them. To be called on all processes."""
        return self.student.rebuilt(whole_weights(self.model)) if is_sharded(self.model) else self.student

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the terms for one batch; see [`ImageCaptionCollator`] for what a batch holds.

        Raises:
            FloatingPointError: a term is NaN or infinite.
        """
        output, pairs = self.encode(model, inputs)
        with torch.autocast(self.args.device.type, enabled=False):
            terms = {"contrastive": self.contrastive_term(pairs)} | self.other_terms(output, pairs, inputs)
        self.take_in(terms, inputs)
        loss = sum(self.term_weights[name] * term for name, term in terms.items())
        weighted = {name: self.term_weights[name] * term for name, term in terms.items() if self.term_weights[name]}
        if self._is_due(self.args.gradient_norm_steps) and len(weighted) > 1:
            self.note(gradient_norms(weighted, [p for p in self.student.clip.parameters() if p.requires_grad]))
        self._calls += 1
        return (loss, output) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Trainer's step; with ``contrastive_batch_size`` the batch is encoded by mini-batches, see [`grad_cache`]."""
        if self.args.contrastive_batch_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free optimisers
            self.optimizer.train()
        loss = self._grad_cache.step(model, self._prepare_inputs(inputs), self.current_gradient_accumulation_steps)
        self._calls += 1
        return loss

    @cached_property
    def _grad_cache(self) -> GradCache:
        return GradCache(
            self.args.per_device_train_batch_size,
            self.accelerator,
            self.encode,
            self._contrastive_of_all,
            self._others_of_part,
            self.compute_loss_context_manager,
        )

    def _contrastive_of_all(self, pairs: Pairs) -> Tensor:
        """For [`GradCache`]: the weighted contrastive term of a whole batch."""
        with torch.autocast(self.args.device.type, enabled=False):
            term = self.contrastive_term(pairs)
        self.take_in({"contrastive": term}, {})
        return self.term_weights["contrastive"] * term

    def _others_of_part(
        self, output: SDSCLIPOutput, pairs: Pairs, part: dict[str, Tensor], place: tuple[int, int]
    ) -> Tensor:
        """For [`GradCache`]: what a mini-batch adds to the weighted sum of the terms beside L_CLIP."""
        with torch.autocast(self.args.device.type, enabled=False):
            terms = self.other_terms(output, pairs, part, place)
        self.take_in(terms, part)
        share = len(part["pixel_values"]) / place[1]
        nothing = torch.zeros((), device=pairs.images.device)
        return sum((self.term_weights[name] * share * term for name, term in terms.items()), start=nothing)

    def encode(self, model, batch: dict[str, Tensor]) -> tuple[SDSCLIPOutput, Pairs]:
        """The student's output for a batch, and what the terms need of it."""
        texts = distinct_texts(batch, self.reader if self.student.is_compiled else None)
        if texts.candidates is None and self.model.training and (self.ranking or self.args.hard_negatives):
            raise ValueError(
                "the batch has no candidates, which lambda_rank and hard_negatives need; give train_dataset as a datasets "
                "dataset and leave data_collator to the trainer, or have yours give what ImageCaptionCollator does."
            )
        pictures, device = pictures_of(batch, self.student, with_negatives=True), self.args.device
        with_mask = needs_mask(self.student.base_clip, texts.attention_mask, device)
        mask = sent(texts.attention_mask, device) if with_mask else None
        output = model(**pictures, input_ids=sent(texts.input_ids, device), attention_mask=mask)
        return output, pair_up(output, texts, batch)

    def contrastive_term(self, pairs: Pairs) -> Tensor:
        """L_CLIP, scalar; see [`ContrastiveTerm`]."""
        term, figures = self.contrastive(pairs, even=self.model.training)
        self.note(figures)
        return term

    def other_terms(
        self, output: SDSCLIPOutput, pairs: Pairs, batch: dict[str, Tensor], place: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """The terms beside L_CLIP that are switched on, each a scalar before its weight: a mean over the batch's images.

        Args:
            output, pairs: from [`encode`].
            batch: from [`ImageCaptionCollator`].
            place: the first row and the number of rows of the batch that this one is a part of; default: it is all.
        """
        terms, images = {}, pairs.images
        if "sds" in self.term_weights:
            terms["sds"] = self._distill(output.latents[: len(images)], batch, place)
        if "ranking" in self.term_weights and pairs.candidates is not None:  # evaluation data is not scored
            terms["ranking"], figures = self.ranking(
                images, pairs.candidates, pairs.logit_scale, batch, pairs.identities
            )
            self.note(figures)
        if "ranking_images" in self.term_weights and pairs.negatives is not None:  # evaluation data has none
            terms["ranking_images"], figures = rank_pictures(pairs, batch["has_negative"])
            self.note(figures)
        if "cosine" in self.term_weights:
            terms["cosine"] = 1 - (images * pairs.captions).sum(-1).mean()
        return terms

    def _distill(self, latents: Tensor, batch: dict[str, Tensor], place: tuple[int, int] | None) -> Tensor:
        """L_SDS of a batch, or in training what stands for it: the cheap forms keep its expectation."""
        every, fraction = (self.args.distill_every, self.args.distill_fraction) if self.model.training else (1, 1.0)
        if self.state.global_step % every:
            return 0.0 * latents.sum()  # every weight has a gradient, as DDP expects
        with_gap = self._is_due(self.args.health_steps)
        term, figures = self.distillation(latents, prompts_of(batch), self._draw_number(), with_gap, place, fraction)
        self.note(figures)
        return every * term

    def take_in(self, terms: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
        """Check the terms of a batch, and note them for the log."""
        self.check_finite(terms)
        self.note({name: term.detach() for name, term in terms.items()})
        for what in self.odd_captions:
            if f"caption_{what}" in batch:
                self.note({f"captions_{what}": batch[f"caption_{what}"].float().mean()})  # their share
                self.odd_captions[what] += int(batch[f"caption_{what}"].sum()) if self.model.training else 0

    def _draw_number(self) -> tuple[int, int]:
        """What decides t and eps: the step and which of its batches this is; in evaluation the batch alone."""
        return (self.state.global_step, self._calls_in_step()) if self.model.training else (-1, self._calls)

    def _calls_in_step(self) -> int:
        if getattr(self, "_last_step", None) != self.state.global_step:
            self._last_step, self._calls = self.state.global_step, 0
        return self._calls

    def _is_due(self, every: int) -> bool:
        return bool(every) and self.model.training and self.state.global_step % every == 0

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Train. ``resume_from_checkpoint`` is a checkpoint folder, or True for the last whole one of the run.

        With ``wise_ft_alpha`` the weights then go part of the way back to the pretrained ones.

        Raises:
            ValueError: the checkpoint belongs to another model or to other settings.
        """
        counts = self.student.count_parameters()
        share = counts["clip_trained"] / counts["clip_all"]
        summary = (
            f"Training {counts['clip_trained']:,} of CLIP's {counts['clip_all']:,} weights ({share:.2%}, "
            f"{self.args.trainable}) and {counts['mapper_trained']:,} of the latent mapper."
        )
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
        self._batches_done = 0
        if resume_from_checkpoint:
            changed = check_same_run(Path(resume_from_checkpoint), self._identity(), earlier_defaults())
            summary = "\n".join([*changed, summary])
            self._batches_done = self.batches_to_skip(Path(resume_from_checkpoint))
        if self.is_world_process_zero():
            print(summary, flush=True)
        if not resume_from_checkpoint and self.student.mapper is not None:
            self._prepare_mapper()
        preparation = self.state.log_history
        output = super().train(resume_from_checkpoint or None, **kwargs)
        self.check_arrived()
        self.student.go_back(self._start_weights, self.args.wise_ft_alpha)
        self.state.log_history = preparation + self.state.log_history
        self.log({f"parameters/{name}": count for name, count in counts.items()})
        return output

    def _prepare_mapper(self) -> None:
        self.model.train()
        loop = self.endless_batches, self.check_finite, self.check_arrived, self.log
        MapperWarmup(self.student, self.distillation, self.args, self.accelerator, *loop).run()

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Trainer's optimiser, with a learning rate of its own for the mapper."""
        optimizer = super().create_optimizer(model)
        rate, mapper = self.args.mapper_learning_rate, self.student.mapper
        if rate is None or mapper is None:
            return optimizer
        of_mapper = {id(parameter) for parameter in mapper.parameters()}
        for group in list(optimizer.param_groups):
            moved = [parameter for parameter in group["params"] if id(parameter) in of_mapper]
            if moved:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in of_mapper]
                optimizer.add_param_group({"params": moved, "lr": rate, "weight_decay": group["weight_decay"]})
        return optimizer
