"""Small copies of pictures, each kept once, up to a number of bytes."""

import base64
import io
from collections.abc import Hashable

from PIL import Image

from sdsclip_hf.benchmarks.items import Picture, picture_key, read_picture

EDGE = 160  # pixels of the longer side
QUALITY = 80


class Album:
    """Thumbnails as data URIs.

    Args:
        limit: characters that they may take; it may be raised on the way.

    Attributes:
        pictures: the thumbnails.
        size: their characters.
        unreadable: what could not be read, as errors tell it.
    """

    def __init__(self, limit: float):
        self.limit, self.pictures, self.size, self.unreadable = limit, [], 0, []
        self._places: dict[Hashable, tuple[Picture, int | None]] = {}  # a key may hold as long as its picture lives

    def add(self, picture: Picture) -> int | None:
        """The place of a picture's thumbnail; None where it cannot be read or there is no room left."""
        key = picture_key(picture)
        if key in self._places:
            return self._places[key][1]
        if self.size >= self.limit:
            return None
        try:
            thumbnail = data_uri(read_picture(picture))
        except OSError as error:
            self.unreadable.append(str(error))
            self._places[key] = picture, None
            return None
        self._places[key] = picture, len(self.pictures)
        self.pictures.append(thumbnail)
        self.size += len(thumbnail)
        return self._places[key][1]


def data_uri(image: Image.Image, edge: int = EDGE) -> str:
    """A picture in RGB as a data URI of WebP, no larger than ``edge`` pixels."""
    image = image.copy()
    image.thumbnail((edge, edge))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY, lossless=max(image.size) < edge / 2)  # no smear on icons
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
