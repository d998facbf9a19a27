"""Any mode, format, transparency, EXIF orientation and damage: training, streams, scoring and benchmarks read the same."""

import json
import warnings
from pathlib import Path

import numpy as np
from pictures import encoded, turned
from PIL import Image

from sdsclip_hf.benchmarks import load_benchmark, read_picture
from sdsclip_hf.data.captioned_images import ImageCaptionDataset
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.scoring.caption_items import CaptionedRows
from sweeps.damage import damage

UPRIGHT = {1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud, 5: lambda p: p.transpose(1, 0, 2)}
UPRIGHT |= {6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p, 2).transpose(1, 0, 2), 8: lambda p: np.rot90(p, 1)}


def stored(rng: np.random.Generator) -> tuple[Image.Image, np.ndarray, str]:
    """A picture, the pixels that are seen of it on white, and a form that keeps them."""
    shape = int(rng.integers(1, 20)), int(rng.integers(1, 20))
    colours, alpha = (
        rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
        rng.integers(0, 256, (*shape, 1), dtype=np.uint8),
    )
    kind = str(rng.choice(["RGB", "L", "RGBA", "LA", "P", "I;16", "F"]))
    if kind in ("L", "I;16", "LA", "F"):
        colours = np.repeat(colours[..., :1], 3, axis=-1)
    grey = colours[..., 0]
    on_white = colours * (alpha / 255) + 255 * (1 - alpha / 255)
    if kind == "RGB":
        return Image.fromarray(colours), colours, str(rng.choice(["PNG", "TIFF", "WEBP", "BMP"]))
    if kind == "L":
        return Image.fromarray(grey), colours, str(rng.choice(["PNG", "TIFF", "BMP"]))
    if kind == "RGBA":
        return Image.fromarray(np.concatenate([colours, alpha], -1)), on_white, str(rng.choice(["PNG", "TIFF", "WEBP"]))
    if kind == "LA":
        return Image.fromarray(np.concatenate([grey[..., None], alpha], -1), "LA"), on_white, "PNG"
    if kind == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257), colours, str(rng.choice(["PNG", "TIFF"]))
    if kind == "F":
        return Image.fromarray((grey / 255).astype(np.float32)), colours, "TIFF"
    indices, palette = rng.integers(0, 7, shape, dtype=np.uint8), rng.integers(0, 256, (7, 3), dtype=np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.flatten().tolist())
    seen = palette[indices].copy()
    seen[indices == 3] = 255
    image.info["transparency"] = 3
    return image, seen, "PNG"


def trial(rng: np.random.Generator, folder: Path) -> str:
    image, seen, file_format = stored(rng)
    options, orientation = {}, int(rng.integers(1, 9))
    if file_format in ("PNG", "TIFF", "WEBP") and rng.random() < 0.5:
        options["exif"] = turned(orientation)
        seen = UPRIGHT[orientation](seen)
    if file_format == "WEBP":
        options |= {"lossless": True, "exact": True}
    if "transparency" in image.info:
        options["transparency"] = 3
    path = folder / f"0.{file_format.lower()}"
    path.write_bytes(encoded(image, file_format, **options))
    is_damaged = rng.random() < 0.4
    if is_damaged:
        damage(path, rng)
        if not path.exists():
            return "refused"
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": path.name, "caption": "a dog"}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        readers = {
            "training": lambda: ImageCaptionDataset(load_image_captions(str(folder)))[0]["image"],
            "a stream": lambda: next(iter(load_stream(folder)))["image"],
            "scoring": lambda: CaptionedRows(load_image_captions(str(folder))).picture(0),
            "a benchmark": lambda: read_picture(load_benchmark(f"retrieval={folder}").items[0].images[0]),
        }
        found = {name: outcome(read) for name, read in readers.items()}
    first = found["training"]
    for name, pixels in found.items():
        assert (pixels is None) == (first is None), f"{name} differs from training, {is_damaged=}"
        assert pixels is None or np.array_equal(pixels, first), f"{name} reads other pixels than training"
    if is_damaged:
        return "refused" if first is None else "read alike"
    assert first is not None and first.shape == seen.shape, image.mode
    assert np.abs(first - seen).max() <= 1, f"{image.mode} {file_format} {options}"
    return "read right"


def load_stream(folder: Path):
    from sdsclip_hf.data.streams import as_training_data

    return as_training_data(load_image_captions(str(folder), streaming=True))


def outcome(read) -> np.ndarray | None:
    try:
        return np.asarray(read()).astype(int)
    except (OSError, ValueError) as error:
        assert "0." in str(error) or "no rows" in str(error) or "image" in str(error), str(error)
        return None
