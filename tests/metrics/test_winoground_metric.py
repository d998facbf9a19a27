"""The Winoground metrics, loaded as ``evaluate`` loads them, against a plain loop and known probabilities."""

import math
import time

import evaluate
import numpy as np
import pytest
import torch

import sdsclip_hf.metrics
from sdsclip_hf.metrics.common.scoring import Bootstrap
from sdsclip_hf.metrics.common.winoground import right_items, tied_items

NAME = "winoground_group_score"
KINDS = ("group", "text", "image")
RIGHT = [[0.9, 0.1], [0.2, 0.8]]


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(sdsclip_hf.metrics.path(NAME), cache_dir=str(tmp_path))


@pytest.fixture
def load(tmp_path):
    return lambda name: evaluate.load(sdsclip_hf.metrics.path(name), cache_dir=str(tmp_path))


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


@pytest.mark.parametrize("tags", [["a", None], ["a", float("nan")], ["a", ["b"]]])
def test_tags_that_are_no_text_raise_with_the_item(metric, tags):
    with pytest.raises(ValueError, match="tags of item 1 is"):
        metric.compute(scores=[RIGHT, RIGHT], tags=tags)


def test_a_single_text_for_tags_raises(metric):
    with pytest.raises(ValueError, match="single text 'ab'"):
        metric.compute(scores=[RIGHT, RIGHT], tags="ab")


def test_numbers_are_taken_as_tags(metric):
    assert set(metric.compute(scores=[RIGHT, RIGHT], tags=np.array([1, 2]))["tags"]) == {"1", "2"}


@pytest.mark.parametrize("scores", [[[None, 0.1], [0.2, 0.3]], [[math.nan, 0.1], [0.2, 0.3]]])
def test_bad_numbers_in_a_later_batch_are_named_by_their_item(metric, scores):
    metric.add_batch(scores=[RIGHT, RIGHT])
    metric.add_batch(scores=[scores])
    with pytest.raises(ValueError, match="item 2 hold NaN"):
        metric.compute()


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.1, 0.2], r"shape \(2,\)"),
        ([[0.1, 0.2]], r"shape \(1, 2\)"),
        ([[[0.1], [0.2, 0.3]]], "ragged"),
        ([[["a", 0.1], [0.2, 0.3]]], "what is no number"),
        (0.5, r"shape \(\)"),
        (None, "scores is missing"),
        ([], "scores is empty"),
    ],
)
def test_wrong_batches_raise_in_our_words(metric, scores, message):
    with pytest.raises(ValueError, match=message):
        metric.add_batch(scores=scores)


def test_inputs_of_other_names_raise_with_the_right_one(metric):
    with pytest.raises(ValueError, match="takes scores; it was given predictions"):
        metric.add_batch(predictions=[RIGHT])


def test_infinities_are_compared_as_they_are(metric):
    low_and_high = [[math.inf, -math.inf], [-math.inf, math.inf]]
    all_high = [[math.inf, math.inf], [math.inf, math.inf]]
    result = metric.compute(scores=[low_and_high, all_high])
    assert (result[NAME], result["ties"]) == (0.5, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 95}, "confidence is 95"),
        ({"confidence": 0}, "confidence is 0"),
        ({"n_resamples": -1}, "n_resamples is -1"),
        ({"n_resamples": 10.5}, "n_resamples is 10.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_outside_their_limits_raise(metric, options, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(scores=[RIGHT], **options)


def test_batches_and_single_items_add_up(metric):
    scores = random_scores(30)
    metric.add_batch(scores=scores[:20].astype(np.float32))
    metric.add_batch(scores=torch.tensor(scores[20:29]))
    metric.add(scores=scores[29])
    assert plain_scores(metric.compute(n_resamples=0)) == pytest.approx(by_loops(scores.tolist()))


def test_float32_scores_keep_their_order(metric):
    next_to_one = np.nextafter(np.float32(1), np.float32(2))
    item = np.array([[next_to_one, 1], [1, next_to_one]], dtype=np.float32)
    assert metric.compute(scores=item[None])[NAME] == 1.0


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_other_two_metrics_agree_with_the_group_metric(load, kind):
    name = f"winoground_{kind}_score"
    scores, tags = np.round(random_scores(90), 1), ["x", "y", "z"] * 30
    whole, alone = (load(each).compute(scores=scores, tags=tags) for each in (NAME, name))
    for part in ("x", "y", "z", None):
        expected, got = (result["tags"][part] if part else result for result in (whole, alone))
        assert set(got) - {"tags"} == {name, "n", "ties", "intervals"}
        assert (got[name], got["n"]) == (expected[name], expected["n"])
        assert got["intervals"] == {name: expected["intervals"][name]}


@pytest.mark.parametrize(("kind", "ties"), [("text", 1), ("image", 2), ("group", 3)])
def test_ties_are_those_of_the_comparisons_that_the_score_makes(load, kind, ties):
    caption_tie = [[0.5, 0.1], [0.5, 0.8]]
    image_ties = [[[0.5, 0.5], [0.1, 0.8]], [[0.9, 0.1], [0.7, 0.7]]]
    result = load(f"winoground_{kind}_score").compute(scores=[caption_tie, *image_ties, RIGHT])
    assert result["ties"] == ties


def test_the_three_metrics_combine(load):
    scores, tags = random_scores(40), ["x", "y"] * 20
    combined = evaluate.combine([load(f"winoground_{kind}_score") for kind in KINDS])
    result = combined.compute(scores=scores.tolist(), tags=tags)
    expected = by_loops(scores.tolist())
    assert result[NAME] == pytest.approx(expected[NAME])
    for kind in ("text", "image"):
        name = f"winoground_{kind}_score"
        assert result[f"{name}_{name}"] == pytest.approx(expected[name])
        assert result[f"{name}_tags"]["x"]["n"] == 20


def test_the_rules_take_plain_arrays():
    items = np.array([RIGHT, [[0.5, 0.5], [0.1, 0.8]]])
    right = right_items(items)
    assert {kind: row.tolist() for kind, row in right.items()} == {
        "text": [True, True],
        "image": [True, False],
        "group": [True, False],
    }
    assert tied_items(items).tolist() == [False, True]


def test_a_bootstrap_of_many_items_equals_resampling_them():
    """The binomial draw against resampling the items themselves, by the quantiles of both."""
    right = np.random.default_rng(0).random(200) < 0.3
    rng = np.random.default_rng(1)
    means = right[rng.integers(0, 200, size=(20_000, 200))].mean(axis=1)
    low, high = Bootstrap(0.9, 20_000).interval([right])
    assert (low, high) == pytest.approx(np.quantile(means, [0.05, 0.95]), abs=0.0051)


def test_a_bootstrap_of_a_mean_of_groups_resamples_each_group():
    rng = np.random.default_rng(0)
    groups = [rng.random(size) < share for size, share in ((10, 0.5), (200, 0.9), (40, 0.2))]
    means = [group[rng.integers(0, len(group), size=(20_000, len(group)))].mean(axis=1) for group in groups]
    expected = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    assert Bootstrap(n_resamples=20_000).interval(groups) == pytest.approx(expected, abs=0.005)


def test_intervals_of_a_hundred_thousand_items_take_no_time():
    right = np.random.default_rng(0).random(100_000) < 0.5
    start = time.perf_counter()
    low, high = Bootstrap().interval([right])
    assert time.perf_counter() - start < 0.5
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(100_000), rel=0.2)
