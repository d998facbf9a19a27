"""One command starts its own processes: the same run as by accelerate's launcher, and its endings pass through."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from launching import ROOT, accelerate_launch
from safetensors.torch import load_file

from sdsclip_hf.commands import finetune, score_captions
from sdsclip_hf.common import launching
from sdsclip_hf.common.launching import start_processes

SDSCLIP = [sys.executable, str(launching.SCRIPT)]


def sdsclip(*words, **env: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.run([*SDSCLIP, *map(str, words)], env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, clip_folder, teacher_folder, pairs) -> Path:
    """The folders of a run by ``accelerate launch`` and of the same by the command alone."""
    folder = tmp_path_factory.mktemp("runs")
    pairs.save_to_disk(folder / "data")
    words = [
        "--model_name_or_path",
        clip_folder,
        "--teacher_name_or_path",
        teacher_folder,
        "--dataset_name",
        folder / "data",
    ]
    words += ["--max_steps", 2, "--per_device_train_batch_size", 2, "--learning_rate", 1e-2, "--report_to", "none"]
    accelerate_launch("multi_cpu", ROOT / "recipes/finetune.py", *words, "--output_dir", folder / "launched")
    done = sdsclip("finetune", "--num_processes", 2, *words, "--output_dir", folder / "started", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_it_trains_the_weights_that_accelerate_launch_does(runs, clip_folder):
    started, launched = (load_file(runs / name / "model.safetensors") for name in ("started", "launched"))
    before = load_file(f"{clip_folder}/model.safetensors")
    assert started.keys() == launched.keys()
    assert all(torch.equal(started[name], launched[name]) for name in started)
    assert not all(torch.equal(started[name], before[name]) for name in started)
    assert (runs / "started/checkpoint-2/rng_state_1.pth").exists()  # there were two


@pytest.mark.slow
def test_the_record_tells_what_was_typed(runs):
    for name, typed in (
        ("started", "# sdsclip finetune --num_processes 2 --model_name_or_path "),
        ("launched", "# accelerate launch --num_processes 2 recipes/finetune.py --model_name_or_path "),
    ):
        assert (runs / name / "run.yaml").read_text().startswith(typed)
        assert typed.removeprefix("# ") in (runs / name / "README.md").read_text()


@pytest.mark.parametrize(
    "words, told",
    [
        ("--num_processes 0", "--num_processes is 0; it must be at least 1"),
        ("--num_processes=-2", "--num_processes is -2; it must be at least 1"),
        ("--num-processes two", "--num_processes is 'two'; it must be a whole number"),
        ("--num_processes", "expected one argument"),
        ("--accelerate_config no-such", "recipes/accelerate has cpu, deepspeed_zero2, fsdp2, multi_cpu, multi_gpu"),
        ("--accelerate_config cpu --num_processes 2", "starts one process, and --num_processes is 2"),
        ("--accelerate_config multi_gpu", "multi_gpu is for GPUs .* none here; --num_processes N or .*multi_cpu"),
        ("--accelerate_config fsdp2 --num_processes 2", "fsdp2 is for GPUs"),
        ("--accelerate_config deepspeed_zero2", "deepspeed_zero2 is for GPUs"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(monkeypatch, words, told):
    monkeypatch.setattr(launching, "_devices", lambda: 0)
    monkeypatch.setattr(launching, "_launch", lambda *_: pytest.fail("it started"))
    with pytest.raises((ValueError, OSError), match=told):
        start_processes("finetune", words.split())


def test_an_error_is_one_line_on_the_command_line():
    for main in (finetune.main, score_captions.main):
        with pytest.raises(SystemExit, match=r"^error: --accelerate_config no-such: there is no such file;"):
            main(["--accelerate_config", "no-such"])


def launched_with(monkeypatch, devices: int, *words: str) -> dict:
    """What accelerate's launcher is given on a machine with so many GPUs."""
    given = []
    monkeypatch.setattr(launching, "_devices", lambda: devices)
    monkeypatch.setattr(launching, "_launch", lambda options, words: given.extend([options, words]))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert start_processes("finetune", words) is None
    options = dict(zip(given[0][::2], given[0][1::2], strict=True))
    return options | {"config": Path(options["--config_file"]).stem, "words": given[1]}


def test_the_number_of_processes_is_given_or_that_of_the_gpus(monkeypatch, tmp_path):
    for devices, words, config, number in (
        (0, "--num_processes 3", "multi_cpu", "3"),
        (4, "--num_processes 2", "multi_cpu", "2"),
        (4, "--accelerate_config fsdp2", "fsdp2", "4"),
        (4, "--accelerate_config fsdp2 --num_processes 2", "fsdp2", "2"),
        (0, "--accelerate_config multi_cpu", "multi_cpu", "2"),
        (1, "--num_processes 2 --use_cpu", "multi_cpu", "2"),
        (4, "--accelerate_config cpu", "cpu", "1"),
    ):
        given = launched_with(monkeypatch, devices, *words.split())
        assert (given["config"], given["--num_processes"]) == (config, number), words
        assert given["words"] == ["finetune", *words.split()]
        assert int(given["--num_cpu_threads_per_process"]) >= 1
    with pytest.raises(
        ValueError, match=r"3 processes need as many GPUs, and PyTorch finds 2 here; give --num_processes 2"
    ):
        launched_with(monkeypatch, 2, "--num_processes", "3")
    own = tmp_path / "mine.yaml"
    own.write_text(yaml.safe_dump({"distributed_type": "MULTI_GPU", "num_processes": 3, "mixed_precision": "no"}))
    assert launched_with(monkeypatch, 4, "--accelerate_config", str(own))["--num_processes"] == "3"
    own.write_text("[]")
    with pytest.raises(ValueError, match=r"mine\.yaml holds no options of accelerate"):
        launched_with(monkeypatch, 4, "--accelerate_config", str(own))


def test_deepspeed_is_asked_for_before_anything_starts(monkeypatch):
    monkeypatch.setattr(launching, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs DeepSpeed; `pip install deepspeed`"):
        launched_with(monkeypatch, 2, "--accelerate_config", "deepspeed_zero2")


def test_one_process_alone_is_this_one(monkeypatch):
    monkeypatch.setattr(launching, "_launch", lambda *_: pytest.fail("it started"))
    assert start_processes("finetune", ["--num_processes", "1", "--seed", "3"]) == ["--seed", "3"]
    assert start_processes("finetune", ["--seed", "3"]) == ["--seed", "3"]
    monkeypatch.setenv(launching.STARTED, "1")
    assert start_processes("finetune", ["--num_processes", "2", "--seed", "3"]) == ["--seed", "3"]


def test_a_process_that_a_launcher_started_starts_no_others(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="give them to accelerate launch, before the script"):
        start_processes("finetune", ["--num_processes", "2"])


STANDIN = """
import os, signal, sys, time
from pathlib import Path
rank, folder, task = os.environ["RANK"], Path(sys.argv[-1]), sys.argv[2]
(folder / rank).write_text(str(os.getpid()))
if task == "fail":
    time.sleep(30 * int(rank))
    sys.exit(7)
if task == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if task == "wait":
    try:
        time.sleep(300)
    except KeyboardInterrupt:
        (folder / f"{rank} interrupted").touch()
        sys.exit(1)
"""
STARTING = """
import sys
from pathlib import Path
from sdsclip_hf.common import launching
launching.SCRIPT = Path(sys.argv[1])
launching.start_processes("finetune", sys.argv[2:])
"""


def start_standin(folder: Path, task: str) -> subprocess.Popen:
    """Two processes of a script that stands in for the command, and leaves its number in the folder."""
    (folder / "standin.py").write_text(STANDIN)
    words = [folder / "standin.py", task, "--num_processes", 2, folder]
    return subprocess.Popen(
        [sys.executable, "-c", STARTING, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("task, code, told", [("fail", 7, ""), ("killed", 137, "was ended by SIGKILL")])
def test_the_exit_code_is_that_of_the_process_that_failed(tmp_path, task, code, told):
    process = start_standin(tmp_path, task)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert told in errors and "Traceback" not in errors
    assert all(ended(int((tmp_path / rank).read_text())) for rank in "01" if (tmp_path / rank).exists())


def test_ctrl_c_reaches_the_processes_and_ends_the_command(tmp_path):
    process = start_standin(tmp_path, "wait")
    end = time.monotonic() + 120
    while not all((tmp_path / rank).exists() and (tmp_path / rank).read_text() for rank in "01"):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "Traceback" not in errors
    assert {path.name for path in tmp_path.glob("* interrupted")} == {"0 interrupted", "1 interrupted"}
    assert all(ended(int((tmp_path / rank).read_text())) for rank in "01")
