"""Image-caption datasets from any source that ``datasets`` reads, and the collator that makes batches of them."""

import copy
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from transformers import BaseImageProcessor, CLIPProcessor

from sdsclip_hf.errors import explain_loading
from sdsclip_hf.images import BadImageError, BadImages, picture_digest, read_image
from sdsclip_hf.ranking import CandidateScores, RankedItem
from sdsclip_hf.shapes import load_shapes

CHECKED_PICTURES = 64
PASSED_OVER: dict = {}  # stands for a row that a resumed run has seen already


def load_image_captions(
    name_or_path: str,
    config_name: str | None = None,
    *,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    max_samples: int | None = None,
    option: str = "--dataset_name",
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a dataset of images and captions.

    Args:
        name_or_path: a Hub id; a folder (imagefolder with metadata, parquet, webdataset tars, or one that
            ``save_to_disk`` wrote); one parquet file; or ``shapes``, the embedded world.
        config_name: the dataset's configuration.
        split: which split, e.g. "train" or, except in a stream and for ``shapes``, "train[:10%]". What has no splits is
            all "train".
        revision: branch, tag or commit on the Hub.
        streaming: read rows as they come instead of preparing the whole dataset first. ``shapes`` and what
            ``save_to_disk`` wrote are prepared already and stay map-style.
        max_samples: keep the first so many rows.
        option: what the user gave the name by, for messages.

    Raises:
        OSError: it cannot be loaded.
        ValueError: the split or configuration does not exist, the split is empty, or ``max_samples`` is below 1.
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples is {max_samples}; it must be at least 1, or left out for all rows.")
    with explain_loading("the dataset", name_or_path, option):
        try:
            dataset = _load(name_or_path, config_name, split, revision, streaming)
        except datasets.exceptions.DatasetGenerationError as error:
            raise OSError(" ".join(str(error.__cause__ or error).split())) from error
        except (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
            raise OSError(str(error)) from error
        except ValueError as error:
            raise ValueError(f"could not load split {split!r} of the dataset {name_or_path!r}: {error}") from error
    if _is_empty(dataset):
        raise ValueError(
            f"the dataset {name_or_path!r} has no rows in split {split!r}; choose another split or source."
        )
    if max_samples is None:
        return dataset
    is_stream = isinstance(dataset, datasets.IterableDataset)
    return dataset.take(max_samples if is_stream else min(max_samples, len(dataset)))


def _load(name_or_path: str, config_name: str | None, split: str, revision: str | None, streaming: bool):
    path = Path(name_or_path).expanduser()
    if name_or_path == "shapes":
        return load_shapes(split)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        try:
            return _take_split(datasets.load_from_disk(str(path)), split)
        except IndexError as error:  # datasets cannot read what it wrote for a dataset without rows
            raise ValueError("it has no rows; choose another split or source.") from error
    if path.suffix == ".parquet" and path.is_file():
        return datasets.load_dataset("parquet", data_files=str(path), split=split, streaming=streaming)
    # The whole path, since a bare "csv" or "parquet" would be taken for the name of a builder.
    name = str(path.resolve()) if path.is_dir() else name_or_path
    return datasets.load_dataset(name, config_name, split=split, revision=revision, streaming=streaming)


def _take_split(loaded: datasets.Dataset | datasets.DatasetDict, split: str) -> datasets.Dataset:
    parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    ranges = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(part) for name, part in parts.items()})
    chosen = [parts[r.splitname].select(range(r.from_, r.to)) for r in ranges if r.from_ < r.to]
    if not chosen:
        raise ValueError("it has no rows; choose another split or source.")
    return datasets.concatenate_datasets(chosen)


def _is_empty(dataset: datasets.Dataset | datasets.IterableDataset) -> bool:
    if isinstance(dataset, datasets.Dataset):
        return len(dataset) == 0
    undecoded = dataset.decode(False) if dataset.features else dataset
    return next(iter(undecoded), None) is None


class CaptionedImages:
    """What map-style and streaming datasets share: columns checked, one caption drawn, bad images passed over.

    A row with several captions gives one of them at a time, drawn anew each epoch by (seed, epoch, row), so that a
    resumed run sees the same. An unreadable image is replaced by the next readable one.

    Args:
        source: the dataset.
        image_column, caption_column: where images and captions stand; a caption cell is a string or a list of strings.
        seed: of the caption draws.
        bad_images: where unreadable images are noted; default: the first one is an error.
        scores: scored candidates of each image; its caption is then one of those that were scored.
        with_candidates: whether the examples hold the candidates, too, as ``item``.
        num_candidates: how many of them are drawn beside the image's own caption; default: all.

    Raises:
        ValueError: a column is missing, or ``scores`` miss an image.
    """

    def __init__(
        self,
        source: datasets.Dataset | datasets.IterableDataset,
        image_column: str = "image",
        caption_column: str = "caption",
        seed: int = 0,
        bad_images: BadImages | None = None,
        scores: CandidateScores | None = None,
        with_candidates: bool = False,
        num_candidates: int | None = None,
    ):
        self.image_column, self.caption_column = image_column, caption_column
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # so that workers that live on see it change
        self.bad_images = bad_images or BadImages(0)
        self.scores, self.with_candidates, self.num_candidates = scores, with_candidates, num_candidates
        self.source = _undecoded(source, image_column, caption_column)

    @property
    def epoch(self) -> int:
        """The epoch that captions are drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of each epoch."""
        self._epoch.fill_(epoch)

    def _example(self, row: dict, number: int) -> dict | None:
        """One picture and one caption, or None when the picture cannot be read."""
        try:
            picture, digest = self._picture(row[self.image_column], number)
        except OSError as error:
            self.bad_images.record(self._name_of_image(row, number), error)
            return None
        if self.scores is None:
            return picture | {"caption": self._draw_caption(row[self.caption_column], number)}
        item = self.scores.draw(self._items(row, number, digest), self._rng(number), self.num_candidates)
        example = picture | {"caption": item.caption}
        return example | {"item": item} if self.with_candidates else example

    def _picture(self, cell, number: int) -> tuple[dict, str | None]:
        """A row's picture as an example holds it, and its digest where scores are looked up by it."""
        image = read_image(cell)
        return {"image": image}, None if self.scores is None else picture_digest(cell, image)

    def _items(self, row: dict, number: int, picture: str) -> list[int]:
        """The scored items of a row: those of its picture, of which other rows may have some, with its captions."""
        cell = row[self.caption_column]
        captions, of_picture = [cell] if isinstance(cell, str) else cell, self.scores.numbers_of(picture)
        items = [item for item in of_picture if self.scores.caption(item) in captions]
        if not items:
            raise ValueError(
                f"row {number}: the scores {self.scores.name!r} hold {self.scores.caption(of_picture[0])!r:.100} for its "
                f"picture, which is none of its captions {cell!r:.200}. Give scores that were made from this dataset."
            )
        return items

    def _rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, number])

    def _draw_caption(self, cell: str | Sequence[str], number: int) -> str:
        captions = [cell] if isinstance(cell, str) else cell
        if not isinstance(captions, (list, tuple)) or not captions or not all(isinstance(c, str) for c in captions):
            raise ValueError(
                f"row {number}: column {self.caption_column!r} holds {cell!r:.200}; a caption must be a string or a "
                "list of strings. Choose another --caption_column, or mend the row."
            )
        if len(captions) == 1:
            return captions[0]
        return captions[int(self._rng(number).integers(len(captions)))]

    def _name_of_image(self, row: dict, number: int) -> str:
        """The path of a file of its own; else the row, and the name that its bytes are stored under if there is one."""
        cell = row[self.image_column]
        if isinstance(cell, (str, os.PathLike)):
            return str(cell)
        path, stored = (cell.get("path"), cell.get("bytes")) if isinstance(cell, dict) else (None, cell)
        if path and stored is None:
            return path
        return self._tell_row(row, number) + (f" ({path})" if path else "")

    def _tell_row(self, row: dict, number: int) -> str:
        return f"row {number}"


class ImageCaptionDataset(CaptionedImages, torch.utils.data.Dataset):
    """Map-style: rows by number. See [`CaptionedImages`].

    Args:
        image_processor: if given, it prepares each picture once; what it makes is kept in memory, for later datasets of
            the same rows in this process, too, and examples hold ``pixel_values`` (3, H, W) in place of ``image``.
    """

    def __init__(self, *args, image_processor: BaseImageProcessor | None = None, **options):
        super().__init__(*args, **options)
        self.image_processor = image_processor
        if image_processor is not None:
            self._kept = _kept_images(self.source._fingerprint, self.image_column, image_processor.to_json_string())

    def _picture(self, cell, number: int) -> tuple[dict, str | None]:
        if self.image_processor is None:
            return super()._picture(cell, number)
        if number not in self._kept:
            image = read_image(cell)
            pixels = self.image_processor([image], return_tensors="pt").pixel_values[0]
            self._kept[number] = {"pixel_values": pixels}, picture_digest(cell, image)
        return self._kept[number]

    def __len__(self) -> int:
        return len(self.source)

    def captions(self) -> list[str]:
        """All captions, each once, in the order of the rows."""
        cells = self.source[self.caption_column]
        return list(dict.fromkeys(text for cell in cells for text in ([cell] if isinstance(cell, str) else cell)))

    def check_scores(self) -> None:
        """Raise ValueError if the scores miss the captions of any row, or the pictures of a sample of the rows."""
        if self.scores is None:
            return
        self.scores.check_captions(self.source[self.caption_column], unless=self._is_unreadable)
        for number in np.linspace(0, len(self) - 1, min(len(self), CHECKED_PICTURES)).astype(int).tolist():
            cell = self.source[number][self.image_column]
            try:
                self.scores.numbers_of(picture_digest(cell))
            except OSError:  # an unreadable one is dealt with when its turn comes
                continue

    def _is_unreadable(self, number: int) -> bool:
        """Whether a row's picture cannot be read, and was therefore left out when captions were scored."""
        try:
            read_image(self.source[number][self.image_column])
        except OSError:
            return True
        return False

    def __getitem__(self, number: int) -> dict:
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} does not exist; the dataset has {len(self)}.")
        for offset in range(len(self)):
            row_number = (number + offset) % len(self)
            example = self._example(self.source[row_number], row_number)
            if example is not None:
                return example
        raise BadImageError(f"none of the {len(self)} images could be read.")


@lru_cache(maxsize=2)  # one to train on and one to evaluate on
def _kept_images(fingerprint: str, image_column: str, image_processor: str) -> dict[int, tuple[dict, str]]:
    """Row -> its prepared picture and the digest: empty at first, and the same for equal arguments."""
    return {}


class StreamingImageCaptionDataset(CaptionedImages, torch.utils.data.IterableDataset):
    """Streaming: rows as they come, numbered by each loader worker on its own. See [`CaptionedImages`]."""

    rank, world_size = 0, 1

    def share(self, rank: int, world_size: int) -> "StreamingImageCaptionDataset":
        """What one of several processes reads, so that together they read each row once a pass.

        These are whole shards (files) where ``world_size`` divides their number; else every ``world_size``-th row, for
        which the others are read as well, but not decoded. A source that is split by node already stays as it is.

        Args:
            rank: the number of the process.
            world_size: how many there are.
        """
        share = self.apart()
        if world_size > 1 and self.source._distributed is None:
            share.source = split_dataset_by_node(self.source, rank, world_size)
            share.rank, share.world_size = rank, world_size
        return share

    def apart(self) -> "StreamingImageCaptionDataset":
        """The same with an epoch of its own; a dataset's is shared by loader workers, which end a pass each at its time."""
        dataset = copy.copy(self)
        dataset._epoch = torch.zeros((), dtype=torch.int64)
        dataset.source = self.source.select_columns([self.image_column, self.caption_column])
        return dataset

    @property
    def num_shards(self) -> int:
        """How many loader workers have something to read at most."""
        return self.source.num_shards

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.source.set_epoch(epoch)

    def _tell_row(self, row: dict, number: int) -> str:
        # Shuffling and the number of workers change a row's number, but not its content.
        caption = str(row[self.caption_column])[:60]
        return f"row captioned {caption!r}, checksum {zlib.crc32(repr(row).encode()):08x}"

    def __iter__(self) -> Iterator[dict]:
        return self.examples()

    def examples(self, passed_over: int = 0) -> Iterator[dict]:
        """One pass. ``PASSED_OVER`` comes in place of the first ``passed_over`` examples.

        The pictures of those are not decoded, unless unreadable ones may be skipped: which these are, decoding tells.
        """
        for number, row in zip(count(self.rank, self.world_size), self.source, strict=False):
            undecoded = passed_over > 0 and not self.bad_images.limit
            example = PASSED_OVER if undecoded else self._example(row, number)
            if example is None:
                continue
            yield PASSED_OVER if passed_over > 0 else example
            passed_over -= 1


class EndlessStream(torch.utils.data.IterableDataset):
    """A stream that begins anew when it ends, so that every batch is full, on each process whatever its share.

    Trainer takes ``max_steps`` for the length of a stream's only epoch; the passes are counted here, and a resumed run
    that skips as many batches stands where the first one stood.

    Args:
        dataset: the stream.
        batch_size: fewer rows than this in a whole pass are an error.
        passed_over: batches, over all loader workers, in place of which ``PASSED_OVER`` comes.

    Raises:
        ValueError: in iteration, when a pass gives no full batch.
    """

    def __init__(self, dataset: StreamingImageCaptionDataset, batch_size: int, passed_over: int = 0):
        self.dataset, self.batch_size, self.passed_over = dataset, batch_size, passed_over

    def __iter__(self) -> Iterator[dict]:
        worker = torch.utils.data.get_worker_info()
        turn, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)  # workers give batches in turn
        passed_over = len(range(turn, self.passed_over, workers)) * self.batch_size
        dataset = self.dataset.apart()
        for epoch in count():
            dataset.set_epoch(epoch)
            rows = 0
            for row in dataset.examples(passed_over):
                yield row
                rows += 1
            passed_over = max(0, passed_over - rows)
            if rows == 0 or (rows < self.batch_size and worker is None):
                share = f" in the share of process {dataset.rank}" if dataset.world_size > 1 else ""
                raise ValueError(
                    f"the training data gives no full batch of {self.batch_size}: a pass has {rows} rows{share}. Lower "
                    "--per_device_train_batch_size or add data."
                )


def as_training_data(
    source: datasets.Dataset | datasets.IterableDataset, **options
) -> ImageCaptionDataset | StreamingImageCaptionDataset:
    """Wrap a dataset for training, by its kind; the options are those of [`CaptionedImages`]."""
    streaming = isinstance(source, datasets.IterableDataset)
    return (StreamingImageCaptionDataset if streaming else ImageCaptionDataset)(source, **options)


def _undecoded(source, image_column: str, caption_column: str):
    columns = source.column_names or list(next(iter(source), {}))  # a stream may not know its columns beforehand
    for what, column, option in (
        ("image", image_column, "--image_column"),
        ("caption", caption_column, "--caption_column"),
    ):
        if column not in columns:
            have = ", ".join(repr(name) for name in columns)
            raise ValueError(f"{what} column {column!r} not found; the dataset has {have}. Pass {option}.")
    source = source.with_format(None).select_columns([image_column, caption_column])
    if isinstance((source.features or {}).get(image_column), datasets.Image):
        source = source.cast_column(image_column, datasets.Image(decode=False))
    return source


@dataclass
class ImageCaptionCollator:
    """Batches of pictures and captions for the student, and the captions again for the teacher.

    Args:
        processor: the student's.
        teacher_tokenize: a teacher's [`~teacher.DiffusionTeacher.tokenize`]; None when no term needs prompts.
        max_candidates: K, how many candidates a picture has at most; 0 when no term needs them.
        prompts: the teacher's prompts of captions, (N, L, D), where they are at hand; default: its tokens are given.

    An example holds ``image`` or, preprocessed, ``pixel_values``, and ``caption``, with candidates ``item``, too.

    Returns of a call, for B examples: ``pixel_values`` (B, 3, H, W); ``input_ids`` and ``attention_mask`` (B, L), padded
    to the longest of the batch; ``caption_cut`` (B,), true where a caption was longer than the text tower reads; with a
    teacher ``teacher_input_ids`` (B, T) or ``teacher_prompts`` (B, T, D); and with candidates ``candidate_input_ids`` and
    ``candidate_attention_mask`` (B, K, L), the latter all zero where there is no candidate, ``candidate_errors`` (B, K),
    the teacher's d(x, c_k), NaN where there is none, ``candidate_is_own`` (B, K) and ``candidate_confidence`` (B,).
    Nothing for rows passed over.
    """

    processor: CLIPProcessor
    teacher_tokenize: Callable[[Sequence[str]], Tensor] | None = None
    max_candidates: int = 0
    prompts: Callable[[Sequence[str]], Tensor] | None = None

    def __call__(self, examples: list[dict]) -> dict[str, Tensor]:
        if not any(examples):
            return {}
        captions = [example["caption"] for example in examples]
        items = [example["item"] for example in examples] if self.max_candidates and "item" in examples[0] else []
        texts = captions + [candidate for item in items for candidate in item.candidates]
        tokenizer = self.processor.tokenizer
        tokens = tokenizer(
            texts, padding=True, truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
        )
        batch = {
            "pixel_values": self._pixels(examples),
            "input_ids": tokens.input_ids[: len(captions)],
            "attention_mask": tokens.attention_mask[: len(captions)],
            "caption_cut": self._cut(captions, tokens.attention_mask[: len(captions)].sum(1)),
        }
        if self.prompts is not None:
            batch["teacher_prompts"] = self.prompts(captions)
        elif self.teacher_tokenize is not None:
            batch["teacher_input_ids"] = self.teacher_tokenize(captions)
        if items:
            of_candidates = tokens.input_ids[len(captions) :], tokens.attention_mask[len(captions) :]
            batch |= self._candidates(items, *of_candidates)
        return batch

    def _cut(self, captions: list[str], lengths: Tensor) -> Tensor:
        """Which captions lost tokens, (B,): of those that fill the text tower."""
        tokenizer = self.processor.tokenizer
        cut = lengths >= tokenizer.model_max_length
        for number in cut.nonzero()[:, 0].tolist():
            whole = tokenizer(captions[number], truncation=False, verbose=False).input_ids
            cut[number] = len(whole) > tokenizer.model_max_length
        return cut

    def _pixels(self, examples: list[dict]) -> Tensor:
        if "pixel_values" in examples[0]:
            return torch.stack([example["pixel_values"] for example in examples])
        return self.processor.image_processor(
            [example["image"] for example in examples], return_tensors="pt"
        ).pixel_values

    def _candidates(self, items: list[RankedItem], input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """The items' candidates, one after another in ``input_ids``, as a row of K an image."""
        shape = len(items), self.max_candidates
        exists, errors = torch.zeros(shape, dtype=torch.bool), torch.full(shape, torch.nan)
        for number, item in enumerate(items):
            exists[number, : len(item.candidates)] = True
            errors[number, : len(item.candidates)] = torch.from_numpy(item.errors)
        is_own = torch.zeros(shape, dtype=torch.bool)
        is_own[exists] = torch.tensor([text == item.caption for item in items for text in item.candidates])
        batch = {"candidate_errors": errors, "candidate_is_own": is_own}
        for name, flat in (("candidate_input_ids", input_ids), ("candidate_attention_mask", attention_mask)):
            batch[name] = flat.new_zeros((*shape, flat.shape[1]))
            batch[name][exists] = flat
        return batch | {"candidate_confidence": torch.tensor([item.confidence for item in items])}
