"""What makes two captions, or two pictures, the same, by numbers that stand for them; and what that tells of a batch."""

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


def picture_keys(*tensors: Tensor) -> Tensor:
    """A number for each picture, the same for equal ones on every process: (B, 3, H, W) to (B,) int64, above 0.

    Pictures of several tensors, each (B, ...), are equal where all of these are.
    """
    rows = zip(*(tensor.numpy() for tensor in tensors), strict=True)
    return torch.tensor([_number(b"".join(part.tobytes() for part in row)) for row in rows])


def token_key(input_ids: Sequence[int]) -> int:
    """A number for a caption by its tokens; above 0."""
    return _number(repr(list(input_ids)).encode())


def _number(content: bytes) -> int:
    return xxhash.xxh3_64_intdigest(content) % (2**63 - 1) + 1


class KnownPairs:
    """Which captions of a batch are known to be true of which images, beside each row's own.

    A caption is true of an image if any row of the batch has them both: rows that share a picture or a caption are no
    negatives of one another, nor is a candidate that some row of the same picture has as its caption.

    Args:
        pictures: a number for each row's picture, equal where pictures are, (B,), of any size.
        captions: the same for the captions that are true of it, above 0, (B, C), each once and the one in the batch first;
            filled up with 0.
        negatives: the same for the further wrong answers, (M,); default: none.

    Example:

    ```python
    import torch
    from sdsclip_hf import contrastive_loss
    from sdsclip_hf.data.duplicates import KnownPairs

    embeds = torch.eye(2)[[0, 0, 1]]  # the first picture comes twice, with its caption
    known = KnownPairs(pictures=torch.tensor([7, 7, 8]), captions=torch.tensor([[1], [1], [2]]))
    print(f"{contrastive_loss(embeds, embeds, torch.tensor(100.0)):.4f}")  # 0.4621
    print(f"{contrastive_loss(embeds, embeds, torch.tensor(100.0), known=known):.4f}")  # 0.0000
    ```
    """

    def __init__(self, pictures: Tensor, captions: Tensor, negatives: Tensor | None = None):
        negatives = captions.new_empty(0) if negatives is None else negatives
        texts = _numbered(torch.cat([captions.new_zeros(1), captions.flatten(), negatives]))
        self.pictures = _numbered(pictures)
        self.captions = texts[1 : captions.numel() + 1].view_as(captions)
        self.answers = torch.cat([self.captions[:, 0], texts[captions.numel() + 1 :]])  # (B + M,)
        self._texts = len(texts)  # more than the largest number of a text

    def true_of_images(self, rows: Tensor) -> Tensor:
        """Which captions and negatives are true of the images of ``rows`` (b,) beside their own, (b, B + M)."""
        asked = self.pictures[rows].sort().values
        found = torch.searchsorted(asked, self.pictures).clamp(max=len(rows) - 1)
        found = found.where(asked[found] == self.pictures, len(rows))  # the first query of the picture, or none
        true = self.answers.new_zeros((len(rows) + 1, self._texts), dtype=torch.bool)
        true[found[:, None], self.captions] = True
        first = torch.searchsorted(asked, self.pictures[rows])
        return true[first][:, self.answers].scatter(1, rows[:, None], False)

    def true_of_texts(self, rows: Tensor) -> Tensor:
        """Of which images the captions of ``rows`` (b,) are true beside their own, (b, B)."""
        queries = self.captions[rows, :1]  # (b, 1)
        has = (queries == self.captions.T[:, None]).any(0)  # (b, B)
        true = has.new_zeros((len(rows), len(self.pictures)), dtype=torch.uint8)
        true = true.scatter_reduce(1, self.pictures.expand_as(has), has.to(torch.uint8), "amax")
        return true[:, self.pictures].bool().scatter(1, rows[:, None], False)

    def are_shared(self, rows: Tensor) -> Tensor:
        """To which of ``rows`` (b,) another answer is right as well, to the image or to the caption, (b,)."""
        of_picture = _counts(self.pictures, len(self.pictures))[self.pictures[rows]] > 1
        captions, own = self.captions[rows], self.captions[rows, 0]
        answers = _counts(self.answers, self._texts)
        answers[0] = 0
        is_answer = answers[captions] - (captions == own[:, None]).long() > 0
        of_caption = _counts(self.captions.flatten(), self._texts)[own] > 1
        return of_picture | is_answer.any(1) | of_caption


def _numbered(keys: Tensor) -> Tensor:
    """For each key a number below how many there are, the smallest 0, equal where the keys are: (N,) to (N,).

    As the inverse of ``unique``, but that a GPU need not be waited for to learn how many are distinct.
    """
    return torch.searchsorted(keys.sort().values, keys)


def _counts(numbers: Tensor, size: int) -> Tensor:
    """How often each number below ``size`` comes, (size,)."""
    return numbers.new_zeros(size).scatter_add(0, numbers, torch.ones_like(numbers))
