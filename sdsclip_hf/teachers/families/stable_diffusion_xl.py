"""Stable Diffusion XL."""

import torch
from torch import Tensor

from sdsclip_hf.common.devices import sent
from sdsclip_hf.teachers.conditions import Conditions
from sdsclip_hf.teachers.families.family import Known
from sdsclip_hf.teachers.families.stable_diffusion import StableDiffusion
from sdsclip_hf.teachers.schedule import Level


class StableDiffusionXL(StableDiffusion):
    """A UNet that is told the words of two of CLIP's text towers, the second's sentence, and the size of the picture."""

    pipelines = ("StableDiffusionXLPipeline",)
    known = (Known("stabilityai/stable-diffusion-xl-base-1.0", 2.57, 1.6, "openrail++"),)
    needs = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    outputs = ("encoder_hidden_states", None, "text_embeds", None)
    embedding = "text_time"
    exact_autoencoder = True

    def predict(self, latents: Tensor, level: Level, conditions: Conditions) -> Tensor:
        height, width = (self.factor * edge for edge in latents.shape[-2:])
        # The size before and after cropping, and where it was cropped: all of it.
        sizes = sent(torch.tensor([[height, width, 0, 0, height, width]], dtype=latents.dtype), latents.device)
        added = {"text_embeds": conditions["text_embeds"], "time_ids": sizes.expand(len(latents), -1)}
        words = conditions["encoder_hidden_states"]
        return self.denoiser(latents, level.t, encoder_hidden_states=words, added_cond_kwargs=added).sample

    @property
    def text_width(self) -> int:
        return sum(part.config.hidden_size for part in (self.pipeline.text_encoder, self.pipeline.text_encoder_2))
