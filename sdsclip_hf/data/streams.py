"""Image-caption datasets that are read as they come: each process's share, without end."""

import copy
import zlib
from collections.abc import Iterator
from itertools import count

import datasets
import torch
from datasets.distributed import split_dataset_by_node

from sdsclip_hf.data.captioned_images import CaptionedImages, ImageCaptionDataset
from sdsclip_hf.data.places import place_of

PASSED_OVER: dict = {}  # stands for a row that a resumed run has seen already


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
        dataset.source = self.source.select_columns(self._columns)
        return dataset

    @property
    def num_shards(self) -> int:
        """How many loader workers have something to read at most."""
        return self.source.num_shards

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.source.set_epoch(epoch)

    def _tell_row(self, row: dict, number: int) -> str:
        # Shuffling and the number of workers change a row's number, but neither its place nor its content.
        if (place := place_of(row) or self._path_of_image(row)) is not None:
            return place
        caption = str(row[self.caption_column])[:60]
        return f"row captioned {caption!r}, checksum {zlib.crc32(repr(row).encode()):08x}"

    def __iter__(self) -> Iterator[dict]:
        return self.examples()

    def examples(self, passed_over: int = 0) -> Iterator[dict]:
        """One pass. ``PASSED_OVER`` comes in place of the first ``passed_over`` examples.

        The pictures of those are not decoded, unless bad rows may be skipped: which these are, decoding tells.
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
