"""The metrics of any pairs, of any choices and of SugarCrepe++, against plain loops and against one another."""

import evaluate
import numpy as np
import pytest

import sdsclip_hf.metrics


@pytest.fixture
def load(tmp_path):
    return lambda name: evaluate.load(sdsclip_hf.metrics.path(name), cache_dir=str(tmp_path))


def random_scores(*shape: int) -> np.ndarray:
    """Of few distinct values, so that some are equal."""
    return np.random.default_rng(1).integers(0, 5, shape) / 4


def test_pairs_are_winoground_s_under_other_names(load):
    scores, tags = random_scores(200, 2, 2), ["swap", "add"] * 100
    ours = load("pairs_score").compute(scores=scores, tags=tags)
    theirs = load("winoground_group_score").compute(scores=scores, tags=tags)
    for part in ("text", "image", "group"):
        old, new = f"winoground_{part}_score", f"{part}_score"
        assert 0 < ours[new] == theirs[old] and ours["intervals"][new] == theirs["intervals"][old]
        assert [ours["tags"][tag][new] for tag in tags] == [theirs["tags"][tag][old] for tag in tags]
    assert (ours["n"], ours["ties"]) == (200, theirs["ties"])


def test_choices_of_different_sizes(load):
    """Items of fewer candidates are filled up with what never wins."""
    scores, groups = random_scores(300, 4), np.random.default_rng(2).choice(["a", "b", "c"], 300, p=[0.7, 0.2, 0.1])
    counts = np.random.default_rng(3).integers(1, 4, 300)
    right = [all(row[0] > one for one in row[1 : 1 + count]) for row, count in zip(scores, counts, strict=True)]
    false = scores[:, 1:].copy()
    for row, count in zip(false, counts, strict=True):
        row[count:] = -np.inf
    inputs = {"true_scores": scores[:, 0], "false_scores": false}
    found = load("choices_accuracy").compute(**inputs, groups=groups)
    by_group = {
        name: np.mean([one for one, group in zip(right, groups, strict=True) if group == name]) for name in "abc"
    }
    assert found["choices_accuracy"] == pytest.approx(np.mean(list(by_group.values())))
    assert found["choices_accuracy_micro"] == pytest.approx(np.mean(right)) != pytest.approx(found["choices_accuracy"])
    assert {name: one["accuracy"] for name, one in found["groups"].items()} == pytest.approx(by_group)


def test_sugarcrepe_pp_by_a_plain_loop(load):
    images, captions = random_scores(300, 3), random_scores(300, 3)[::-1]
    subsets = np.random.default_rng(2).choice(["swap_object", "replace_object"], 300, p=[0.8, 0.2]).tolist()
    found = load("sugarcrepe_pp").compute(image_scores=images, caption_scores=captions, subsets=subsets)
    right = {"itt": {}, "tot": {}}
    ties = 0
    for (p1, p2, n), (p1_p2, p1_n, p2_n), subset in zip(images, captions, subsets, strict=True):
        right["itt"].setdefault(subset, []).append(p1 > n and p2 > n)
        right["tot"].setdefault(subset, []).append(p1_p2 > p1_n and p1_p2 > p2_n)
        ties += n in (p1, p2) or p1_p2 in (p1_n, p2_n)
    for score, of in right.items():
        assert found[score] == pytest.approx(np.mean([np.mean(one) for one in of.values()]))
        assert found[f"{score}_micro"] == pytest.approx(np.mean([one for group in of.values() for one in group]))
        assert {name: one[score] for name, one in found["subsets"].items()} == pytest.approx(
            {name: np.mean(one) for name, one in of.items()}
        )
        low, high = found["intervals"][score]
        assert low < found[score] < high
    assert (found["n"], found["ties"]) == (300, ties)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_scores": [[1, 2]]}, r"image_scores has shape \(1, 2\); it must be \(items, 3\)"),
        ({"caption_scores": [[[1, 2, 3]] * 3]}, r"caption_scores has shape \(1, 3, 3\); it must be \(items, 3\)"),
        ({"caption_scores": [[1, 2, 3]] * 2}, "2 caption_scores for 1 image_scores; give both for each item"),
        ({"image_scores": [[1, 2, float("nan")]]}, "image_scores of item 0 hold NaN"),
        ({"subsets": ["a", "b"]}, "2 subsets for 1 items"),
        ({"image_scores": []}, "image_scores is empty"),
    ],
)
def test_what_sugarcrepe_pp_refuses(change, message, load):
    with pytest.raises(ValueError, match=message):
        load("sugarcrepe_pp").compute(**({"image_scores": [[3, 2, 1]], "caption_scores": [[3, 2, 1]]} | change))
