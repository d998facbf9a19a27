"""How commands end: one line, exit code 1, and no traceback on the terminal, whatever goes wrong."""

import re
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset

from sdsclip_hf.commands.ending import one_line_errors, own_words
from sdsclip_hf.common.writing import GO_ON, NoRoomError
from sdsclip_hf.data.images import BadImageError


class Odd(Exception):
    """One that nothing here knows of."""


@pytest.mark.parametrize("error", [ValueError("a b"), OSError("a b"), ImportError("a b"), FloatingPointError("a b")])
def test_what_is_known_is_told_in_its_own_words(error):
    @one_line_errors("sdsclip demo")
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == "sdsclip demo: error: a b"


@pytest.mark.parametrize(
    "error", [KeyError("key"), AttributeError(), RecursionError("deep\nand deeper"), Odd("x" * 9999)]
)
def test_what_is_not_known_names_a_file_with_its_traceback(error):
    @one_line_errors()
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as stop:
        main()
    line = stop.value.code
    assert "\n" not in line and len(line) < 600
    assert line.startswith(f"error: {type(error).__name__}: ") and "sdsclip env" in line
    log = Path(re.search(r"and (\S+\.log), which", line)[1])
    assert "Traceback" in log.read_text() and "test_ending.py" in log.read_text()
    log.unlink()


FULL = "No space left on device"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, FULL, "cache/a"), f"[Errno 28] {FULL}: 'cache/a'. {GO_ON}"),
        (SafetensorError(f"I/O error: {FULL} (os error 28)"), f"I/O error: {FULL} (os error 28). {GO_ON}"),
        (NoRoomError(f"a could not be written: {FULL}. Do this."), f"a could not be written: {FULL}. Do this."),
        (OSError(f"compare: 'x': {FULL}. {GO_ON}"), f"compare: 'x': {FULL}. {GO_ON}"),
    ],
)
def test_a_full_disk_is_told_with_its_remedy(error, told):
    @one_line_errors()
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == f"error: {told}"


def test_of_several_processes_those_that_lose_one_say_so_and_no_more():
    @one_line_errors()
    def main(argv=None):
        raise RuntimeError(
            "[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:9601."
        )

    with pytest.raises(SystemExit, match="another process of this run has ended; its own message tells why"):
        main()


def test_a_fault_is_told_where_no_log_can_be_written(monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    @one_line_errors()
    def main(argv=None):
        raise KeyError("key")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    with pytest.raises(SystemExit) as stop:
        main()
    assert "please report" in stop.value.code and "Traceback" in stop.value.code and "full" not in stop.value.code


def test_an_interruption_is_told():
    @one_line_errors(interrupted="go on")
    def main(argv=None):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="go on"):
        main()


class Broken(Dataset):
    def __init__(self, error: Exception):
        self.error = error

    def __len__(self):
        return 4

    def __getitem__(self, number):
        raise self.error


@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_an_error_in_a_loader_worker_is_told_as_if_it_were_here(context):
    told = "1 image could not be read, the last one a.png (cut\nin two). Mend it."
    loader = DataLoader(Broken(BadImageError(told)), num_workers=1, multiprocessing_context=context)
    with pytest.raises(BadImageError) as raised:
        next(iter(loader))
    assert "Original Traceback" in str(raised.value)  # PyTorch's form
    assert own_words(raised.value) == told


def test_other_words_stay_as_they_are():
    assert own_words(ValueError("Caught nothing")) == "Caught nothing"
    assert own_words(torch.OutOfMemoryError("no room")) == "no room"
