"""Small pictures, and the bytes of their files."""

import io

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise_picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def turned(orientation: int) -> Image.Exif:
    """An EXIF block that tells an orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif
