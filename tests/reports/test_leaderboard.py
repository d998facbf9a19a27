"""A table over evaluations and trainings: its cells, and what must not stand in one table."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from evaluations import write_evaluation

from sdsclip_hf.benchmarks import Benchmark, Item
from sdsclip_hf.commands import leaderboard

WINOGROUND = {"name": "facebook/winoground", "revision": "a" * 40, "split": "test", "items": 8, "missing_images": 0}
CREPE = {"name": "data/crepe", "revision": None, "split": None, "items": 4, "missing_images": 0}


def pairs(spec: str = "winoground", **source) -> Benchmark:
    return Benchmark(spec, "winoground", [Item(str(n), (), ("a", "b"), "") for n in range(8)], WINOGROUND | source)


def choices(spec: str = "sugarcrepe:swap_obj=data/crepe", **source) -> Benchmark:
    return Benchmark(spec, "aro_order", [Item(str(n), (), ("a", "b"), "") for n in range(4)], CREPE | source)


def answers(benchmark: Benchmark, right: int) -> list[np.ndarray]:
    """Of which the first ``right`` items are right."""
    true, false = (np.eye(2), np.zeros((2, 2))) if benchmark.kind == "winoground" else ([[1.0], [0.0]], [[0.0], [1.0]])
    return [np.array(true if n < right else false, dtype=np.float32) for n in range(len(benchmark.items))]


def evaluation(folder: str, *of: tuple[Benchmark, dict[str, int]]) -> Path:
    path = Path(folder)
    return write_evaluation(path, [(one, {run: answers(one, n) for run, n in runs.items()}) for one, runs in of])


def rewrite(folder: Path, change) -> Path:
    path = folder / "results.json"
    results = json.loads(path.read_text())
    change(results)
    path.write_text(json.dumps(results))
    return path


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def board(*words, capsys) -> list[list[str]]:
    """The table of what is printed as csv."""
    leaderboard.main([*map(str, words), "--format", "csv"])
    return list(csv.reader(io.StringIO(capsys.readouterr().out)))


def test_models_are_rows_and_a_model_of_two_files_is_one(capsys):
    one = evaluation("one", (pairs(), {"base": 2, "a|b": 4}))
    two = evaluation("two", (choices(), {"base": 1, "other": 3}))
    rewrite(two, lambda results: results["versions"].update(torch="9.9"))
    head, *rows = board(one, two / "results.json", capsys=capsys)
    column = "sugarcrepe:swap_obj (accuracy)"
    column_of_pairs = "winoground (group)"
    assert head[:5] == ["model", *(column_of_pairs + part for part in ("", " low", " high", " n"))]
    assert head[5] == column and head[-3:] == ["sdsclip_hf", "transformers", "torch"]
    assert [row[0] for row in rows] == ["base", "a|b", "other"]
    assert [row[1] for row in rows] == ["25.00", "50.00", ""] and [row[5] for row in rows] == ["25.00", "", "75.00"]
    assert [row[4] for row in rows] == ["8", "8", ""] and float(rows[0][2]) < 25 < float(rows[0][3])
    assert rows[0][-1].endswith(" / 9.9") and rows[1][-1] != rows[2][-1] == "9.9"
    leaderboard.main(["one", "two"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"| model | winoground (group) | {column} | sdsclip_hf |")
    assert lines[3].startswith("| a&#124;b | 50.0 [") and lines[3].count("|") == lines[0].count("|")
    assert f"* winoground: 8 items of facebook/winoground, split test at {'a' * 40}." in lines


def test_models_of_one_name_and_other_weights_are_told_apart(capsys):
    evaluation("one", (pairs(), {"clip": 2}))
    two = evaluation("two", (pairs(), {"clip": 4}))
    rewrite(two, lambda results: results["models"]["clip"].update(fingerprint="other"))
    _, *rows = board("one", "two", capsys=capsys)
    assert [row[:2] for row in rows] == [["clip (one)", "25.00"], ["clip (two)", "50.00"]]


def test_trainings_stand_beside_evaluations(capsys):
    evaluation("one", (pairs(), {"base": 2, "tuned": 4}))
    results = json.loads(Path("one/results.json").read_text())
    scores = results["benchmarks"]["winoground"]["scores"]
    training = {"versions": {}, "label": "+ L_rank", "benchmarks": {"winoground": WINOGROUND}}
    training |= {"before": {"winoground": scores["base"]}, "after": {"winoground": scores["tuned"]}, "compared": {}}
    Path("run").mkdir()
    Path("run/results.json").write_text(json.dumps(training))
    _, *rows = board("one", "run", capsys=capsys)
    assert [row[0] for row in rows] == ["base", "tuned", "run: before", "run: + L_rank"]
    assert [row[1] for row in rows] == ["25.00", "50.00"] * 2


def test_a_dataset_of_one_s_own_is_a_benchmark_of_its_own(capsys):
    evaluation("one", (choices("retrieval=a", name="a"), {"base": 1}))
    evaluation("two", (choices("retrieval=b", name="b"), {"base": 2}))
    head, row = board("one", "two", capsys=capsys)
    assert [head[1], head[5], row[1], row[5]] == ["retrieval=a (accuracy)", "retrieval=b (accuracy)", "25.00", "50.00"]


def test_the_file_is_of_its_name_s_form_and_nothing_is_overwritten(capsys):
    evaluation("one", (pairs(), {"base": 2}))
    leaderboard.main(["one", "--output", "new/board.csv"])
    leaderboard.main(["one", "--output", "new/board.md"])
    assert capsys.readouterr().out.startswith("new/board.csv: 1 models, 1 scores.")
    assert Path("new/board.csv").read_text().startswith("model,winoground (group),")
    assert Path("new/board.md").read_text().startswith("| model | winoground (group) |")
    assert "there is new/board.md already. Pass --overwrite" in error_of("one", "--output", "new/board.md")
    leaderboard.main(["one", "--output", "new/board.md", "--format", "csv", "--overwrite"])
    assert Path("new/board.md").read_text() == Path("new/board.csv").read_text()


def error_of(*words) -> str:
    with pytest.raises(SystemExit) as stop:
        leaderboard.main(list(map(str, words)))
    return str(stop.value.code)


def other_rule(results: dict) -> None:
    for rows in results["benchmarks"]["winoground"]["scores"].values():
        for row in rows:
            row["n"] = 7


@pytest.mark.parametrize(
    ("source", "change", "told"),
    [
        ({"revision": "b" * 40}, lambda _: None, f"8 items of facebook/winoground, split test at {'b' * 40}, and one"),
        ({"name": "data/winoground"}, lambda _: None, "8 items of data/winoground"),
        ({"items": 7, "missing_images": 1}, lambda _: None, "7 items of facebook/winoground"),
        ({}, other_rule, "two/results.json has winoground (group) of 7 questions, and one/results.json of 8 questions"),
        ({}, lambda results: results["models"]["base"].update(fingerprint="base"), "has another score of base on"),
    ],
    ids=["revision", "name", "left out", "count", "score"],
)
def test_what_was_asked_otherwise_is_refused_with_both_files(source, change, told):
    evaluation("one", (pairs(), {"base": 2}))
    rewrite(evaluation("two", (pairs(**source), {"base": 4})), change)
    message = error_of("one", "two")
    assert told in message and "one/results.json" in message and "two/results.json" in message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda results: results["benchmarks"]["winoground"].pop("source"), "it has no 'source'"),
        (lambda results: results["benchmarks"]["winoground"]["scores"].pop("base"), "it has no 'scores of base'"),
        (lambda results: results["benchmarks"]["winoground"]["scores"]["base"][0].pop("interval"), "no 'interval'"),
        (lambda results: results.pop("models"), "it has no 'before'"),
        (lambda results: results["benchmarks"].clear(), "holds no scores of benchmarks. Leave it out."),
    ],
)
def test_files_of_another_form_are_named(change, told):
    rewrite(evaluation("one", (pairs(), {"base": 2})), change)
    message = error_of("one")
    assert message.startswith("error: one/results.json ") and told in message


def test_files_that_are_not_there_are_named():
    assert "there is no file outputs/*/results.json; give files results.json" in error_of("outputs/*/results.json")
    Path("empty").mkdir()
    assert "there is no file empty/results.json" in error_of("empty")
    with pytest.raises(SystemExit) as stop:
        leaderboard.main([])
    assert stop.value.code == 2
