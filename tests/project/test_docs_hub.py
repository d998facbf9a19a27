"""docs/hub.md, followed literally: each block in its order, against a Hub on loopback."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import hub_env
from doc_blocks import ROOT, blocks
from hub_runs import FINISHED, lay_base
from hub_server import WRITER

from sdsclip_hf.shapes import model_path

QUICK, LONG = ("runs: hub",), ("runs: hub", "runs: hub, minutes")


def follow(hub, folder: Path, marks: tuple[str, ...]) -> dict[str, str]:
    """Run the blocks that have one of the marks in a folder; returns block -> what it printed."""
    env = hub_env(hub, HF_TOKEN=WRITER)
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    printed = {}
    for block in blocks(ROOT / "docs/hub.md"):
        if block.mark in marks:
            code = block.code
            if block.kind == "python":
                code = "import sys; sys.modules['sdsclip_hf'] = None\n" + code
            command = [sys.executable, "-c", code] if block.kind == "python" else ["bash", "-ec", code]
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{code}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
            printed[code] = done.stdout
    return printed


def check(hub, printed: dict[str, str]) -> None:
    assert "model.safetensors" in hub.files("models", "org/sds-clip")
    assert "winoground_group_score.py" in hub.files("spaces", "org/winoground_group_score")
    assert "app.py" in hub.files("spaces", "org/demo")
    (computed,) = [text for code, text in printed.items() if "evaluate.load" in code]
    assert "'group': 1.0" in computed or "'winoground_group_score': 1.0" in computed, computed


@pytest.mark.slow
def test_the_page_works_as_it_stands_after_a_short_run(hub, tmp_path):
    lay_base(hub)
    argv = [*FINISHED.replace("--push_to_hub --hub_always_push ", "").split(), "--output_dir", "outputs/shapes"]
    code = "from sdsclip_hf.commands.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=tmp_path, env=hub_env(hub), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    check(hub, follow(hub, tmp_path, QUICK))


@pytest.mark.slow
def test_the_page_works_as_it_stands_from_the_first_command_on(hub, tmp_path):
    shutil.copytree(model_path("student"), hub.root / "models/org/base")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    printed = follow(hub, tmp_path, LONG)
    check(hub, printed)
    titles = [commit.title for commit in hub.history("models", "org/sds-clip")]
    assert "+ L_rank, 500 steps" in titles and "Training in progress, step 250" in titles
