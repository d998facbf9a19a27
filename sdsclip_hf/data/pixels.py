"""A picture as every part of this package sees it: upright, in RGB. It needs Pillow and numpy alone."""

import struct

import numpy as np
from PIL import Image

LONGEST_SHAPE = 200  # times as long as wide; a processor that makes the short edge 336 pixels makes 67,200 of the long
ORIENTATION, SHORT = 0x0112, 3
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """The picture in RGB: turned as its EXIF block says, transparency laid on white, deeper pixels scaled to 8 bits.

    Args:
        image: in any mode. Floats up to 1 are shares of white; integers and floats up to 255 are 8 bits deep, others 16.
        upright: False leaves EXIF orientation out, as the code of benchmarks whose boxes count stored pixels does.

    Raises:
        ValueError: it is over 200 times as long as wide, or holds floats that are no shades of grey.
    """
    if max(image.size) > LONGEST_SHAPE * min(image.size):
        raise ValueError(
            f"it has {image.width} x {image.height} pixels; at most {LONGEST_SHAPE} times as long as wide can be read"
        )
    image.load()
    if image.mode == "RGB" and not image.info:
        return image
    turn = TURNS.get(_orientation(image)) if upright else None
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    image = image.convert("RGB") if turn is None else image.convert("RGB").transpose(turn)
    image.info = {}  # so that nobody turns it again
    return image


def _orientation(image: Image.Image) -> int:
    """1 to 8, from the EXIF block. It counts as browsers count it, as one SHORT; a damaged block tells nothing."""
    block = image.info.get("exif")
    block = block.removeprefix(b"Exif\0\0") if isinstance(block, bytes) else b""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values, value = struct.unpack_from(f"{order}HHIH", block, place)
            if tag == ORIENTATION:
                return value if (kind, values) == (SHORT, 1) else 1
    except struct.error:  # it ends before it says
        pass
    return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """A picture of floats or of 16 or 32 bits, in 8 bits of grey; what a PNG calls transparent is white."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds floats that are no numbers")
    highest = values.max(initial=0)
    if image.mode == "F" and (values.min(initial=0) < 0 or highest > 65535):
        raise ValueError(
            f"it holds floats from {values.min():g} to {highest:g}; shades of grey lie in 0 to 1, 255 or 65535"
        )
    top = 65535 if image.mode.startswith("I;16") or highest > 255 else 255  # 32-bit ones may hold either depth
    if image.mode == "F" and highest <= 1:
        top = 1
    grey = (values.clip(0, top) * (255 / top)).round()
    if isinstance(image.info.get("transparency"), int):
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey.astype(np.uint8))
