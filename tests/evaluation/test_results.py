"""From a scorer to rows, keys and tables."""

import json

import numpy as np
import pytest
from transformers import CLIPModel, CLIPProcessor

from sdsclip_hf.benchmarks import Item, load_benchmark
from sdsclip_hf.benchmarks.items import Benchmark
from sdsclip_hf.evaluation.outcomes import Outcome
from sdsclip_hf.evaluation.results import (
    answer_chunks,
    evaluate_benchmark,
    evaluate_benchmarks,
    flatten,
    labels,
    score_rows,
)
from sdsclip_hf.evaluation.scorers import ClipScorer, DiffusionScorer
from sdsclip_hf.evaluation.tables import table

# Items whose verdicts are plain to see; captions in rows, images in columns.
ALL_RIGHT = [[2.0, 1.0], [1.0, 2.0]]
TEXT_ONLY = [[2.0, 3.0], [1.0, 4.0]]  # each image prefers its caption, but both captions prefer image 1
IMAGE_ONLY = [[2.0, 1.0], [3.0, 4.0]]
ALL_WRONG = [[1.0, 2.0], [2.0, 1.0]]


class Oracle:
    """Answers by tag, in chunks of three."""

    def __init__(self, **answers):
        self.answers = answers

    def score_chunks(self, items):
        for start in range(0, len(items), 3):
            yield [np.array(self.answers.get(item.tag, ALL_RIGHT)) for item in items[start : start + 3]]


def by_name(rows) -> dict:
    return {(row["subset"], row["score"]): row for row in rows}


def test_rows_tell_the_scores_of_each_tag():
    items = [Item(str(n), (), (), tag) for n, tag in enumerate(["right", "text", "image", "wrong", "wrong"])]
    oracle = Oracle(text=TEXT_ONLY, image=IMAGE_ONLY, wrong=ALL_WRONG)
    rows = evaluate_benchmark(oracle, Benchmark("mine", "winoground", items, {}))
    found = by_name(rows)
    assert [found["all", part]["value"] for part in ("text", "image", "group")] == [0.4, 0.4, 0.2]
    assert [found["text", part]["value"] for part in ("text", "image", "group")] == [1, 0, 0]
    assert (found["wrong", "group"]["n"], found["wrong", "group"]["interval"]) == (2, (0, 0))
    low, high = found["all", "group"]["interval"]
    assert 0 <= low <= 0.2 <= high <= 1
    assert set(rows[0]) == {"subset", "score", "value", "interval", "n", "ties", "groups", "headline"}
    assert json.loads(json.dumps(rows))[0] == {**rows[0], "interval": list(rows[0]["interval"])}


def test_score_of_groups_is_their_unweighted_mean():
    right, groups = np.array([True, False, False, False, True]), np.array(["a", "a", "a", "a", "b"])
    (row,) = score_rows([Outcome("all", "macro accuracy", right, 1, groups, False)])
    assert row["value"] == pytest.approx((1 / 4 + 1) / 2)
    assert (row["n"], row["ties"], row["groups"], row["headline"]) == (5, 1, 2, False)


def test_benchmark_scores_follow_the_scorer():
    results = evaluate_benchmarks(Oracle(relation=ALL_WRONG), ["shapes:validation", "shapes:test"])
    assert list(results) == ["shapes:validation", "shapes:test"]
    for rows in results.values():
        found = by_name(rows)
        assert found["all", "group"]["value"] == pytest.approx(2 / 3)
        assert [found[tag, "group"]["value"] for tag in ("attribute", "attribute in relation", "relation")] == [1, 1, 0]


def test_answers_are_those_of_the_items_from_the_start_on(clip_folder):
    scorer = ClipScorer(
        CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder), chunk_size=100
    )
    benchmark = load_benchmark("shapes:validation")
    whole = [answer for chunk in answer_chunks(scorer, benchmark) for answer in chunk]
    chunks = list(answer_chunks(scorer, benchmark, 100))
    assert [len(chunk) for chunk in chunks] == [100, 88]
    assert np.shape(whole) == (288, 2, 2) and np.abs(whole).max() <= 1 + 1e-5
    for one, other in zip(whole[100:], (answer for chunk in chunks for answer in chunk), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_unknown_benchmark_raises_with_the_choices():
    with pytest.raises(ValueError, match=r"unknown benchmark 'winogrand'; choose from .*shapes"):
        evaluate_benchmarks(Oracle(), ["winogrand"])


@pytest.mark.parametrize("kind", ["classification", "retrieval"])
def test_a_diffusion_model_is_not_asked_for_ranks(kind):
    benchmark = Benchmark(f"{kind}=mine", kind, [], {})
    with pytest.raises(ValueError, match=rf"{kind}=mine compares every image.*give it a --model"):
        answer_chunks(DiffusionScorer(None), benchmark)


# Keys and tables


def row(value, subset="all", score="group", low=0.0, high=1.0, headline=True, ties=0) -> dict:
    shared = {"subset": subset, "score": score, "value": value, "interval": (low, high)}
    return {**shared, "n": 8, "ties": ties, "groups": None, "headline": headline}


def test_flat_scores_have_one_key_each_without_blanks_or_sources():
    rows = [row(0.5, "attribute in relation", "text"), row(0.25, score="macro accuracy"), row(0.1, headline=False)]
    assert flatten({"shapes:test": rows, "sugarcrepe:swap_obj=/data/sugar crepe": rows[1:2]}) == {
        "shapes:test/attribute_in_relation/text": 0.5,
        "shapes:test/all/macro_accuracy": 0.25,
        "sugarcrepe:swap_obj/all/macro_accuracy": 0.25,
    }


def test_benchmarks_of_one_name_are_told_by_their_sources():
    specs = ["classification:test=cifar10", "classification:test=food101", "shapes:test", "retrieval=mine"]
    assert list(labels(specs).values()) == [*specs[:2], "shapes:test", "retrieval"]
    results = {spec: [row(number / 10)] for number, spec in enumerate(specs)}
    assert flatten(results) == {
        "classification:test=cifar10/all/group": 0.0,
        "classification:test=food101/all/group": 0.1,
        "shapes:test/all/group": 0.2,
        "retrieval/all/group": 0.3,
    }
    lines = table({"one": results}).splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(labels(specs).values())


def test_table_gives_per_cent_with_intervals_a_column_for_each_run():
    before = [row(0.125, low=0.1, high=0.2, ties=3), row(0.9, "kind", headline=False), row(0.5, "kind", "text")]
    after = [row(1.0, low=0.95, ties=1), row(0.9, "kind", headline=False), row(0.75, "kind", "text", 0.7, 0.8)]
    lines = table({"before": {"shapes=x": before}, "after": {"shapes=x": after}}).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "benchmark subset score items ties before after",
        lines[1],
        "shapes all group 8 3/1 12.5 [10.0, 20.0] 100.0 [95.0, 100.0]",
        "shapes kind text 8 0/0 50.0 [ 0.0, 100.0] 75.0 [70.0, 80.0]",
    ]
    assert set(lines[1]) == {"-"} and len(lines[1]) == max(map(len, lines))
    assert lines[0].index("after") == lines[2].index("100.0 [95")


def test_table_of_two_runs_may_tell_their_difference():
    differences = {
        "shapes": [
            {"value": 0.25, "interval": (-0.05, 0.5), "p": 0.0413},
            {"value": -0.25, "interval": (-0.5, 0.05), "p": None},
        ]
    }
    runs = {"one": {"shapes": [row(0.5), row(0.5)]}, "two": {"shapes": [row(0.75), row(0.25)]}}
    lines = table(runs, differences).splitlines()
    assert lines[0].split()[-3:] == ["difference", "McNemar", "p"]
    assert " ".join(lines[2].split()).endswith("+25.0 [-5.0, +50.0] 0.041")
    assert lines[3].endswith("-25.0 [-50.0, +5.0]")
