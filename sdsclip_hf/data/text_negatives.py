"""Wrong captions that lie in a dataset of their own, without pictures, put beside the pictures by their ids."""

import re

import datasets

from sdsclip_hf.data.duplicates import plain_words

NEGATIVES = "negative_captions"


def join_negatives(
    pictures: datasets.Dataset,
    negatives: datasets.Dataset,
    *,
    image_id_column: str = "image_id",
    negative_id_column: str = "image_id",
    negative_caption_column: str = "negative_caption",
    caption_column: str = "caption",
    id_pattern: str | None = None,
) -> datasets.Dataset:
    """The pictures with the column ``negative_captions``: of each row the wrong captions of its id, each once.

    A wrong caption of the same words as a true one of its row is left out.

    Args:
        pictures: rows of a picture, its captions and its id.
        negatives: rows of an id and a wrong caption or a list of them, as imirandam/TROHN-Text has.
        image_id_column, negative_id_column: of the ids, numbers or texts; leading zeros do not count.
        negative_caption_column: of the wrong captions.
        caption_column: of the true ones, a string or a list of them.
        id_pattern: a regular expression, whose first group, or all that it finds, is taken of the ids; of COCO's file names
            ``[0-9]+(?=\\.jpg)``.

    Raises:
        ValueError: a column is missing, an id does not fit the pattern, no id is in both, or the pictures have negatives.
    """
    for what, dataset, of, column, option in (
        ("id", pictures, "pictures", image_id_column, "image_id_column"),
        ("caption", pictures, "pictures", caption_column, "caption_column"),
        ("id", negatives, "negatives", negative_id_column, "negative_id_column"),
        ("negative caption", negatives, "negatives", negative_caption_column, "negative_caption_column"),
    ):
        if column not in dataset.column_names:
            have = ", ".join(map(repr, dataset.column_names))
            raise ValueError(f"{what} column {column!r} not found; the dataset of {of} has {have}. Pass --{option}.")
    if NEGATIVES in pictures.column_names:
        raise ValueError(
            f"the dataset of pictures has a column {NEGATIVES!r} already, where the negatives go; give it without that one."
        )
    by_id: dict[str, list[str]] = {}
    for name, cell in zip(negatives[negative_id_column], negatives[negative_caption_column], strict=True):
        by_id.setdefault(_plain_id(name, id_pattern), []).extend([cell] if isinstance(cell, str) else cell or [])
    names = [_plain_id(name, id_pattern) for name in pictures[image_id_column]]
    if not by_id.keys() & set(names):
        raise ValueError(
            f"no picture has the id of a wrong caption: pictures have ids like {names[0]!r}, wrong captions like "
            f"{next(iter(by_id), '')!r}. Pass --image_id_column and --negative_id_column, or an --id_pattern."
        )
    found = [
        _wrong(by_id.get(name, ()), captions) for name, captions in zip(names, pictures[caption_column], strict=True)
    ]
    return pictures.add_column(NEGATIVES, found, feature=datasets.List(datasets.Value("string")))


def _plain_id(name, pattern: str | None) -> str:
    text = str(name)
    if pattern is not None:
        match = re.search(pattern, text)
        if match is None:
            raise ValueError(f"the id {text!r} does not fit the id_pattern {pattern!r}; set another --id_pattern.")
        text = match[match.re.groups and 1]
    return text.lstrip("0") or "0"


def _wrong(texts, captions: str | list[str]) -> list[str]:
    taken = {plain_words(text) for text in ([captions] if isinstance(captions, str) else captions or [])}
    found = []
    for text in texts:
        if plain_words(text) not in taken:
            taken.add(plain_words(text))
            found.append(text)
    return found
