"""Scorers: how well captions fit images, by CLIP's cosine or by the teacher's own denoising error."""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, ProcessorMixin

from sdsclip_hf.benchmarks import Item, picture_key, read_picture
from sdsclip_hf.benchmarks.items import Picture, picture_name
from sdsclip_hf.common.shared_memory import HandedOver, workers_with_room
from sdsclip_hf.data.decoded import check_preparing, packed, prepared
from sdsclip_hf.students.dual_encoder import DualEncoder
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

CAPTION_WINDOW = 16_384


class ClassPrompts(Protocol):
    """Learned prompts, by which classes are told instead of by captions."""

    name: str
    fingerprint: str

    def embed_classes(self, encoder: DualEncoder, class_names: Sequence[str]) -> Tensor:
        """Unit-length embeddings (C, D) of C classes, on the CPU."""
        ...


class ClipScorer:
    """Cosines of a dual encoder's embeddings, in float32; each distinct image and caption is encoded once.

    Args:
        model: CLIP, or another model with ``get_image_features`` and ``get_text_features``.
        processor: its processor.
        batch_size: how many images or captions are encoded at once.
        num_workers: processes that read and preprocess images ahead of the model; 0: none.
        preprocess_on_device: whether they only read them, and the model's device prepares them; see [`check_preparing`].
        chunk_size: how many items [`score_chunks`] gives at a time.
        remembered: keys of pictures and captions that other calls need, too, and that are encoded once over all calls;
            None: all are.
        prompts: embed classes in place of their captions.

    Example:

    ```python
    from sdsclip_hf import ClipScorer
    from sdsclip_hf.benchmarks import load_benchmark
    from sdsclip_hf.shapes import model_path
    from sdsclip_hf.students.sdsclip_model import load_clip

    scorer = ClipScorer(*load_clip(model_path("student")))
    items = load_benchmark("shapes:test").items[:8]  # two pictures and two captions each
    matrices = scorer.score(items)
    print(len(matrices), matrices[0].shape)  # 8 (2, 2)
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        batch_size: int = 128,
        num_workers: int = 0,
        chunk_size: int = 1024,
        remembered: Collection[Hashable] | None = (),
        prompts: ClassPrompts | None = None,
        preprocess_on_device: bool = False,
    ):
        self.encoder, self.prompts = DualEncoder(model, processor), prompts
        self.preprocess_on_device = preprocess_on_device
        if preprocess_on_device:
            check_preparing(processor.image_processor, model.device)
        self._images = _Memory(remembered, picture_key, picture_key)
        # To the model captions of the same tokens are one, whichever call they came with.
        self._captions = _Memory(remembered, key=itemgetter(1), name=itemgetter(0))
        self.batch_size, self.num_workers, self.chunk_size = batch_size, num_workers, chunk_size

    def score(self, items: Sequence[Item]) -> list[np.ndarray]:
        """A matrix (captions, images) of cosines for each item; higher means a better match."""
        return [matrix for chunk in self.score_chunks(items) for matrix in chunk]

    def score_chunks(self, items: Sequence[Item], with_captions: bool = False) -> Iterator[list[np.ndarray]]:
        """The matrices of [`score`], ``chunk_size`` items at a time.

        With captions they are (captions, images + captions): behind the images stand the cosines with all captions.

        Beyond the model it keeps the embeddings of all distinct images and captions, 4 D bytes each, and the few
        batches of pixels that are on their way.
        """
        images, image_rows = _distinct((image for item in items for image in item.images), picture_key)
        captions, caption_rows = _distinct((caption for item in items for caption in item.captions), str)
        image_embeds = _Growing(len(images), self.image_batches(images))
        text_embeds = _Growing(len(captions), self.caption_batches(captions))
        for start in range(0, len(items), self.chunk_size):
            matrices = []
            for item in items[start : start + self.chunk_size]:
                texts = text_embeds.take(caption_rows, item.captions)
                pictures = image_embeds.take(image_rows, item.images)
                matrices.append(_cosines(texts, torch.cat([pictures, texts]) if with_captions else pictures))
            yield matrices

    def embed_images(self, images: Sequence[Picture]) -> Tensor:
        """Unit-length embeddings (N, D) of N pictures, on the CPU."""
        return torch.cat(list(self.image_batches(images)))

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """Unit-length embeddings (N, D) of N captions, on the CPU."""
        return torch.cat(list(self.caption_batches(captions)))

    def embed_classes(self, classes: Mapping[str, Sequence[str]]) -> Tensor:
        """A unit-length embedding of each of C classes, (C, D): the mean of its captions' (Radford et al. 2021).

        Args:
            classes: name -> captions, equally many; with ``prompts`` the names alone count.
        """
        if self.prompts is not None:
            return self.prompts.embed_classes(self.encoder, list(classes))
        embeds = self.embed_captions([caption for captions in classes.values() for caption in captions])
        return F.normalize(embeds.view(len(classes), -1, embeds.shape[1]).mean(1), dim=-1)

    def image_batches(self, images: Sequence[Picture]) -> Iterator[Tensor]:
        """Embeddings (B, D) of the images, batch after batch.

        Raises:
            OSError: an image cannot be read; the message names it. Or the workers' batches have no room.
        """
        return self._images.batches(images, self._encode_images, self.batch_size)

    def caption_batches(self, captions: Sequence[str]) -> Iterator[Tensor]:
        """Embeddings (N, D) of the captions in their order; encoded sorted by length, so that little is padding."""
        if not self._captions.is_used:
            return self._encode_captions(captions)
        tokens = map(tuple, self.encoder.tokenize(list(captions)))
        things = list(zip(captions, tokens, strict=True))
        return self._captions.batches(things, self._encode_tokenized, self.batch_size)

    def _encode_tokenized(self, things: Sequence[tuple[str, tuple]]) -> Iterator[Tensor]:
        return self._encode_captions([caption for caption, _ in things])

    def _encode_images(self, images: Sequence[Picture]) -> Iterator[Tensor]:
        reader = _Reader(packed if self.preprocess_on_device else self.encoder.preprocess)
        first = reader(list(images[:1])) if self.num_workers and images else None
        times = min(self.batch_size, len(images))
        workers = workers_with_room(self.num_workers, first, times, None, "--num_workers")
        collate = HandedOver(reader, "--num_workers")
        for pixels in DataLoader(cast(Dataset, images), self.batch_size, num_workers=workers, collate_fn=collate):
            if isinstance(pixels, OSError):
                raise pixels
            if self.preprocess_on_device:
                pixels = prepared(pixels, self.encoder.processor.image_processor, self.encoder.model.device)
            yield self.encoder.embed_pixels(pixels)

    def _encode_captions(self, captions: Sequence[str]) -> Iterator[Tensor]:
        for start in range(0, len(captions), CAPTION_WINDOW):
            tokenized = self.encoder.tokenize(list(captions[start : start + CAPTION_WINDOW]))
            # To the model captions of the same tokens are one, and must score the same to the last bit.
            first = {}
            places = [first.setdefault(tuple(caption), len(first)) for caption in tokenized]
            ids = [list(caption) for caption in first]
            order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
            batches = [order[first : first + self.batch_size] for first in range(0, len(order), self.batch_size)]
            embeds = torch.cat([self.encoder.embed_tokens([ids[row] for row in rows]) for rows in batches])
            yield embeds[torch.tensor(order).argsort()[places]]


class RememberingClipScorer(ClipScorer):
    """A [`ClipScorer`] for small benchmarks that share pictures and captions: it encodes each once over all its calls."""

    def __init__(self, *args, **options):
        super().__init__(*args, remembered=None, **options)


class _Memory:
    """The embeddings of things that are asked for again.

    Args:
        worth: the names of the things that are remembered; None: all.
        key: equal for things of one embedding; it may hold as long as the thing lives.
        name: of a thing.
    """

    def __init__(self, worth: Collection[Hashable] | None, key: Callable, name: Callable):
        self.worth, self.key, self.name = worth, key, name
        self.is_used = worth is None or len(worth) > 0
        self.known: dict[Hashable, tuple[object, Tensor]] = {}

    def batches(self, things: Sequence, encode: Callable, size: int) -> Iterator[Tensor]:
        """The embeddings of things in their order, as they are needed; ``encode`` gives those that are not known."""
        if not self.is_used:
            yield from encode(things)
            return
        new, asked = [], set(self.known)
        for thing in things:
            key = self.key(thing)
            if key not in asked:
                new.append(thing)
            if self._is_worth(thing):
                asked.add(key)
        embeds = (embed for batch in encode(new) for embed in batch)
        for start in range(0, len(things), size):
            yield torch.stack([self._take(thing, embeds) for thing in things[start : start + size]])

    def _is_worth(self, thing) -> bool:
        return self.worth is None or self.name(thing) in self.worth

    def _take(self, thing, embeds: Iterator[Tensor]) -> Tensor:
        key = self.key(thing)
        if key in self.known:
            return self.known[key][1]
        embed = next(embeds)
        if self._is_worth(thing):
            self.known[key] = thing, embed.clone()  # no view, which would keep its whole batch
        return embed


class DiffusionScorer:
    """The teacher's own matching score: minus d(x, c), with the same draws for all candidates (the paper's first half).

    Args:
        teacher: loaded with its autoencoder.
        chunk_size: how many items [`score_chunks`] gives at a time; few, since each takes long.
        options: ``num_draws``, ``timestep_range``, ``weighting``, ``seed`` and ``batch_size`` of
            [`DiffusionTeacher.diffusion_score`].

    Example:

    ```python
    from sdsclip_hf import DiffusionScorer, DiffusionTeacher
    from sdsclip_hf.benchmarks import load_benchmark
    from sdsclip_hf.shapes import model_path

    teacher = DiffusionTeacher.from_pretrained(model_path("teacher"), load_vae=True)
    scorer = DiffusionScorer(teacher, num_draws=4, timestep_range=(100, 990))
    (matrix,) = scorer.score(load_benchmark("shapes:test").items[:1])
    print(matrix.argmax(0).tolist())  # [0, 1]
    ```
    """

    def __init__(self, teacher: DiffusionTeacher, chunk_size: int = 16, **options):
        self.teacher, self.chunk_size, self.options = teacher, chunk_size, options

    def score(self, items: Sequence[Item]) -> list[np.ndarray]:
        """A matrix (captions, images) of -d(x, c) for each item; higher means a better match."""
        return [matrix for chunk in self.score_chunks(items) for matrix in chunk]

    def score_chunks(self, items: Sequence[Item]) -> Iterator[list[np.ndarray]]:
        """The matrices of [`score`], ``chunk_size`` items at a time."""
        for start in range(0, len(items), self.chunk_size):
            chunk = items[start : start + self.chunk_size]
            matrices: list = [None] * len(chunk)
            for count in {len(item.captions) for item in chunk}:
                places = [place for place, item in enumerate(chunk) if len(item.captions) == count]
                for place, matrix in zip(places, self._score_alike([chunk[place] for place in places]), strict=True):
                    matrices[place] = matrix
            yield matrices

    def _score_alike(self, items: Sequence[Item]) -> list[np.ndarray]:
        """Items of equally many captions."""
        images = [read_picture(image) for item in items for image in item.images]
        captions = [list(item.captions) for item in items for _ in item.images]
        errors = self.teacher.diffusion_score(images, captions, **self.options)  # (all images, captions)
        return [-rows.T.numpy() for rows in errors.split([len(item.images) for item in items])]


class _Reader:
    """Pictures to what the model takes; runs in a worker, so it holds no model.

    Exceptions are returned, since from a worker they would come back as the text of a traceback.
    """

    def __init__(self, preprocess: Callable):
        self.preprocess = preprocess

    def __call__(self, pictures: list[Picture]) -> dict[str, Tensor] | OSError:
        try:
            images = [read_picture(picture) for picture in pictures]
        except OSError as error:
            return error
        try:
            return self.preprocess(images)
        except Exception as error:
            return OSError(
                f"{self._culprit(pictures, images)} could not be preprocessed ({error!r}); mend or remove it."
            )

    def _culprit(self, pictures: list[Picture], images: list) -> str:
        for picture, image in zip(pictures, images, strict=True):
            try:
                self.preprocess([image])
            except Exception:
                return f"the image {picture_name(picture)} of {image.width} x {image.height} pixels"
        return f"one of {len(pictures)} images, the first of them {picture_name(pictures[0])},"


def _cosines(texts: Tensor, images: Tensor) -> np.ndarray:
    """(K, D) and (I, D) to (K, I), each by the same sums in the same order.

    A matrix product would round a row by its place in the matrix, so that equal captions might not tie.
    """
    return (texts[:, None] * images[None]).sum(-1).numpy()


class _Growing:
    """Embeddings of things in the order of their first use, computed no sooner than they are asked for."""

    def __init__(self, total: int, batches: Iterator[Tensor]):
        self.total, self.batches, self.filled, self.rows = total, batches, 0, torch.empty(0)

    def take(self, places: "_Places", things: Sequence) -> Tensor:
        wanted = [places[thing] for thing in things]
        while self.filled <= max(wanted):
            batch = next(self.batches)
            if not self.filled:
                self.rows = torch.empty(self.total, batch.shape[1])
            self.rows[self.filled : self.filled + len(batch)] = batch
            self.filled += len(batch)
        return self.rows[wanted]


class _Places:
    """The place of each thing among the distinct ones."""

    def __init__(self, key: Callable):
        self.key, self.known = key, {}

    def __getitem__(self, thing) -> int:
        return self.known[self.key(thing)]


def _distinct(things: Iterable, key: Callable) -> tuple[list, _Places]:
    """The distinct things in the order of their first use, and where each is among them."""
    places, distinct = _Places(key), []
    for thing in things:
        if key(thing) not in places.known:
            places.known[key(thing)] = len(distinct)
            distinct.append(thing)
    return distinct, places
