"""The two general forms: pairs (two captions and two images) and choices (the true one above all others), of any columns."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

from sdsclip_hf.benchmarks.files import PictureFiles
from sdsclip_hf.benchmarks.items import Benchmark, Box, Item, picture_key
from sdsclip_hf.benchmarks.rows import HOLE, DatasetRows, FileRows, Row
from sdsclip_hf.benchmarks.sources import Options, collect, open_dataset, open_table

LISTS = ("captions", "images", "labels", "box", "at_least", "table")
DEFAULTS = {
    "pairs": {"captions": "caption_0,caption_1", "images": "image_0,image_1"},
    "choices": {"captions": "caption,negative_caption", "images": "image"},
}


@dataclass(frozen=True)
class ColumnMap:
    """Which columns of a source make an item, and where in the source they are.

    A column may also be a path into a cell (``mturk.caption``, ``captions.0``) or a template of columns
    (``a photo of {Statement}``, ``{folder}/{id}.jpg``); a cell may hold one thing or a list of them.

    Args:
        captions: all that these columns hold, one after the other. Of pairs there are two. Of choices the first is the
            true one, unless ``answer`` tells.
        images: the same of images: pictures, or the names or addresses of their files. Choices have one image and
            several captions, or one caption and several images.
        answer: holds the true candidate's number, from 0, or the true caption itself.
        tag: the subset that an item belongs to.
        tag_pattern: a regular expression, whose first group, or all that it finds, is taken of the tag.
        labels: further ways to divide the items.
        id: names the item; default: ``id``, the key in the file, or its number.
        box: left, top, width and height of the part of the image that is shown.
        at_least: a column and a number: rows with less are left out.
        merged: how many neighbouring rows of a table are one item.
        table: the file of rows in a folder or an archive (json, jsonl or csv); of several names the first that is there.
        split, config: of a dataset.
        image_dir: a folder, zip or tar with the images; default: that of the options.
        url: the address of an image, with ``{}`` where its name goes.
        items: how many items there should be.

    Example:

    ```python
    from sdsclip_hf.benchmarks import ColumnMap

    columns = ColumnMap.of({"captions": "c0,c1", "images": "{folder}/{id}.jpg"}, "mine")
    print(columns.captions, columns.images)  # ('c0', 'c1') ('{folder}/{id}.jpg',)
    ```
    """

    captions: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    answer: str = ""
    tag: str = ""
    tag_pattern: str = ""
    labels: tuple[str, ...] = ()
    id: str = ""
    box: tuple[str, ...] = ()
    at_least: tuple[str, ...] = ()
    merged: int = 1
    table: tuple[str, ...] = ()
    split: str = ""
    config: str = ""
    image_dir: str = ""
    url: str = ""
    items: int | None = None

    @classmethod
    def of(cls, keys: dict, told: str) -> "ColumnMap":
        """From keys and values as a command line or a yaml file has them.

        Raises:
            ValueError: there is no such key, or a value is none of its.
        """
        known = [field.name for field in fields(cls)]
        unknown = next((key for key in keys if key not in known), None)
        if unknown is not None:
            raise ValueError(f"{told}: unknown key {unknown!r} in the column map; choose from {', '.join(known)}.")
        values = {}
        for key, value in keys.items():
            if key in LISTS:
                value = (
                    value.split(",") if isinstance(value, str) else [value] if not isinstance(value, list) else value
                )
                values[key] = tuple(str(one).strip() for one in value)
            elif key in ("merged", "items"):
                if not str(value).isdigit() or int(value) < 1:
                    raise ValueError(f"{told}: {key} is {value!r}; it must be a whole number of at least 1.")
                values[key] = int(value)
            else:
                values[key] = str(value)
        for key, count, what in (("box", 4, "left, top, width and height"), ("at_least", 2, "a column and a number")):
            found = values.get(key, ())
            if len(found) not in (0, count) or (key == "at_least" and found and not _is_number(found[1])):
                raise ValueError(f"{told}: {key} is {','.join(values[key])!r}; it must tell {what}.")
        return cls(**values)

    def lacks(self, rows: FileRows | DatasetRows) -> list[str]:
        """The columns that make an item and are not there."""
        columns = (*self.captions, *self.images, self.answer, *self.box)
        needed = [name for column in columns for name in HOLE.findall(column) or [column]]
        return [name for name in needed if name and {name, name.split(".")[0]}.isdisjoint(rows.columns)]


class ItemMaker:
    """Makes items of rows.

    Args:
        form: ``pairs`` or ``choices``.
        columns: that hold their parts.
        strict: refuse candidates that are the same, and rows without a tag; of a published set, which is scored as it is,
            the former are counted in ``doubled``.
        part: of the benchmark, which then tags and names the items.
    """

    def __init__(self, form: str, columns: ColumnMap, strict: bool = True, part: str = ""):
        self.form, self.columns, self.strict, self.part, self.doubled = form, columns, strict, part, 0

    def __call__(self, row: Row) -> Item | None:
        """The item of a row; None where it is left out.

        Raises:
            ValueError: a part is missing, or is not what the form has.
        """
        columns = self.columns
        if columns.at_least and _number(row, columns.at_least[0]) < float(columns.at_least[1]):
            return None
        name = str(row[columns.id]) if columns.id else row.identifier
        captions = [text for column in columns.captions for text in row.texts(column)]
        images = [image for column in columns.images for image in row.images(column, self._box(row))]
        self._check_counts(row, captions, images)
        if columns.answer:
            true = self._answer(row, captions, images)
            for candidates in (captions, images):
                if len(candidates) > 1:
                    candidates.insert(0, candidates.pop(true))
        self._check_same(row, captions, images)
        labels = tuple((label, str(value)) for label in columns.labels if (value := row.get(label)) not in (None, ""))
        identifier = f"{self.part}/{name}" if self.part else name
        return Item(identifier, tuple(images), tuple(captions), self._tag(row), labels)

    def _box(self, row: Row) -> Box | None:
        if all(row.get(column) is None for column in self.columns.box):
            return None
        left, top, width, height = (_number(row, column) for column in self.columns.box)
        if width <= 0 or height <= 0:
            raise ValueError(f"item {row.identifier} has a box of {width:g} x {height:g} pixels; mend the copy.")
        return left, top, left + width, top + height

    def _check_counts(self, row: Row, captions: Sequence, images: Sequence) -> None:
        counts = len(captions), len(images)
        if self.form == "pairs" and counts != (2, 2):
            raise ValueError(
                f"item {row.identifier} of {row.of.name} has {counts[0]} captions and {counts[1]} images; pairs have two "
                "and two, caption k of image k. Mend the row, or name other columns."
            )
        if self.form == "choices" and (min(counts) != 1 or max(counts) < 2):
            raise ValueError(
                f"item {row.identifier} of {row.of.name} has {counts[0]} captions and {counts[1]} images; a choice has one "
                "image and several captions, or one caption and several images. Mend the row, or name other columns."
            )

    def _answer(self, row: Row, captions: list[str], images: list) -> int:
        """The place of the true candidate."""
        answer, candidates = row[self.columns.answer], captions if len(captions) > 1 else images
        if answer in captions and len(captions) > 1:
            return captions.index(answer)
        place = int(answer) if isinstance(answer, int) or str(answer).removesuffix(".0").isdigit() else -1
        if not 0 <= place < len(candidates):
            raise ValueError(
                f"item {row.identifier} of {row.of.name} has the answer {answer!r:.80}, and {len(candidates)} candidates; "
                f"it must be a number from 0 to {len(candidates) - 1}, or the true caption itself. Mend the row."
            )
        return place

    def _check_same(self, row: Row, captions: list, images: list) -> None:
        """Notice candidates that are the same."""
        keys = [picture_key(image) for image in images if image is not None]
        twice = next((f"the caption {one!r:.80}" for one in captions if captions.count(one) > 1), None)
        twice = twice or ("an image" if len(set(keys)) < len(keys) else None)
        if twice and self.strict:
            raise ValueError(
                f"item {row.identifier} of {row.of.name} has {twice} twice, a tie that no model can win. Mend the row, or "
                "leave it out."
            )
        self.doubled += twice is not None

    def _tag(self, row: Row) -> str:
        columns = self.columns
        needed = HOLE.findall(columns.tag) or [columns.tag]
        told = columns.tag and (self.strict or all(row.get(name) is not None for name in needed))
        tag = str(row.texts(columns.tag)[0]) if told else self.part
        found = re.search(columns.tag_pattern, tag) if columns.tag_pattern else None
        return found[found.re.groups and 1] if found else tag


def _is_number(value) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _number(row: Row, column: str) -> float:
    if not _is_number(row[column]):
        raise ValueError(
            f"item {row.identifier} of {row.of.name} has {row[column]!r:.80} in {column}, which must be a number. Mend the "
            "row, or name another column."
        )
    return float(row[column])


def load(form: str, name: str, split: str, source: str, options: Options) -> Benchmark:
    """Items of one's own: ``pairs=SOURCE?captions=c0,c1&images=i0,i1&tag=kind``, or ``choices=``, or a yaml file of those.

    Raises:
        ValueError: no source is named, a column is missing, or an item is not what the form has.
        OSError: the source cannot be loaded.
    """
    where, keys = read_map(form, name, source)
    columns = ColumnMap.of(DEFAULTS[form] | keys, name)
    columns = replace(columns, split=split or columns.split)
    rows = open_mapped(where, columns, options)
    check_columns(form, columns, rows)
    return collect(name, form, rows, ItemMaker(form, columns), options, columns.items)


def check_columns(form: str, columns: ColumnMap, rows: FileRows | DatasetRows) -> None:
    """Raise ValueError if columns that make an item are not there."""
    if lacking := columns.lacks(rows):
        raise ValueError(
            f"{rows.name} has no column {' or '.join(map(repr, lacking))}; it has {', '.join(rows.columns)}. Name its own: "
            f"{form}=SOURCE?captions=...&images=..."
        )


def read_map(form: str, name: str, source: str) -> tuple[str, dict]:
    """The source without its map, and the map's keys and values.

    Raises:
        ValueError: there is no source, or the map is not of its form.
    """
    where, _, query = source.partition("?")
    path = Path(where).expanduser()
    keys: dict = {}
    if path.suffix in (".yaml", ".yml"):
        try:
            keys = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ValueError(
                f"{path} could not be read ({' '.join(str(error).split())}); give a yaml file of source, captions, images."
            ) from error
        if not isinstance(keys, dict):
            raise ValueError(f"{path} holds no keys; it must tell source, captions and images.")
        where = str(keys.pop("source", ""))
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{name}: {pair!r} is no key with a value; write captions=COLUMN,COLUMN&images=COLUMN.")
        keys[key] = value
    if not where:
        raise ValueError(
            f"{name} needs to know of what: give a dataset, as in {form}=FOLDER?captions=c0,c1&images=i0,i1."
        )
    return where, keys


def open_mapped(source: str, columns: ColumnMap, options: Options) -> FileRows | DatasetRows:
    """The rows of a source: of its table where the map or the source names one, else of a dataset."""
    options = replace(options, image_dir=columns.image_dir or options.image_dir)
    table = open_table(source, columns.table, options, columns.split or None, merged=columns.merged, url=columns.url)
    if table is not None:
        return table
    files = PictureFiles(options.image_dir, None, columns.url, options.fetch_images)
    return open_dataset(source, columns.split or None, columns.config or None, files)
