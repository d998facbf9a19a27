"""Trainer for L = L_CLIP + lambda_sds * L_SDS."""

from collections import defaultdict
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.distributed.nn
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPModel, CLIPProcessor, Trainer, set_seed
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints

from sdsclip_hf import shapes
from sdsclip_hf.callbacks import ClampLogitScale, TellEpoch
from sdsclip_hf.checkpoints import check_same_run, fingerprint, last_checkpoint, seal, unseal
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.data import (
    BAD_IMAGES_FILE,
    BadImages,
    CaptionedImages,
    EndlessStream,
    ImageCaptionCollator,
    ImageCaptionDataset,
    as_training_data,
)
from sdsclip_hf.evaluation import Results, evaluate_benchmarks, flatten
from sdsclip_hf.losses import contrastive_loss, gradient_norms, rms, spread
from sdsclip_hf.scorers import ClipScorer
from sdsclip_hf.student import LatentMapper, SDSCLIPModel, SDSCLIPOutput, load_clip
from sdsclip_hf.teacher import DiffusionTeacher

WEIGHTS_FILE = "model.safetensors"
WHITENING_SAMPLE = 2048


class SDSCLIPTrainer(Trainer):
    """[`transformers.Trainer`] with the distillation term.

    Each term is switched by its weight, computed by a function of ``losses``, and logged under its own name, in
    training and in evaluation. What a term does not need is not loaded.

    Args:
        model: the CLIP to fine-tune: a CLIPModel, a folder or a Hub id.
        args: every knob.
        teacher: a [`DiffusionTeacher`], a folder or a Hub id; needed when ``lambda_sds`` is above 0.
        train_dataset, eval_dataset: ``datasets`` datasets with the columns that ``args`` name, or
            [`data.CaptionedImages`]. ``eval_dataset`` may be a dict of them.
        processing_class: the CLIPProcessor; default: the one beside the model.
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
        args=SDSCLIPConfig(output_dir="outputs/example", max_steps=10),
        train_dataset=load_shapes("train"),
    )
    trainer.train()
    trainer.save_model("outputs/example/export")
    ```
    """

    def __init__(
        self,
        model: CLIPModel | str | Path,
        args: SDSCLIPConfig | None = None,
        teacher: DiffusionTeacher | str | Path | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: CLIPProcessor | None = None,
        peft_config=None,
        **kwargs,
    ):
        args = args or SDSCLIPConfig(output_dir="outputs/sdsclip")
        set_seed(args.seed)  # the mapper and the adapters are initialised here, before Trainer sets it
        self.base_name = (
            str(model) if isinstance(model, (str, Path)) else model.config._name_or_path or "an unnamed CLIPModel"
        )
        if isinstance(model, (str, Path)):
            model, loaded_processor = load_clip(shapes.resolve(model))
            processing_class = processing_class or loaded_processor
        if processing_class is None:
            raise ValueError("processing_class is missing; give the CLIPProcessor that goes with the model.")
        self.base_fingerprint = fingerprint(model)
        self.peft_settings = str(peft_config and sorted(peft_config.to_dict().items(), key=str))
        teacher = _load_teacher(teacher, args)
        student = _make_student(model, teacher, args, peft_config)
        as_data = _DatasetMaker(args)
        kwargs.setdefault("data_collator", ImageCaptionCollator(processing_class, teacher and teacher.tokenize))
        super().__init__(
            model=student,
            args=args,
            train_dataset=as_data(train_dataset, shuffle=True),
            eval_dataset=(
                {name: as_data(part) for name, part in eval_dataset.items()}
                if isinstance(eval_dataset, dict)
                else as_data(eval_dataset)
            ),
            processing_class=processing_class,
            **kwargs,
        )
        self.teacher = None if teacher is None else teacher.to(self.args.device)
        self.teacher_fingerprint = None if teacher is None else fingerprint(teacher.denoiser)
        self.term_weights = {"contrastive": 1.0} | ({"sds": args.lambda_sds} if args.lambda_sds else {})
        self.model_accepts_loss_kwargs = False  # a contrastive loss is a mean over its batch
        self.can_return_loss = True
        self._notes: dict[str, dict[str, list[Tensor]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._calls = 0
        self._saving_checkpoint = self._preparing = False
        self.captions_cut = 0  # captions longer than the text tower reads, of those that this process trained on
        self.add_callback(ClampLogitScale())
        if isinstance(self.train_dataset, ImageCaptionDataset):
            self.add_callback(TellEpoch(self.train_dataset))

    @property
    def student(self) -> SDSCLIPModel:
        """The model without what accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.model)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """L = L_CLIP + lambda_sds * L_SDS of one batch; see [`data.ImageCaptionCollator`] for what a batch holds.

        Raises:
            FloatingPointError: a term is NaN or infinite.
        """
        inputs = dict(inputs)
        prompt_ids = inputs.pop("teacher_input_ids", None)
        caption_cut = inputs.pop("caption_cut", None)
        output = model(**inputs)
        with torch.autocast(self.args.device.type, enabled=False):
            terms = self.loss_terms(output, prompt_ids)
        loss = sum(self.term_weights[name] * term for name, term in terms.items())
        self._check_finite(terms)
        self._note({name: term.detach() for name, term in terms.items()})
        if caption_cut is not None:
            self._note({"captions_cut": caption_cut.float().mean()})  # their share
            self.captions_cut += int(caption_cut.sum()) if self.model.training else 0
        if self._is_due(self.args.gradient_norm_steps) and len(terms) > 1:
            weighted = {name: self.term_weights[name] * term for name, term in terms.items()}
            self._note(gradient_norms(weighted, [p for p in self.student.clip.parameters() if p.requires_grad]))
        self._calls += 1
        return (loss, output) if return_outputs else loss

    def loss_terms(self, output: SDSCLIPOutput, prompt_ids: Tensor | None) -> dict[str, Tensor]:
        """The terms that are switched on, each a scalar before its weight."""
        terms = {"contrastive": self._contrastive_term(output)}
        if "sds" in self.term_weights:
            terms["sds"] = self._sds_term(output.latents, prompt_ids)
        return terms

    def _contrastive_term(self, output: SDSCLIPOutput) -> Tensor:
        images, texts = output.image_embeds.float(), output.text_embeds.float()
        if self.args.world_size == 1:
            return contrastive_loss(images, texts, output.logit_scale)
        all_images = torch.cat(torch.distributed.nn.all_gather(images))
        all_texts = torch.cat(torch.distributed.nn.all_gather(texts))
        offset = self.args.process_index * len(images)
        return contrastive_loss(images, texts, output.logit_scale, all_images, all_texts, offset)

    def _sds_term(self, latents: Tensor, prompt_ids: Tensor) -> Tensor:
        timesteps, noise = self._draw(latents)
        true_prompts = self.teacher.encode_tokens(prompt_ids)
        other_prompts = true_prompts.roll(1, dims=0)
        prompts = other_prompts if self.args.shuffle_captions else true_prompts
        error = self._sds_error(latents, prompts, timesteps, noise).mean()
        self._note({"latent_rms": rms(latents.detach()).mean(), "latent_spread": spread(latents.detach())})
        if self._is_due(self.args.health_steps):
            with torch.no_grad():
                gap = (
                    self._sds_error(latents, other_prompts, timesteps, noise).mean()
                    - self._sds_error(latents, true_prompts, timesteps, noise).mean()
                )
            self._note({"sds_gap": gap})
        return error

    def _sds_error(self, latents: Tensor, prompts: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        return self.teacher.denoising_error(
            latents,
            prompts,
            timesteps,
            noise,
            reading=self.args.sds_reading,
            gradient=self.args.sds_gradient,
            weighting=self.args.sds_weighting,
            snr_gamma=self.args.snr_gamma,
        )

    def _draw(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """t and eps for this process's rows.

        They are drawn for the batch of all processes by (seed, step, call), so that neither the number of processes nor
        a resumed run changes them.
        """
        step = (self.state.global_step, self._calls_in_step()) if self.model.training else (-1, self._calls)
        generator = torch.Generator().manual_seed(_seed_of(self.args.seed, *step))
        rows, world, rank = len(latents), self.args.world_size, self.args.process_index
        first, last = self.args.timestep_range or (0, self.teacher.num_timesteps - 1)
        timesteps = torch.randint(first, last + 1, (world * rows,), generator=generator)
        noise = torch.randn((world * rows, *latents.shape[1:]), generator=generator)
        mine = slice(rank * rows, (rank + 1) * rows)
        return timesteps[mine].to(latents.device), noise[mine].to(latents.device)

    def _calls_in_step(self) -> int:
        if getattr(self, "_last_step", None) != self.state.global_step:
            self._last_step, self._calls = self.state.global_step, 0
        return self._calls

    def _check_finite(self, terms: dict[str, Tensor]) -> None:
        for name, term in terms.items():
            if not torch.isfinite(term):
                raise FloatingPointError(
                    f"the {name} term is {term.item()} at step {self.state.global_step + 1}. {self._way_out()}"
                )

    def _way_out(self) -> str:
        good = last_checkpoint(self.args.output_dir)
        go_on = f"The last good checkpoint is {good}; go on from it with --resume_from_checkpoint and a lower "
        go_on += "--max_grad_norm, or start"
        kept = go_on if good else "Start"
        return f"{kept} anew in another --output_dir with a lower --learning_rate or weight of the term."

    def _is_due(self, every: int) -> bool:
        step = self._calls if self._preparing else self.state.global_step
        return bool(every) and self.model.training and step % every == 0

    def _note(self, values: dict[str, Tensor]) -> None:
        notes = self._notes["train" if self.model.training else "eval"]
        for name, value in values.items():
            notes[name].append(value.detach())

    def _take_notes(self, mode: str) -> dict[str, float]:
        """The mean of each noted value since the last time, over all processes."""
        notes, self._notes[mode] = self._notes[mode], defaultdict(list)
        means = {name: torch.stack(values).float().mean() for name, values in notes.items()}
        return {name: self.accelerator.reduce(mean, "mean").item() for name, mean in means.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean of each term since the last time beside ``loss``."""
        if "loss" in logs:
            logs = logs | self._take_notes("train")
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Train. ``resume_from_checkpoint`` is a checkpoint folder, or True for the last whole one of the run.

        Raises:
            ValueError: the checkpoint belongs to another model or to other settings.
        """
        counts = self.student.count_parameters()
        share = counts["clip_trained"] / counts["clip_all"]
        summary = (
            f"Training {counts['clip_trained']:,} of CLIP's {counts['clip_all']:,} weights ({share:.2%}, "
            f"{self.args.trainable}) and {counts['mapper_trained']:,} of the latent mapper."
        )
        if self.is_world_process_zero():
            print(summary, flush=True)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
        if resume_from_checkpoint:
            check_same_run(Path(resume_from_checkpoint), self._identity())
        elif self.student.mapper is not None:
            self._prepare_mapper()
        preparation = self.state.log_history
        output = super().train(resume_from_checkpoint or None, **kwargs)
        self.state.log_history = preparation + self.state.log_history
        self.log({f"parameters/{name}": count for name, count in counts.items()})
        return output

    def _prepare_mapper(self) -> None:
        """Whiten the mapper's inputs and warm it up, as far as the arguments ask for it, before the run begins."""
        if self.args.mapper_whitening:
            sample, per_batch = [], self.args.per_device_train_batch_size * self.args.world_size
            for batch in self._endless_batches(-(-WHITENING_SAMPLE // per_batch)):
                sample.append(self.accelerator.gather(self._mapper_inputs(self._prepare_inputs(batch))))
            self.student.mapper.whiten(torch.cat(sample))
        if self.args.mapper_warmup_steps:
            self._warm_up_mapper()
        set_seed(self.args.seed)

    @torch.no_grad()
    def _mapper_inputs(self, batch: dict[str, Tensor]) -> Tensor:
        """The embeddings (B, D) that the mapper is prepared on."""
        if self.args.mapper_warmup_inputs == "text":
            return self.student.encode_texts(batch["input_ids"], batch["attention_mask"])
        return self.student.encode_images(batch["pixel_values"])

    def _warm_up_mapper(self) -> None:
        """Train h_w alone on L_SDS."""
        mapper, steps = self.student.mapper, self.args.mapper_warmup_steps
        optimizer = torch.optim.AdamW(mapper.parameters(), lr=self.args.mapper_warmup_learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        self.model.train()
        self._preparing = True
        for step, batch in enumerate(self._endless_batches(steps)):
            batch = self._prepare_inputs(batch)
            self._last_step, self._calls = self.state.global_step, step
            loss = self._sds_term(mapper(self._mapper_inputs(batch)), batch["teacher_input_ids"])
            self._check_finite({"sds (mapper warm-up)": loss})
            optimizer.zero_grad()
            loss.backward()
            for parameter in mapper.parameters():
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
            optimizer.step()
            schedule.step()
            self._note({"sds": loss})
            if (step + 1) % max(1, steps // 5) == 0:
                notes = {f"warmup/{name}": value for name, value in self._take_notes("train").items()}
                self.log(notes | {"warmup_step": step + 1})
        mapper.zero_grad(set_to_none=True)
        self._calls, self._preparing = 0, False

    def _endless_batches(self, steps: int):
        loader, done = self.get_train_dataloader(), 0
        while done < steps:
            before = done
            for batch in loader:
                if done == steps:
                    return
                yield batch
                done += 1
            if done == before:
                raise ValueError(
                    "the training data gives no full batch; lower --per_device_train_batch_size or add data."
                )

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

    def _get_dataloader(self, dataset, description, batch_size, *args, is_training=False, **kwargs):
        if hasattr(dataset, "__len__"):
            per_process = len(dataset) // self.args.world_size
            if per_process < 2:
                raise ValueError(
                    f"{description.lower()} needs at least two pairs on each of {self.args.world_size} processes, since "
                    f"a batch of one has no negatives; the dataset has {len(dataset)}."
                )
            if is_training and per_process < batch_size:
                raise ValueError(
                    f"the training data has {len(dataset)} pairs, fewer than one batch of {batch_size} on each of "
                    f"{self.args.world_size} processes; lower --per_device_train_batch_size."
                )
            batch_size = min(batch_size, per_process)
        elif is_training:
            dataset = EndlessStream(dataset, batch_size)
        return super()._get_dataloader(dataset, description, batch_size, *args, is_training=is_training, **kwargs)

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs) -> EvalLoopOutput:
        """Trainer's loop; adds the mean of each loss term and the scores on ``args.benchmarks`` to the metrics."""
        self._take_notes("eval")
        train_calls, self._calls = self._calls, 0
        try:
            output = super().evaluation_loop(
                dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        finally:
            self._calls = train_calls
        found = self._take_notes("eval")
        if self.args.benchmarks:
            found |= flatten(self.score_benchmarks())
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def score_benchmarks(self) -> Results:
        """The student's scores on ``args.benchmarks`` as it now is, see [`evaluation.evaluate_benchmarks`]."""
        scorer = ClipScorer(self.student.base_clip, self.processing_class)
        return evaluate_benchmarks(scorer, self.args.benchmarks or [])

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss alone: embeddings of whole evaluation sets are not kept."""
        return super().prediction_step(model, inputs, True, ignore_keys=ignore_keys)

    def _save_checkpoint(self, model, trial) -> None:
        """A checkpoint holds what trains and all that resuming needs; ``sdsclip_run.json``, written last, seals it."""
        for name, parameter in self.student.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise FloatingPointError(
                    f"{name} holds NaN or infinite weights after step {self.state.global_step}; no checkpoint was "
                    f"written. {self._way_out()}"
                )
        run = Path(self._get_output_dir(trial=trial))
        folder = run / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            unseal(folder)
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # older ones go once this one is whole
        self._saving_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_checkpoint, self.args.save_total_limit = False, limit
        if self.args.should_save:
            seal(folder, self._identity())
            rotate_checkpoints(str(run), limit, self.state.best_model_checkpoint)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        """Inside a checkpoint the weights that train; anywhere else the export, a plain CLIP."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if self._saving_checkpoint:
            tensors = {
                name: tensor.detach().cpu().contiguous() for name, tensor in self.student.trained_state_dict().items()
            }
            save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        else:
            self.student.export(folder, self.processing_class)

    def _identity(self) -> dict:
        return {
            "base_model": self.base_name,
            "base_fingerprint": self.base_fingerprint,
            "teacher": None if self.teacher is None else self.teacher.name_or_path,
            "teacher_fingerprint": self.teacher_fingerprint,
            "settings": self.args.method_settings() | {"peft_config": self.peft_settings},
        }


class _DatasetMaker:
    """Wraps ``datasets`` datasets by the columns that the arguments name; leaves what is wrapped already."""

    def __init__(self, args: SDSCLIPConfig):
        self.args = args

    def __call__(self, dataset, shuffle: bool = False):
        if dataset is None or isinstance(dataset, CaptionedImages):
            return dataset
        if isinstance(dataset, datasets.IterableDataset) and shuffle and self.args.shuffle_buffer_size:
            dataset = dataset.shuffle(seed=self.args.seed, buffer_size=self.args.shuffle_buffer_size)
        return as_training_data(
            dataset,
            image_column=self.args.image_column,
            caption_column=self.args.caption_column,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            bad_images=BadImages(self.args.max_bad_images, Path(self.args.output_dir) / BAD_IMAGES_FILE),
        )


def _load_teacher(teacher: DiffusionTeacher | str | None, args: SDSCLIPConfig) -> DiffusionTeacher | None:
    if args.lambda_sds == 0:
        return None
    if teacher is None:
        raise ValueError(
            "lambda_sds is above 0, but there is no teacher; give --teacher_name_or_path or --lambda_sds 0."
        )
    if isinstance(teacher, (str, Path)):
        teacher = DiffusionTeacher.from_pretrained(
            shapes.resolve(teacher),
            dtype=args.teacher_dtype,
            latent_size=args.latent_size,
            revision=args.teacher_revision,
            variant=args.teacher_variant,
        )
    if args.latent_size not in (None, teacher.latent_shape[1]):
        raise ValueError(
            f"latent_size {args.latent_size} differs from the given teacher's {teacher.latent_shape[1]}; pass it to "
            "DiffusionTeacher.from_pretrained instead."
        )
    if args.timestep_range is not None:
        teacher.check_timestep_range(args.timestep_range)
    return teacher


def _make_student(clip: CLIPModel, teacher: DiffusionTeacher | None, args: SDSCLIPConfig, peft_config) -> SDSCLIPModel:
    mapper = None
    if teacher is not None:
        mapper = LatentMapper(
            clip.config.projection_dim, teacher.latent_shape, unit_rms=args.mapper_unit_rms, scale=args.mapper_scale
        )
    return SDSCLIPModel(
        clip,
        mapper,
        trainable=args.trainable,
        train_vision=args.train_vision,
        train_text=args.train_text,
        train_projections=args.train_projections,
        train_logit_scale=args.train_logit_scale,
        peft_config=peft_config,
        lora_r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        lora_target_modules=tuple(args.lora_target_modules),
    )


def _seed_of(*words: int) -> int:
    """A 63-bit seed of its own for each tuple of integers."""
    low, high = np.random.SeedSequence([word % 2**32 for word in words]).generate_state(2)
    return int(high) << 31 ^ int(low)
