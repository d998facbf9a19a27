"""Krea 2."""

from torch import Tensor

from sdsclip_hf.teachers.conditions import Conditions
from sdsclip_hf.teachers.families.family import Family, Known
from sdsclip_hf.teachers.families.packing import from_patches, to_patches
from sdsclip_hf.teachers.families.qwen_image import QwenImage
from sdsclip_hf.teachers.schedule import Level


class Krea2(QwenImage):
    """A transformer that is told the words of a vision-language model, at many of its depths; Qwen-Image's latents."""

    pipelines = ("Krea2Pipeline",)
    known = (Known("krea/Krea-2-Raw", 12.8, 26.6, "see its page"),)
    outputs = ("encoder_hidden_states", "encoder_attention_mask")
    mask = "encoder_attention_mask"

    encode = Family.encode
    rehearse = Family.rehearse
    told = Family.told

    def predict(self, latents: Tensor, level: Level, conditions: Conditions) -> Tensor:
        height, width = latents.shape[-2:]
        words = conditions["encoder_hidden_states"].shape[1]
        places = self.pipeline.prepare_position_ids(words, height // 2, width // 2, latents.device)
        found = self.denoiser(to_patches(latents), timestep=level.t / 1000, position_ids=places, **conditions).sample
        return from_patches(found, height, width)
