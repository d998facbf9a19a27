"""Kinds of change, by captions whose kind is plain, by the tags of the shapes world, and of the swaps by rule."""

import pytest

from sdsclip_hf.benchmarks import load_benchmark
from sdsclip_hf.scoring.candidates import load_tagger, swapped_captions
from sdsclip_hf.scoring.kinds import KINDS, kind_of_change

CASES = {
    "attribute": [
        ("a red cat on a blue mat", "a blue cat on a red mat"),
        ("a red cat on a blue mat", "a red mat on a blue cat"),  # the nouns alone: the things are others
        ("an old man and a young dog", "a young man and an old dog"),
        ("a man in a red shirt", "a man in a green shirt"),
        ("a parked car in the street", "a broken car in the street"),
        ("a cat on a mat", "a black cat on a mat"),
        ("the dog is brown and the cat is white", "the dog is white and the cat is brown"),
    ],
    "relation": [
        ("a cat on a mat", "a mat on a cat"),
        ("a red cat on a blue mat", "a blue mat on a red cat"),
        ("a red cat on a mat", "a mat on a red cat"),
        ("a dog left of a cat", "a dog right of a cat"),
        ("a book on the table", "a book under the table"),
        ("a man riding a horse", "a man feeding a horse"),
        ("three dogs behind two cats", "two cats behind three dogs"),
    ],
    "object": [
        ("a cat on a mat", "a dog on a mat"),
        ("a woman holding an umbrella", "a woman holding a book"),
        ("a cat on a mat", "a cat and a black dog on a mat"),
        ("a cat on a mat with a ball", "a cat on a mat"),
    ],
    "count": [
        ("two cats on a mat", "three cats on a mat"),
        ("a cat on a mat", "two cats on a mat"),
        ("one box", "five boxes"),
        ("two cats and three dogs", "three cats and two dogs"),
        ("2 red cups and 4 blue cups", "4 red cups and 2 blue cups"),
    ],
    "other": [
        ("a red cat on a mat", "a blue dog in a car"),
        ("a man riding a brown horse near trees", "near a brown trees riding man a horse"),
        ("a red cat on a mat", "a green dog on a mat"),
    ],
}


@pytest.mark.parametrize(("kind", "true", "other"), [(kind, *pair) for kind, pairs in CASES.items() for pair in pairs])
def test_kinds_that_are_plain(kind, true, other):
    assert kind_of_change(true, other, load_tagger()) == kind


def test_the_tags_of_the_shapes_world():
    tagger, seen = load_tagger(), set()
    for item in load_benchmark("shapes:validation").items:
        assert kind_of_change(*item.captions, tagger) == item.tag.partition(" ")[0], item.captions
        seen.add(item.tag)
    assert len(seen) == 3 and set(CASES) == set(KINDS)


def test_swaps_are_of_attributes_or_relations():
    caption = "a large red ball under a small green chair"
    kinds = {text: kind_of_change(caption, text, load_tagger()) for text in swapped_captions(caption, load_tagger())}
    assert kinds.pop("a small green chair under a large red ball") == "relation"
    assert kinds and set(kinds.values()) == {"attribute"}
