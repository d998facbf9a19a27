"""Image-caption datasets from any source that ``datasets`` reads, and the collator that makes batches of them."""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import CLIPProcessor

from sdsclip_hf.errors import explain_loading
from sdsclip_hf.shapes import load_shapes

BAD_IMAGES_FILE = "bad_images.txt"


class BadImageError(ValueError):
    """More images than allowed could not be read."""


def load_image_captions(
    name_or_path: str,
    config_name: str | None = None,
    *,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    max_samples: int | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a dataset of images and captions.

    Args:
        name_or_path: a Hub id; a folder (imagefolder with metadata, parquet, webdataset tars, or one that
            ``save_to_disk`` wrote); one parquet file; or ``shapes``, the embedded world.
        config_name: the dataset's configuration.
        split: which split, e.g. "train" or "train[:10%]".
        revision: branch, tag or commit on the Hub.
        streaming: read rows as they come instead of preparing the whole dataset first.
        max_samples: keep the first so many rows.

    Raises:
        OSError: it cannot be loaded.
        ValueError: the split does not exist or is empty.
    """
    path = Path(name_or_path).expanduser()
    with explain_loading("the dataset", name_or_path, "--dataset_name"):
        try:
            if name_or_path == "shapes":
                dataset = load_shapes(split)
            elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
                loaded = datasets.load_from_disk(str(path))
                dataset = _take_split(loaded, split) if isinstance(loaded, datasets.DatasetDict) else loaded
            elif path.suffix == ".parquet" and path.is_file():
                dataset = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=streaming)
            else:
                dataset = datasets.load_dataset(
                    name_or_path, config_name, split=split, revision=revision, streaming=streaming
                )
        except (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
            raise OSError(str(error)) from error
    if max_samples is not None:
        is_stream = isinstance(dataset, datasets.IterableDataset)
        dataset = dataset.take(max_samples) if is_stream else dataset.select(range(min(max_samples, len(dataset))))
    if isinstance(dataset, datasets.Dataset) and len(dataset) == 0:
        raise ValueError(f"the dataset {name_or_path!r} has no rows in split {split!r}; choose another split or source.")
    return dataset


def _take_split(loaded: datasets.DatasetDict, split: str) -> datasets.Dataset:
    if split not in loaded:
        raise ValueError(f"split {split!r} not found; the dataset has {', '.join(map(repr, loaded))}.")
    return loaded[split]


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB: EXIF rotation applied, transparency laid on white, 16-bit grey scaled to 8, any mode converted."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        top = 65535 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255
        image = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def read_image(source: dict | str | os.PathLike | Image.Image) -> Image.Image:
    """Decode what an undecoded image column holds: ``{"bytes", "path"}``, a path, or a picture.

    Raises:
        OSError: it cannot be read as an image.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, dict):
        source = io.BytesIO(source["bytes"]) if source.get("bytes") else source.get("path")
    if source is None:
        raise OSError("the cell is empty")
    try:
        with Image.open(source) as image:
            return to_rgb(image)
    except (ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from error


class BadImages:
    """The unreadable images of a run, counted and named in one file.

    The file is what counts, so that loader workers, ranks and resumed runs agree.

    Args:
        limit: how many different images may be skipped.
        path: the file that names them, one a line with the reason.
    """

    def __init__(self, limit: int, path: str | Path):
        self.limit, self.path = limit, Path(path)

    def names(self) -> list[str]:
        """The images skipped so far."""
        if not self.path.exists():
            return []
        return [line.split("\t", 1)[0] for line in self.path.read_text(encoding="utf-8").splitlines()]

    def record(self, name: str, reason: Exception) -> None:
        """Note one more unreadable image.

        Raises:
            BadImageError: there are now more than ``limit``.
        """
        known = self.names()
        if name not in known:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{name}\t{' '.join(str(reason).split())}\n")
            known.append(name)
        if len(known) > self.limit:
            raise BadImageError(
                f"{len(known)} images could not be read, the last one {name} ({reason}); they are named in {self.path}. "
                f"Mend or remove them, or raise --max_bad_images (now {self.limit})."
            )


class CaptionedImages:
    """What map-style and streaming datasets share: columns checked, one caption drawn, bad images passed over.

    A row with several captions gives one of them at a time, drawn anew each epoch by (seed, epoch, row), so that a
    resumed run sees the same. An unreadable image is replaced by the next readable one.

    Args:
        source: the dataset.
        image_column, caption_column: where images and captions stand; a caption cell is a string or a list of strings.
        seed: of the caption draws.
        bad_images: where unreadable images are noted; default: the first one is an error.

    Raises:
        ValueError: a column is missing.
    """

    def __init__(
        self,
        source: datasets.Dataset | datasets.IterableDataset,
        image_column: str = "image",
        caption_column: str = "caption",
        seed: int = 0,
        bad_images: BadImages | None = None,
    ):
        self.image_column, self.caption_column = image_column, caption_column
        self.seed, self.epoch = seed, 0
        self.bad_images = bad_images or BadImages(0, os.devnull)
        self.source = _undecoded(source, image_column, caption_column)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of each epoch."""
        self.epoch = epoch

    def _example(self, row: dict, number: int) -> dict | None:
        """One picture and one caption, or None when the picture cannot be read."""
        try:
            image = read_image(row[self.image_column])
        except OSError as error:
            self.bad_images.record(_name_of(row[self.image_column], number), error)
            return None
        return {"image": image, "caption": self._draw_caption(row[self.caption_column], number)}

    def _draw_caption(self, cell: str | Sequence[str], number: int) -> str:
        captions = [cell] if isinstance(cell, str) else cell
        if not isinstance(captions, (list, tuple)) or not captions or not all(isinstance(c, str) for c in captions):
            raise ValueError(
                f"row {number}: column {self.caption_column!r} holds {cell!r}; a caption must be a string or a list of "
                "strings. Choose another --caption_column, or mend the row."
            )
        if len(captions) == 1:
            return captions[0]
        return captions[int(np.random.default_rng([self.seed, self.epoch, number]).integers(len(captions)))]


class ImageCaptionDataset(CaptionedImages, torch.utils.data.Dataset):
    """Map-style: rows by number. See [`CaptionedImages`]."""

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> dict:
        for offset in range(len(self)):
            row_number = (number + offset) % len(self)
            example = self._example(self.source[row_number], row_number)
            if example is not None:
                return example
        raise BadImageError(f"none of the {len(self)} images could be read.")


class StreamingImageCaptionDataset(CaptionedImages, torch.utils.data.IterableDataset):
    """Streaming: rows as they come. See [`CaptionedImages`]."""

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.source.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict]:
        for number, row in enumerate(self.source):
            example = self._example(row, number)
            if example is not None:
                yield example


def as_training_data(
    source: datasets.Dataset | datasets.IterableDataset, **options
) -> ImageCaptionDataset | StreamingImageCaptionDataset:
    """Wrap a dataset for training, by its kind; the options are those of [`CaptionedImages`]."""
    streaming = isinstance(source, datasets.IterableDataset)
    return (StreamingImageCaptionDataset if streaming else ImageCaptionDataset)(source, **options)


def _undecoded(source, image_column: str, caption_column: str):
    columns = source.column_names
    if columns is None:
        source = source._resolve_features()
        columns = source.column_names
    for what, column, option in (
        ("image", image_column, "--image_column"),
        ("caption", caption_column, "--caption_column"),
    ):
        if column not in columns:
            have = ", ".join(repr(name) for name in columns)
            raise ValueError(f"{what} column {column!r} not found; the dataset has {have}. Pass {option}.")
    source = source.select_columns([image_column, caption_column])
    if isinstance((source.features or {}).get(image_column), datasets.Image):
        source = source.cast_column(image_column, datasets.Image(decode=False))
    return source


def _name_of(cell, number: int) -> str:
    path = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, (str, os.PathLike)) else None
    return str(path) if path else f"row {number}"


@dataclass
class ImageCaptionCollator:
    """Batches of pictures and captions for the student, and the captions again for the teacher.

    Args:
        processor: the student's.
        teacher: gives ``tokenize``; None when no term needs prompts.

    Returns of a call, for B examples: ``pixel_values`` (B, 3, H, W); ``input_ids`` and ``attention_mask`` (B, L),
    padded to the longest of the batch; ``caption_cut`` (B,), true where a caption was longer than the text tower reads;
    and with a teacher ``teacher_input_ids`` (B, M).
    """

    processor: CLIPProcessor
    teacher_tokenize: object = None

    def __call__(self, examples: list[dict]) -> dict[str, Tensor]:
        captions = [example["caption"] for example in examples]
        tokenizer = self.processor.tokenizer
        uncut = tokenizer(captions, truncation=False, verbose=False).input_ids
        tokens = tokenizer(
            captions, padding=True, truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
        )
        pixels = self.processor.image_processor([example["image"] for example in examples], return_tensors="pt")
        batch = {
            "pixel_values": pixels.pixel_values,
            "input_ids": tokens.input_ids,
            "attention_mask": tokens.attention_mask,
            "caption_cut": torch.tensor([len(ids) > tokenizer.model_max_length for ids in uncut]),
        }
        if self.teacher_tokenize is not None:
            batch["teacher_input_ids"] = self.teacher_tokenize(captions)
        return batch
