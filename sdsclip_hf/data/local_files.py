"""Files and folders on this machine as ``datasets`` is to read them: a name is no pattern, and nothing is left out."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets.data_files import DEFAULT_PATTERNS_ALL, EmptyDatasetError, get_data_patterns, resolve_pattern

BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def as_pattern(path: str | os.PathLike) -> str:
    """The pattern that stands for this path alone, for what takes patterns: ``data_files`` of ``datasets``."""
    return glob.escape(str(path))


def local_source(name: str) -> dict[str, Any] | None:
    """What ``datasets.load_dataset`` is to be given for a folder, a parquet file, a tar, or a pattern of such files.

    Args:
        name: a path; of a pattern the last part alone is one, as in ``folder/*.tar``.

    Returns:
        ``path`` and, where needed, ``data_files``; None if there is no such thing here.

    Raises:
        ValueError: the names of a folder's files would make ``datasets`` leave some out, or read another's.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix in BUILDERS:
        return _of_files([path])
    if path.is_dir():
        return _of_folder(path.resolve())
    if path.suffix in BUILDERS and glob.has_magic(path.name) and path.parent.is_dir():
        files = sorted(found for found in path.parent.glob(path.name) if found.is_file())
        return _of_files(files) if files else None
    return None


def _of_files(files: list[Path]) -> dict[str, Any]:
    return {"path": BUILDERS[files[0].suffix], "data_files": [as_pattern(file.resolve()) for file in files]}


def _of_folder(folder: Path) -> dict[str, Any]:
    tars = sorted(folder.glob("*.tar"))
    if tars and any(folder.glob("*.parquet")):  # as img2dataset leaves it; the tables lie in the tars, too
        return _of_files(tars)
    if "::" in str(folder):
        raise ValueError(f"the name of the folder {folder} holds '::', which means an archive to datasets; rename it.")
    is_pattern = glob.has_magic(str(folder))
    if _has_configurations(folder):
        if is_pattern:
            raise ValueError(
                f"datasets takes the name {folder} for a pattern, with what its README.md tells; rename it."
            )
        return {"path": str(folder)}
    base = as_pattern(folder)
    try:
        splits = get_data_patterns(base)
    except (EmptyDatasetError, FileNotFoundError):
        return {"path": str(folder)}  # load_dataset tells what is missing
    if splits == DEFAULT_PATTERNS_ALL and not is_pattern:
        # The whole path, since a bare "csv" or "parquet" would be taken for the name of a builder.
        return {"path": str(folder)}
    files = {
        split: list(dict.fromkeys(path for pattern in patterns for path in _matches(pattern, base)))
        for split, patterns in splits.items()
    }
    _check_none_is_left(folder, files)
    if not is_pattern:
        return {"path": str(folder)}
    return {"path": str(folder), "data_files": {split: list(map(as_pattern, paths)) for split, paths in files.items()}}


def _matches(pattern: str, base: str) -> list[str]:
    try:
        return resolve_pattern(pattern, base)
    except FileNotFoundError:
        return []


def _has_configurations(folder: Path) -> bool:
    """Whether the folder tells by itself which of its files belong to which split."""
    for card in ("README.md", ".huggingface.yaml"):
        if (folder / card).is_file() and "data_files" in (folder / card).read_text(encoding="utf-8", errors="replace"):
            return True
    return False


def _check_none_is_left(folder: Path, files: dict[str, list[str]]) -> None:
    read = {path for paths in files.values() for path in paths}
    kinds = {Path(path).suffix.lower() for path in read}
    left = sorted(path for path in _files(folder) if Path(path).suffix.lower() in kinds and path not in read)
    if left:
        shown = ", ".join(os.path.relpath(path, folder) for path in left[:3]) + ", ..." * (len(left) > 3)
        raise ValueError(
            f"of the {len(read) + len(left)} files in {folder}, {len(left)} would be left out ({shown}): the others' names "
            f"tell a split ({' or '.join(map(repr, files))}), and theirs do not. Rename those whose name means no split, "
            "or put each file into a folder that is named after its split, as in train/."
        )


def _files(folder: Path) -> Iterator[str]:
    """All files below, as ``datasets`` looks at them: without what is hidden, special, or tells of others."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        yield from (os.path.join(parent, name) for name in names if not name.startswith(".") and name not in METADATA)
