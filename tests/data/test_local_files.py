"""Names of files and folders: no patterns, and none that makes ``datasets`` leave files out without a word."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from pictures import encoded
from PIL import Image

from sdsclip_hf.benchmarks import load_benchmark
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.data.local_files import local_source

pytestmark = pytest.mark.usefixtures("own_cache")
ODD = ["data[1]", "a*b", "what?", "[!x]", "{a,b}", "a b#c%20", "'quoted'"]
LIKE_IT = ["data1", "a_other_b", "whatx", "y", "a", "a b", "quoted"]


def table(caption: str, rows: int = 2) -> datasets.Dataset:
    picture = Image.new("RGB", (8, 8))
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    return datasets.Dataset.from_dict({"image": [picture] * rows, "caption": [caption] * rows}, features=features)


def write_imagefolder(folder: Path, caption: str) -> Path:
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "0[0].png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0[0].png", "caption": caption}) + "\n")
    return folder


def write_shards(folder: Path, caption: str) -> Path:
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        table(f"{caption} {split}").to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def write_file(folder: Path, caption: str) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    table(caption).to_parquet(folder.with_name(f"{folder.name}.parquet"))
    return folder.with_name(f"{folder.name}.parquet")


def write_saved(folder: Path, caption: str) -> Path:
    table(caption).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("write", [write_imagefolder, write_shards, write_file, write_saved])
def test_the_folder_or_file_of_that_very_name_is_read(write, streaming, tmp_path):
    for name, other in zip(ODD, LIKE_IT, strict=True):
        asked = write(tmp_path / write.__name__ / name, "mine")
        write(tmp_path / write.__name__ / other, "not mine")
        rows = list(load_image_captions(str(asked), streaming=streaming))
        assert {row["caption"].split()[0] for row in rows} == {"mine"}, name
        assert len({row["caption"] for row in rows}) == 1 and rows[0]["image"].size == (8, 8)


def test_every_split_of_a_folder_whose_name_is_a_pattern_is_found(tmp_path):
    folder = write_shards(tmp_path / "data[1]", "mine")
    assert load_image_captions(str(folder), split="test")["caption"] == ["mine test"] * 2
    with pytest.raises(ValueError, match="other"):
        load_image_captions(str(folder), split="other")


def test_names_that_cannot_be_read_as_they_are_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'::'.*rename it"):
        load_image_captions(str(write_imagefolder(tmp_path / "a::b", "mine")))
    folder = write_shards(tmp_path / "data[1]", "mine")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: x\n  data_files: train*.parquet\n---\n")
    with pytest.raises(ValueError, match=r"data\[1\].*README.md.*rename it"):
        load_image_captions(str(folder))
    folder.rename(tmp_path / "data1")
    assert len(load_image_captions(str(tmp_path / "data1"))) == 2


# Names that mean a split


def write_classes(folder: Path, names: dict[str, list[str]]) -> Path:
    for word, files in names.items():
        (folder / word).mkdir(parents=True)
        for number, name in enumerate(files):
            Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8)).save(folder / word / name)
    return folder


NAMES = [f"img ({number}).png" for number in range(3)]
SOME = ["train (0).png", "train (1).png", "img (2).png"]


@pytest.mark.parametrize(
    ("names", "left"), [({"red": SOME, "blue": SOME}, 2), ({"red": NAMES, "train": NAMES, "blue": NAMES}, 6)]
)
def test_pictures_that_datasets_would_leave_out_are_told_and_refused(names, left, tmp_path):
    folder = write_classes(tmp_path / "classes", names)
    with pytest.raises(ValueError, match=rf"of the \d+ files .*, {left} would be left out \(.*\.png.*'train'.*Rename"):
        load_benchmark(f"classification={folder}")
    (tmp_path / "all").mkdir()
    folder.rename(tmp_path / "all" / "train")  # the remedy
    assert len(load_benchmark(f"classification={tmp_path / 'all'}").items) == sum(map(len, names.values()))


def test_folders_whose_files_all_belong_to_a_split_are_read(tmp_path):
    for split in ("train", "test"):
        write_classes(tmp_path / "classes" / split, {"red": NAMES, "blue": NAMES})
    (tmp_path / "classes" / "notes.txt").write_text("no data")
    (tmp_path / "classes" / ".cache").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "classes" / ".cache" / "hidden.png")
    assert len(load_benchmark(f"classification={tmp_path / 'classes'}").items) == 6


@pytest.mark.parametrize("streaming", [False, True])
def test_shards_that_datasets_would_leave_out_are_told_and_refused(streaming, tmp_path):
    for name in ("a-train-0", "a-train-1", "extra"):
        table("mine").to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"1 would be left out \(extra\.parquet\)"):
        load_image_captions(str(tmp_path), streaming=streaming)
    (tmp_path / "extra.parquet").rename(tmp_path / "b-train-0.parquet")
    assert len(list(load_image_captions(str(tmp_path), streaming=streaming))) == 6


# Tars


def write_tar(path: Path, keys: list[str]) -> None:
    with tarfile.open(path, "w") as file:
        for key in keys:
            for suffix, content in (("png", encoded(Image.new("RGB", (8, 8)))), ("txt", key.encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


@pytest.fixture
def downloaded(tmp_path) -> Path:
    """As img2dataset leaves a folder: tars of pictures with their captions, and for each a table and its figures."""
    folder = tmp_path / "laion [part]"
    folder.mkdir()
    for shard in range(2):
        keys = [f"{shard:05}{number:04}" for number in range(3)]
        write_tar(folder / f"{shard:05}.tar", keys)
        rows = {"key": keys, "caption": keys, "status": ["success"] * 3, "url": ["http://x"] * 3}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{shard:05}.parquet")
        (folder / f"{shard:05}_stats.json").write_text(json.dumps({"count": 3, "successes": 3}))
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("name", "rows"), [("", 6), ("*.tar", 6), ("00001.tar", 3), ("0000[0]*.tar", 3)])
def test_the_tars_of_img2dataset_are_read(name, rows, streaming, downloaded):
    found = list(load_image_captions(str(downloaded / name), streaming=streaming))
    assert len(found) == rows and found[0]["png"].size == (8, 8)
    assert all(row["txt"] == row["__key__"] for row in found)


def test_a_pattern_that_fits_nothing_is_no_local_source(tmp_path):
    assert local_source(str(tmp_path / "*.tar")) is None
    with pytest.raises((OSError, ValueError), match=r"\*\.tar"):
        load_image_captions(str(tmp_path / "*.tar"))
