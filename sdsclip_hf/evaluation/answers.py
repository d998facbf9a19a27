"""A scorer's answers on disk: part by part while they are made, and as one parquet file in the end."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdsclip_hf.benchmarks import Benchmark
from sdsclip_hf.benchmarks.items import Item, picture_name
from sdsclip_hf.common.chunks import Chunks
from sdsclip_hf.common.writing import whole_file

SCHEMA = pa.schema(
    {
        "model": pa.string(),
        "benchmark": pa.string(),
        "item": pa.string(),
        "tag": pa.string(),
        "labels": pa.list_(pa.string()),
        "images": pa.list_(pa.string()),
        "captions": pa.list_(pa.string()),
        "scores": pa.list_(pa.list_(pa.float32())),
        "ranks": pa.list_(pa.list_(pa.int64())),
    }
)


class Answers:
    """The answers of one model to one benchmark, in a folder of parts that an interrupted evaluation goes on from.

    A row is an item, its labels as ``name=value``: ``scores`` (captions, images), or in classification and retrieval
    ``ranks``, see [`ranks`].

    Args:
        folder: of the parts; it is made with the first.
        model: the run's name.
        benchmark: the questions.
    """

    def __init__(self, folder: Path, model: str, benchmark: Benchmark):
        self.parts, self.model, self.benchmark = Chunks(folder, "part"), model, benchmark

    def read(self) -> list[np.ndarray]:
        """The answers so far, in the order of the items. What stands behind a missing or damaged part goes."""
        answers, whole = [], self.parts.numbers()
        while len(answers) in whole:
            (part,) = self.parts.read([len(answers)], columns=["scores", "ranks"])
            answers += [_array(row) for row in part.to_pylist()]
        self.parts.drop(len(answers))
        return answers

    def append(self, start: int, answers: Sequence[np.ndarray]) -> None:
        """Add the answers to the items from ``start`` on; a part is written at once or not at all.

        Raises:
            NoRoomError: the disk is full; the parts so far stay.
        """
        items = self.benchmark.items[start : start + len(answers)]
        rows = [self._row(item, answer) for item, answer in zip(items, answers, strict=True)]
        self.parts.write(start, pa.Table.from_pylist(rows, schema=SCHEMA))

    def tables(self) -> Iterator[pa.Table]:
        """The parts, in the order of the items.

        Raises:
            OSError: one is damaged.
        """
        for number in sorted(self.parts.numbers()):
            yield from self.parts.read([number])

    def _row(self, item: Item, answer: np.ndarray) -> dict:
        row = {"model": self.model, "benchmark": self.benchmark.name, "item": item.identifier, "tag": item.tag}
        column = "ranks" if np.issubdtype(answer.dtype, np.integer) else "scores"
        row["labels"] = [f"{label}={value}" for label, value in item.labels]
        row["images"] = [Path(picture_name(image)).name for image in item.images]
        return row | {"captions": list(item.captions), column: np.atleast_2d(answer).tolist()}


def _array(row: dict) -> np.ndarray:
    if row["scores"] is not None:
        return np.array(row["scores"], dtype=np.float32)
    return np.array(row["ranks"], dtype=np.int64)


def merge(tables: Iterable[pa.Table], path: Path) -> None:
    """One parquet file of all parts, written at once or not at all.

    Raises:
        NoRoomError: the disk is full.
    """
    with whole_file(path) as partial, pq.ParquetWriter(partial, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)
