"""The architectures that open_clip has names for and CLIPModel a counterpart, and which of them weights are of."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

QUICK = "-quickgelu"  # ends the names of those with OpenAI's activation
WORDS, CONTEXT = 49_408, 77


class Architecture(NamedTuple):
    """Sizes of a CLIP: those without ``text_`` are the image tower's; a head of the text tower is 64 wide."""

    embed_dim: int
    image_size: int
    patch_size: int
    width: int
    layers: int
    text_width: int
    text_layers: int = 12
    head_width: int = 64
    mlp_ratio: float = 4.0

    def model_cfg(self, quick_gelu: bool) -> dict[str, Any]:
        """As open_clip writes it."""
        names = ("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio")
        text = {"width": self.text_width, "heads": self.text_width // 64, "layers": self.text_layers}
        text |= {"context_length": CONTEXT, "vocab_size": WORDS}
        vision = {name: getattr(self, name) for name in names}
        return {"embed_dim": self.embed_dim, "quick_gelu": quick_gelu, "vision_cfg": vision, "text_cfg": text}


ARCHITECTURES = {
    "ViT-S-32": Architecture(384, 224, 32, 384, 12, 384),
    "ViT-S-32-alt": Architecture(256, 224, 32, 384, 12, 256, 10),
    "ViT-S-16": Architecture(384, 224, 16, 384, 12, 384),
    "ViT-S-16-alt": Architecture(256, 224, 16, 384, 12, 256, 10),
    "ViT-M-32": Architecture(512, 224, 32, 512, 12, 512),
    "ViT-M-32-alt": Architecture(384, 224, 32, 512, 12, 384),
    "ViT-M-16": Architecture(512, 224, 16, 512, 12, 512),
    "ViT-B-32": Architecture(512, 224, 32, 768, 12, 512),
    "ViT-B-32-256": Architecture(512, 256, 32, 768, 12, 512),
    "ViT-B-32-plus-256": Architecture(640, 256, 32, 896, 12, 640),
    "ViT-B-16": Architecture(512, 224, 16, 768, 12, 512),
    "ViT-B-16-plus": Architecture(640, 224, 16, 896, 12, 640),
    "ViT-B-16-plus-240": Architecture(640, 240, 16, 896, 12, 640),
    "ViT-L-16": Architecture(768, 224, 16, 1024, 24, 768),
    "ViT-L-16-320": Architecture(768, 320, 16, 1024, 24, 768),
    "ViT-L-14": Architecture(768, 224, 14, 1024, 24, 768),
    "ViT-L-14-280": Architecture(768, 280, 14, 1024, 24, 768),
    "ViT-L-14-336": Architecture(768, 336, 14, 1024, 24, 768),
    "ViT-H-16": Architecture(1024, 224, 16, 1280, 32, 1024, 24, 80),
    "ViT-H-14": Architecture(1024, 224, 14, 1280, 32, 1024, 24, 80),
    "ViT-H-14-378": Architecture(1024, 378, 14, 1280, 32, 1024, 24, 80),
    "ViT-g-14": Architecture(1024, 224, 14, 1408, 40, 1024, 24, 88, 4.3637),
    "ViT-bigG-14": Architecture(1280, 224, 14, 1664, 48, 1280, 32, 104, 4.9231),
    "ViT-e-14": Architecture(1280, 224, 14, 1792, 56, 1280, 36, 112, 8.5715),
}


def model_cfg_of(name: str) -> dict[str, Any]:
    """The ``model_cfg`` of an architecture by its name, or of a file of json in open_clip's form.

    Raises:
        ValueError: there is no such architecture, or the file is none.
    """
    path = Path(name).expanduser()
    if path.suffix == ".json" and path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        return checked_model_cfg(content.get("model_cfg", content), str(path))
    plain = name.removesuffix(QUICK)
    if plain not in ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {name!r}; give --architecture one of {', '.join(ARCHITECTURES)}, with {QUICK} behind it "
            "for weights trained with OpenAI's activation, or a file of json in open_clip's form."
        )
    return ARCHITECTURES[plain].model_cfg(name != plain)


def checked_model_cfg(content: Any, place: str) -> dict[str, Any]:
    """What open_clip takes for an architecture.

    Raises:
        ValueError: parts of it are missing.
    """
    wanted = ("embed_dim", "vision_cfg", "text_cfg")
    if not isinstance(content, dict) or any(name not in content for name in wanted):
        raise ValueError(
            f"{place} is no configuration of open_clip: it lacks one of {', '.join(wanted)}. Give another."
        )
    return content


def name_of(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the architecture that weights in open_clip's form are of, by their shapes; None: it has none."""
    try:
        grid, width = weights["visual.positional_embedding"].shape
        patch = weights["visual.conv1.weight"].shape[-1]
        size = round((grid - 1) ** 0.5) * patch
        sizes = (weights["visual.proj"].shape[1], size, patch, width, _layers(weights, "visual."))
        sizes += (weights["ln_final.weight"].shape[0], _layers(weights, ""))
    except (KeyError, ValueError, IndexError):
        return None
    return next((name for name, one in ARCHITECTURES.items() if one[:7] == sizes), None)


def _layers(weights: Mapping[str, Tensor], tower: str) -> int:
    ending = ".ln_1.weight"
    return sum(name.startswith(f"{tower}transformer.resblocks.") and name.endswith(ending) for name in weights)
