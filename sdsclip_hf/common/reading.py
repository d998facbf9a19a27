"""How captions become tokens, spelled, cut and padded as the text tower that reads them was trained; what pixels hang on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from sdsclip_hf.common.compiling import few_lengths


def picture_backend(image_processor: BaseImageProcessor) -> str:
    """What resizes pictures: ``pil``, or ``torchvision``, whose roundings are others."""
    return getattr(image_processor, "backend", "pil")


def picture_reading(image_processor: BaseImageProcessor) -> str:
    """All that the pixels hang on: the settings, and what resizes."""
    backend = picture_backend(image_processor)
    return image_processor.to_json_string() + ("" if backend == "pil" else backend)


@dataclass(frozen=True)
class CaptionReader:
    """Captions to token ids, and to a mask that tells them from padding.

    The mask is given whether or not the tower takes it: without it nobody could tell a caption's end.

    Args:
        tokenizer: the model's.
        max_length: how many tokens of a caption are read, L at most.
        to_full_length: whether all captions are padded to it, as those of towers that read their padding; default: to the
            longest of a batch.
        lower: whether capital letters are made small, where the tokenizer leaves them.
        padding_side: where padding goes; default: where the tokenizer puts it.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    to_full_length: bool = False
    lower: bool = False
    padding_side: str | None = None

    def __call__(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` of N captions, (N, L)."""
        found = self.tokenizer(self._spelled(captions), truncation=True, return_tensors="pt", **self._padded())
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """The token ids of each caption, cut but not padded."""
        return self.tokenizer(self._spelled(captions), truncation=True, max_length=self.max_length).input_ids

    def pad(self, ids: list[list[int]], to_full_length: bool | None = None) -> dict[str, Tensor]:
        """What [`tokenize`] gave, as a call gives it; by another choice of length, if one is given."""
        found = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt", **self._padded(to_full_length))
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def to_few_lengths(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Padded captions (N, L), padded on to the next of few lengths, 16, 32, 64, ..., or the longest that is read."""
        length = input_ids.shape[1]
        missing = max(0, min(few_lengths(length), self.max_length) - length)
        sides = (missing, 0) if (self.padding_side or self.tokenizer.padding_side) == "left" else (0, missing)
        ids = F.pad(input_ids, sides, value=int(cast(Any, self.tokenizer.pad_token_id)))
        return ids, F.pad(attention_mask, sides)

    def whole_lengths(self, captions: Sequence[str]) -> list[int]:
        """How many tokens each caption has before it is cut."""
        found = self.tokenizer(self._spelled(captions), truncation=False, verbose=False).input_ids
        return [len(ids) for ids in found]

    def _spelled(self, captions: Sequence[str]) -> list[str]:
        return [caption.lower() for caption in captions] if self.lower else list(captions)

    def _padded(self, to_full_length: bool | None = None) -> dict:
        full = self.to_full_length if to_full_length is None else to_full_length
        side = {} if self.padding_side is None else {"padding_side": self.padding_side}
        padding = "max_length" if full else "longest"
        return {"padding": padding, "max_length": self.max_length, "return_attention_mask": True, **side}
