"""What benchmarks are made of: items of pictures and captions, and pictures that are read only when they are needed."""

import os
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import datasets
from PIL import Image

from sdsclip_hf.benchmarks.storage import fetch, read_member
from sdsclip_hf.data.images import read_image
from sdsclip_hf.data.pixels import to_rgb

Box = tuple[float, float, float, float]


class ImageFile(NamedTuple):
    """A picture in a file beside a benchmark's table. Its EXIF orientation is left out, as the benchmarks' authors do it.

    Args:
        path: the file.
        box: (left, top, right, bottom) of the part that is shown, in pixels; None: all of it.
    """

    path: str
    box: Box | None = None

    @property
    def name(self) -> str:
        return self.path

    @property
    def key(self) -> Hashable:
        return self

    @property
    def state(self) -> str:
        return f"{self} {_state(self.path)}"

    def read(self) -> Image.Image:
        return _shown(read_image(self.path, upright=False), self.box)


class ImageMember(NamedTuple):
    """A picture in a zip or a tar, read as an [`ImageFile`] is.

    Args:
        archive: its path.
        member: the picture's name in it.
        box: see [`ImageFile`].
    """

    archive: str
    member: str
    box: Box | None = None

    @property
    def name(self) -> str:
        return f"{self.member} in {self.archive}"

    @property
    def key(self) -> Hashable:
        return self

    @property
    def state(self) -> str:
        return f"{self} {_state(self.archive)}"

    def read(self) -> Image.Image:
        return _shown(read_image(read_member(self.archive, self.member), upright=False), self.box)


class ImageUrl(NamedTuple):
    """A picture on the web, read as an [`ImageFile`] is; it is kept in the cache of datasets.

    Args:
        url: its address.
        box: see [`ImageFile`].
    """

    url: str
    box: Box | None = None

    @property
    def name(self) -> str:
        return self.url

    @property
    def key(self) -> Hashable:
        return self

    @property
    def state(self) -> str:
        return str(self)

    def read(self) -> Image.Image:
        return _shown(read_image(fetch(self.url), upright=False), self.box)


class ImageCell(NamedTuple):
    """A picture in the undecoded image column of a dataset, read as training reads it.

    Where a box tells the part that is shown, EXIF orientation is left out: boxes count stored pixels.

    Args:
        column: the dataset, of that column alone.
        row: the cell's row.
        digest: of the cell's bytes, so that equal pictures are known without being decoded.
        box: see [`ImageFile`].
        place: which of the cell's pictures, where it is a list of them.
    """

    column: datasets.Dataset
    row: int
    digest: bytes
    box: Box | None = None
    place: int | None = None

    @property
    def name(self) -> str:
        place = "" if self.place is None else f", picture {self.place}"
        return f"row {self.row}, column {self.column.column_names[0]!r}{place}"

    @property
    def key(self) -> Hashable:
        return self.digest, self.box

    @property
    def state(self) -> str:
        return f"{self.digest.hex()} {self.box}"

    def read(self) -> Image.Image:
        cell = self.column[self.row][self.column.column_names[0]]
        cell = cell if self.place is None else cell[self.place]
        return _shown(read_image(cell, upright=self.box is None), self.box)


def _shown(image: Image.Image, box: Box | None) -> Image.Image:
    """Cropped as the benchmarks' authors do it; what has the box's size already is a crop made beforehand."""
    if box is None:
        return image
    left, top, right, bottom = (round(edge) for edge in box)
    if right > 2 * image.width or bottom > 2 * image.height:
        raise ValueError(f"its box {box} lies far outside of its {image.width} x {image.height} pixels")
    return image if image.size == (right - left, bottom - top) else image.crop(box)


def _state(path: str) -> str:
    """Text that changes when a file does."""
    found = os.stat(path)
    return f"{found.st_size} {found.st_mtime_ns}"


Picture = ImageFile | ImageMember | ImageUrl | ImageCell | Image.Image


def picture_key(picture: Picture) -> Hashable:
    """Equal for pictures that need encoding only once."""
    return id(picture) if isinstance(picture, Image.Image) else picture.key


def picture_name(picture: Picture) -> str:
    """What to call the picture in messages and results."""
    return f"made, {picture.size}" if isinstance(picture, Image.Image) else picture.name


def picture_state(picture: Picture) -> str:
    """Text that changes when the picture, or the part of it that is shown, does."""
    return "made" if isinstance(picture, Image.Image) else picture.state


def read_picture(picture: Picture) -> Image.Image:
    """The picture in RGB, cropped to its box.

    Raises:
        OSError: it cannot be read; the message names it.
    """
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    try:
        return picture.read()
    except Exception as error:  # there is hardly an exception that a decoder does not raise on some broken file
        raise OSError(
            f"the image {picture.name} could not be read ({' '.join(str(error).split()) or repr(error)}). Mend it, or "
            "take it away and pass --allow_missing."
        ) from error


class Item(NamedTuple):
    """One question of a benchmark.

    Args:
        identifier: the item's name within the benchmark.
        images: I pictures.
        captions: K captions. Of two captions and two images, caption k belongs to image k. Of one image, the first
            caption is the true one; in retrieval all are; in classification there are none, but the benchmark's
            ``classes``. Of one caption and several images, the first image is the true one.
        tag: the subset, relation, attribute pair or class that the item belongs to.
        labels: further ways to divide the items, e.g. ``(("num_main_preds", "1"),)``.
    """

    identifier: str
    images: tuple[Picture, ...]
    captions: tuple[str, ...]
    tag: str = ""
    labels: tuple[tuple[str, str], ...] = ()


@dataclass
class Benchmark:
    """Items to score, and where they came from.

    Args:
        name: as it was asked for, e.g. ``sugarcrepe:swap_obj``.
        kind: which rule scores it: ``pairs``, ``pairs_by_image``, ``choices``, ``whatsup``, ``sugarcrepe_pp``,
            ``winoground``, ``aro_relation``, ``aro_attribution``, ``aro_order``, ``sugarcrepe``, ``classification`` or
            ``retrieval``.
        items: the questions.
        source: what was read: ``name``, ``revision`` (a commit, where the source has one), ``items`` (how many),
            ``published_items`` (how many there should be, where known) and ``missing_images``.
        classes: for classification, class -> its captions, one a prompt template.

    Example:

    ```python
    from sdsclip_hf import ClipScorer
    from sdsclip_hf.benchmarks import Benchmark, Item
    from sdsclip_hf.evaluation.results import evaluate_benchmark
    from sdsclip_hf.shapes import load_shapes, model_path
    from sdsclip_hf.students.sdsclip_model import load_clip

    rows = load_shapes("test", per_scene=1).select(range(4))
    items = [Item(str(n), (row["image"],), (row["caption"][0], "a green star")) for n, row in enumerate(rows)]
    mine = Benchmark("mine", "aro_order", items, source={"name": "mine"})  # true captions first
    (row,) = evaluate_benchmark(ClipScorer(*load_clip(model_path("student"))), mine)
    print(row["score"], row["n"])  # accuracy 4
    ```
    """

    name: str
    kind: str
    items: list[Item]
    source: dict
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
