"""Intervals and tests against explicit bootstraps, normal approximations and published values."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

import sdsclip_hf
from sdsclip_hf.evaluation.outcomes import Outcome
from sdsclip_hf.evaluation.significance import clustered_interval, compare, difference_interval, mcnemar, score_interval


def judged(rng, n, first=0.5, second=0.6, copied=0.5):
    """Verdicts of two models that agree on a share of the items."""
    one = rng.random(n) < first
    other = np.where(rng.random(n) < copied, one, rng.random(n) < second)
    return one, other


def explicit_interval(pairs, resamples=4000) -> np.ndarray:
    """Items drawn with replacement within each group, the same for both models."""
    rng = np.random.default_rng(77)
    found = []
    for _ in range(resamples):
        differences = []
        for first, second in pairs:
            drawn = rng.integers(0, len(first), len(first))
            differences.append(second[drawn].mean() - first[drawn].mean())
        found.append(sum(differences) / len(differences))
    return np.quantile(found, [0.025, 0.975])


def test_difference_equals_an_explicit_bootstrap_over_items():
    pair = judged(np.random.default_rng(0), 300)
    np.testing.assert_allclose(difference_interval([pair]), explicit_interval([pair]), atol=0.008)


def test_difference_equals_the_normal_approximation_on_many_items():
    one, other = judged(np.random.default_rng(1), 20_000)
    difference = other.astype(float) - one
    half = 1.96 * difference.std() / math.sqrt(len(one))
    expected = difference.mean() - half, difference.mean() + half
    np.testing.assert_allclose(difference_interval([(one, other)]), expected, atol=half * 0.05)


def test_difference_of_macro_scores_equals_a_bootstrap_within_groups():
    rng = np.random.default_rng(2)
    pairs = [judged(rng, n) for n in (10, 40, 300)]
    found, pooled = difference_interval(pairs), [tuple(map(np.concatenate, zip(*pairs, strict=True)))]
    np.testing.assert_allclose(found, explicit_interval(pairs), atol=0.015)
    assert found[1] - found[0] > 1.5 * np.diff(explicit_interval(pooled))[0]  # the smallest group weighs as much


def test_models_that_agree_on_every_item_differ_by_nothing():
    one = np.random.default_rng(3).random(50) < 0.5
    assert difference_interval([(one, one.copy())]) == (0, 0)


def test_confidence_widens_the_interval():
    pair = judged(np.random.default_rng(4), 200)
    (low, high), (lower, higher) = difference_interval([pair]), difference_interval([pair], confidence=0.99)
    assert lower < low < high < higher


def clustered(rng, clusters=60):
    """Questions of which those of one item are mostly right or mostly wrong together."""
    sizes = rng.integers(1, 12, clusters)
    numbers = np.repeat(np.arange(clusters), sizes)
    return (rng.random(len(numbers)) < rng.choice([0.1, 0.9], clusters)[numbers]), numbers


def test_clustered_interval_equals_an_explicit_bootstrap_over_clusters():
    values, numbers = clustered(np.random.default_rng(5))
    members = [values[numbers == number] for number in range(60)]
    rng = np.random.default_rng(6)
    means = [np.concatenate([members[drawn] for drawn in rng.integers(0, 60, 60)]).mean() for _ in range(3000)]
    found = clustered_interval(values, numbers)
    np.testing.assert_allclose(found, np.quantile(means, [0.025, 0.975]), atol=0.02)
    naive = 1.96 * values.std() / math.sqrt(len(values))
    assert found[1] - found[0] > 2.5 * naive  # 2 x without clusters


def test_clusters_of_one_give_the_plain_interval():
    values = np.random.default_rng(7).random(400) < 0.3
    plain = score_interval(Outcome("all", "recall@1", values, 0))
    found = score_interval(Outcome("all", "recall@1", values, 0, clusters=np.arange(400)))
    np.testing.assert_allclose(found, plain, atol=0.012)


@pytest.mark.parametrize(
    "first, second, p",
    [
        (5, 15, 0.04138947),  # 2 P(Binomial(20, 1/2) <= 5) = 2 * 21700 / 2**20
        (0, 0, 1.0),
        (7, 7, 1.0),
        (0, 5, 2 / 32),
        (0, 1, 1.0),
        (1, 9, 22 / 1024),
        (2, 12, 2 * (1 + 14 + 91) / 16384),
    ],
)
def test_mcnemar_gives_the_exact_values(first, second, p):
    n, k = first + second, min(first, second)
    exact = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(exact, rel=1e-9)
    assert exact == pytest.approx(p, rel=1e-2)


@pytest.mark.parametrize("first, second", [(5000, 5200), (10_000, 9_900), (20_500, 21_000)])
def test_mcnemar_of_many_items_equals_the_normal_approximation(first, second):
    z = (abs(first - second) - 1) / math.sqrt(first + second)
    assert mcnemar(first, second) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def test_compare_counts_items_and_subtracts_in_the_right_order():
    first = np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    second = np.array([1, 0, 0, 1, 1, 1, 1, 0], dtype=bool)
    (row,) = compare([Outcome("all", "group", first, 0)], [Outcome("all", "group", second, 0)])
    assert (row["subset"], row["score"], row["n"]) == ("all", "group", 8)
    assert (row["value"], row["only_first"], row["only_second"]) == (0.25, 2, 4)
    assert row["p"] == pytest.approx(2 * (1 + 6 + 15) / 64)
    assert row["interval"][0] < 0.25 < row["interval"][1]


def test_compare_of_macro_scores_is_the_mean_over_groups():
    groups = np.array(["a"] * 4 + ["b"] * 1)
    first, second = np.array([1, 1, 0, 0, 0], dtype=bool), np.array([1, 0, 0, 0, 1], dtype=bool)
    (row,) = compare([Outcome("all", "m", first, 0, groups)], [Outcome("all", "m", second, 0, groups)])
    assert row["value"] == pytest.approx(((1 / 4 - 2 / 4) + (1 - 0)) / 2)


def test_compare_of_clustered_questions_resamples_clusters_and_gives_no_p():
    rng = np.random.default_rng(8)
    (values, numbers), other = clustered(rng), rng.random(1000)
    second = other[: len(values)] < 0.5
    (row,) = compare(
        [Outcome("all", "r", values, 0, clusters=numbers)], [Outcome("all", "r", second, 0, clusters=numbers)]
    )
    assert row["p"] is None
    difference = second.astype(float) - values
    members = [difference[numbers == number] for number in range(60)]
    means = [np.concatenate([members[drawn] for drawn in rng.integers(0, 60, 60)]).mean() for _ in range(3000)]
    np.testing.assert_allclose(row["interval"], np.quantile(means, [0.025, 0.975]), atol=0.025)


def test_no_module_imports_scipy_which_is_no_dependency():
    for file in Path(sdsclip_hf.__file__).parent.rglob("*.py"):
        assert not re.search(r"^\s*(import|from) scipy", file.read_text(encoding="utf-8"), re.MULTILINE), file
