"""Swapped pairs of the embedded shapes world, scored by Winoground's rules."""

from sdsclip_hf.benchmarks.items import Item
from sdsclip_hf.shapes import scenes


def load(split: str = "test") -> list[Item]:
    """2 x 2 items of a split, tagged ``attribute``, ``attribute in relation`` or ``relation``.

    Raises:
        ValueError: there is no such split.
    """
    return [
        Item(str(row["id"]), (row["image_0"], row["image_1"]), (row["caption_0"], row["caption_1"]), row["tag"])
        for row in scenes.swapped_pairs(split)
    ]
