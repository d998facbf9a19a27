"""The metrics of a true caption against false ones, loaded as ``evaluate`` loads them, against plain loops."""

import json
import math

import evaluate
import numpy as np
import pytest
import torch

import sdsclip_hf.metrics
from sdsclip_hf.metrics.aro_relation.symmetric_relations import SYMMETRIC
from sdsclip_hf.metrics.common.choices import right_items, tied_items

PAIRS = ("aro_relation", "aro_attribution", "sugarcrepe_accuracy")
GROUPS = {"aro_relation": "relations", "aro_attribution": "attributes", "sugarcrepe_accuracy": "subsets"}


@pytest.fixture
def load(tmp_path):
    return lambda name: evaluate.load(sdsclip_hf.metrics.path(name), cache_dir=str(tmp_path))


def random_pairs(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores of few distinct values, so that some are equal."""
    true, false = np.random.default_rng(seed).integers(0, 8, size=(2, count)) / 8
    return {"true_scores": true + 0.125, "false_scores": false}


def accuracy_by_loop(inputs: dict, labels: list, of: set | None = None) -> dict[str, tuple[int, int]]:
    """label -> (right items, items), one item at a time."""
    found = {}
    for true, false, label in zip(inputs["true_scores"], inputs["false_scores"], labels, strict=True):
        if of is None or label in of:
            right, count = found.get(label, (0, 0))
            found[label] = (right + (1 if true > false else 0), count + 1)
    return found


def mean_of_groups(found: dict[str, tuple[int, int]]) -> float:
    return sum(right / count for right, count in found.values()) / len(found)


def share_of_items(found: dict[str, tuple[int, int]]) -> float:
    return sum(right for right, _ in found.values()) / sum(count for _, count in found.values())


def some_labels(names: list[str], count: int) -> list[str]:
    """Names of very different frequency, so that the mean over groups is not the mean over items."""
    weights = 1 / np.arange(1, len(names) + 1) ** 2
    return np.random.default_rng(3).choice(names, size=count, p=weights / weights.sum()).tolist()


# ---- aro_relation


def test_relation_is_the_mean_over_the_relations_that_are_not_symmetric(load):
    inputs = random_pairs(400)
    labels = some_labels(["on", "next to", "behind", "holding", "near", "wearing"], 400)
    result = load("aro_relation").compute(**inputs, relations=labels)
    kept = accuracy_by_loop(inputs, labels, of={"on", "behind", "holding", "wearing"})
    assert result["aro_relation"] == pytest.approx(mean_of_groups(kept))
    assert result["aro_relation_micro"] == pytest.approx(share_of_items(kept))
    assert result["aro_relation_micro_all"] == pytest.approx(share_of_items(accuracy_by_loop(inputs, labels)))
    assert result["aro_relation"] != pytest.approx(result["aro_relation_micro"])
    assert result["n"] == sum(count for _, count in kept.values())
    assert result["n_dropped"] == labels.count("next to") + labels.count("near") > 0
    assert result["relations"] == {
        name: {"accuracy": pytest.approx(right / count), "n": count} for name, (right, count) in kept.items()
    }
    assert set(result["intervals"]) == {"aro_relation", "aro_relation_micro", "aro_relation_micro_all"}
    for name, (low, high) in result["intervals"].items():
        assert low < result[name] < high


def test_relation_without_relations_has_no_published_score(load):
    inputs = random_pairs(50)
    result = load("aro_relation").compute(**inputs)
    assert set(result) == {"aro_relation_micro", "n", "ties", "counts", "intervals"}
    assert result["aro_relation_micro"] == pytest.approx(np.mean(inputs["true_scores"] > inputs["false_scores"]))
    assert result["n"] == 50


def test_a_mean_with_symmetric_relations_goes_by_another_name(load):
    inputs, labels = random_pairs(50), some_labels(["on", "near", "behind"], 50)
    result = load("aro_relation").compute(**inputs, relations=labels, drop_symmetric=False)
    assert "aro_relation" not in result
    assert result["aro_relation_all"] == pytest.approx(mean_of_groups(accuracy_by_loop(inputs, labels)))
    assert (result["n"], result["n_dropped"]) == (50, 0)


def test_ties_of_dropped_relations_do_not_count(load):
    result = load("aro_relation").compute(true_scores=[1, 1], false_scores=[1, 1], relations=["on", "near"])
    assert result["ties"] == 1


def test_none_but_symmetric_relations_raise(load):
    with pytest.raises(
        ValueError, match=r"all 2 items have a symmetric relation, such as 'near'.*drop_symmetric=False"
    ):
        load("aro_relation").compute(true_scores=[1, 2], false_scores=[0, 0], relations=["near", "next to"])


def test_symmetric_relations_are_those_of_the_authors_notebook():
    assert len(SYMMETRIC) == len(set(SYMMETRIC)) == 157
    assert (SYMMETRIC[0], SYMMETRIC[48], SYMMETRIC[-9:]) == (
        "adjusting",
        "holding onto",
        ("wrapped in", "by", "of", "near", "next to", "with", "beside", "on the side of", "around"),
    )
    assert not {"on", "in", "behind", "to the left of", "holding", "wearing", "eating"} & set(SYMMETRIC)


# ---- aro_attribution


def test_attribution_is_the_mean_over_frequent_ordered_pairs(load):
    inputs = random_pairs(400)
    names = ["red_round", "round_red", "open_white", "old_wooden", "tall_green"]
    labels = some_labels(names, 400)
    result = load("aro_attribution").compute(**inputs, attributes=[label.split("_") for label in labels])
    kept = {name: found for name, found in accuracy_by_loop(inputs, labels).items() if found[1] >= 25}
    assert set(kept) >= {"red_round", "round_red"} and set(kept) != set(names)
    assert result["aro_attribution"] == pytest.approx(mean_of_groups(kept))
    assert result["aro_attribution_micro"] == pytest.approx(share_of_items(accuracy_by_loop(inputs, labels)))
    assert {name: entry["n"] for name, entry in result["attributes"].items()} == {
        name: count for name, (_, count) in kept.items()
    }
    assert (result["n"], result["n_kept"], result["min_count"]) == (400, sum(n for _, n in kept.values()), 25)
    assert load("aro_attribution").compute(**inputs, attributes=labels) == result


@pytest.mark.parametrize(("count", "kept"), [(25, True), (24, False)])
def test_a_pair_counts_from_min_count_on(load, count, kept):
    attributes = [("red", "round")] * count + [("old", "wooden")] * 30
    scores = {"true_scores": np.ones(len(attributes)), "false_scores": np.zeros(len(attributes))}
    result = load("aro_attribution").compute(**scores, attributes=attributes)
    assert ("red_round" in result["attributes"]) == kept


def test_no_frequent_pair_raises_with_the_most_frequent(load):
    with pytest.raises(ValueError, match=r"min_count=25 cases.*'red_round', has 2.*Lower min_count"):
        load("aro_attribution").compute(
            true_scores=[1, 1, 1], false_scores=[0, 0, 0], attributes=["red_round", "red_round", "old_wooden"]
        )


@pytest.mark.parametrize("bad", [("red",), ("red", None), ("a", "b", "c")])
def test_attributes_that_are_no_pair_raise_with_the_item(load, bad):
    with pytest.raises(ValueError, match="attributes of item 1 are"):
        load("aro_attribution").compute(true_scores=[1, 1], false_scores=[0, 0], attributes=[("red", "round"), bad])


# ---- aro_order


@pytest.mark.parametrize("others", [1, 4])
def test_order_counts_items_whose_true_caption_beats_all(load, others):
    rng = np.random.default_rng(0)
    true, false = rng.integers(0, 9, 300) / 8 + 0.25, rng.integers(0, 9, (300, others)) / 8
    result = load("aro_order").compute(true_scores=true, false_scores=false)
    right = sum(all(score > other for other in row) for score, row in zip(true.tolist(), false.tolist(), strict=True))
    tied = sum(score == max(row) for score, row in zip(true.tolist(), false.tolist(), strict=True))
    assert result["aro_order"] == pytest.approx(right / 300)
    assert (result["n"], result["ties"]) == (300, tied)
    assert tied > 0
    for place, share in enumerate(result["perturbations"]):
        wins = sum(score > row[place] for score, row in zip(true.tolist(), false.tolist(), strict=True))
        assert share == pytest.approx(wins / 300)
    assert len(result["perturbations"]) == others


def test_random_scores_are_right_as_often_as_one_of_five(load):
    scores = np.random.default_rng(0).normal(size=(20_000, 5))
    result = load("aro_order").compute(true_scores=scores[:, 0], false_scores=scores[:, 1:])
    assert result["aro_order"] == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / 20_000))
    assert result["perturbations"] == pytest.approx([0.5] * 4, abs=4 * math.sqrt(0.25 / 20_000))


def test_a_tie_in_the_first_place_is_wrong_where_arg_max_would_take_it(load):
    true, false = [0.5], [[0.5, 0.1, 0.2, 0.3]]
    assert np.argmax([*true, *false[0]]) == 0
    result = load("aro_order").compute(true_scores=true, false_scores=false)
    assert (result["aro_order"], result["ties"]) == (0.0, 1)


def test_a_tie_with_a_false_caption_that_is_not_the_best_is_a_plain_loss(load):
    result = load("aro_order").compute(true_scores=[0.5], false_scores=[[0.5, 0.9]])
    assert (result["aro_order"], result["ties"]) == (0.0, 0)


# ---- sugarcrepe_accuracy


def test_sugarcrepe_is_the_mean_over_subsets(load):
    inputs, labels = random_pairs(300), some_labels(["add_obj", "swap_obj", "replace_rel"], 300)
    result = load("sugarcrepe_accuracy").compute(**inputs, subsets=labels)
    found = accuracy_by_loop(inputs, labels)
    assert result["sugarcrepe_accuracy"] == pytest.approx(mean_of_groups(found))
    assert result["sugarcrepe_accuracy_micro"] == pytest.approx(share_of_items(found))
    assert (result["n"], sum(entry["ties"] for entry in result["subsets"].values())) == (300, result["ties"])
    assert result["ties"] == sum(inputs["true_scores"] == inputs["false_scores"]) > 0
    for name, entry in result["subsets"].items():
        rows = [row for row in range(300) if labels[row] == name]
        alone = load("sugarcrepe_accuracy").compute(**{key: values[rows] for key, values in inputs.items()})
        assert (entry["accuracy"], entry["n"], entry["ties"]) == (
            pytest.approx(found[name][0] / found[name][1]),
            found[name][1],
            alone["ties"],
        )
        assert entry["interval"] == alone["intervals"]["sugarcrepe_accuracy_micro"]


def test_sugarcrepe_without_subsets_has_no_mean_over_them(load):
    result = load("sugarcrepe_accuracy").compute(**random_pairs(20), n_resamples=0)
    assert set(result) == {"sugarcrepe_accuracy_micro", "n", "ties", "counts"}


# ---- all of them


@pytest.mark.parametrize("name", PAIRS)
def test_a_tie_is_wrong_and_is_counted(load, name):
    result = load(name).compute(true_scores=[0.5, 0.6], false_scores=[0.5, 0.5])
    assert (result[f"{name}_micro"], result["ties"]) == (0.5, 1)


@pytest.mark.parametrize("name", PAIRS)
def test_lists_columns_tensors_and_batches_give_the_same_scores(load, name):
    inputs = {key: values.astype(np.float32) for key, values in random_pairs(30).items()}
    labels = {GROUPS[name]: some_labels(["on", "behind"], 30)} | ({"min_count": 1} if "attribution" in name else {})
    metric = load(name)
    expected = metric.compute(**inputs, **labels)
    assert metric.compute(**{key: values.tolist() for key, values in inputs.items()}, **labels) == expected
    assert metric.compute(**{key: torch.tensor(values) for key, values in inputs.items()}, **labels) == expected
    for rows in (slice(0, 20), slice(20, 29)):
        metric.add_batch(true_scores=inputs["true_scores"][rows], false_scores=inputs["false_scores"][rows, None])
    metric.add(true_scores=inputs["true_scores"][29], false_scores=inputs["false_scores"][29])
    assert metric.compute(**labels) == expected


@pytest.mark.parametrize("name", [*PAIRS, "aro_order"])
def test_results_are_plain_numbers_that_json_keeps(load, name):
    labels = {GROUPS[name]: ["a", "b"] * 15} if name in GROUPS else {}
    options = {"min_count": 1} if name == "aro_attribution" else {}
    result = load(name).compute(**random_pairs(30), **labels, **options)
    assert json.loads(json.dumps(result)) == tuples_as_lists(result)
    assert {type(value) for value in leaves(result)} == {int, float}


def tuples_as_lists(value):
    if isinstance(value, dict):
        return {key: tuples_as_lists(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def leaves(value) -> list:
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    return [leaf for inner in value for leaf in leaves(inner)] if isinstance(value, list | tuple) else [value]


@pytest.mark.parametrize("name", [*PAIRS, "aro_order"])
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"true_scores": [1, 2, 3], "false_scores": [1, 2]}, "2 false_scores for 3 true_scores"),
        ({"true_scores": [[1], [2]], "false_scores": [1, 2]}, r"true_scores has shape \(2, 1\)"),
        ({"true_scores": [1, 2], "false_scores": [[[1]], [[2]]]}, r"false_scores has shape \(2, 1, 1\)"),
        ({"true_scores": [1, 2], "false_scores": [[], []]}, r"false_scores has shape \(2, 0\)"),
        ({"true_scores": [1, 2], "false_scores": [[1, 2], [3]]}, "false_scores is ragged"),
        ({"true_scores": [1, "x"], "false_scores": [1, 2]}, "true_scores is ragged or holds what is no number"),
        ({"true_scores": [], "false_scores": []}, "true_scores is empty"),
        ({"true_scores": [1, 2]}, "false_scores is missing"),
        ({"true_scores": [1, math.nan], "false_scores": [1, 2]}, r"true_scores of item 1 hold NaN \(1 such"),
        ({"true_scores": [1, 2], "false_scores": [[None], [2]]}, "false_scores of item 0 hold NaN"),
    ],
)
def test_bad_scores_raise_in_our_words(load, name, inputs, message):
    with pytest.raises(ValueError, match=message):
        load(name).compute(**inputs)


@pytest.mark.parametrize("name", PAIRS)
def test_more_than_one_false_caption_raises_where_there_is_one(load, name):
    with pytest.raises(ValueError, match=r"false_scores has shape \(2, 3\); there is one false caption"):
        load(name).compute(true_scores=[1, 2], false_scores=[[1, 2, 3], [1, 2, 3]])


def test_batches_of_another_width_raise(load):
    metric = load("aro_order")
    metric.add_batch(true_scores=[1], false_scores=[[1, 2]])
    metric.add_batch(true_scores=[1], false_scores=[[1, 2, 3]])
    with pytest.raises(ValueError, match="false_scores is ragged"):
        metric.compute()


@pytest.mark.parametrize("name", PAIRS)
def test_groups_of_another_number_raise_with_both_numbers(load, name):
    with pytest.raises(ValueError, match=f"3 {GROUPS[name]} for 2 items"):
        load(name).compute(true_scores=[1, 2], false_scores=[0, 0], **{GROUPS[name]: ["a", "b", "c"]})


def test_a_metric_computes_again_after_an_error(load):
    metric = load("sugarcrepe_accuracy")
    with pytest.raises(ValueError, match="1 subsets"):
        metric.compute(true_scores=[1, 2], false_scores=[0, 0], subsets=["a"])
    assert metric.compute(true_scores=[1, 0], false_scores=[0, 0])["n"] == 2


def test_metrics_with_the_same_inputs_combine(load):
    inputs = random_pairs(40)
    combined = evaluate.combine([load("aro_order"), load("sugarcrepe_accuracy")])
    combined.add_batch(**{key: values[:30] for key, values in inputs.items()})
    combined.add_batch(**{key: values[30:] for key, values in inputs.items()})
    result = combined.compute()
    assert result["aro_order"] == result["sugarcrepe_accuracy_micro"]
    assert result["aro_order_n"] == 40


def test_the_rules_take_plain_arrays():
    true, false = np.array([0.5, 0.5, 0.5]), np.array([[0.1, 0.4], [0.5, 0.1], [0.5, 0.9]])
    assert right_items(true, false).tolist() == [True, False, False]
    assert tied_items(true, false).tolist() == [False, True, False]
