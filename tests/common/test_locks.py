"""One command at a time in a folder: the second is told who works there, and a kill leaves nothing locked."""

import os
import time

import pytest
from forking import Forked

from sdsclip_hf.common.locks import working_in

HOLD = """
import sys, time
from pathlib import Path
from sdsclip_hf.common.locks import working_in
with working_in(Path(sys.argv[1])):
    Path(sys.argv[2]).touch()
    time.sleep(60)
"""


def test_the_second_is_told_who_works_there_until_it_has_ended(tmp_path):
    folder = tmp_path / "out"
    first = Forked(HOLD, folder, tmp_path / "begun")
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    told = rf"works in .*out \(process {first.pid} on \S+, for 0 minutes\).*--output_dir"
    with pytest.raises(OSError, match=told), working_in(folder):
        pass
    first.kill()
    first.finish()
    with working_in(folder):
        assert {path.name for path in folder.iterdir()} == {"_in_use.lock", "_in_use.json"}
    assert list(folder.iterdir()) == []


def test_an_error_gives_the_folder_back(tmp_path):
    with pytest.raises(KeyError), working_in(tmp_path):
        raise KeyError
    with working_in(tmp_path):
        assert os.listdir(tmp_path)
    assert not os.listdir(tmp_path)
