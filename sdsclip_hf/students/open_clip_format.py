"""The form in which open_clip and OpenAI's clip keep a CLIP, and transformers': configurations and weights, both ways.

One ViT and one text transformer in both. They differ in names, in queries, keys and values that stand in one matrix there,
and in projections that are transposed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

ACTIVATIONS = {False: "gelu", True: "quick_gelu"}  # by "quick_gelu" of open_clip's configuration
LAYERS = {
    "ln_1": ("layer_norm1",),
    "attn.in_proj_": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out_proj": ("self_attn.out_proj",),
    "ln_2": ("layer_norm2",),
    "mlp.c_fc": ("mlp.fc1",),
    "mlp.c_proj": ("mlp.fc2",),
}
NORMS = {
    "ln_final": "text_model.final_layer_norm",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
TABLES = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
}
PROJECTIONS = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
NO_WEIGHTS = (
    "attn_mask",
    "input_resolution",
    "context_length",
    "vocab_size",
)  # stand among them in OpenAI's and old files

# What of a configuration has a counterpart, and what changes nothing of the embeddings, with any value.
MODEL_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "output_dict"}
MODEL_KEYS |= {"nonscalar_logit_scale"}
VISION_KEYS = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout"}
TEXT_KEYS = {"context_length", "vocab_size", "hf_tokenizer_name", "width", "heads", "layers", "mlp_ratio"}
SAME = {"pool_type": ("tok", "argmax"), "pos_embed_type": ("learnable",), "proj_type": ("linear",)}


def to_clip_config(model_cfg: Mapping[str, Any]) -> CLIPConfig:
    """The ``model_cfg`` of open_clip as the configuration of a CLIPModel.

    Raises:
        ValueError: no CLIPModel computes the same.
    """
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    _check_towers(model_cfg)
    act = ACTIVATIONS[bool(model_cfg.get("quick_gelu"))]
    words = text.get("vocab_size", 49408)
    return CLIPConfig(
        projection_dim=model_cfg["embed_dim"],
        text_config={
            **_tower(text, 512, text.get("heads", 8), act, model_cfg["embed_dim"]),
            "vocab_size": words,
            "max_position_embeddings": text.get("context_length", 77),
            "bos_token_id": words - 2,  # CLIP's tokenizer ends with its two marks
            "eos_token_id": words - 1,
            "pad_token_id": words - 1,
        },
        vision_config={
            **_tower(
                vision, 768, vision.get("width", 768) // vision.get("head_width", 64), act, model_cfg["embed_dim"]
            ),
            "image_size": vision.get("image_size", 224),
            "patch_size": vision.get("patch_size", 16),
        },
    )


def _tower(cfg: Mapping[str, Any], width: int, heads: int, act: str, embed_dim: int) -> dict[str, Any]:
    width = cfg.get("width", width)
    return {
        "hidden_size": width,
        "intermediate_size": int(width * cfg.get("mlp_ratio", 4.0)),
        "num_hidden_layers": cfg.get("layers", 12),
        "num_attention_heads": heads,
        "hidden_act": act,
        "projection_dim": embed_dim,
    }


def _check_towers(model_cfg: Mapping[str, Any]) -> None:
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    for tower, key, what in ((vision, "timm_model_name", "image"), (text, "hf_model_name", "text")):
        if tower.get(key):
            raise ValueError(
                f"its {what} tower is {key.split('_')[0]}'s {tower[key]}, of which transformers' CLIPModel has no "
                f"counterpart: only open_clip's own ViT and text transformer have. {SIGLIP}"
            )
    parts = (("", model_cfg, MODEL_KEYS), ("vision_cfg.", vision, VISION_KEYS), ("text_cfg.", text, TEXT_KEYS))
    for where, part, known in parts:
        for key, value in part.items():
            if key not in known and value and value not in SAME.get(key, ()):
                raise ValueError(
                    f"its {where}{key} is {value!r}, of which transformers' CLIPModel has no counterpart. {SIGLIP}"
                )
    if isinstance(vision.get("layers"), list) or isinstance(vision.get("image_size"), list):
        raise ValueError(
            "its image tower is a ResNet, or takes pictures that are not square, of which transformers' CLIPModel has no "
            f"counterpart. {SIGLIP}"
        )


SIGLIP = "Where the model is in transformers' form, too, as SigLIP is, take that."


def to_model_cfg(config: CLIPConfig) -> dict[str, Any]:
    """The configuration of a CLIPModel as open_clip's ``model_cfg``.

    Raises:
        ValueError: open_clip computes no such model.
    """
    vision, text = _towers(config)
    acts = {vision.hidden_act, text.hidden_act}
    if len(acts) > 1 or not acts <= set(ACTIVATIONS.values()):
        raise ValueError(
            f"the activations of its towers are {vision.hidden_act} and {text.hidden_act}; open_clip has one for both, gelu "
            "or quick_gelu. Export another form."
        )
    if any(abs(tower.layer_norm_eps - 1e-5) > 1e-9 for tower in (vision, text)):
        raise ValueError(
            f"layer_norm_eps of its towers is {vision.layer_norm_eps:g} and {text.layer_norm_eps:g}; open_clip has 1e-05. "
            "Export another form."
        )
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": acts == {"quick_gelu"},
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": _ratio(vision),
            "patch_size": vision.patch_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": _ratio(text),
        },
    }


def _towers(config: CLIPConfig) -> tuple[Any, Any]:
    """The configurations of the image tower and of the text tower."""
    return config.vision_config, config.text_config


def _ratio(tower: Any) -> float:
    """By which open_clip, which rounds down, comes to the same width."""
    width, inner = tower.hidden_size, tower.intermediate_size
    return inner / width if inner % width == 0 else (inner + 0.5) / width


@dataclass(frozen=True)
class _Pair:
    """A tensor of open_clip, and the one tensor of transformers or the three that it holds one below the other."""

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False


def _pairs(config: CLIPConfig) -> Iterator[_Pair]:
    vision, text = _towers(config)
    yield _Pair("logit_scale", ("logit_scale",))
    yield from (_Pair(theirs, (ours,)) for theirs, ours in TABLES.items())
    yield from (_Pair(theirs, (ours,), transposed=True) for theirs, ours in PROJECTIONS.items())
    for part in ("weight", "bias"):
        yield from (_Pair(f"{theirs}.{part}", (f"{ours}.{part}",)) for theirs, ours in NORMS.items())
        for theirs, ours, tower in (("", "text_model", text), ("visual.", "vision_model", vision)):
            for layer in range(tower.num_hidden_layers):
                for name, parts in LAYERS.items():
                    dot = "" if name.endswith("_") else "."
                    place = f"{ours}.encoder.layers.{layer}"
                    yield _Pair(
                        f"{theirs}transformer.resblocks.{layer}.{name}{dot}{part}",
                        tuple(f"{place}.{one}.{part}" for one in parts),
                    )


def shapes_of(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a model's weights in open_clip's form."""
    with torch.device("meta"):
        empty = CLIPModel(config).state_dict()
    return {name: tuple(value.shape) for name, value in to_open_clip_weights(empty, config).items()}


def plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of open_clip's plain CLIP: the text tower at the top, without what is no weight."""
    named = {name.removeprefix("text."): value for name, value in weights.items()}
    kept = {name: value for name, value in named.items() if name.rsplit(".", 1)[-1] not in NO_WEIGHTS}
    if "logit_scale" in kept:
        kept["logit_scale"] = kept["logit_scale"].reshape(())
    return kept


def to_clip_weights(weights: Mapping[str, Tensor], config: CLIPConfig) -> dict[str, Tensor]:
    """The weights of a CLIPModel from those of [`plain_names`], which must fit its configuration."""
    found = {}
    for pair in _pairs(config):
        value = weights[pair.theirs]
        for name, part in zip(pair.ours, value.chunk(len(pair.ours)) if value.ndim else [value], strict=True):
            found[name] = (part.T if pair.transposed else part).contiguous()
    return found


def to_open_clip_weights(weights: Mapping[str, Tensor], config: CLIPConfig) -> dict[str, Tensor]:
    """The weights of open_clip's CLIP from those of a CLIPModel."""
    found = {}
    for pair in _pairs(config):
        parts = [weights[name] for name in pair.ours]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        found[pair.theirs] = (value.T if pair.transposed else value).contiguous()
    return found
