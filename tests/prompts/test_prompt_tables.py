"""The protocols' figures against what was published, and against formulas written plainly.

Base, new and HM of CLIP, CoOp and CoCoOp with ViT-B/16 (Zhou et al. 2022, arXiv 2203.05557, tables 1 and 2) on ImageNet,
Caltech101, OxfordPets, StanfordCars, Flowers102, Food101, FGVCAircraft, SUN397, DTD, EuroSAT, UCF101, and their averages.
"""

import numpy as np
import pytest
from scipy import stats

from sdsclip_hf.prompts.tables import (
    across,
    across_table,
    base_to_new,
    base_to_new_table,
    difference,
    figure,
    harmonic_mean,
    over_shots_table,
)

PUBLISHED = {
    "CLIP": (
        "72.43 96.84 91.17 63.37 72.08 90.10 27.19 69.36 53.24 56.48 70.53",
        "68.14 94.00 97.26 74.89 77.80 91.22 36.29 75.35 59.90 64.05 77.50",
        "70.22 95.40 94.12 68.65 74.83 90.66 31.09 72.23 56.37 60.03 73.85",
        "69.34 74.22 71.70",
    ),
    "CoOp": (
        "76.47 98.00 93.67 78.12 97.60 88.33 40.44 80.60 79.44 92.19 84.69",
        "67.88 89.81 95.29 60.40 59.67 82.26 22.30 65.89 41.18 54.74 56.05",
        "71.92 93.73 94.47 68.13 74.06 85.19 28.75 72.51 54.24 68.69 67.46",
        "82.69 63.22 71.66",
    ),
    "CoCoOp": (
        "75.98 97.96 95.20 70.49 94.87 90.70 33.41 79.74 77.01 87.49 82.33",
        "70.43 93.81 97.69 73.59 71.75 91.29 23.71 76.86 56.00 60.04 73.45",
        "73.10 95.84 96.43 72.01 81.71 90.99 27.74 78.27 64.85 71.21 77.64",
        "80.47 71.69 75.83",
    ),
}
CROSS = {  # ImageNet, then the ten others, then their average
    "CoOp": "71.51 93.70 89.14 64.51 68.71 85.30 18.47 64.15 41.92 46.39 66.55 63.88",
    "CoCoOp": "71.02 94.43 90.14 65.32 71.88 86.06 22.94 67.36 45.73 45.37 68.21 65.74",
}


def numbers(text):
    return list(map(float, text.split()))


def rows_of(method):
    base, new = map(numbers, PUBLISHED[method][:2])
    return {str(place): {"base": [b], "new": [n]} for place, (b, n) in enumerate(zip(base, new, strict=True))}


@pytest.mark.parametrize("method", PUBLISHED)
def test_published_rows_give_the_published_averages_to_the_digit(method):
    found = base_to_new(rows_of(method))
    hms, average = map(numbers, PUBLISHED[method][2:])
    assert [round(value.mean, 2) for value in found["average"].values()] == average
    for place, hm in enumerate(hms):
        assert found[str(place)]["hm"].mean == pytest.approx(hm, abs=0.011)  # of base and new before they were rounded
    mean_of_hms = np.mean([found[str(place)]["hm"].mean for place in range(11)])
    assert abs(mean_of_hms - average[2]) > 0.05  # the other way to average would be seen


@pytest.mark.parametrize("method", CROSS)
def test_the_published_average_across_datasets_leaves_the_source_out(method):
    *values, average = numbers(CROSS[method])
    found = across({str(place): [value] for place, value in enumerate(values)}, source="0")
    assert round(found["average"].mean, 2) == average and found["0"].mean == values[0]


def test_intervals_are_students_over_seeds():
    """Against scipy; a paired difference has that of the differences, the HM that of the seeds' HMs around its own mean."""
    rng = np.random.default_rng(0)
    for count in (2, 5, 31):
        values = rng.normal(70, 3, count)
        low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
        found = figure(values)
        assert (found.mean - found.reach, found.mean + found.reach) == pytest.approx((low, high), rel=1e-4)
    base, new = rng.normal(80, 2, 5), rng.normal(60, 4, 5)
    gap = difference(base, new)
    assert gap.mean == pytest.approx(20, abs=6) and gap.reach == pytest.approx(figure(base - new).reach)
    row = base_to_new({"only": {"base": base, "new": new}})["only"]
    seeds = [2 / (1 / b + 1 / n) for b, n in zip(base, new, strict=True)]
    assert row["hm"].mean == pytest.approx(2 / (1 / base.mean() + 1 / new.mean()))
    assert row["hm"].reach == pytest.approx(figure(seeds).reach) and harmonic_mean(0, 0) == 0
    with pytest.raises(ValueError, match="scores of 5 and of 4 seeds do not pair"):
        difference(base, new[:4])


def test_tables_have_the_form_of_the_literature():
    methods = {"CLIP": {"a": {"base": [50, 60], "new": [40, 40]}, "b": {"base": [90, 90], "new": [80, 80]}}}
    lines = base_to_new_table(methods).splitlines()
    assert lines[0] == "| dataset | method | base | new | HM |"
    assert lines[2] == "| average | CLIP | 72.50 ± 31.76 | 60.00 ± 0.00 | 65.66 ± 13.03 |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| average", "| a", "| b"]
    lines = across_table({"CoOp": {"source": [70.0], "one": [60.0], "two": [50.0]}}, "source").splitlines()
    assert lines == [
        "| method | source | one | two | average |",
        "|---|---|---|---|---|",
        "| CoOp | 70.00 | 60.00 | 50.00 | 55.00 |",
    ]
    lines = over_shots_table({"CoOp": {"a": {16: [70.0], 1: [50.0]}}}).splitlines()
    assert lines[0] == "| dataset | method | 1 | 16 |" and lines[2] == "| a | CoOp | 50.00 | 70.00 |"
    with pytest.raises(
        ValueError, match="scores of the source 'imagenet' and of another dataset; there are those of one"
    ):
        across({"one": [1.0]}, "imagenet")
