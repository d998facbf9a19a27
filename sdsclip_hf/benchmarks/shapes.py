"""The embedded shapes world: swapped pairs, scored by Winoground's rules, and zero-shot classes."""

from importlib.metadata import version
from itertools import combinations, product

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
    split = split or "test"
    items = [
        Item(str(row["id"]), (row["image_0"], row["image_1"]), (row["caption_0"], row["caption_1"]), row["tag"])
        for row in scenes.swapped_pairs(split)
    ]
    return Benchmark(name, "winoground", items, _source(split, len(items)))


def load_classes(name: str, split: str, source: str, options: Options) -> Benchmark:
    """Zero-shot classes: a picture's two shapes (source ``shape``, default) or its two colours (``color``).

    A class is told by the plain captions of all its combinations with the other property, as many as there are.

    Raises:
        ValueError: there is no such split or source.
    """
    source, split = source or "shape", split or "test"
    if source not in ("shape", "color"):
        raise ValueError(f"{name}: there are classes of shape and color, not of {source!r}; choose one of these.")
    classes: dict[str, list[str]] = {}
    for shapes, colors in product(combinations(scenes.SHAPES, 2), combinations(scenes.COLORS, 2)):
        for told in (colors, colors[::-1]):
            scene = scenes.Scene(*map(scenes.Thing, told, shapes), relation="left of")
            classes.setdefault(" and ".join(shapes if source == "shape" else colors), []).append(
                scene.caption(scenes.PLAIN_TEMPLATES[0])
            )
    items = []
    for number, row in enumerate(scenes.captioned_images(split, per_scene=2)):
        scene = row["scene"]
        present = [word for word in (scenes.SHAPES if source == "shape" else scenes.COLORS) if word in scene.split()]
        items.append(Item(str(number), (row["image"],), (), " and ".join(present)))
    return Benchmark(
        name, "classification", items, _source(split, len(items)), {k: tuple(v) for k, v in classes.items()}
    )


def _source(split: str, count: int) -> dict:
    counts = {"items": count, "published_items": count, "missing_images": 0}
    return {"name": "sdsclip_hf.shapes", "revision": version("sdsclip_hf"), "split": split} | counts
