"""A training step rehearsed on tensors that have shapes and no contents: what it computes, and what it holds in memory.

Models, losses and the backward pass are the real ones, run under ``FakeTensorMode`` of torch: nothing is loaded but
configurations and a tokenizer, nothing is computed but shapes, and a batch of any size takes the same few seconds.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Trainer

from sdsclip_hf import shapes
from sdsclip_hf.common.errors import expand, explain_loading
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.data.scores import score_settings
from sdsclip_hf.losses import contrastive_loss, sigmoid_loss
from sdsclip_hf.planning.ledger import Ledger, Phase
from sdsclip_hf.planning.teacher_memory import denoiser_bytes
from sdsclip_hf.scoring.candidates import parse_sources
from sdsclip_hf.students.loading import make_model, picture_shapes, student_config
from sdsclip_hf.students.open_clip_checkpoints import OpenClipOptions
from sdsclip_hf.students.sdsclip_model import SDSCLIPModel, SDSCLIPOutput
from sdsclip_hf.teachers.conditions import Conditions
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.teachers.saved_pipeline import SavedPipeline
from sdsclip_hf.training.contrastive import contrastive_form
from sdsclip_hf.training.parts import load_teacher, make_student

STUDENT, DENOISER, ENCODER = PARTS = ("student", "denoiser", "caption encoder")
WEIGHTS, OPTIMIZER, FORWARD, BACKWARD, GAP = "weights", "optimiser", "forward", "backward", "gap"
CAPTION_WORDS = 32  # tokens of a caption, where a family's denoiser sees those alone and no padding
ADAM_BYTES = 8  # two float32 numbers a weight
CHECKPOINTING = "activation_checkpointing"
if not hasattr(SDSCLIPConfig, CHECKPOINTING):  # before transformers 5.23
    CHECKPOINTING = "gradient_checkpointing"


@dataclass(frozen=True)
class StepCost:
    """What one optimiser step costs one process.

    Attributes:
        weights: how many each part has.
        trained: how many of the student's train.
        flops: operations of a whole step by phase, on average over the steps.
        memory: bytes by phase at the step's peak.
        latent_shape: (C, h, w) of the teacher; None without one.
        prompt_bytes: what one caption's prompt takes; 0 without a teacher.
        knows_optimizer: whether the size of the optimiser's states was found, not assumed to be AdamW's.
    """

    weights: dict[str, int]
    trained: int
    flops: dict[Phase, float]
    memory: dict[Phase, int]
    latent_shape: tuple[int, int, int] | None
    prompt_bytes: int
    knows_optimizer: bool


def rehearse(
    model: str,
    teacher: str | None,
    config: SDSCLIPConfig,
    caption_tokens: int | None = None,
    processes: int = 1,
    options: OpenClipOptions | None = None,
    candidates: int | None = None,
) -> StepCost:
    """What one optimiser step of [`SDSCLIPTrainer`] costs, found without weights and without data.

    Args:
        model: the student, a folder or Hub id, of which the configuration is read.
        teacher: the diffusion model, likewise; needed where ``config`` has L_SDS.
        config: of the run.
        caption_tokens: tokens of a caption, padding included; default: as many as the text tower reads.
        processes: of the run.
        options: what a student in open_clip's form does not tell.
        candidates: captions of an image that are scored beside its own; default: as the scores tell.

    Raises:
        OSError: a configuration cannot be had.
        ValueError: the parts do not fit one another.
    """
    has_others = config.lambda_rank or config.hard_negatives
    others = _other_candidates(config, candidates) if has_others else 0
    optimizer_bytes = _optimizer_bytes(config)
    bare = None
    if teacher and config.lambda_sds:
        dtype = getattr(torch, config.teacher_dtype)
        bare = bare_teacher(teacher, dtype, config.latent_size, config.teacher_revision)
        if config.teacher_gradient_checkpointing:
            bare.denoiser.enable_gradient_checkpointing()
    with torch.device("meta"):
        clip = make_model(student_config(expand(shapes.resolve(model)), options=options))
        loaded = load_teacher(bare, config)
        student = make_student(clip, loaded, config, peft_config=None)
    _leave_shapes_unread(student)
    with FakeTensorMode():
        empty(student)
        if loaded is not None:
            empty(loaded)
        prompt = prompts_of(loaded, 1) if loaded is not None else {}
        with Ledger() as ledger:
            step = _Step(ledger, student, loaded, config, others, prompt, caption_tokens, processes)
            cost = step.run(optimizer_bytes)
    if loaded is not None:
        form = config.teacher_quantization, config.teacher_offload, processes if config.shard_teacher else 1
        cost.memory[Phase(DENOISER, WEIGHTS)] = round(denoiser_bytes(loaded.denoiser, *form))
    return cost


def bare_teacher(
    name_or_path: str, dtype: torch.dtype, latent_size: int | None, revision: str | None, load_vae: bool = False
) -> DiffusionTeacher:
    """What [`DiffusionTeacher.from_pretrained`] gives, but for the weights."""
    name = expand(shapes.resolve(name_or_path))
    with explain_loading("the teacher", name, "--teacher_name_or_path"):
        saved = SavedPipeline(name, revision)
        pipeline = saved.pipeline(dtype, bare=True)
        exact = torch.float32 if saved.family.exact_autoencoder else dtype
        pipeline.vae = saved.empty("vae", exact) if load_vae else None
        return DiffusionTeacher(pipeline, latent_size)


def prompts_of(teacher: DiffusionTeacher, captions: int) -> Conditions:
    """What the denoiser is told of captions, of tensors without contents, encoded as the real ones are."""
    with torch.no_grad():
        return teacher.family.rehearse(captions, CAPTION_WORDS)


def _leave_shapes_unread(student: SDSCLIPModel) -> None:
    """Have SigLIP 2 NaFlex resize its positions without a look at each picture's shape, which here is unknown."""

    def resized(grid: Tensor, shapes: Tensor, max_length: int) -> Tensor:
        flat = grid.flatten(0, -2)  # (positions, D)
        return (flat.new_ones(len(shapes), max_length, len(flat)) @ flat.float()).to(grid.dtype)

    for part in student.modules():
        if hasattr(part, "resize_positional_embeddings"):
            part.resize_positional_embeddings = resized


def empty(module: nn.Module) -> None:
    """Give a module of meta tensors fake ones on the CPU, whose operations are those that a real run has."""
    made: dict[nn.Parameter, nn.Parameter] = {}  # so that weights that are tied stay so
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            if weight not in made:
                made[weight] = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), weight.requires_grad)
            setattr(part, name, made[weight])
        plain = ((name, value) for name, value in vars(part).items() if isinstance(value, Tensor))
        for name, buffer in (*part.named_buffers(recurse=False), *plain):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def tensors_of(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers of a module, and what it has beside them, such as tables of positions."""
    plain = (value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor))
    return [*module.parameters(), *module.buffers(), *plain]


def _other_candidates(config: SDSCLIPConfig, candidates: int | None) -> int:
    """Captions of an image that are encoded beside its own."""
    if config.ranking_candidates is not None or candidates is not None:
        return config.ranking_candidates or candidates
    settings = score_settings(config.ranking_scores, config.ranking_scores_revision)
    return sum(parse_sources(settings["candidates"]).values())


class _Step:
    """One optimiser step as the trainer, its terms and [`grad_cache`] make it.

    Args:
        ledger: the context that counts, which is entered.
        student, teacher: of tensors without contents.
        config: of the run.
        others: captions of an image that are encoded beside its own.
        prompt: what the denoiser is told of one caption, of tensors without contents; nothing without a teacher.
        tokens: their length; default: as many as the text tower reads.
        processes: of the run.
    """

    def __init__(
        self,
        ledger: Ledger,
        student: SDSCLIPModel,
        teacher: DiffusionTeacher | None,
        config: SDSCLIPConfig,
        others: int,
        prompt: Conditions,
        tokens: int | None,
        processes: int,
    ):
        self.ledger, self.student, self.teacher, self.config = ledger, student, teacher, config
        self.images, self.processes = config.per_device_train_batch_size, processes
        self.texts = self.images * (1 + others)
        self.form = contrastive_form(student.base_clip, config)
        self.tokens = tokens or student.config.text_config.max_position_embeddings
        self.caches_prompts = config.prompt_cache_dir is not None
        self.prompt = prompt

    def run(self, optimizer_bytes: float | None) -> StepCost:
        config, ledger = self.config, self.ledger
        weights = self._hold_weights()
        trained = sum(weight.numel() for weight in self.student.parameters() if weight.requires_grad)
        with ledger.during(STUDENT, OPTIMIZER):
            states_bytes = trained * (ADAM_BYTES if optimizer_bytes is None else optimizer_bytes)
            states = torch.empty(round(states_bytes), dtype=torch.uint8)
        self.student.train()
        if config.gradient_checkpointing:
            self._checkpoint_activations()
        accumulated, parts = config.gradient_accumulation_steps, 1
        if config.contrastive_batch_size is not None:
            parts = config.contrastive_batch_size // (self.images * self.processes)
        whole = self._batch(accumulated * parts)  # Trainer holds all the batches of a step
        batch = {name: value[: len(value) // (accumulated * parts)] for name, value in whole.items()}
        kept = [states]
        if config.contrastive_batch_size is not None:
            with ledger.during(STUDENT, FORWARD, accumulated):
                kept += self._cache_gradients(batch, parts)
        for times in (1, accumulated * parts - 1):  # the second finds gradients in place, and so may need more
            if times:
                with ledger.during(STUDENT, FORWARD, times):
                    self._forward_and_backward(batch)
        del kept
        return StepCost(
            weights=weights,
            trained=trained,
            flops=self._averaged(ledger.flops),
            memory={phase: size for phase, size in ledger.peak.items() if size},
            latent_shape=None if self.teacher is None else self.teacher.latent_shape,
            prompt_bytes=sum(value.nbytes for value in self.prompt.values()),
            knows_optimizer=optimizer_bytes is not None,
        )

    def _hold_weights(self) -> dict[str, int]:
        parts = {STUDENT: self.student}
        if self.teacher is not None:
            parts |= {DENOISER: self.teacher.denoiser}
            encoders = nn.ModuleList(self.teacher.text_encoders.values())
            parts |= {} if self.caches_prompts else {ENCODER: encoders}
        for name, part in parts.items():
            with self.ledger.during(name, WEIGHTS):
                self.ledger.hold(tensors_of(part))
        return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}

    def _batch(self, parts: int) -> dict[str, Tensor]:
        of_picture, images = picture_shapes(self.student.config), parts * self.images
        with self.ledger.during(STUDENT, FORWARD):
            pictures = {
                name: torch.ones(images, *shape, dtype=torch.float if name == "pixel_values" else torch.long)
                for name, shape in of_picture.items()
            }
            tokens = torch.ones(parts * self.texts, self.tokens, dtype=torch.long)
            return pictures | {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    def _encode(self, batch: dict[str, Tensor]) -> SDSCLIPOutput:
        dtype = torch.bfloat16 if self.config.bf16 else torch.float16 if self.config.fp16 else None
        with torch.autocast("cpu", dtype) if dtype else nullcontext():
            output = self.student(**batch)
        output.image_embeds, output.text_embeds = output.image_embeds.float(), output.text_embeds.float()
        return output

    def _contrastive(self, images: Tensor, texts: Tensor, output: SDSCLIPOutput) -> Tensor:
        captions, others = texts[: len(images)], texts[len(images) :]
        negatives = others if self.config.hard_negatives else None
        options = {"negative_embeds": negatives, "chunk_size": self.config.contrastive_chunk_size}
        if self.form == "sigmoid":
            return sigmoid_loss(images, captions, output.logit_scale, output.logit_bias, **options)
        return contrastive_loss(images, captions, output.logit_scale, **options)

    def _cache_gradients(self, batch: dict[str, Tensor], parts: int) -> list[Tensor]:
        """The first pass of [`grad_cache`]: all mini-batches without gradient, and the loss of their embeddings."""
        with torch.no_grad(), self.ledger.during(STUDENT, FORWARD, parts):
            output = self._encode(batch)
        images, texts = (
            embeds.new_empty(parts * len(embeds), embeds.shape[1], requires_grad=True)
            for embeds in (output.image_embeds, output.text_embeds)
        )
        loss = self._contrastive(images, texts, output)
        return [images, texts, *torch.autograd.grad(loss, [images, texts])]

    def _forward_and_backward(self, batch: dict[str, Tensor]) -> None:
        output = self._encode(batch)
        if self.config.contrastive_batch_size is None:
            loss = self._contrastive(output.image_embeds, output.text_embeds, output)
        else:  # each embedding times its cached gradient
            loss = output.image_embeds.square().sum() + output.text_embeds.square().sum()
        if self.teacher is not None:
            loss = loss + self._distillation(output.latents)
        with self.ledger.during(DENOISER if self.teacher else STUDENT, BACKWARD, 1):
            loss.backward()

    def _distillation(self, latents: Tensor) -> Tensor:
        """L_SDS as [`terms.DistillationTerm`] computes it, with the gap to other captions where that is measured."""
        teacher, ledger = self.teacher, self.ledger
        rows = math.ceil(len(latents) * self.config.distill_fraction)
        latents = latents[:rows]
        latents.register_hook(self._enter_student)
        with ledger.during(ENCODER, FORWARD):
            if self.caches_prompts:
                prompts = {name: value.new_empty(rows, *value.shape[1:]) for name, value in self.prompt.items()}
            else:
                prompts = prompts_of(teacher, rows)
        draw = torch.zeros(rows, dtype=torch.long), torch.empty(latents.shape)
        options = {"reading": self.config.sds_reading, "gradient": self.config.sds_gradient}
        with ledger.during(DENOISER, FORWARD):
            error = teacher.denoising_error(latents, prompts, *draw, **options)
        if self.config.health_steps:
            with ledger.during(DENOISER, GAP), torch.no_grad():
                teacher.denoising_error(latents, prompts, *draw, **options)
        return error.mean()

    def _enter_student(self, gradient: Tensor) -> None:
        """The backward pass has left the denoiser."""
        self.ledger.phase = Phase(STUDENT, BACKWARD)

    def _averaged(self, flops: dict[Phase, int]) -> dict[Phase, float]:
        """The operations of a step, where some belong to one step of many."""
        config = self.config
        every = {part: 1 if part == STUDENT else config.distill_every for part in PARTS}
        return {
            phase: count / every[phase.part] / (config.health_steps if phase.stage == GAP else 1)
            for phase, count in flops.items()
        }

    def _checkpoint_activations(self) -> None:
        options = dict(self.config.gradient_checkpointing_kwargs or {})
        of_model = {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
        getattr(self.student, f"{CHECKPOINTING}_enable")(options or None, **of_model)


def _optimizer_bytes(config: SDSCLIPConfig) -> float | None:
    """What the optimiser keeps for a weight: found on one small matrix; None where it cannot be made here."""
    weight = nn.Parameter(torch.zeros(64, 64))
    weight.grad = torch.zeros_like(weight)
    try:
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(config)
        optimizer = optimizer_class([weight], **options)
        optimizer.step()
    except (ImportError, RuntimeError, ValueError, TypeError):
        return None
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(value.nbytes for value in kept) / weight.numel()
