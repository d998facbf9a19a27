"""The shapes world: its splits, and that captions tell the truth, checked by reading the pictures' own pixels."""

import colorsys
import itertools
import re
from collections import Counter

import numpy as np
import pytest

from sdsclip_hf import shapes
from sdsclip_hf.benchmarks import load_benchmark
from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.data.images import picture_digest
from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.shapes.scenes import (
    COLORS,
    RELATION_TEMPLATES,
    SPLITS,
    Placement,
    Scene,
    Thing,
    captioned_images,
    combinations,
    render,
    scenes,
    swapped_pairs,
)
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

SHAPE_NAMES = ("circle", "square", "triangle", "cross", "star")
HUES = {"red": 0, "yellow": 50, "green": 120, "blue": 225, "purple": 285}  # degrees
# Of each shape by geometry: area over (longest row x longest column), skewness of the rows (a triangle has its mass at
# the bottom), and ten times the polar moment of inertia over the squared area (a disc's is 1 / 2 pi).
LOOKS = {
    "circle": (0.79, 0.0, 1.59),
    "square": (1.0, 0.0, 1.67),
    "triangle": (0.55, -0.57, 1.93),
    "cross": (0.59, 0.0, 1.86),
    "star": (0.59, 0.0, 2.08),
}
BACK = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
TAGS = ("attribute", "attribute in relation", "relation")


def nearest(value, choices: dict):
    return min(choices, key=lambda name: np.abs(np.subtract(value, choices[name])).sum())


def hue_name(pixel) -> str:
    hue = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))[0] * 360
    return min(HUES, key=lambda name: min(abs(hue - HUES[name]), 360 - abs(hue - HUES[name])))


def see(image) -> dict[str, tuple[str, float, float]]:
    """What a picture shows, from its pixels: {colour: (shape, x, y)}."""
    pixels = np.asarray(image, dtype=float)
    saturation = pixels.max(-1) - pixels.min(-1)
    names = np.array([[hue_name(pixel) if pixel.max() - pixel.min() > 20 else "" for pixel in row] for row in pixels])
    seen = {}
    for color in set(names.flat) - {""}:
        cover = np.where(names == color, saturation, 0)
        cover /= cover.max()
        area, (rows, columns) = cover.sum(), np.indices(cover.shape)
        y, x = ((cover * place).sum() / area for place in (rows, columns))
        variance, third = (((cover * (rows - y) ** power).sum() / area) for power in (2, 3))
        inertia = variance + (cover * (columns - x) ** 2).sum() / area
        look = area / (cover.sum(0).max() * cover.sum(1).max()), third / variance**1.5, 10 * inertia / area
        seen[color] = nearest(look, LOOKS), x, y
    return seen


def is_true(caption: str, seen: dict) -> bool:
    """Whether a caption holds of what [`see`] found in a picture."""
    told = re.findall(rf"({'|'.join(HUES)}) ({'|'.join(SHAPE_NAMES)})", caption)
    assert len(told) == 2, caption
    if any(color not in seen or seen[color][0] != shape for color, shape in told):
        return False
    (_, x0, y0), (_, x1, y1) = (seen[color] for color, _ in told)
    holds = {
        "left of": x1 - x0 > abs(y1 - y0),
        "right of": x0 - x1 > abs(y1 - y0),
        "above": y1 - y0 > abs(x1 - x0),
        "below": y0 - y1 > abs(x1 - x0),
    }
    return all(right for relation, right in holds.items() if relation in caption)


def combination(scene: Scene) -> tuple[frozenset, frozenset]:
    return frozenset((scene.first.shape, scene.second.shape)), frozenset((scene.first.color, scene.second.color))


def binding(scene: Scene) -> frozenset:
    return frozenset((scene.first, scene.second))


# The splits


def test_splits_part_every_combination_and_share_none():
    combinations_of = {split: {combination(scene) for scene in scenes(split)} for split in SPLITS}
    assert {split: len(found) for split, found in combinations_of.items()} == {
        "train": 64,
        "validation": 12,
        "test": 24,
    }
    for one, other in itertools.combinations(combinations_of.values(), 2):
        assert not one & other
    pairs_of_five = 5 * 4 // 2
    assert len(set.union(*combinations_of.values())) == pairs_of_five**2


@pytest.mark.parametrize("split", SPLITS)
def test_both_bindings_and_every_arrangement_of_a_combination_are_in_its_split(split):
    found = scenes(split)
    assert len(set(found)) == len(found)
    for wanted in {combination(scene) for scene in found}:
        of_combination = [scene for scene in found if combination(scene) == wanted]
        assert sorted(Counter(binding(scene) for scene in of_combination).values()) == [4, 4]
        assert len({(scene.first, scene.relation) for scene in of_combination}) == 8


def test_no_caption_is_in_two_splits():
    captions = {split: {c for row in captioned_images(split, 1) for c in row["captions"]} for split in SPLITS}
    for one, other in itertools.combinations(captions.values(), 2):
        assert not one & other


def test_partition_is_the_one_that_the_bundled_models_were_trained_on():
    assert combinations("test")[:2] == [
        (("circle", "star"), ("yellow", "purple")),
        (("circle", "triangle"), ("blue", "purple")),
    ]


@pytest.mark.parametrize(
    "make",
    [combinations, scenes, shapes.load_shapes, lambda split: list(swapped_pairs(split))],
    ids=["combinations", "scenes", "load_shapes", "swapped_pairs"],
)
def test_unknown_split_raises_with_the_choices(make):
    with pytest.raises(ValueError, match=r"'dev'.*train, validation, test"):
        make("dev")


# Pictures and captions


def test_every_caption_of_every_scene_is_true_and_distinct():
    checked = 0
    for row in captioned_images("validation", 1):
        assert len(set(row["captions"])) == len(row["captions"]) == 12
        seen = see(row["image"])
        assert all(is_true(caption, seen) for caption in row["captions"])
        assert row["scene"] in row["captions"]
        checked += 1
    assert checked == 12 * 8


def test_captions_use_every_template_in_both_directions():
    words = Counter(
        relation
        for caption in Scene(Thing("red", "circle"), Thing("blue", "star"), "above").captions()
        for relation in (*BACK, " and ")
        if relation in caption
    )
    assert words == {"above": 3, "below": 3, " and ": 6}


@pytest.mark.parametrize("relation", BACK)
def test_mirrored_scene_is_the_same_picture_told_from_the_other_thing(relation):
    scene = Scene(Thing("red", "cross"), Thing("green", "triangle"), relation)
    other = scene.mirrored()
    assert other == (scene.second, scene.first, BACK[relation])
    placement = Placement.draw(np.random.default_rng(4))
    assert render(scene, placement).tobytes() == render(other, placement).tobytes()
    assert set(scene.captions()) == set(other.captions())


def test_no_picture_is_cut_off_at_the_frame():
    rng = np.random.default_rng(0)
    for scene in scenes("validation"):
        pixels = np.asarray(render(scene, Placement.draw(rng)), dtype=int)
        assert pixels.shape == (32, 32, 3)
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert np.ptp(edge, axis=-1).max() < 100, "a thing touches the frame"


# The dataset


def test_dataset_has_one_row_a_picture_with_twelve_captions():
    dataset = shapes.load_shapes("validation", per_scene=2)
    assert dataset.column_names == ["image", "caption"]
    assert len(dataset) == 12 * 8 * 2
    assert Counter(row["caption"][0] for row in dataset.select_columns("caption")).most_common(1)[0][1] == 2
    assert dataset[0]["image"].size == (32, 32)
    seen = see(dataset[0]["image"])
    assert all(is_true(caption, seen) for caption in dataset[0]["caption"])


def test_dataset_hangs_on_the_seed_alone():
    first, again, other = (shapes.load_shapes("validation", 1, seed) for seed in (0, 0, 1))
    assert first["caption"][:] == again["caption"][:]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first["image"], again["image"], strict=True))
    assert first["caption"][:] != other["caption"][:]
    assert sorted(first["caption"][:]) == sorted(other["caption"][:])


def test_pictures_of_one_scene_differ():
    rows = list(captioned_images("validation", 3))
    assert len({row["image"].tobytes() for row in rows}) == len(rows) == 12 * 8 * 3


# Swapped pairs


@pytest.fixture(scope="module")
def items():
    return list(swapped_pairs("validation"))


def test_swapped_captions_have_the_same_words_in_another_order(items):
    for item in items:
        assert item["caption_0"] != item["caption_1"]
        assert Counter(item["caption_0"].split()) == Counter(item["caption_1"].split())


def test_each_caption_is_true_of_its_own_picture_alone(items):
    for item in items[::3]:
        seen = see(item["image_0"]), see(item["image_1"])
        for caption, image in itertools.product((0, 1), repeat=2):
            assert is_true(item[f"caption_{caption}"], seen[image]) == (caption == image), item


def test_tags_are_told_apart_by_what_is_exchanged_and_come_in_equal_numbers(items):
    numbers = Counter(item["tag"] for item in items)
    # 12 combinations x 8 scenes, told in both directions, two told scenes to an item.
    assert numbers == dict.fromkeys(TAGS, 12 * 8 * 2 // 2)
    for item in items:
        assert any(relation in item["caption_0"] for relation in BACK) == (item["tag"] != "attribute")
        things = [
            set(re.findall(r"(\w+ \w+?)(?= and| left| right| above| below|$)", item[f"caption_{k}"])) for k in (0, 1)
        ]
        assert (things[0] == things[1]) == (item["tag"] == "relation")


def test_every_relation_word_is_asked_about_equally_often(items):
    told = Counter(next(r for r in BACK if r in item["caption_0"]) for item in items if item["tag"] == "relation")
    assert set(told) == set(BACK)
    assert len(set(told.values())) == 1


def test_no_item_comes_twice_in_either_order(items):
    assert [item["id"] for item in items] == list(range(len(items)))
    # Plain captions do not tell the four relations apart, so that each pair of them has four items.
    for tag, times in zip(TAGS, (4, 1, 1), strict=True):
        pairs = Counter(frozenset((item["caption_0"], item["caption_1"])) for item in items if item["tag"] == tag)
        assert set(pairs.values()) == {times}


def test_pictures_of_an_item_differ_by_the_exchange_alone(items):
    for item in items:
        first, second = (np.asarray(item[f"image_{k}"], dtype=int) for k in (0, 1))
        assert (first != second).any()
        assert (first[0, 0] == second[0, 0]).all(), "the backgrounds differ"


def test_swapped_pairs_hang_on_the_seed_alone(items):
    again, other = list(swapped_pairs("validation", seed=0)), list(swapped_pairs("validation", seed=1))
    assert again == items
    assert [item["caption_0"] for item in other] == [item["caption_0"] for item in items]
    assert all(one["image_0"] != two["image_0"] for one, two in zip(items, other, strict=True))


def test_test_items_are_not_those_of_validation(items):
    captions = {item["caption_0"] for item in items} | {item["caption_1"] for item in items}
    assert not captions & {item["caption_0"] for item in swapped_pairs("test")}


def test_swaps_undo_themselves():
    scene = Scene(Thing("red", "circle"), Thing("blue", "star"), "left of")
    assert scene.swap_attributes() == (("blue", "circle"), ("red", "star"), "left of")
    assert scene.swap_arguments() == (("blue", "star"), ("red", "circle"), "left of")
    assert scene.swap_attributes().swap_attributes() == scene.swap_arguments().swap_arguments() == scene
    assert scene.caption(RELATION_TEMPLATES[0]) == "a red circle left of a blue star"


# Names of the bundled models


def test_names_of_bundled_models_become_folders_and_others_stay():
    assert shapes.resolve("shapes/teacher") == shapes.model_path("teacher")
    assert shapes.resolve("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"
    assert shapes.resolve("shapes/nothing") == "shapes/nothing"
    with pytest.raises(ValueError, match=r"'nothing'.*teacher, student"):
        shapes.model_path("nothing")


@pytest.mark.parametrize("kind", ["shape", "color"])
def test_zero_shot_classes_are_the_pairs_that_the_pictures_show(kind):
    benchmark = load_benchmark(f"shapes_classes:validation={kind}")
    words = SHAPE_NAMES if kind == "shape" else tuple(COLORS)
    assert len(benchmark.classes) == 10 and len(benchmark.items) == 2 * len(scenes("validation"))
    for name, captions in benchmark.classes.items():
        assert len(set(captions)) == 20  # ten pairs of the other property, bound both ways
        for caption in captions:
            assert {word for word in caption.split() if word in words} == set(name.split(" and "))
    rows = list(captioned_images("validation", per_scene=2))
    for item, row in zip(benchmark.items, rows, strict=True):
        assert set(item.tag.split(" and ")) == {word for word in row["scene"].split() if word in words}
        assert item.images[0].tobytes() == row["image"].tobytes()
    with pytest.raises(ValueError, match="not of 'size'"):
        load_benchmark("shapes_classes:validation=size")


def test_bundled_scores_are_of_the_bundled_teacher_and_pictures():
    scores = CandidateScores.load("shapes/scores")
    teacher = DiffusionTeacher.from_pretrained(shapes.model_path("teacher"), load_vae=True)
    assert scores.settings["teacher"]["fingerprint"] == fingerprint(teacher.denoiser)
    data = shapes.load_shapes("train")
    scores.check_captions(data["caption"])
    for number in range(0, len(data), 211):
        (place,) = scores.numbers_of(picture_digest(data[number]["image"]))
        item = scores.item(place)
        assert item.caption in data[number]["caption"] and item.caption in item.candidates
        if number % 2:
            continue
        again = teacher.diffusion_score(
            [data[number]["image"]], item.candidates, num_draws=8, timestep_range=(100, 990), weighting="velocity"
        )
        np.testing.assert_allclose(again[0], item.errors, rtol=1e-4)
