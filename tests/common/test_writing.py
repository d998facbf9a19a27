"""Files come whole or not at all; a full disk is told in one way; what a killed process left is swept, and nothing else."""

import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from folders import contents
from forking import Forked
from full_disk import files_up_to
from safetensors.torch import save_file

from sdsclip_hf.common.writing import (
    NoRoomError,
    full_disk,
    sweep,
    telling_full_disk,
    whole_file,
    whole_folder,
    write_json,
)

MUCH = np.arange(20_000, dtype=np.float32)


def as_stream(path: Path) -> None:
    table = pa.table({"a": MUCH})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    "text": lambda path: path.write_text("x" * 80_000),
    "safetensors": lambda path: save_file({"a": torch.from_numpy(MUCH)}, path),
    "torch": lambda path: torch.save({"a": torch.from_numpy(MUCH)}, path),
    "torch, as it was": lambda path: torch.save(torch.from_numpy(MUCH), path, _use_new_zipfile_serialization=False),
    "parquet": lambda path: pq.write_table(pa.table({"a": MUCH}), path),
    "arrow": as_stream,
    "numpy": lambda path: np.savez(path.open("wb"), a=MUCH),
    "a copy": lambda path: shutil.copy2(torch.__file__.replace("__init__.py", "functional.py"), path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_alike_whoever_writes_and_what_was_there_stays(writer, tmp_path):
    (tmp_path / "file").write_text("before")
    told = rf"file could not be written: .*\(some 80 kB needed, \d.* free in {tmp_path}\)\. Make room, then .* again"
    with pytest.raises(NoRoomError, match=told), files_up_to(20_000), whole_file(tmp_path / "file", 80_000) as partial:
        WRITERS[writer](partial)
    assert contents(tmp_path) == {"file": b"before"}
    with whole_file(tmp_path / "file") as partial:
        WRITERS[writer](partial)
    assert list(contents(tmp_path)) == ["file"] and (tmp_path / "file").stat().st_size > 20_000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("writer", ["text", "torch", "torch, as it was", "arrow", "a copy"])
def test_a_full_device_is_told(writer, tmp_path):
    told = "f could not be written: (No space left|it was not taken)"
    with pytest.raises(NoRoomError, match=told), telling_full_disk(tmp_path / "f"):
        WRITERS[writer](Path("/dev/full"))


def test_of_several_errors_one_is_found_that_tells_of_a_full_disk():
    inner = shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")])
    outer = ValueError("it did not work")
    outer.__cause__ = inner
    assert full_disk(outer) == "No space left on device"
    assert full_disk(OSError(122, "")) == "Disk quota exceeded"
    assert full_disk(OSError(2, "No such file")) is None and full_disk(ValueError("File too large")) is None


def test_other_errors_stay_as_they_are_and_leave_nothing(tmp_path):
    with pytest.raises(KeyError), whole_file(tmp_path / "file") as partial:
        partial.write_text("half")
        raise KeyError
    assert contents(tmp_path) == {}


def test_a_folder_s_files_take_their_places_together(tmp_path):
    before = {"a": b"old", "kept": b"old", "sub/x": b"old"}
    (tmp_path / "sub").mkdir()
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(NoRoomError), files_up_to(100), whole_folder(tmp_path) as new:
        (new / "a").write_text("new")
        (new / "b").write_text("new" * 100)
    assert contents(tmp_path) == before
    with whole_folder(tmp_path) as new:
        (new / "sub").mkdir()
        for name in ("a", "b", "sub/y"):
            (new / name).write_text("new")
        assert contents(tmp_path)["a"] == b"old"
    assert contents(tmp_path) == {"a": b"new", "b": b"new", "kept": b"old", "sub/y": b"new"}


HALF = """
import sys, time
from pathlib import Path
from sdsclip_hf.common.writing import whole_file, whole_folder
with whole_file(Path(sys.argv[1], "file")) as file, whole_folder(Path(sys.argv[1], "folder")) as folder:
    file.write_text("half")
    (folder / ".tmpX1").write_text("half")
    Path(sys.argv[1], "begun").touch()
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    writer = Forked(HALF, tmp_path)
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    left = contents(tmp_path)
    assert len(left) == 3
    sweep(tmp_path)
    assert contents(tmp_path) == left
    writer.kill()
    writer.finish()
    sweep(tmp_path)
    assert list(contents(tmp_path)) == ["begun"] and not list((tmp_path / "folder").iterdir())


def test_what_is_left_is_told_by_its_owner_and_its_age(tmp_path):
    here, alive = socket.gethostname().replace(".", "_"), os.getppid()
    days = time.time() - 2 * 24 * 3600
    names = {"of me": (f"a.{here}-{os.getpid()}", True), "of a living one": (f"a.{here}-{alive}", False)}
    names |= {"of another machine": ("a.other-1", False), "old": ("a.other-2", True), "of nobody": ("a", False)}
    for name, _ in names.values():
        (tmp_path / f"{name}.partial").touch()
    os.utime(tmp_path / "a.other-2.partial", (days, days))
    with whole_file(tmp_path / "mine") as partial:
        partial.touch()
        sweep(tmp_path)
        there = {path.name for path in tmp_path.iterdir()}
        assert there == {f"{name}.partial" for name, goes in names.values() if not goes} | {partial.name}
        sweep(tmp_path, alone=True)
        assert {path.name for path in tmp_path.iterdir()} == {"a.partial", partial.name}


def test_json_is_written_as_a_whole(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    told = r"a\.json could not be written: File too large \(some 40 kB needed"
    with pytest.raises(NoRoomError, match=told), files_up_to(1000):
        write_json(tmp_path / "a.json", {"a": "x" * 40_000})
    assert contents(tmp_path) == {"a.json": b'{\n  "a": 1\n}\n'}
