"""`sdsclip doctor` before the Hub: what is there, in the cache, gated or refused, in one line; and pushes."""

import re
from pathlib import Path

import pytest
from doctor_cases import failures, local, look, of, the_failure, tree
from hub_server import ACCEPTED, READER, STRANGER, WRITER
from huggingface_hub import constants, snapshot_download

from sdsclip_hf.doctor.case import read_case
from sdsclip_hf.doctor.examine import examine

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_what_is_on_the_hub_is_looked_at_and_nothing_is_kept(rehearsed, models_hub, tmp_path):
    options = (
        "--model_name_or_path",
        "org/clip",
        "--teacher_name_or_path",
        "org/teacher",
        "--dataset_name",
        "org/pairs",
    )
    case = read_case([*options, "--max_steps", "2"])
    findings = list(examine(case))
    assert not failures(findings)
    assert of(findings, "Hub login").found == "org-writer, by a token to write"
    weights = (models_hub.root / "models/org/clip/model.safetensors").stat().st_size
    assert re.search(r"org/clip: a CLIP, public on the Hub; (\d+) kB to download", of(findings, "student").found)
    assert of(findings, "columns").found == "'image' (image) and 'caption' (string)"
    assert of(findings, "memory").status == of(findings, "disk").status == "ok"
    to_download = sum(count for path, what, count in case.disk if what == "downloads")
    on_the_hub = sum(
        path.stat().st_size
        for name in ("models/org/clip", "models/org/teacher", "datasets/org/pairs")
        for path in (models_hub.root / name).rglob("*")
        if path.is_file() and not {"vae"} & set(path.parts)
    )
    assert weights < to_download <= on_the_hub
    assert not (tmp_path / "hf_cache").exists() and not (tmp_path / "prepared").exists()
    assert list(Path().iterdir()) == []
    assert not {"POST", "PUT", "DELETE"} & {method for method, path in models_hub.requests if "paths-info" not in path}
    assert not any(
        path.endswith((".safetensors", ".parquet")) for method, path in models_hub.requests if "model" in path
    )


def test_what_is_in_the_cache_is_not_downloaded_again_and_counts_without_a_network(
    models_hub, folder_of_pairs, monkeypatch
):
    snapshot_download("org/clip")
    argv = local("org/clip", folder_of_pairs)
    assert of(look(*argv), "student").found == "org/clip: a CLIP, public on the Hub; in the cache"
    before = tree(Path(constants.HF_HUB_CACHE))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    findings = look(*argv)
    assert not failures(findings)
    assert of(findings, "student").found == "org/clip: a CLIP, in the cache (HF_HUB_OFFLINE is set)"
    assert tree(Path(constants.HF_HUB_CACHE)) == before


def test_without_a_network_what_is_not_in_the_cache_fails(models_hub, folder_of_pairs, monkeypatch):
    models_hub.shutdown()
    models_hub.server_close()
    failed = the_failure(*local("org/clip", folder_of_pairs))
    assert failed.what == "student"
    assert f"is not in the cache, and {models_hub.url} does not answer" in failed.found
    assert "Connect to the network" in failed.remedy
    assert constants.HF_HUB_OFFLINE is False  # as it was


@pytest.mark.parametrize(
    ("option", "what"), [("--model_name_or_path", "student"), ("--teacher_name_or_path", "teacher"),
                         ("--dataset_name", "dataset"), ("--ranking_scores", "scores")]
)  # fmt: skip
def test_an_unknown_repository_is_one_line(option, what, models_hub, folder_of_pairs):
    options = {"--model_name_or_path": "shapes/student", "--teacher_name_or_path": "shapes/teacher"}
    options |= {"--dataset_name": str(folder_of_pairs), option: "org/nothing"}
    failed = the_failure(*(word for pair in options.items() for word in pair))
    assert failed.what == what and "org/nothing is no folder here" in failed.found
    assert option in failed.remedy and "org/nothing" in failed.remedy


@pytest.mark.parametrize(
    ("token", "told"),
    [(None, "and there is no token. Accept its licence at "), (STRANGER, "and stranger has not been let in")],
)
def test_a_gated_repository_is_one_line(token, told, models_hub, folder_of_pairs, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    failed = the_failure(*local("org/gated", folder_of_pairs))
    assert failed.what == "student" and told in str(failed)
    assert "hf auth login" in failed.remedy or token
    assert f"{models_hub.url}/org/gated" in failed.remedy
    failed = the_failure(*local("shapes/student", "org/gated"))
    assert failed.what == "dataset" and f"{models_hub.url}/datasets/org/gated" in failed.remedy
    monkeypatch.setenv("HF_TOKEN", ACCEPTED)
    assert "gated, and open to this login" in of(look(*local("org/gated", folder_of_pairs)), "student").found


def test_a_gated_benchmark_is_one_line(models_hub, folder_of_pairs, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    argv = local("shapes/student", folder_of_pairs, "--test_benchmarks")
    failed = the_failure(*argv, "winoground=org/gated", "shapes:test")
    assert failed.what == "benchmark" and "org/gated is gated" in failed.found


def test_a_token_that_is_refused_is_one_line(models_hub, folder_of_pairs, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    failed = the_failure(*local("org/clip", folder_of_pairs))
    assert failed.what == "Hub login" and "hf auth login" in failed.remedy and "hf_wrong" not in str(failed)


def test_an_unknown_revision_is_one_line(models_hub):
    failed = the_failure(*local("shapes/student", "org/pairs", "--dataset_revision", "v9"))
    assert failed.what == "dataset" and "no revision 'v9'" in failed.found


def test_a_hub_that_answers_with_errors_is_a_line(models_hub, folder_of_pairs):
    models_hub.fault("info", status=503, times=None)
    failed = the_failure(*local("org/clip", folder_of_pairs))
    assert failed.what == "student" and "503" in failed.found and "Try again later" in failed.remedy


@pytest.mark.parametrize(
    ("token", "name", "told"),
    [
        (None, "org/tuned", "there is no token"),
        (READER, "org/tuned", "may not write to org/tuned by this token, which is one to read"),
        (WRITER, "other/tuned", "may not write to other/tuned"),
        (READER, "org/clip", "may not write to org/clip"),
        (WRITER, "org/other", "holds something other than a CLIP"),
        ("hf_wrong", "org/tuned", "refuses the token"),
        (WRITER, "a b", "no name on the Hub"),
    ],
)
def test_a_push_that_would_be_refused_is_one_line(
    token, name, told, models_hub, clip_folder, folder_of_pairs, monkeypatch
):
    (models_hub.root / "models/org/other").mkdir()
    (models_hub.root / "models/org/other/notes.bin").write_bytes(b"mine")
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    findings = look(*local(clip_folder, folder_of_pairs, "--push_to_hub", "--hub_model_id", name))
    assert failures(findings) and told in failures(findings)[-1].found
    assert {finding.what for finding in failures(findings)} <= {"push", "Hub login"}
    assert models_hub.repository("models", "org/tuned") is None


@pytest.mark.parametrize(
    ("name", "told"), [("org/tuned", "the first push will make it"), ("org/clip", "may write to it")]
)
def test_a_push_that_is_allowed_makes_nothing_yet(name, told, models_hub, clip_folder, folder_of_pairs):
    findings = look(*local(clip_folder, folder_of_pairs, "--push_to_hub", "--hub_model_id", name))
    assert not failures(findings) and told in of(findings, "push").found
    assert models_hub.repository("models", "org/tuned") is None
    assert not {"create", "commit", "branch"} & set(models_hub.stages)


def test_a_push_needs_a_network(clip_folder, folder_of_pairs, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    failed = the_failure(*local(clip_folder, folder_of_pairs, "--push_to_hub", "--hub_model_id", "org/x"))
    assert failed.what == "push" and "HF_HUB_OFFLINE is set" in failed.found and "sdsclip push" in failed.remedy
