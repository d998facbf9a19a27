"""What tests of `sdsclip finetune` share."""

from pathlib import Path

import pytest

from sdsclip_hf.commands.finetune import main


def error_of(line: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(line)
    assert isinstance(stop.value.code, str), f"exit code {stop.value.code!r} without a message"
    return stop.value.code


def contents(folder: str | Path) -> dict[str, bytes]:
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
