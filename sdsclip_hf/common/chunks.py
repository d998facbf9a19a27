"""What a long work keeps while it goes on: numbered parquet files, of which damage is seen before any is used."""

import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sdsclip_hf.common.writing import own_name, remove, telling_full_disk

logger = logging.getLogger(__name__)


class Chunks:
    """Parquet files PREFIX-NUMBER-DIGEST.parquet, each with the digest of its bytes in its name.

    Args:
        folder: of the files; it is made with the first.
        prefix: of their names.
    """

    def __init__(self, folder: Path, prefix: str):
        self.folder, self.prefix = folder, prefix

    def write(self, number: int, table: pa.Table) -> None:
        """Keep a table, at once or not at all, in place of an earlier one of its number.

        Raises:
            NoRoomError: the disk is full.
        """
        stem = self.folder / f"{self.prefix}-{number:09d}"
        with telling_full_disk(stem, table.nbytes):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = own_name(stem)
            try:
                pq.write_table(table, partial)
                path = partial.replace(f"{stem}-{_digest(partial.read_bytes())}.parquet")
            finally:
                remove(partial)
            for other in self.folder.glob(f"{stem.name}-*.parquet"):
                if other != path:
                    other.unlink()

    def paths(self) -> list[Path]:
        """The files as they are named, in the order of their numbers, damaged ones among them."""
        return sorted(self.folder.glob(f"{self.prefix}-*.parquet"))

    def numbers(self) -> set[int]:
        """Of the tables that are whole. A damaged file is told and removed, so that it is made anew."""
        found = set()
        for path in self.paths():
            if _content(path) is not None:
                found.add(_told(path)[0])
                continue
            logger.warning(f"{path} is not what was written: it is made anew.")
            path.unlink()
        return found

    def drop(self, number: int) -> None:
        """Remove the tables from a number on."""
        for path in self.paths():
            if _told(path)[0] >= number:
                path.unlink()

    def read(self, numbers: Sequence[int], columns: Sequence[str] | None = None) -> list[pa.Table]:
        """The tables of these numbers, all of their columns or some.

        Raises:
            OSError: one is missing, or is not what was written.
        """
        by_number = {_told(path)[0]: path for path in self.paths()}
        tables = []
        for number in numbers:
            path = by_number.get(number, self.folder / f"{self.prefix}-{number:09d}")
            content = _content(path)
            if content is None:
                raise OSError(
                    f"{path} is missing or is not what was written. Type the same command again, which makes it anew."
                )
            tables.append(pq.read_table(pa.BufferReader(content), columns=columns and list(columns)))
        return tables


def _told(path: Path) -> tuple[int, str]:
    """The number and the digest that a file's name tells; -1 and none, where it is none of ours."""
    told = re.fullmatch(r".*-(\d{9})-([0-9a-f]{16})", path.stem)
    return (int(told[1]), told[2]) if told else (-1, "")


def _content(path: Path) -> bytes | None:
    """What a file holds; None where that is not what its name tells."""
    content = path.read_bytes() if path.is_file() else b""
    return content if _digest(content) == _told(path)[1] else None


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
