"""Lumina-Image 2.0."""

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
        raise ValueError(
            "what Lumina 2 costs cannot be found without running it, since its denoiser looks at how long captions are. "
            "Give --lambda_sds 0 for the student's cost alone."
        )

    def predict(self, latents: Tensor, level: Level, conditions: Conditions) -> Tensor:
        return -self.denoiser(latents, timestep=1 - level.t / 1000, **conditions).sample

    @property
    def largest(self) -> int:
        return min(self.denoiser.config.axes_lens[1:]) * self.denoiser.config.patch_size
