"""Which weights of a dual encoder train: its norms, adapters on the linear layers of its towers, or all of them."""

import re
from collections.abc import Iterator

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from sdsclip_hf.config import LORA_LAYERS

TOWERS = {"vision": "vision_model", "text": "text_model"}
PROJECTIONS = {"vision": "visual_projection", "text": "text_projection"}
STACKS = ("layers", "layer")  # what the lists of a tower's layers are called


def chosen_prefixes(vision: bool, text: bool, projections: bool) -> tuple[str, ...]:
    """The beginnings of the names of what may train, the towers first."""
    chosen = [tower for tower, is_chosen in (("vision", vision), ("text", text)) if is_chosen]
    found = [f"{TOWERS[tower]}." for tower in chosen]
    return tuple(found + ([f"{PROJECTIONS[tower]}." for tower in chosen] if projections else []))


def candidates(model: PreTrainedModel, only_norms: bool) -> list[tuple[str, nn.Parameter]]:
    """All weights by name, or those of the norms alone."""
    if not only_norms:
        return list(model.named_parameters())
    return [
        (f"{module_name}.{name}", parameter)
        for module_name, module in model.named_modules()
        if is_norm(module)
        for name, parameter in module.named_parameters()
    ]


def is_norm(module: nn.Module) -> bool:
    """Whether it is a LayerNorm, or one of the RMSNorms that each architecture has of its own."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("Norm")


def lora_config(
    model: PreTrainedModel,
    prefixes: tuple[str, ...],
    r: int,
    alpha: int,
    dropout: float,
    layers: tuple[str, ...] | None,
) -> LoraConfig:
    """LoRA on the linear layers of the chosen towers, and on the projections among ``prefixes``.

    Args:
        model: a dual encoder.
        prefixes: see [`chosen_prefixes`].
        r, alpha, dropout: of LoRA.
        layers: endings of the names of the layers; default: all linear layers of the towers' stacks.
    """
    towers = tuple(prefix for prefix in prefixes if prefix.removesuffix(".") in TOWERS.values())
    projections = [prefix.removesuffix(".") for prefix in prefixes if prefix not in towers]
    projections = [name for name in projections if hasattr(model, name)]
    targets = "|".join([*([_pattern(model, towers, layers)] if towers else []), *projections])
    return LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)


def _pattern(model: PreTrainedModel, towers: tuple[str, ...], layers: tuple[str, ...] | None) -> str:
    """What the names of the layers to adapt match in full, and no others."""
    inside = [re.escape(f"{name}.") for name in _attentions(model) if name.startswith(towers)]
    unless = f"(?!{'|'.join(inside)})" if inside else ""  # which read their layers' weights themselves
    between = r".*\."
    if layers is None:
        found = list(_stacked(model, towers))
        endings = dict.fromkeys(name.rsplit(".", 1)[-1] for name in found)
        layers = LORA_LAYERS if endings.keys() == set(LORA_LAYERS) else tuple(endings)
        others = [name for name, module in _linears(model) if name.startswith(towers) and name not in found]
        if any(name.endswith(tuple(f".{layer}" for layer in layers)) for name in others):
            between = rf"(?:.*\.)?(?:{'|'.join(STACKS)})\..*\."
    tower, ending = (f"(?:{'|'.join(map(re.escape, words))})" for words in (towers, layers))
    return f"{unless}{tower}{between}{ending}"


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """By name the linear layers that have a gradient of their own: none inside an attention of PyTorch's own."""
    inside = tuple(f"{name}." for name in _attentions(model))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(inside):
            yield name, module


def _attentions(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]


def _stacked(model: nn.Module, towers: tuple[str, ...]) -> Iterator[str]:
    """The names of the linear layers in the towers' stacks."""
    for name, _ in _linears(model):
        if name.startswith(towers) and set(name.split(".")) & set(STACKS):
            yield name


def layer_classes(model: nn.Module) -> list[str]:
    """The names of the classes of the towers' layers, of which each may be split over processes by itself."""
    stacks = [part for name, part in model.named_modules() if name.rsplit(".", 1)[-1] in STACKS]
    return sorted({type(layer).__name__ for stack in stacks for layer in stack.children()})


def add_adapter(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """The model inside its adapter.

    Raises:
        ValueError: the adapter is none for such a model, or its targets match nothing, or what would not train.
    """
    if config.is_prompt_learning:
        raise ValueError(
            f"CLIP cannot carry a {type(config).__name__}, whose prompts go into language models; give the configuration of "
            "an adapter, such as LoraConfig, LoHaConfig or IA3Config."
        )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        if "target modules" not in str(error).lower():
            raise
        linear = sorted({name.rsplit(".", 1)[-1] for name, _ in _linears(model)})
        targets = getattr(config, "target_modules", None)
        raise ValueError(
            f"the LoRA targets {targets!r} match no layer of the model; its linear layers are "
            f"{', '.join(linear)}. Set --lora_target_modules."
        ) from error
    _check_attentions(adapted)
    return adapted


def _check_attentions(adapted: PeftModel) -> None:
    """Raise ValueError if an adapter lies inside an attention of PyTorch's own, which never calls it."""
    parts = dict(adapted.named_modules())
    for name, module in parts.items():
        owner = parts.get(name.rpartition(".")[0])
        if isinstance(module, nn.MultiheadAttention) and not isinstance(owner, BaseTunerLayer):
            dead = [inner for inner, part in module.named_modules() if isinstance(part, BaseTunerLayer)]
            if dead:
                raise ValueError(
                    f"the LoRA target {name.removeprefix('base_model.model.')}.{dead[0]} lies inside an attention of "
                    "PyTorch's own, which reads its weights itself, so that it would never train; take the whole attention "
                    "as a target of the peft_config, or leave it out."
                )
