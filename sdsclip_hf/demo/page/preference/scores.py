"""One model's scores of two captions and one or two pictures, and what follows from them."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """How well two captions fit one or two pictures, by one model.

    Attributes:
        cosines: 2 captions x 1 or 2 pictures, of the embeddings.
        scale: what the model multiplies them by, its ``exp(logit_scale)``.
        cut: the captions, 0 or 1, that are longer than the model reads.
    """

    cosines: list[list[float]]
    scale: float
    cut: tuple[int, ...] = ()

    @property
    def pictures(self) -> int:
        """How many pictures there are."""
        return len(self.cosines[0])

    def logit(self, caption: int, picture: int) -> float:
        """The model's own score: cosine x scale."""
        return self.scale * self.cosines[caption][picture]

    def share(self, caption: int, picture: int) -> float:
        """The softmax over the two captions of a picture, in [0, 1]."""
        return 1 / (1 + math.exp(self.logit(1 - caption, picture) - self.logit(caption, picture)))

    def caption_of(self, picture: int) -> int | None:
        """The caption that scores strictly higher for a picture; None where the two tie."""
        return _higher(self.cosines[0][picture], self.cosines[1][picture])

    def picture_of(self, caption: int) -> int | None:
        """The picture that scores strictly higher for a caption; None where the two tie."""
        return _higher(*self.cosines[caption])

    def winoground(self) -> dict[str, bool]:
        """Winoground's three verdicts on two pictures, of which each belongs to the caption of its number.

        Text: each picture prefers its own caption. Image: each caption prefers its own picture. Group: both. A tie is
        wrong.
        """
        text = all(self.caption_of(number) == number for number in (0, 1))
        image = all(self.picture_of(number) == number for number in (0, 1))
        return {"text": text, "image": image, "group": text and image}


def _higher(first: float, second: float) -> int | None:
    return None if first == second else int(second > first)
