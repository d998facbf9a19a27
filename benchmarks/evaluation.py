# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Time and memory of scoring: our ClipScorer against the plain loop over items that ARO's authors' tool has.

Both score the same made items with the same randomly initialised CLIP of ViT-B/32's size, turn about in one run. The
plain loop takes items in batches and encodes the images and all captions of each item anew, captions padded to 77.
Three sets of items: as in VG-Relation (every crop its own, two captions, often repeated), as in COCO-Order (each image
under five items of five captions), and 100,000 items scored by ours alone with a small CLIP, for its memory.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from sdsclip_hf import shapes
from sdsclip_hf.benchmarks import ImageFile, Item, read_picture
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.students.dual_encoder import DualEncoder

NOUNS = """face hand man woman boy girl child baby dog cat bird fish horse house tree flower plant fruit car bus train
boat road sky sun moon star mountain beach field grass table chair bed door window book clock phone ball eye mouth nose
ear hair head heart button flag arrow mark""".split()  # noqa: SIM905
RELATIONS = ("on", "under", "behind", "over")


def make_clip(processor: CLIPProcessor, small: bool = False) -> CLIPModel:
    """A CLIP of ViT-B/32's size for the processor's tokenizer; small: two narrow layers with as wide embeddings."""
    text = {"eos_token_id": processor.tokenizer.eos_token_id, "bos_token_id": processor.tokenizer.bos_token_id}
    vision = {}
    if small:
        narrow = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        text, vision = text | narrow, narrow | {"image_size": 32}
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).eval()


def make_processor(image_size: int = 224) -> CLIPProcessor:
    """The bundled student's tokenizer, and CLIP's image preprocessing."""
    processor = CLIPProcessor.from_pretrained(shapes.model_path("student"))
    image = {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
    processor.image_processor = type(processor.image_processor)(**image)
    return processor


def make_photos(folder: Path, count: int, size: tuple[int, int], rng: np.random.Generator) -> list[str]:
    """JPEGs of smooth noise, which are about as large as photographs of their size."""
    paths = []
    for number in range(count):
        coarse = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        path = folder / f"{size[0]}-{number}.jpg"
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(str(path))
    return paths


def relation_items(paths: list[str], count: int, rng: np.random.Generator, nouns: list[str]) -> list[Item]:
    """Every crop its own; "the A is R the B" and the other way round, common words more often than rare ones."""
    weights = 1 / np.arange(1, len(nouns) + 1)
    weights /= weights.sum()
    items = []
    for number in range(count):
        first, second = rng.choice(nouns, 2, replace=False, p=weights)
        relation = rng.choice(RELATIONS)
        with Image.open(paths[number % len(paths)]) as image:
            width, height = image.size
        left, top = (int(rng.integers(0, edge // 3)) for edge in (width, height))
        box = (left, top, left + width // 2 + number % 7, top + height // 2)
        captions = (f"the {first} is {relation} the {second}", f"the {second} is {relation} the {first}")
        items.append(Item(str(number), (ImageFile(paths[number % len(paths)], box),), captions))
    return items


def order_items(paths: list[str], rng: np.random.Generator) -> list[Item]:
    """Five items an image, each a caption of eleven words and four shuffles of it."""
    items = []
    for path in paths:
        for number in range(5):
            words = rng.choice(NOUNS, 11).tolist()
            captions = tuple(" ".join(words if k == 0 else rng.permutation(words)) for k in range(5))
            items.append(Item(f"{path}-{number}", (ImageFile(path),), captions))
    return items


@torch.no_grad()
def plain_scores(clip: CLIPModel, processor: CLIPProcessor, items: list[Item], workers: int, batch: int) -> list:
    """The loop of ARO's tool: images and captions of a batch of items encoded anew, captions padded to 77."""

    def collate(rows: list[Item]):
        images = [read_picture(item.images[0]) for item in rows]
        return rows, processor.image_processor(images, return_tensors="pt").pixel_values

    scores = []
    for rows, pixels in DataLoader(items, batch, num_workers=workers, collate_fn=collate):
        images = F.normalize(clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        options = []
        for number in range(len(rows[0].captions)):
            texts = [item.captions[number] for item in rows]
            tokens = processor.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
            options.append(F.normalize(clip.get_text_features(**tokens).pooler_output, dim=-1))
        found = torch.einsum("bd,bkd->bk", images, torch.stack(options, dim=1))
        scores += [row[:, None].numpy() for row in found]
    return scores


class PeakMemory:
    """How many bytes the process grew by at most while the context was open, workers not counted (Linux)."""

    def __enter__(self) -> "PeakMemory":
        self.start = self.peak = _resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.peak = max(self.peak, _resident())

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()
        self.grown = max(self.peak, _resident()) - self.start


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(run: Callable[[], list]) -> dict:
    """Seconds, peak memory and the scores of one run."""
    with PeakMemory() as memory:
        started = time.perf_counter()
        scores = run()
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": memory.grown, "scores": scores}


def compare(name: str, clip: CLIPModel, processor: CLIPProcessor, items: list[Item], args) -> dict:
    """Ours against the plain loop, turn about, ``args.repeats`` times; medians of the paired ratios."""
    scorer = ClipScorer(clip, processor, batch_size=32, num_workers=args.num_workers)
    pairs = []
    for _ in range(args.repeats):
        plain = measure(lambda: plain_scores(clip, processor, items, args.num_workers, 32))
        ours = measure(lambda: scorer.score(items))
        pairs.append((plain, ours))
    differences = [np.abs(a - b).max() for a, b in zip(plain["scores"], ours["scores"], strict=True)]
    captions = [caption for item in items for caption in item.captions]
    return {
        "items": name,
        "count": len(items),
        "distinct captions": round(len(set(captions)) / len(captions), 3),
        "plain items/s": round(len(items) / statistics.median(plain["seconds"] for plain, _ in pairs), 2),
        "ours items/s": round(len(items) / statistics.median(ours["seconds"] for _, ours in pairs), 2),
        "ratio": round(statistics.median(plain["seconds"] / ours["seconds"] for plain, ours in pairs), 2),
        "ratios": [round(plain["seconds"] / ours["seconds"], 2) for plain, ours in pairs],
        "plain peak MiB": round(max(plain["bytes"] for plain, _ in pairs) / 2**20),
        "ours peak MiB": round(max(ours["bytes"] for _, ours in pairs) / 2**20),
        "largest difference of scores": float(max(differences)),
    }


def compare_towers(clip: CLIPModel, processor: CLIPProcessor, repeats: int) -> dict:
    """The image tower alone on a batch of 32, by PyTorch's default and with linear layers by oneDNN, turn about."""
    pixels = torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    encoder, ratios = DualEncoder(clip, processor), []
    for _ in range(repeats + 1):  # the first pair warms up
        with torch.no_grad():
            default = measure(lambda: [clip.get_image_features(pixel_values=pixels)])
        ours = measure(lambda: [encoder.embed_pixels({"pixel_values": pixels})])
        ratios.append(default["seconds"] / ours["seconds"])
    return {"image tower": "default / oneDNN", "ratio": round(statistics.median(ratios[1:]), 2)}


def score_many(folder: Path, count: int, workers: int) -> dict:
    """Ours alone on ``count`` items, each with a crop and two captions of its own, embeddings 512 wide."""
    rng = np.random.default_rng(2)
    processor = make_processor(32)
    clip = make_clip(processor, small=True)
    paths = make_photos(folder, 64, (64, 64), rng)
    pairs = [f"{a} {b}" for a in NOUNS for b in NOUNS for _ in range(2)]
    items = relation_items(paths, count, rng, NOUNS)
    items = [
        item._replace(
            captions=tuple(f"{text} {pairs[n % len(pairs)]} {NOUNS[n // 997 % 50]}" for text in item.captions)
        )
        for n, item in enumerate(items)
    ]
    result = measure(lambda: ClipScorer(clip, processor, num_workers=workers).score(items))
    distinct = len({caption for item in items for caption in item.captions})
    return {
        "items": "many",
        "count": count,
        "distinct captions": distinct,
        "seconds": round(result["seconds"], 1),
        "peak MiB beyond the model": round(result["bytes"] / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--relation_items", type=int, default=384)
    parser.add_argument("--order_images", type=int, default=40, help="five items each")
    parser.add_argument("--many_items", type=int, default=100_000, help="0: leave the memory run out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num_workers", type=int, default=2, help="reading images ahead, for both")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/benchmark_evaluation"))
    args = parser.parse_args()
    install_quietly()
    rng = np.random.default_rng(0)
    processor = make_processor()
    clip = make_clip(processor)
    rows = [compare_towers(clip, processor, 2 * args.repeats + 1)]
    print(json.dumps(rows[0]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder), max(64, args.order_images), (640, 480), rng)
        items = relation_items(photos, args.relation_items, rng, NOUNS)
        rows.append(compare("as in VG-Relation", clip, processor, items, args))
        print(json.dumps(rows[-1], indent=2), flush=True)
        items = order_items(photos[: args.order_images], rng)
        rows.append(compare("as in COCO-Order", clip, processor, items, args))
        print(json.dumps(rows[-1], indent=2), flush=True)
        if args.many_items:
            rows.append(score_many(Path(folder), args.many_items, args.num_workers))
            print(json.dumps(rows[-1], indent=2), flush=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    machine = {"threads": torch.get_num_threads(), "workers": args.num_workers, "torch": torch.__version__}
    print(json.dumps(machine))
    (args.output_dir / "results.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
