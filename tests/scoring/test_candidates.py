"""Candidate captions: what a rule makes of a caption is worked out by hand, what a corpus gives by a plain loop."""

import sys

import pytest
import torch
import torch.nn.functional as F
from captions import DIFFERENT

from sdsclip_hf.scoring import candidates
from sdsclip_hf.scoring.candidates import (
    Corpus,
    load_tagger,
    mix_candidates,
    parse_sources,
    swapped_captions,
)


@pytest.fixture(scope="module")
def tagger():
    return load_tagger()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "A brown dog lies on a white cat.",
            {
                "a white dog lies on a brown cat",  # attributes
                "a brown cat lies on a white dog",  # objects
                "a white cat lies on a brown dog",  # relation arguments
            },
        ),
        (
            "a red circle and a blue square",  # the phrases may change places without a change of meaning
            {"a blue circle and a red square", "a red square and a blue circle"},
        ),
        ("a star next to a green cross", {"a cross next to a green star"}),
        ("an orange circle left of a red circle", {"a red circle left of an orange circle"}),  # all three swaps are one
        ("an old horse sees two dogs", {"an old dogs sees two horse", "two dogs sees an old horse"}),
        ("a horse is eating the grass", {"a grass is eating the horse", "the grass is eating a horse"}),
        (
            "a photo of a green cat and a red mat",
            {"a photo of a red cat and a green mat", "a photo of a green mat and a red cat"},
        ),
        ("a star is right of a cross", {"a cross is right of a star"}),  # neither "photo" nor "right" is a thing here
        ("a dog", set()),
        ("running fast", set()),
        ("", set()),
    ],
)
def test_swaps_worked_out_by_hand(tagger, caption, expected):
    assert set(swapped_captions(caption, tagger)) == expected


def test_swaps_are_of_the_same_words_and_differ(tagger):
    caption = "Two men in red shirts playing frisbee near an old wooden bench"
    found = swapped_captions(caption, tagger)
    words = sorted(word for word in caption.lower().split() if word not in ("a", "an"))
    assert len(found) == len(set(found)) > 5
    for text in found:
        assert sorted(word for word in text.split() if word not in ("a", "an")) == words
        assert text != caption.lower()


def test_signs_and_emojis_stay_where_words_change_places(tagger):
    assert "a happy cat 😡 on a red dog 50%" in swapped_captions("a red cat 😡 on a happy dog 50%", tagger)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_captions_that_differ_in_a_mark_or_sign_are_candidates(one, other):
    assert mix_candidates(Corpus([one, other], [0, 1]), {"batch": 1}) == [[other], [one]]


def test_equal_phrases_are_not_exchanged(tagger):
    assert swapped_captions("a red star above a red star", tagger) == []


def test_without_a_tagger_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "textblob.en.taggers", None)
    with pytest.raises(ImportError, match=r"sdsclip_hf\[candidates\]"):
        load_tagger()


CAPTIONS = ["a cat", "A cat.", "one cat on a mat", "a dog", "a dog", "a black dog", "a bird", "a bird sings", "a tree"]
OWNERS = [0, 1, 0, 2, 3, 2, 4, 4, 5]


@pytest.fixture
def corpus():
    return Corpus(CAPTIONS, OWNERS)


def plain(caption: str) -> str:
    return caption.lower().rstrip(".")


def check_others(found: list[list[str]], count: int) -> None:
    for number, chosen in enumerate(found):
        own = {plain(text) for text, owner in zip(CAPTIONS, OWNERS, strict=True) if owner == OWNERS[number]}
        assert len(chosen) == len({plain(text) for text in chosen}) == count
        assert not own & {plain(text) for text in chosen}


@pytest.mark.parametrize("margin", [0, 64])
def test_nearest_captions_equal_a_plain_loop(corpus, monkeypatch, margin):
    monkeypatch.setattr(candidates, "NEAREST_BLOCK", 4)
    monkeypatch.setattr(candidates, "NEAREST_MARGIN", margin)
    embeds = F.normalize(torch.randn(len(CAPTIONS), 5), dim=-1)
    found = corpus.nearest(embeds, 3)
    check_others(found, 3)
    for number, chosen in enumerate(found):
        own = {plain(text) for text, owner in zip(CAPTIONS, OWNERS, strict=True) if owner == OWNERS[number]}
        expected = []
        for place in sorted(range(len(CAPTIONS)), key=lambda k: -float(embeds[number] @ embeds[k])):
            if plain(CAPTIONS[place]) not in own and plain(CAPTIONS[place]) not in map(plain, expected):
                expected.append(CAPTIONS[place])
        assert chosen == expected[:3]


def test_random_captions_are_others_and_hang_on_the_seed(corpus):
    first, again, other = corpus.random(3, seed=0), corpus.random(3, seed=0), corpus.random(3, seed=1)
    check_others(first, 3)
    assert first == again != other


def test_every_other_caption_can_be_drawn(corpus):
    drawn = {plain(text) for seed in range(30) for text in corpus.random(2, seed)[0]}
    assert drawn == {"a dog", "a black dog", "a bird", "a bird sings", "a tree"}


@pytest.mark.parametrize("kind", ["nearest", "random"])
def test_a_corpus_that_is_too_small_raises(corpus, kind):
    with pytest.raises(ValueError, match=r"'a cat' has only 5 others .* not 6"):
        corpus.random(6) if kind == "random" else corpus.nearest(F.normalize(torch.randn(9, 4), dim=-1), 6)


def test_what_is_true_of_an_image_beside_its_caption_is_not_taken(corpus):
    more = Corpus(CAPTIONS, OWNERS, {0: ["A bird!", "a tree"], 7: ["a dog"]})
    for seed in range(20):
        assert not {"a bird", "a tree"} & set(more.random(3, seed)[0])
    with pytest.raises(ValueError, match=r"only 3 others .* not 4"):
        more.random(4)
    assert "a dog" in {text for seed in range(20) for text in more.random(3, seed)[0]}


# Several sources


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["swap"], {"swap": 3}),
        (["nearest:1", "swap:12"], {"nearest": 1, "swap": 12}),
        (["column", "batch:2"], {"column": 3, "batch": 2}),
    ],
)
def test_sources_are_read_in_their_order(texts, expected):
    assert list(parse_sources(texts).items()) == list(expected.items())


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["words"], r"unknown source of candidates 'words'; choose from column, swap, nearest, batch"),
        (["swap:2", "swap"], "'swap' is named twice"),
        (["batch:-1"], "the count of candidates is '-1'"),
        (["batch:"], "the count of candidates is ''"),
        (["batch:1.5"], "the count of candidates is '1.5'"),
        ([], "no source of candidates is given"),
    ],
)
def test_sources_that_cannot_be_read_raise(texts, said):
    with pytest.raises(ValueError, match=said):
        parse_sources(texts)


def test_given_candidates_come_first_and_repeat_nothing(corpus):
    given = [["A cat!", "a lion", "a DOG", "a lion", "a wolf", "a fox"]] * len(CAPTIONS)
    embeds = F.normalize(torch.randn(len(CAPTIONS), 5), dim=-1)
    found = mix_candidates(corpus, {"column": 3, "nearest": 2, "batch": 3}, given=given, embeds=embeds, seed=4)
    nearest, batch = corpus.nearest(embeds, 2), corpus.random(3, seed=4)
    for number, chosen in enumerate(found):
        true = {plain(text) for text, owner in zip(CAPTIONS, OWNERS, strict=True) if owner == OWNERS[number]}
        first = [text for text in ["A cat!", "a lion", "a DOG", "a wolf"] if plain(text.rstrip("!")) not in true][:3]
        expected = {plain(text.rstrip("!")): text for text in first}
        for text in nearest[number] + batch[number]:
            expected.setdefault(plain(text), text)
        assert chosen == list(expected.values())


def test_swaps_are_drawn_by_seed_and_caption(tagger):
    caption = "a red cat on a blue mat by a green tree"
    every = set(swapped_captions(caption, tagger))
    corpus = Corpus([caption] * 40, range(40))
    first, again = (mix_candidates(corpus, {"swap": 2}, tagger=tagger, seed=1) for _ in range(2))
    assert first == again != mix_candidates(corpus, {"swap": 2}, tagger=tagger, seed=2)
    assert all(len(set(chosen)) == 2 for chosen in first)
    assert {text for chosen in first for text in chosen} == every
