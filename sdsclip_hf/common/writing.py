"""Files that are written whole or not at all, also where a disk is full or the process is killed.

What is being written stands beside its place under a name that tells its owner, NAME.HOST-PROCESS.partial, and moves there
when it is done. What a killed process left is swept at the next start.
"""

import errno
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

OWNED = re.compile(r".+\.(?P<host>[\w-]+)-(?P<process>\d+)\.partial", re.DOTALL)
LONGEST = 24 * 3600.0  # seconds, after which nobody writes at a file any more
FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)
# All that torch tells of a write that failed.
BROKEN_OFF = re.compile(r"PytorchStreamWriter|inline_container|iostream|write\(\): fd")
LITTLE = 10**6  # bytes
GO_ON = "Make room, then type the same command again; training goes on by --resume_from_checkpoint last."

_in_work: set[Path] = set()  # by this process


class NoRoomError(OSError):
    """A disk is full. The message tells what could not be written, what it needs and what is free, and the remedy."""


def size(count: float) -> str:
    """Bytes as text."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def full_disk(error: BaseException | None) -> str | None:
    """The system's words, where an error is that a disk takes no more, or comes of one that is; else None."""
    while error is not None:
        number, text = getattr(error, "errno", None), str(error)
        for full in FULL:
            if number == full or os.strerror(full) in text:
                return os.strerror(full)
        if number == errno.EFBIG or re.search(rf"os error {errno.EFBIG}\b", text):
            return os.strerror(errno.EFBIG)
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def telling_full_disk(path: Path, needs: int | None = None) -> Iterator[None]:
    """Turn what the libraries raise where a disk is full into one error that says what to do.

    Args:
        path: what is written.
        needs: its bytes, where they are known.

    Raises:
        NoRoomError: the disk is full.
    """
    try:
        yield
    except NoRoomError:
        raise
    except Exception as error:
        reason, broken_off = full_disk(error), BROKEN_OFF.search(str(error))
        if reason is None and broken_off is None:
            raise
        there = next(folder for folder in Path(path).absolute().parents if folder.is_dir())
        free = shutil.disk_usage(there).free
        if reason is None:
            reason = os.strerror(errno.ENOSPC) if free < (needs or LITTLE) else "it was not taken to its end"
        needed = "" if needs is None else f"some {size(needs)} needed, "
        raise NoRoomError(
            f"{path} could not be written: {reason} ({needed}{size(free)} free in {there}). {GO_ON}"
        ) from error


@contextmanager
def whole_file(path: Path, needs: int | None = None) -> Iterator[Path]:
    """A place beside ``path`` to write a file to, which moves to ``path`` at the end; where writing fails, nothing is left.

    Args:
        path: of the file; its folder exists.
        needs: its bytes, where they are known.

    Raises:
        NoRoomError: the disk is full.
    """
    with telling_full_disk(path, needs), owned(path) as partial:
        yield partial
        partial.replace(path)


@contextmanager
def whole_folder(folder: Path, needs: int | None = None, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """An empty folder to write to, whose files and folders move to ``folder`` at the end, in place of those of their names.

    Args:
        folder: is made, if need be; what else it holds stays.
        needs: bytes, where they are known.
        replaces: patterns of what goes even if nothing of its name has come.

    Raises:
        NoRoomError: the disk is full; ``folder`` is as it was.
    """
    with telling_full_disk(folder, needs):
        folder.mkdir(parents=True, exist_ok=True)
        with owned(folder / "new") as new:
            new.mkdir()
            yield new
            come = sorted(new.iterdir())
            for path in come:
                place = folder / path.name
                if place.is_dir():
                    shutil.rmtree(place)
                path.replace(place)
            for place in (place for pattern in replaces for place in folder.glob(pattern)):
                if place.name not in {path.name for path in come}:
                    remove(place)


def refuse_occupied(folder: Path) -> None:
    """See that there is nothing in a folder that is to be written, once what a killed process left is swept.

    Raises:
        ValueError: it holds something, or is a file.
    """
    sweep(folder, places=(".",))
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already; give --output_dir a new folder, or empty this one.")


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all.

    Raises:
        NoRoomError: the disk is full.
    """
    with whole_file(path, len(text.encode(errors="replace"))) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict) -> None:
    """Write a file of json, whole or not at all.

    Raises:
        NoRoomError: the disk is full.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def owned(path: Path) -> Iterator[Path]:
    """A name beside ``path`` that tells who writes there. What stands under it goes at the end, unless it was moved."""
    partial = own_name(path)
    try:
        yield partial
    finally:
        remove(partial)


def own_name(path: Path) -> Path:
    """The name beside ``path`` that tells that this process writes there, until it calls [`remove`]."""
    partial = path.with_name(f"{path.name}.{_host()}-{os.getpid()}.partial")
    _in_work.add(partial.absolute())
    return partial


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    _in_work.discard(path.absolute())
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname())[:40] or "here"


def sweep(folder: Path, alone: bool = False, places: Sequence[str] = ("**",)) -> None:
    """Remove what processes that were killed left half-written in a folder.

    Args:
        folder: may not exist.
        alone: whether no other process works there, so that what another machine left goes, too; otherwise after a day.
        places: patterns of the folders in it that are looked into; default: all.
    """
    for path in [path for place in places for path in folder.glob(f"{place}/*.partial")]:
        if is_left(path, alone):
            remove(path)


def is_left(path: Path, alone: bool = False) -> bool:
    """Whether a name tells an owner, and nobody writes there any more; ``alone`` as in [`sweep`]."""
    owner = OWNED.fullmatch(path.name)
    if owner is None or path.absolute() in _in_work:
        return False
    process = int(owner["process"])
    is_here = owner["host"] == _host()
    if alone or (is_here and (process == os.getpid() or not psutil.pid_exists(process))):
        return True
    try:
        return time.time() - path.stat().st_mtime > LONGEST
    except OSError:  # it has gone meanwhile
        return False
