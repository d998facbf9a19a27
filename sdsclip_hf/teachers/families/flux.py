"""FLUX.1."""

import torch
from torch import Tensor

from sdsclip_hf.teachers.conditions import Conditions
from sdsclip_hf.teachers.families.family import Family, Known
from sdsclip_hf.teachers.families.packing import from_patches, grid_ids, to_patches
from sdsclip_hf.teachers.schedule import Level


class Flux(Family):
    """A transformer that is told the words of T5 and the sentence of CLIP's text tower.

    FLUX.1-dev also takes how strongly it was guided in distillation; 1 is the least.
    """

    pipelines = ("FluxPipeline",)
    known = (
        Known("black-forest-labs/FLUX.1-dev", 11.9, 21.5, "flux-dev-non-commercial"),
        Known("black-forest-labs/FLUX.1-schnell", 11.9, 21.5, "apache-2.0"),
    )
    needs = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    outputs = ("encoder_hidden_states", "pooled_projections", None)
    distilled = True  # dev from a guided model, schnell to four steps

    @property
    def latent_channels(self) -> int:
        return self.denoiser.config.in_channels // 4

    def told(self, sigmas: Tensor, dtype: torch.dtype) -> Tensor:
        return (sigmas.to(dtype) * 1000).float() / 1000  # in its own dtype it makes thousandths of them

    def predict(self, latents: Tensor, level: Level, conditions: Conditions) -> Tensor:
        height, width = latents.shape[-2:]
        words = conditions["encoder_hidden_states"]
        found = self.denoiser(
            to_patches(latents),
            timestep=level.t / 1000,
            guidance=level.sigma.new_ones(len(latents)) if self.denoiser.config.guidance_embeds else None,
            img_ids=grid_ids(height // 2, width // 2, 3, latents.device).to(latents.dtype),
            txt_ids=words.new_zeros(words.shape[1], 3),
            **conditions,
        ).sample
        return from_patches(found, height, width)
