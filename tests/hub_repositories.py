"""Repositories with their history, as the Hub of the tests keeps them: written ones in memory, laid-down ones on disk.

A folder root/models/ORG/NAME (or datasets, spaces) is a repository of one commit on `main`: its files as they are now. Its
sha is a hash of them. The first write through the API takes the folder over: its files become the first commit of a
history in memory, and the folder is not looked at any more.
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path, PurePosixPath

LARGE = (
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx "
    "*.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors *.tar *.tar.* *.tflite *.tgz "
    "*.wasm *.xz *.zip *.zst *tfevents*"
)
ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE.split())
FORBIDDEN_PATH = re.compile(r"/.*|.*//.*|.*/|(.*/)?(\.|\.\.|\.git)(/.*)?|")


class HubError(Exception):
    """An answer other than success; the clients tell errors apart by the code, which goes into a header."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {})


def git_name(content: bytes) -> str:
    """Git's name of a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@cache
def git_name_on_disk(path: Path, size: int, mtime_ns: int) -> str:
    """The same of a file; size and time tell the cache when it has changed."""
    return git_name(path.read_bytes())


def hub_date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class File:
    """A file in a commit. Of a large one git keeps a pointer only, and its `etag` is the sha256 (LFS)."""

    size: int
    oid: str
    sha256: str | None = None
    source: bytes | Path = field(default=b"", repr=False)

    @classmethod
    def regular(cls, content: bytes) -> "File":
        return cls(len(content), git_name(content), source=content)

    @classmethod
    def large(cls, content: bytes) -> "File":
        sha256 = hashlib.sha256(content).hexdigest()
        return cls(len(content), git_name(cls.pointer(sha256, len(content))), sha256, content)

    @classmethod
    def on_disk(cls, path: Path) -> "File":
        stat = path.stat()
        return cls(stat.st_size, git_name_on_disk(path, stat.st_size, stat.st_mtime_ns), source=path)

    @staticmethod
    def pointer(sha256: str, size: int) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    def read(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    def lfs(self) -> dict | None:
        """What the Hub tells of a large file; in a tree the sha256 is called "oid", among the siblings "sha256"."""
        if self.sha256 is None:
            return None
        pointer_size = len(self.pointer(self.sha256, self.size))
        return {"oid": self.sha256, "sha256": self.sha256, "size": self.size, "pointerSize": pointer_size}


@dataclass(frozen=True, eq=False)
class Commit:
    """All the files of a repository at one time, by their paths."""

    sha: str
    title: str
    message: str
    author: str
    date: str
    parent: "Commit | None" = field(repr=False)
    files: dict[str, File] = field(repr=False)

    @property
    def folders(self) -> set[str]:
        return {parent.as_posix() for path in self.files for parent in PurePosixPath(path).parents} - {"."}

    def history(self) -> list["Commit"]:
        """This commit and those before it, newest first."""
        commits = [self]
        while commits[-1].parent is not None:
            commits.append(commits[-1].parent)
        return commits

    def part(self, path: str) -> dict[str, File]:
        """The file at the path, or those in the folder."""
        return {name: file for name, file in self.files.items() if name == path or name.startswith(f"{path}/")}

    def last_change(self, path: str) -> "Commit":
        """The newest commit that changed the file or folder."""
        here = self.part(path)
        commit = self
        while commit.parent is not None and commit.parent.part(path) == here:
            commit = commit.parent
        return commit


class Repository:
    """Branches, tags and every commit there ever was; `kind` is "models", "datasets" or "spaces", `name` "ORG/NAME"."""

    def __init__(
        self, kind: str, name: str, *, private: bool = False, gated: str | bool = False, sdk: str | None = None
    ):
        self.kind, self.name, self.private, self.gated, self.sdk = kind, name, private, gated, sdk
        self.branches: dict[str, Commit] = {}
        self.tags: dict[str, Commit] = {}
        self.commits: dict[str, Commit] = {}
        self.uploads: dict[str, bytes] = {}  # by the sha256 that the client told; nobody has looked at them yet

    @classmethod
    def of_folder(cls, kind: str, name: str, folder: Path) -> "Repository":
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {path.relative_to(folder).as_posix(): File.on_disk(path) for path in paths}
        gated, private = (files.pop(marker, None) is not None for marker in (".gated", ".private"))
        date = hub_date(max((folder.joinpath(path).stat().st_mtime for path in files), default=0))
        sha = hashlib.sha1(json.dumps({path: file.oid for path, file in files.items()}).encode()).hexdigest()
        repository = cls(kind, name, private=private, gated="auto" if gated else False)
        repository.keep("main", Commit(sha, "initial commit", "", name.split("/")[0], date, None, files))
        return repository

    @property
    def head(self) -> Commit:
        return self.branches["main"]

    @property
    def sha(self) -> str:
        return self.head.sha

    @property
    def sizes(self) -> dict[str, int]:
        return {path: file.size for path, file in self.head.files.items()}

    def revision(self, revision: str) -> Commit:
        """The commit of a branch, a tag or a sha."""
        for commits in (self.branches, self.tags, self.commits):
            if revision in commits:
                return commits[revision]
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def tip(self, branch: str) -> Commit:
        if branch not in self.branches:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        return self.branches[branch]

    def keep(self, branch: str, commit: Commit) -> Commit:
        self.branches[branch] = self.commits[commit.sha] = commit
        return commit

    def add(self, branch: str, files: dict[str, File], title: str, message: str, author: str) -> Commit:
        """A new commit of these files on the branch."""
        parent, date = self.branches.get(branch), hub_date(time.time())
        contents = {path: file.etag for path, file in sorted(files.items())}
        told = [self.kind, self.name, parent and parent.sha, contents, title, message, author, date]
        sha = hashlib.sha1(json.dumps(told).encode()).hexdigest()
        return self.keep(branch, Commit(sha, title, message, author, date, parent, dict(sorted(files.items()))))

    def uploaded(self, sha256: str, size: int | None = None) -> File | None:
        """The upload of that name, if it is what its name and size say."""
        content = self.uploads.get(sha256)
        file = None if content is None else File.large(content)
        return file if file and file.sha256 == sha256 and size in (None, file.size) else None

    def changed(self, files: dict[str, File], operations: Iterable[tuple[str, dict]]) -> dict[str, File]:
        """The files after the operations of a commit, done in their order. Raises HubError, and changes nothing itself."""
        files = dict(files)
        for key, value in operations:
            path = value["path"].rstrip("/") if key == "deletedFolder" else value["path"]
            if FORBIDDEN_PATH.fullmatch(path):
                raise HubError(400, "", f"Invalid path: {path!r}")
            if key in ("file", "lfsFile", "copyFile"):
                files[path] = getattr(self, f"given_by_{key}")(files, value)
            elif key in ("deletedFile", "deletedFolder"):
                gone = [path] if key == "deletedFile" else [name for name in files if name.startswith(f"{path}/")]
                if not gone or gone[0] not in files:
                    kind = key.removeprefix("deleted").lower()
                    raise HubError(404, "EntryNotFound", f"A {kind} with this name doesn't exist: {path}")
                files = {name: file for name, file in files.items() if name not in gone}
            else:
                raise HubError(400, "", f"Unknown operation {key!r} in a commit")
        return files

    def given_by_file(self, files: dict[str, File], value: dict) -> File:
        coded = value["content"].encode()
        return File.regular(base64.b64decode(coded) if value.get("encoding") == "base64" else coded)

    def given_by_lfsFile(self, files: dict[str, File], value: dict) -> File:
        file = self.uploaded(value["oid"], value.get("size"))  # the size is not told of a copy
        if file is None:
            raise HubError(
                400, "", f"LFS pointer of {value['path']} points to a file that does not exist: {value['oid']}"
            )
        return file

    def given_by_copyFile(self, files: dict[str, File], value: dict) -> File:
        source = self.revision(value["srcRevision"]).files if value.get("srcRevision") else files
        if value["srcPath"] not in source:
            raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {value['srcPath']}")
        return source[value["srcPath"]]


class Repositories:
    """All repositories of a Hub: the folders under `root`, and those written through the API."""

    def __init__(self, root: Path):
        self.root = Path(root)
        self.written: dict[tuple[str, str], Repository | None] = {}  # None where a folder's repository was deleted

    def find(self, kind: str, name: str) -> Repository | None:
        if (kind, name) in self.written:
            return self.written[kind, name]
        folder = self.root / kind / name
        return Repository.of_folder(kind, name, folder) if folder.is_dir() else None

    def take_over(self, repository: Repository) -> None:
        """Makes a folder's repository one that can be written; the files are read in."""
        if (repository.kind, repository.name) in self.written:
            return
        for path, file in repository.head.files.items():
            repository.head.files[path] = File.regular(file.read())
        self.written[repository.kind, repository.name] = repository

    def create(self, kind: str, name: str, author: str, **settings) -> Repository:
        """A repository as the Hub makes it: .gitattributes, and in a Space a card that names its SDK."""
        repository = self.written[kind, name] = Repository(kind, name, **settings)
        files = {".gitattributes": File.regular(ATTRIBUTES.encode())}
        if kind == "spaces":
            card = f"---\ntitle: {name.split('/')[1]}\nsdk: {repository.sdk}\n---\n"
            files["README.md"] = File.regular(card.encode())
        repository.add("main", files, "initial commit", "", author)
        return repository

    def delete(self, repository: Repository) -> None:
        self.written[repository.kind, repository.name] = None

    def move(self, repository: Repository, name: str) -> None:
        self.take_over(repository)
        self.delete(repository)
        repository.name = name
        self.written[repository.kind, name] = repository
