"""Folders and files with brackets, stars, spaces and names of splits, beside others that a pattern would take for them."""

import json
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from sdsclip_hf.data.loading import load_image_captions

CHARACTERS = list("ab1[]*?!{}(),;@#%&'~ .-_+=é日😀")
SPLITS = ["train", "test", "validation", "Train", "dev", "eval"]
FEATURES = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})


def name(rng: np.random.Generator) -> str:
    text = "".join(rng.choice(CHARACTERS, int(rng.integers(1, 9)))).strip(". ") or "x"
    return f"{text}{rng.choice([' ', '-', '_', ''])}{rng.choice(SPLITS)}" if rng.random() < 0.2 else text


def table(captions: list[str]) -> datasets.Dataset:
    pictures = [Image.new("RGB", (4, 4))] * len(captions)
    return datasets.Dataset.from_dict({"image": pictures, "caption": captions}, features=FEATURES)


def write(folder: Path, rng: np.random.Generator, form: str, captions: list[str]) -> None:
    if form == "saved":
        table(captions).save_to_disk(folder)
        return
    folder.mkdir()
    files = []
    while len(files) < len(captions):
        files += [text for text in [name(rng)] if text.lower() not in map(str.lower, files)]
    if form == "parquet":
        for file, caption in zip(files, captions, strict=True):
            table([caption]).to_parquet(folder / f"{file}.parquet")
        return
    lines = []
    for file, caption in zip(files, captions, strict=True):
        Image.new("RGB", (4, 4)).save(folder / f"{file}.png")
        lines.append(json.dumps({"file_name": f"{file}.png", "caption": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def trial(rng: np.random.Generator, folder: Path) -> str:
    form, streaming = str(rng.choice(["saved", "parquet", "imagefolder"])), bool(rng.integers(2))
    own, count = name(rng), int(rng.integers(1, 5))
    captions = [f"caption {number}" for number in range(count)]
    write(folder / own, rng, form, captions)
    for decoy in {own.replace("[", "").replace("]", ""), own.replace("*", "zz"), own.replace("?", "z"), "x"} - {own}:
        if decoy and not (folder / decoy).exists():
            write(folder / decoy, rng, form, ["of another"])
    try:
        data = load_image_captions(str(folder / own), streaming=streaming)
    except (ValueError, OSError) as error:
        assert own in str(error) and form != "saved", str(error)
        assert any(word in str(error) for word in ("rename", "Rename", "split")), str(error)
        return "refused"
    assert sorted(row["caption"] for row in data) == captions
    return "read whole"
