"""`sdsclip doctor`: one line for what is wrong, with its remedy, and nothing written; against the Hub on loopback."""

import json
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import datasets
import psutil
import pytest
import torch
from conftest import hub_env
from hub_server import ACCEPTED, READER, STRANGER, WRITER
from huggingface_hub import constants, snapshot_download

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.commands import cli
from sdsclip_hf.doctor import machine, room
from sdsclip_hf.doctor.case import read_case
from sdsclip_hf.doctor.examine import examine
from sdsclip_hf.doctor.findings import Finding

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[2]
LINE = re.compile(r"(ok|warn|fail) +([^:]+): +(\S.*)")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="session")
def a_cost():
    """What a step of the bundled student costs, rehearsed once."""
    return room.rehearse("shapes/student", None, SDSCLIPConfig(output_dir="outputs", lambda_sds=0.0))


@pytest.fixture
def rehearsed():
    """For tests in which each run is rehearsed in earnest, not taken for one of the bundled student."""


@pytest.fixture(autouse=True)
def _elsewhere(request, tmp_path, monkeypatch, a_cost):
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


# The report


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
    failed = the_only(failures(findings))
    assert failed.what == "memory" and "KeyError: 'what'" in failed.found and "report it" in failed.remedy
    assert of(findings, "disk").status == "ok"  # the others went on


def the_only(found: list):
    (one,) = found
    return one


# The Hub


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


def test_a_dataset_that_is_prepared_needs_neither_room_nor_network(models_hub, folder_of_pairs, tmp_path, monkeypatch):
    for name in ("org/pairs", str(folder_of_pairs)):
        case = read_case(local("shapes/student", name))
        assert not of(list(examine(case)), "dataset").found.endswith("prepared already")
        assert sum(count for path, what, count in case.disk if what == "the prepared dataset") > 1000
        datasets.load_dataset(name, split="train")
        case = read_case(local("shapes/student", name))
        assert of(list(examine(case)), "dataset").found.endswith("prepared already") and not case.disk
    before = tree(tmp_path / "prepared", tmp_path / "hf_cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    findings = look(*local("shapes/student", "org/pairs"))
    assert not failures(findings) and "prepared on this machine" in of(findings, "dataset").found
    assert of(findings, "columns").found == "'image' (image) and 'caption' (string)"
    failed = the_failure(*local("shapes/student", "org/others"))
    assert failed.what == "dataset" and "has not been prepared on this machine" in failed.found
    assert tree(tmp_path / "prepared", tmp_path / "hf_cache") == before


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


@pytest.mark.parametrize(
    ("benchmark", "told"),
    [
        ("winogrund", "unknown benchmark 'winogrund'"),
        ("shapes:dev", "no split 'dev'"),
        ("sugarcrepe:swap", "unknown subset 'swap'"),
        ("retrieval:test", "retrieval:test=FOLDER"),
    ],
)
def test_a_benchmark_that_does_not_exist_is_one_line(benchmark, told, clip_folder, folder_of_pairs):
    failed = the_failure(*local(clip_folder, folder_of_pairs, "--test_benchmarks", benchmark))
    assert failed.what == "benchmark" and told in failed.found


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


# Pushing


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


# Folders


def test_a_model_folder_without_weights_is_one_line(clip_folder, folder_of_pairs, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "clip", ignore=shutil.ignore_patterns("*.safetensors"))
    failed = the_failure(*local(str(tmp_path / "clip"), folder_of_pairs))
    assert failed.what == "student" and "it has no weights (model.safetensors)" in failed.found


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\nsize 9\n", None], ids=["pointer", "cut"]
)
def test_weights_that_cannot_be_read_are_one_line(content, clip_folder, folder_of_pairs, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "clip")
    weights = tmp_path / "clip/model.safetensors"
    weights.write_bytes(content or weights.read_bytes()[:-100])
    failed = the_failure(*local(str(tmp_path / "clip"), folder_of_pairs))
    assert failed.what == "student" and "cannot be read" in failed.found and "git lfs pull" in failed.remedy


def test_a_model_of_another_kind_is_one_line(teacher_folder, folder_of_pairs):
    failed = the_failure(*local(f"{teacher_folder}/text_encoder", folder_of_pairs))
    assert failed.what == "student"


@pytest.mark.parametrize(
    "absent", ["unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json", "model_index.json"]
)
def test_a_teacher_that_is_not_whole_is_one_line(absent, teacher_folder, clip_folder, folder_of_pairs, tmp_path):
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    (tmp_path / "teacher" / absent).unlink()
    argv = ("--model_name_or_path", clip_folder, "--dataset_name", str(folder_of_pairs))
    failed = the_failure(*argv, "--teacher_name_or_path", str(tmp_path / "teacher"))
    assert failed.what == "teacher" and absent.split("/")[0] in failed.found
    failed = the_failure(*argv)
    assert failed.what == "teacher" and "--teacher_name_or_path, or --lambda_sds 0" in failed.remedy


def test_the_variant_of_the_teacher_must_be_there(teacher_folder, folder_of_pairs):
    argv = ("--model_name_or_path", "shapes/student", "--dataset_name", str(folder_of_pairs))
    failed = the_failure(*argv, "--teacher_name_or_path", teacher_folder, "--teacher_variant", "fp16")
    assert "weights in unet of the variant 'fp16'" in failed.found and "--teacher_variant" in failed.remedy


def test_scores_of_another_teacher_are_one_line(scores_folder, clip_folder, teacher_folder, folder_of_pairs, tmp_path):
    shutil.copytree(scores_folder, tmp_path / "scores")
    settings = json.loads((tmp_path / "scores/scores.json").read_text())
    (tmp_path / "scores/scores.json").write_text(
        json.dumps(settings | {"teacher": {"name": "sd"}, "candidates": "swap:1"})
    )
    argv = local(clip_folder, folder_of_pairs, "--lambda_rank", "1", "--ranking_scores", str(tmp_path / "scores"))
    assert not failures(look(*argv))
    failed = the_failure(*argv, "--teacher_name_or_path", teacher_folder)
    assert failed.what == "scores" and "made by the teacher 'sd'" in failed.found


# The data


@pytest.mark.parametrize(
    "kind", ["parquet folder", "parquet file", "save_to_disk", "splits on disk", "imagefolder", "webdataset"]
)
def test_columns_are_read_from_every_kind_of_local_data(kind, pairs, clip_folder, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    name, columns = folder, ("image", "caption")
    if kind.startswith("parquet"):
        pairs.to_parquet(folder / "train.parquet")
        name = folder / "train.parquet" if kind == "parquet file" else folder
    elif kind == "save_to_disk":
        pairs.save_to_disk(folder)
    elif kind == "splits on disk":
        datasets.DatasetDict({"train": pairs, "test": pairs}).save_to_disk(folder)
    elif kind == "imagefolder":
        rows = []
        for number, row in enumerate(pairs.select(range(3))):
            row["image"].save(folder / f"{number}.png")
            rows.append(json.dumps({"file_name": f"{number}.png", "caption": row["caption"]}))
        (folder / "metadata.jsonl").write_text("\n".join(rows))
    else:
        columns = ("png", "txt")
        in_tar = []
        for number, row in enumerate(pairs.select(range(8))):
            row["image"].save(tmp_path / f"{number}.png")
            (tmp_path / f"{number}.txt").write_text(row["caption"])
            in_tar += [f"{number}.png", f"{number}.txt"]
        subprocess.run(["tar", "-cf", str(folder / "train-0.tar"), "-C", str(tmp_path), *in_tar], check=True)
    before = tree(tmp_path)
    argv = local(clip_folder, name, "--image_column", columns[0], "--caption_column")
    assert not failures(look(*argv, columns[1]))
    failed = the_failure(*argv, "text")
    assert failed.what == "columns" and failed.remedy == "Pass --caption_column."
    assert "caption column 'text' not found; the dataset has " in failed.found and repr(columns[1]) in failed.found
    failed = the_failure(*argv, columns[1], "--eval_split_name", "dev")
    assert failed.what == "dataset" and "no split 'dev'; it has" in failed.found and "'train'" in failed.found
    assert tree(tmp_path) == before


def test_a_column_that_is_not_there_is_one_line_on_the_hub_too(models_hub, tmp_path):
    failed = the_failure(*local("shapes/student", "org/pairs", "--image_column", "picture"))
    told = "image column 'picture' not found; the dataset has 'image', 'caption'. Pass --image_column."
    assert str(failed) == f"fail  columns:        {told}"
    assert not (tmp_path / "hf_cache").exists() and not (tmp_path / "prepared").exists()


def test_columns_of_numbers_are_one_line(pairs, clip_folder, tmp_path):
    pairs.add_column("number", list(range(len(pairs)))).to_parquet(tmp_path / "train.parquet")
    for what in ("caption", "image"):
        failed = the_failure(*local(clip_folder, tmp_path / "train.parquet", f"--{what}_column", "number"))
        assert failed.what == "columns" and f"holds int64, and no {what}s" in failed.found


def test_an_empty_folder_a_folder_of_nothing_and_a_stream_without_end(clip_folder, folder_of_pairs, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is empty" in the_failure(*local(clip_folder, tmp_path / "empty")).found
    (tmp_path / "empty/notes").write_text("nothing")
    assert the_failure(*local(clip_folder, tmp_path / "empty")).what == "dataset"
    assert "no parquet file" in the_failure(*local(clip_folder, tmp_path / "empty/notes")).found
    assert "--max_steps" in the_failure(*local(clip_folder, folder_of_pairs, "--streaming", "true")).remedy


# The machine


def test_a_library_out_of_its_bounds_is_one_line_for_each(monkeypatch):
    real = machine.importlib.metadata.version
    monkeypatch.setattr(
        machine.importlib.metadata, "version", lambda name: "0.1" if name in ("peft", "diffusers") else real(name)
    )
    failed = [finding for finding in look() if finding.status == "fail"]
    assert {finding.what for finding in failed} == {"libraries"} and len(failed) == 2
    assert any("peft 0.1 is installed; the package needs >=" in finding.found for finding in failed)
    assert all(re.fullmatch(r'pip install "(peft|diffusers)>=[\d.]+"', finding.remedy) for finding in failed)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="of machines without an accelerator")
@pytest.mark.parametrize("option", ["--bf16", "--fp16"])
def test_half_precision_without_a_device_that_has_it_is_one_line(option, clip_folder, folder_of_pairs):
    failed = the_failure(*local(clip_folder, folder_of_pairs, option))
    assert failed.what == "precision" and failed.found.startswith(option) and f"Leave {option} out" in failed.remedy
    findings = look(*local(clip_folder, folder_of_pairs, "--bf16", "--use_cpu"))
    assert not failures(findings) and of(findings, "precision").found.startswith("bf16")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="of machines without an accelerator")
def test_a_float16_teacher_on_a_cpu_is_a_warning(folder_of_pairs):
    argv = ("--model_name_or_path", "shapes/student", "--teacher_name_or_path", "shapes/teacher")
    findings = look(*argv, "--dataset_name", str(folder_of_pairs), "--teacher_dtype", "float16")
    assert of(findings, "precision").status == "warn" and "slow" in of(findings, "precision").found


def test_processes_against_devices_and_the_contrastive_batch(clip_folder, folder_of_pairs, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    argv = local(clip_folder, folder_of_pairs, "--contrastive_batch_size", "64", "--per_device_train_batch_size", "8")
    found = {count: list(machine.check_processes(read_case(argv, count))) for count in (2, 4)}
    assert [one.status for of_count in found.values() for one in of_count] == ["ok", "warn"]
    with pytest.raises(Exception, match="no multiple of 24") as raised:
        list(machine.check_processes(read_case(argv, 3)))
    assert "Set it to 48" in raised.value.remedy
    monkeypatch.setattr(machine.torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(type(read_case(argv)), "device", torch.device("cuda"))
    assert [one.status for one in machine.check_processes(read_case(argv, 1))] == ["warn"]
    assert [one.status for one in machine.check_processes(read_case(argv, 2))] == ["ok"]
    with pytest.raises(Exception, match="4 processes on 2 devices"):
        list(machine.check_processes(read_case(argv, 4)))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--report_to", "wandb"), "--report_to wandb: it is not installed"),
        (("--report_to", "nowhere"), "there is no such tracker"),
        (("--optim", "adamw_bnb_8bit"), "--optim adamw_bnb_8bit"),
        (("--deepspeed", "ds.json"), "--deepspeed needs deepspeed, which is not installed"),
    ],
)
def test_a_package_that_the_options_need_is_one_line(argv, told, clip_folder, folder_of_pairs, monkeypatch):
    monkeypatch.setattr(machine, "get_available_reporting_integrations", list)
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    failed = the_failure(*local(clip_folder, folder_of_pairs, *argv))
    assert failed.what == "packages" and told in failed.found


def test_a_run_to_compare_with_that_cannot_be_is_one_line(clip_folder, folder_of_pairs):
    failed = the_failure(*local(clip_folder, folder_of_pairs, "--compare", "{plain: {lambda_rnak: 1}}"))
    assert failed.what == "compare" and "lambda_rnak" in failed.found
    failed = the_failure(*local(clip_folder, folder_of_pairs, "--compare", "{paper: {lambda_sds: 1}}"))
    assert failed.what == "teacher"  # which that run alone needs


# Room


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1000, 1000))
    failed = the_failure()
    assert failed.what == "disk" and "1.0 kB free for" in failed.found and "3 checkpoints" in failed.found
    assert "--save_total_limit" in failed.remedy and "HF_HOME" in failed.remedy


@pytest.mark.skipif(not room.PLACE.is_dir(), reason="only Linux has it")
def test_a_small_shared_memory_is_a_warning_where_there_are_workers(clip_folder, folder_of_pairs, monkeypatch):
    argv = [*local(clip_folder, folder_of_pairs), "--per_device_train_batch_size", "8"]
    assert "shared memory" not in {finding.what for finding in look(*argv)}
    needs = 5 * 8 * 3 * 16 * 16 * 4  # two batches of each of two workers, and one that is in use
    for free, status in ((needs, "ok"), (needs - 1, "warn")):
        monkeypatch.setattr(room.shutil, "disk_usage", lambda path, free=free: Usage(free, 0, free))
        found = of(look(*argv, "--dataloader_num_workers", "2"), "shared memory")
        assert found.status == status and "need 123 kB" in found.found
    assert "without workers" in found.found and "--shm-size" in found.remedy


def test_downloads_count_against_the_disk(models_hub, monkeypatch):
    free = (models_hub.root / "models/org/teacher/unet/diffusion_pytorch_model.safetensors").stat().st_size
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: Usage(10**9, 0, free))
    argv = ("--model_name_or_path", "shapes/student", "--dataset_name", "shapes", "--save_strategy", "no")
    assert the_failure(*argv, "--teacher_name_or_path", "org/teacher").what == "disk"


def test_too_little_memory_is_one_line(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(20_000_000))
    failed = the_failure()
    assert failed.what == "memory" and "20 MB of memory are free" in failed.found
    assert "--per_device_train_batch_size" in failed.remedy and "sdsclip plan" in failed.remedy
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(500_000_000))
    assert of(look(), "memory").status == "warn"


def test_a_gpu_s_own_memory_counts(clip_folder, folder_of_pairs, monkeypatch):
    case = read_case(local(clip_folder, folder_of_pairs))
    monkeypatch.setattr(type(case), "device", torch.device("cuda"))
    for free, status in ((2 * 10**9, "ok"), (3 * 10**8, "warn")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 8 * 10**10))
        (found,) = room.check_memory(case)
        assert found.status == status and "of the GPU's memory are free" in found.found


def test_an_output_folder_that_holds_another_run_is_one_line(clip_folder, folder_of_pairs, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.yaml").write_text("")
    argv = local(clip_folder, folder_of_pairs, "--output_dir", str(tmp_path / "run"))
    failed = the_failure(*argv)
    assert failed.what == "output folder" and "holds another run" in failed.found
    findings = look(*argv, "--overwrite_output_dir")
    assert of(findings, "output folder").status == "warn" and "will delete" in of(findings, "output folder").found
    assert (tmp_path / "run/run.yaml").exists()
    (tmp_path / "file").touch()
    failed = the_failure(*local(clip_folder, folder_of_pairs, "--output_dir", str(tmp_path / "file/run")))
    assert failed.what == "output folder" and "cannot be written to" in failed.found


def test_checkpoints_are_as_large_as_what_a_run_writes(rehearsed, tmp_path, pairs, folder_of_pairs):
    """Beside a real run's: its folder of checkpoints, and its export."""
    options = {"lambda_sds": 0.0, "trainable": "full", "max_steps": 4, "save_steps": 1, "save_total_limit": 2}
    options |= {"per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True}
    argv = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    case = read_case(local("shapes/student", folder_of_pairs, *argv))
    list(examine(case))
    told = {what: count for _, what, count in room.needs_of_run(case)}
    config = SDSCLIPConfig(output_dir=str(tmp_path / "run"), **options)
    trainer = SDSCLIPTrainer("shapes/student", config, train_dataset=pairs)
    trainer.train()
    written = sum(
        path.stat().st_size
        for path in (tmp_path / "run/checkpoint-4").iterdir()
        if path.suffix in (".safetensors", ".pt")
    )
    assert told["3 checkpoints"] / 3 == pytest.approx(written, rel=0.1)
    trainer.save_model(str(tmp_path / "export"))
    assert told["exports"] == pytest.approx((tmp_path / "export/model.safetensors").stat().st_size, rel=0.1)


def test_how_many_checkpoints_there_will_be(clip_folder, folder_of_pairs):
    argv = local(clip_folder, folder_of_pairs)
    steps = ("--max_steps", "100", "--save_steps", "10")
    for more, count in (((), 10), (("--save_total_limit", "2"), 3), (("--save_total_limit", "20"), 10)):
        assert room.checkpoints(read_case([*argv, *steps, *more])) == count
    assert room.checkpoints(read_case([*argv, "--save_strategy", "no"])) == 0
    assert room.checkpoints(read_case([*argv, "--save_strategy", "epoch", "--num_train_epochs", "4"])) == 4
    *_, last = look(*argv)  # of how many rows, the parquet file does not tell
    assert last.status == "warn" and "all checkpoints are kept" in last.found and "--save_total_limit" in last.remedy


# As it is typed


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
