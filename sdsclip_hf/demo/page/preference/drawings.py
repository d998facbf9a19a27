"""Examples that need no photographs: two coloured shapes, and captions of the same words in another order."""

from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": "#d62828", "green": "#2ca02c", "blue": "#2454dc", "yellow": "#f0c814"}
SIZE, DRAWN = 256, 1024  # pixels; drawn large and made small, so that edges are smooth
NEAR, FAR, MIDDLE, RADIUS = 0.27, 0.73, 0.5, 0.18  # shares of the picture's side


def draw_examples(folder: Path) -> dict[str, list]:
    """Draw the examples' pictures as files.

    Args:
        folder: where they are put.

    Returns:
        label -> picture 1, picture 2 or None, caption A, caption B.
    """
    circle_first = _draw(folder / "red_circle_blue_square.png", ("red", "circle"), ("blue", "square"))
    square_first = _draw(folder / "blue_square_red_circle.png", ("blue", "square"), ("red", "circle"))
    upright = _draw(folder / "yellow_triangle_green_circle.png", ("yellow", "triangle"), ("green", "circle"), True)
    swapped = _draw(folder / "green_triangle_yellow_circle.png", ("green", "triangle"), ("yellow", "circle"), True)
    left = ["a red circle left of a blue square", "a blue square left of a red circle"]
    bound = ["a yellow triangle and a green circle", "a green triangle and a yellow circle"]
    return {
        "one picture: which is left": [circle_first, None, *left],
        "one picture: which has which colour": [swapped, None, *bound],
        "two pictures: which is left": [circle_first, square_first, *left],
        "two pictures: which has which colour": [upright, swapped, *bound],
    }


def _draw(path: Path, first: tuple[str, str], second: tuple[str, str], upright: bool = False) -> str:
    """Two (colour, shape) side by side, or the first above the second."""
    picture = Image.new("RGB", (DRAWN, DRAWN), "#f4f4f4")
    pen = ImageDraw.Draw(picture)
    for (colour, shape), along in ((first, NEAR), (second, FAR)):
        x, y = (MIDDLE, along) if upright else (along, MIDDLE)
        left, right, top, bottom = (DRAWN * edge for edge in (x - RADIUS, x + RADIUS, y - RADIUS, y + RADIUS))
        if shape == "circle":
            pen.ellipse((left, top, right, bottom), fill=COLOURS[colour])
        elif shape == "square":
            pen.rectangle((left, top, right, bottom), fill=COLOURS[colour])
        else:
            pen.polygon([(DRAWN * x, top), (right, bottom), (left, bottom)], fill=COLOURS[colour])
    picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(path)
    return str(path)
