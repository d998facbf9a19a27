"""Files that a benchmark names: tables of items, and pictures in folders, archives and on the web."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sdsclip_hf.benchmarks.items import Box, ImageFile, ImageMember, ImageUrl
from sdsclip_hf.benchmarks.storage import ARCHIVES, is_url, members, read_member

TABLES = (".json", ".jsonl", ".csv", ".tsv")
IMAGE_FOLDERS = ("images", ".", "val2017")


class Archive:
    """A zip or a tar in which files are found by the ends of their names.

    Args:
        path: the archive.
        inside: a folder in it, which is looked in first.
    """

    def __init__(self, path: Path, inside: str = ""):
        self.path, self.inside = path, inside

    @cached_property
    def _by_last_part(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for member in members(self.path):
            found.setdefault(PurePosixPath(member).name, []).append(member)
        return found

    def find(self, name: str) -> str | None:
        """The member of that name, or the only one whose name ends so.

        Raises:
            ValueError: several do.
        """
        name = str(PurePosixPath(name))
        same = self._by_last_part.get(PurePosixPath(name).name, [])
        for exact in (str(PurePosixPath(self.inside, name)), name):
            if exact in same:
                return exact
        ending = [member for member in same if member.endswith(f"/{name}")]
        if len(ending) > 1:
            raise ValueError(
                f"{name} is the end of several names in {self.path}: {', '.join(ending[:3])}. Name it with its folder, or "
                "unpack the archive and give the folder."
            )
        return ending[0] if ending else None


class Table(NamedTuple):
    """A file of rows: on its own, or in an archive.

    Args:
        path: the file, or its name in the archive.
        archive: that it is in.
    """

    path: Path
    archive: Archive | None = None

    def __str__(self) -> str:
        return str(self.path if self.archive is None else self.archive.path / self.path)

    def read(self) -> bytes:
        return self.path.read_bytes() if self.archive is None else read_member(self.archive.path, str(self.path))


def find_table(source: Path, names: Sequence[str]) -> Table | None:
    """The first of some files of rows that a folder or an archive has; of a file of rows itself.

    A folder's subfolder ``data`` and its archives are looked into, too.
    """
    if source.suffix in TABLES:
        return Table(source) if source.is_file() else None
    if source.is_dir():
        paths = (source / part / name for part in ("", "data") for name in names)
        if found := next((path for path in paths if path.is_file()), None):
            return Table(found)
    for archive in _archives(source) if names else ():
        if found := next(filter(None, map(archive.find, names)), None):
            return Table(Path(found), Archive(archive.path, str(Path(found).parent)))
    return None


def _archives(source: Path) -> Iterator[Archive]:
    if source.is_dir():
        yield from (Archive(path) for path in sorted(source.iterdir()) if path.suffix in ARCHIVES)
    elif source.suffix in ARCHIVES and source.is_file():
        yield Archive(source)


class PictureFiles:
    """Pictures by the names that rows give them.

    Args:
        image_dir: a folder, a zip or a tar, in which they are looked for before they are beside the table.
        table: that names them; None: it is not on this machine.
        url: the address of a picture, with ``{}`` where its name goes, for those that are in none of these.
        fetch: whether pictures are fetched from the web.
    """

    def __init__(self, image_dir: str | None = None, table: Table | None = None, url: str = "", fetch: bool = False):
        self.url, self.fetch = url, fetch
        self.not_fetched = 0  # pictures that are missing here, and have an address
        path = table and (table.path if table.archive is None else table.archive.path)
        parents = [Path(image_dir).expanduser()] if image_dir else []
        beside = [path.parent, path.parent.parent] if path else []
        self.folders = [parent / name for parent in (*parents, *beside) if parent.is_dir() for name in IMAGE_FOLDERS]
        own = [table.archive] if table and table.archive else []
        self.archives = [*own, *(one for parent in (*parents, *beside[:1]) for one in _archives(parent))]

    def find(self, name: str, box: Box | None = None) -> ImageFile | ImageMember | ImageUrl | None:
        """The picture of that name; None where it is missing."""
        for shorter in _shorter(name):
            found = next((path for path in (folder / shorter for folder in self.folders) if path.is_file()), None)
            if found:
                return ImageFile(str(found), box)
            for archive in self.archives:
                if member := archive.find(shorter):
                    return ImageMember(str(archive.path), member, box)
        address = name if is_url(name) else self.url.replace("{}", name)
        if address and self.fetch:
            return ImageUrl(address, box)
        self.not_fetched += bool(address)
        return None


def _shorter(name: str) -> list[str]:
    """A name, and what is left of it without its first folder, its first two, ...; of an address the last part."""
    parts = PurePosixPath(name).parts
    return [parts[-1]] if is_url(name) else [str(PurePosixPath(*parts[start:])) for start in range(len(parts))]
