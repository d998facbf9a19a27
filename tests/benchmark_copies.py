"""Tiny copies of the benchmarks in their exact schemas, in every form that they are had in.

A copy knows what its items are by itself: the captions as they stand here, the pictures decoded and cut out by numpy.
"""

import csv
import hashlib
import io
import json
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
from datasets import ClassLabel, Features, List, Value
from pictures import encoded
from PIL import Image

from sdsclip_hf.benchmarks import Benchmark, read_picture

BOX = {key: Value("float32") for key in "xywh"}
WIDTH, HEIGHT = 30, 22
JPEG_START = bytes([255, 216])


def noise(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(seed: int, file_format: str = "PNG") -> bytes:
    """A file of noise, in which any other cut has other pixels."""
    return encoded(Image.fromarray(noise(seed)), file_format)


def pixels(content: bytes, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """(height, width, 3) of a file, cut to (x, y, w, h)."""
    array = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    x, y, w, h = box or (0, 0, array.shape[1], array.shape[0])
    return array[y : y + h, x : x + w]


def digest(array: np.ndarray) -> str:
    return hashlib.sha1(f"{array.shape}".encode() + array.tobytes()).hexdigest()


class Expected(NamedTuple):
    identifier: str
    captions: tuple[str, ...]
    tag: str
    labels: tuple[tuple[str, str], ...]
    images: tuple[str, ...]


def told(benchmark: Benchmark) -> list[Expected]:
    """What a benchmark's items are, the pictures by digest."""
    return [
        Expected(
            item.identifier,
            item.captions,
            item.tag,
            tuple(sorted(item.labels)),
            tuple(digest(np.asarray(read_picture(image))) for image in item.images),
        )
        for item in benchmark.items
    ]


@dataclass
class Copy:
    """Rows of columns, with files' bytes in the image columns; the authors' json where there is one."""

    spec: str
    hub_id: str
    features: dict
    rows: list[dict]
    expected: list[Expected]
    json_name: str = ""
    json_rows: list | dict = field(default_factory=list)
    json_files: dict[str, bytes] = field(default_factory=dict)

    @property
    def image_columns(self) -> list[str]:
        return [column for column, kind in self.features.items() if isinstance(kind, datasets.Image)]

    def dataset(self) -> datasets.Dataset:
        columns = self.image_columns
        stored = [
            {
                column: {"bytes": cell, "path": None} if isinstance(cell := row[column], bytes) else cell
                for column in columns
            }
            for row in self.rows
        ]
        rows = [row | images for row, images in zip(self.rows, stored, strict=True)]
        return datasets.Dataset.from_list(rows, features=Features(self.features))

    def without(self, *columns: str) -> "Copy":
        rows = [{key: value for key, value in row.items() if key not in columns} for row in self.rows]
        return replace(self, features={k: v for k, v in self.features.items() if k not in columns}, rows=rows)


def winoground() -> Copy:
    kinds = [("Relation", "Noun", "", 1), ("Object", "Verb", "Pragmatics", 2), ("Both", "Adj", "", 1)]
    names = ("image_0", "image_1", "caption_0", "caption_1")
    rows, expected = [], []
    for number, (collapsed, tag, secondary, preds) in enumerate(kinds):
        images = (picture(2 * number), picture(2 * number + 1))
        captions = (f"a mug {number} in some grass", f"some grass in a mug {number}")
        row = {"id": 7 * number + 3, **dict(zip(names, (*images, *captions), strict=True)), "tag": tag}
        rows.append(row | {"secondary_tag": secondary, "num_main_preds": preds, "collapsed_tag": collapsed})
        labels = (("num_main_preds", str(preds)), ("secondary_tag", secondary), ("tag", tag))
        labels = tuple(label for label in labels if label[1])
        shown = tuple(digest(pixels(image)) for image in images)
        expected.append(Expected(str(7 * number + 3), captions, collapsed, labels, shown))
    kinds = {"id": Value("int32"), "image_0": datasets.Image(), "image_1": datasets.Image()}
    texts = {name: Value("string") for name in ("caption_0", "caption_1", "tag", "secondary_tag")}
    last = {"num_main_preds": Value("int32"), "collapsed_tag": Value("string")}
    return Copy("winoground", "facebook/winoground", kinds | texts | last, rows, expected)


def _aro_cut(spec: str, hub_id: str, json_name: str, column: str, kind, values: list, tags: list[str]) -> Copy:
    """Four questions: two of them on one image, and one whose box is all of its image."""
    boxes = [(3, 2, 11, 9), (14, 1, 9, 17), (0, 5, 30, 4), (0, 0, WIDTH, HEIGHT)]
    files = {f"23{number}.jpg": picture(10 + number, "JPEG") for number in range(3)}
    rows, expected, objects = [], [], []
    for number, (box, name) in enumerate(zip(boxes, ["230.jpg", "230.jpg", "231.jpg", "232.jpg"], strict=True)):
        captions = {"true_caption": f"the horse {number} eats grass", "false_caption": f"the grass {number} eats horse"}
        own = captions | {column: values[number]}
        rows.append({"image": files[name], **own, "bbox": dict(zip("xywh", map(float, box), strict=True))})
        corners = {f"bbox_{key}": edge for key, edge in zip("xywh", box, strict=True)}
        objects.append({"image_path": name, "image_id": int(name[:3]), **corners, **own, "object1_name": "horse"})
        shown = (digest(pixels(files[name], box)),)
        expected.append(Expected(str(number), tuple(captions.values()), tags[number], (), shown))
    texts = {"true_caption": Value("string"), "false_caption": Value("string")}
    features = {"image": datasets.Image(), **texts, column: kind, "bbox": BOX}
    placed = {f"images/{name}": content for name, content in files.items()}
    return Copy(spec, hub_id, features, rows, expected, json_name, objects, placed)


def aro_relation() -> Copy:
    names = ["eating", "on", "eating", "to the left of"]
    place = ("aro_relation", "mteb/ARO-Visual-Relation", "visual_genome_relation.json")
    return _aro_cut(*place, "relation_name", Value("string"), names, names)


def aro_attribution() -> Copy:
    pairs = [["white", "tall"], ["wet", "dry"], ["white", "tall"], ["old", "open"]]
    place = ("aro_attribution", "mteb/ARO-Visual-Attribution", "visual_genome_attribution.json")
    return _aro_cut(*place, "attributes", List(Value("string")), pairs, ["_".join(pair) for pair in pairs])


def _aro_order(spec: str, hub_id: str, json_name: str, files: dict[str, bytes]) -> Copy:
    rows, expected, objects = [], [], []
    for number, (name, content) in enumerate(files.items()):
        captions = tuple(f"{words} {number}" for words in ("a man rides", "a rides man", "man a rides", "x", "rides a"))
        texts = dict(zip(["correct_caption", *(f"hard_text_{k}" for k in (1, 2, 3, 4))], captions, strict=True))
        rows.append({"images": content} | texts)
        objects.append({"image": name, "caption_options": list(captions)})
        expected.append(Expected(str(number), captions, "", (), (digest(pixels(content)),)))
    features = {"images": datasets.Image()} | {column: Value("string") for column in rows[0] if column != "images"}
    return Copy(spec, hub_id, features, rows, expected, json_name, objects, files)


def aro_coco_order() -> Copy:
    files = {f"val2014/COCO_val2014_{number:012}.jpg": picture(number, "JPEG") for number in (42, 73)}
    return _aro_order("aro_coco_order", "mteb/ARO-COCO-order", "coco_order.json", files)


def aro_flickr30k_order() -> Copy:
    files = {f"flickr30k-images/{number}.jpg": picture(number, "JPEG") for number in (1007129816, 1009434119)}
    return _aro_order("aro_flickr30k_order", "mteb/ARO-Flickr-Order", "flickr30k_order.json", files)


def sugarcrepe(subset: str = "swap_obj") -> Copy:
    """The true caption stands first in one row and last in another, and ids have gaps."""
    rows, expected, objects, files = [], [], {}, {}
    for number, key in enumerate(("0", "2", "17")):
        true, false = f"{subset}: a dog on mat {number}", f"{subset}: a mat on dog {number}"
        name, content = f"{391895 + number:012}.jpg", picture(20 + number, "JPEG")
        tested = [true, false] if number != 1 else [false, true]
        rows.append({"image": content, "tested_labels": tested, "true_label": true})
        objects[key] = {"filename": name, "caption": true, "negative_caption": false}
        files[f"val2017/{name}"] = content
        expected.append(Expected(f"{subset}/{number}", (true, false), subset, (), (digest(pixels(content)),)))
    names = sorted({caption for row in rows for caption in row["tested_labels"]})
    labels = {"tested_labels": List(Value("string")), "true_label": ClassLabel(names=names)}
    place = (f"sugarcrepe:{subset}", f"HuggingFaceM4/SugarCrepe_{subset}")
    return Copy(*place, {"image": datasets.Image()} | labels, rows, expected, f"{subset}.json", objects, files)


COPIES = (winoground, aro_relation, aro_attribution, aro_coco_order, aro_flickr30k_order, sugarcrepe)


def write_parquet(folder: Path, copy: Copy, split: str = "test", shards: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        shard = copy.dataset().shard(shards, number, contiguous=True)
        shard.to_parquet(folder / f"{split}-{number:05}-of-{shards:05}.parquet")
    return folder


def write_file(folder: Path, copy: Copy) -> Path:
    folder.mkdir(parents=True)
    copy.dataset().to_parquet(folder / "some.parquet")
    return folder / "some.parquet"


def write_disk(folder: Path, copy: Copy) -> Path:
    copy.dataset().save_to_disk(folder)
    return folder


def write_splits_to_disk(folder: Path, copy: Copy) -> Path:
    """With a train split that is another benchmark."""
    other = copy.dataset().select([0]).remove_columns(copy.image_columns)
    datasets.DatasetDict({"train": other, "test": copy.dataset()}).save_to_disk(folder)
    return folder


def write_imagefolder(folder: Path, copy: Copy, split: str = "test") -> Path:
    """Pictures and metadata.jsonl."""
    return _write_imagefolder(folder / split, copy, copy.rows, "metadata.jsonl") and folder


def write_csv_imagefolder(folder: Path, copy: Copy) -> Path:
    """As above without splits; cells of several values are spread over columns, or joined."""
    return _write_imagefolder(folder, copy, [_flat(row) for row in copy.rows], "metadata.csv")


def write_zip(folder: Path, copy: Copy) -> Path:
    """Pictures and metadata in an archive."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        inside = write_imagefolder(Path(scratch) / "pictures", copy) / "test"
        shutil.make_archive(str(folder / "test"), "zip", inside)
    return folder


def _flat(row: dict) -> dict:
    if "bbox" in row:
        row = row | {f"bbox_{key}": edge for key, edge in row["bbox"].items()}
    if "tested_labels" in row:
        false = next(caption for caption in row["tested_labels"] if caption != row["true_label"])
        row = row | {"caption": row["true_label"], "negative_caption": false}
    if "attributes" in row:
        row = row | {"attributes": "_".join(row["attributes"])}
    return {key: value for key, value in row.items() if key not in ("bbox", "tested_labels", "true_label")}


def _write_imagefolder(folder: Path, copy: Copy, rows: list[dict], metadata: str) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for number, row in enumerate(rows):
        line = dict(row)
        for column in copy.image_columns:
            content = line.pop(column)
            name = f"{column}_{number}{'.jpg' if content.startswith(JPEG_START) else '.png'}"
            (folder / name).write_bytes(content)
            line["file_name" if column == "image" else f"{column}_file_name"] = name
        lines.append(line)
    with open(folder / metadata, "w", newline="") as file:
        if metadata.endswith(".csv"):
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
        else:
            file.write("\n".join(map(json.dumps, lines)))
    return folder


def write_json(folder: Path, copy: Copy, below: str = "") -> Path:
    """The authors' json, and the images by the paths it names."""
    (folder / below).mkdir(parents=True, exist_ok=True)
    (folder / below / copy.json_name).write_text(json.dumps(copy.json_rows))
    for name, content in copy.json_files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_json_and_its_data(folder: Path, copy: Copy) -> Path:
    """The json in ``data``, as in SugarCrepe's repository, and the images beside ``data``."""
    return write_json(folder, copy, "data")


def write_json_file(folder: Path, copy: Copy) -> Path:
    return write_json(folder, copy) / copy.json_name
