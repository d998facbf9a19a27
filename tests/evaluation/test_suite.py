"""The suite of composition on small copies of all its benchmarks: what is encoded, the scores, and their mean."""

import re

import benchmark_copies
import numpy as np
import pytest
from evaluations import by_name, read, run
from preset_copies import COPIES

from sdsclip_hf.benchmarks import ARO, SUITES, load_benchmark, picture_key
from sdsclip_hf.benchmarks.sugarcrepe import SUBSETS
from sdsclip_hf.evaluation.results import evaluate_benchmark
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.students.dual_encoder import load_dual_encoder

pytestmark = pytest.mark.usefixtures("work_folder")


@pytest.fixture
def data(tmp_path):
    """A folder a benchmark."""
    folder = tmp_path / "data"
    for name in ("winoground", *ARO):
        benchmark_copies.write_file(folder / name, getattr(benchmark_copies, name)())
    for subset in SUBSETS:
        benchmark_copies.write_json(folder / "sugarcrepe", benchmark_copies.sugarcrepe(subset))
    for name in set(SUITES["composition"]) & set(COPIES):
        copy = COPIES.get(f"{name}, the authors' files", COPIES[name])()
        copy.write(folder / name if name != "vismin" else folder)
        if name == "vismin":
            (folder / "data").rename(folder / "vismin")
    return folder


def test_the_suite_encodes_all_once_and_ends_with_a_row_a_model(data, clip_folder, other_clip, monkeypatch, capsys):
    encoded: dict[int, list] = {}
    for method, key in (("_encode_images", picture_key), ("_encode_captions", str)):
        original = getattr(ClipScorer, method)

        def noted(self, things, original=original, key=key):
            encoded.setdefault(id(self), []).extend(map(key, things))
            return original(self, things)

        monkeypatch.setattr(ClipScorer, method, noted)
    results = run("--model", clip_folder, "--model", other_clip, "--benchmark", "composition", "--data", data)
    specs = [f"{name}={data / name}" for name in SUITES["composition"]]
    assert list(results["benchmarks"]) == specs
    benchmarks = {spec: load_benchmark(spec) for spec in specs}
    uses = [
        {
            *(picture_key(image) for item in one.items for image in item.images),
            *(c for i in one.items for c in i.captions),
        }
        for one in benchmarks.values()
    ]
    encoder = load_dual_encoder(clip_folder)
    distinct = set().union(*uses)
    assert len(encoded) == 2
    for keys in encoded.values():
        assert len(keys) == len(set(keys)) and set(keys) <= distinct
        left = distinct - set(keys)  # captions of the same tokens as others are no others to the model
        assert all(isinstance(key, str) for key in left)
        told = {tuple(ids) for ids in encoder.tokenize([key for key in keys if isinstance(key, str)])}
        assert {tuple(ids) for ids in encoder.tokenize(sorted(left))} <= told
    assert sum(map(len, uses)) > len(distinct) + 10  # many are shared
    name = next(iter(results["models"]))
    scores: dict[str, list[float]] = {}
    for spec, benchmark in benchmarks.items():
        alone = evaluate_benchmark(ClipScorer(encoder.model, encoder.processor), benchmark)
        found = results["benchmarks"][spec]["scores"][name]
        assert [(row["subset"], row["score"], row["value"]) for row in found] == [
            (row["subset"], row["score"], row["value"]) for row in alone
        ]
        bench, rows = re.split("=", spec)[0], by_name(alone)
        main = {"mmvp_vlm": "image accuracy", "sugarcrepe_pp": "macro ITT"}.get(bench, "macro accuracy")
        main = "group" if ("all", "group") in rows and bench != "mmvp_vlm" else main
        main = "accuracy" if bench.endswith("_order") else "micro accuracy" if bench == "aro_attribution" else main
        subsets = ("image to text", "text to image") if bench == "spec" else ("all",)
        value = np.mean([rows[subset, main]["value"] for subset in subsets])
        scores.setdefault("aro" if bench in ARO else bench, []).append(value)
    expected = {bench: np.mean(values) for bench, values in scores.items()}
    suite = results["suites"]["composition"]
    assert suite[name] == pytest.approx(expected | {"macro mean": np.mean(list(expected.values()))})
    assert len(expected) == len(SUITES["composition"]) - 3
    text = capsys.readouterr().out
    lines = text[text.index("composition, the main score of each in %:") :].splitlines()[1:5]
    assert lines[0].split()[-2:] == ["macro", "mean"] and [line.split()[0] for line in lines[2:]] == list(suite)
    assert lines[2].split()[-1] == f"{100 * suite[name]['macro mean']:.1f}"
    assert "suites" in read() and "the published benchmark has 2933" in text


def test_what_is_no_suite_has_no_mean(clip_folder):
    assert "suites" not in run("--model", clip_folder, "--benchmark", "shapes:validation")
