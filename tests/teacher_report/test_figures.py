"""The report's figures on made-up gaps whose truth is known, and what the verdict makes of them."""

import numpy as np
import pytest

from sdsclip_hf.scoring.caption_errors import visiting_order
from sdsclip_hf.teacher_report.answers import Pairs
from sdsclip_hf.teacher_report.figures import accuracy_rows, by_draws, by_timestep, calibration, timestep_weights
from sdsclip_hf.teacher_report.verdict import judge, judge_kind

DRAWS = 8
TIMESTEPS = [0, 100, 200, 300, 400, 500, 600, 700]


def made_pairs(count, kinds=("attribute", "relation"), tags=("",)) -> Pairs:
    """Two pairs of each picture, the kinds and tags by turns."""
    numbers = np.arange(count)
    take = [np.array(names)[numbers % len(names)] for names in (kinds, tags)]
    return Pairs(*take, numbers // 2 + 7)


def gaps_of(means, count=400, spread=1.0, seed=0):
    """(count, R) around a mean for each pair, or each draw."""
    return np.random.default_rng(seed).normal(means, spread, (count, DRAWS)).astype(np.float32)


def figures(pairs, gaps, students=None):
    told = {"accuracy": accuracy_rows(pairs, gaps.sum(1), students or {}), "calibration": calibration(pairs, gaps)}
    told |= {"draws": by_draws(pairs, gaps), "timesteps": by_timestep(pairs, gaps, TIMESTEPS)}
    told["weights"] = timestep_weights(pairs, gaps, TIMESTEPS)
    for row, weight in zip(told["timesteps"], told["weights"]["weights"], strict=True):
        row["weight"] = weight
    return told


def test_accuracy_of_each_kind_and_tag_beside_the_student():
    pairs = made_pairs(400, tags=("one", "two", "two"))
    gaps, student = gaps_of(0.1).sum(1), gaps_of(0.3, seed=1).sum(1)
    gaps[:10] = 0
    rows = {(row["by"], row["name"]): row for row in accuracy_rows(pairs, gaps, {"clip": student})}
    assert list(rows) == [
        ("all", "all"),
        *(("kind", k) for k in ("attribute", "relation")),
        ("tag", "one"),
        ("tag", "two"),
    ]
    for (by, name), row in rows.items():
        own = {"all": pairs.kinds == pairs.kinds, "kind": pairs.kinds == name, "tag": pairs.tags == name}[by]
        right = [gap > 0 for gap, one in zip(gaps, own, strict=True) if one]
        theirs = [gap > 0 for gap, one in zip(student, own, strict=True) if one]
        assert row["pairs"] == len(right) and row["ties"] == sum(own[:10])
        assert row["teacher"]["value"] == pytest.approx(sum(right) / len(right))
        clip = row["students"]["clip"]
        assert clip["value"] == pytest.approx(sum(theirs) / len(theirs))
        assert clip["difference"] == pytest.approx((sum(right) - sum(theirs)) / len(right))
        for value, (low, high) in (
            (clip["value"], clip["interval"]),
            (clip["difference"], clip["difference_interval"]),
        ):
            half_width = 1.96 * (2 * 0.25 / len(right)) ** 0.5
            assert low < value < high and high - low < 2.5 * half_width
    assert rows["all", "all"]["pictures"] == 200


def test_pairs_of_one_picture_count_together():
    right = np.repeat(np.random.default_rng(0).normal(size=50) > 0, 2) * 2 - 1.0
    (together, *_), (apart, *_) = (
        accuracy_rows(made_pairs(100)._replace(groups=groups), right, {})
        for groups in (np.arange(100) // 2, np.arange(100))
    )
    widths = [np.ptp(row["teacher"]["interval"]) for row in (together, apart)]
    assert widths[0] / widths[1] == pytest.approx(2**0.5, rel=0.15)


def test_draws_and_timesteps_in_their_own_order():
    pairs, means = made_pairs(400), np.zeros(DRAWS)
    means[visiting_order(DRAWS).index(5)] = 1.5  # at timestep 500
    gaps = gaps_of(means)
    draws = by_draws(pairs, gaps)
    for row in draws:
        right = [sum(one[: row["draws"]]) > 0 for one in gaps.tolist()]
        assert row["value"] == pytest.approx(np.mean(right))
        assert row["kinds"]["relation"] == pytest.approx(np.mean(right[1::2]))
    assert draws[0]["loss"] == pytest.approx(draws[-1]["value"] - draws[0]["value"]) and draws[-1]["loss"] == 0
    timesteps = by_timestep(pairs, gaps, TIMESTEPS)
    assert [row["timestep"] for row in timesteps] == TIMESTEPS
    assert max(timesteps, key=lambda row: row["value"])["timestep"] == 500
    weights = timestep_weights(pairs, gaps, TIMESTEPS)
    assert np.argmax(weights["weights"]) == 5 and weights["accuracy"] > weights["uniform_accuracy"] + 0.05
    told = figures(pairs, gaps)
    told["timesteps"][0]["weight"] = 0
    verdict = judge(told)
    assert verdict["weighted"] and verdict["timestep_range"] == [100, 700]
    assert timestep_weights(made_pairs(38), gaps[:38], TIMESTEPS) is None
    assert timestep_weights(pairs, gaps, [300] * DRAWS) is None


def test_confidence_that_is_as_sure_as_right():
    """Errors that differ by their noise alone from a mean that is as often one way as by a wide prior the other."""
    rng = np.random.default_rng(0)
    gaps = gaps_of(np.abs(rng.normal(0, 0.5, 4000))[:, None] * rng.choice([1, 1, 1, -1], 4000)[:, None], 4000)
    found = calibration(made_pairs(4000), gaps)
    assert found["by"] == "draws" and "temperature" not in found
    assert [one["pairs"] for one in found["bins"]] == [500] * 8
    assert found["bins"][0]["confidence"] == pytest.approx(0.55, abs=0.05)
    assert found["bins"][-1]["value"] == pytest.approx(0.75, abs=0.05)  # a quarter is wrong with confidence
    right = gaps.sum(1) > 0
    sure = np.abs(gaps.mean(1) / gaps.std(1, ddof=1))
    assert found["surer_half"]["value"] == pytest.approx(right[np.argsort(sure)[2000:]].mean(), abs=0.002)


def test_the_temperature_of_one_score_is_found():
    rng = np.random.default_rng(0)
    gaps = np.abs(rng.normal(0, 6, 6000))
    wrong = rng.uniform(size=6000) > 1 / (1 + np.exp(-gaps / 2.5))
    found = calibration(made_pairs(6000), np.where(wrong, -gaps, gaps)[:, None])
    assert found["by"] == "softmax" and found["temperature"] == pytest.approx(2.5, rel=0.1)
    assert found["error"] < 0.02
    assert found["untempered"] == pytest.approx(np.mean(np.exp(gaps) / (1 + np.exp(gaps))))
    for none_is_best in (gaps, -gaps):  # always right, never right
        found = calibration(made_pairs(100), none_is_best[:100, None])
        assert found["temperature"] is None and found["surer_half"]["value"] == (none_is_best[0] > 0)


def row(teacher, student=None, pictures=100, width=0.05):
    """Of accuracies alone."""
    told = {"name": "kind", "pictures": pictures, "students": {}}
    told["teacher"] = {"value": teacher, "interval": [teacher - width, teacher + width]}
    for run, value in (student or {}).items():
        around = teacher - value
        told["students"][run] = {
            "value": value,
            "difference": around,
            "difference_interval": [around - width, around + width],
        }
    return told


@pytest.mark.parametrize(
    ("given", "verdict", "best"),
    [
        (row(0.74, {"clip": 0.6}), "better", "clip"),
        (row(0.74, {"clip": 0.6, "tuned": 0.9}), "worse", "tuned"),
        (row(0.52, {"clip": 0.45}), "chance", "clip"),
        (row(0.52, {"clip": 0.7}), "worse", "clip"),
        (row(0.8, {"clip": 0.77}), "open", "clip"),
        (row(0.99, {"clip": 0.99}, width=0.01), "level", "clip"),
        (row(0.9, {"clip": 0.5}, pictures=19), "few", "clip"),
        (row(0.6), "better", None),
        (row(0.53), "chance", None),
    ],
)  # fmt: skip
def test_verdicts_on_a_kind(given, verdict, best):
    judged = judge_kind(given)
    assert (judged["verdict"], judged["student"]) == (verdict, best)


def test_how_many_draws_and_whether_confidence_tells():
    pairs, rng = made_pairs(1000), np.random.default_rng(1)
    unsure = gaps_of(rng.choice([0.0, 1.0], 1000)[:, None], 1000)
    verdict = judge(figures(pairs, unsure))
    losses = [one["loss"] for one in by_draws(pairs, unsure)]
    assert max(losses[verdict["draws"] - 1 :]) <= 0.01 < losses[verdict["draws"] - 2]
    assert verdict["confidence"] and not verdict["weighted"] and verdict["timestep_range"] == [0, 700]
    noisy = judge(figures(pairs, gaps_of(0.2, 1000)))
    assert noisy["more_draws"] and noisy["draws"] > DRAWS / 2
    settled = judge(figures(pairs, gaps_of(np.abs(rng.normal(0, 9, 1000))[:, None], 1000, 0.1)))
    assert settled["draws"] == 4 and not settled["more_draws"] and not settled["confidence"]
