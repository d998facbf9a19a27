"""What a branch on the Hub holds, compared with what a push was to leave there: by sizes and digests, without downloads."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.hf_api import RepoSibling

from sdsclip_hf.hub.failures import Unfit

GIT_FILE = ".gitattributes"  # the Hub's own, without which large files are not found


@dataclass(frozen=True)
class Head:
    """A commit and its files, with their digests."""

    sha: str
    files: dict[str, RepoSibling]


def look(api: HfApi, name: str, repo_type: str, revision: str) -> Head:
    """The newest commit of a branch, in one request.

    Raises:
        Unfit: what is told of it cannot be.
        Exception: whatever the client raises.
    """
    info = api.repo_info(name, repo_type=repo_type, revision=revision, files_metadata=True)
    if not (isinstance(info.sha, str) and constants.REGEX_COMMIT_OID.fullmatch(info.sha)) or info.siblings is None:
        raise Unfit(f"what it tells of the branch {revision} lacks its commit or its files")
    return Head(info.sha, {file.rfilename: file for file in info.siblings})


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether one of them fits; a pattern without a slash means files at the top alone."""
    return any(fnmatchcase(path, pattern) and ("/" in pattern or "/" not in path) for pattern in patterns)


@dataclass(frozen=True)
class Wanted:
    """What a branch shall hold: ``files``, and nothing else that fits ``delete_patterns``."""

    files: Mapping[str, Path | bytes]
    delete_patterns: list[str]
    _digests: dict[tuple, str] = field(default_factory=dict)

    def stale(self, head: Head) -> list[str]:
        kept = {*self.files, GIT_FILE}
        return [path for path in head.files if path not in kept and matches(path, self.delete_patterns)]

    def lacking(self, head: Head) -> Iterator[str]:
        """What is not as it shall be, the quickest to tell first."""
        for path, content in sorted(self.files.items(), key=lambda item: _size(item[1])):
            if path not in head.files or not self._is(head.files[path], content):
                yield path
        for path in self.stale(head):
            yield f"the removal of {path}"

    def _is(self, there: RepoSibling, content: Path | bytes) -> bool:
        if there.size not in (None, _size(content)):
            return False
        if there.lfs is not None:
            return self._digest(content, "sha256") == there.lfs.sha256
        return self._digest(content, "sha1") == there.blob_id

    def _digest(self, content: Path | bytes, name: str) -> str:
        """Each file is read once, unless it changes: weights are large, and a push looks several times."""
        if isinstance(content, bytes):
            return _digest(content, name)
        stat = content.stat()
        key = (content, name, stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = _digest(content, name)
        return self._digests[key]


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _digest(content: Path | bytes, name: str) -> str:
    """The sha256 of a large file; the sha1 by which git knows another, which begins with the size."""
    hashed = hashlib.new(name, b"blob %d\0" % _size(content) if name == "sha1" else b"", usedforsecurity=False)
    if isinstance(content, bytes):
        hashed.update(content)
    else:
        with content.open("rb") as file:
            while block := file.read(2**20):
                hashed.update(block)
    return hashed.hexdigest()
