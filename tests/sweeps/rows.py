"""Captions and pictures that are missing, of another type or broken; how many may be skipped."""

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from sdsclip_hf.data.images import BadImages
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.data.streams import as_training_data

CAPTIONS = [None, [], [None], ["a dog", None]]
PICTURES = [None, b"", b"no picture", "cut"]


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), (number * 9 % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def trial(rng: np.random.Generator, folder: Path) -> str:
    count, several = int(rng.integers(2, 9)), bool(rng.integers(2))
    pictures = [{"bytes": png(number), "path": None} for number in range(count)]
    captions = [[f"caption {number}"] if several else f"caption {number}" for number in range(count)]
    bad = {}
    for number in rng.choice(count, int(rng.integers(0, 3)), replace=False).tolist():
        if rng.random() < 0.5:
            captions[number] = CAPTIONS[rng.integers(len(CAPTIONS))] if several else None
            bad[number] = "caption"
        else:
            broken = PICTURES[rng.integers(len(PICTURES))]
            content = png(number)[:40] if broken == "cut" else broken
            pictures[number] = None if broken is None else {"bytes": content, "path": None}
            bad[number] = "picture"
    text = datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.List(text) if several else text})
    path = folder / "rows.parquet"
    datasets.Dataset.from_dict({"image": pictures, "caption": captions}, features=features).to_parquet(path)
    streaming, allowed = bool(rng.integers(2)), int(rng.integers(0, 3))
    data = as_training_data(
        load_image_captions(str(path), streaming=streaming),
        bad_images=BadImages(allowed, folder / "bad_images.txt"),
    )
    found = []
    try:
        for row in data if streaming else (data[number] for number in range(count)):
            found.append(row["caption"])
    except (ValueError, OSError) as error:
        told = [number for number in bad if f"row {number}" in str(error) or f"{number}" in str(error)]
        assert bad and (("row" in str(error) and (told or streaming)) or "none of the" in str(error)), str(error)
        return "refused"
    assert len(bad) <= allowed, f"{bad} of {count}, {allowed} allowed"
    whole = [f"caption {number}" for number in range(count) if number not in bad]
    assert list(dict.fromkeys(found)) == whole if streaming else set(found) == set(whole)
    assert len(data.bad_images.names()) == len(bad)
    return "read whole" if not bad else "passed over"
