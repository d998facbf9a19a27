"""The notebooks are whole: they run from top to bottom, and what they show and name is there."""

import ast
import importlib
import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import make_clip, make_pipeline, make_processor, make_rows
from datasets import Dataset
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from transformers import HfArgumentParser

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.benchmarks import parse
from sdsclip_hf.commands import demo, evaluate, space
from sdsclip_hf.commands.cli import COMMANDS
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.shapes import resolve
from sdsclip_hf.training.arguments import parse_arguments

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/notebooks"
TUNED, TWO = "from_zero_to_a_tuned_clip", "two_clips_on_a_benchmark"
NAMES = (TUNED, TWO)
ABSOLUTE_PATH, TOKEN = r"(?<![\w.<:/])/[\w.-]+/[\w.-]+", r"hf_[A-Za-z]{8}"
OTHER_SETTINGS = "take away the"  # stands above the settings for a GPU


def read(name: str) -> NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def settings_cell(notebook: NotebookNode) -> NotebookNode:
    (cell,) = [cell for cell in code_cells(notebook) if OTHER_SETTINGS in cell.source]
    return cell


def settings_of(source: str) -> dict:
    values = {}
    exec(source, values)
    return {name: value for name, value in values.items() if name.isupper()}


def for_gpu(source: str) -> str:
    """The settings cell with its second block switched on."""
    first, second = source.split(OTHER_SETTINGS)
    return first + OTHER_SETTINGS + re.sub(r"^# (?=[A-Z_, ]+ = )", "", second, flags=re.M)


def commands(notebook: NotebookNode) -> list[str]:
    """Every line that calls sdsclip, in code and in prose, commented out or not; what Python fills in is left in braces."""
    found = []
    for cell in notebook.cells:
        text = cell.source.replace("\\\n", " ")
        if cell.cell_type == "code":
            found += re.findall(r"^[# ]*!(sdsclip .+)$", text, flags=re.M)
        else:
            found += re.findall(r"`(sdsclip [^`]+)`", text)
    return [re.sub(r" {2,}", " ", line) for line in found]


def texts(notebook: NotebookNode) -> list[str]:
    """All that a reader can see: cells and what they gave, without the pictures' bytes."""
    found = [cell.source for cell in notebook.cells]
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        found += [output.get("text", "")]
        found += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return [re.sub(r"base64,[A-Za-z0-9+/=]+", "", text) for text in found]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_small_and_was_run_in_order(name):
    path, notebook = FOLDER / f"{name}.ipynb", read(name)
    nbformat.validate(notebook)
    assert path.stat().st_size < 400_000
    skipped, *run = code_cells(notebook)
    assert skipped.source.endswith(']"') and "%pip install" in skipped.source
    assert skipped.metadata.tags == ["skip-execution"] and not skipped.outputs
    assert [cell.execution_count for cell in run if cell.source] == [*range(1, len(run) + 1)]
    assert sum(bool(cell.outputs) for cell in run) > len(run) / 2


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_no_error_no_warning_and_nothing_of_the_machine(name):
    notebook = read(name)
    kinds = {(output.output_type, output.get("name")) for cell in code_cells(notebook) for output in cell.outputs}
    assert not {kind for kind in kinds if kind[0] == "error" or kind[1] == "stderr"}
    for text in texts(notebook):
        for wrong in ("Warning", "Traceback", ABSOLUTE_PATH, TOKEN):
            assert not re.search(wrong, text), f"{wrong} in {text[:200]}"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_notebook_imports_is_there(name):
    for cell in code_cells(read(name)):
        for node in ast.walk(ast.parse(TransformerManager().transform_cell(cell.source))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("sdsclip_hf"):
                module = importlib.import_module(node.module)
                assert not [one.name for one in node.names if not hasattr(module, one.name)]


@pytest.mark.parametrize("for_which", ["cpu", "gpu"])
@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_a_notebook_is_accepted_with_either_settings(name, for_which):
    notebook = read(name)
    source = settings_cell(notebook).source
    values = settings_of(source if for_which == "cpu" else for_gpu(source))
    values["DTYPE"] = "float32"  # float16 needs the GPU
    seen = set()
    for line in commands(notebook):
        words = shlex.split(re.sub(r"\{([^}]+)\}", lambda found: str(eval(found[1], dict(values))), line))
        assert words[1] in COMMANDS, line
        check_options(words[1], words[2:])
        seen.add(words[1])
    assert seen >= {"finetune", "evaluate" if name == TWO else "demo", "score-captions"}


def check_options(command: str, words: list[str]) -> None:
    """Raise SystemExit or ValueError where the command does not take the words."""
    if command == "evaluate":
        for benchmark in evaluate.parse_arguments(words).benchmark:
            parse(benchmark)
    elif command == "finetune":
        parse_arguments(words)
    elif command == "score-captions":
        HfArgumentParser(ScoringArguments).parse_args_into_dataclasses(words, look_for_args_file=False)
    elif command in ("demo", "space"):
        {"demo": demo, "space": space}[command]._parser().parse_args(words)
    else:
        assert command == "push" and len(words) == 2 and "/" in words[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_for_a_gpu_are_the_same_names(name):
    source = settings_cell(read(name)).source
    default, other = settings_of(source), settings_of(for_gpu(source))
    assert other.keys() == default.keys()
    assert not [key for key in ("MODEL", "TEACHER", "DATASET", "SCORES", "DTYPE") if other[key] == default[key]]
    _, *block = source.split(OTHER_SETTINGS)
    assert (
        settings_of(re.sub(r"^# (?=[A-Z_, ]+ = )", "", block[0].partition("\n")[2], flags=re.M)).keys()
        == default.keys()
    )
    assert all(Path(resolve(default[key])).is_dir() for key in ("MODEL", "TEACHER", "SCORES"))
    for values in (default, other):
        precision = {"fp16": False, "bf16": False}
        SDSCLIPConfig(output_dir="o", trainable=values["TRAINABLE"], max_steps=values["STEPS"], **precision)


# Slow: the notebooks themselves


@pytest.fixture(scope="module")
def run_notebook():
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "tools/notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.run


@pytest.fixture
def of_this_environment(monkeypatch):
    """``!sdsclip`` in a cell finds this environment's command, and the package that is tested."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)


def printed(notebook: NotebookNode) -> str:
    return "\n".join(
        output.text for cell in code_cells(notebook) for output in cell.outputs if output.output_type == "stream"
    )


def shown(notebook: NotebookNode, kind: str) -> int:
    return sum(kind in output.get("data", {}) for cell in code_cells(notebook) for output in cell.outputs)


@pytest.mark.slow
def test_from_zero_to_a_tuned_clip_runs_and_its_group_score_rises(tmp_path, run_notebook, of_this_environment):
    notebook = run_notebook(read(TUNED), tmp_path)
    line = next(
        line
        for line in printed(notebook).splitlines()
        if re.match(r"shapes:test +all +group", line) and line.count("[") == 2
    )
    before, after = (float(value) for value in re.findall(r"([\d.]+) \[", line))
    assert before < 10 and after > 60
    share = re.search(r"([\d.]+)% +a yellow triangle below a purple square", printed(notebook))
    assert share and 0 <= float(share[1]) <= 100
    assert shown(notebook, "image/png") == 3
    assert any('class="duel"' in text and "Tuned" in text for text in texts(notebook))
    assert (tmp_path / "outputs/notebook_shapes/model.safetensors").is_file()
    assert "stderr" not in {output.get("name") for cell in code_cells(notebook) for output in cell.outputs}


@pytest.mark.slow
def test_two_clips_on_a_benchmark_runs_and_its_margins_give_the_scores(tmp_path, run_notebook, of_this_environment):
    notebook = run_notebook(read(TWO), tmp_path)
    text = printed(notebook)
    shares = re.findall(r"^(student|tuned): ([\d.]+)% by the margins, ([\d.]+)% in results.json", text, flags=re.M)
    assert [name for name, *_ in shares] == ["student", "tuned"]
    assert all(by_margins == in_results for _, by_margins, in_results in shares)
    assert float(shares[1][1]) > float(shares[0][1]) + 20
    assert "McNemar p" in text and "right: student alone" in text
    assert (
        shown(notebook, "image/png") >= 3 and (tmp_path / "outputs/notebook_two_clips/scores/scores.parquet").is_file()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_with_the_settings_for_a_gpu(name, tmp_path, run_notebook, of_this_environment):
    """On small models and files in the formats of those that it names, since neither the Hub nor a GPU is here."""
    make_clip().save_pretrained(tmp_path / "clip")
    make_processor().save_pretrained(tmp_path / "clip")
    make_pipeline().save_pretrained(tmp_path / "teacher")
    rows = [{"image": row["image"], "caption_0": f"{row['caption']} on red mat"} for row in make_rows(24)]
    Dataset.from_list(rows).to_parquet(tmp_path / "pictures.parquet")
    for subset in ("swap_att", "swap_obj"):
        items = [
            {
                "image": row["image"],
                "tested_labels": [f"a red cat {n}", f"a blue dog {n}"],
                "true_label": f"a red cat {n}",
            }
            for n, row in enumerate(make_rows(8))
        ]
        Dataset.from_list(items).to_parquet(tmp_path / f"{subset}.parquet")
    notebook = read(name)
    cell = settings_cell(notebook)
    cell.source = for_gpu(cell.source)
    for there, here in {
        "openai/clip-vit-base-patch32": "clip",
        "stable-diffusion-v1-5/stable-diffusion-v1-5": "teacher",
        "jxie/flickr8k": "pictures.parquet",
        "sugarcrepe:swap_att": "sugarcrepe:swap_att=swap_att.parquet",
        "sugarcrepe:swap_obj": "sugarcrepe:swap_obj=swap_obj.parquet",
        '"float16"': '"float32"',
        "= 300, 32,": "= 6, 8,",
    }.items():
        assert there in cell.source or name == TWO, there
        cell.source = cell.source.replace(there, here)
    notebook = run_notebook(notebook, tmp_path)
    assert "swap_att" in printed(notebook) and "accuracy" in printed(notebook)
    assert list((tmp_path / "outputs/notebook_scores/data").glob("*.parquet"))
