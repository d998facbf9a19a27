"""The plots of a study of prompts, from made scores: what they show, and that each panel can be read."""

import numpy as np
import pytest
from scipy import stats

from sdsclip_hf.prompts.study import plots
from sdsclip_hf.prompts.study.settings import Scored, Task, tasks

SHOTS, SEEDS = (1, 2, 4, 8, 16), (1, 2, 3)
DATASETS = ("birds", "cars")
ARMS = {"zero-shot": "zero_shot", "probe": "linear_probe", "CoOp": "coop", "KgCoOp": "kgcoop"}


def settings(seeds=SEEDS) -> dict:
    return {
        "protocols": ["few_shot", "base_to_new"],
        "seeds": list(seeds),
        "shots": [16, *SHOTS[:-1]],
        "baseline": "CoOp",
        "datasets": {name: {"dataset_name": name} for name in DATASETS},
        "arms": {arm: {"method": method} for arm, method in ARMS.items()},
    }


def made(asked: dict) -> dict:
    """Scores as a study has them: zero-shot's once for all shots, the probe's of no new classes."""
    rng, runs, level = np.random.default_rng(0), {}, {}
    for task, tests in tasks(asked).items():
        for place, arm in enumerate(asked["arms"]):
            for test in tests:
                if arm == "zero-shot":
                    values = [level.setdefault(test, 50 + rng.normal())]
                else:
                    values = list(55 + place + np.log2(task.shots) + rng.normal(0, 1, len(asked["seeds"])))
                if (arm, test.what) != ("probe", "new"):
                    runs.setdefault(arm, {}).setdefault(task, {})[test] = values
    return runs


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws all plots of settings: the scores, and the figures by file name."""

    def draw(asked: dict):
        runs, figures = made(asked), {}
        monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.update({path.name: figure}))
        plots.plot_all(asked, runs, tmp_path)
        return runs, figures

    return draw


def color(arm: str) -> str:
    return f"C{list(ARMS).index(arm)}"


def panels(figure) -> list:
    return [axis for axis in figure.axes if axis.axison]


@pytest.mark.parametrize("seeds", [SEEDS, (1,)])
def test_accuracy_over_shots_is_a_line_a_method_with_bands_and_zero_shot_a_level(drawn, seeds):
    runs, figures = drawn(settings(seeds))
    assert set(figures) == {"shots.png", "base_to_new.png"} | ({"gains.png"} if len(seeds) > 1 else set())
    for axis, name in zip(panels(figures["shots.png"]), DATASETS, strict=True):
        assert axis.get_title() == name
        assert [label.get_text() for label in axis.get_xticklabels()] == list(map(str, SHOTS))
        lines, bands = {line.get_label(): line for line in axis.lines}, list(axis.collections)
        assert list(lines) == list(ARMS) and [line.get_color() for line in axis.lines] == list(map(color, ARMS))
        scores = {arm: {k: runs[arm][Task(name, "all", k)][Scored(name, "all")] for k in SHOTS} for arm in ARMS}
        assert [*lines["zero-shot"].get_xdata()] == [0, 1]  # from edge to edge
        assert [*lines["zero-shot"].get_ydata()] == scores["zero-shot"][1] * 2
        assert len(bands) == (3 if len(seeds) > 1 else 0)
        for place, arm in enumerate(list(ARMS)[1:]):
            values = np.array([scores[arm][k] for k in SHOTS])
            assert list(lines[arm].get_xdata()) == list(SHOTS)
            assert list(lines[arm].get_ydata()) == pytest.approx(values.mean(-1))
            if bands:
                low, high = stats.t.interval(0.95, len(seeds) - 1, values.mean(-1), stats.sem(values, axis=-1))
                x, y = bands[place].get_paths()[0].vertices.T
                assert [y[x == k].min() for k in SHOTS] == pytest.approx(low, rel=1e-4)
                assert [y[x == k].max() for k in SHOTS] == pytest.approx(high, rel=1e-4)
    legend = figures["shots.png"].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == list(ARMS)


def test_every_panel_of_gains_can_be_read_and_an_arm_has_one_colour(drawn):
    """Six panels in two lines: each tells its axis; the names of the arms stand at the first of each line."""
    figure = drawn(settings())[1]["gains.png"]
    figure.draw_without_rendering()  # which lays it out
    shown = panels(figure)
    assert len(shown) == 6
    for axis in shown:
        assert axis.get_xlabel() == "gain over CoOp, points"
        assert any(label.get_visible() and label.get_text() for label in axis.get_xticklabels())
    firsts = [axis for axis in shown if axis.get_subplotspec().is_first_col()]
    named = [[label for label in axis.get_yticklabels() if label.get_visible()] for axis in firsts]
    assert [[label.get_text() for label in labels] for labels in named] == [["zero-shot", "probe", "KgCoOp"]] * 2
    ticks = [label for axis in shown for label in (*axis.get_xticklabels(), *axis.get_yticklabels())]
    assert len({label.get_fontsize() for label in ticks}) == 1
    points = {line.get_color() for axis in shown for line in axis.lines if line.get_marker() == "o"}
    assert points == {color(arm) for arm in ARMS if arm != "CoOp"}
    boxes = [axis.get_tightbbox() for axis in shown]
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 4), (5, 3), (6, 3), (11, 4)])
def test_lines_of_panels_are_filled_evenly(count, columns):
    figure, axes = plots._panels(count, panel=(2, 2), beside=1)
    assert axes.shape[1] == columns and len(panels(figure)) == count
