"""Qwen-Image."""

import torch
from torch import Tensor

from sdsclip_hf.teachers.conditions import Conditions
from sdsclip_hf.teachers.families.family import Family, Known
from sdsclip_hf.teachers.families.packing import from_patches, to_patches
from sdsclip_hf.teachers.schedule import Level


class QwenImage(Family):
    """A transformer that is told the words of a vision-language model; its autoencoder is one of videos."""

    pipelines = ("QwenImagePipeline",)
    known = (Known("Qwen/Qwen-Image", 20.4, 15.2, "apache-2.0"),)
    outputs = ("encoder_hidden_states", "encoder_hidden_states_mask")
    mask = "encoder_hidden_states_mask"

    @property
    def latent_channels(self) -> int:
        return self.denoiser.config.in_channels // 4

    def encode(self, captions: list[str], device: torch.device) -> Conditions:
        conditions = super().encode(captions, device)
        words = conditions["encoder_hidden_states"]
        mask = conditions["encoder_hidden_states_mask"]
        return conditions | {self.mask: words.new_ones(words.shape[:2], dtype=torch.long) if mask is None else mask}

    def told(self, sigmas: Tensor, dtype: torch.dtype) -> Tensor:
        return sigmas.to(dtype).float()

    def rehearse(self, captions: int, words: int) -> Conditions:
        dropped = self.pipeline.prompt_template_encode_start_idx
        tokens = torch.zeros(captions, dropped + words, dtype=torch.long)
        found = self.pipeline.text_encoder(tokens, torch.ones_like(tokens), output_hidden_states=True).hidden_states[-1]
        return {"encoder_hidden_states": found[:, dropped:], self.mask: tokens[:, dropped:] + 1}

    def predict(self, latents: Tensor, level: Level, conditions: Conditions) -> Tensor:
        height, width = latents.shape[-2:]
        found = self.denoiser(
            to_patches(latents),
            timestep=level.t / 1000,
            img_shapes=[[(1, height // 2, width // 2)]] * len(latents),
            guidance=level.sigma.new_ones(len(latents)) if self.denoiser.config.guidance_embeds else None,
            **conditions,
        ).sample
        return from_patches(found, height, width)

    @property
    def autoencoder_channels(self) -> int:
        return self.vae.config.z_dim

    def to_latents(self, pixels: Tensor) -> Tensor:
        latents = self.vae.encode(pixels.unsqueeze(2)).latent_dist.mode().squeeze(2)  # a film of one picture
        mean, deviation = self._statistics(latents)
        return (latents.float() - mean) / deviation

    def to_pixels(self, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics(latents)
        latents = latents.float() * deviation + mean
        return self.vae.decode(latents.to(self.vae.dtype).unsqueeze(2)).sample.squeeze(2)

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        form = self.vae.config
        mean, deviation = (
            torch.tensor(values, device=latents.device) for values in (form.latents_mean, form.latents_std)
        )
        return mean.view(1, -1, 1, 1), deviation.view(1, -1, 1, 1)
