"""Rows of a benchmark, whatever they are stored in: their values, and their pictures as things to be read later."""

import ast
import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa

from sdsclip_hf.benchmarks.files import PictureFiles, Table
from sdsclip_hf.benchmarks.items import Box, ImageCell, Picture
from sdsclip_hf.data.loading import load_image_captions

SPLITS = ("test", "train", "validation")
COMMIT = "[0-9a-f]{40}"
HOLE = re.compile(r"\{([^{}]+)\}")


class Row:
    """One row of a benchmark.

    A column may be a path into a cell (``mturk.caption``, ``captions.0``), and where texts are asked for a template of
    columns (``a photo of {Statement}``).

    Args:
        identifier: names the row in errors and results.
        values: column -> value.
        of: the rows that it is one of.
        number: its place among them.
    """

    def __init__(self, identifier: str, values: dict, of: "FileRows | DatasetRows", number: int):
        self.identifier, self.values, self.of, self.number = identifier, values, of, number

    def __getitem__(self, key: str):
        """A value that must be there.

        Raises:
            ValueError: it is not; the message names the row and the key.
        """
        value = self.get(key)
        if value is None:
            have = ", ".join(name for name, other in self.values.items() if other is not None)
            raise ValueError(
                f"item {self.identifier} of {self.of.name} has no {key!r}; it has {have or 'nothing but images'}. Mend "
                "the copy, or load another."
            )
        return value

    def get(self, *keys: str):
        """The first of some values that is there, or None."""
        return next((value for key in keys if (value := _look_up(self.values, key)) is not None), None)

    def texts(self, column: str) -> list:
        """What a cell holds, or a template makes: the members of a list, else the one thing.

        Raises:
            ValueError: it is not there, or the lists of a template differ in length.
        """
        names = HOLE.findall(column)
        if not names:
            cell = self[column]
            return list(cell) if isinstance(cell, (list, tuple)) else [cell]
        cells = [self.texts(name) for name in names]
        length = max(map(len, cells))
        if any(len(cell) not in (1, length) for cell in cells):
            raise ValueError(f"item {self.identifier} of {self.of.name} has lists of different lengths for {column!r}.")
        filled = zip(*(cell * length if len(cell) == 1 else cell for cell in cells), strict=True)
        return [_fill(column, values) for values in filled]

    def image(self, *columns: str, box: Box | None = None) -> Picture | None:
        """The picture of the first of ``columns`` that the source has, cut to ``box``; None where it is missing.

        Raises:
            ValueError: the source has none of the columns.
        """
        return self.of.find_image(self, columns, box)

    def images(self, column: str, box: Box | None = None) -> list[Picture | None]:
        """The pictures of a cell, which is one or a list, or holds the names of their files; None where one is missing."""
        return self.of.find_images(self, column, box)


def _look_up(values: dict, key: str):
    if key in values:
        return values[key]
    value = values
    for part in key.split("."):
        if isinstance(value, list):
            value = value[int(part)] if part.isdigit() and int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _fill(template: str, values: Sequence) -> str:
    rest = iter(values)
    return HOLE.sub(lambda _: str(next(rest)), template)


class FileRows:
    """Rows of a table: json (a list of objects, or an object of them by id), jsonl, or csv. Pictures lie in files nearby.

    Rows of json may be lists, whose columns are then called 0, 1, ...

    Args:
        table: the file.
        files: where the pictures are.
        merged: how many neighbouring rows are one; then each value is the list of theirs.
        address: where it was fetched from, which then names it; default: it is called by its path.

    Raises:
        ValueError: it is not of that form.
    """

    def __init__(self, table: Table, files: PictureFiles, merged: int = 1, address: str = ""):
        self.name, self.revision, self.split, self.files = address or str(table), None, None, files
        kind = Path(self.name).suffix.removeprefix(".")
        try:
            text = table.read().decode("utf-8-sig")
            content = _from_csv(text, kind) if kind in ("csv", "tsv") else _from_json(text, kind)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"{self.name} is not valid {kind} ({error}); fetch it anew.") from error
        self.rows = self._checked(content)
        if merged > 1:
            if len(self.rows) % merged:
                raise ValueError(
                    f"{self.name} has {len(self.rows)} rows, of which {merged} make an item; complete the copy."
                )
            groups = [self.rows[start : start + merged] for start in range(0, len(self.rows), merged)]
            self.rows = [
                (group[0][0], {key: [row.get(key) for _, row in group] for key in group[0][1]}) for group in groups
            ]

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(key for _, row in self.rows[:100] for key in row))

    def _checked(self, content) -> list[tuple[str, dict]]:
        if isinstance(content, list):
            by_place = (
                {str(n): value for n, value in enumerate(row)} if isinstance(row, list) else row for row in content
            )
            content = dict(enumerate(by_place))
        rows = [(str(key), row) for key, row in content.items()] if isinstance(content, dict) else []
        odd = next((identifier for identifier, row in rows if not isinstance(row, dict)), None)
        if odd is not None or not rows:
            wrong = "holds no items" if odd is None else f"item {odd} is no object"
            raise ValueError(f"{self.name}: {wrong}; it must be a list of objects, or an object of them by id.")
        return rows

    def __iter__(self) -> Iterator[Row]:
        for number, (identifier, values) in enumerate(self.rows):
            yield Row(identifier, values, self, number)

    def __len__(self) -> int:
        return len(self.rows)

    def find_image(self, row: Row, columns: Sequence[str], box: Box | None) -> Picture | None:
        return self.files.find(str(row.get(*columns) or row[columns[0]]), box)

    def find_images(self, row: Row, column: str, box: Box | None) -> list[Picture | None]:
        return [self.files.find(str(name), box) for name in row.texts(column)]


def _from_json(text: str, kind: str):
    if kind == "json":
        return json.loads(text)
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        return [json.loads(line) for line in lines]
    except ValueError:  # some write the dicts of Python, which their loaders evaluate
        return [ast.literal_eval(line.strip()) for line in lines]


def _from_csv(text: str, kind: str) -> list[dict]:
    """Cells that hold a list as Python writes it become lists."""
    reader = csv.DictReader(io.StringIO(text), delimiter="," if kind == "csv" else "\t")
    return [{key: _cell(value) for key, value in row.items() if key is not None} for row in reader]


def _cell(text: str | None):
    if text and text.startswith("[") and text.endswith("]"):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):  # a caption may stand in brackets
            return text
    return text


class DatasetRows:
    """Rows of a dataset, from the Hub or a copy on disk; its pictures stand in image columns, or are named by others.

    Args:
        name: a Hub id, folder or file.
        revision: on the Hub.
        split: default: the first of those that benchmarks stand in.
        config: the dataset's configuration.
        files: where pictures are that are only named.

    Raises:
        OSError: it cannot be loaded.
        ValueError: it has none of the splits.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        split: str | None = None,
        config: str | None = None,
        files: PictureFiles | None = None,
    ):
        self.dataset, self.split = _load(name, revision, [split] if split else SPLITS, config)
        self.files = files or PictureFiles()
        self.name, self.revision = name, commit_of(self.dataset) if not Path(name).expanduser().exists() else None
        if revision and re.fullmatch(COMMIT, revision) and self.revision not in (None, revision):
            raise OSError(
                f"{name} at {revision} cannot be had from here; what is in the cache is {self.revision}. Ask for that "
                "one, or connect to the network."
            )
        self.columns = self.dataset.column_names
        kinds = {column: _undecoded(kind) for column, kind in self.dataset.features.items()}
        images = {column: kind for column, kind in kinds.items() if kind is not None}
        self.text = self.dataset.remove_columns(list(images))
        labels = self.text.features.items()
        self.class_names = {column: kind.names for column, kind in labels if isinstance(kind, datasets.ClassLabel)}
        self.images = {
            column: self.dataset.select_columns([column]).cast_column(column, kind) for column, kind in images.items()
        }
        self._cells: dict[str, list] = {}

    def __iter__(self) -> Iterator[Row]:
        rows = self.text if self.text.column_names else ({} for _ in range(len(self)))
        for number, values in enumerate(rows):
            for column, names in self.class_names.items():
                label = values[column]
                values[column] = None if label is None or label < 0 else names[label]  # -1: not known
            identifier = values.get("id")
            yield Row(str(number if identifier is None else identifier), values, self, number)

    def __len__(self) -> int:
        return len(self.dataset)

    def find_image(self, row: Row, columns: Sequence[str], box: Box | None) -> ImageCell | None:
        column = next((column for column in columns if column in self.images), None)
        if column is None:
            raise ValueError(
                f"{self.name} has no image column {' or '.join(map(repr, columns))}; it has "
                f"{', '.join(self.dataset.column_names)}. Rename its column, or load another copy."
            )
        return next(iter(self._find_cells(row, column, box)), None)

    def find_images(self, row: Row, column: str, box: Box | None) -> list[Picture | None]:
        if column in self.images:
            return self._find_cells(row, column, box)
        return [self.files.find(str(name), box) for name in row.texts(column)]

    def _find_cells(self, row: Row, column: str, box: Box | None) -> list[ImageCell | None]:
        images = self.images[column]
        if column not in self._cells:
            self._cells[column] = list(_digests(images, column))
        found = self._cells[column][row.number]
        if not isinstance(found, list):
            return [None if found is None else ImageCell(images, row.number, found, box)]
        return [
            None if digest is None else ImageCell(images, row.number, digest, box, place)
            for place, digest in enumerate(found)
        ]


def _undecoded(kind) -> datasets.Image | datasets.List | None:
    """The kind of a column of images, or of lists of them, that are left as they are stored; None of any other."""
    if isinstance(kind, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(kind, (datasets.List, datasets.LargeList)) and isinstance(kind.feature, datasets.Image):
        return datasets.List(datasets.Image(decode=False))
    return None


def _digests(cells: datasets.Dataset, column: str) -> Iterator[bytes | list[bytes | None] | None]:
    """A digest of each undecoded picture, or a list of them of each list; None where the picture is missing."""
    for batch in cells.with_format("arrow").iter(batch_size=64):
        for cell in batch[column]:
            is_list = isinstance(cell, (pa.ListScalar, pa.LargeListScalar))
            yield [_digest(one) for one in cell.values or ()] if is_list else _digest(cell)


def _digest(cell) -> bytes | None:
    path, content = cell["path"].as_py() if cell.is_valid else None, None
    if cell.is_valid and cell["bytes"].is_valid:
        content = cell["bytes"].as_buffer()
    elif path and _is_file(path):
        content = f"{path} {_state(path)}".encode()
    return None if content is None else hashlib.blake2b(content, digest_size=16).digest()


def _state(path: str) -> str:
    """Size and time of change of a file that is no part of an archive."""
    found = os.stat(path) if os.path.exists(path) else None
    return f"{found.st_size} {found.st_mtime_ns}" if found else ""


def _is_file(path: str) -> bool:
    """Of a path that may lead into an archive, as in ``zip://0.png::images.zip``."""
    system, inner = fsspec.core.url_to_fs(path)
    return system.isfile(inner)


def _load(name: str, revision: str | None, splits: Sequence[str], config: str | None) -> tuple[datasets.Dataset, str]:
    """The first of the splits that there is, and its name."""
    first = None
    for split in splits:
        try:
            return load_image_captions(name, config, split=split, revision=revision, option="--data"), split
        except ValueError as error:  # the next split may exist
            first = first or error
        except OSError as error:
            if "is a gated dataset" not in str(error):
                raise
            page = f"https://huggingface.co/datasets/{name}"
            raise OSError(
                f"{name} is gated: accept its licence at {page}, then `hf auth login` or set HF_TOKEN; or give --data a "
                f"copy on disk. ({error.__cause__})"
            ) from error
    raise first


def commit_of(dataset: datasets.Dataset) -> str | None:
    """The commit on the Hub that a dataset was read from: its folder in the cache is named after it."""
    folders = [Path(file["filename"]).parent.name for file in dataset.cache_files]
    return next((folder for folder in folders if re.fullmatch(COMMIT, folder)), None)
