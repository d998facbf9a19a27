"""Rows that lack a caption: passed over like those without a picture; and how the bad rows of any source are named."""

import json
import pickle
from pathlib import Path

import datasets
import pytest
from image_captions import (
    EVERYTHING,
    FEATURES,
    ROWS,
    Untyped,
    content,
    picture,
    table,
    write_imagefolder,
    write_parquet_file,
    write_tar,
    write_webdataset,
)
from pictures import encoded
from torch.utils.data import DataLoader

from sdsclip_hf.data.captioned_images import ImageCaptionDataset
from sdsclip_hf.data.images import BAD_IMAGES_FILE, BadImageError, BadImages, tell_bad_images
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.data.streams import as_training_data

pytestmark = pytest.mark.usefixtures("own_cache")


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
    names, reasons = zip(*(line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()), strict=True)
    assert names == ("row 2", "row 3", "row 5", "row 8", "row 11")
    assert "column 'caption' holds nan, so that a caption is missing" in reasons[2]
    assert tell_bad_images(tmp_path) is None
    file.rename(tmp_path / BAD_IMAGES_FILE)
    assert tell_bad_images(tmp_path).startswith("5 unreadable images or missing captions were skipped; ")
    with pytest.raises(BadImageError, match=r"2 images or captions could .*row 3 .*--max_bad_images \(now 1\)"):
        list(ImageCaptionDataset(source, bad_images=BadImages(1, tmp_path / "fewer.txt")))
    with pytest.raises(BadImageError, match=r"none of the 1 rows has .* a caption; .*--caption_column"):
        ImageCaptionDataset(Untyped(source[2:3]), bad_images=BadImages(9, file))[0]


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
