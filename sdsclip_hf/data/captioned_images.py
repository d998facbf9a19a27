"""Rows of pictures and captions by number: columns checked, one caption drawn, rows that lack either passed over."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from functools import lru_cache

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor

from sdsclip_hf.common.reading import picture_reading
from sdsclip_hf.common.shared_memory import shared
from sdsclip_hf.data.images import BadImageError, BadImages, picture_digest, read_image
from sdsclip_hf.data.places import PLACE, PLACES
from sdsclip_hf.data.scores import CandidateScores

CHECKED_PICTURES = 64
BLANK, WORDLESS = Image.new("RGB", (32, 32)), ""


class CaptionedImages:
    """What map-style and streaming datasets share: columns checked, one caption drawn, bad rows passed over.

    A row with several captions gives one of them at a time, drawn anew each epoch by (seed, epoch, row), so that a
    resumed run sees the same. In training a row whose image cannot be read or whose caption is missing is replaced by
    the next good one; in evaluation it stands as a blank one that is marked, since a pair that stands twice in a batch
    would be its own negative. Missing is what is None or NaN, a list without captions, or with a missing one.

    Args:
        source: the dataset.
        image_column, caption_column: where images and captions stand; a caption cell is a string or a list of strings.
        seed: of the caption draws.
        bad_images: where unreadable images and missing captions are noted; default: the first one is an error.
        scores: scored candidates of each image; its caption is then one of those that were scored.
        with_candidates: whether the examples hold the candidates, too, as ``item``.
        num_candidates: how many of them are drawn beside the image's own caption; default: all.
        for_evaluation: whether examples tell, as ``readable``, if they have a picture and a caption.
        negative_column: where wrong pictures of the captions stand, which examples then hold as ``negative``; none where
            a cell is empty. Those that cannot be read, or are the own picture, are noted as bad images.

    Raises:
        ValueError: a column is missing, or ``scores`` miss an image.
    """

    def __init__(
        self,
        source: datasets.Dataset | datasets.IterableDataset,
        image_column: str = "image",
        caption_column: str = "caption",
        seed: int = 0,
        bad_images: BadImages | None = None,
        scores: CandidateScores | None = None,
        with_candidates: bool = False,
        num_candidates: int | None = None,
        for_evaluation: bool = False,
        negative_column: str | None = None,
    ):
        self.image_column, self.caption_column, self.negative_column = image_column, caption_column, negative_column
        self.seed = seed
        self._epoch = shared(torch.zeros((), dtype=torch.int64))  # so that workers that live on see it change
        self.bad_images = bad_images or BadImages(0)
        self.scores, self.with_candidates, self.num_candidates = scores, with_candidates, num_candidates
        self.for_evaluation = for_evaluation
        self._columns = _columns(source, image_column, caption_column, negative_column)
        self.source = source.with_format(None).select_columns(self._columns)
        for column in filter(None, (image_column, negative_column)):
            self.source = _undecoded(self.source, column)

    @property
    def epoch(self) -> int:
        """The epoch that captions are drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of each epoch."""
        self._epoch.fill_(epoch)

    def _example(self, row: dict, number: int) -> dict | None:
        """One picture and one caption, or None when the row lacks either and another pair is to take its place."""
        captions = self.captions_of(row, number)
        if not captions:
            self.note_missing_caption(row, number)
            return self._stand_in({"caption": WORDLESS, "captions": []})
        try:
            picture, digest = self._picture(row, number)
        except OSError as error:
            self.bad_images.record(self._name_of_image(row, number), error)
            return self._stand_in(self._words(captions, number))
        if self.for_evaluation:
            picture = picture | {"readable": True}
        if self.negative_column is not None:
            picture = picture | {"negative": self._negative(row, number)}
        words = self._words(captions, number)
        if self.scores is None:
            return picture | words
        item = self.scores.draw(self._items(row, number, digest), self._rng(number), self.num_candidates)
        example = picture | words | {"caption": item.caption}
        return example | {"item": item} if self.with_candidates else example

    def _stand_in(self, words: dict) -> dict | None:
        """What stands for a bad row, where something has to."""
        if not self.for_evaluation:
            return None
        blank, _ = self._prepared(BLANK, None)
        return blank | words | {"readable": False}

    def _picture(self, row: dict, number: int) -> tuple[dict, str | None]:
        """A row's picture as an example holds it, and its digest where scores are looked up by it."""
        cell = row[self.image_column]
        return self._prepared(read_image(cell), cell)

    def _negative(self, row: dict, number: int) -> dict | None:
        """A row's wrong picture as an example holds it, or None where there is none; a bad one is noted."""
        cell = row[self.negative_column]
        if cell is None:
            return None
        try:
            image = read_image(cell)
            if picture_digest(cell, image) == picture_digest(row[self.image_column]):
                raise OSError(f"it is the same picture as that of column {self.image_column!r}")
        except OSError as error:
            self.bad_images.record(f"{self._tell_row(row, number)}, column {self.negative_column!r}", error)
            return None
        return self._prepared(image, None)[0]

    def _prepared(self, image: Image.Image, cell) -> tuple[dict, str | None]:
        """As [`_picture`], of a picture that has been read from ``cell``, or from nowhere."""
        return {"image": image}, None if self.scores is None or cell is None else picture_digest(cell, image)

    def _items(self, row: dict, number: int, picture: str) -> list[int]:
        """The scored items of a row: those of its picture, of which other rows may have some, with its captions."""
        captions, of_picture = self.captions_of(row, number), self.scores.numbers_of(picture)
        items = [item for item in of_picture if self.scores.caption(item) in captions]
        if not items:
            raise ValueError(
                f"{self._tell_row(row, number)}: the scores {self.scores.name!r} hold "
                f"{self.scores.caption(of_picture[0])!r:.100} for its picture, which is none of its captions "
                f"{row[self.caption_column]!r:.200}. Give scores that were made from this dataset."
            )
        return items

    def _rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, number])

    def captions_of(self, row: dict, number: int) -> list[str]:
        """The captions of a row; none where one is missing and such rows may be skipped.

        Raises:
            ValueError: one is missing, and none may be; or there is what is no string.
        """
        cell = row[self.caption_column]
        captions = [cell] if isinstance(cell, str) else cell
        if isinstance(captions, (list, tuple)) and captions and all(isinstance(text, str) for text in captions):
            return list(captions)
        missing = _is_missing(cell)
        if missing and self.bad_images.limit != 0:
            return []
        remedy = ", mend the row, or let it be skipped by --max_bad_images." if missing else ", or mend the row."
        raise ValueError(
            f"{self._tell_row(row, number)}: column {self.caption_column!r} holds {cell!r:.200}; a caption must be a "
            f"string or a list of strings. Choose another --caption_column{remedy}"
        )

    def note_missing_caption(self, row: dict, number: int) -> None:
        """Note that a row has none.

        Raises:
            BadImageError: that is one too many.
        """
        reason = f"column {self.caption_column!r} holds {row[self.caption_column]!r:.100}, so that a caption is missing"
        self.bad_images.record(self._tell_row(row, number), ValueError(reason))

    def _words(self, captions: list[str], number: int) -> dict:
        """A row's caption as an example holds it, drawn of several, and ``captions``: all of them."""
        drawn = captions[0] if len(captions) == 1 else captions[int(self._rng(number).integers(len(captions)))]
        return {"caption": drawn, "captions": captions}

    def _name_of_image(self, row: dict, number: int) -> str:
        """The path of a file of its own; else the row, and the name that its bytes are stored under if there is one."""
        if (path := self._path_of_image(row)) is not None:
            return path
        cell = row[self.image_column]
        stored_as = cell.get("path") if isinstance(cell, dict) else None
        return self._tell_row(row, number) + (f" ({stored_as})" if stored_as else "")

    def _path_of_image(self, row: dict) -> str | None:
        """Where a row's picture stands in a file of its own; None where it does not."""
        cell = row[self.image_column]
        if isinstance(cell, dict):
            cell = cell.get("path") if cell.get("bytes") is None else None
        return str(cell) if isinstance(cell, (str, os.PathLike)) and str(cell) else None

    def _tell_row(self, row: dict, number: int) -> str:
        return f"row {number}"


class ImageCaptionDataset(CaptionedImages, torch.utils.data.Dataset):
    """Rows by number: a picture and one of its captions, drawn anew each epoch; rows that lack either are passed over.

    A row is a dict of ``image``, a picture in RGB, ``caption``, and ``captions``, all that it has. The arguments before
    ``image_processor`` are those of [`CaptionedImages`].

    Args:
        source: a ``datasets`` dataset.
        image_column: where the pictures stand.
        caption_column: where the captions stand; a cell is a string or a list of strings.
        seed: of the caption draws.
        bad_images: where unreadable pictures and missing captions are noted; default: the first one is an error.
        scores: scored candidates of each picture; its caption is then one of those that were scored.
        with_candidates: whether rows hold the candidates, too, as ``item``.
        num_candidates: how many of them are drawn beside the own caption; default: all.
        for_evaluation: whether rows tell, as ``readable``, if they have a picture and a caption; see [`CaptionedImages`].
        image_processor: if given, it prepares each picture once; what it makes is kept in memory, for later datasets of
            the same rows in this process, too, and examples hold that, ``pixel_values`` (3, H, W) for one, in place of
            ``image``.

    Example:

    ```python
    from sdsclip_hf.data.captioned_images import ImageCaptionDataset
    from sdsclip_hf.shapes import load_shapes

    dataset = ImageCaptionDataset(load_shapes("validation", per_scene=1), seed=0)
    print(sorted(dataset[0]))  # ['caption', 'captions', 'image']
    first = dataset[0]["caption"]
    dataset.set_epoch(1)  # from now on another of its captions may be drawn
    print(first in dataset.captions())  # True
    ```
    """

    def __init__(self, *args, image_processor: BaseImageProcessor | None = None, **options):
        super().__init__(*args, **options)
        self.image_processor = image_processor
        if image_processor is not None:
            columns = self.image_column, self.negative_column
            self._kept = _kept_images(self.source._fingerprint, columns, picture_reading(image_processor))

    def _picture(self, row: dict, number: int) -> tuple[dict, str | None]:
        if self.image_processor is None:
            return super()._picture(row, number)
        if number not in self._kept:
            cell = row[self.image_column]
            prepared = self._prepared(read_image(cell), cell)
            negative = None if self.negative_column is None else super()._negative(row, number)
            self._kept[number] = *prepared, row[self.caption_column], negative
        return self._kept[number][:2]

    def _negative(self, row: dict, number: int) -> dict | None:
        return super()._negative(row, number) if self.image_processor is None else self._kept[number][3]

    def _prepared(self, image: Image.Image, cell) -> tuple[dict, str | None]:
        if self.image_processor is None:
            return super()._prepared(image, cell)
        made = {name: value[0] for name, value in self.image_processor([image], return_tensors="pt").items()}
        return made, None if cell is None else picture_digest(cell, image)

    def _row(self, number: int) -> dict:
        """A row of the dataset; of one whose picture is kept its captions alone."""
        if self.image_processor is None or number not in self._kept:
            return self.source[number]
        return {self.image_column: None, self.caption_column: self._kept[number][2]}

    def __len__(self) -> int:
        return len(self.source)

    def captions(self) -> list[str]:
        """All captions, each once, in the order of the rows; with what stands for a missing one where there is one."""
        return list(dict.fromkeys(text for captions in self._all_captions() for text in captions or [WORDLESS]))

    def _all_captions(self) -> Iterator[list[str]]:
        """Those of each row; none where one is missing and such rows may be skipped."""
        cells = self.source.select_columns([self.caption_column])
        return (self.captions_of(row, number) for number, row in enumerate(cells))

    def identity(self) -> dict[str, int | str]:
        """What tells these data from others: ``rows``, and digests of all ``captions`` and of a sample of ``pictures``."""
        captions, pictures = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8)
        for batch in self.source.select_columns([self.caption_column]).iter(batch_size=10_000):
            captions.update(json.dumps(batch[self.caption_column], default=str).encode())
        for number in self._sample():
            try:
                pictures.update(picture_digest(self.source[number][self.image_column]).encode())
            except OSError:
                pictures.update(b"unreadable")
        return {"rows": len(self), "captions": captions.hexdigest(), "pictures": pictures.hexdigest()}

    def _sample(self) -> list[int]:
        """Rows all over the dataset, whose pictures are looked at."""
        return np.linspace(0, len(self) - 1, min(len(self), CHECKED_PICTURES)).astype(int).tolist()

    def check_scores(self) -> None:
        """Raise ValueError if the scores miss the captions of any row, or the pictures of a sample of the rows."""
        if self.scores is None:
            return
        self.scores.check_captions(self._all_captions(), unless=self._is_unreadable)
        for number in self._sample():
            row = self.source[number]
            if not self.captions_of(row, number):
                continue
            try:
                self.scores.numbers_of(picture_digest(row[self.image_column]))
            except OSError:  # an unreadable one is dealt with when its turn comes
                continue

    def _is_unreadable(self, number: int) -> bool:
        """Whether a row's picture cannot be read, and was therefore left out when captions were scored."""
        try:
            read_image(self.source[number][self.image_column])
        except OSError:
            return True
        return False

    def __getitem__(self, number: int) -> dict:
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} does not exist; the dataset has {len(self)}.")
        for offset in range(len(self)):
            row_number = (number + offset) % len(self)
            example = self._example(self._row(row_number), row_number)
            if example is not None:
                return example
        raise BadImageError(
            f"none of the {len(self)} rows has a readable image and a caption; {self.bad_images.path} tells the reasons. "
            "Mend them, or choose another --image_column or --caption_column."
        )


@lru_cache(maxsize=2)  # one to train on and one to evaluate on
def _kept_images(fingerprint: str, columns: tuple, image_processor: str) -> dict[int, tuple]:
    """Row -> its prepared picture, the digest, its captions, its wrong picture: at first empty, one for equal arguments."""
    return {}


def _columns(source, image_column: str, caption_column: str, negative_column: str | None) -> list[str]:
    """The columns that are read: those that are named, and those that tell a row's place."""
    columns = source.column_names or list(next(iter(source), {}))  # a stream may not know its columns beforehand
    for what, column, option in (
        ("image", image_column, "--image_column"),
        ("caption", caption_column, "--caption_column"),
        ("negative image", negative_column, "--negative_image_column"),
    ):
        if column is not None and column not in columns:
            have = ", ".join(repr(name) for name in columns if name != PLACE)
            raise ValueError(f"{what} column {column!r} not found; the dataset has {have}. Pass {option}.")
    places = [name for name in PLACES if name in columns] if isinstance(source, datasets.IterableDataset) else []
    return list(dict.fromkeys(filter(None, [image_column, caption_column, negative_column, *places])))


def _is_missing(cell) -> bool:
    """Whether a caption cell holds none: nothing, the NaN that stands for it in tables, or a list with none in it."""
    if isinstance(cell, (list, tuple)):
        return all(isinstance(text, str) or _is_nothing(text) for text in cell)
    return _is_nothing(cell)


def _is_nothing(value) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _undecoded(source, image_column: str):
    if isinstance((source.features or {}).get(image_column), datasets.Image):
        source = source.cast_column(image_column, datasets.Image(decode=False))
    return source
