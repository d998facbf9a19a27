"""What orders a picture's candidate captions by one score each: the form of all rankers, and any function as one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor

ScoreFunction = Callable[[Image.Image, list[str]], Any]


class CaptionRanker(ABC):
    """Scores candidate captions of pictures; [`score_captions`] writes what it finds as a folder for training.

    L_rank reads d = -score. Where a score is a log-probability, tau = 1 (``--ranking_temperature 1``) gives the ranker's own
    distribution over the candidates. A score has one draw, so that ``--ranking_confidence`` has nothing to go by.

    Args:
        name: of the model or function, told in the folder and in the student's card.
        revision: of the model on the Hub, or any text that changes when the scores do.

    Example:

    ```python
    from sdsclip_hf import CaptionRanker

    class ShortestFirst(CaptionRanker):
        kind = "rule"

        def scores(self, images, candidates):
            return [[-len(text) for text in texts] for texts in candidates]

    ranker = ShortestFirst("shortest first")
    print(ranker.errors([None], [["a red cat", "a cat"]])[0].tolist())  # [[9.0], [5.0]]
    ```
    """

    kind: ClassVar[str]

    def __init__(self, name: str, revision: str | None = None):
        self.name, self.revision = name, revision

    @abstractmethod
    def scores(self, images: Sequence[Image.Image], candidates: Sequence[Sequence[str]]) -> Sequence:
        """A score of each candidate of N pictures, higher where it matches better.

        Args:
            images: N pictures; one may stand several times.
            candidates: K captions of each, at least two.

        Returns:
            N times (K,), log-probabilities or in any unit that is the same for all pictures.
        """

    def fingerprint(self) -> str | None:
        """A digest of what decides the scores; None where there is none."""
        return None

    def settings(self) -> dict[str, Any]:
        """What ``scores.json`` tells of it: a folder that another ranker began is refused."""
        return {"kind": self.kind, "name": self.name, "revision": self.revision, "fingerprint": self.fingerprint()}

    def errors(self, images: Sequence[Image.Image], candidates: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """d = -score of the candidates of N pictures, (K, 1) float32 each.

        (K, 0), as of what is unscored, where there is nothing to order: fewer than two captions, or all scored alike.

        Raises:
            ValueError: the scores are not one finite number a candidate.
        """
        found = [np.empty((len(texts), 0), np.float32) for texts in candidates]
        several = [place for place, texts in enumerate(candidates) if len(texts) > 1]
        if not several:
            return found
        scored = self.scores([images[place] for place in several], [candidates[place] for place in several])
        if len(scored) != len(several):
            raise ValueError(
                f"the ranker {self.name!r} gave scores of {len(scored)} pictures for {len(several)}; mend its `scores`."
            )
        for place, scores in zip(several, scored, strict=True):
            errors = -self._checked(scores, candidates[place])
            if np.ptp(errors) > 0:
                found[place] = errors[:, None]
        return found

    def _checked(self, scores: Any, texts: Sequence[str]) -> np.ndarray:
        """The scores of one picture's candidates as (K,) float32."""
        try:
            found = np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else scores, np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the ranker {self.name!r} gave {scores!r:.200} for {len(texts)} candidates, which are no numbers; it must "
                "give one number each."
            ) from error
        if found.shape != (len(texts),):
            raise ValueError(
                f"the ranker {self.name!r} gave scores of shape {found.shape} for {len(texts)} candidates; it must give one "
                f"number each, of shape ({len(texts)},)."
            )
        if not np.isfinite(found).all():
            place = int(np.flatnonzero(~np.isfinite(found))[0])
            raise ValueError(
                f"the ranker {self.name!r} scored the candidate {texts[place]!r:.100} as {found[place]}; a score must be a "
                "finite float32 number. Mend the ranker."
            )
        return found


class FunctionRanker(CaptionRanker):
    """A function (picture, candidates) -> scores as a ranker. [`score_captions`] makes one of a bare function.

    Args:
        function: takes a picture and its K captions, and gives K scores, higher where one matches better.
        name: default: the function's own.
        revision: any text; change it where the function changes, so that scores of the two are not mixed.

    Example:

    ```python
    from sdsclip_hf import CandidateScores, FunctionRanker
    from sdsclip_hf.scoring.score_captions import score_captions
    from sdsclip_hf.shapes import load_shapes

    def redness(image, captions):
        red = image.convert("RGB").resize((1, 1)).getpixel((0, 0))[0] / 255
        return [red if "red" in caption else 1 - red for caption in captions]

    ranker = FunctionRanker(redness, revision="1")
    dataset = load_shapes("train", per_scene=1).select(range(8))
    score_captions(ranker, dataset, output_dir="scores/redness", candidates=["swap:3", "batch:2"])
    print(CandidateScores.load("scores/redness").settings["ranker"]["name"])  # redness
    ```
    """

    kind = "function"

    def __init__(self, function: ScoreFunction, name: str | None = None, revision: str | None = None):
        super().__init__(name or getattr(function, "__name__", type(function).__name__), revision)
        self.function = function

    def scores(self, images: Sequence[Image.Image], candidates: Sequence[Sequence[str]]) -> list:
        return [self.function(image, list(texts)) for image, texts in zip(images, candidates, strict=True)]
