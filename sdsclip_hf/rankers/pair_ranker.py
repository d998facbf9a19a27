"""What the rankers have in common that look at a picture and a caption together."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.common.reading import picture_reading
from sdsclip_hf.common.tokenizers import check_words
from sdsclip_hf.rankers.caption_ranker import CaptionRanker


class PairRanker(CaptionRanker):
    """A model of transformers that scores one picture with one caption.

    Args:
        model: on its device.
        processor: the model's own, of an image processor and a tokenizer.
        name: of the model.
        revision: of the model on the Hub.
        batch_size: pairs at once; it changes scores by rounding alone.

    Raises:
        ValueError: the tokenizer's files are incomplete.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        name: str | Path,
        revision: str | None = None,
        batch_size: int = 64,
    ):
        super().__init__(str(name), revision)
        self.model: Any = model.eval()  # of many classes, each with parts of its own
        self.processor: Any = processor
        self.batch_size = batch_size
        check_words(self.processor.tokenizer)

    @abstractmethod
    def score_pairs(self, images: Sequence[Image.Image], captions: Sequence[str]) -> np.ndarray:
        """Scores (P,) of P pairs. A picture that stands in several is the same object."""

    def scores(self, images: Sequence[Image.Image], candidates: Sequence[Sequence[str]]) -> list[np.ndarray]:
        counts = [len(texts) for texts in candidates]
        repeated = [image for image, count in zip(images, counts, strict=True) for _ in range(count)]
        found = self.score_pairs(repeated, [text for texts in candidates for text in texts])
        return np.split(found, np.cumsum(counts)[:-1])

    def fingerprint(self) -> str:
        """Of the weights, and of all that preprocesses and tokenizes."""
        processor, tokenizer = self.processor, self.processor.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        words = backend.to_str() if backend else str(sorted(tokenizer.get_vocab().items()))
        reading = f"{picture_reading(processor.image_processor)}{words}{getattr(processor, 'chat_template', None)}"
        return f"{fingerprint(self.model)}-{hashlib.sha256(reading.encode()).hexdigest()[:8]}"
