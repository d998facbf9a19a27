"""Stable Diffusion 3 and 3.5."""

from sdsclip_hf.teachers.families.family import Family, Known


class StableDiffusion3(Family):
    """A transformer that is told the words of two of CLIP's text towers and of T5, and the sentence of both towers.

    T5 may be left out of the checkpoint; its places then hold nothing.
    """

    pipelines = ("StableDiffusion3Pipeline",)
    known = (
        Known("stabilityai/stable-diffusion-3.5-medium", 2.24, 2.4, "stabilityai-community"),
        Known("stabilityai/stable-diffusion-3.5-large", 8.06, 8.0, "stabilityai-community"),
    )
    needs = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    outputs = ("encoder_hidden_states", None, "pooled_projections", None)

    @property
    def largest(self) -> int:
        form = self.denoiser.config
        return form.pos_embed_max_size * form.patch_size
