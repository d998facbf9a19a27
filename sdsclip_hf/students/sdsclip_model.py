"""The student: a dual encoder and the linear latent mapper h_w as one module, which of its weights train, and its export."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel, PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import ModelOutput

from sdsclip_hf.common.compiling import allow_graphs
from sdsclip_hf.common.writing import whole_folder
from sdsclip_hf.config import TRAINABLE
from sdsclip_hf.students import kinds
from sdsclip_hf.students.latent_mapper import LatentMapper
from sdsclip_hf.students.layers import PROJECTIONS, add_adapter, candidates, chosen_prefixes, lora_config
from sdsclip_hf.students.loading import check_student
from sdsclip_hf.students.loading import load_clip as load_clip
from sdsclip_hf.students.processor_files import save_processor
from sdsclip_hf.students.unread import numbers_unread

MAPPER_FILE = "latent_mapper.safetensors"
EXPORTED = ("adapter", MAPPER_FILE, "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
EXPORTED += ("processor_config.json",)  # of earlier versions


@dataclass
class SDSCLIPOutput(ModelOutput):
    """What one pass of the student gives.

    Args:
        image_embeds: f_phi(x), unit length, (B, D).
        text_embeds: g(c), unit length, (M, D): of the M texts that were given, whether captions or candidates.
        logit_scale: the exponentiated factor on cosines, scalar.
        logit_bias: what SigLIP adds to them, scalar; None of others.
        latents: z0 = h_w(f_phi(x)), (B, C, h, w); None without a mapper.
    """

    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    logit_scale: Tensor | None = None
    logit_bias: Tensor | None = None
    latents: Tensor | None = None


class SDSCLIPModel(nn.Module):
    """CLIP and the latent mapper in one module, so that the optimiser, DDP, FSDP and resuming see a single model.

    CLIP stands for any dual encoder of transformers: SigLIP, MetaCLIP 2, AltCLIP and others work alike.

    Args:
        clip: the CLIP to fine-tune.
        mapper: h_w; None when no term needs latents.
        trainable: ``layernorm`` (the LayerNorm or RMSNorm parameters, the paper's choice), ``lora`` or ``full``. The
            mapper always trains.
        train_vision, train_text: whether the image tower and the text tower train.
        train_projections: whether the two projections to the joint space train; default: with ``full`` alone.
        train_logit_scale: whether the temperature trains. Where it begins at or below ln 100, it is kept there.
        train_logit_bias: whether SigLIP's bias trains; default: with the temperature.
        peft_config: the whole PEFT configuration of ``lora``; it takes the place of the three that follow and of the
            choice of towers.
        lora_r, lora_alpha, lora_dropout: rank, scaling and dropout of ``lora``.
        lora_target_modules: endings of the names of the linear layers that ``lora`` adapts, in the chosen towers; default:
            all in their stacks of layers.

    Raises:
        ValueError: an unknown ``trainable``, LoRA targets that match nothing, or nothing left to train.

    Example:

    ```python
    from sdsclip_hf import LatentMapper, SDSCLIPModel
    from sdsclip_hf.shapes import load_shapes, model_path
    from sdsclip_hf.students.sdsclip_model import load_clip

    clip, processor = load_clip(model_path("student"))
    mapper = LatentMapper(clip.config.projection_dim, latent_shape=(4, 8, 8))
    student = SDSCLIPModel(clip, mapper, trainable="layernorm")
    row = load_shapes("test", per_scene=1)[0]
    batch = processor(text=row["caption"], images=[row["image"]], return_tensors="pt", padding=True)
    output = student(**batch)
    print(output.latents.shape, len(output.text_embeds))  # torch.Size([1, 4, 8, 8]) 12
    student.export("outputs/export", processor)  # what CLIPModel.from_pretrained loads
    ```
    """

    clip: PreTrainedModel | PeftModel
    mapper: LatentMapper | None
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False

    def __init__(
        self,
        clip: PreTrainedModel,
        mapper: LatentMapper | None = None,
        *,
        trainable: str = "layernorm",
        train_vision: bool = True,
        train_text: bool = True,
        train_projections: bool | None = None,
        train_logit_scale: bool = False,
        train_logit_bias: bool | None = None,
        peft_config: PeftConfig | None = None,
        lora_r: int = 16,
        lora_alpha: int = 32,
        lora_dropout: float = 0.0,
        lora_target_modules: tuple[str, ...] | None = None,
    ):
        super().__init__()
        if trainable not in TRAINABLE:
            raise ValueError(f"unknown trainable {trainable!r}; choose from {', '.join(TRAINABLE)}.")
        if peft_config is not None and trainable != "lora":
            raise ValueError(
                f"peft_config needs trainable='lora', but trainable is {trainable!r}; set --trainable lora."
            )
        check_student(clip)
        if train_projections and not any(hasattr(clip, name) for name in PROJECTIONS.values()):
            raise ValueError(
                f"train_projections is on, but a {type(clip).__name__} has no projections to the joint space; leave "
                "--train_projections out."
            )
        train_projections = trainable == "full" if train_projections is None else train_projections
        prefixes = chosen_prefixes(train_vision, train_text, train_projections)
        clip = clip.float().requires_grad_(False)
        if trainable == "lora" and (peft_config or prefixes):
            config = peft_config or lora_config(clip, prefixes, lora_r, lora_alpha, lora_dropout, lora_target_modules)
            self.clip = add_adapter(clip, config)
        else:
            for name, parameter in candidates(clip, only_norms=trainable == "layernorm"):
                parameter.requires_grad_(name.startswith(prefixes))
            self.clip = clip
        self.mapper = mapper
        self.trainable = trainable
        self._compiled: dict[str, Callable[..., Tensor]] = {}
        train_logit_bias = train_logit_scale if train_logit_bias is None else train_logit_bias
        for name, value in kinds.temperatures(self.base_clip).items():
            value.requires_grad_(train_logit_bias if name == "logit_bias" else train_logit_scale)
        self._is_clamped = kinds.is_below_limit(self.base_clip)
        if not any(parameter.requires_grad for parameter in self.clip.parameters()):
            raise ValueError(
                f"nothing of CLIP would train with trainable={trainable!r}, train_vision={train_vision}, "
                f"train_text={train_text}, train_projections={train_projections}; switch a part on."
            )

    @property
    def base_clip(self) -> PreTrainedModel:
        """The dual encoder itself, inside its adapter if it has one."""
        return self.clip.get_base_model() if isinstance(self.clip, PeftModel) else self.clip  # pyright: ignore[reportReturnType]

    @property
    def has_adapter(self) -> bool:
        """Whether what trains is an adapter on CLIP."""
        return isinstance(self.clip, PeftModel)

    @property
    def config(self):
        return self.base_clip.config

    @property
    def device(self) -> torch.device:
        return next(iter(kinds.temperatures(self.base_clip).values())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(kinds.temperatures(self.base_clip).values())).dtype

    @property
    def image_inputs(self) -> tuple[str, ...]:
        """The names of the tensors that the image tower may take: ``pixel_values``, and with some models others."""
        return kinds.inputs_of(type(self.base_clip), "get_image_features")

    @property
    def trains_logit_scale(self) -> bool:
        """Whether the temperature trains, or the bias beside it."""
        return any(value.requires_grad for value in kinds.temperatures(self.base_clip).values())

    @property
    def _keys_to_ignore_on_save(self) -> set[str]:
        """What a checkpoint leaves out, since the base model has it; Trainer then expects these to be missing."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name for name in self.state_dict() if name not in trained and not name.startswith("mapper.")}

    def tie_weights(self) -> None:
        """Nothing is tied; Trainer calls this after loading a checkpoint without the frozen weights."""

    def trained_state_dict(self) -> dict[str, Tensor]:
        """The weights that train: LayerNorms, adapter or all of CLIP, and the mapper."""
        left_out = self._keys_to_ignore_on_save
        return {name: tensor for name, tensor in self.state_dict().items() if name not in left_out}

    def rebuilt(self, weights: dict[str, Tensor]) -> "SDSCLIPModel":
        """The same student once more, of all its weights, where this one has only a part of each."""
        adapter = (
            self.clip.peft_config[cast(str, self.clip.active_adapter)] if isinstance(self.clip, PeftModel) else None
        )
        with torch.random.fork_rng(devices=[]):  # what it is initialised with does not count
            mapper = self.mapper and LatentMapper(
                self.mapper.linear.in_features, self.mapper.latent_shape, self.mapper.unit_rms, self.mapper.scale
            )
            clip = type(self.base_clip)(self.config)
            student = SDSCLIPModel(clip, mapper, trainable=self.trainable, peft_config=adapter)
        student.load_state_dict(weights)
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(name in trained)
        return student.to(self.device).eval()

    def count_parameters(self) -> dict[str, int]:
        """Trained weights of CLIP and of the mapper, and all of CLIP's."""
        clip = list(self.clip.parameters())
        mapper = [] if self.mapper is None else list(self.mapper.parameters())
        return {
            "clip_trained": sum(parameter.numel() for parameter in clip if parameter.requires_grad),
            "mapper_trained": sum(parameter.numel() for parameter in mapper if parameter.requires_grad),
            "clip_all": sum(parameter.numel() for parameter in clip),
        }

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None, **options) -> None:
        """Recompute CLIP's activations in the backward pass instead of keeping them; options are the model's own."""
        for part in self._with_checkpoints():
            part.activation_checkpointing_enable(activation_checkpointing_kwargs, **options)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **options) -> None:
        """The same under the name that Trainer called it by before transformers 5.23."""
        for part in self._with_checkpoints():
            part.gradient_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def activation_checkpointing_disable(self) -> None:
        for part in self._with_checkpoints():
            part.activation_checkpointing_disable()

    def _with_checkpoints(self) -> list[PreTrainedModel]:
        """The model, or of one that only holds two others, these."""
        clip: Any = self.base_clip
        return [clip] if clip.supports_gradient_checkpointing else [clip.vision_model, clip.text_model]

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the temperature at or below ln 100, as OpenAI's CLIP does, where it began there."""
        if self._is_clamped:
            kinds.clamp_scale(self.base_clip)

    def start_weights(self) -> dict[str, Tensor]:
        """A copy of CLIP's weights that train, for [`go_back`]; of LoRA without the matrices A.

        Raises:
            ValueError: an adapter that is not W + B A with B at zero, so that weights would not go back in a line.
        """
        trained = {name: weight for name, weight in self.clip.named_parameters() if weight.requires_grad}
        others = [name for name in trained if "lora_" in name and ".lora_A." not in name]
        kinds = {config.peft_type for config in getattr(self.clip, "peft_config", {}).values()}
        if kinds - {PeftType.LORA} or any(".lora_B." not in name or trained[name].any() for name in others):
            raise ValueError(
                "wise_ft_alpha below 1 needs LoRA whose matrices B start at zero, without DoRA and without embeddings; "
                "change the peft_config, or leave --wise_ft_alpha out."
            )
        return {name: weight.detach().cpu().clone() for name, weight in trained.items() if ".lora_A." not in name}

    @torch.no_grad()
    def go_back(self, start: dict[str, Tensor], alpha: float) -> None:
        """Put CLIP's weights at (1 - alpha) * start + alpha * theta (WiSE-FT, arXiv 2109.01903); the mapper stays.

        Of LoRA, W + B A, the matrices B alone are moved, which start at zero, so that the merged weights obey the same.

        Args:
            start: what [`start_weights`] gave before the training.
            alpha: 0 for the start, 1 for the weights as they are.
        """
        weights = dict(self.clip.named_parameters())
        for name, first in start.items():
            weights[name].lerp_(first.to(weights[name]), 1 - alpha)

    def encode_images(self, pixel_values: Tensor, **others: Tensor) -> Tensor:
        """f_phi(x): (B, 3, H, W), and what else the image processor gives, to unit-length (B, D)."""
        return F.normalize(kinds.image_features(self.base_clip, {"pixel_values": pixel_values, **others}), dim=-1)

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """g(c): (B, L) to unit-length (B, D)."""
        return F.normalize(kinds.text_features(self.base_clip, input_ids, attention_mask), dim=-1)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Tensor
    ) -> SDSCLIPOutput:
        """Encode images (B, 3, H, W) and captions (M, L), and map the image embeddings to latents.

        Args:
            pixel_values, others: what the image processor gives.
            input_ids, attention_mask: what the tokenizer gives; the mask goes to models that were trained with one.
        """
        with numbers_unread() if self.is_compiled or pixel_values.device.type != "cpu" else nullcontext():
            if self.is_compiled:  # cloned, since a CUDA graph writes its next result in the same place
                image_embeds = self._compiled["images"](pixel_values, **others).clone()
                text_embeds = self._compiled["texts"](input_ids, attention_mask).clone()
            else:
                image_embeds = self.encode_images(pixel_values, **others)
                text_embeds = self.encode_texts(input_ids, attention_mask)
        return SDSCLIPOutput(
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            logit_scale=kinds.logit_scale(self.base_clip),
            logit_bias=kinds.logit_bias(self.base_clip),
            latents=None if self.mapper is None else self.mapper(image_embeds),
        )

    @property
    def is_compiled(self) -> bool:
        """Whether a pass would now go through graphs that [`compile_towers`] makes."""
        return self.training and bool(self._compiled)

    def compile_towers(self, **options: Any) -> None:
        """Pass what [`forward`] computes in training through ``torch.compile``, with a graph of its own for each shape.

        The towers are compiled apart, so that a new length of captions leaves the image tower alone, and under no other
        names than before. Evaluation, whose batches have many shapes, stays as it is.

        Args:
            options: ``backend`` and ``mode``, for one.
        """
        allow_graphs()
        towers = {"images": self.encode_images, "texts": self.encode_texts}
        self._compiled = {name: torch.compile(tower, dynamic=False, **options) for name, tower in towers.items()}

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_compiled": {}}  # a copy would compute with these weights

    def merged_clip(self) -> PreTrainedModel:
        """A plain model of the base's class, with the trained weights, adapters merged in; the student is left as it is."""
        clip = copy.deepcopy(self.clip)
        clip = clip.merge_and_unload() if isinstance(clip, PeftModel) else clip
        return clip.requires_grad_(True).eval()

    def export(self, folder: str | Path, processor: ProcessorMixin | None = None) -> None:
        """Write a plain model that ``AutoModel.from_pretrained`` loads, and beside it what the method adds.

        Args:
            folder: receives config.json, model.safetensors and the processor's files, ``latent_mapper.safetensors``,
                and for LoRA runs ``adapter/``, which PEFT loads on the base model.
            processor: the one that goes with the model.

        Raises:
            NoRoomError: the disk is full; an earlier export stays.
        """
        needs = sum(part.numel() * part.element_size() for part in self.parameters())
        with whole_folder(Path(folder), needs, replaces=EXPORTED) as new:
            self.merged_clip().save_pretrained(new)
            if processor is not None:
                save_processor(processor, new)
            if self.mapper is not None:
                self.mapper.save(new / MAPPER_FILE)
            if self.has_adapter:
                self.clip.save_pretrained(str(new / "adapter"))
