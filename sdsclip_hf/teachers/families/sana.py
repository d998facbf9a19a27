"""SANA."""

from torch import Tensor

from sdsclip_hf.teachers.conditions import Conditions
from sdsclip_hf.teachers.families.family import Family, Known
from sdsclip_hf.teachers.schedule import Level


class Sana(Family):
    """A linear transformer on latents of 1/32 of the picture's edge, told the words of Gemma."""

    pipelines = ("SanaPipeline",)
    known = (
        Known("Efficient-Large-Model/Sana_600M_512px_diffusers", 0.59, 0.26, "nvidia-open-model"),
        Known("Efficient-Large-Model/Sana_1600M_1024px_diffusers", 1.6, 0.71, "nvidia-open-model"),
    )
    outputs = ("encoder_hidden_states", "encoder_attention_mask")
    mask = "encoder_attention_mask"
    multiple = 1

    def predict(self, latents: Tensor, level: Level, conditions: Conditions) -> Tensor:
        timestep = level.t * self.denoiser.config.timestep_scale
        return self.denoiser(latents, timestep=timestep, **conditions).sample[:, : latents.shape[1]]

    def to_latents(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels).latent.float() * self.vae.config.scaling_factor  # this autoencoder draws nothing
