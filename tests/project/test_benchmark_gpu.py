"""The benchmark of GPUs: rehearsed on a CPU it runs every row and writes the same json."""

import json
import sys
from itertools import count
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import gpu
from gpu_speed import rows
from gpu_speed.models import SIZES, Bench
from gpu_speed.timing import seconds

OF_STEP = {"pairs", "GiB", "seconds", "spread", "images/s", "MFU", "trained", "width"}
OF_DRAW = {"batch", "GiB", "seconds", "spread", "pairs/s", "share of the denoiser", "MFU"}
OF_EVALUATION = {"seconds", "spread", "images/s", "captions/s", "images/s of the tower", "workers"}
OF_EVALUATION |= {"images/s, prepared on the device"}
POINTS = {
    "training": OF_STEP,
    "grad_cache": OF_STEP - {"trained", "width"} | {"mini-batch"},
    "scoring": OF_DRAW,
    "evaluation": OF_EVALUATION,
    "compiled": {"time", "memory", "spread"},
    "option": {"time", "memory", "spread"},
}


def rehearsed(folder: Path, *words: str) -> dict:
    gpu.main(["--rehearse", "--output_dir", str(folder), *words])
    results = json.loads((folder / "results.json").read_text())
    assert results["failed"].keys() <= {"option/teacher_compile"}  # CPUs are refused it, for a wrong gradient
    assert not results["left out"]
    for name, points in results["rows"].items():
        assert points, name
        for point in points:
            assert point.keys() - {"planned GiB"} == POINTS[name.partition("/")[0]], name
    return results


def test_rows_are_measured_and_written_with_their_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "correctness", lambda bench: {})
    found = rehearsed(tmp_path, "--rows", "training/tiny/contrastive", "scoring/SD 1.5", "evaluation")
    assert list(found["rows"]) == ["training/tiny/contrastive", "scoring/SD 1.5/8", "evaluation/tiny"]
    assert found["machine"]["rehearsed"] and torch.__version__.startswith(found["machine"]["versions"]["torch"])
    assert found["machine"]["matrix_tflops"] > 0 and found["machine"]["precision"] == "float32"
    last = found["rows"]["training/tiny/contrastive"][-1]
    assert [point["pairs"] for point in found["rows"]["training/tiny/contrastive"]] == list(SIZES["tiny"].batches)
    assert last["planned GiB"] > 0 and last["images/s"] == pytest.approx(last["pairs"] / last["seconds"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "results.json",
        "scoring.png",
        "table.md",
        "training.png",
    ]
    assert "| scoring/SD 1.5/8 | batch" in (tmp_path / "table.md").read_text()
    gpu.main(["--rehearse", "--output_dir", str(tmp_path / "none"), "--seconds", "-1", "--rows", "evaluation"])
    assert "No time was left for: evaluation/tiny" in capsys.readouterr().out


@pytest.mark.slow
def test_every_row_can_be_rehearsed(tmp_path):
    found = rehearsed(tmp_path, "--seconds", "3600")
    bench = Bench(torch.device("cpu"), SIZES["tiny"], tmp_path, torch.float32, 1.0)
    assert [*found["rows"], *found["failed"]] == list(rows.all_rows(bench))
    assert found["differences from the CPU"].keys() >= {"loss of L_SDS, full", "errors of the scoring"}
    assert max(found["differences from the CPU"].values()) == 0.0


def test_nothing_is_timed_where_the_device_computes_something_else(tmp_path, monkeypatch):
    differing = (torch.ones(2) + place for place in count())
    monkeypatch.setattr(rows, "_loss_and_gradient", lambda *_: (torch.ones(1), torch.ones(2)))
    monkeypatch.setattr(rows, "_errors", lambda *_: next(differing))
    with pytest.raises(SystemExit, match=r"differ from the CPU's .*errors of the scoring.* Nothing was timed"):
        gpu.main(["--rehearse", "--output_dir", str(tmp_path)])
    assert not (tmp_path / "results.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_without_a_gpu_nothing_is_measured_and_that_is_said(tmp_path, capsys):
    gpu.main(["--output_dir", str(tmp_path)])
    assert capsys.readouterr().out == (
        "not measured: PyTorch finds no GPU here. --rehearse tries the code on the CPU.\n"
    )
    assert not list(tmp_path.iterdir())


def test_what_is_timed_is_the_median_after_a_warm_up(monkeypatch):
    clock = iter([0.0, 9.0, 9.0, 10.0, 10.0, 12.0, 12.0, 16.0])  # runs of 9, 1, 2 and 4 seconds
    monkeypatch.setattr("gpu_speed.timing.time.perf_counter", lambda: next(clock))
    runs = []
    found = seconds(lambda: runs.append(1), torch.device("cpu"), repeats=4, warm_up=3)
    assert len(runs) == 7 and found == {"seconds": 3.0, "spread": 8 / 3}
