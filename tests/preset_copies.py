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
        bare: whether it has no pictures, which then are those of [`put_pictures`].
    """

    write: Callable[[Path], None]
    items: list[tuple]
    kind: str
    published: int | None
    hub_id: str = ""
    bare: bool = False


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
    return PresetCopy(lambda folder: zipped(folder, f"{top}.zip", files), items, "pairs", 1227, "BaiqiL/NaturalBench")


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


def one(*captions: str, tag: str, picture: int) -> tuple:
    return captions, tag, (SHOWN[picture],)


def jsonl_and_zip(rows: list[dict], dump: Callable = json.dumps) -> Callable[[Path], None]:
    """As Mayfull's copies: the lines that their loading script reads, and the pictures that they name in a zip."""

    def write(folder: Path) -> None:
        put(folder, "examples.jsonl", "\n".join(map(dump, rows)))
        zipped(folder, "images.zip", {f"images/{number}.jpg": content for number, content in enumerate(PICTURES)})

    return write


def valse() -> PresetCopy:
    rows = [
        {
            "image_file_name": f"{n}.jpg",
            "positive_caption": [f"a dog {n}"],
            "negative_caption": [f"a cat {n}"],
            "original_file_name": f"{piece}.json",
            "key": f"{piece}_{n}",
            "dataset": "VisDial",
            "linguistic_phenomena": phenomenon,
            "original_split": "val",
        }
        for n, (piece, phenomenon) in enumerate(
            [("existence", "existence"), ("coreference-hard", "coreference"), ("coreference-standard", "coreference")]
        )
    ]
    items = [
        one(f"a dog {n}", f"a cat {n}", tag=row["original_file_name"][:-5], picture=n) for n, row in enumerate(rows)
    ]
    return PresetCopy(jsonl_and_zip(rows, repr), items, "choices", 7702, "Mayfull/valse_vlms")


VALSE = {
    "existence": ["existence"],
    "plurals": ["plurals"],
    "counting-hard": ["counting_hard"],
    "counting-small-quant": ["counting_small"],
    "counting-adversarial": ["counting_adversarial"],
    "relations": ["relations"],
    "action-replacement": ["action_replacement"],
    "actant-swap": ["actant_swap"],
    "coreference-standard": ["coreference_standard"],
    "coreference-hard": ["coreference_hard"],
    "foil-it": ["foil_it"],
}


def valse_authors() -> PresetCopy:
    """Eleven files; the second item of each is none that the annotators found valid."""

    def write(folder: Path) -> None:
        for number, name in enumerate(VALSE):
            rows = {
                f"{name}_{n}": {
                    "dataset": "SWiG",
                    "linguistic_phenomena": name.split("-")[0],
                    "image_file": f"{number}.jpg",
                    "caption": f"a dog {number}",
                    "foil": f"a cat {n} {number}",
                    "mturk": {"foil": 0, "caption": votes, "other": 3 - votes},
                }
                for n, votes in enumerate((3, 1, 2))
            }
            put(folder, f"data/{name}.json", json.dumps(rows))
            put(folder, f"images/{number}.jpg", PICTURES[number])

    items = [
        one(f"a dog {number}", f"a cat {n} {number}", tag=tag, picture=number)
        for number, (tag,) in enumerate(VALSE.values())
        for n in (0, 2)
    ]
    return PresetCopy(write, items, "choices", 7702)


PLACES = {
    "A": {"on": "on", "under": "under", "left": "to the left of", "right": "to the right of"},
    "B": {"front": "in front of", "behind": "behind", "left": "to the left of", "right": "to the right of"},
}


def whatsup_rows() -> dict[str, list[dict]]:
    """Two sets of four photos in A, one in B; the true caption is the first."""
    rows: dict[str, list[dict]] = {"A": [], "B": []}
    for part, things in (("A", "mug"), ("A", "dog"), ("B", "cup")):
        captions = [f"A {things} {words} a table" for words in PLACES[part].values()]
        for n, place in enumerate(PLACES[part]):
            number = len(rows["A"]) + len(rows["B"])
            of = "of_" * (place in ("left", "right", "front"))
            file = f"{things}_{'in-front' if place == 'front' else place}_{of}table.jpeg"
            options = [captions[n], *captions[:n], *captions[n + 1 :]]
            rows[part].append({"captions": options, "file": file, "picture": number})
    return rows


WHATSUP = [
    one(*row["captions"], tag=part, picture=row["picture"]) for part, rows in whatsup_rows().items() for row in rows
]


def whatsup() -> PresetCopy:
    def write(folder: Path) -> None:
        for part, rows in whatsup_rows().items():
            split = f"Controlled_Images_{part}"
            table = [{"image_options": [row["picture"]], "caption_options": row["captions"]} for row in rows]
            kinds = {"image_options": datasets.List(IMAGE), "caption_options": datasets.List(Value("string"))}
            parquet(folder, dataset(table, **kinds), split)
        splits = "".join(
            f"  - split: Controlled_Images_{part}\n    path: data/Controlled_Images_{part}-*\n" for part in "AB"
        )
        put(folder, "README.md", f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n")

    return PresetCopy(write, WHATSUP, "whatsup", 820, "ServiceNow/whatsup_all")


def whatsup_authors() -> PresetCopy:
    def write(folder: Path) -> None:
        for part, name in (("A", "controlled_images"), ("B", "controlled_clevr")):
            rows = whatsup_rows()[part]
            table = [{"image_path": f"data/{name}/{row['file']}", "caption_options": row["captions"]} for row in rows]
            put(folder, f"{name}_dataset.json", json.dumps(table))
            for row in rows:
                put(folder, f"{name}/{row['file']}", PICTURES[row["picture"]])

    return PresetCopy(write, WHATSUP, "whatsup", 820)


SPEC = ("absolute_size", "absolute_spatial", "count", "existence", "relative_size", "relative_spatial")


def spec_files() -> dict[str, bytes | str]:
    """Two questions each way in each subset; the pictures of each are called alike."""
    files: dict[str, bytes | str] = {}
    for shift, subset in enumerate(SPEC):
        captions = [f"{subset} {k}" for k in range(3)]
        images = [f"images/{k}.jpg" for k in range(3)]
        files |= {f"data/{subset}/{name}": PICTURES[shift + k] for k, name in enumerate(images)}
        to_text = [{"query": images[n], "keys": captions, "label": n + 1} for n in range(2)]
        to_image = [{"query": captions[n], "keys": images, "label": n + 1} for n in range(2)]
        files[f"data/{subset}/image2text.json"] = json.dumps(to_text)
        files[f"data/{subset}/text2image.json"] = json.dumps(to_image)
    return files


def spec_items() -> list[tuple]:
    items = []
    for shift, subset in enumerate(SPEC):
        order = [[1, 0, 2], [2, 0, 1]]
        items += [((*(f"{subset} {k}" for k in order[n]),), subset, (SHOWN[shift + n],)) for n in range(2)]
        items += [((f"{subset} {n}",), subset, (*(SHOWN[shift + k] for k in order[n]),)) for n in range(2)]
    return items


def spec() -> PresetCopy:
    return PresetCopy(
        lambda folder: zipped(folder, "data.zip", spec_files()), spec_items(), "choices", None, "wjpoom/SPEC"
    )


def spec_unpacked() -> PresetCopy:
    def write(folder: Path) -> None:
        for name, content in spec_files().items():
            put(folder, name, content)

    return PresetCopy(write, spec_items(), "choices", None)


def crepe() -> PresetCopy:
    box = {"x": 3.0, "y": 2.0, "width": 11.0, "height": 9.0}
    rows = [
        {
            "image": f"{n}.jpg",
            "positive_caption": [f"a dog {n}"],
            "negative_caption": [f"a cat {n} {k}" for k in range(3 + n)],
            **box,
            "original_file_name": f"prod_vg_hard_negs_{kind}_complexity_4.csv",
        }
        for n, kind in enumerate(("atom", "swap", "negate"))
    ]
    items = [
        (
            (f"a dog {n}", *row["negative_caption"]),
            row["original_file_name"][:-4],
            (digest(pixels(PICTURES[n], (3, 2, 11, 9))),),
        )
        for n, row in enumerate(rows)
    ]
    return PresetCopy(jsonl_and_zip(rows), items, "choices", None, "Mayfull/crepe_vlms")


def negbench_mcq() -> PresetCopy:
    head = "image_path,correct_answer,caption_0,caption_1,caption_2,caption_3,correct_answer_template"
    tables = {"coco": "COCO_val_mcq_llama3.1_rephrased.csv", "voc": "VOC2007_mcq_llama3.1_rephrased.csv"}

    def write(folder: Path) -> None:
        for shift, name in enumerate(tables.values()):
            lines = [
                f'/data/of/theirs/{shift + n}.jpg,{n},a {n},"b, {n}",c {n},d {n},{kind}'
                for n, kind in enumerate(("positive", "negative", "hybrid"))
            ]
            put(folder, name, "\n".join([head, *lines]))
        for number in range(4):
            put(folder, f"val2017/{number}.jpg", PICTURES[number])

    items = []
    for shift, part in enumerate(tables):
        for n, order in enumerate(("abcd", "bacd", "cabd")):
            captions = [f"{letter}{',' * (letter == 'b')} {n}" for letter in order]
            items.append(one(*captions, tag=part, picture=shift + n))
    return PresetCopy(write, items, "choices", None)


CONFIGS = {
    "swap_object": ("swap_object", "swap_obj"),
    "swap_attribute": ("swap_atribute", "swap_att"),
    "replace_object": ("replace_object", "replace_obj"),
    "replace_attribute": ("replace_attribute", "replace_att"),
    "replace_relation": ("replace_relation", "replace_rel"),
}


def triplets(shift: int) -> list[dict]:
    return [
        {
            "id": n,
            "filename": f"{shift + n}.jpg",
            "caption": f"a dog {n} {shift}",
            "caption2": f"one hound {n} {shift}",
            "negative_caption": f"a cat {n} {shift}",
        }
        for n in range(2)
    ]


TRIPLETS = [
    one(row["caption"], row["caption2"], row["negative_caption"], tag=part, picture=shift + n)
    for shift, part in enumerate(CONFIGS)
    for n, row in enumerate(triplets(shift))
]


def put_pictures(folder: Path) -> None:
    for number, content in enumerate(PICTURES):
        put(folder, f"{number}.jpg", content)


def sugarcrepe_pp() -> PresetCopy:
    """As on the Hub: a configuration of json a subset, and no pictures."""

    def write(folder: Path) -> None:
        configs = ""
        for shift, (config, _) in enumerate(CONFIGS.values()):
            put(folder, f"{config}.json", json.dumps(triplets(shift)))
            configs += f"- config_name: {config}\n  data_files: {config}.json\n"
        put(folder, "README.md", f"---\nconfigs:\n{configs}---\n")

    return PresetCopy(write, TRIPLETS, "sugarcrepe_pp", 4757, "Aman-J/SugarCrepe_pp", bare=True)


def sugarcrepe_pp_authors() -> PresetCopy:
    def write(folder: Path) -> None:
        for shift, (_, name) in enumerate(CONFIGS.values()):
            put(folder, f"data/{name}.json", json.dumps(triplets(shift)))
        put_pictures(folder / "val2017")

    return PresetCopy(write, TRIPLETS, "sugarcrepe_pp", 4757)


COPIES = {
    **{make.__name__: make for make in (bivlc, colorswap, vismin, mmvp_vlm, naturalbench_retrieval, eqben, cola)},
    **{make.__name__: make for make in (valse, whatsup, spec, crepe, negbench_mcq, sugarcrepe_pp)},
    "valse, the authors' files": valse_authors,
    "whatsup, the authors' files": whatsup_authors,
    "spec, unpacked": spec_unpacked,
    "sugarcrepe_pp, the authors' files": sugarcrepe_pp_authors,
}
