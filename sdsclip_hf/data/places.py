"""Where the rows of a stream stand: the file and the number in it, whatever order they come in and whoever reads them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import datasets
import pyarrow as pa

PLACE = "__place__"
SAMPLE = ("__key__", "__url__")  # what datasets gives of a tar: the sample's name, and the tar
PLACES = (PLACE, *SAMPLE)


@dataclass
class PlacedTables:
    """What reads a file of a stream, a table at a time, with a column that tells each row's place.

    Args:
        read: of ``datasets``: the tables of the files that its arguments name; one file at a time.
        name: of the same arguments: what a builder calls these files.
    """

    read: Callable[..., Iterator[tuple]]
    name: Callable[..., Iterator[str | dict]]

    def __call__(self, **files) -> Iterator[tuple]:
        shard = next(iter(self.name(**files)), "")
        if isinstance(shard, dict):  # a part of a file
            shard = ", ".join(str(value) for value in shard.values() if value is not None)
        first = 0
        for key, table in self.read(**files):
            places = pa.array([f"row {first + number} of {shard}" for number in range(len(table))], pa.string())
            yield key, table.append_column(PLACE, places)
            first += len(table)


def with_places(stream: datasets.IterableDataset) -> datasets.IterableDataset:
    """A stream as ``datasets`` loads it, whose rows of tables (parquet, csv, jsonl) tell their place in column ``PLACE``.

    Rows of tars tell it already, in the columns ``SAMPLE``, and pictures in files of their own by their paths.
    """
    rows = stream._ex_iterable
    placed = False
    for part in getattr(rows, "ex_iterables", [rows]):  # of "train+test" there are several
        read = getattr(part, "generate_tables_fn", None)
        builder = getattr(read, "__self__", None)
        if isinstance(builder, datasets.ArrowBasedBuilder):
            part.generate_tables_fn, placed = PlacedTables(read, builder._generate_shards), True
    if placed and stream.features is not None:
        stream._info.features = datasets.Features({**stream.features, PLACE: datasets.Value("string")})
    return stream


def place_of(row: dict) -> str | None:
    """A row's place in words, None where it tells none."""
    if row.get(PLACE) is not None:
        return row[PLACE]
    key, url = (row.get(column) for column in SAMPLE)
    return None if key is None or url is None else f"sample {key} of {url}"
