"""Which questions are right, and the scores made of them: against plain loops and against the `evaluate` modules."""

import math

import evaluate
import numpy as np
import pytest

from sdsclip_hf.benchmarks.items import Benchmark, Item
from sdsclip_hf.evaluation.outcomes import outcomes
from sdsclip_hf.evaluation.results import score_rows
from sdsclip_hf.metrics import path
from sdsclip_hf.metrics.aro_relation.symmetric_relations import SYMMETRIC


def benchmark(kind: str, tags, labels=None) -> Benchmark:
    labels = labels or [()] * len(tags)
    items = [
        Item(f"i{number}", (), (), tag, label) for number, (tag, label) in enumerate(zip(tags, labels, strict=True))
    ]
    return Benchmark(f"the {kind}", kind, items, {})


def rows_of(kind: str, tags, answers, labels=None) -> dict:
    """(subset, score) -> row."""
    rows = score_rows(outcomes(benchmark(kind, tags, labels), answers))
    found = {(row["subset"], row["score"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def draw(rng, shape, tied: bool) -> np.ndarray:
    """Scores in float32; with ``tied`` of few different values."""
    scores = rng.integers(0, 3, shape) / 4 if tied else rng.random(shape)
    return scores.astype(np.float32)


def metric(name: str, **inputs) -> dict:
    return evaluate.load(path(name), keep_in_memory=True).compute(**inputs)


def assert_same(row: dict, value: float, n: int, ties: int, interval) -> None:
    assert (row["value"], row["n"], row["ties"]) == (pytest.approx(value, abs=1e-12), n, ties)
    assert row["interval"] == pytest.approx(interval, abs=1e-12)


# Winoground


def winoground_verdict(matrix) -> dict:
    """By the paper's formulas, number by number: part -> (right, tied)."""
    (c0_i0, c0_i1), (c1_i0, c1_i1) = matrix.tolist()
    text, image = c0_i0 > c1_i0 and c1_i1 > c0_i1, c0_i0 > c0_i1 and c1_i1 > c1_i0
    text_tied, image_tied = c0_i0 == c1_i0 or c1_i1 == c0_i1, c0_i0 == c0_i1 or c1_i1 == c1_i0
    return {
        "text": (text, text_tied),
        "image": (image, image_tied),
        "group": (text and image, text_tied or image_tied),
    }


@pytest.fixture(params=[False, True], ids=["no ties", "ties"])
def winoground(request):
    rng = np.random.default_rng(1)
    tags = rng.choice(["Object", "Relation", "Both"], 90).tolist()
    labels = []
    for number in range(90):
        own = [("num_main_preds", str(rng.integers(1, 3)))]
        labels.append(tuple(own + [("secondary_tag", "Series")] * (number % 3 == 0)))
    return tags, labels, draw(rng, (90, 2, 2), request.param)


def test_winoground_equals_a_plain_loop_on_each_subset(winoground):
    tags, labels, scores = winoground
    found = rows_of("winoground", tags, list(scores), labels)
    subsets = {"all": lambda tag, label: True}
    subsets |= {name: lambda tag, label, name=name: tag == name for name in set(tags)}
    for name, value in {pair for own in labels for pair in own}:
        subsets[f"{name} {value}"] = lambda tag, label, pair=(name, value): pair in label
    assert {subset for subset, _ in found} == set(subsets)
    for subset, belongs in subsets.items():
        for part in ("text", "image", "group"):
            verdicts = [
                winoground_verdict(matrix)[part]
                for tag, label, matrix in zip(tags, labels, scores, strict=True)
                if belongs(tag, label)
            ]
            row = found[subset, part]
            assert row["value"] == pytest.approx(sum(right for right, _ in verdicts) / len(verdicts))
            assert (row["n"], row["ties"]) == (len(verdicts), sum(tied for _, tied in verdicts))
            assert row["groups"] is None
            assert row["headline"] == ("secondary" not in subset)


def test_winoground_equals_the_metrics(winoground):
    tags, labels, scores = winoground
    found = rows_of("winoground", tags, list(scores), labels)
    for part in ("text", "image", "group"):
        name = f"winoground_{part}_score"
        result = metric(name, scores=scores, tags=tags)
        for subset, one in {"all": result, **result["tags"]}.items():
            assert_same(found[subset, part], one[name], one["n"], one["ties"], one["intervals"][name])


@pytest.mark.parametrize("part, chance", [("text", 1 / 4), ("image", 1 / 4), ("group", 1 / 6)])
def test_random_scores_give_the_published_chance_levels(part, chance):
    rng = np.random.default_rng(0)
    row = rows_of("winoground", [""] * 20_000, list(rng.random((20_000, 2, 2))))["all", part]
    assert row["value"] == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 20_000))
    assert row["ties"] == 0


# One image, a true caption and false ones


def choice_verdicts(answers) -> list[tuple[bool, bool]]:
    """(right, tied) of each item: the true caption stands in row 0."""
    found = []
    for matrix in answers:
        true, *false = (row[0] for row in matrix.tolist())
        found.append((all(true > other for other in false), true == max(false)))
    return found


def share(verdicts) -> float:
    return sum(right for right, _ in verdicts) / len(verdicts)


def count_ties(verdicts) -> int:
    return sum(tied for _, tied in verdicts)


def split(answers):
    return {"true_scores": [a[0, 0] for a in answers], "false_scores": [a[1:, 0] for a in answers]}


@pytest.fixture(params=[False, True], ids=["no ties", "ties"])
def tied(request):
    return request.param


def test_relation_is_the_mean_over_relations_without_the_symmetric_ones(tied):
    rng = np.random.default_rng(2)
    names = ["on", "behind", "to the left of", "holding", *SYMMETRIC[:2]]
    tags = rng.choice(names, 150, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1]).tolist()
    answers = list(draw(rng, (150, 2, 1), tied))
    found = rows_of("aro_relation", tags, answers)
    verdicts = choice_verdicts(answers)
    by_tag = {name: [v for v, tag in zip(verdicts, tags, strict=True) if tag == name] for name in names}
    kept = [name for name in names if name not in SYMMETRIC]
    macro, micro = found["all", "macro accuracy"], found["all", "micro accuracy"]
    assert macro["value"] == pytest.approx(sum(share(by_tag[name]) for name in kept) / len(kept))
    assert macro["groups"] == len(kept)
    assert macro["n"] == sum(len(by_tag[name]) for name in kept)
    assert macro["ties"] == sum(count_ties(by_tag[name]) for name in kept)
    verdicts_kept = [verdict for name in kept for verdict in by_tag[name]]
    assert (micro["value"], micro["n"]) == (pytest.approx(share(verdicts_kept)), len(verdicts_kept))
    over_all = found["all", "micro accuracy with symmetric"]
    assert (over_all["value"], over_all["n"]) == (pytest.approx(share(verdicts)), 150)
    for name in names:
        row = found[name, "accuracy"]
        assert (row["value"], row["n"], row["headline"]) == (share(by_tag[name]), len(by_tag[name]), False)
    result = metric("aro_relation", relations=tags, **split(answers))
    assert_same(macro, result["aro_relation"], result["n"], result["ties"], result["intervals"]["aro_relation"])
    interval = result["intervals"]["aro_relation_micro_all"]
    assert_same(over_all, result["aro_relation_micro_all"], 150, count_ties(verdicts), interval)
    interval = result["intervals"]["aro_relation_micro"]
    assert_same(micro, result["aro_relation_micro"], result["n"], result["ties"], interval)


def test_attribution_is_the_mean_over_pairs_of_at_least_25_cases(tied):
    rng = np.random.default_rng(3)
    counts = {"red_round": 25, "old_white": 24, "big_small": 40, "wet_dry": 1}
    tags = [tag for tag, count in counts.items() for _ in range(count)]
    rng.shuffle(tags)
    answers = list(draw(rng, (90, 2, 1), tied))
    found = rows_of("aro_attribution", tags, answers)
    verdicts = choice_verdicts(answers)
    by_tag = {name: [v for v, tag in zip(verdicts, tags, strict=True) if tag == name] for name in counts}
    macro = found["all", "macro accuracy"]
    assert macro["value"] == pytest.approx((share(by_tag["red_round"]) + share(by_tag["big_small"])) / 2)
    assert (macro["n"], macro["groups"]) == (65, 2)
    assert macro["ties"] == count_ties(by_tag["red_round"]) + count_ties(by_tag["big_small"])
    result = metric("aro_attribution", attributes=tags, **split(answers))
    assert macro["value"] == pytest.approx(result["aro_attribution"])
    assert macro["interval"] == pytest.approx(result["intervals"]["aro_attribution"])
    micro = result["aro_attribution_micro"], 90, result["ties"], result["intervals"]["aro_attribution_micro"]
    assert_same(found["all", "micro accuracy"], *micro)


def test_order_needs_the_true_caption_above_all_four(tied):
    rng = np.random.default_rng(4)
    answers = list(draw(rng, (80, 5, 1), tied))
    found = rows_of("aro_order", [""] * 80, answers)
    verdicts = choice_verdicts(answers)
    result = metric("aro_order", **split(answers))
    assert list(found) == [("all", "accuracy")]
    assert found["all", "accuracy"]["value"] == pytest.approx(share(verdicts))
    assert_same(
        found["all", "accuracy"], result["aro_order"], 80, count_ties(verdicts), result["intervals"]["aro_order"]
    )


def test_items_of_an_order_benchmark_may_differ_in_their_captions():
    answers = [
        np.array([[-3.0], [-4.0]]),
        np.array([[-3.0], [-4.0], [-2.0]]),
        np.array([[-3.0], [-4.0], [-5.0], [-3.0]]),
    ]
    row = rows_of("aro_order", [""] * 3, answers)["all", "accuracy"]
    assert (row["value"], row["ties"]) == (pytest.approx(1 / 3), 1)


def test_sugarcrepe_is_the_mean_over_its_subsets(tied):
    rng = np.random.default_rng(5)
    tags = rng.choice(["add_obj", "swap_att", "replace_rel"], 100, p=[0.6, 0.3, 0.1]).tolist()
    answers = list(draw(rng, (100, 2, 1), tied))
    found = rows_of("sugarcrepe", tags, answers)
    verdicts = choice_verdicts(answers)
    by_tag = {name: [v for v, tag in zip(verdicts, tags, strict=True) if tag == name] for name in set(tags)}
    macro = found["all", "macro accuracy"]
    assert macro["value"] == pytest.approx(sum(map(share, by_tag.values())) / 3)
    result = metric("sugarcrepe_accuracy", subsets=tags, **split(answers))
    intervals = result["intervals"]
    assert_same(macro, result["sugarcrepe_accuracy"], 100, result["ties"], intervals["sugarcrepe_accuracy"])
    micro = result["sugarcrepe_accuracy_micro"], 100, count_ties(verdicts), intervals["sugarcrepe_accuracy_micro"]
    assert_same(found["all", "micro accuracy"], *micro)
    for name, verdicts in by_tag.items():
        one = result["subsets"][name]
        assert_same(found[name, "accuracy"], share(verdicts), len(verdicts), count_ties(verdicts), one["interval"])
        assert one["accuracy"] == pytest.approx(share(verdicts))
    assert all(row["headline"] for row in found.values())


@pytest.mark.parametrize("kind", ["aro_relation", "aro_attribution"])
def test_without_tags_there_is_no_macro_accuracy(kind):
    answers = list(draw(np.random.default_rng(6), (30, 2, 1), False))
    assert list(rows_of(kind, [""] * 30, answers)) == [("all", "micro accuracy")]


@pytest.mark.parametrize("kind, tag", [("aro_relation", "next to"), ("aro_attribution", "red_round")])
def test_without_a_group_that_counts_there_is_no_macro_accuracy(kind, tag):
    answers = list(draw(np.random.default_rng(6), (10, 2, 1), False))
    assert list(rows_of(kind, [tag] * 10, answers)) == [("all", "micro accuracy"), (tag, "accuracy")]


@pytest.mark.parametrize("kind", ["winoground", "aro_relation", "aro_order", "sugarcrepe"])
def test_nan_is_named_with_its_item(kind):
    answers = [np.ones((2, 2), np.float32) for _ in range(4)]
    answers[2][1, 0] = np.nan
    with pytest.raises(ValueError, match=rf"the {kind}.*item i2 hold NaN"):
        outcomes(benchmark(kind, ["a"] * 4), answers)


def test_answers_that_are_missing_are_no_scores():
    with pytest.raises(ValueError, match="shorter"):
        outcomes(benchmark("winoground", ["a"] * 3), [np.ones((2, 2))] * 2)


# Ranks


@pytest.fixture
def many_candidates(monkeypatch):
    """Every k says something."""
    monkeypatch.setattr("sdsclip_hf.evaluation.outcomes._cuts", lambda *cuts, below: cuts)


def test_ranks_among_fewer_than_k_candidates_say_nothing():
    ranks = [np.array([0, 0])] * 3
    benchmark_of_four = benchmark("classification", ["x"] * 3)
    benchmark_of_four.classes = {name: (name,) for name in "wxyz"}
    assert [outcome.score for outcome in outcomes(benchmark_of_four, ranks)] == ["accuracy@1"]
    benchmark_of_four.classes |= {name: (name,) for name in "uv"}
    assert [outcome.score for outcome in outcomes(benchmark_of_four, ranks)] == ["accuracy@1", "accuracy@5"]


def test_accuracy_at_k_counts_ties_against_the_model(many_candidates):
    against = [0, 1, 4, 5, 5, 9]
    favourable = [0, 0, 4, 4, 5, 9]
    ranks = [np.array(pair) for pair in zip(against, favourable, strict=True)]
    found = rows_of("classification", ["x"] * 6, ranks)
    assert [found["all", f"accuracy@{k}"]["value"] for k in (1, 5)] == pytest.approx([1 / 6, 3 / 6])
    assert [found["all", f"accuracy@{k}"]["ties"] for k in (1, 5)] == [1, 1]


def test_recall_counts_images_and_captions_apart(many_candidates):
    """Three images of 2, 1 and 3 captions."""
    answers = [
        np.array([[0, 0], [0, 0], [7, 7]]),
        np.array([[12, 12], [1, 0]]),
        np.array([[4, 4], [0, 0], [9, 9], [10, 9]]),
    ]
    found = rows_of("retrieval", [""] * 3, answers)
    to_text = [found["image to text", f"recall@{k}"] for k in (1, 5, 10)]
    to_image = [found["text to image", f"recall@{k}"] for k in (1, 5, 10)]
    assert [row["value"] for row in to_text] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert [row["value"] for row in to_image] == pytest.approx([2 / 6, 3 / 6, 5 / 6])
    assert [row["ties"] for row in to_image] == [1, 0, 1]
    assert {row["n"] for row in to_text} == {3} and {row["n"] for row in to_image} == {6}
