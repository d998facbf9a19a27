"""What lies in a folder."""

from pathlib import Path


def contents(folder: str | Path) -> dict[str, bytes]:
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
