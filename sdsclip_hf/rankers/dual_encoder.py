"""A dual encoder as a ranker: a SigLIP, for instance, that teaches a CLIP."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sdsclip_hf.benchmarks import Item
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.rankers.caption_ranker import CaptionRanker
from sdsclip_hf.students.dual_encoder import DualEncoder
from sdsclip_hf.students.kinds import logit_scale


class DualEncoderRanker(CaptionRanker):
    """s * cos(f(x), g(c)), the model's own logits: at tau = 1 L_rank's targets are its softmax over the candidates.

    Args:
        encoder: from [`load_dual_encoder`].
        name: of the model.
        revision: of the model on the Hub.
        batch_size: pictures or captions at once.

    Example:

    ```python
    from sdsclip_hf.rankers.dual_encoder import DualEncoderRanker
    from sdsclip_hf.shapes import load_shapes
    from sdsclip_hf.students.dual_encoder import load_dual_encoder

    ranker = DualEncoderRanker(load_dual_encoder("shapes/student"), "shapes/student")
    image = load_shapes("test", per_scene=1)[0]["image"]
    (scores,) = ranker.scores([image], [["a red circle", "a blue square"]])
    print(scores.shape)  # (2,)
    ```
    """

    kind = "dual_encoder"

    def __init__(self, encoder: DualEncoder, name: str | Path, revision: str | None = None, batch_size: int = 64):
        super().__init__(str(name), revision)
        self.encoder = encoder
        self.scorer = ClipScorer(encoder.model, encoder.processor, batch_size)
        self.scale = logit_scale(encoder.model).item()

    def fingerprint(self) -> str:
        return self.encoder.fingerprint()

    def scores(self, images: Sequence[Image.Image], candidates: Sequence[Sequence[str]]) -> list[np.ndarray]:
        pairs = zip(images, candidates, strict=True)
        items = [Item(images=(image,), captions=tuple(texts), identifier="") for image, texts in pairs]
        return [self.scale * matrix[:, 0] for matrix in self.scorer.score(items)]
