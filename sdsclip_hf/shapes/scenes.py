"""A seeded generator of small captioned scenes: two coloured shapes in a spatial relation.

A *combination* is an unordered pair of shapes with an unordered pair of colours. Each combination has two bindings
(which shape has which colour), and both stand in the same split, so the test combinations are never trained on in any form.
"""

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "star")
COLORS = {
    "red": (214, 40, 40),
    "green": (44, 160, 44),
    "blue": (36, 84, 220),
    "yellow": (240, 200, 20),
    "purple": (140, 50, 170),
}
RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
IMAGE_SIZE = 32
SPLITS = {"train": 64, "validation": 12, "test": 24}

RELATION_TEMPLATES = (
    "a {first} {relation} a {second}",
    "a {first} is {relation} a {second}",
    "a picture of a {first} {relation} a {second}",
)
PLAIN_TEMPLATES = (
    "a {first} and a {second}",
    "there is a {first} and a {second}",
    "a picture of a {first} and a {second}",
)

_SUPERSAMPLE = 8


class Thing(NamedTuple):
    """One coloured shape."""

    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


class Scene(NamedTuple):
    """What a picture shows: ``first`` stands ``relation`` (left of, right of, above, below) ``second``."""

    first: Thing
    second: Thing
    relation: str

    def swap_attributes(self) -> "Scene":
        """The scene with the two colours exchanged: its caption has the same words in another order."""
        return self._replace(
            first=self.first._replace(color=self.second.color),
            second=self.second._replace(color=self.first.color),
        )

    def swap_arguments(self) -> "Scene":
        """The scene with the two things exchanged: its relation caption has the same words in another order."""
        return self._replace(first=self.second, second=self.first)

    def mirrored(self) -> "Scene":
        """The same scene told from the other thing: "a above b" as "b below a"."""
        return Scene(self.second, self.first, RELATIONS[self.relation])

    def caption(self, template: str) -> str:
        """The caption that ``template`` gives, e.g. ``"a {first} {relation} a {second}"``."""
        return template.format(first=self.first, second=self.second, relation=self.relation)

    def captions(self) -> list[str]:
        """Every true caption: each relation template told both ways, then each plain template in both orders."""
        told = (self, self.mirrored())
        return [scene.caption(template) for template in RELATION_TEMPLATES + PLAIN_TEMPLATES for scene in told]


class Placement(NamedTuple):
    """What a caption does not tell: offsets from the grid and radii in pixels, and the background, a grey or a colour."""

    shift_first: tuple[float, float]
    shift_second: tuple[float, float]
    radius_first: float
    radius_second: float
    background: int | tuple[int, int, int]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Placement":
        """A random placement; the two things never change sides."""
        shifts = rng.uniform(-1.0, 1.0, size=4)
        radii = rng.uniform(5.0, 6.5, size=2)
        return cls(
            (shifts[0], 2 * shifts[1]), (shifts[2], 2 * shifts[3]), radii[0], radii[1], int(rng.integers(225, 256))
        )


def combinations(split: str) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """The (shapes, colours) combinations of a split; the partition is fixed for good.

    Raises:
        ValueError: ``split`` is none of train, validation and test.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the shapes world; choose from {', '.join(SPLITS)}.")
    everything = list(itertools.product(itertools.combinations(SHAPES, 2), itertools.combinations(COLORS, 2)))
    random.Random(0).shuffle(everything)
    start = 0
    for name, size in SPLITS.items():
        if name == split:
            return everything[start : start + size]
        start += size
    raise AssertionError("unreachable: split was checked above")


def scenes(split: str) -> list[Scene]:
    """Every distinct scene of a split, told as "left of" or "above": 8 for each combination."""
    return [
        Scene(Thing(colors[binding], shapes[0]), Thing(colors[1 - binding], shapes[1]), relation)
        if order == 0
        else Scene(Thing(colors[1 - binding], shapes[1]), Thing(colors[binding], shapes[0]), relation)
        for shapes, colors in combinations(split)
        for binding in (0, 1)
        for order in (0, 1)
        for relation in ("left of", "above")
    ]


def render(scene: Scene, placement: Placement, line: float | None = None) -> Image.Image:
    """Draw ``scene`` as a 32 x 32 RGB picture, antialiased; by lines of ``line`` times a thing's radius, if it is given."""
    if scene.relation in ("right of", "below"):
        scene = scene.mirrored()
    size = IMAGE_SIZE * _SUPERSAMPLE
    grey_or_color = placement.background
    background = (grey_or_color, grey_or_color, grey_or_color) if isinstance(grey_or_color, int) else grey_or_color
    image = Image.new("RGB", (size, size), background)
    pen = ImageDraw.Draw(image)
    near, far, middle = IMAGE_SIZE * 0.26, IMAGE_SIZE * 0.74, IMAGE_SIZE * 0.5
    for thing, along, (shift_along, shift_across), radius in (
        (scene.first, near, placement.shift_first, placement.radius_first),
        (scene.second, far, placement.shift_second, placement.radius_second),
    ):
        center = (along + shift_along, middle + shift_across)
        x, y = center if scene.relation == "left of" else center[::-1]
        place = x * _SUPERSAMPLE, y * _SUPERSAMPLE
        _draw_shape(pen, thing.shape, COLORS[thing.color], *place, radius * _SUPERSAMPLE)
        if line is not None:
            _draw_shape(pen, thing.shape, background, *place, (1 - line) * radius * _SUPERSAMPLE)
    return image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)


def _draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, color: tuple[int, int, int], x: float, y: float, radius: float
) -> None:
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    elif shape == "square":
        half = radius * 0.88
        pen.rectangle((x - half, y - half, x + half, y + half), fill=color)
    elif shape == "triangle":
        pen.polygon([(x, y - radius), (x + radius, y + 0.9 * radius), (x - radius, y + 0.9 * radius)], fill=color)
    elif shape == "cross":
        arm = radius * 0.36
        pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=color)
        pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=color)
    else:
        reach = [radius * (1.1 if point % 2 == 0 else 0.45) for point in range(10)]
        angles = [np.pi * (point / 5 - 0.5) for point in range(10)]
        pen.polygon([(x + r * np.cos(a), y + r * np.sin(a)) for r, a in zip(reach, angles, strict=True)], fill=color)


def captioned_images(split: str, per_scene: int, seed: int = 0) -> Iterator[dict]:
    """Yield ``per_scene`` pictures of every scene of a split, shuffled, each with all its true captions.

    Args:
        split: train, validation or test.
        per_scene: pictures of each scene, at different placements.
        seed: of the placements and of the order.

    Yields:
        dict with ``image`` (PIL, 32 x 32 RGB), ``captions`` (12 strings) and ``scene`` (the shortest relation caption).
    """
    rng = np.random.default_rng([seed, list(SPLITS).index(split) if split in SPLITS else 0])
    everything = [scene for scene in scenes(split) for _ in range(per_scene)]
    for index in rng.permutation(len(everything)):
        scene = everything[index]
        yield {
            "image": render(scene, Placement.draw(rng)),
            "captions": scene.captions(),
            "scene": scene.caption(RELATION_TEMPLATES[0]),
        }


def swapped_pairs(split: str, seed: int = 0) -> Iterator[dict]:
    """Yield Winoground-style items: two pictures and two captions made of the same words in another order.

    Three tags, in equal numbers. ``attribute``: "a red circle and a blue square" / "a blue circle and a red square".
    ``attribute in relation``: the same exchange inside a relation caption. ``relation``: "a red circle left of a blue
    square" / "a blue square left of a red circle". Both pictures of an item share one placement, so that nothing but
    the exchange tells them apart.

    Args:
        split: train, validation or test.
        seed: of the placements.

    Yields:
        dict with ``id``, ``image_0``, ``image_1``, ``caption_0``, ``caption_1`` and ``tag``: Winoground's columns.
    """
    rng = np.random.default_rng([seed, 1 + (list(SPLITS).index(split) if split in SPLITS else 0)])
    told = [scene for left_or_above in scenes(split) for scene in (left_or_above, left_or_above.mirrored())]
    identifier = 0
    for tag in ("attribute", "attribute in relation", "relation"):
        template = PLAIN_TEMPLATES[0] if tag == "attribute" else RELATION_TEMPLATES[0]
        done = set()
        for scene in told:
            other = scene.swap_arguments() if tag == "relation" else scene.swap_attributes()
            if (other, scene) in done:
                continue
            done.add((scene, other))
            placement = Placement.draw(rng)
            yield {
                "id": identifier,
                "image_0": render(scene, placement),
                "image_1": render(other, placement),
                "caption_0": scene.caption(template),
                "caption_1": other.caption(template),
                "tag": tag,
            }
            identifier += 1
