"""Stable Diffusion 1 and 2."""

from torch import Tensor

from sdsclip_hf.teachers.conditions import Conditions
from sdsclip_hf.teachers.families.family import Family, Known
from sdsclip_hf.teachers.schedule import Level


class StableDiffusion(Family):
    """A UNet that is told the words of CLIP's text tower."""

    pipelines = ("StableDiffusionPipeline",)
    known = (Known("stable-diffusion-v1-5/stable-diffusion-v1-5", 0.86, 0.8, "creativeml-openrail-m"),)
    denoiser_part = "unet"
    is_flow = False
    multiple = 1
    exact_autoencoder = False
    embedding: str | None = None  # what the UNet takes beside the words

    def predict(self, latents: Tensor, level: Level, conditions: Conditions) -> Tensor:
        return self.denoiser(latents, level.t, **conditions).sample

    def check(self) -> None:
        form = self.denoiser.config
        if form.in_channels != form.out_channels:
            raise ValueError(
                f"the teacher's denoiser takes {form.in_channels} channels and gives {form.out_channels}: it needs more "
                "than a latent and a caption (an inpainting or editing model?). Give a text-to-image checkpoint."
            )
        for condition, meant in (("addition_embed_type", self.embedding), ("class_embed_type", None)):
            if getattr(form, condition, None) != meant:
                raise ValueError(
                    f"the teacher's denoiser has {condition}={getattr(form, condition, None)!r}, where a "
                    f"{self.pipelines[0]} has {meant!r}: it wants other conditions beside the caption. Give a text-to-image "
                    "checkpoint."
                )
        width, made = form.encoder_hid_dim or form.cross_attention_dim, self.text_width
        if made != width:
            raise ValueError(
                f"the teacher's caption encoder is {made} wide, but its denoiser expects prompts {width} wide; "
                "give the text encoder of the same checkpoint."
            )

    @property
    def text_width(self) -> int:
        """Of a word's vector."""
        return self.pipeline.text_encoder.config.hidden_size
