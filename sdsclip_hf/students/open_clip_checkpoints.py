"""A CLIP in open_clip's or OpenAI's form, in a file, a folder or on the Hub, loaded as transformers' CLIPModel."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import BaseImageProcessor, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.utils import cached_file

from sdsclip_hf.common.errors import expand, explain_loading, read_json
from sdsclip_hf.students.open_clip_architectures import QUICK, checked_model_cfg, model_cfg_of, name_of
from sdsclip_hf.students.open_clip_format import (
    ACTIVATIONS,
    plain_names,
    shapes_of,
    to_clip_config,
    to_clip_weights,
)
from sdsclip_hf.students.weight_files import WeightFile, read_weights

CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
SCHEMES = ("hf-hub:", "local-dir:")  # by which open_clip calls them
TOKENIZER = "openai/clip-vit-base-patch32"
FOREIGN = {
    "visual.trunk.": "an image tower of timm's",
    "visual.layer1.": "a ResNet",
    "text.transformer.embeddings.": "a text tower of another library's",
    "text_decoder.": "a text decoder (CoCa)",
    "image_encoder.": "a MobileCLIP",
    "vision_model.": "a model in transformers' own form, whose folder with config.json can be given as it is",
}


@dataclass(frozen=True)
class OpenClipOptions:
    """What a user has to tell of a checkpoint that does not tell it.

    Args:
        architecture: of a file of weights, by open_clip's name, or a file of json in its form.
        processor: a folder or Hub id whose tokenizer spells the captions; default: the one beside the checkpoint, or
            OpenAI's.
        checkpoint_key: the key of the file under which the weights stand, where it has several.
    """

    architecture: str | None = None
    processor: str | None = None
    checkpoint_key: str | None = None

    def check_needed(self, name: str) -> None:
        """Raise ValueError if something was told of a checkpoint in transformers' form, which tells all itself."""
        told = [f"--{field.name}" for field in fields(self) if getattr(self, field.name) is not None]
        if told:
            raise ValueError(
                f"{name} is in transformers' form, which tells all by itself; leave {' and '.join(told)} out."
            )


@dataclass(frozen=True)
class OpenClipCheckpoint:
    """Where a checkpoint lies.

    Args:
        place: a file of weights; else a folder or Hub id with ``open_clip_config.json``.
        revision: on the Hub.
    """

    place: str
    revision: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a file of weights alone."""
        return Path(self.place).is_file()

    def path_of(self, *names: str) -> Path | None:
        """The first of the files that is there."""
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        found = (cached_file(self.place, name, revision=self.revision, **quiet) for name in names)
        return next((Path(path) for path in found if path is not None), None)


def find_open_clip(name_or_path: str | Path, revision: str | None = None) -> OpenClipCheckpoint | None:
    """Where a name leads to, if to a file of weights or to open_clip's layout without transformers' beside it; else None."""
    name = str(name_or_path)
    bare = next((name.removeprefix(scheme) for scheme in SCHEMES if name.startswith(scheme)), None)
    if bare is not None:
        bare, _, asked = bare.partition("@") if name.startswith(SCHEMES[0]) else (bare, "", "")
        return OpenClipCheckpoint(expand(bare), revision or asked or None)
    path = Path(name).expanduser()
    if path.is_file():
        return OpenClipCheckpoint(str(path))
    found = OpenClipCheckpoint(expand(name), revision)
    try:
        is_other = found.path_of("config.json") or not found.path_of(CONFIG_FILE)
    except (OSError, ValueError):  # there is no such repository, or it cannot be read: told by what looks next
        return None
    return None if is_other else found


def open_clip_config(checkpoint: OpenClipCheckpoint, options: OpenClipOptions) -> CLIPConfig:
    """The configuration of the CLIPModel that a checkpoint becomes, without its weights where something else tells it.

    Raises:
        OSError, ValueError: see [`load_open_clip`].
    """
    if not checkpoint.is_file:
        return to_clip_config(_repository_config(checkpoint)["model_cfg"])
    if options.architecture:
        return to_clip_config(model_cfg_of(options.architecture))
    return _read_file(Path(checkpoint.place), options).config


def load_open_clip(
    checkpoint: OpenClipCheckpoint, options: OpenClipOptions, dtype: torch.dtype = torch.float32
) -> tuple[CLIPModel, CLIPProcessor, dict[str, str | None]]:
    """A checkpoint in open_clip's or OpenAI's form.

    Returns:
        The model; its processor; and what it was read as, for the record: ``architecture``, ``activation``, what
        ``activation_told_by``, and the ``checkpoint_key`` of the file under which the weights stood.

    Raises:
        OSError: a file cannot be had or read, the tokenizer's among them.
        ValueError: the weights are of another architecture, or what they do not tell was not told; or the file holds
            more than tensors.
    """
    read = _read_file(Path(checkpoint.place), options) if checkpoint.is_file else _read_repository(checkpoint)
    weights = to_clip_weights(read.weights, read.config)
    # OpenAI's matrices are in half precision beside norms that are not: all in float32 first.
    model: Any = CLIPModel.from_pretrained(None, config=read.config, state_dict=weights, dtype=torch.float32)
    model.to(dtype).eval()
    model.name_or_path = model.config._name_or_path = checkpoint.place  # which adapters name as their base
    tokenizer = load_tokenizer(checkpoint, options, read.config)
    return model, CLIPProcessor(_image_processor(read.config, read.preprocess_cfg), tokenizer), read.record


@dataclass(frozen=True)
class _Read:
    config: CLIPConfig
    weights: dict[str, Tensor]
    preprocess_cfg: Mapping[str, Any]
    record: dict[str, str | None]


def _read_file(path: Path, options: OpenClipOptions) -> _Read:
    told = options.architecture and model_cfg_of(options.architecture)
    file = read_weights(path, options.checkpoint_key)
    _refuse_foreign(path, file.tensors)
    if told:
        return _fitted(path, file, told, {}, options.architecture, "--architecture")
    architecture = _architecture(path, plain_names(file.tensors), file.activation)
    return _fitted(path, file, model_cfg_of(architecture), {}, architecture, "the file")


def _read_repository(checkpoint: OpenClipCheckpoint) -> _Read:
    content = _repository_config(checkpoint)
    to_clip_config(content["model_cfg"])  # what has no counterpart is told before large files are fetched
    path = checkpoint.path_of(*WEIGHT_FILES)
    if path is None:
        raise OSError(f"it has none of {', '.join(WEIGHT_FILES)}")
    return _fitted(
        path, read_weights(path), content["model_cfg"], content.get("preprocess_cfg") or {}, None, CONFIG_FILE
    )


def _repository_config(checkpoint: OpenClipCheckpoint) -> dict[str, Any]:
    path = checkpoint.path_of(CONFIG_FILE)
    if path is None:
        raise OSError(f"it has no {CONFIG_FILE}")
    content = read_json(path, "Get it anew.")
    return content | {"model_cfg": checked_model_cfg(content.get("model_cfg"), str(path))}


def _fitted(
    path: Path,
    file: WeightFile,
    model_cfg: Mapping[str, Any],
    preprocess_cfg: Mapping[str, Any],
    architecture: str | None,
    told_by: str,
) -> _Read:
    """What was read, where the weights are those of the configuration."""
    config, activation = to_clip_config(model_cfg), ACTIVATIONS[bool(model_cfg.get("quick_gelu"))]
    weights = plain_names(file.tensors)
    if file.activation not in (None, activation):
        raise ValueError(
            f"{path} tells that its activation is {file.activation}, and {architecture or CONFIG_FILE} has {activation}; "
            "give another --architecture."
        )
    _check_fit(path, weights, config, architecture or CONFIG_FILE)
    named = name_of(weights)
    architecture = architecture or (named and named + QUICK * (activation == "quick_gelu"))
    record = {"architecture": architecture, "activation": activation, "activation_told_by": told_by}
    return _Read(config, weights, preprocess_cfg, record | {"checkpoint_key": file.entry})


def _refuse_foreign(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for beginning, what in FOREIGN.items():
        if any(name.startswith(beginning) for name in tensors):
            raise ValueError(
                f"{path} holds {what}: only open_clip's own ViT and text transformer, and OpenAI's, have a CLIPModel that "
                "computes the same. Take another checkpoint, or this one in transformers' form."
            )


def _architecture(path: Path, weights: Mapping[str, Tensor], activation: str | None) -> str:
    """What the weights are of by their shapes, where the file tells the activation; else the question."""
    name = name_of(weights)
    if name is None:
        raise ValueError(
            f"{path} is of no architecture that is known by its shapes; its first keys are {', '.join(list(weights)[:4])}. "
            "Give --architecture a file of json in open_clip's form, or another file of weights."
        )
    if activation is None:
        raise ValueError(
            f"{path} is by its shapes a {name}, and no weights tell their activation. Give --architecture {name}{QUICK} for "
            f"OpenAI's weights and those tuned from them, or --architecture {name} for those that open_clip trained with "
            "gelu, such as LAION's."
        )
    return name + QUICK * (activation == "quick_gelu")


def _check_fit(path: Path, weights: Mapping[str, Tensor], config: CLIPConfig, architecture: str) -> None:
    """Raise ValueError unless the weights are those of a configuration, no fewer and no more."""
    wanted, found = shapes_of(config), {name: tuple(value.shape) for name, value in weights.items()}
    if wanted == found:
        return
    wrong = [
        f"{name} is {found[name]}, not {shape}" for name, shape in wanted.items() if found.get(name, shape) != shape
    ]
    wrong += [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} is one too many" for name in found if name not in wanted]
    named = name_of(weights)
    remedy = f"give --architecture {named}{QUICK} or {named}" if named else "give --architecture what it is"
    remedy = f"By its shapes it is {f'a {named}' if named else 'of no architecture that has a name'}: {remedy}"
    if architecture == CONFIG_FILE:
        remedy = f"{CONFIG_FILE} and the weights beside it are not of one model: get both anew"
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    raise ValueError(f"{path} does not hold the weights of {architecture}: {'; '.join(wrong[:3])}{more}. {remedy}.")


def load_tokenizer(checkpoint: OpenClipCheckpoint, options: OpenClipOptions, config: CLIPConfig) -> CLIPTokenizer:
    """The tokenizer that goes with a checkpoint.

    Raises:
        OSError: it cannot be had.
        ValueError: it marks the ends of captions by other numbers than the text tower knows.
    """
    beside = options.processor is None and not checkpoint.is_file and checkpoint.path_of(*TOKENIZER_FILES)
    found = checkpoint if beside else OpenClipCheckpoint(expand(options.processor or TOKENIZER))
    name = found.place
    with explain_loading("the tokenizer", name, "--processor"):
        if not found.path_of(*TOKENIZER_FILES):  # without them transformers makes one that knows no words
            raise OSError(f"it has none of {', '.join(TOKENIZER_FILES)}")
        tokenizer = CLIPTokenizer.from_pretrained(name, revision=found.revision or "main")
    text = cast(Any, config.text_config)
    if (tokenizer.bos_token_id, tokenizer.eos_token_id) != (text.bos_token_id, text.eos_token_id):
        raise ValueError(
            f"the tokenizer of {name} begins and ends captions by {tokenizer.bos_token_id} and {tokenizer.eos_token_id}, "
            f"and the text tower of {checkpoint.place} knows {text.bos_token_id} and {text.eos_token_id}; give --processor "
            "the one that it was trained with."
        )
    tokenizer.model_max_length = text.max_position_embeddings
    return tokenizer


def _image_processor(config: CLIPConfig, cfg: Mapping[str, Any]) -> BaseImageProcessor:
    """How open_clip prepares pictures for the model; what ``cfg`` does not tell is as OpenAI did it."""
    mode, size = cfg.get("resize_mode") or "shortest", cast(Any, config.vision_config).image_size
    if mode == "longest":
        raise ValueError(
            "its pictures are fitted in by their longer side and padded (resize_mode longest), which transformers' "
            "CLIPImageProcessor does not do. Take another checkpoint."
        )
    square = {"height": size, "width": size}
    resample = PILImageResampling.BILINEAR if cfg.get("interpolation") == "bilinear" else PILImageResampling.BICUBIC
    return CLIPImageProcessorPil(  # open_clip has Pillow resize, too
        size=square if mode == "squash" else {"shortest_edge": size},
        do_center_crop=mode != "squash",
        crop_size=square,
        resample=resample,
        image_mean=list(cfg.get("mean") or OPENAI_CLIP_MEAN),
        image_std=list(cfg.get("std") or OPENAI_CLIP_STD),
    )
