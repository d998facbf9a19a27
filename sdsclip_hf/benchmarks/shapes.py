"""Swapped pairs of the embedded shapes world, scored by Winoground's rules."""

from importlib.metadata import version

from sdsclip_hf.benchmarks.items import Benchmark, Item
from sdsclip_hf.benchmarks.sources import Options
from sdsclip_hf.shapes import scenes


def load(name: str, split: str, source: str, options: Options) -> Benchmark:
    """2 x 2 items of a split (default: test), tagged ``attribute``, ``attribute in relation`` or ``relation``.

    Raises:
        ValueError: there is no such split, or a source is given.
    """
    if source:
        raise ValueError(f"{name}: the shapes pairs are made by the package; leave the source out.")
    items = [
        Item(str(row["id"]), (row["image_0"], row["image_1"]), (row["caption_0"], row["caption_1"]), row["tag"])
        for row in scenes.swapped_pairs(split or "test")
    ]
    counts = {"items": len(items), "published_items": len(items), "missing_images": 0}
    source = {"name": "sdsclip_hf.shapes", "revision": version("sdsclip_hf"), "split": split or "test"}
    return Benchmark(name, "winoground", items, source | counts)
