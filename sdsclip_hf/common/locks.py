"""One command at a time in an output folder."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sdsclip_hf.common.writing import write_json

LOCK_FILES = LOCK_FILE, OWNER_FILE = "_in_use.lock", "_in_use.json"


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Have a folder, which is made, for oneself; the system gives it back when a process ends, however it ends.

    Raises:
        OSError: another process works there; it names which, where, and since when.
        NoRoomError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / LOCK_FILE, timeout=0), folder / OWNER_FILE
    try:
        lock.acquire()
    except Timeout:
        raise OSError(
            f"another process works in {folder} ({_told(owner)}). Wait until it has ended, or choose another --output_dir."
        ) from None
    try:
        write_json(owner, {"process": os.getpid(), "host": socket.gethostname(), "since": time.time()})
        yield
    finally:
        owner.unlink(missing_ok=True)
        (folder / LOCK_FILE).unlink(missing_ok=True)
        lock.release()


def _told(owner: Path) -> str:
    try:
        told = json.loads(owner.read_text())
        minutes = (time.time() - told["since"]) / 60
        return f"process {told['process']} on {told['host']}, for {minutes:.0f} minutes"
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun
        return "it has not told which it is"
