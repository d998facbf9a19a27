"""Loading, decoding, caption drawing, skipping of bad images, and batches, on small data in the real formats."""

import io
import json
import multiprocessing
import pickle
import tarfile
import zipfile
from collections import Counter
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from conftest import make_clip, make_processor
from pictures import encoded, noise_picture
from PIL import Image
from torch.utils.data import DataLoader

from sdsclip_hf.data import captioned_images
from sdsclip_hf.data.captioned_images import ImageCaptionDataset
from sdsclip_hf.data.collator import ImageCaptionCollator
from sdsclip_hf.data.images import BAD_IMAGES_FILE, BadImageError, BadImages, read_image, tell_bad_images
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.data.streams import PASSED_OVER, EndlessStream, StreamingImageCaptionDataset, as_training_data
from sdsclip_hf.scoring.caption_items import CaptionedRows
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

ROWS = 6
FEATURES = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    datasets.disable_progress_bars()


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (12, 10), (40 * number, 7, 0))


def table(count: int = ROWS) -> datasets.Dataset:
    rows = [{"image": picture(number), "caption": f"caption {number}"} for number in range(count)]
    return datasets.Dataset.from_list(rows, features=FEATURES)


def content(dataset) -> list[tuple[int, str]]:
    """What a training dataset gives: the number that each picture's red tells, and its caption, sorted."""
    return sorted((round(example["image"].getpixel((5, 5))[0] / 40), example["caption"]) for example in dataset)


EVERYTHING = [(number, f"caption {number}") for number in range(ROWS)]


def write_imagefolder(folder: Path, metadata: str, list_captions: bool = False) -> str:
    part = folder / "train"
    part.mkdir(parents=True)
    lines = ["file_name,caption"] if metadata.endswith("csv") else []
    for number in range(ROWS):
        picture(number).save(part / f"{number}.png")
        caption = [f"caption {number}"] if list_captions else f"caption {number}"
        as_json = json.dumps({"file_name": f"{number}.png", "caption": caption})
        lines.append(f"{number}.png,{caption}" if metadata.endswith("csv") else as_json)
    (part / metadata).write_text("\n".join(lines) + "\n")
    return str(folder)


def write_zipped_imagefolder(folder: Path) -> str:
    plain = Path(write_imagefolder(folder / "plain", "metadata.jsonl"))
    (folder / "zipped").mkdir()
    with zipfile.ZipFile(folder / "zipped" / "train.zip", "w") as archive:
        for path in (plain / "train").iterdir():
            archive.write(path, path.name)
    return str(folder / "zipped")


def write_parquet_folder(folder: Path) -> str:
    folder.mkdir()
    for shard in range(2):
        table().select(range(3 * shard, 3 * shard + 3)).to_parquet(folder / f"train-{shard:05d}-of-00002.parquet")
    return str(folder)


def write_parquet_file(folder: Path) -> str:
    folder.mkdir()
    table().to_parquet(folder / "pairs.parquet")
    return str(folder / "pairs.parquet")


def write_parquet_of_plain_bytes(folder: Path) -> str:
    folder.mkdir()
    rows = {"image": [encoded(picture(n)) for n in range(ROWS)], "caption": [f"caption {n}" for n in range(ROWS)]}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "pairs.parquet")
    return str(folder / "pairs.parquet")


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_webdataset(folder: Path, extension: str = "png") -> str:
    folder.mkdir()
    for shard in range(2):
        members = {}
        for number in range(3 * shard, 3 * shard + 3):
            members[f"{number:04d}.{extension}"] = encoded(picture(number), "JPEG" if extension == "jpg" else "PNG")
            members[f"{number:04d}.txt"] = f"caption {number}".encode()
        write_tar(folder / f"{shard:05d}.tar", members)
    return str(folder)


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


def test_a_dataset_with_an_output_format_is_read_like_any_other():
    for kind in ("numpy", "torch"):
        assert content(as_training_data(table().with_format(kind))) == EVERYTHING
        dataset = as_training_data(many_captions().with_format(kind))
        assert drawn(dataset, 1) == drawn(as_training_data(many_captions()), 1)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("columns", "missing", "option"),
    [
        ({"image_column": "picture"}, "picture", "--image_column"),
        ({"caption_column": "txt"}, "txt", "--caption_column"),
    ],
)
def test_an_unknown_column_is_an_error_that_tells_the_columns_there_are(columns, missing, option, streaming):
    source = table().to_iterable_dataset() if streaming else table()
    with pytest.raises(ValueError, match=rf"'{missing}' not found; the dataset has 'image', 'caption'. Pass {option}"):
        as_training_data(source, **columns)


def test_a_stream_of_unknown_columns_works_and_tells_them_in_errors():
    def rows():
        for number in range(ROWS):
            yield {"number": number, "image": picture(number), "caption": f"caption {number}"}

    source = datasets.IterableDataset.from_generator(rows)
    assert source.column_names is None
    assert content(as_training_data(source)) == EVERYTHING
    with pytest.raises(ValueError, match="'text' not found; the dataset has 'number', 'image', 'caption'"):
        as_training_data(source, caption_column="text")


def test_a_mapped_webdataset_stream_works(tmp_path):
    stream = load_image_captions(write_webdataset(tmp_path / "source"), streaming=True)
    mapped = stream.map(lambda row: {"image": row["png"], "caption": row["txt"]}, remove_columns=["png", "txt"])
    assert mapped.column_names is None
    assert content(as_training_data(mapped)) == EVERYTHING


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


def test_a_folder_of_images_without_captions_is_an_error_that_tells_the_columns_there_are(tmp_path):
    picture(1).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="caption column 'caption' not found; the dataset has 'image'"):
        as_training_data(load_image_captions(str(tmp_path)))


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


def test_a_column_that_holds_no_images_is_an_error_that_names_the_option():
    source = datasets.Dataset.from_dict({"image": [3, 4], "caption": ["a", "b"]})
    with pytest.raises(TypeError, match=r"3 is no image, but a int.*--image_column"):
        as_training_data(source)[0]


def many_captions(rows: int = 20, captions: int = 3) -> datasets.Dataset:
    content = [{"image": picture(1), "caption": [f"{row} {c}" for c in range(captions)]} for row in range(rows)]
    features = FEATURES | {"caption": datasets.List(datasets.Value("string"))}
    return datasets.Dataset.from_list(content, features=datasets.Features(features))


def drawn(dataset, epoch: int) -> list[str]:
    dataset.set_epoch(epoch)
    return [example["caption"] for example in dataset]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_drawn_captions_are_told_by_seed_and_epoch_alone(streaming):
    source = many_captions().to_iterable_dataset() if streaming else many_captions()
    first, again, other_seed = (as_training_data(source, seed=seed) for seed in (5, 5, 6))
    later = drawn(first, 3)
    assert drawn(again, 3) == later == drawn(first, 3)
    assert drawn(first, 4) != later
    assert drawn(other_seed, 3) != later


def test_the_drawn_caption_does_not_depend_on_the_order_of_reading():
    dataset = as_training_data(many_captions())
    in_order = drawn(dataset, 2)
    assert [dataset[number]["caption"] for number in reversed(range(20))] == in_order[::-1]


@pytest.mark.parametrize("streaming", [False, True])
def test_every_caption_of_a_row_is_drawn_equally_often(streaming):
    source = many_captions(10)
    dataset = as_training_data(source.to_iterable_dataset() if streaming else source)
    counts = Counter(caption for epoch in range(90) for caption in drawn(dataset, epoch))
    assert set(counts) == {f"{row} {c}" for row in range(10) for c in range(3)}
    for c in range(3):  # 900 draws: 300 expected, standard deviation 14
        assert 240 < sum(count for caption, count in counts.items() if caption.endswith(f" {c}")) < 360


def test_rows_and_epochs_draw_independently():
    dataset = as_training_data(many_captions(60))
    first, second = ([caption[-1] for caption in drawn(dataset, epoch)] for epoch in (0, 1))
    for one, other in ((first, second), (first[1:], second[:-1]), (first[1:], first[:-1]), (first, first[::-1])):
        alike = sum(a == b for a, b in zip(one, other, strict=True))
        assert 8 < alike < 34  # of about 60: 20 expected, standard deviation 3.7


def test_the_data_loader_of_accelerate_tells_the_epoch():
    dataset = as_training_data(many_captions())
    loader = prepare_data_loader(DataLoader(dataset, batch_size=4, collate_fn=list), put_on_device=False)
    loader.set_epoch(7)
    assert [example["caption"] for batch in loader for example in batch] == drawn(as_training_data(many_captions()), 7)


@pytest.mark.parametrize("streaming", [False, True])
def test_workers_that_live_on_draw_anew_each_epoch(streaming):
    source = many_captions(12)
    dataset = as_training_data(source.to_iterable_dataset(num_shards=1) if streaming else source)
    workers = 1 if streaming else 2
    loader = DataLoader(dataset, batch_size=2, collate_fn=list, num_workers=workers, persistent_workers=True)
    for epoch in (0, 1, 5):
        dataset.set_epoch(epoch)
        got = [example["caption"] for batch in loader for example in batch]
        assert got == drawn(as_training_data(many_captions(12)), epoch)


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (["fine", None], "None"),
        ([4.5, 7.0], "4.5"),
        ([["fine"], ["fine", None]], r"\['fine', None\]"),
        ([["fine"], []], r"\[\]"),
        ([[1, 2], [3]], r"\[1, 2\]"),
        ([{"en": "a cat"}, {"en": "a dog"}], "'en'"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_captions_that_are_no_strings_are_an_error_that_names_row_column_and_option(cells, told, streaming):
    rows = {"image": [encoded(picture(1))] * 2, "words": cells}
    source = datasets.Dataset.from_dict(rows)
    dataset = as_training_data(source.to_iterable_dataset() if streaming else source, caption_column="words")
    bad_row = 1 if cells[0] in ("fine", ["fine"]) else 0
    row = "row captioned .*, checksum [0-9a-f]{8}" if streaming else f"row {bad_row}"  # no file tells its place
    with pytest.raises(ValueError, match=rf"^{row}: column 'words' holds .*{told}.*--caption_column"):
        list(dataset)


class Untyped(list):
    """Rows whose cells hold anything, in the form of a dataset."""

    column_names, features = ["image", "caption"], None

    def with_format(self, _):
        return self

    def select_columns(self, _):
        return self


@pytest.mark.parametrize("cell", [None, 3, [], ["a dog", None], {"a": 1}], ids=repr)
def test_odd_captions_are_told_alike_wherever_all_of_them_are_read(cell, scores_folder):
    scores = CandidateScores.load(scores_folder)
    rows = Untyped({"image": picture(0), "caption": caption} for caption in (scores.caption(0), cell))
    told = r"row 1: column 'caption' holds .*; a caption must be a string or a list of strings.*--caption_column"
    with pytest.raises(ValueError, match=told):
        ImageCaptionDataset(rows)[1]
    with pytest.raises(ValueError, match=told):
        ImageCaptionDataset(rows).captions()
    with pytest.raises(ValueError, match=told):
        ImageCaptionDataset(rows, scores=scores).check_scores()
    with pytest.raises(ValueError, match=told):
        CaptionedRows(rows).captions  # noqa: B018


def test_indices_beyond_the_end_are_errors_so_that_plain_iteration_ends():
    dataset = as_training_data(table())
    assert len(list(dataset)) == len(dataset) == ROWS
    assert dataset[-1]["caption"] == "caption 5"
    with pytest.raises(IndexError):
        dataset[ROWS]


BAD = {1: "truncated.jpg", 3: "text.png", 4: "empty.png", 6: "missing.png"}


def write_paths_with_bad_ones(folder: Path, rows: int = 8) -> datasets.Dataset:
    """Rows of paths of which those in ``BAD`` cannot be read."""
    jpeg = encoded(noise_picture(), "JPEG")
    spoiled = {"truncated.jpg": jpeg[: len(jpeg) // 2], "text.png": b"words", "empty.png": b""}
    paths = []
    for number in range(rows):
        path = folder / BAD.get(number, f"{number}.png")
        if path.name in spoiled:
            path.write_bytes(spoiled[path.name])
        elif number not in BAD:
            picture(number % ROWS).save(path)
        paths.append(str(path))
    return datasets.Dataset.from_dict({"image": paths, "caption": [f"caption {n}" for n in range(rows)]})


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_an_unreadable_image_is_replaced_by_the_next_readable_one(tmp_path):
    dataset = as_training_data(write_paths_with_bad_ones(tmp_path), bad_images=BadImages(4, tmp_path / "bad.txt"))
    assert [example["caption"][-1] for example in dataset] == list("02255577")


def test_a_stream_passes_over_unreadable_images(tmp_path):
    source = write_paths_with_bad_ones(tmp_path).to_iterable_dataset()
    dataset = as_training_data(source, bad_images=BadImages(4, tmp_path / "bad.txt"))
    assert [example["caption"][-1] for example in dataset] == list("0257")


@pytest.mark.parametrize("streaming", [False, True])
def test_each_bad_image_is_named_once_over_epochs_and_runs(streaming, tmp_path):
    source, file = write_paths_with_bad_ones(tmp_path), tmp_path / "run" / "bad_images.txt"
    for _ in range(2):
        dataset = as_training_data(source.to_iterable_dataset() if streaming else source, bad_images=BadImages(4, file))
        for epoch in range(2):
            assert drawn(dataset, epoch)
    lines = lines_of(file)
    assert sorted(line.split("\t")[0] for line in lines) == sorted(str(tmp_path / name) for name in BAD.values())
    assert all(line.split("\t")[1] for line in lines)


def test_one_bad_image_more_than_the_limit_is_an_error_that_names_it_and_the_option(tmp_path):
    file = tmp_path / "bad_images.txt"
    dataset = as_training_data(write_paths_with_bad_ones(tmp_path), bad_images=BadImages(3, file))
    assert [dataset[number]["caption"][-1] for number in range(5)] == list("02255")
    with pytest.raises(BadImageError, match=r"4 images or .*missing\.png.*bad_images\.txt.*--max_bad_images \(now 3\)"):
        dataset[6]
    assert len(lines_of(file)) == 4


def test_without_a_limit_the_first_bad_image_is_an_error_that_names_it(tmp_path):
    with pytest.raises(BadImageError, match=r"1 image or caption could .*truncated\.jpg.*--max_bad_images \(now 0\)"):
        as_training_data(write_paths_with_bad_ones(tmp_path))[1]
    with pytest.raises(ValueError, match="path is missing"):
        BadImages(3)


def test_a_dataset_of_bad_images_alone_is_an_error_however_many_may_be_skipped(tmp_path):
    source = datasets.Dataset.from_dict({"image": [b"words", b"words"], "caption": ["a", "b"]})
    with pytest.raises(BadImageError, match="none of the 2 rows has a readable image"):
        as_training_data(source, bad_images=BadImages(10, tmp_path / "bad.txt"))[0]


def test_workers_name_each_bad_image_once(tmp_path):
    cells = [encoded(picture(1)), *(b"words" for _ in range(30))]
    source = datasets.Dataset.from_dict({"image": cells, "caption": ["a"] * len(cells)})
    bad_images = BadImages(30, tmp_path / "bad.txt")  # every row leads both workers past all bad ones
    loader = DataLoader(as_training_data(source, bad_images=bad_images), 1, num_workers=2, collate_fn=list)
    for _ in range(2):
        assert len([example for batch in loader for example in batch]) == 31
    assert sorted(bad_images.names()) == sorted(f"row {number}" for number in range(1, 31))


def test_processes_that_meet_the_same_bad_images_at_once_name_each_once(tmp_path):
    bad_images = BadImages(100, tmp_path / "bad.txt")
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)

    def meet_all():
        start.wait()
        for number in range(100):
            bad_images.record(f"{number}.png", OSError("broken"))

    processes = [context.Process(target=meet_all) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(bad_images.names()) == sorted(f"{number}.png" for number in range(100))


def test_the_error_of_a_worker_arrives_as_it_is(tmp_path):
    dataset = as_training_data(write_paths_with_bad_ones(tmp_path), bad_images=BadImages(2, tmp_path / "bad.txt"))
    batches = iter(DataLoader(dataset, batch_size=1, num_workers=2, collate_fn=list))
    with pytest.raises(BadImageError, match=r"--max_bad_images \(now 2\)"):
        list(batches)
    batches._shutdown_workers()  # left to the garbage collector, it waits ten seconds for them


def test_the_unreadable_images_of_prepared_formats_are_named_too(tmp_path):
    folder = Path(write_imagefolder(tmp_path / "pairs", "metadata.csv"))
    (folder / "train" / "2.png").write_bytes(b"words")
    bad_images = BadImages(1, tmp_path / "bad.txt")
    assert len(content(as_training_data(load_image_captions(str(folder)), bad_images=bad_images))) == ROWS
    assert bad_images.names() == [str(folder / "train" / "2.png")]


@pytest.mark.parametrize("streaming", [False, True])
def test_equal_names_inside_a_dataset_are_told_apart(streaming, tmp_path):
    cells = [{"bytes": b"words", "path": "1.png"}, {"bytes": b"words", "path": "1.png"}, {"bytes": None, "path": None}]
    cells.append({"bytes": encoded(picture(1)), "path": "1.png"})
    source = datasets.Dataset.from_dict({"image": cells, "caption": ["a cat", "a dog", "a mat", "a chair"]})
    bad_images = BadImages(3, tmp_path / "bad.txt")
    dataset = as_training_data(source.to_iterable_dataset() if streaming else source, bad_images=bad_images)
    assert {example["caption"] for example in dataset} == {"a chair"}
    assert len(bad_images.names()) == 3 and sum("(1.png)" in name for name in bad_images.names()) == 2


def test_a_bad_image_of_a_shuffled_stream_is_named_once_over_epochs_and_workers(tmp_path):
    cells = [encoded(picture(1)) if number % 4 else b"words" for number in range(16)]
    source = datasets.Dataset.from_dict({"image": cells, "caption": [f"caption {n}" for n in range(16)]})
    bad_images = BadImages(4, tmp_path / "bad.txt")
    stream = source.to_iterable_dataset(num_shards=4).shuffle(seed=0, buffer_size=16)
    dataset = as_training_data(stream, bad_images=bad_images)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=list)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        assert len([example for batch in loader for example in batch]) == 12
    assert len(bad_images.names()) == 4


MISSING = [None, float("nan"), [], ["a cat", None]]


def lacking_captions(*cells) -> Untyped:
    """Rows captioned 0, 1, and so on but for one that holds each of these cells, after every second one."""
    captions = [cell for number, odd in enumerate(cells) for cell in (str(2 * number), str(2 * number + 1), odd)]
    return Untyped({"image": picture(1), "caption": caption} for caption in captions)


@pytest.mark.parametrize("cell", MISSING, ids=repr)
def test_a_missing_caption_is_an_error_that_names_it_and_how_to_skip_it(cell):
    told = r"row 2: column 'caption' holds .*Choose another --caption_column, mend the row, or .*--max_bad_images\."
    with pytest.raises(ValueError, match=told):
        ImageCaptionDataset(lacking_captions(cell))[2]
    with pytest.raises(ValueError, match=r"row 2: column 'caption' holds 3;.*--caption_column, or mend the row\.$"):
        ImageCaptionDataset(lacking_captions(3), bad_images=BadImages(None, "bad.txt"))[2]


def test_rows_without_a_caption_are_skipped_noted_and_counted_like_those_without_a_picture(tmp_path):
    source, file = lacking_captions(*MISSING), tmp_path / "bad.txt"
    source[3]["image"] = b"words"  # of the row captioned 2
    for _ in range(2):
        dataset = ImageCaptionDataset(source, bad_images=BadImages(5, file))
        assert [example["caption"] for example in dataset] == list("013334456670")
    names, reasons = zip(*(line.split("\t") for line in lines_of(file)), strict=True)
    assert names == ("row 2", "row 3", "row 5", "row 8", "row 11")
    assert "column 'caption' holds nan, so that a caption is missing" in reasons[2]
    assert tell_bad_images(tmp_path) is None
    file.rename(tmp_path / BAD_IMAGES_FILE)
    assert tell_bad_images(tmp_path).startswith("5 unreadable images or missing captions were skipped; ")
    with pytest.raises(BadImageError, match=r"2 images or captions could .*row 3 .*--max_bad_images \(now 1\)"):
        list(ImageCaptionDataset(source, bad_images=BadImages(1, tmp_path / "fewer.txt")))
    with pytest.raises(BadImageError, match=r"none of the 1 rows has .* a caption; .*--caption_column"):
        ImageCaptionDataset(Untyped(source[2:3]), bad_images=BadImages(9, file))[0]


def test_a_name_with_line_breaks_and_tabs_stays_one_line_and_one_image(tmp_path):
    bad_images = BadImages(5, tmp_path / "bad.txt")
    for _ in range(2):
        bad_images.record("two\nlines\tand a\u2028tab.png", OSError("no\n\tpicture"))
    assert lines_of(tmp_path / "bad.txt") == ["two lines and a tab.png\tno picture"]


def write_tables(folder: Path) -> str:
    """Two parquet files of three rows; the second holds a broken picture, and a row without a caption."""
    folder.mkdir()
    cells = [encoded(picture(number)) if number != 3 else b"words" for number in range(ROWS)]
    rows = table().cast_column("image", datasets.Image(decode=False)).to_list()
    for row, cell in zip(rows, cells, strict=True):
        row["image"]["bytes"] = cell
    rows[5]["caption"] = None
    for name, part in (("train", rows[:3]), ("test", rows[3:])):
        datasets.Dataset.from_list(part, features=FEATURES).to_parquet(folder / f"{name}.parquet", batch_size=2)
    return str(folder)


def write_lines(folder: Path) -> str:
    write_imagefolder(folder / "pictures", "metadata.jsonl")
    (folder / "table").mkdir()
    lines = [{"image": str(folder / "pictures" / "train" / f"{n}.png"), "caption": f"caption {n}"} for n in range(ROWS)]
    lines[4]["caption"] = None
    (folder / "table" / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "table")


def write_imagefolder_that_lacks_a_caption(folder: Path) -> str:
    write_imagefolder(folder, "metadata.csv")
    file = folder / "train" / "metadata.csv"
    file.write_text(file.read_text().replace("caption 4", ""))
    return str(folder)


def write_tars(folder: Path) -> str:
    """As [`write_webdataset`], where the first tar holds a sample without a caption, and the second a broken picture."""
    write_webdataset(folder)
    members = {"0000.png": encoded(picture(0)), "0000.txt": b"caption 0", "0001.png": encoded(picture(1))}
    write_tar(folder / "00000.tar", members | {"0002.png": encoded(picture(2)), "0002.txt": b"caption 2"})
    members = {
        "0003.png": b"words",
        "0003.txt": b"caption 3",
        "0004.png": encoded(picture(4)),
        "0004.txt": b"caption 4",
    }
    write_tar(folder / "00001.tar", members | {"0005.png": encoded(picture(5)), "0005.txt": b"caption 5"})
    return str(folder)


@pytest.mark.parametrize(
    ("write", "columns", "split", "bad"),
    [
        (write_tables, {}, "train+test", ["row 0 of {}/test.parquet", "row 2 of {}/test.parquet"]),
        (write_lines, {}, "train", ["row 4 of {}/train.jsonl"]),
        (write_imagefolder_that_lacks_a_caption, {}, "train", ["{}/train/4.png"]),
        (
            write_tars,
            {"image_column": "png", "caption_column": "txt"},
            "train",
            ["sample 0001 of {}/00000.tar", "sample 0003 of {}/00001.tar (0003.png)"],
        ),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_of_a_shuffled_stream_is_named_by_its_place(write, columns, split, bad, workers, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    name = write(tmp_path / "source")
    stream = load_image_captions(name, split=split, streaming=True).shuffle(seed=1, buffer_size=4)
    bad_images = BadImages(2, tmp_path / "bad.txt")
    dataset = as_training_data(stream, bad_images=bad_images, **columns)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        found = list(DataLoader(dataset, batch_size=1, num_workers=workers, collate_fn=list))
        assert len(found) == ROWS - len(bad)
    names = [place.format(name) for place in bad]
    assert sorted(bad_images.names()) == names
    with pytest.raises(ValueError, match="--max_bad_images") as raised:
        list(as_training_data(stream, **columns))
    assert any(f"{place}: column" in str(raised.value) or f"{place} (" in str(raised.value) for place in names)


def test_prepared_tars_name_rows_by_number_and_what_is_no_webdataset_stays_none(tmp_path):
    bad_images = BadImages(2, tmp_path / "bad.txt")
    source = load_image_captions(write_tars(tmp_path / "source"))
    dataset = as_training_data(source, image_column="png", caption_column="txt", bad_images=bad_images)
    assert [example["caption"][-1] for example in dataset] == list("022445")
    assert bad_images.names() == ["row 1", "row 3 (0003.png)"]
    write_tar(tmp_path / "mixed.tar", {"a.png": encoded(picture(1)), "b.txt": b"a cat"})
    with pytest.raises(ValueError, match=r"mixed\.tar.*should be in WebDataset format"):
        load_image_captions(str(tmp_path / "mixed.tar"))


def test_what_tells_the_place_is_no_column_of_the_user(tmp_path):
    stream = load_image_captions(write_parquet_file(tmp_path / "source"), streaming=True)
    with pytest.raises(ValueError, match=r"'text' not found; the dataset has 'image', 'caption'\. Pass"):
        as_training_data(stream, caption_column="text")
    assert content(as_training_data(pickle.loads(pickle.dumps(stream)).skip(2))) == EVERYTHING[2:]


@pytest.mark.parametrize("write", [write_parquet_folder, write_parquet_file, write_webdataset])
@pytest.mark.parametrize("count", [None, 5])
def test_workers_of_a_stream_share_the_rows_without_repeating_any(write, count, tmp_path):
    source = load_image_captions(write(tmp_path / "source"), streaming=True, max_samples=count)
    columns = {"image_column": "png", "caption_column": "txt"} if write is write_webdataset else {}
    loader = DataLoader(as_training_data(source, **columns), batch_size=2, num_workers=2, collate_fn=list)
    captions = [example["caption"] for batch in loader for example in batch]
    assert len(captions) == len(set(captions)) == (count or ROWS)


def test_the_epoch_reorders_a_shuffled_stream_and_tells_its_order():
    stream = table().to_iterable_dataset().shuffle(seed=1, buffer_size=ROWS)
    dataset = as_training_data(stream)
    orders = [drawn(dataset, epoch) for epoch in (0, 1, 2, 1)]
    assert orders[1] == orders[3]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == [caption for _, caption in EVERYTHING] for order in orders)


@pytest.fixture
def decoded(monkeypatch):
    """How many pictures were decoded, as a list of one number."""
    count = [0]

    def read(cell):
        count[0] += 1
        return read_image(cell)

    monkeypatch.setattr("sdsclip_hf.data.captioned_images.read_image", read)
    return count


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("shards", [6, 3, 1])  # for two processes: whole shards in the first case, else rows
@pytest.mark.parametrize("write", [None, write_parquet_folder])
def test_processes_share_a_stream_each_pass_and_decode_their_own_rows_alone(
    write, shards, shuffled, tmp_path, decoded, monkeypatch
):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # seconds after each pass over parquet
    stream = table().to_iterable_dataset(num_shards=shards)
    if write is not None:
        stream = load_image_captions(write(tmp_path / "source"), streaming=True)
    if shuffled:
        stream = stream.shuffle(seed=3, buffer_size=4)
    orders = []
    for epoch in (0, 1):
        shares = [as_training_data(stream).share(rank, 2) for rank in (0, 1)]
        for share in shares:
            share.set_epoch(epoch)
        decoded[0] = 0
        rows = [content(share) for share in shares]
        assert sorted(rows[0] + rows[1]) == EVERYTHING
        assert {len(of_one) for of_one in rows} == {ROWS // 2}
        assert decoded[0] == ROWS
        orders.append([example["caption"] for example in shares[0]])
    assert not shuffled or orders[0] != orders[1]


def test_a_row_of_a_share_draws_the_caption_that_it_draws_in_the_whole_stream():
    whole = drawn(as_training_data(many_captions(12).to_iterable_dataset()), 1)
    shares = [drawn(as_training_data(many_captions(12).to_iterable_dataset()).share(rank, 5), 1) for rank in range(5)]
    assert [shares[number % 5][number // 5] for number in range(12)] == whole


def test_a_stream_that_was_split_by_node_stays_as_it_is():
    half = datasets.distributed.split_dataset_by_node(table().to_iterable_dataset(), 1, 2)
    assert content(as_training_data(half).share(0, 2)) == EVERYTHING[1::2]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("passed", [0, 1, 3, 8])
def test_a_stream_that_goes_on_gives_the_same_batches_as_one_that_never_stopped(workers, passed, decoded):
    def batches(passed_over: int) -> list[list[dict]]:
        source = many_captions(10).to_iterable_dataset(num_shards=2).shuffle(seed=1, buffer_size=4)
        stream = EndlessStream(as_training_data(source), 2, passed_over)
        return list(islice(DataLoader(stream, batch_size=2, num_workers=workers, collate_fn=list), 11))

    whole = batches(0)
    decoded[0] = 0
    later = batches(passed)
    assert later[:passed] == [[PASSED_OVER] * 2] * passed
    assert [[row["caption"] for row in batch] for batch in later[passed:]] == [
        [row["caption"] for row in batch] for batch in whole[passed:]
    ]
    assert workers or decoded[0] == 2 * (11 - passed)


def test_bad_images_do_not_move_the_place_where_a_stream_goes_on(tmp_path):
    cells = [encoded(picture(1)) if number % 4 else b"words" for number in range(16)]
    source = datasets.Dataset.from_dict({"image": cells, "caption": [f"caption {n}" for n in range(16)]})

    def captions(passed_over: int) -> list[str | None]:
        dataset = as_training_data(source.to_iterable_dataset(), bad_images=BadImages(4, tmp_path / "bad.txt"))
        return [row.get("caption") for row in islice(EndlessStream(dataset, 3, passed_over), 15)]

    assert captions(2) == [None] * 6 + captions(0)[6:]


def test_rows_that_are_passed_over_make_a_batch_of_nothing():
    assert ImageCaptionCollator(make_processor())([PASSED_OVER] * 2) == {}


def test_kinds_of_training_data_follow_the_source():
    assert isinstance(as_training_data(table()), ImageCaptionDataset)
    assert isinstance(as_training_data(table().to_iterable_dataset()), StreamingImageCaptionDataset)


def batch_of(captions: list[str], **options) -> dict[str, torch.Tensor]:
    examples = [{"image": picture(number), "caption": caption} for number, caption in enumerate(captions)]
    return ImageCaptionCollator(make_processor(), **options)(examples)


def test_captions_longer_than_the_text_tower_reads_are_cut_and_marked():
    tokenizer = make_processor().tokenizer  # reads 20 tokens: 18 words, a beginning and an end
    batch = batch_of([" ".join(["cat"] * words) for words in (2, 18, 19, 60)])
    assert batch["caption_cut"].tolist() == [False, False, True, True]
    assert batch["input_ids"].shape == (4, 20)
    cat = tokenizer("cat").input_ids[1]
    assert batch["input_ids"][3].tolist() == [tokenizer.bos_token_id, *[cat] * 18, tokenizer.eos_token_id]
    assert batch["attention_mask"].sum(1).tolist() == [4, 20, 20, 20]
    clip = make_clip()
    clip(**{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")})


def test_a_batch_is_padded_to_its_longest_caption():
    batch = batch_of(["a cat", "a cat on a mat"])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 7)
    assert not batch["caption_cut"].any() and "teacher_input_ids" not in batch


def test_teacher_prompts_are_cut_and_padded_to_what_the_teacher_reads(teacher_folder):
    teacher = DiffusionTeacher.from_pretrained(teacher_folder)
    ids = batch_of(["a cat", "dog " * 40], teacher_tokenize=teacher.tokenize)["teacher_input_ids"]
    assert ids.shape == (2, 16)
    assert ids[:, -1].tolist() == [teacher.tokenizer.pad_token_id, teacher.tokenizer.eos_token_id]
    assert teacher.encode_tokens(ids).shape == (2, 16, 16)


def test_pixels_of_a_batch_are_those_of_the_processor():
    processor = make_processor()
    values = batch_of(["a cat"] * 3)["pixel_values"]
    assert values.shape == (3, 3, 16, 16) and values.dtype == torch.float32
    expected = (np.array([80, 7, 0]) / 255 - processor.image_processor.image_mean) / processor.image_processor.image_std
    assert values[2, :, 8, 8].numpy() == pytest.approx(expected, abs=1e-5)


def test_pictures_kept_in_memory_give_the_same_batches_and_are_read_once(monkeypatch):
    processor, reads = make_processor(), []
    monkeypatch.setattr(captioned_images, "read_image", lambda cell: reads.append(1) or read_image(cell))
    source = datasets.Dataset.from_list(
        [{"image": Image.fromarray(np.random.default_rng(row).integers(0, 256, (20 + row, 30, 3), np.uint8)), "caption": "a"}
         for row in range(4)],
        features=FEATURES,
    )  # fmt: skip
    collate = ImageCaptionCollator(processor)
    plain = collate([as_training_data(source)[row] for row in (3, 0, 0)])["pixel_values"]
    reads.clear()
    for _ in range(2):  # a later dataset of the same rows finds them, too
        kept = as_training_data(source, image_processor=processor.image_processor)
        assert torch.equal(collate([kept[row] for row in (3, 0, 0)])["pixel_values"], plain)
    assert len(reads) == 2
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]  # another preprocessing shares nothing
    other = as_training_data(source, image_processor=processor.image_processor)
    assert not torch.equal(collate([other[3]])["pixel_values"], plain[:1])
    turned = as_training_data(source.select([3, 2, 1, 0]), image_processor=make_processor().image_processor)
    assert torch.equal(collate([turned[0]])["pixel_values"], plain[:1])


def test_an_unreadable_image_is_replaced_where_pictures_are_kept(tmp_path):
    source = write_paths_with_bad_ones(tmp_path)
    options = [{}, {"image_processor": make_processor().image_processor}]
    plain, kept = (
        as_training_data(source, bad_images=BadImages(4, tmp_path / "bad.txt"), **given) for given in options
    )
    captions = [[dataset[row]["caption"] for _ in range(2) for row in range(len(dataset))] for dataset in (plain, kept)]
    assert captions[0] == captions[1]
