"""Each metric's folder as a Space: worked test cases, a complete card, and each file once."""

import doctest
import hashlib
import json
from pathlib import Path

import evaluate
import pytest
import yaml

import sdsclip_hf.metrics
from sdsclip_hf.metrics import OF_SPACES, SHARED

NAMES = sdsclip_hf.metrics.names()
FOLDERS = {name: Path(sdsclip_hf.metrics.path(name)) for name in NAMES}
CASES = {
    (name, case["name"]): case
    for name, folder in FOLDERS.items()
    for case in json.loads((folder / "test_cases.json").read_text())
}
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """``evaluate.load`` that knows the bare names, as after ``sdsclip metrics install``."""
    real = evaluate.load
    monkeypatch.setattr(evaluate, "load", lambda name: real(sdsclip_hf.metrics.path(name), cache_dir=str(tmp_path)))
    return evaluate.load


def front_matter(folder: Path) -> tuple[dict, str]:
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


def approximately(value):
    """``value`` with each float replaced by one that allows for rounding."""
    if isinstance(value, dict):
        return {key: approximately(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [approximately(inner) for inner in value]
    return pytest.approx(value) if isinstance(value, float) else value


def test_the_ten_metrics_are_there():
    winoground = {f"winoground_{kind}_score" for kind in ("text", "image", "group")}
    aro = {"aro_relation", "aro_attribution", "aro_order"}
    general = {"pairs_score", "choices_accuracy"}
    assert set(NAMES) == winoground | aro | general | {"sugarcrepe_accuracy", "sugarcrepe_pp"}


@pytest.mark.parametrize(("name", "case"), CASES, ids=" ".join)
def test_worked_cases(load, name, case):
    case = CASES[name, case]
    assert load(name).compute(**case["inputs"], n_resamples=0) == approximately(case["result"])


@pytest.mark.parametrize("name", NAMES)
def test_cases_hold_a_tie(name):
    assert any(case["result"]["ties"] for (metric, _), case in CASES.items() if metric == name)


def test_a_module_is_put_together_anew_where_its_files_were_changed():
    folder = FOLDERS[NAMES[0]]
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert whole == sdsclip_hf.metrics.files(NAMES[0])
    (folder / "scoring.py").write_text("broken")
    (folder / "app.py").unlink()
    assert Path(sdsclip_hf.metrics.path(NAMES[0])) == folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole


def test_no_file_stands_in_the_package_twice():
    files = [file for file in sdsclip_hf.metrics.OWN.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert len(set(digests)) == len(files)


def test_every_file_that_a_metric_imports_is_in_its_folder_and_seen_by_evaluate():
    """``evaluate`` fetches only what NAME.py itself imports, on single lines."""
    for name, folder in FOLDERS.items():
        imports = evaluate.loading.get_imports(str(folder / f"{name}.py"))
        helpers = {module for kind, module, *_ in imports if kind == "internal"}
        assert helpers == {file.stem for file in folder.glob("*.py")} - {name, "app"}
        libraries = {module for kind, module, *_ in imports if kind == "library"}
        assert {"datasets", "evaluate"} <= libraries <= {"datasets", "evaluate", "numpy"}


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_is_a_space(name):
    front, body = front_matter(FOLDERS[name])
    assert {*SHARED[name], *OF_SPACES} <= {file.name for file in FOLDERS[name].iterdir()}
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] == "6.31.0"
    assert front["app_file"] == "app.py"
    assert front["pinned"] is False
    assert front["license"] == "apache-2.0"
    assert front["tags"] == ["evaluate", "metric"]
    assert {front["colorFrom"], front["colorTo"]} <= COLOURS
    assert front["title"] and front["emoji"]
    assert len(front["short_description"]) <= 60  # the Hub's limit
    assert body.lstrip().startswith(f"# {name}\n")
    for heading in ("Definition", "Inputs", "Output", "Example", "Intervals", "Limits", "Citation"):
        assert f"\n## {heading}\n" in body


@pytest.mark.parametrize("name", NAMES)
def test_card_and_module_cite_the_same(load, name):
    metric = load(name)
    assert metric.citation.strip() in (FOLDERS[name] / "README.md").read_text()
    assert metric.citation.strip().startswith("@inproceedings{")
    assert metric.name == name


@pytest.mark.parametrize("name", NAMES)
def test_examples_of_card_and_docstring_are_true(load, name):
    body = front_matter(FOLDERS[name])[1]
    card = body.split("```python\n")[1].split("```")[0]
    for text in (card, load(name).inputs_description):
        test = doctest.DocTestParser().get_doctest(text, {"evaluate": evaluate}, name, None, 0)
        assert test.examples
        report = []
        doctest.DocTestRunner().run(test, out=report.append)
        assert not report, "".join(report)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_tells_every_option_and_every_key(load, name):
    body = front_matter(FOLDERS[name])[1]
    results = [load(name).compute(**case["inputs"]) for (metric, _), case in CASES.items() if metric == name]
    inputs = {key for (metric, _), case in CASES.items() if metric == name for key in case["inputs"]}
    for key in {"confidence", "n_resamples", "seed"} | inputs | {key for result in results for key in result}:
        assert f"`{key}`" in body
