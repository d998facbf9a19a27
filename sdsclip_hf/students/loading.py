"""A student from a folder or the Hub: its class, its weights and its processor, checked for what training needs."""

from pathlib import Path
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from sdsclip_hf.common.errors import expand, explain_loading
from sdsclip_hf.common.reading import CaptionReader
from sdsclip_hf.common.tokenizers import check_words
from sdsclip_hf.students.kinds import FEATURES, TEMPERATURES, caption_reader
from sdsclip_hf.students.layers import TOWERS
from sdsclip_hf.students.open_clip_checkpoints import (
    OpenClipOptions,
    find_open_clip,
    load_open_clip,
    open_clip_config,
)

OPTION = "--model_name_or_path"


def is_dual_encoder(model_type: str | None) -> bool:
    """Whether transformers' models of a type embed images and captions apart."""
    if model_type is None or model_type not in CONFIG_MAPPING:
        return False
    found = MODEL_MAPPING.get(CONFIG_MAPPING[model_type], None)
    return isinstance(found, type) and all(hasattr(found, function) for function in FEATURES)


def student_config(name: str, revision: str | None = None, options: OpenClipOptions | None = None) -> PretrainedConfig:
    """The configuration of a student, no weights loaded. The arguments are those of [`load_student`].

    Raises:
        OSError: the folder or Hub id cannot be loaded.
        ValueError: it holds a model of another kind.
    """
    options = options or OpenClipOptions()
    with explain_loading("the student", name, OPTION):
        if checkpoint := find_open_clip(name, revision):
            return open_clip_config(checkpoint, options)
        options.check_needed(name)
        content = CLIPConfig.get_config_dict(name, revision=revision)[0]
        if not content:
            raise OSError("it has no config.json")
        kind = content.get("model_type")
        if kind == "clip":
            return CLIPConfig.from_dict(content)
        if not is_dual_encoder(kind):
            raise ValueError(
                f"{name!r} holds a model of type {kind!r}, which transformers knows as no dual encoder: it does not embed "
                f"images and captions apart. Give {OPTION} a CLIP, SigLIP, MetaCLIP 2, AltCLIP or another such checkpoint."
            )
        return AutoConfig.from_pretrained(name, revision=revision)


def make_model(config: PretrainedConfig) -> PreTrainedModel:
    """A student with random weights, on the device of the context."""
    return cast(type, MODEL_MAPPING[type(config)])(config)


def embed_dim(config: PretrainedConfig) -> int:
    """D, the width of the space that images and captions share."""
    text = getattr(config, "text_config", None)
    widths = (getattr(config, "projection_dim", None), getattr(text, "projection_size", None))
    return next((width for width in widths if width), None) or cast(Any, text).hidden_size


def picture_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that one picture becomes, by name.

    Models of any picture's shape, such as SigLIP 2 NaFlex, take patches, which of them are there, and rows and columns.
    """
    vision = cast(Any, config).vision_config
    if patches := getattr(vision, "num_patches", None):
        pixels = vision.num_channels * vision.patch_size**2
        return {"pixel_values": (patches, pixels), "pixel_attention_mask": (patches,), "spatial_shapes": (2,)}
    size = vision.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return {"pixel_values": (getattr(vision, "num_channels", 3), height, width)}


def load_student(
    name_or_path: str | Path, revision: str | None = None, options: OpenClipOptions | None = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A dual encoder (float32 master weights) and its processor from a file, a folder or the Hub.

    Args:
        name_or_path: a folder that ``save_pretrained`` wrote, or a Hub id, or a checkpoint in open_clip's form.
        revision: branch, tag or commit on the Hub.
        options: what a checkpoint in open_clip's form does not tell.

    Returns:
        The model, of its own class, and its processor.

    Raises:
        OSError: the folder or Hub id cannot be loaded.
        ImportError: its tokenizer or image processor needs a package that is not installed.
        ValueError: it holds a model of another kind.

    Example:

    ```python
    from sdsclip_hf.shapes import model_path
    from sdsclip_hf.students.loading import load_student

    model, processor = load_student(model_path("student"))  # or "google/siglip2-base-patch16-224"
    print(type(model).__name__, model.dtype)  # CLIPModel torch.float32
    ```
    """
    name, options = expand(name_or_path), options or OpenClipOptions()
    if checkpoint := find_open_clip(name, revision):
        with explain_loading("the student", name, OPTION):
            model, processor, _ = load_open_clip(checkpoint, options)
        read_captions(processor, model)
        return model, processor
    revision = revision or "main"
    is_clip = student_config(name, revision, options).model_type == "clip"
    with explain_loading("the student", name, OPTION):
        model = (CLIPModel if is_clip else AutoModel).from_pretrained(name, dtype=torch.float32, revision=revision)
    processor = load_processor(name, revision, CLIPProcessor if is_clip else AutoProcessor)
    read_captions(processor, model)
    return model, processor


def load_processor(name: str, revision: str | None = None, of_class: type = AutoProcessor) -> ProcessorMixin:
    """A student's processor alone.

    Raises:
        OSError: the folder or Hub id cannot be loaded.
        ImportError: it needs a package that is not installed.
    """
    with explain_loading("the student", name, OPTION):
        return of_class.from_pretrained(name, revision=revision or "main")


def load_clip(name_or_path: str | Path, revision: str | None = None) -> tuple[CLIPModel, CLIPProcessor]:
    """As [`load_student`], of a CLIP alone.

    Args:
        name_or_path: a folder that ``save_pretrained`` wrote, or a Hub id.
        revision: branch, tag or commit on the Hub.

    Returns:
        The CLIPModel and its CLIPProcessor.

    Raises:
        OSError: the folder or Hub id cannot be loaded.
        ValueError: it holds a model of another type.

    Example:

    ```python
    from sdsclip_hf.shapes import model_path
    from sdsclip_hf.students.loading import load_clip

    clip, processor = load_clip(model_path("student"))  # or "openai/clip-vit-base-patch32"
    print(type(clip).__name__, clip.dtype)  # CLIPModel torch.float32
    ```
    """
    kind = student_config(expand(name_or_path), revision).model_type
    if kind != "clip":
        raise ValueError(f"{str(name_or_path)!r} holds a model of type {kind!r}, not 'clip'; load it by load_student.")
    return cast(tuple[CLIPModel, CLIPProcessor], load_student(name_or_path, revision))


def check_dual_encoder(model: nn.Module) -> None:
    """Raise ValueError unless a model embeds images and captions apart."""
    for part in FEATURES:
        if not hasattr(model, part):
            raise ValueError(
                f"a {type(model).__name__} does not embed images and captions apart (it has no {part}); give an "
                "image-text dual encoder such as CLIP or SigLIP."
            )


def check_student(model: nn.Module) -> None:
    """Raise ValueError unless this is a dual encoder without adapters, of the class that its configuration names."""
    if any(isinstance(part, BaseTunerLayer) for part in model.modules()):
        raise ValueError(
            "the model has adapters inside, of an earlier trainer or of get_peft_model. Load it anew, or merge them first: "
            "model.merge_and_unload()."
        )
    check_dual_encoder(model)
    lacks = [name for name in TOWERS.values() if not hasattr(model, name)]
    lacks += [] if any(hasattr(model, name) for name in TEMPERATURES[:2]) else [" or ".join(TEMPERATURES[:2])]
    if lacks:
        raise ValueError(
            f"a {type(model).__name__} cannot be a student: it has no {', no '.join(lacks)}. Give {OPTION} a CLIP, SigLIP "
            "or another dual encoder of two towers and a temperature."
        )
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules()):
        raise ValueError(
            f"a {type(model).__name__} cannot be a student: it has batch norms, whose statistics would move beside the "
            f"weights and are in no checkpoint. Give {OPTION} a CLIP, SigLIP or another dual encoder without."
        )
    kind, own = cast(Any, model).config.model_type, type(cast(Any, model).config).model_type
    if kind != own:
        raise ValueError(
            f"the student is a {type(model).__name__}, but its configuration is that of a {kind!r}, of which it would read "
            "the weights wrongly; load it by AutoModel.from_pretrained."
        )


def check_processor(processor: ProcessorMixin) -> None:
    """Raise ValueError unless a processor has an image processor, and a tokenizer that knows words.

    Without its files transformers makes some tokenizers of special tokens alone, to which all captions are one.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not hasattr(processor, "image_processor"):
        raise ValueError(
            f"a {type(processor).__name__} is no processor of an image processor and a tokenizer; give the model's own, as "
            "AutoProcessor.from_pretrained loads it."
        )
    check_words(tokenizer)


def read_captions(processor: ProcessorMixin, model: PreTrainedModel) -> CaptionReader:
    """How the model reads captions; its tokenizer cuts them from here on at what the text tower reads.

    Raises:
        ValueError: the processor is of another kind, or its tokenizer's files are incomplete.
    """
    check_processor(processor)
    tokenizer = cast(Any, processor).tokenizer
    reader = caption_reader(model, tokenizer)
    tokenizer.model_max_length = reader.max_length
    return reader
