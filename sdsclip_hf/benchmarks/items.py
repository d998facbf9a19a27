"""What every benchmark is made of."""

from typing import NamedTuple

from PIL import Image


class Item(NamedTuple):
    """One question of a benchmark: caption k belongs to image k.

    Args:
        identifier: the item's name within the benchmark.
        images: I pictures.
        captions: K captions.
        tag: the subset that the item belongs to.
    """

    identifier: str
    images: tuple[Image.Image, ...]
    captions: tuple[str, ...]
    tag: str = ""
