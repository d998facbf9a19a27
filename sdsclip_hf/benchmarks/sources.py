"""Where a benchmark's rows come from: the Hub, a dataset on disk, or the authors' json beside a folder of images."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from sdsclip_hf.benchmarks.files import TABLES, PictureFiles, Table, find_table
from sdsclip_hf.benchmarks.items import Benchmark, Item
from sdsclip_hf.benchmarks.rows import DatasetRows, FileRows, Row
from sdsclip_hf.benchmarks.storage import fetch, is_url
from sdsclip_hf.common.errors import explain_loading

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How benchmarks are read.

    Args:
        allow_missing: leave out items whose image is missing, instead of refusing the whole copy.
        image_dir: the folder, zip or tar of images that a table names; default: looked for beside the table.
        fetch_images: fetch images from the web that are not on this machine, where the benchmark tells their addresses.
        image_column, caption_column, label_column: for classification and retrieval; default: found by their types.
        templates: for classification, captions with ``{}`` where the class goes.
    """

    allow_missing: bool = False
    image_dir: str | None = None
    fetch_images: bool = False
    image_column: str | None = None
    caption_column: str | None = None
    label_column: str | None = None
    templates: tuple[str, ...] = ("a photo of a {}.",)


def open_rows(
    source: str, tables: Sequence[str] = (), options: Options | None = None, split: str | None = None
) -> FileRows | DatasetRows:
    """The rows of a benchmark: of a table of the authors' where there is one, else of a dataset.

    Args:
        source: a Hub id, optionally with ``@revision``; a folder (imagefolder, parquet, what ``save_to_disk`` wrote, or
            one with the authors' table); a parquet file, or a table (json, jsonl, csv).
        tables: what the authors call their table; looked for in the folder, its ``data`` and its archives.
        options: see [`Options`].
        split: of a dataset; default: the first of test, train and validation that it has.

    Raises:
        OSError: it cannot be loaded.
        ValueError: there is no such split, or a table is not of its form.
    """
    return open_table(source, tables, options, split) or open_dataset(source, split)


def open_table(
    source: str,
    tables: Sequence[str] = (),
    options: Options | None = None,
    split: str | None = None,
    *,
    merged: int = 1,
    url: str = "",
) -> FileRows | None:
    """The rows of a table; None where the source has none of that name.

    Args:
        source, tables, options, split: see [`open_rows`]; the source may also be a zip, a tar, or a table's address.
        merged: see [`FileRows`].
        url: see [`PictureFiles`].
    """
    options = options or Options()
    path = Path(source).expanduser()
    found = Table(Path(fetch(source))) if is_url(source) else find_table(path, tables)
    if found is None and path.suffix in TABLES:
        raise OSError(f"there is no file {path}; give --data the json file or the folder that it is in.")
    if found is None:
        return None
    if split not in (None, "", "test"):
        raise ValueError(f"{found} has no split {split!r}; leave it out.")
    files = PictureFiles(options.image_dir, None if is_url(source) else found, url, options.fetch_images)
    return FileRows(found, files, merged, source if is_url(source) else "")


def open_dataset(
    source: str, split: str | None = None, config: str | None = None, files: PictureFiles | None = None
) -> DatasetRows:
    """The rows of a dataset: a folder, a file, or a Hub id, optionally with ``@revision``."""
    name, revision = split_revision(source)
    return DatasetRows(name, revision, split, config, files)


def split_revision(source: str) -> tuple[str, str | None]:
    """A Hub id and its revision, where there is one; what is on this machine is a name as it is."""
    name, _, revision = (source, "", "") if Path(source).expanduser().exists() else source.partition("@")
    return name, revision or None


def download(source: str, patterns: Sequence[str]) -> tuple[Path, str]:
    """The folder of a dataset's files on the Hub that match the patterns, and their commit.

    Raises:
        OSError: they cannot be had.
    """
    name, revision = split_revision(source)
    with explain_loading("the dataset", name, "--data"):
        folder = snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=list(patterns))
    return Path(folder), Path(folder).name


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


def _item(make_item: Callable[[Row], Item | None], row: Row) -> Item | None:
    try:
        item = make_item(row)
    except (KeyError, TypeError) as error:  # a cell of another kind than the benchmark's
        raise ValueError(
            f"item {row.identifier} is not what the benchmark's are ({error!r}); mend the copy."
        ) from error
    odd = [caption for caption in item.captions if not isinstance(caption, str)] if item else []
    if odd:
        raise ValueError(f"item {row.identifier} has {odd[0]!r:.80} for a caption; a caption must be a string.")
    return item


def collect(
    name: str,
    kind: str,
    rows: FileRows | DatasetRows,
    make_item: Callable[[Row], Item | None],
    options: Options,
    published_items: int | None = None,
) -> Benchmark:
    """The benchmark of the items that ``make_item`` makes of the rows, of some perhaps none.

    Raises:
        ValueError: images are missing, and ``options.allow_missing`` is not set; or no item is left.
    """
    made = [item for item in (_item(make_item, row) for row in rows) if item is not None]
    kept = [item for item in made if all(image is not None for image in item.images)]
    missing = [item.identifier for item in made if any(image is None for image in item.images)]
    if missing and not options.allow_missing:
        raise ValueError(
            f"{name}: the images of {len(missing)} of {len(made)} items are missing in {rows.name}, the first of item "
            f"{missing[0]}. Complete the copy (--image_dir tells where the images of a json file are), "
            f"{'pass --fetch_images to have those fetched that have an address, ' if rows.files.not_fetched else ''}or "
            "pass --allow_missing to leave those items out and have them counted."
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


def join(name: str, parts: Sequence[Benchmark]) -> Benchmark:
    """The items of all parts, which are of one kind, and what was read for them."""
    sources = [part.source for part in parts]
    counts = {key: sum(one[key] or 0 for one in sources) for key in ("items", "published_items", "missing_images")}
    told = {
        key: ", ".join(dict.fromkeys(one[key] for one in sources if one[key])) or None for key in ("name", "revision")
    }
    items = [item for part in parts for item in part.items]
    return Benchmark(name, parts[0].kind, items, told | {"split": sources[0]["split"]} | counts)
