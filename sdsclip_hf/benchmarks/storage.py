"""Files in archives and on the web."""

import os
import tarfile
import zipfile
from functools import lru_cache
from pathlib import Path

import datasets
from datasets.utils.file_utils import cached_path

ARCHIVES = (".zip", ".tar")


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def fetch(url: str) -> str:
    """The path of a file on the web in the cache of datasets, which it is put in the first time.

    Raises:
        OSError: it cannot be had.
    """
    try:
        return cached_path(url, datasets.DownloadConfig(use_etag=False, disable_tqdm=True))
    except Exception as error:  # the client's exceptions are of many kinds
        raise OSError(f"{url} could not be fetched ({str(error) or repr(error)})") from error


def members(archive: str | Path) -> list[str]:
    """The names of the files in a zip or a tar.

    Raises:
        OSError: it is neither, or damaged, or compressed as a whole.
    """
    opened = _opened(str(archive))
    if isinstance(opened, zipfile.ZipFile):
        return [name for name in opened.namelist() if not name.endswith("/")]
    return [member.name for member in opened.getmembers() if member.isfile()]


def read_member(archive: str | Path, member: str) -> bytes:
    """What a file in a zip or a tar holds.

    Raises:
        OSError: the archive cannot be read.
        KeyError: it has no such file.
    """
    opened = _opened(str(archive))
    if isinstance(opened, zipfile.ZipFile):
        return opened.read(member)
    return opened.extractfile(member).read()


def _opened(archive: str) -> zipfile.ZipFile | tarfile.TarFile:
    # A process has handles of its own: those that a loader's worker got by a fork would share their place in the file.
    return _open(archive, os.stat(archive).st_mtime_ns, os.getpid())


@lru_cache(maxsize=8)
def _open(archive: str, changed: int, process: int) -> zipfile.ZipFile | tarfile.TarFile:
    try:
        return zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive, "r:")
    except tarfile.TarError as error:
        raise OSError(
            f"{archive} is no zip and no plain tar ({error}). If it is compressed as a whole (.tar.gz), unpack it and give "
            "the folder; else have it written or downloaded again."
        ) from error
