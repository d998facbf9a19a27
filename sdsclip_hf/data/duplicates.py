"""What makes two captions, or two pictures, the same: their words and pixels, and numbers that stand for these."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import torch
import xxhash
from torch import Tensor

PAUSES = re.compile(r"(?<=[^\s.,;:!?])[.,;:!?]+(?=\s|$)")


def plain_words(caption: str) -> str:
    """A caption without case, the punctuation that ends a word (. , ; : ! ?) and the difference between "a" and "an".

    All else counts, in any script: signs, vowel marks, emojis. Captions whose plain words are equal say the same.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).casefold())
    words = PAUSES.sub(" ", folded).split()
    return " ".join("a" if word == "an" else word for word in words)


@lru_cache(maxsize=2**16)
def caption_key(caption: str) -> int:
    """A number for a caption, the same for captions of the same plain words on every process; above 0."""
    return _number(plain_words(caption).encode("utf-8", "surrogatepass"))


@lru_cache(maxsize=2**16)
def caption_keys(captions: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers of an image's captions, each once."""
    return tuple(dict.fromkeys(map(caption_key, captions)))


def picture_keys(pixel_values: Tensor) -> Tensor:
    """A number for each picture, the same for equal ones on every process: (B, 3, H, W) to (B,) int64, above 0."""
    return torch.tensor([_number(pixels.tobytes()) for pixels in pixel_values.numpy()])


def token_key(input_ids: Sequence[int]) -> int:
    """A number for a caption by its tokens; above 0."""
    return _number(repr(list(input_ids)).encode())


def _number(content: bytes) -> int:
    return xxhash.xxh3_64_intdigest(content) % (2**63 - 1) + 1
