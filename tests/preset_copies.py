"""Small copies of published benchmarks in the schemas and layouts that they are had in, and what their items are."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
from benchmark_copies import digest, picture, pixels
from datasets import Features, Value

PICTURES = [picture(number) for number in range(12)]
SHOWN = [digest(pixels(content)) for content in PICTURES]
URL = "https://cs-people.bu.edu/array/data/vg_gqa_images"


@dataclass
class PresetCopy:
    """How a copy is written into a folder, what its items are (captions, tag, pictures), and what the benchmark tells.

    Args:
        write: into a folder, which then is as the source has it.
        items: (captions, tag, digests of the pictures).
        kind: the rule.
        published: how many items there should be.
        hub_id: where it is by default; none of what is elsewhere.
    """

    write: Callable[[Path], None]
    items: list[tuple]
    kind: str
    published: int | None
    hub_id: str = ""


def put(folder: Path, name: str, content: bytes | str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)


def dataset(rows: list[dict], **kinds) -> datasets.Dataset:
    """Of rows whose pictures are numbers."""

    def stored(row: dict, key: str, kind):
        if isinstance(kind, datasets.Image):
            return {"bytes": PICTURES[row[key]], "path": None}
        if isinstance(kind, datasets.List) and isinstance(kind.feature, datasets.Image):
            return [{"bytes": PICTURES[number], "path": None} for number in row[key]]
        return row[key]

    rows = [{key: stored(row, key, kinds.get(key)) for key in row} for row in rows]
    return datasets.Dataset.from_list(rows, Features({key: kinds.get(key, Value("string")) for key in rows[0]}))


def parquet(folder: Path, data: datasets.Dataset, split: str = "test") -> None:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    data.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")


def zipped(folder: Path, name: str, files: dict[str, bytes | str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)


IMAGE = datasets.Image()


def pair(n: int, tag: str = "", start: str = "") -> tuple:
    return (f"{start}a dog {n}", f"{start}a cat {n}"), tag, tuple(SHOWN[2 * n : 2 * n + 2])


def bivlc() -> PresetCopy:
    kinds = [("Replace", "Object"), ("Swap", "Attribute"), ("Replace", "Object")]
    rows = [
        {
            "image": 2 * n,
            "caption": f"a dog {n}",
            "negative_caption": f"a cat {n}",
            "negative_image": 2 * n + 1,
            "type": kind,
            "subtype": sort,
        }
        for n, (kind, sort) in enumerate(kinds)
    ]
    data = dataset(rows, image=IMAGE, negative_image=IMAGE)
    items = [pair(n, " ".join(kind)) for n, kind in enumerate(kinds)]
    return PresetCopy(lambda folder: parquet(folder, data), items, "pairs", 2933, "imirandam/BiVLC")


def colorswap() -> PresetCopy:
    rows = [
        {
            "id": n,
            "image_1": 2 * n,
            "image_2": 2 * n + 1,
            "caption_1": f"a dog {n}",
            "caption_2": f"a cat {n}",
            "image_source": "midjourney",
            "caption_source": "human",
        }
        for n in range(3)
    ]
    data = dataset(rows, id=Value("int64"), image_1=IMAGE, image_2=IMAGE)

    def write(folder: Path) -> None:
        parquet(folder, data.select([0]), "train")
        parquet(folder, data.select([1, 2]))

    return PresetCopy(write, [pair(1), pair(2)], "pairs", 300, "stanfordnlp/colorswap")


def vismin() -> PresetCopy:
    rows = [
        {
            "id": str(n),
            "image_0": 2 * n,
            "text_0": f"a dog {n}",
            "image_1": 2 * n + 1,
            "text_1": f"a cat {n}",
            "category": ["object", "counting", "object"][n],
        }
        for n in range(3)
    ]
    data = datasets.DatasetDict({"test": dataset(rows, image_0=IMAGE, image_1=IMAGE)})
    items = [pair(n, rows[n]["category"]) for n in range(3)]
    return PresetCopy(lambda folder: data.save_to_disk(folder / "data"), items, "pairs", 2084, "mair-lab/vismin-bench")


def mmvp_vlm() -> PresetCopy:
    kinds = ["Camera Perspective", "Texts", "Texts"]

    def write(folder: Path) -> None:
        lines = ["Question ID,Type,Statement"]
        for n, kind in enumerate(kinds):
            for k, statement in enumerate((f"a dog {n}", f'"a cat {n}"')):
                lines.append(f"{2 * n + k + 1},{kind},{statement}")
                put(folder, f"MLLM_VLM Images/{kind}/{2 * n + k + 1}.jpg", PICTURES[2 * n + k])
        put(folder, "Questions.csv", "\n".join(lines))

    items = [pair(n, kind, "a photo of ") for n, kind in enumerate(kinds)]
    return PresetCopy(write, items, "pairs_by_image", 135, "MMVP/MMVP_VLM")


def naturalbench_retrieval() -> PresetCopy:
    rows = [
        {
            "index": n,
            "image_0": f"{n}_0.jpg",
            "image_1": f"{n}_1.jpg",
            "caption_0": f"a dog {n}",
            "caption_1": f"a cat {n}",
        }
        for n in range(3)
    ]
    top = "NaturalBench-Retrieval"
    files = {f"{top}/images/{n}_{k}.jpg": PICTURES[2 * n + k] for n in range(3) for k in range(2)}
    files[f"{top}/metadata.json"] = json.dumps(rows)
    items = [pair(n) for n in range(3)]
    return PresetCopy(lambda folder: zipped(folder, f"{top}.zip", files), items, "pairs", None, "BaiqiL/NaturalBench")


def eqben() -> PresetCopy:
    kinds = ["eqbenag", "eqbenkubric", "eqbenag"]
    rows = [
        {
            "image0": f"{kind}/{n}/0.png",
            "image1": f"{kind}/{n}/1.png",
            "caption0": f"a dog {n}",
            "caption1": f"a cat {n}",
        }
        for n, kind in enumerate(kinds)
    ]

    def write(folder: Path) -> None:
        put(folder, "eqben_subset_10percent_final.json", json.dumps(rows))
        for n, kind in enumerate(kinds):
            for k in range(2):
                put(folder, f"images/{kind}/{n}/{k}.png", PICTURES[2 * n + k])

    return PresetCopy(write, [pair(n, kind) for n, kind in enumerate(kinds)], "pairs", None)


def cola() -> PresetCopy:
    rows = [[f"{URL}/{2 * n}.jpg", f"a dog {n}", f"{URL}/{2 * n + 1}.jpg", f"a cat {n}"] for n in range(3)]

    def write(folder: Path) -> None:
        put(folder, "data/COLA_multiobjects_matching_benchmark.json", json.dumps(rows))
        for number in range(6):
            put(folder, f"images/{number}.jpg", PICTURES[number])

    return PresetCopy(write, [pair(n) for n in range(3)], "pairs_by_image", 210)


COPIES = {make.__name__: make for make in (bivlc, colorswap, vismin, mmvp_vlm, naturalbench_retrieval, eqben, cola)}
