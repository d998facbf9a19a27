"""Captioned pictures from wherever they lie, and the errors that name what could not be loaded."""

import zipfile
from pathlib import Path

import datasets
import pytest
from image_captions import (
    EVERYTHING,
    FEATURES,
    ROWS,
    content,
    picture,
    table,
    write_imagefolder,
    write_parquet_file,
    write_parquet_folder,
    write_webdataset,
)
from pictures import encoded

from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.data.streams import as_training_data

pytestmark = pytest.mark.usefixtures("own_cache")


def write_zipped_imagefolder(folder: Path) -> str:
    plain = Path(write_imagefolder(folder / "plain", "metadata.jsonl"))
    (folder / "zipped").mkdir()
    with zipfile.ZipFile(folder / "zipped" / "train.zip", "w") as archive:
        for path in (plain / "train").iterdir():
            archive.write(path, path.name)
    return str(folder / "zipped")


def write_parquet_of_plain_bytes(folder: Path) -> str:
    folder.mkdir()
    rows = {"image": [encoded(picture(n)) for n in range(ROWS)], "caption": [f"caption {n}" for n in range(ROWS)]}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "pairs.parquet")
    return str(folder / "pairs.parquet")


def write_saved_dataset(folder: Path) -> str:
    table().save_to_disk(folder)
    return str(folder)


def write_saved_dataset_dict(folder: Path) -> str:
    datasets.DatasetDict(train=table(), test=table(2)).save_to_disk(folder)
    return str(folder)


def write_csv_of_paths(folder: Path) -> str:
    write_imagefolder(folder / "pictures", "metadata.csv")
    lines = [f"{folder / 'pictures' / 'train' / f'{number}.png'},caption {number}" for number in range(ROWS)]
    (folder / "table").mkdir()
    (folder / "table" / "train.csv").write_text("\n".join(["where,text", *lines]) + "\n")
    return str(folder / "table")


SOURCES = {
    "imagefolder with csv": (lambda folder: write_imagefolder(folder, "metadata.csv"), "image", "caption"),
    "imagefolder with jsonl": (lambda folder: write_imagefolder(folder, "metadata.jsonl"), "image", "caption"),
    "imagefolder with lists": (lambda folder: write_imagefolder(folder, "metadata.jsonl", True), "image", "caption"),
    "zipped imagefolder": (write_zipped_imagefolder, "image", "caption"),
    "parquet folder": (write_parquet_folder, "image", "caption"),
    "parquet file": (write_parquet_file, "image", "caption"),
    "parquet of plain bytes": (write_parquet_of_plain_bytes, "image", "caption"),
    "webdataset of png": (write_webdataset, "png", "txt"),
    "webdataset of jpg": (lambda folder: write_webdataset(folder, "jpg"), "jpg", "txt"),
    "save_to_disk": (write_saved_dataset, "image", "caption"),
    "save_to_disk of splits": (write_saved_dataset_dict, "image", "caption"),
    "csv of paths": (write_csv_of_paths, "where", "text"),
}


@pytest.mark.parametrize("streaming", [False, True], ids=["prepared", "streaming"])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_gives_its_pictures_and_captions(kind, streaming, tmp_path):
    write, image_column, caption_column = SOURCES[kind]
    source = load_image_captions(write(tmp_path / "source"), streaming=streaming)
    assert isinstance(source, datasets.IterableDataset) == (streaming and not kind.startswith("save_to_disk"))
    dataset = as_training_data(source, image_column=image_column, caption_column=caption_column)
    assert content(dataset) == EVERYTHING


def test_a_folder_that_is_named_like_a_dataset_builder_is_still_a_folder(tmp_path, monkeypatch):
    write_imagefolder(tmp_path / "csv", "metadata.csv")
    monkeypatch.chdir(tmp_path)
    assert content(as_training_data(load_image_captions("csv"))) == EVERYTHING


def test_a_tilde_stands_for_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_imagefolder(tmp_path / "pairs", "metadata.csv")
    assert content(as_training_data(load_image_captions("~/pairs"))) == EVERYTHING


def test_shapes_is_the_embedded_world():
    dataset = as_training_data(load_image_captions("shapes", split="validation", max_samples=3))
    assert len(dataset) == 3
    assert dataset[0]["image"].size == (32, 32) and " " in dataset[0]["caption"]


@pytest.mark.parametrize("write", [write_parquet_file, write_saved_dataset, write_saved_dataset_dict])
def test_a_split_may_be_a_slice(write, tmp_path):
    name = write(tmp_path / "source")
    assert content(as_training_data(load_image_captions(name, split="train[50%:]"))) == EVERYTHING[3:]


def test_splits_of_a_saved_dataset_can_be_joined(tmp_path):
    name = write_saved_dataset_dict(tmp_path / "source")
    assert len(load_image_captions(name, split="train+test")) == ROWS + 2


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("count", [1, 4, 100])
def test_max_samples_keeps_the_first_rows(count, streaming, tmp_path):
    source = load_image_captions(write_parquet_folder(tmp_path / "source"), streaming=streaming, max_samples=count)
    assert content(as_training_data(source)) == EVERYTHING[:count]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("write", [write_parquet_folder, write_parquet_file, write_saved_dataset_dict])
def test_an_unknown_split_is_an_error_that_names_it_and_the_splits_there_are(write, streaming, tmp_path):
    name = write(tmp_path / "source")
    with pytest.raises(ValueError, match="split 'dev' of the dataset") as raised:
        load_image_captions(name, split="dev", streaming=streaming)
    assert name in str(raised.value) and "'train'" in str(raised.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_dataset_is_an_error_that_names_it(streaming, tmp_path):
    path = str(tmp_path / "nothing.parquet")
    datasets.Dataset.from_dict({"image": [], "caption": []}, features=FEATURES).to_parquet(path)
    with pytest.raises(ValueError, match=r"'train'.*nothing\.parquet|nothing\.parquet.*'train'"):
        load_image_captions(path, streaming=streaming)


def test_an_empty_slice_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"train\[6:\]"):
        load_image_captions(write_saved_dataset(tmp_path / "source"), split="train[6:]")


def test_max_samples_below_one_is_an_error():
    with pytest.raises(ValueError, match="max_samples is 0"):
        load_image_captions("shapes", max_samples=0)


def test_a_hub_id_without_network_is_an_error_that_names_it_and_tells_to_give_a_folder():
    with pytest.raises(OSError, match="somebody/captions") as raised:
        load_image_captions("somebody/captions")
    assert "--dataset_name a local folder" in str(raised.value)


@pytest.mark.parametrize("file_name", [None, "notes.bin"])
def test_a_folder_without_images_is_an_error_that_names_it(file_name, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    if file_name:
        (folder / file_name).write_text("no picture")
    with pytest.raises(OSError, match="pictures") as raised:
        load_image_captions(str(folder))
    assert "the folder exists" in str(raised.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_broken_parquet_file_is_an_error_that_names_it(streaming, tmp_path):
    (tmp_path / "broken.parquet").write_text("no parquet")
    with pytest.raises((OSError, ValueError), match=r"broken\.parquet.*[Pp]arquet"):
        load_image_captions(str(tmp_path / "broken.parquet"), streaming=streaming)


def test_files_that_do_not_fit_together_are_an_error_that_names_the_folder_and_the_reason(tmp_path):
    folder = write_parquet_folder(tmp_path / "pairs")
    other = table(2).rename_column("caption", "title").add_column("likes", [1, 2])
    other.to_parquet(Path(folder) / "train-00002-of-00002.parquet")
    with pytest.raises(OSError, match="pairs") as raised:
        load_image_captions(folder)
    assert "the folder exists" in str(raised.value) and "likes" in str(raised.value)


def test_broken_metadata_is_an_error_that_names_the_folder_and_the_reason(tmp_path):
    folder = Path(write_imagefolder(tmp_path / "pairs", "metadata.jsonl"))
    (folder / "train" / "metadata.jsonl").write_text('{"file_name": "0.png", "caption": "whole"}\n{"file_na')
    with pytest.raises((OSError, ValueError), match="pairs") as raised:
        load_image_captions(str(folder))
    assert "JSON" in str(raised.value)
