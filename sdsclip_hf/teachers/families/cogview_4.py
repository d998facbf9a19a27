"""CogView4."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sdsclip_hf.common.devices import sent
from sdsclip_hf.teachers.conditions import Conditions
from sdsclip_hf.teachers.families.family import Family
from sdsclip_hf.teachers.schedule import Level


class CogView4(Family):
    """A transformer that is told the words of GLM and the size of the picture.

    Padding, up to a multiple of 16 words, counts as words do, and goes by the longest of a call: captions are encoded one
    by one, and go through the denoiser beside those of their length alone, so that none changes another's prediction.
    """

    pipelines = ("CogView4Pipeline",)
    mask = "mask"

    def encode(self, captions: list[str], device: torch.device) -> Conditions:
        words = [self.encode_prompt([caption], device)[0][0] for caption in captions]
        mask = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in words]
        return {"words": pad_sequence(words, batch_first=True), "mask": pad_sequence(mask, batch_first=True)}

    def rehearse(self, captions: int, words: int) -> Conditions:
        tokens = torch.zeros(captions, -(-words // 16) * 16, dtype=torch.long)
        return {"words": self.pipeline.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]}

    def predict(self, latents: Tensor, level: Level, conditions: Conditions) -> Tensor:
        if "mask" not in conditions:
            return self._of_one_length(latents, level.t, conditions["words"])
        lengths = conditions["mask"].sum(1)
        found = torch.empty_like(latents)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            words = conditions["words"][rows, :length]
            found = found.index_copy(0, rows, self._of_one_length(latents[rows], level.t[rows], words))
        return found

    def _of_one_length(self, latents: Tensor, t: Tensor, words: Tensor) -> Tensor:
        height, width = (self.factor * edge for edge in latents.shape[-2:])
        size = sent(torch.tensor([[height, width]], dtype=latents.dtype), latents.device).expand(len(latents), -1)
        return self.denoiser(
            latents, words, timestep=t, original_size=size, target_size=size, crop_coords=torch.zeros_like(size)
        ).sample
