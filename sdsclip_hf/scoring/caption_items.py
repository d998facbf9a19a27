"""What is to be scored: a dataset's pictures, each with its caption among candidates in random order."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import datasets
import numpy as np
from PIL import Image

from sdsclip_hf.data.captioned_images import ImageCaptionDataset
from sdsclip_hf.data.duplicates import plain_words
from sdsclip_hf.data.images import picture_digest, read_image
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.scoring.candidates import Corpus, load_tagger, mix_candidates


class CaptionItem(NamedTuple):
    """A picture and the captions to be scored against it.

    Args:
        picture: its [`picture_digest`].
        row: of the dataset, whose picture is scored: its own, or in the control experiment another's.
        caption: the picture's own.
        candidates: K captions in random order, ``caption`` among them.
    """

    picture: str
    row: int
    caption: str
    candidates: list[str]


class CaptionedRows(ImageCaptionDataset):
    """A dataset's pictures and captions by row; see [`CaptionedImages`] for the arguments."""

    @cached_property
    def captions(self) -> list[list[str]]:
        """Each row's true captions, every one once; none where one is missing and such rows may be left out.

        Raises:
            ValueError: a cell holds neither a string nor a list of strings.
        """
        return [list(dict.fromkeys(captions)) for captions in self._all_captions()]

    def picture(self, number: int) -> Image.Image | None:
        """The picture of a row, or None where it cannot be read; that is noted."""
        return self._read(read_image, number)

    def digest(self, number: int) -> str | None:
        """The [`picture_digest`] of a row, or None where it cannot be read or has no caption; that is noted."""
        if not self.captions[number]:
            self.note_missing_caption(self.source[number], number)
            return None
        return self._read(picture_digest, number)

    def _read(self, reader, number: int):
        row = self.source[number]
        try:
            return reader(row[self.image_column])
        except OSError as error:
            self.bad_images.record(self._name_of_image(row, number), error)
            return None
        except TypeError as error:
            raise ValueError(str(error)) from error


def caption_items(
    rows: CaptionedRows,
    sources: dict[str, int],
    *,
    given: Sequence[Sequence[str]] | None = None,
    embedder: ClipScorer | None = None,
    captions_per_image: int = 1,
    wrong_images: bool = False,
    seed: int = 0,
) -> list[CaptionItem]:
    """The items of a dataset, in the order of its rows; those of unreadable pictures and missing captions are left out.

    Args:
        rows: the dataset.
        sources: of the candidates, see [`parse_sources`].
        given: of source ``column``, a list of captions a row, see [`given_candidates`].
        embedder: of source ``nearest``.
        captions_per_image: how many of a row's captions make an item each; they are drawn by (seed, row).
        wrong_images: score the picture of another row.
        seed: of all that is drawn.

    Raises:
        ValueError: there are too few other captions, or no other picture.
        ImportError: source ``swap`` wants a tagger that is not installed.
    """
    true = rows.captions
    digests = [rows.digest(number) for number in range(len(rows))]
    readable = [number for number, digest in enumerate(digests) if digest is not None]
    drawn = [
        (number, text) for number in readable for text in _shuffle(true[number], [seed, number, 1])[:captions_per_image]
    ]
    also_true: dict[str, list[str]] = {}
    for number in readable:
        also_true.setdefault(digests[number], []).extend(true[number])
    corpus = Corpus([text for _, text in drawn], [digests[number] for number, _ in drawn], also_true)
    others = mix_candidates(
        corpus,
        sources,
        given=given and [given[number] for number, _ in drawn],
        tagger=load_tagger() if "swap" in sources else None,
        embeds=embedder.embed_captions(corpus.captions) if "nearest" in sources else None,
        seed=seed,
    )
    scored = _others_pictures(digests, seed) if wrong_images else range(len(rows))
    return [
        CaptionItem(digests[number], scored[number], text, _shuffle([text, *candidates], [seed, place, 2]))
        for place, ((number, text), candidates) in enumerate(zip(drawn, others, strict=True))
    ]


def given_candidates(dataset: datasets.Dataset, column: str, captions: Sequence[Sequence[str]]) -> list[list[str]]:
    """The candidates that a column of the dataset gives, a list a row.

    Args:
        dataset: N rows.
        column: holds a caption or a list of them.
        captions: each row's true captions, (N); a row without any is given no candidates.

    Raises:
        ValueError: there is no such column, it holds something else, or a candidate is a true caption.
    """
    if column not in dataset.column_names:
        have = ", ".join(map(repr, dataset.column_names))
        raise ValueError(f"candidates column {column!r} not found; the dataset has {have}. Pass --candidates_column.")
    found = []
    for number, (cell, true) in enumerate(zip(dataset[column], captions, strict=True)):
        texts = [] if not true else [cell] if isinstance(cell, str) else cell
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"row {number}: column {column!r} holds {cell!r:.200}; candidates must be a string or a list of strings. "
                "Choose another --candidates_column, or mend the row."
            )
        for text in texts:
            if plain_words(text) in map(plain_words, true):
                raise ValueError(
                    f"row {number}: the candidate {text!r} of column {column!r} is the picture's own caption, word for "
                    "word. Mend the row, or choose another --candidates_column."
                )
        found.append(list(texts))
    return found


def _shuffle(texts: Sequence[str], seed: Sequence[int]) -> list[str]:
    """In random order; the last number of the seed tells what for, lest one order tell another."""
    return [texts[place] for place in np.random.default_rng(seed).permutation(len(texts))]


def _others_pictures(digests: Sequence[str | None], seed: int) -> list[int]:
    """For each row another row with another picture: the pictures in a random circle, each gives way to the next."""
    row_of = {digest: row for row, digest in enumerate(digests) if digest is not None}
    circle = _shuffle(list(row_of), [seed, 0, 3])
    if len(circle) < 2:
        raise ValueError("--wrong_images needs at least two different pictures; give more rows.")
    following = dict(zip(circle, [*circle[1:], circle[0]], strict=True))
    return [row if digest is None else row_of[following[digest]] for row, digest in enumerate(digests)]
