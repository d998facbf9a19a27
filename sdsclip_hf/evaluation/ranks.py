"""Ranks among many candidates, from embeddings: zero-shot classification, and retrieval both ways.

A rank is a pair: how many wrong candidates score at least as high as the best right one (ties counted against the
model), and how many score higher (ties counted for it).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from sdsclip_hf.benchmarks import Benchmark, Item
from sdsclip_hf.evaluation.scorers import ClipScorer

BLOCK = 512


def class_ranks(scorer: ClipScorer, benchmark: Benchmark, items: Sequence[Item]) -> Iterator[list[np.ndarray]]:
    """The rank (2,) of each image's class, ``scorer.chunk_size`` images at a time; see [`ClipScorer.embed_classes`]."""
    names, classes = list(benchmark.classes), scorer.embed_classes(benchmark.classes)  # (C, D)
    _refuse_nan(classes, names, f"{benchmark.name}: class")
    for start in range(0, len(items), scorer.chunk_size):
        chunk = items[start : start + scorer.chunk_size]
        images = scorer.embed_images([item.images[0] for item in chunk])
        _refuse_nan(images, [item.identifier for item in chunk], f"{benchmark.name}: item")
        yield list(_ranks(images, classes, [[names.index(item.tag)] for item in chunk]))


def retrieval_ranks(scorer: ClipScorer, benchmark: Benchmark) -> list[np.ndarray]:
    """For each image of K captions (1 + K, 2): the image's rank among all captions, then each caption's among all images.

    A caption that several images have is right for all of them.
    """
    items = benchmark.items
    captions = list(dict.fromkeys(caption for item in items for caption in item.captions))
    place = {caption: row for row, caption in enumerate(captions)}
    owners: list[list[int]] = [[] for _ in captions]
    for number, item in enumerate(items):
        for caption in item.captions:
            owners[place[caption]].append(number)
    images, texts = scorer.embed_images([item.images[0] for item in items]), scorer.embed_captions(captions)
    _refuse_nan(images, [item.identifier for item in items], f"{benchmark.name}: item")
    _refuse_nan(texts, captions, f"{benchmark.name}: caption")
    own = [[place[caption] for caption in item.captions] for item in items]
    of_images, of_texts = _ranks(images, texts, own), _ranks(texts, images, owners)
    return [np.stack([of_images[number], *of_texts[rows]]) for number, rows in enumerate(own)]


def _refuse_nan(embeds: Tensor, names: Sequence[str], kind: str) -> None:
    """NaN is neither above nor below anything, so that its rank would be the best."""
    broken = embeds.isnan().any(1).nonzero()
    if len(broken):
        raise ValueError(
            f"the embedding of {kind} {names[broken[0].item()]!r} holds NaN; try --dtype float32, or mend the model."
        )


def _ranks(queries: Tensor, candidates: Tensor, right: Sequence[Sequence[int]]) -> np.ndarray:
    """(Q, 2) ranks of each query's best right candidate: queries (Q, D), candidates (C, D), right: Q lists of rows."""
    found = np.empty((len(queries), 2), dtype=np.int64)
    for start in range(0, len(queries), BLOCK):
        # In double precision and then rounded, so that equal candidates tie wherever they stand in the product.
        scores = (queries[start : start + BLOCK].double() @ candidates.double().T).float().numpy()
        for number, row in enumerate(scores, start):
            own = row[right[number]]
            found[number] = (row >= own.max()).sum() - (own >= own.max()).sum(), (row > own.max()).sum()
    return found
