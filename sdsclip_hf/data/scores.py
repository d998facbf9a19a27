"""The teacher's scores of candidate captions as training reads them: by picture, and checked to be what they say.

[`score_captions`] computes and writes them. A folder of scores, or a dataset on the Hub, holds ``data/*.parquet`` with a
row an item, and ``scores.json`` with what they were made by and a fingerprint of both.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from huggingface_hub import hf_hub_download

from sdsclip_hf import shapes
from sdsclip_hf.common.errors import expand, explain_loading
from sdsclip_hf.data.local_files import as_pattern
from sdsclip_hf.losses import calibrated_temperature, ranking_temperature, teacher_confidence

logger = logging.getLogger(__name__)

SCORES_FILE = "scores.json"
CALIBRATED_ON = 5_000  # items or a few more: one figure is fitted
LITTLE = 0.3  # at chance, some 10 to 20 % of the items look sure
FEATURES = datasets.Features(
    {
        "picture": datasets.Value("string"),  # images.picture_digest
        "caption": datasets.Value("string"),  # the picture's own
        "candidates": datasets.List(datasets.Value("string")),  # K captions in random order, the own one among them
        "errors": datasets.List(datasets.List(datasets.Value("float32"))),  # (K, R): d of each draw; (K, 0) if unscored
    }
)


class RankedItem(NamedTuple):
    """One picture's candidate captions and the teacher's scores of them.

    Args:
        caption: the picture's own.
        candidates: K captions, ``caption`` among them.
        errors: d(x, c_k) averaged over the draws, by the timestep weights where they were fitted, (K,) float32; NaN where
            nothing was scored.
        confidence: see [`teacher_confidence`]; 0 where nothing was scored.
    """

    caption: str
    candidates: list[str]
    errors: np.ndarray
    confidence: float


def score_settings(name_or_path: str | Path, revision: str | None = None) -> dict:
    """What the ``scores.json`` of a folder of scores, or of its copy on the Hub, holds.

    Raises:
        OSError: there is none, or it is damaged.
    """
    name = expand(shapes.resolve(name_or_path))
    with explain_loading("the scores", name, "--ranking_scores"):
        path = Path(name) / SCORES_FILE
        if not Path(name).is_dir():
            path = Path(hf_hub_download(name, SCORES_FILE, repo_type="dataset", revision=revision))
        elif not path.is_file():
            raise OSError(f"it has no {SCORES_FILE}; is its scoring finished?")
        return _check_readable(path, _read_settings)


class CandidateScores:
    """Scored candidate captions, loaded.

    Args:
        data: rows of ``FEATURES``.
        settings: what ``scores.json`` holds.
        name: for messages.

    Example:

    ```python
    from sdsclip_hf import CandidateScores

    scores = CandidateScores.load("shapes/scores")  # or a folder, or a Hub id
    item = scores.item(0)
    print(item.candidates[item.errors.argmin()] == item.caption)  # True
    print(scores.settings["teacher"]["name"], len(scores))  # shapes/teacher 4096
    ```
    """

    def __init__(self, data: datasets.Dataset, settings: dict, name: str = "scores"):
        self.data, self.settings, self.name = data, settings, name
        table = data.with_format("arrow")[:]
        self._captions, self._candidates = (table[column].combine_chunks() for column in ("caption", "candidates"))
        self._numbers: dict[str, list[int]] = {}
        for number, picture in enumerate(data["picture"]):
            self._numbers.setdefault(picture, []).append(number)
        self.errors, draws = _per_draw(data)  # (N, K, R), NaN where there is no candidate or draw
        if np.isinf(self.errors).any():
            raise ValueError(
                f"the scores {name!r} hold infinite errors; have them made anew by sdsclip score-captions."
            )
        if fitted := settings.get("timestep_weights"):
            self.errors = self.errors * np.asarray(fitted["weights"], np.float32)
        mean = np.full(self.errors.shape[:2], np.nan, np.float32)
        if draws:
            counts = (~np.isnan(self.errors)).sum(-1)
            mean = np.where(counts > 0, np.nansum(self.errors, -1) / np.maximum(counts, 1), np.nan).astype(np.float32)
        self.mean_errors: np.ndarray = mean
        self.ranked = (~np.isnan(mean)).sum(1) >= 2  # (N,): which items the teacher has ordered
        self.confidence = np.zeros(len(data), np.float32)
        if self.has_draws and self.ranked.any():
            self.confidence[self.ranked] = teacher_confidence(torch.from_numpy(self.errors[self.ranked])).numpy()

    @classmethod
    def load(cls, name_or_path: str | Path, revision: str | None = None) -> "CandidateScores":
        """Read a folder that ``sdsclip score-captions`` wrote, or its copy on the Hub.

        Raises:
            OSError: there is none.
            ValueError: its content is not what its fingerprint tells.
        """
        settings = score_settings(name_or_path, revision)
        name = expand(shapes.resolve(name_or_path))
        with explain_loading("the scores", name, "--ranking_scores"):
            path = Path(name)
            if path.is_dir():
                files = sorted(path.resolve().glob("data/*.parquet"))
                if not files:
                    raise OSError("it has no data/*.parquet")
                for file in files:  # one by one, since datasets would not tell which
                    _check_readable(file, pq.read_table)
                data = _check_readable(
                    path / "data",
                    lambda _: datasets.load_dataset("parquet", data_files=list(map(as_pattern, files)), split="train"),
                )
            else:
                data = datasets.load_dataset(name, split="train", revision=revision)
        found = content_fingerprint(data, settings)
        if found != settings["fingerprint"]:
            raise ValueError(
                f"the scores {name!r} are not what their {SCORES_FILE} describes: their fingerprint is {found}, not "
                f"{settings['fingerprint']}. Have them written anew by sdsclip score-captions."
            )
        return cls(data, settings, name)

    @property
    def fingerprint(self) -> str:
        return self.settings["fingerprint"]

    @property
    def max_candidates(self) -> int:
        """K: how many candidates an item has at most, its own caption among them."""
        return self.mean_errors.shape[1]

    def __len__(self) -> int:
        return len(self.data)

    def item(self, number: int) -> RankedItem:
        """Item ``number``."""
        candidates = self._candidates[number].as_py()
        errors = self.mean_errors[number, : len(candidates)]
        return RankedItem(self.caption(number), candidates, errors, float(self.confidence[number]))

    def caption(self, number: int) -> str:
        """The own caption of item ``number``."""
        return self._captions[number].as_py()

    def draw(self, numbers: Sequence[int], rng: np.random.Generator, others: int | None = None) -> RankedItem:
        """One of the items ``numbers`` at random, with ``others`` candidates (default: all) beside its own caption."""
        item = self.item(numbers[int(rng.integers(len(numbers)))])
        own = item.candidates.index(item.caption)
        rest = [place for place in range(len(item.candidates)) if place != own]
        if others is None or others >= len(rest):
            return item
        kept = sorted([own, *rng.choice(rest, others, replace=False).tolist()])
        return item._replace(candidates=[item.candidates[place] for place in kept], errors=item.errors[kept])

    def numbers_of(self, picture: str) -> Sequence[int]:
        """The numbers of a picture's items, by its [`picture_digest`].

        Raises:
            ValueError: it has none.
        """
        if picture not in self._numbers:
            raise ValueError(
                f"the scores {self.name!r} miss the picture with digest {picture}. Give scores that were made from "
                "this dataset (sdsclip score-captions), or leave --ranking_scores out."
            )
        return self._numbers[picture]

    @property
    def has_draws(self) -> bool:
        """Whether items have two or more draws, by which a teacher's confidence is told."""
        return self.errors.shape[-1] > 1

    def check_ranked(self, sure: float = 0.9) -> None:
        """Refuse scores that order nothing, and warn of a teacher that is hardly ever sure, or no better than chance.

        Raises:
            ValueError: no item has two scored candidates.
        """
        if not self.ranked.any():
            raise ValueError(
                f"the scores {self.name!r} order nothing: no picture has two or more scored candidates. Score them with "
                "sdsclip score-captions --teacher_name_or_path TEACHER, with candidates that the captions have."
            )
        share = float((self.confidence[self.ranked] > sure).mean())
        own, chance, deviation = self._own_first()
        if not self.has_draws and own < chance + 2 * deviation:
            logger.warning(
                "the scores %r carry little or no signal on this data: their ranker puts the image's own caption first on "
                "%.0f %% of the items (by chance %.0f %%). Score with a ranker that knows such pictures.",
                self.name,
                100 * own,
                100 * chance,
            )
        elif self.has_draws and (share < LITTLE or own < chance + 2 * deviation):
            logger.warning(
                "the scores %r carry little or no signal on this data: their teacher is sure (confidence above %s) of its "
                "first choice on %.0f %% of the items, and puts the image's own caption first on %.0f %% (by chance "
                "%.0f %%). Score with a teacher that knows such pictures, or with more --num_draws.",
                self.name,
                sure,
                100 * share,
                100 * own,
                100 * chance,
            )

    def _own_first(self) -> tuple[float, float, float]:
        """How often the own caption comes first, how often it would by chance, and the latter's standard error."""
        numbers = np.flatnonzero(self.ranked)
        best = np.where(np.isnan(self.mean_errors[numbers]), np.inf, self.mean_errors[numbers]).argmin(1)
        own = float(np.mean(best == self._own_places(numbers)))
        chance = float(np.mean(1 / (~np.isnan(self.mean_errors[numbers])).sum(1)))
        return own, chance, (chance * (1 - chance) / len(numbers)) ** 0.5

    def _own_places(self, numbers: np.ndarray) -> np.ndarray:
        """Where among its candidates the own caption of each of these items stands, (N,)."""
        rows: Any = self.data.select_columns(["caption", "candidates"]).select(numbers)
        return np.array([row["candidates"].index(row["caption"]) for row in rows])

    def check_teacher(self, name: str, weights: str | None = None, dtype: str | None = None) -> None:
        """Refuse scores of another teacher.

        Args:
            name: the teacher's, as the user knows it.
            weights, dtype: its [`checkpoints.fingerprint`] and number format. Without them, or where the scores were made in
                another format, whose weights are others, the names must agree.

        Raises:
            ValueError: another teacher made the scores.
        """
        by = self.settings.get("teacher")
        if by is None:
            return
        remedy, made_in = "Give scores of this teacher, or that --teacher_name_or_path", by.get("dtype", "float32")
        is_alike = weights is not None and f"torch.{made_in}" == dtype
        if not is_alike and len({portable_name(shapes.resolve(one)) for one in (name, by["name"])}) > 1:
            hint = "" if weights is None else f" (--teacher_dtype {made_in} compares weights in place of names)"
            raise ValueError(
                f"the scores {self.name!r} were made by the teacher {by['name']!r}, not by {name!r}{hint}. {remedy}, or "
                "leave --teacher_name_or_path out, since L_rank needs none."
            )
        if is_alike and weights != by["fingerprint"]:
            raise ValueError(
                f"the scores {self.name!r} were made by another teacher than {name!r}: by {by['name']!r}, whose weights "
                f"differ. {remedy}."
            )

    def check_captions(
        self, captions: Iterable[Sequence[str]], unless: Callable[[int], bool] = lambda number: False
    ) -> None:
        """Check before a long run that each row's captions hold one that was scored; a quick check, by no picture.

        Args:
            captions: those of each row; none of one that is left out.
            unless: tells whether a row, by its number, needs none.

        Raises:
            ValueError: a row has none.
        """
        scored = set(self.data["caption"])
        for number, texts in enumerate(captions):
            if texts and not scored.intersection(texts) and not unless(number):
                raise ValueError(
                    f"the scores {self.name!r} miss row {number} of the dataset, captioned {texts[0]!r:.100}. Give scores "
                    "that were made from this dataset (sdsclip score-captions), or leave --ranking_scores out."
                )

    def temperature(self, share: float) -> float:
        """tau that fits the spread of d, see [`ranking_temperature`]."""
        return ranking_temperature(torch.from_numpy(self.mean_errors[self.ranked]), share)

    def calibrated_temperature(self) -> float:
        """tau that fits how often the own captions come first, see [`calibrated_temperature`]; by a sample of the items.

        Raises:
            ValueError: fewer items are ranked than a fit needs.
        """
        numbers = np.flatnonzero(self.ranked)
        numbers = numbers[:: max(1, len(numbers) // CALIBRATED_ON)]
        errors, own = self.mean_errors[numbers], self._own_places(numbers)
        return calibrated_temperature(torch.from_numpy(errors), torch.from_numpy(own))


def _read_settings(path: Path) -> dict:
    settings = json.loads(path.read_bytes())
    if not isinstance(settings, dict) or not isinstance(settings.get("fingerprint"), str):
        raise ValueError("it tells no fingerprint")
    return settings


def _check_readable(path: Path, read: Callable[[Path], Any]) -> Any:
    """What ``read`` makes of a file of scores or their folder.

    Raises:
        OSError: it is damaged.
    """
    try:
        return read(path)
    except Exception as error:  # of which pyarrow and datasets have many
        reason = " ".join(str(error.__cause__ or error).split())
        raise OSError(
            f"{path} is damaged ({reason}). Take the folder away, and type sdsclip score-captions again or download it "
            "again."
        ) from error


def ranked_by(settings: dict) -> str | None:
    """The name of what made the scores that ``settings`` describe; None: they are unscored."""
    by = settings.get("teacher") or settings.get("ranker")
    return None if by is None else by["name"]


def portable_name(name: str) -> str:
    """A name that tells nothing of the machine: of a folder or file its last part."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def content_fingerprint(data: datasets.Dataset, settings: dict) -> str:
    """A digest of the items, their scores and what they were made by (all of ``settings`` but itself)."""
    digest = hashlib.sha256()
    described = {key: value for key, value in settings.items() if key != "fingerprint"}
    digest.update(json.dumps(described, sort_keys=True).encode())
    for column in ("picture", "caption"):
        digest.update("\0".join(data[column]).encode())
    for start in range(0, len(data), 10_000):
        part = data[start : start + 10_000]
        digest.update(json.dumps(part["candidates"]).encode())
        for errors in part["errors"]:
            digest.update(np.asarray(errors, np.float32).tobytes())
    return digest.hexdigest()[:16]


def _per_draw(data: datasets.Dataset) -> tuple[np.ndarray, int]:
    """All items' errors as one (N, K, R) array with NaN where an item has fewer candidates or draws; and R."""
    rows = [[np.asarray(candidate, np.float32) for candidate in item] for item in data["errors"]]
    candidates = max(map(len, rows), default=0)
    draws = max((len(candidate) for item in rows for candidate in item), default=0)
    errors = np.full((len(rows), candidates, draws), np.nan, np.float32)
    for number, item in enumerate(rows):
        for place, candidate in enumerate(item):
            errors[number, place, : len(candidate)] = candidate
    return errors, draws
