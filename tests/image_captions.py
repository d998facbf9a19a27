"""Captioned pictures in the real formats, of which each picture's red tells its number."""

import io
import json
import tarfile
from pathlib import Path

import datasets
from pictures import encoded, noise_picture
from PIL import Image

ROWS = 6
FEATURES = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
EVERYTHING = [(number, f"caption {number}") for number in range(ROWS)]  # what `content` gives of `table`
BAD = {1: "truncated.jpg", 3: "text.png", 4: "empty.png", 6: "missing.png"}


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (12, 10), (40 * number, 7, 0))


class Untyped(list):
    """Rows whose cells hold anything, in the form of a dataset."""

    column_names, features = ["image", "caption"], None

    def with_format(self, _):
        return self

    def select_columns(self, _):
        return self


def table(count: int = ROWS) -> datasets.Dataset:
    rows = [{"image": picture(number), "caption": f"caption {number}"} for number in range(count)]
    return datasets.Dataset.from_list(rows, features=FEATURES)


def content(dataset) -> list[tuple[int, str]]:
    """What a training dataset gives: the number that each picture's red tells, and its caption, sorted."""
    return sorted((round(example["image"].getpixel((5, 5))[0] / 40), example["caption"]) for example in dataset)


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


def write_parquet_folder(folder: Path) -> str:
    folder.mkdir()
    for shard in range(2):
        table().select(range(3 * shard, 3 * shard + 3)).to_parquet(folder / f"train-{shard:05d}-of-00002.parquet")
    return str(folder)


def write_parquet_file(folder: Path) -> str:
    folder.mkdir()
    table().to_parquet(folder / "pairs.parquet")
    return str(folder / "pairs.parquet")


def write_webdataset(folder: Path, extension: str = "png") -> str:
    folder.mkdir()
    for shard in range(2):
        members = {}
        for number in range(3 * shard, 3 * shard + 3):
            members[f"{number:04d}.{extension}"] = encoded(picture(number), "JPEG" if extension == "jpg" else "PNG")
            members[f"{number:04d}.txt"] = f"caption {number}".encode()
        write_tar(folder / f"{shard:05d}.tar", members)
    return str(folder)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def many_captions(rows: int = 20, captions: int = 3) -> datasets.Dataset:
    content = [{"image": picture(1), "caption": [f"{row} {c}" for c in range(captions)]} for row in range(rows)]
    features = FEATURES | {"caption": datasets.List(datasets.Value("string"))}
    return datasets.Dataset.from_list(content, features=datasets.Features(features))


def drawn(dataset, epoch: int) -> list[str]:
    dataset.set_epoch(epoch)
    return [example["caption"] for example in dataset]


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
