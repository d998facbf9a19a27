"""Z-Image."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sdsclip_hf.teachers.conditions import Conditions
from sdsclip_hf.teachers.families.family import Family, Known
from sdsclip_hf.teachers.schedule import Level

TEMPLATE = 8  # tokens that the chat template puts around a caption


class ZImage(Family):
    """A transformer that is told the words of a language model, as many as there are; it predicts z0 - eps."""

    pipelines = ("ZImagePipeline",)
    known = (Known("Tongyi-MAI/Z-Image", 6.15, 12.5, "apache-2.0"),)
    mask = "mask"

    def encode(self, captions: list[str], device: torch.device) -> Conditions:
        words = self.encode_prompt(captions, device)[0]  # (L, D) each
        mask = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in words]
        return {"words": pad_sequence(words, batch_first=True), "mask": pad_sequence(mask, batch_first=True)}

    def rehearse(self, captions: int, words: int) -> Conditions:
        tokens = torch.zeros(captions, words + TEMPLATE, dtype=torch.long)
        return {"words": self.pipeline.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]}

    def predict(self, latents: Tensor, level: Level, conditions: Conditions) -> Tensor:
        words = list(conditions["words"])
        if "mask" in conditions:
            words = [row[is_word] for row, is_word in zip(words, conditions["mask"].bool(), strict=True)]
        found = self.denoiser(list(latents.unsqueeze(2)), (1000 - level.t) / 1000, words, return_dict=False)[0]
        return -torch.stack(found).squeeze(2)

    @property
    def largest(self) -> int:
        return min(self.denoiser.config.axes_lens[1:]) * 2
