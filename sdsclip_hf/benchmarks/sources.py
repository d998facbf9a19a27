"""Where a benchmark's rows come from: the Hub, a dataset on disk, or the authors' json beside a folder of images."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import fsspec

from sdsclip_hf.benchmarks.items import Benchmark, Box, ImageCell, ImageFile, Item
from sdsclip_hf.data.loading import load_image_captions

logger = logging.getLogger(__name__)

IMAGE_FOLDERS = ("images", ".", "val2017")
SPLITS = ("test", "train", "validation")
COMMIT = "[0-9a-f]{40}"


@dataclass(frozen=True)
class Options:
    """How benchmarks are read.

    Args:
        allow_missing: leave out items whose image is missing, instead of refusing the whole copy.
        image_dir: the folder of images that belongs to a json file; default: looked for beside the file.
        image_column, caption_column, label_column: for classification and retrieval; default: found by their types.
        templates: for classification, captions with ``{}`` where the class goes.
    """

    allow_missing: bool = False
    image_dir: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    label_column: str | None = None
    templates: tuple[str, ...] = ("a photo of a {}.",)


class Row:
    """One row of a benchmark: its values, and its pictures as things to be read later.

    Args:
        identifier: names the row in errors and results.
        values: column -> value.
        find_image: column -> picture, or None where it is missing.
        source: what the row is of, for errors.
    """

    def __init__(self, identifier: str, values: dict, find_image: Callable, source: str):
        self.identifier, self.values, self._find_image, self._source = identifier, values, find_image, source

    def __getitem__(self, key: str):
        """A value that must be there.

        Raises:
            ValueError: it is not; the message names the row and the key.
        """
        value = self.values.get(key)
        if value is None:
            have = ", ".join(name for name, other in self.values.items() if other is not None)
            raise ValueError(
                f"item {self.identifier} of {self._source} has no {key!r}; it has {have or 'nothing but images'}. Mend "
                "the copy, or load another."
            )
        return value

    def get(self, *keys: str):
        """The first of some values that is there, or None."""
        return next((self.values[key] for key in keys if self.values.get(key) is not None), None)

    def image(self, *columns: str, box: Box | None = None) -> ImageFile | ImageCell | None:
        """The picture of the first of ``columns`` that the source has, cut to ``box``; None where it is missing.

        Raises:
            ValueError: the source has none of the columns.
        """
        return self._find_image(self, columns, box)


class JsonRows:
    """Rows of the authors' json: a list of objects, or an object of them by id. Images lie in a folder nearby.

    Raises:
        ValueError: it is not valid json of that form.
    """

    def __init__(self, path: Path, image_dir: str | None = None):
        self.path, self.name, self.revision, self.split = path, str(path), None, None
        parents = [Path(image_dir).expanduser()] if image_dir else [path.parent, path.parent.parent]
        self.folders = [parent / folder for parent in parents for folder in IMAGE_FOLDERS]
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid json ({error}); fetch it anew.") from error
        if isinstance(content, list):
            content = dict(enumerate(content))
        self.rows = [(str(key), row) for key, row in content.items()] if isinstance(content, dict) else []
        odd = next((identifier for identifier, row in self.rows if not isinstance(row, dict)), None)
        if odd is not None or not self.rows:
            wrong = "holds no items" if odd is None else f"item {odd} is no object"
            raise ValueError(f"{path}: {wrong}; it must be a list of objects, or an object of them by id.")

    def __iter__(self) -> Iterator[Row]:
        for identifier, values in self.rows:
            yield Row(identifier, values, self._find, self.name)

    def __len__(self) -> int:
        return len(self.rows)

    def _find(self, row: Row, columns: Sequence[str], box: Box | None) -> ImageFile | None:
        name = row.get(*columns) or row[columns[0]]
        paths = (folder / str(name) for folder in self.folders)
        found = next((path for path in paths if path.is_file()), None)
        return None if found is None else ImageFile(str(found), box)


class DatasetRows:
    """Rows of a dataset with image columns, from the Hub or a copy on disk.

    Raises:
        OSError: it cannot be loaded.
        ValueError: it has none of the splits that benchmarks stand in.
    """

    def __init__(self, name: str, revision: str | None = None, split: str | None = None):
        self.dataset, self.split = _load(name, revision, [split] if split else SPLITS)
        self.name, self.revision = name, commit_of(self.dataset) if not Path(name).expanduser().exists() else None
        if revision and re.fullmatch(COMMIT, revision) and self.revision not in (None, revision):
            raise OSError(
                f"{name} at {revision} cannot be had from here; what is in the cache is {self.revision}. Ask for that "
                "one, or connect to the network."
            )
        images = [column for column, kind in self.dataset.features.items() if isinstance(kind, datasets.Image)]
        self.text = self.dataset.remove_columns(images)
        kinds = self.text.features.items()
        self.class_names = {column: kind.names for column, kind in kinds if isinstance(kind, datasets.ClassLabel)}
        undecoded = (self.dataset.cast_column(column, datasets.Image(decode=False)) for column in images)
        self.images = {column: part.select_columns([column]) for column, part in zip(images, undecoded, strict=True)}
        self._cells: dict[str, list[bytes | None]] = {}

    def __iter__(self) -> Iterator[Row]:
        rows = self.text if self.text.column_names else ({} for _ in range(len(self)))
        for number, values in enumerate(rows):
            for column, names in self.class_names.items():
                label = values[column]
                values[column] = None if label is None or label < 0 else names[label]  # -1: not known
            identifier = values.get("id")
            row = Row(str(number if identifier is None else identifier), values, self._find, self.name)
            row.number = number
            yield row

    def __len__(self) -> int:
        return len(self.dataset)

    def _find(self, row: Row, columns: Sequence[str], box: Box | None) -> ImageCell | None:
        column = next((column for column in columns if column in self.images), None)
        if column is None:
            raise ValueError(
                f"{self.name} has no image column {' or '.join(map(repr, columns))}; it has "
                f"{', '.join(self.dataset.column_names)}. Rename its column, or load another copy."
            )
        if column not in self._cells:
            self._cells[column] = list(_digests(self.images[column], column))
        digest = self._cells[column][row.number]
        return None if digest is None else ImageCell(self.images[column], row.number, digest, box)


def _digests(cells: datasets.Dataset, column: str) -> Iterator[bytes | None]:
    """A digest of each undecoded cell; None where the picture is missing."""
    for batch in cells.with_format("arrow").iter(batch_size=64):
        for cell in batch[column]:
            path, content = cell["path"].as_py() if cell.is_valid else None, None
            if cell.is_valid and cell["bytes"].is_valid:
                content = cell["bytes"].as_buffer()
            elif path and _is_file(path):
                content = f"{path} {_state(path)}".encode()
            yield None if content is None else hashlib.blake2b(content, digest_size=16).digest()


def _state(path: str) -> str:
    """Size and time of change of a file that is no part of an archive."""
    found = os.stat(path) if os.path.exists(path) else None
    return f"{found.st_size} {found.st_mtime_ns}" if found else ""


def _is_file(path: str) -> bool:
    """Of a path that may lead into an archive, as in ``zip://0.png::images.zip``."""
    system, inner = fsspec.core.url_to_fs(path)
    return system.isfile(inner)


def _load(name: str, revision: str | None, splits: Iterable[str]) -> tuple[datasets.Dataset, str]:
    """The first of the splits that there is, and its name."""
    first = None
    for split in splits:
        try:
            return load_image_captions(name, split=split, revision=revision, option="--data"), split
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


def open_rows(
    source: str, json_names: Sequence[str] = (), options: Options | None = None, split: str | None = None
) -> JsonRows | DatasetRows:
    """The rows of a benchmark.

    Args:
        source: a Hub id, optionally with ``@revision``; a folder (imagefolder, parquet, what ``save_to_disk`` wrote, or
            one with the authors' json); a json or parquet file.
        json_names: what the authors call their json file; looked for in the folder and its ``data``.
        options: see [`Options`].
        split: of a dataset; default: the first of test, train and validation that it has.
    """
    options = options or Options()
    path = Path(source).expanduser()
    candidates = (
        [path] if path.suffix == ".json" else [path / part / name for part in ("", "data") for name in json_names]
    )
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found and split not in (None, "", "test"):
        raise ValueError(f"{found} has no split {split!r}; leave it out.")
    if found:
        return JsonRows(found, options.image_dir)
    if path.suffix == ".json":
        raise OSError(f"there is no file {path}; give --data the json file or the folder that it is in.")
    return open_dataset(source, split)


def open_dataset(source: str, split: str | None = None) -> DatasetRows:
    """The rows of a dataset: a folder, a file, or a Hub id, optionally with ``@revision``."""
    name, _, revision = (source, "", "") if Path(source).expanduser().exists() else source.partition("@")
    return DatasetRows(name, revision or None, split)


def image_column(rows: DatasetRows, options: Options) -> str:
    """The column of images: the one that is named, or the only one.

    Raises:
        ValueError: there is none, or more than one.
    """
    columns = list(rows.images)
    if options.image_column in columns:
        return options.image_column
    if options.image_column or len(columns) != 1:
        raise ValueError(
            f"{rows.name} has {'no image column' if not columns else 'the image columns ' + ', '.join(columns)}; its "
            f"columns are {', '.join(rows.dataset.column_names)}. Pass --image_column."
        )
    return columns[0]


def _item(make_item: Callable[[Row], Item], row: Row) -> Item:
    try:
        item = make_item(row)
    except (KeyError, TypeError) as error:  # a cell of another kind than the benchmark's
        raise ValueError(
            f"item {row.identifier} is not what the benchmark's are ({error!r}); mend the copy."
        ) from error
    odd = [caption for caption in item.captions if not isinstance(caption, str)]
    if odd:
        raise ValueError(f"item {row.identifier} has {odd[0]!r:.80} for a caption; a caption must be a string.")
    return item


def collect(
    name: str,
    kind: str,
    rows: JsonRows | DatasetRows,
    make_item: Callable[[Row], Item],
    options: Options,
    published_items: int | None = None,
) -> Benchmark:
    """The benchmark that ``make_item`` makes of each row.

    Raises:
        ValueError: images are missing, and ``options.allow_missing`` is not set; or no item is left.
    """
    made = [_item(make_item, row) for row in rows]
    kept = [item for item in made if all(image is not None for image in item.images)]
    missing = [item.identifier for item in made if any(image is None for image in item.images)]
    if missing and not options.allow_missing:
        raise ValueError(
            f"{name}: the images of {len(missing)} of {len(made)} items are missing in {rows.name}, the first of item "
            f"{missing[0]}. Complete the copy (--image_dir tells where the images of a json file are), or pass "
            "--allow_missing to leave those items out and have them counted."
        )
    if not kept:
        raise ValueError(f"{name}: no item is left of {rows.name}; all of its images are missing. Check --data.")
    empty = sum(not caption.strip() for item in kept for caption in item.captions)
    if empty:
        logger.warning(f"{name}: {empty} captions of {rows.name} are empty; mend the rows, or leave them out.")
    untold = next((item.identifier for item in kept if not item.tag), None)
    if untold is not None and any(item.tag for item in kept):
        raise ValueError(
            f"item {untold} of {rows.name} does not tell its relation, attributes or tag, though others do. Mend the copy."
        )
    source = {
        "name": rows.name,
        "revision": rows.revision,
        "split": rows.split,
        "items": len(kept),
        "published_items": published_items,
        "missing_images": len(missing),
    }
    return Benchmark(name, kind, kept, source)
