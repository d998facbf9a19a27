"""The tool that tells what fitted timestep weights are worth on other pictures, on made-up pairs."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from sdsclip_hf.scoring.labels import LabelledGaps

WORTH = runpy.run_path(str(Path(__file__).parents[2] / "tools/fitted_weights.py"))["worth"]


@pytest.mark.parametrize(("means", "gains"), [([0.0, 0.0, 0.0, 1.0], True), ([0.3] * 4, False)], ids=["one", "all"])
def test_weights_gain_on_other_pictures_where_one_draw_alone_tells(means, gains):
    spreads = [3.0, 3.0, 3.0, 1.0] if gains else [1.0] * 4
    gaps = np.random.default_rng(0).normal(means, spreads, (600, 4))
    rows = WORTH(LabelledGaps(gaps, [str(pair // 2) for pair in range(600)], "made up"), labelled=50, sets=4)
    assert rows.shape == (4, 3) and rows[:, 0] == pytest.approx(100 * (gaps.sum(1) > 0).mean(), abs=3)
    assert ((rows[:, 1] - rows[:, 0] > 15) == gains).all() and ((rows[:, 2] > 0) == gains).all()


def test_weights_for_each_kind_gain_where_each_is_told_by_a_draw_of_its_own():
    kinds = np.arange(1200) % 2
    rng, means = np.random.default_rng(0), np.where(kinds[:, None] == 0, [1.0, 0.0], [0.0, 1.0])
    gaps = rng.normal(means, np.where(means > 0, 1.0, 3.0))
    rows = WORTH(LabelledGaps(gaps, [str(pair // 2) for pair in range(1200)], "made up"), 200, 4, kinds)
    assert (rows[:, 3] - rows[:, 1] > 10).all()
