"""What the tests of the Hub on loopback ask of it, by the real client and without it."""

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi


def ask(url: str, method: str = "GET", data: bytes | None = None, **headers: str) -> tuple[int, dict, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method)) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def write(folder: Path, **contents: bytes | str) -> Path:
    """A folder with the files; `__` in a name stands for a slash, `_` for a dot."""
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def contents(folder: str | Path) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def add(path: str, content: bytes | str) -> CommitOperationAdd:
    return CommitOperationAdd(path, content.encode() if isinstance(content, str) else content)


def commit(api: HfApi, *operations, name: str = "org/name", message: str = "some", **options) -> str:
    return api.create_commit(name, list(operations), commit_message=message, **options).oid


def weights(seed: int, size: int = 300_000) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size)
