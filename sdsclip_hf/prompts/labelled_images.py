"""Labelled pictures as a prompt learner sees them: prepared, and in training a random part of them, perhaps mirrored."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from sdsclip_hf.common.shared_memory import shared
from sdsclip_hf.data.images import picture_digest, read_image
from sdsclip_hf.prompts.data.attributes import check_attributes

SCALE, RATIO, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10  # as torchvision's RandomResizedCrop has them
NAMED_ROWS = 5
KEPT_BYTES = 2**27  # of prepared pictures: few-shot data are read many times


class LabelledImages(torch.utils.data.Dataset):
    """Rows by number: ``pixel_values`` (3, H, W), ``labels``, and where they are wanted ``attributes``.

    What is random in a row hangs on the seed, the epoch and its number alone, so that loader workers and resumed runs agree.

    Args:
        source: a ``datasets`` dataset with the columns ``image`` and ``label``, a ``ClassLabel`` whose names stand in
            prompts, as [`load_labelled`] gives it.
        image_processor: of the CLIP.
        with_attributes: whether rows have the words of the column ``attribute``.
        augment: whether rows are a random part of the picture, of the size that the image processor makes.
        seed: of the augmentation.

    Raises:
        ValueError: a column is missing or of another kind, a row has no label, or rows have no attribute.
    """

    def __init__(
        self,
        source: datasets.Dataset,
        image_processor: BaseImageProcessor,
        with_attributes: bool = False,
        augment: bool = False,
        seed: int = 0,
    ):
        for column in ("image", "label"):
            if column not in source.column_names:
                have = ", ".join(map(repr, source.column_names))
                raise ValueError(
                    f"{column} column {column!r} not found; the dataset has {have}. Rename the one that holds it, or load "
                    f"the data with --{column}_column."
                )
        kind = source.features["label"]
        if not isinstance(kind, datasets.ClassLabel):
            raise ValueError(
                f"the column 'label' holds {kind}, and no classes with names; cast it by "
                "dataset.class_encode_column('label'), or load the data by load_labelled."
            )
        self.class_names: list[str] = kind.names
        self.labels: list[int] = source["label"][:]
        missing = [number for number, label in enumerate(self.labels) if label is None or label < 0]
        if missing:
            named = ", ".join(map(str, missing[:NAMED_ROWS])) + ", …" * (len(missing) > NAMED_ROWS)
            raise ValueError(
                f"{len(missing)} of {len(self.labels)} rows have no label: {named} (counted from 0). Fill them, or take "
                "them out."
            )
        if with_attributes:
            check_attributes(source, "the training data")
        self.attributes: list[str] | None = source["attribute"][:] if with_attributes else None
        self.source = source.select_columns(["image"])
        if isinstance(source.features["image"], datasets.Image):
            self.source = self.source.cast_column("image", datasets.Image(decode=False))
        self.image_processor = image_processor
        self.augment, self.seed = augment, seed
        self._kept: dict[int, Image.Image | Tensor] = {}
        self._room = KEPT_BYTES
        self._epoch = shared(torch.zeros((), dtype=torch.int64))  # so that workers that live on see it change

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shots(self) -> int:
        """Pictures of the class that has the most."""
        return max(Counter(self.labels).values())

    def set_epoch(self, epoch: int) -> None:
        """Draw other parts from here on."""
        self._epoch.fill_(epoch)

    def __getitem__(self, number: int) -> dict:
        prepared = self._kept.get(number)
        if prepared is None:
            prepared = self._prepare(number)
            if self._room >= (
                room := prepared.nbytes if isinstance(prepared, Tensor) else 3 * math.prod(prepared.size)
            ):
                self._room -= room
                self._kept[number] = prepared
        if isinstance(prepared, Image.Image):
            rng = np.random.default_rng([self.seed, int(self._epoch), number])
            prepared = self._normalized(random_part(prepared, self._size(), rng))
        row = {"pixel_values": prepared, "labels": self.labels[number]}
        return row if self.attributes is None else row | {"attributes": self.attributes[number]}

    def identity(self) -> dict[str, int | str]:
        """What tells these data from others: ``rows``, and digests of all ``labels`` and all ``pictures``."""
        told = hashlib.blake2b(repr((self.class_names, self.labels, self.attributes)).encode(), digest_size=8)
        pictures = hashlib.blake2b(digest_size=8)
        for row in self.source:
            pictures.update(picture_digest(row["image"]).encode())
        return {"rows": len(self), "labels": told.hexdigest(), "pictures": pictures.hexdigest()}

    def _prepare(self, number: int) -> Image.Image | Tensor:
        """A row's picture as it can be kept: whole where parts of it are drawn, else as the model takes it, (3, H, W)."""
        try:
            image = read_image(self.source[number]["image"])
        except OSError as error:
            raise OSError(
                f"the picture of row {number} cannot be read ({error}); mend it or take the row out."
            ) from error
        return image if self.augment else self.image_processor([image], return_tensors="pt")["pixel_values"][0]

    def _size(self) -> tuple[int, int]:
        size = self.image_processor.crop_size or self.image_processor.size
        return size["width"], size["height"]

    def _normalized(self, image: Image.Image) -> Tensor:
        """(3, H, W) as the image processor makes them of a picture that has its size already."""
        processor = self.image_processor
        pixels = np.asarray(image, dtype=np.float32) * np.float32(processor.rescale_factor)
        mean, std = (np.array(values, dtype=np.float32) for values in (processor.image_mean, processor.image_std))
        return torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1).copy())


def collate(rows: Sequence[dict]) -> dict:
    """A batch of rows: ``pixel_values`` (B, 3, H, W), ``labels`` (B,) and, where rows have them, ``attributes``."""
    batch = {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}
    batch["labels"] = torch.tensor([row["labels"] for row in rows])
    return batch | ({"attributes": [row["attributes"] for row in rows]} if "attributes" in rows[0] else {})


def random_part(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A random resized crop, mirrored half of the time.

    The crop has 8 to 100 % of the area and sides of 3:4 to 4:3; after ten draws that do not fit it is the largest in the
    middle with such sides.

    Args:
        image: in RGB.
        size: width and height of what comes out.
        rng: is drawn from.
    """
    part = image.crop(_box(*image.size, rng)).resize(size, Image.Resampling.BICUBIC)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def _box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
