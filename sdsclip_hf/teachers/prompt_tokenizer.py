"""The teacher's reading of captions, apart from its weights."""

from collections.abc import Sequence

from torch import Tensor
from transformers import CLIPTokenizer


class PromptTokenizer:
    """Captions to token ids (N, ``max_length``), padded and cut as the teacher's pipeline does it.

    It holds nothing else of the teacher, so that loader workers get a copy of no weights.

    Args:
        tokenizer: of the text encoder.
        max_length: tokens of a prompt, padding included.
    """

    def __init__(self, tokenizer: CLIPTokenizer, max_length: int):
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, captions: Sequence[str]) -> Tensor:
        return self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        ).input_ids
