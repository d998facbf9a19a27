"""`sdsclip doctor` before data: columns of every kind of it, what is prepared already, and benchmarks."""

import json
import subprocess

import datasets
import pytest
from doctor_cases import failures, local, look, of, the_failure, tree
from huggingface_hub import constants

from sdsclip_hf.doctor.case import read_case
from sdsclip_hf.doctor.examine import examine

pytestmark = pytest.mark.usefixtures("elsewhere")


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


def test_a_benchmark_on_the_web_is_none_of_the_hub(clip_folder, folder_of_pairs):
    findings = look(*local(clip_folder, folder_of_pairs, "--test_benchmarks", "cola"))
    assert not failures(findings) and of(findings, "benchmark").found.endswith(".json, on the web")


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
            in_tar += [f"{number}.png", f"{number}.txt"][: 1 if number == 2 else 2]  # one has no caption
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
