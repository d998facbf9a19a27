"""What tests of `sdsclip evaluate` share; conftest.py makes a plugin of it."""

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import make_clip, make_processor, make_rows

from sdsclip_hf.benchmarks import Benchmark
from sdsclip_hf.commands import evaluate
from sdsclip_hf.common.resources import versions
from sdsclip_hf.evaluation import evaluate_models
from sdsclip_hf.evaluation.answers import Answers, merge
from sdsclip_hf.evaluation.outcomes import outcomes
from sdsclip_hf.evaluation.results import score_rows
from sdsclip_hf.evaluation.significance import compare

SHAPES = "shapes:validation"


def save_clip(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    make_clip().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def other_clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("other") / "clip_b", 11)


def run(*words, output="out") -> dict:
    evaluate.main([*map(str, words), "--output_dir", str(output), "--num_workers", "0"])
    return read(output)


def read(output="out") -> dict:
    return json.loads(Path(output, "results.json").read_text())


def error_of(*words, output="out") -> str:
    with pytest.raises(SystemExit) as stop:
        run(*words, output=output)
    assert isinstance(stop.value.code, str) and stop.value.code.startswith("error: "), stop.value.code
    return stop.value.code


def by_name(rows) -> dict:
    return {(row["subset"], row["score"]): row for row in rows}


def scores_of(folder="out", **chosen) -> list[dict]:
    rows = datasets.Dataset.from_parquet(str(Path(folder, "scores.parquet")), cache_dir="cache")
    return [row for row in rows if all(row[name] == value for name, value in chosen.items())]


def save_picture(place: Path, number: int) -> str:
    place.parent.mkdir(parents=True, exist_ok=True)
    make_rows(number + 1)[number]["image"].save(place)
    return place.name


CASES = {"add_obj": 3, "add_att": 2, "replace_obj": 4, "replace_att": 2, "replace_rel": 3, "swap_obj": 2, "swap_att": 5}


@pytest.fixture
def sugarcrepe(tmp_path):
    """The seven json files with two to five items each, beside their images."""
    folder = tmp_path / "data/sugarcrepe"
    rng = np.random.default_rng(0)
    for subset, count in CASES.items():
        items = {}
        for number in range(count):
            name = save_picture(folder / f"val2017/{subset}{number}.jpg", int(rng.integers(20)))
            items[str(number * 3)] = {
                "filename": name,
                "caption": f"a red {subset}",
                "negative_caption": "a dog on mat",
            }
        (folder / f"{subset}.json").write_text(json.dumps(items))
    return folder


@pytest.fixture
def classes(tmp_path):
    """An imagefolder of two classes."""
    for number in range(8):
        save_picture(tmp_path / f"classes/test/{['red_cat', 'dog'][number % 2]}/{number}.png", number)
    return tmp_path / "classes"


def chunked(monkeypatch, kind, size, stop_after=None, error=None) -> list[int]:
    """Make the command's scorer work in chunks of ``size`` and fail after some; returns what each chunk held."""
    done: list[int] = []

    class Slow(kind):
        def score_chunks(self, items):
            for chunk in super().score_chunks(items):
                if stop_after is not None and len(done) == stop_after:
                    raise error
                done.append(len(chunk))
                yield chunk

    monkeypatch.setattr(evaluate_models, kind.__name__, partial(Slow, chunk_size=size))
    return done


def write_evaluation(folder: Path, answered: Sequence[tuple[Benchmark, dict[str, list[np.ndarray]]]]) -> Path:
    """A folder as `sdsclip evaluate` leaves it, of answers that no model had to give."""
    folder.mkdir(parents=True)
    by_benchmark, tables = {}, []
    for benchmark, answers in answered:
        found = {run: outcomes(benchmark, of_run) for run, of_run in answers.items()}
        first, *others = found
        by_benchmark[benchmark.name] = {
            "source": {"name": "made", "revision": None, "split": None, "missing_images": 0} | benchmark.source,
            "captions_cut": dict.fromkeys(answers, 0),
            "scores": {run: score_rows(one) for run, one in found.items()},
            "differences": {run: compare(found[first], found[run]) for run in others},
        }
        for run, of_run in answers.items():
            parts = Answers(folder / "parts" / f"{len(tables)}", run, benchmark)
            parts.append(0, of_run)
            tables += parts.tables()
    models = {run: {"name": f"models/{run}", "kind": "dual encoder", "fingerprint": run} for run in answered[0][1]}
    results = {"command": "sdsclip evaluate", "versions": versions(), "models": models, "benchmarks": by_benchmark}
    (folder / "results.json").write_text(json.dumps(results))
    merge(tables, folder / "scores.parquet")
    shutil.rmtree(folder / "parts")
    return folder
