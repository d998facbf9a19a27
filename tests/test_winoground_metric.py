"""The Winoground metric, loaded as ``evaluate`` loads it, against a plain loop and known probabilities."""

import math

import evaluate
import numpy as np
import pytest

import sdsclip_hf.metrics

NAME = "winoground_group_score"
KINDS = ("group", "text", "image")
RIGHT = [[0.9, 0.1], [0.2, 0.8]]


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(sdsclip_hf.metrics.path(NAME), cache_dir=str(tmp_path))


def random_scores(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 2, 2))


def by_loops(items) -> dict[str, float]:
    """Thrush et al. 2022, section 3.2, an item at a time; s[c][i] scores caption c with image i."""
    counts = dict.fromkeys(KINDS, 0)
    for s in items:
        text = all(s[image][image] > s[1 - image][image] for image in (0, 1))
        image = all(s[caption][caption] > s[caption][1 - caption] for caption in (0, 1))
        counts["text"] += text
        counts["image"] += image
        counts["group"] += text and image
    return {f"winoground_{kind}_score": count / len(items) for kind, count in counts.items()}


def plain_scores(result: dict) -> dict[str, float]:
    return {name: result[name] for name in (f"winoground_{kind}_score" for kind in KINDS)}


def test_package_lists_the_metric():
    assert NAME in sdsclip_hf.metrics.names()
    with pytest.raises(ValueError, match=rf"'accuracy'.*{NAME}"):
        sdsclip_hf.metrics.path("accuracy")


@pytest.mark.parametrize("ties", [False, True])
def test_scores_equal_a_plain_loop(metric, ties):
    scores = random_scores(120)
    scores = np.round(scores) if ties else scores
    result = metric.compute(scores=scores.tolist(), n_resamples=0)
    assert plain_scores(result) == pytest.approx(by_loops(scores.tolist()))
    assert result["n"] == 120
    assert "intervals" not in result


def test_arrays_and_lists_give_the_same_scores(metric):
    scores = random_scores(30)
    assert metric.compute(scores=scores) == metric.compute(scores=scores.tolist())


@pytest.mark.parametrize(
    ("item", "right"),
    [
        (RIGHT, {"group", "text", "image"}),
        ([[0.9, 0.1], [0.8, 0.2]], {"text"}),  # for each image the right caption wins; caption 1 prefers image 0
        ([[0.9, 0.8], [0.1, 0.2]], {"image"}),
        ([[0.1, 0.9], [0.9, 0.1]], set()),
    ],
)
def test_captions_are_rows_and_images_are_columns(metric, item, right):
    result = metric.compute(scores=[item], n_resamples=0)
    assert {kind for kind in KINDS if result[f"winoground_{kind}_score"] == 1.0} == right


def test_random_scores_approach_a_quarter_a_quarter_and_a_sixth(metric):
    count = 20_000
    result = metric.compute(scores=random_scores(count), n_resamples=0)
    for kind, chance in (("text", 1 / 4), ("image", 1 / 4), ("group", 1 / 6)):
        four_errors = 4 * math.sqrt(chance * (1 - chance) / count)
        assert result[f"winoground_{kind}_score"] == pytest.approx(chance, abs=four_errors)


def test_a_tie_is_wrong_and_is_counted(metric):
    caption_tie = [[0.5, 0.1], [0.5, 0.8]]
    image_tie = [[0.5, 0.5], [0.1, 0.8]]
    all_equal = [[0.0, 0.0], [0.0, 0.0]]
    result = metric.compute(scores=[caption_tie, image_tie, all_equal, RIGHT], n_resamples=0)
    assert result["ties"] == 3
    # image_tie still tells captions apart, and caption_tie images.
    assert plain_scores(result) == {
        "winoground_group_score": 0.25,
        "winoground_text_score": 0.5,
        "winoground_image_score": 0.5,
    }


def test_equal_scores_on_a_diagonal_are_no_tie(metric):
    assert metric.compute(scores=[[[0.5, 0.1], [0.1, 0.5]]], n_resamples=0)["ties"] == 0


def test_each_tag_has_the_scores_of_its_own_items(metric):
    scores = random_scores(60)
    tags = [("Object", "Relation", "Both")[number % 7 % 3] for number in range(60)]
    result = metric.compute(scores=scores.tolist(), tags=tags)
    assert set(result["tags"]) == set(tags)
    assert plain_scores(result) == pytest.approx(by_loops(scores.tolist()))
    for tag, of_tag in result["tags"].items():
        items = [scores[number].tolist() for number in range(60) if tags[number] == tag]
        assert of_tag["n"] == len(items)
        assert plain_scores(of_tag) == pytest.approx(by_loops(items))
        assert set(of_tag["intervals"]) == set(plain_scores(result))


@pytest.mark.parametrize(("confidence", "normal_quantile"), [(0.95, 1.959964), (0.8, 1.281552)])
def test_intervals_are_close_to_the_normal_approximation_for_many_items(metric, confidence, normal_quantile):
    count = 3000
    result = metric.compute(scores=random_scores(count), confidence=confidence, n_resamples=2000)
    for name, (low, high) in result["intervals"].items():
        share = result[name]
        half_width = normal_quantile * math.sqrt(share * (1 - share) / count)
        assert low < share < high
        assert low == pytest.approx(share - half_width, abs=0.15 * half_width)
        assert high == pytest.approx(share + half_width, abs=0.15 * half_width)


def test_intervals_of_unanimous_items_are_a_point(metric):
    assert metric.compute(scores=[RIGHT] * 5)["intervals"][NAME] == (1.0, 1.0)


def test_intervals_hang_on_the_seed_alone(metric):
    scores = random_scores(50).tolist()
    first, again, other = (metric.compute(scores=scores, seed=seed, n_resamples=50)["intervals"] for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("confidence", [0.5, 0.99])
def test_wider_confidence_gives_wider_intervals(metric, confidence):
    scores = random_scores(50).tolist()
    low, high = metric.compute(scores=scores, confidence=confidence)["intervals"][NAME]
    default_low, default_high = metric.compute(scores=scores)["intervals"][NAME]
    assert (high - low > default_high - default_low) == (confidence > 0.95)


def test_nan_raises_and_names_the_item(metric):
    with pytest.raises(ValueError, match=r"item 1 hold NaN \(1 such items\)"):
        metric.compute(scores=[RIGHT, [[0.1, math.nan], [0.2, 0.3]]])


def test_wrong_shape_raises_with_the_shape(metric):
    with pytest.raises(ValueError, match=r"\(3, 2, 3\).*2 captions, 2 images"):
        metric.compute(scores=np.zeros((3, 2, 3)).tolist())


def test_ragged_scores_raise(metric):
    with pytest.raises(ValueError, match="ragged"):
        metric.compute(scores=[RIGHT, [[0.1, 0.2], [0.3]]])


def test_no_items_raise(metric):
    with pytest.raises(ValueError, match="scores is empty"):
        metric.compute(scores=[])


def test_tags_of_another_number_raise_with_both_numbers(metric):
    with pytest.raises(ValueError, match="3 tags for 2 items"):
        metric.compute(scores=[RIGHT, RIGHT], tags=["a", "b", "c"])
