"""`sdsclip doctor`: a report of aligned lines, an exit code, and nothing written."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import hub_env
from doctor_cases import LINE, failures, local, look, of
from hub_server import WRITER

from sdsclip_hf.commands import cli
from sdsclip_hf.doctor import room

pytestmark = pytest.mark.usefixtures("elsewhere")
ROOT = Path(__file__).parents[2]


def test_the_bundled_default_is_well(rehearsed, capsys):
    cli_main("doctor")
    *lines, empty, last = capsys.readouterr().out.splitlines()
    assert empty == "" and last.endswith("this run can be started.")
    matches = [LINE.fullmatch(line) for line in lines]
    assert all(matches) and {match[1] for match in matches} == {"ok"}
    assert len({match.start(3) for match in matches}) == 1  # aligned
    told = [match[2] for match in matches]
    assert {"python", "libraries", "device", "student", "teacher", "scores", "columns", "memory", "disk"} <= set(told)
    assert last.startswith(f"{len(lines)} ok, 0 fail")
    assert list(Path().iterdir()) == []


def cli_main(*argv: str) -> None:
    before = sys.argv
    sys.argv = ["sdsclip", *argv]
    try:
        cli.main()
    finally:
        sys.argv = before


def test_a_failure_is_an_exit_code_and_the_other_lines_are_printed(capsys, clip_folder):
    with pytest.raises(SystemExit) as left:
        cli_main("doctor", *local(clip_folder, "no/such/folder"))
    out = capsys.readouterr().out
    assert left.value.code == 1
    assert re.search(r"^fail +dataset: +there is no folder no/such/folder\. Give --dataset_name a folder", out, re.M)
    assert re.search(r"^ok +memory:", out, re.M) and re.search(r"^ok +disk:", out, re.M)
    assert out.splitlines()[-1].endswith("1 fail: this run will not get through; mend what failed and look again.")


@pytest.mark.parametrize(
    "argv",
    [("--no_such_option", "1"), ("--config", "no_such"), ("--lambda_rank", "-1"), ("--config", "bad.yaml")],
    ids=lambda argv: " ".join(argv),
)
def test_bad_options_are_the_errors_of_finetune(argv, capsys):
    Path("bad.yaml").write_text("lambda_ranks: 1\n")
    told = []
    for command in ("doctor", "finetune"):
        with pytest.raises(SystemExit) as left:
            cli_main(command, *argv)
        told.append(left.value.code)
    assert told[0] == told[1] and told[0].startswith("error: ")


def test_a_check_that_goes_wrong_itself_is_a_line(monkeypatch):
    def broken(*_):
        raise KeyError("what")

    monkeypatch.setattr(room, "free_memory", broken)
    findings = look()
    (failed,) = failures(findings)
    assert failed.what == "memory" and "KeyError: 'what'" in failed.found and "report it" in failed.remedy
    assert of(findings, "disk").status == "ok"  # the others went on


@pytest.mark.slow
def test_the_command_writes_nothing_at_all(hub, clip_folder, pairs, tmp_path):
    """In a process of its own: home, cache and working folder, before and after."""
    shutil.copytree(clip_folder, hub.root / "models/org/clip")
    (hub.root / "datasets/org/pairs").mkdir(parents=True)
    pairs.to_parquet(hub.root / "datasets/org/pairs/train.parquet")
    home, here, scratch = (tmp_path / name for name in ("home", "run", "tmp"))
    for folder in (home, here, scratch):
        folder.mkdir()
    env = hub_env(
        hub, HF_TOKEN=WRITER, HOME=str(home), TMPDIR=str(scratch), PYTHONPATH=str(ROOT), XDG_CACHE_HOME=str(home)
    )
    argv = ("--model_name_or_path", "org/clip", "--dataset_name", "org/pairs", "--lambda_sds", "0")
    code = "from sdsclip_hf.commands.cli import main; main()"
    command = [sys.executable, "-c", code, "doctor", *argv, "--caption_column", "text", "--push_to_hub"]
    found = subprocess.run(command, env=env, cwd=here, capture_output=True, text=True, timeout=300)
    assert found.returncode == 1, found.stderr
    assert found.stderr == ""
    assert [line for line in found.stdout.splitlines() if line.startswith("fail")] == [
        "fail  columns:        caption column 'text' not found; the dataset has 'image', 'caption'. Pass --caption_column."
    ]
    kept = [path for folder in (home, here, scratch, tmp_path / "hf_home") for path in folder.rglob("*")]
    assert kept == []
