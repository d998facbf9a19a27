"""Scores of several rankers in one folder: given weights and fitted ones, and what cannot be combined."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import make_scores
from folders import contents
from scorings import QUICK, refuse, rows_of, run

from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.scoring.combine import combine_scores
from sdsclip_hf.scoring.score_captions import score_captions

TEACHER = {"teacher": {"name": "sd", "fingerprint": "x", "dtype": "float32"}, "ranker": None}
RANKER = {"teacher": None, "ranker": {"kind": "vlm", "name": "vlm", "revision": None, "fingerprint": None}}
SETTINGS = {
    **{"sdsclip_hf_format": 1, "control": None, "num_draws": 4, "timestep_range": [0, 900], "weighting": "constant"},
    **{
        "dataset": {"name": "d", "config": None, "split": "train", "revision": None},
        "captions_per_image": 1,
        "seed": 0,
    },
    **{"candidates": ["batch:2"], "candidates_column": None, "nearest_by": None},
}


def texts_of(number: int) -> list[str]:
    return [f"a {number}", f"b {number}", f"c {number}"]


def folder_of(folder: Path, means, scale=1.0, count=40, seed=0, told=None, **settings) -> Path:
    """Items of three candidates, the own one at place number % 3; each draw knows it by one of ``means``."""
    rng, items = np.random.default_rng(seed), []
    for number in range(count):
        errors = rng.normal(5, 1, (3, len(means)))
        errors[number % 3] -= means
        items.append((str(number), texts_of(number)[number % 3], texts_of(number), (errors * scale).tolist()))
    return make_scores(folder, items, **(SETTINGS | (told or TEACHER) | settings))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A teacher of which one draw of four knows a little, a ranker in another unit that knows, and one that does not."""
    place = tmp_path_factory.mktemp("parts")
    return [
        folder_of(place / "sd", [0, 0, 2, 0]),
        folder_of(place / "vlm", [2], scale=1000, seed=1, told=RANKER),
        folder_of(place / "noise", [0], seed=2, told=RANKER | {"ranker": RANKER["ranker"] | {"name": "noise"}}),
    ]


def gap_of(rows) -> np.ndarray:
    """(N, 2): by how much the wrong captions' mean errors are above the own one's."""
    means = [np.mean(row["errors"], 1) for row in rows]
    return np.array([np.delete(mean, n % 3) - mean[n % 3] for n, mean in enumerate(means)])


def right(folder) -> float:
    return float((gap_of(rows_of(folder)) > 0).mean())


def test_given_weights_sum_scores_of_one_spread(parts, tmp_path):
    settings = combine_scores(parts[:2], tmp_path / "c", weights=[1, 3])
    expected = 0
    for folder, weight in zip(parts, (1, 3), strict=False):
        means = np.array([np.mean(row["errors"], 1) for row in rows_of(folder)])
        expected = expected + weight * means / (means - means.mean(1, keepdims=True)).std()
    np.testing.assert_allclose([np.ravel(row["errors"]) for row in rows_of(tmp_path / "c")], expected, rtol=1e-5)
    assert settings["teacher"] is None and settings["num_draws"] is None and settings["items"] == 40
    assert [part["weights"] for part in settings["combined"]["parts"]] == [[1.0], [3.0]]
    assert CandidateScores.load(tmp_path / "c").settings == settings
    card = (tmp_path / "c/README.md").read_text()
    assert "scored by sd + vlm" in card and "| part 2 | vlm, fingerprint " in card and ", weights 3.00 |" in card


def test_fitted_weights_go_to_draws_and_scores_that_know(parts, tmp_path, capsys):
    """A ranker's score is a column beside a teacher's draws; the same command again changes nothing."""
    words = ["--combine", *parts, "--fit_weights", "own:30", "--output_dir", tmp_path / "c"]
    run(*words)
    told = json.loads((tmp_path / "c/scores.json").read_text())["combined"]
    teacher, vlm, noise = (part["weights"] for part in told["parts"])
    assert len(teacher) == 4 and np.argmax(teacher) == 2 and min(vlm) > max(noise)
    alone = [(gap_of(rows_of(folder))[:30] > 0).mean() for folder in parts]
    np.testing.assert_allclose(told["alone"], alone, atol=1e-4)
    assert told["labelled"] == 30 and told["accuracy"] > told["uniform_accuracy"]
    assert right(tmp_path / "c") > max(map(right, parts))
    out = capsys.readouterr().out
    assert (
        f"right by all together (cross-validated), {told['uniform_accuracy']:.1%} by equal weights; alone: sd " in out
    )
    assert "--dataset_name d --ranking_scores" in out
    before = contents(tmp_path / "c")
    run(*words)
    assert contents(tmp_path / "c") == before
    assert "its ranker is of name 'sd + vlm + noise', not 'sd + vlm'." in refuse(capsys, *words[:3], *words[4:])


def test_a_teacher_that_stopped_early_is_one_column_and_ties_do_not_count(tmp_path):
    """So do items that one of them scored alike, which the other still orders."""
    stopped, known = folder_of(tmp_path / "a", [1, 1, 1]), folder_of(tmp_path / "b", [2], seed=1, told=RANKER)
    rows = rows_of(stopped)
    rows[3]["errors"], rows[5]["errors"] = [one[:2] for one in rows[3]["errors"]], [[], [], []]
    items = [tuple(row.values()) for row in rows]
    part = make_scores(tmp_path / "stopped", items, **SETTINGS | TEACHER | {"stop_confidence": 0.9})
    told = combine_scores([part, known], tmp_path / "c")["combined"]
    assert [len(one["weights"]) for one in told["parts"]] == [1, 1]
    combined, alone = (np.ravel(rows_of(folder)[5]["errors"]) for folder in (tmp_path / "c", known))
    assert (combined.argsort() == alone.argsort()).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": 39}, "have 40 items and .* 39; combine scores of the same rows"),
        ({"told": {"teacher": None, "ranker": None}}, "order nothing that could be combined .unscored."),
        ({"control": "wrong_images"}, "order nothing that could be combined .wrong_images."),
        ({"seed": 0, "told": TEACHER, "means": [0, 0, 2, 0]}, "are those of .*; name each once"),
    ],
)
def test_what_cannot_be_combined_is_told(parts, tmp_path, change, said):
    other = folder_of(tmp_path / "o", **({"means": [1], "seed": 5, "told": RANKER} | change))
    with pytest.raises(ValueError, match=said):
        combine_scores([parts[0], other], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_other_candidates_are_told_by_the_first_that_differs(pairs, tmp_path):
    for seed in (3, 4):
        score_captions(
            lambda image, texts: range(len(texts)), pairs, output_dir=tmp_path / str(seed), **QUICK | {"seed": seed}
        )
    with pytest.raises(ValueError, match=r"item 0 has another candidates in '.*3' than in '.*4': \["):
        combine_scores([tmp_path / "3", tmp_path / "4"], tmp_path / "c")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--combine", "A"], "--combine names 1 folder of scores; give two or more"),
        (["--combine", "A", "B", "--combine_weights", 1], "combine_weights are [1.0] for 2 folders"),
        (["--combine", "A", "B", "--combine_weights", 0, 0], "one of them above 0"),
        (["--combine", "A", "B", "--combine_weights", "nan", 1], "a finite number of at least 0"),
        (["--combine", "A", "B", "--combine_weights", 1, 1, "--fit_weights", "own"], "in place of fitted ones"),
        (["--combine_weights", 1, 1], "--combine_weights are the weights of --combine"),
        (["--combine", "A", "B", "--fit_weights", "pairs=x"], "--combine fits weights on the own captions"),
        (["--combine", "A", "B", "--ranker", "a/b"], "--ranker is given, but finished scores need no model"),
    ],
)
def test_options_that_do_not_fit_are_refused(parts, capsys, tmp_path, words, said):
    named = [{"A": parts[0], "B": parts[1]}.get(word, word) for word in words]
    assert said in refuse(capsys, *named, "--output_dir", tmp_path / "c")
