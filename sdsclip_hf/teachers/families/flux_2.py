"""FLUX.2."""

import torch
from torch import Tensor

from sdsclip_hf.teachers.conditions import Conditions
from sdsclip_hf.teachers.families.family import Family, Known
from sdsclip_hf.teachers.families.packing import grid_ids
from sdsclip_hf.teachers.schedule import Level


class Flux2(Family):
    """A transformer that is told the words of a language model, at three of its depths.

    Its latents are squares of two by two of the autoencoder's, brought to mean 0 and variance 1 by statistics that the
    autoencoder holds: (B, 4 C, h / 2, w / 2).
    """

    pipelines = ("Flux2KleinPipeline", "Flux2Pipeline")
    known = (
        Known("black-forest-labs/FLUX.2-klein-base-4B", 3.88, 10.2, "apache-2.0"),
        Known("black-forest-labs/FLUX.2-dev", 32.2, 87.8, "flux-dev-non-commercial"),
    )
    outputs = ("encoder_hidden_states", None)
    multiple = 1

    @property
    def latent_size(self) -> tuple[int, int]:
        height, width = super().latent_size
        return height // 2, width // 2

    @property
    def factor(self) -> int:
        return 2 * super().factor

    def told(self, sigmas: Tensor, dtype: torch.dtype) -> Tensor:
        return (sigmas.to(dtype) * 1000).float() / 1000  # in its own dtype it makes thousandths of them

    def predict(self, latents: Tensor, level: Level, conditions: Conditions) -> Tensor:
        batch, _, height, width = latents.shape
        length, device = conditions["encoder_hidden_states"].shape[1], latents.device
        places = torch.zeros(length, 4, device=device)
        places[:, 3] = torch.arange(length, device=device)
        found = self.denoiser(
            latents.flatten(2).transpose(1, 2),
            timestep=level.t / 1000,
            guidance=level.sigma.new_ones(batch) if self.denoiser.config.guidance_embeds else None,
            img_ids=grid_ids(height, width, 4, device).expand(batch, -1, -1),
            txt_ids=places.expand(batch, -1, -1),
            **conditions,
        ).sample
        return found[:, : height * width].transpose(1, 2).reshape(latents.shape)

    @property
    def autoencoder_channels(self) -> int:
        return 4 * self.vae.config.latent_channels

    def to_latents(self, pixels: Tensor) -> Tensor:
        latents = self.vae.encode(pixels).latent_dist.mode().float()
        batch, channels, height, width = latents.shape
        squares = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
        mean, deviation = self._statistics()
        return (squares.reshape(batch, 4 * channels, height // 2, width // 2) - mean) / deviation

    def to_pixels(self, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics()
        squares = latents.float() * deviation + mean
        batch, channels, height, width = squares.shape
        latents = squares.view(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        latents = latents.reshape(batch, channels // 4, 2 * height, 2 * width)
        return self.vae.decode(latents.to(self.vae.dtype)).sample

    def _statistics(self) -> tuple[Tensor, Tensor]:
        norm = self.vae.bn
        deviation = (norm.running_var.float() + self.vae.config.batch_norm_eps).sqrt()
        return norm.running_mean.float().view(1, -1, 1, 1), deviation.view(1, -1, 1, 1)
