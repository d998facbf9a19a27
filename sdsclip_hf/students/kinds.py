"""How the dual encoders of transformers differ, told once: what they take and give, their temperature, their captions.

Most is found by looking at the model. What cannot be seen is how SigLIP was trained: with captions in small letters, padded
to the full length, and without a mask.
"""

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdsclip_hf.common.reading import CaptionReader
from sdsclip_hf.common.tokenizers import max_length
from sdsclip_hf.students.onednn import FastLinear

FEATURES = ("get_image_features", "get_text_features")
SIGLIP = {"siglip", "siglip2"}  # the second are those of any picture's shape; SigLIP 2 of one size is of the first type
CAUSAL = {
    "clip",
    "metaclip_2",
}  # whose text towers see nothing behind the end of a caption, where the embedding is taken
SIGLIP2_WORDS = 256_000
TEMPERATURES = ("logit_scale", "temperature", "logit_bias")  # the second divides
LARGEST_SCALE = 100.0
SAME_PADDING = 1e-3  # of the largest element of an embedding


@lru_cache
def inputs_of(model: type, function: str) -> tuple[str, ...]:
    """What the function of a model's class takes by name."""
    found = list(inspect.signature(getattr(model, function)).parameters.values())[1:]
    return tuple(one.name for one in found if one.kind is not inspect.Parameter.VAR_KEYWORD)


def image_features(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The embeddings of B pictures, (B, D), not of unit length.

    Args:
        model: a dual encoder.
        inputs: what its image processor gives; what the model does not take is left out.
    """
    taken = inputs_of(type(model), FEATURES[0])
    return _pooled(cast(Any, model).get_image_features(**{name: inputs[name] for name in inputs if name in taken}))


def text_features(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The embeddings of M captions (M, L), (M, D), not of unit length; models trained without the mask do not get it."""
    mask = None if model_type(model) in SIGLIP else attention_mask
    return _pooled(cast(Any, model).get_text_features(input_ids=input_ids, attention_mask=mask))


def needs_mask(model: nn.Module, attention_mask: Tensor, device: torch.device) -> bool:
    """Whether captions are to be given with their mask.

    On a GPU a mask keeps attention from its fastest kernels. One that hides nothing is left out, and causal towers do
    without where padding stands behind the captions; so do SigLIP's, which were trained without.

    Args:
        model: a dual encoder.
        attention_mask: (M, L), on the CPU.
        device: where it computes.
    """
    kind = model_type(model)
    if device.type == "cpu":
        return True
    if kind in CAUSAL:
        return bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any())
    return kind not in SIGLIP and not attention_mask.all()


def model_type(model: nn.Module) -> str | None:
    """By which transformers knows the model's architecture."""
    return getattr(cast(Any, model).config, "model_type", None)


def _pooled(features) -> Tensor:
    return features if isinstance(features, Tensor) else features.pooler_output


def logit_scale(model: nn.Module) -> Tensor:
    """The factor on cosines, scalar."""
    if not hasattr(model, "logit_scale"):
        return 1 / _scalar(cast(Tensor, model.temperature))
    exponent, limit = cast(Tensor, model.logit_scale), getattr(model, "max_log_logit_scale", None)
    return _scalar(exponent if limit is None else exponent.clamp(0.0, limit)).exp()


def logit_bias(model: nn.Module) -> Tensor | None:
    """What is added to the logits, scalar; None where nothing is."""
    return _scalar(cast(Tensor, model.logit_bias)) if hasattr(model, "logit_bias") else None


def _scalar(value: Tensor) -> Tensor:
    return value.reshape(()) if value.ndim else value


def temperatures(model: nn.Module) -> dict[str, Tensor]:
    """By name the parameters or buffers that the factor and the bias are made of."""
    return {name: getattr(model, name) for name in TEMPERATURES if hasattr(model, name)}


def is_below_limit(model: nn.Module) -> bool:
    """Whether the factor on cosines is at most 100, where OpenAI kept CLIP's. SigLIP's and TIPSv2's are not."""
    scale = logit_scale(model).detach()
    return scale.is_meta or scale.item() <= LARGEST_SCALE * 1.001  # the CLIPs stand at 100 but for rounding


@torch.no_grad()
def clamp_scale(model: nn.Module) -> None:
    """Bring the factor on cosines down to 100."""
    if hasattr(model, "logit_scale"):
        cast(Tensor, model.logit_scale).clamp_(max=math.log(LARGEST_SCALE))
    else:
        cast(Tensor, model.temperature).clamp_(min=1 / LARGEST_SCALE)


def caption_reader(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> CaptionReader:
    """Reads captions as the model was trained to.

    Raises:
        ValueError: neither the tokenizer nor the text tower tells how long a caption may be.
    """
    text, kind = getattr(model.config, "text_config", None), model_type(model)
    length = max_length(tokenizer, text)
    if kind in SIGLIP:
        lower = kind == "siglip2" or getattr(text, "vocab_size", None) == SIGLIP2_WORDS
        lower = lower or type(tokenizer).__name__.startswith("Gemma")
        return CaptionReader(tokenizer, length, to_full_length=True, lower=lower, padding_side="right")
    reader = CaptionReader(tokenizer, length)
    if kind == "clip" or _ignores_padding(model, reader):
        return reader
    return CaptionReader(tokenizer, length, to_full_length=True)


def _ignores_padding(model: PreTrainedModel, reader: CaptionReader) -> bool:
    """Whether a short caption has the same embedding however it is padded."""
    ids = reader.tokenize(["a photo"])
    with inference(model):
        short, full = (
            text_features(model, **{name: value.to(model.device) for name, value in reader.pad(ids, to_full).items()})
            for to_full in (False, True)
        )
    return bool((short - full).abs().max() < SAME_PADDING * full.abs().max())


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout; afterwards the model is in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), FastLinear():
            yield
    finally:
        model.train(was_training)
