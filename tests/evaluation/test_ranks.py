"""Ranks against brute force, with ties, shared captions, blocks and prompt ensembles."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sdsclip_hf.benchmarks.items import Benchmark, Item
from sdsclip_hf.evaluation import ranks
from sdsclip_hf.evaluation.results import answer_chunks
from sdsclip_hf.evaluation.scorers import ClipScorer


class Table(ClipScorer):
    """Embeddings that are looked up; a picture is a word here."""

    def __init__(self, embeds: dict[str, list[float]], chunk_size: int = 3):
        self.embeds, self.chunk_size, self.prompts = embeds, chunk_size, None

    def embed_images(self, images):
        return torch.tensor([self.embeds[image] for image in images], dtype=torch.float32)

    def embed_captions(self, captions):
        return torch.tensor([self.embeds[caption] for caption in captions], dtype=torch.float32)


def product(one, other) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def plain_rank(query, candidates: dict, right: set) -> tuple[int, int]:
    """(ties against the model, ties for it): the wrong candidates that keep the best right one down."""
    best = max(product(query, candidates[name]) for name in right)
    wrong = [product(query, embed) for name, embed in candidates.items() if name not in right]
    return sum(score >= best for score in wrong), sum(score > best for score in wrong)


def whole_numbers(rng, names, width=3) -> dict[str, list[float]]:
    """Embeddings of few whole numbers, so that ties are many and exact."""
    return {name: rng.integers(-2, 3, width).astype(float).tolist() for name in names}


@pytest.fixture
def retrieval():
    """Eleven images of one to three captions; some captions belong to several images."""
    rng = np.random.default_rng(0)
    pictures, captions = [f"image {n}" for n in range(11)], [f"caption {n}" for n in range(14)]
    own = [rng.choice(captions, rng.integers(1, 4), replace=False).tolist() for _ in pictures]
    assert max(sum(caption in some for some in own) for caption in captions) > 1
    embeds = whole_numbers(rng, pictures + captions)
    items = [Item(picture, (picture,), tuple(some)) for picture, some in zip(pictures, own, strict=True)]
    return embeds, Benchmark("retrieval", "retrieval", items, {})


@pytest.mark.parametrize("block", [1, 4, 11, 512])
def test_retrieval_equals_brute_force(retrieval, block, monkeypatch):
    monkeypatch.setattr(ranks, "BLOCK", block)
    embeds, benchmark = retrieval
    found = ranks.retrieval_ranks(Table(embeds), benchmark)
    images = {item.images[0]: embeds[item.images[0]] for item in benchmark.items}
    captions = {caption: embeds[caption] for item in benchmark.items for caption in item.captions}
    ties = 0
    for item, answer in zip(benchmark.items, found, strict=True):
        expected = [plain_rank(images[item.images[0]], captions, set(item.captions))]
        for caption in item.captions:
            owners = {other.images[0] for other in benchmark.items if caption in other.captions}
            expected.append(plain_rank(captions[caption], images, owners))
        assert answer.tolist() == [list(pair) for pair in expected]
        ties += sum(against != favourable for against, favourable in expected)
    assert ties > 5


def test_caption_of_several_images_is_right_for_each():
    embeds = {"a": [1.0, 0.0], "b": [0.9, 0.1], "c": [0.0, 1.0], "one": [1.0, 0.0], "other": [0.0, 1.0]}
    items = [Item("a", ("a",), ("one",)), Item("b", ("b",), ("one",)), Item("c", ("c",), ("other",))]
    first, second, _ = ranks.retrieval_ranks(Table(embeds), Benchmark("retrieval", "retrieval", items, {}))
    assert first.tolist() == second.tolist() == [[0, 0], [0, 0]]


def test_model_that_embeds_everything_alike_is_right_nowhere():
    embeds = {name: [1.0, 0.0] for name in ("a", "b", "one", "other")}
    items = [Item("a", ("a",), ("one",)), Item("b", ("b",), ("other",))]
    for answer in ranks.retrieval_ranks(Table(embeds), Benchmark("retrieval", "retrieval", items, {})):
        assert answer.tolist() == [[1, 0], [1, 0]]


def classification(prompts=1) -> tuple[dict, Benchmark]:
    rng = np.random.default_rng(1)
    names = ["cat", "dog", "mat", "chair"]
    classes = {name: tuple(f"{number}: {name}" for number in range(prompts)) for name in names}
    embeds = whole_numbers(rng, [f"image {n}" for n in range(10)])
    captions = [caption for own in classes.values() for caption in own]
    embeds |= {caption: F.normalize(torch.randn(3), dim=0).tolist() for caption in captions}
    items = [Item(f"image {n}", (f"image {n}",), (), names[rng.integers(4)]) for n in range(10)]
    return embeds, Benchmark("classification", "classification", items, {}, classes)


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
@pytest.mark.parametrize("prompts", [1, 3])
def test_classes_equal_brute_force_on_the_mean_prompt(prompts, chunk_size):
    embeds, benchmark = classification(prompts)
    means = {}
    for name, captions in benchmark.classes.items():
        mean = [sum(embeds[caption][d] for caption in captions) / prompts for d in range(3)]
        means[name] = [value / math.hypot(*mean) for value in mean]
    chunks = list(answer_chunks(Table(embeds, chunk_size), benchmark))
    assert [len(chunk) for chunk in chunks] == [
        len(range(10)[start : start + chunk_size]) for start in range(0, 10, chunk_size)
    ]
    found = [answer.tolist() for chunk in chunks for answer in chunk]
    assert found == [list(plain_rank(embeds[item.images[0]], means, {item.tag})) for item in benchmark.items]
    assert len({tuple(pair) for pair in found}) > 2


def test_length_of_the_mean_prompt_does_not_count():
    """Two prompts that differ would make a short mean; a class is not less likely for it."""
    embeds = {"image": [1.0, 0.05], "one": [1.0, 0.1], "two": [0.1, 1.0], "three": [0.6, 0.8], "four": [0.6, 0.8]}
    embeds |= {name: F.normalize(torch.tensor(embeds[name]), dim=0).tolist() for name in ("one", "two")}
    classes = {"far": ("three", "four"), "near": ("one", "two")}
    items = [Item("image", ("image",), (), "near")]
    benchmark = Benchmark("classification", "classification", items, {}, classes)
    assert next(answer_chunks(Table(embeds), benchmark))[0].tolist() == [0, 0]


def test_equal_classes_are_ties_against_the_model():
    embeds, benchmark = classification()
    embeds |= {f"0: {name}": [0.0, 0.0, 1.0] for name in benchmark.classes}
    assert {tuple(answer) for chunk in answer_chunks(Table(embeds), benchmark) for answer in chunk} == {(3, 0)}


def test_classification_from_an_item_on_gives_the_rest():
    embeds, benchmark = classification()
    whole = [answer.tolist() for chunk in answer_chunks(Table(embeds), benchmark) for answer in chunk]
    assert [a.tolist() for chunk in answer_chunks(Table(embeds), benchmark, 6) for a in chunk] == whole[6:]


@pytest.mark.parametrize("broken", ["image 7", "0: dog"])
def test_nan_in_classification_is_named(broken):
    embeds, benchmark = classification()
    embeds[broken] = [math.nan] * 3
    with pytest.raises(ValueError, match=f"{broken.removeprefix('0: ')}' holds NaN"):
        list(answer_chunks(Table(embeds), benchmark))


@pytest.mark.parametrize("broken", ["image 7", "caption 3"])
def test_nan_in_retrieval_is_named(retrieval, broken):
    embeds, benchmark = retrieval
    embeds[broken] = [0.0, math.nan, 1.0]
    with pytest.raises(ValueError, match=f"{broken}' holds NaN"):
        list(answer_chunks(Table(embeds), benchmark))
