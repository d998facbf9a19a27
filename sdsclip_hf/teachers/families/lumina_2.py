"""Lumina-Image 2.0."""

from typing import Any

import torch
from torch import Tensor

from sdsclip_hf.teachers.conditions import Conditions
from sdsclip_hf.teachers.families.family import Family
from sdsclip_hf.teachers.schedule import Level


class Lumina2(Family):
    """A transformer that is told the words of Gemma; it counts time the other way, and predicts z0 - eps."""

    pipelines = ("Lumina2Pipeline",)
    outputs = ("encoder_hidden_states", "encoder_attention_mask")
    mask = "encoder_attention_mask"

    def rehearse(self, captions: int, words: int) -> Conditions:
        places: Any = self.denoiser.rope_embedder
        places.freqs_cis = [torch.empty(table.shape, dtype=table.dtype) for table in places.freqs_cis]
        places.forward = lambda latents, mask: type(places).forward(places, latents, _NoPadding(mask))
        return super().rehearse(captions, words)

    def predict(self, latents: Tensor, level: Level, conditions: Conditions) -> Tensor:
        return -self.denoiser(latents, timestep=1 - level.t / 1000, **conditions).sample

    @property
    def largest(self) -> int:
        return min(self.denoiser.config.axes_lens[1:]) * self.denoiser.config.patch_size


class _NoPadding:
    """A mask whose contents are unknown, for one who asks how many words each caption has: as many as there are places."""

    def __init__(self, mask: Tensor):
        self.shape = mask.shape

    def sum(self, dim: int) -> "_NoPadding":
        return self

    def tolist(self) -> list[int]:
        captions, places = self.shape
        return [places] * captions
