"""PixArt-Alpha and PixArt-Sigma."""

import logging
from importlib.util import find_spec

import torch
from torch import Tensor

from sdsclip_hf.common.devices import sent
from sdsclip_hf.teachers.conditions import Conditions
from sdsclip_hf.teachers.families.family import Family, Known
from sdsclip_hf.teachers.schedule import Level

CLEANERS = {"bs4": "beautifulsoup4", "ftfy": "ftfy"}  # modules and packages

logger = logging.getLogger(__name__)


class PixArt(Family):
    """A transformer that is told the words of T5 and, at 1024 pixels in Alpha, the size of the picture."""

    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    known = (Known("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", 0.61, 1.2, "openrail++"),)
    outputs = ("encoder_hidden_states", "encoder_attention_mask")
    mask = "encoder_attention_mask"
    is_flow = False

    def predict(self, latents: Tensor, level: Level, conditions: Conditions) -> Tensor:
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.denoiser.use_additional_conditions:
            height, width = (self.factor * edge for edge in latents.shape[-2:])
            sizes = sent(torch.tensor([[height, width]], dtype=latents.dtype), latents.device)
            added = {
                "resolution": sizes.expand(len(latents), -1),
                "aspect_ratio": (sizes[:, :1] / sizes[:, 1:]).expand(len(latents), -1),
            }
        found = self.denoiser(latents, timestep=level.t, added_cond_kwargs=added, **conditions).sample
        return found[:, : latents.shape[1]]  # the other half is the variance that it has learned

    def check(self) -> None:
        missing = [package for module, package in CLEANERS.items() if find_spec(module) is None]
        if missing:
            logger.warning(
                "PixArt's pipeline cleans captions of markup by packages that are not installed; here they are put in small "
                f"letters and no more. For the whole, pip install {' '.join(missing)}."
            )
