"""What tests of `sdsclip doctor` share; conftest.py makes a plugin of it."""

import re
import shutil
from pathlib import Path

import datasets
import pytest

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.doctor import room
from sdsclip_hf.doctor.case import read_case
from sdsclip_hf.doctor.examine import examine
from sdsclip_hf.doctor.findings import Finding

LINE = re.compile(r"(ok|warn|fail) +([^:]+): +(\S.*)")


@pytest.fixture(scope="session")
def a_cost():
    """What a step of the bundled student costs, rehearsed once."""
    return room.rehearse("shapes/student", None, SDSCLIPConfig(output_dir="outputs", lambda_sds=0.0))


@pytest.fixture
def rehearsed():
    """For tests in which each run is rehearsed in earnest, not taken for one of the bundled student."""


@pytest.fixture
def elsewhere(request, tmp_path, monkeypatch, a_cost):
    """An empty folder to be in, and a cache of prepared datasets of one's own."""
    if "rehearsed" not in request.fixturenames:
        monkeypatch.setattr(room, "rehearse", lambda *args, **options: a_cost)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")


@pytest.fixture
def models_hub(hub_here, clip_folder, teacher_folder, pairs, monkeypatch):
    """The Hub with a CLIP, a teacher and a dataset, open and gated."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub_here.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for name in ("clip", "gated"):
        shutil.copytree(clip_folder, hub_here.root / "models/org" / name)
    shutil.copytree(teacher_folder, hub_here.root / "models/org/teacher")
    for name in ("pairs", "gated"):
        folder = hub_here.root / "datasets/org" / name / "data"
        folder.mkdir(parents=True)
        pairs.to_parquet(folder / "train-00000-of-00001.parquet")
    for kind in ("models", "datasets"):
        (hub_here.root / kind / "org/gated/.gated").touch()
    (hub_here.root / "models/org/clip/.gitattributes").write_text("")
    return hub_here


def local(clip_folder, data, *more: str) -> tuple[str, ...]:
    """Options of a run on a folder's data, of the contrastive term alone."""
    return ("--model_name_or_path", clip_folder, "--dataset_name", str(data), "--lambda_sds", "0", *more)


def look(*argv: str) -> list[Finding]:
    return list(examine(read_case(argv)))


def of(findings: list[Finding], what: str) -> Finding:
    (found,) = [finding for finding in findings if finding.what == what]
    return found


def failures(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.status == "fail"]


def the_failure(*argv: str) -> Finding:
    """The only one, which is one line and tells a remedy."""
    (failed,) = failures(look(*argv))
    assert "\n" not in str(failed) and LINE.fullmatch(str(failed))
    return failed


def tree(*folders: Path) -> dict[str, tuple[int, int]]:
    """All that lies in some folders, with sizes and times of change."""
    paths = [path for folder in folders for path in (folder, *folder.rglob("*")) if path.exists()]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


@pytest.fixture
def folder_of_pairs(tmp_path, pairs):
    folder = tmp_path / "pairs"
    folder.mkdir()
    pairs.to_parquet(folder / "train.parquet")
    return folder
