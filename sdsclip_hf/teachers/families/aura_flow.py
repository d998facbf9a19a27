"""AuraFlow."""

import math

from torch import Tensor

from sdsclip_hf.teachers.conditions import Conditions
from sdsclip_hf.teachers.families.family import Family, Known
from sdsclip_hf.teachers.schedule import Level


class AuraFlow(Family):
    """A transformer that is told the words of a T5, whose padding is zero and counts."""

    pipelines = ("AuraFlowPipeline",)
    known = (Known("fal/AuraFlow-v0.3", 6.86, 11.2, "apache-2.0"),)

    def predict(self, latents: Tensor, level: Level, conditions: Conditions) -> Tensor:
        return self.denoiser(latents, timestep=level.t / 1000, **conditions).sample

    @property
    def largest(self) -> int:
        form = self.denoiser.config
        return math.isqrt(form.pos_embed_max_size) * form.patch_size
