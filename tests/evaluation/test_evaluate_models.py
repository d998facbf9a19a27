"""Evaluations: gone on with after an interruption, told again, and refused where another would be mixed in."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_copies import aro_relation, write_json
from damage import DAMAGE
from evaluations import SHAPES, chunked, error_of, read, run, save_clip
from folders import contents
from full_disk import files_up_to
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from sdsclip_hf.benchmarks import load_benchmark
from sdsclip_hf.common import precision
from sdsclip_hf.evaluation import evaluate_models
from sdsclip_hf.evaluation.scorers import ClipScorer, DiffusionScorer
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

pytestmark = pytest.mark.usefixtures("work_folder")


def without_command(results: dict) -> dict:
    return {name: value for name, value in results.items() if name != "command"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is gone")], ids=["Ctrl-C", "OSError"])
def test_interrupted_evaluation_goes_on_and_ends_bit_by_bit_the_same(clip_folder, other_clip, monkeypatch, error):
    words = "--model", clip_folder, other_clip, "--benchmark", SHAPES, "--batch_size", 32
    with monkeypatch.context() as patch:
        assert chunked(patch, ClipScorer, 50) == []
        whole = run(*words, output="whole")
    with monkeypatch.context() as patch:
        done = chunked(patch, ClipScorer, 50, 8, error)
        with pytest.raises(SystemExit):
            run(*words)
        assert done == [50, 50, 50, 50, 50, 38, 50, 50]
    assert len(list(Path("out/parts").rglob("*.parquet"))) == 8
    assert not Path("out/results.json").exists() and not Path("out/scores.parquet").exists()
    with monkeypatch.context() as patch:
        done = chunked(patch, ClipScorer, 50)
        again = run(*words)
        assert done == [50, 50, 50, 38]
    assert without_command(again) == without_command(whole)
    assert Path("out/scores.parquet").read_bytes() == Path("whole/scores.parquet").read_bytes()
    written = {"evaluation.json", "results.json", "scores.parquet", "scores.png", "report.html"}
    assert set(contents("out")) == written


def test_a_full_disk_ends_an_evaluation_and_damage_to_a_part_is_seen_when_it_goes_on(clip_folder, monkeypatch, caplog):
    words = "--model", clip_folder, "--benchmark", SHAPES
    with monkeypatch.context() as patch:
        chunked(patch, ClipScorer, 50)
        whole = run(*words, output="whole")
        too_small = Path("whole/scores.parquet").stat().st_size - 1
        for room, what in ((3_000, "part-000000000"), (too_small, "scores.parquet")):
            with files_up_to(room):
                told = error_of(*words)
            assert re.search(rf"{what} could not be written: File too large \(.* free in .*\)\. Make room", told)
    (part,) = Path("out/parts").rglob("part-000000050*")
    DAMAGE["one bit"](part)
    with monkeypatch.context() as patch:
        done = chunked(patch, ClipScorer, 50)
        assert without_command(run(*words)) == without_command(whole)
        assert done == [50, 50, 50, 50, 38] and f"{part} is not what was written: it is made anew" in caplog.text
    assert Path("out/scores.parquet").read_bytes() == Path("whole/scores.parquet").read_bytes()


def test_interrupted_teacher_goes_on_and_ends_bit_by_bit_the_same(teacher_folder, monkeypatch):
    few = load_benchmark(SHAPES)
    few.items = few.items[:10]
    monkeypatch.setattr(evaluate_models, "load_benchmark", lambda *_: few)
    words = "--teacher", teacher_folder, "--benchmark", SHAPES, "--num_draws", 2
    with monkeypatch.context() as patch:
        chunked(patch, DiffusionScorer, 4)
        whole = run(*words, output="whole")
    with monkeypatch.context() as patch:
        chunked(patch, DiffusionScorer, 4, 1, KeyboardInterrupt())
        with pytest.raises(SystemExit, match="interrupted; type the same command again"):
            run(*words)
    with monkeypatch.context() as patch:
        assert chunked(patch, DiffusionScorer, 4) is not None
        done = chunked(patch, DiffusionScorer, 4)
        assert without_command(run(*words)) == without_command(whole)
        assert done == [4, 2]
    assert Path("out/scores.parquet").read_bytes() == Path("whole/scores.parquet").read_bytes()


KILLED = """
import os, signal, sys
from functools import partial
from sdsclip_hf.common import chunks
from sdsclip_hf.commands import evaluate
from sdsclip_hf.evaluation import evaluate_models

write = chunks.pq.write_table
def killed(table, path):
    write(table, path)
    if path.name.startswith("part-000000100"):
        path.write_bytes(path.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)
chunks.pq.write_table = killed
evaluate_models.ClipScorer = partial(evaluate_models.ClipScorer, chunk_size=50)
evaluate.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_evaluation_goes_on_behind_its_last_whole_part(clip_folder, monkeypatch):
    words = "--model", clip_folder, "--benchmark", SHAPES
    line = [sys.executable, "-c", KILLED, *words, "--output_dir", "out", "--num_workers", "0"]
    killed = subprocess.run(line, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    left = sorted(part.name for part in Path("out/parts").rglob("part-*"))
    assert [part.split("-")[1] for part in left[:2]] == ["000000000", "000000050"]
    assert len(left) == 3 and re.fullmatch(r"part-000000100\.\S+\.partial", left[2])
    with monkeypatch.context() as patch:
        done = chunked(patch, ClipScorer, 50)
        again = run(*words)
        assert done == [50, 50, 50, 38]
    with monkeypatch.context() as patch:
        chunked(patch, ClipScorer, 50)
        assert without_command(run(*words, output="whole")) == without_command(again)
    assert Path("out/scores.parquet").read_bytes() == Path("whole/scores.parquet").read_bytes()


def test_finished_evaluation_is_told_again_and_not_repeated(clip_folder, other_clip, monkeypatch, capsys):
    words = "--model", clip_folder, other_clip, "--benchmark", SHAPES, "retrieval:validation=shapes"
    results = run(*words)
    before, printed = contents("out"), capsys.readouterr().out
    for name in ("score_chunks", "embed_images", "embed_captions"):
        monkeypatch.setattr(ClipScorer, name, lambda *_: pytest.fail("something was scored again"))
    assert run(*words) == results
    assert {name: content for name, content in contents("out").items() if name != "scores.png"} == {
        name: content for name, content in before.items() if name != "scores.png"
    }
    told = capsys.readouterr().out
    assert told.rpartition("It took")[0] == printed.rpartition("It took")[0]


def test_parts_left_by_a_stop_after_the_results_do_no_harm(clip_folder, monkeypatch):
    words = "--model", clip_folder, "--benchmark", SHAPES
    remove = shutil.rmtree

    def stopped(folder, *options, **named):
        if Path(folder).name == "parts":
            raise KeyboardInterrupt
        remove(folder, *options, **named)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_models.shutil, "rmtree", stopped)
        with pytest.raises(SystemExit, match="interrupted; type the same command again"):
            run(*words)
    results = read()
    assert run(*words) == results
    assert not Path("out/parts").exists()


@pytest.fixture
def begun(clip_folder, monkeypatch):
    """An evaluation that was stopped after its first chunk."""
    with monkeypatch.context() as patch:
        chunked(patch, ClipScorer, 50, 1, KeyboardInterrupt())
        with pytest.raises(SystemExit, match="interrupted; type the same command again"):
            run("--model", clip_folder, "--benchmark", SHAPES)
    return clip_folder


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    "change, named",
    [
        (["--dtype", "bfloat16"], "dtype is 'auto', not 'bfloat16'"),
        (["--seed", "3"], "seed is 0, not 3"),
        (["--num_draws", "3"], "num_draws is 10, not 3"),
        (["--image_dir", "there"], "image_dir is None, not 'there'"),
        (["--benchmark", "shapes:test"], "benchmark shapes:test is None, not "),
    ],
    ids=str,
)
def test_other_settings_are_refused_and_nothing_is_overwritten(begun, change, named, finished):
    words = "--model", begun, "--benchmark", SHAPES
    if finished:
        run(*words)
    before = contents("out")
    message = error_of(*words, *change)
    assert message.startswith(f"error: out holds another evaluation: its {named}") and "--output_dir" in message
    assert contents("out") == before


def test_fewer_benchmarks_are_refused(clip_folder):
    run("--model", clip_folder, "--benchmark", SHAPES, "retrieval:validation=shapes")
    message = error_of("--model", clip_folder, "--benchmark", SHAPES)
    assert "its benchmark retrieval:validation=shapes is {" in message and "--output_dir" in message


def test_changed_copy_of_a_benchmark_is_refused(clip_folder, sugarcrepe):
    words = "--model", clip_folder, "--benchmark", f"sugarcrepe={sugarcrepe}"
    run(*words)
    before = contents("out")
    file = sugarcrepe / "swap_obj.json"
    file.write_text(file.read_text().replace("a dog on mat", "a cat on mat"))
    message = error_of(*words)
    assert f"its benchmark sugarcrepe={sugarcrepe} is" in message and "--output_dir" in message
    assert contents("out") == before


def test_other_prompts_are_refused_also_if_they_come_from_a_file(clip_folder, classes, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a {}")
    words = "--model", clip_folder, "--benchmark", f"classification={classes}", "--templates", prompts
    run(*words)
    prompts.write_text("the {}")
    assert f"its benchmark classification={classes} is" in error_of(*words)


@pytest.mark.parametrize("finished", [False, True])
def test_changed_weights_are_refused(tmp_path, monkeypatch, finished):
    folder = save_clip(tmp_path / "mine", 1)
    words = "--model", folder, "--benchmark", SHAPES
    with monkeypatch.context() as patch:
        chunked(patch, ClipScorer, 50, None if finished else 1, KeyboardInterrupt())
        if finished:
            run(*words)
        else:
            with pytest.raises(SystemExit, match="interrupted; type the same command again"):
                run(*words)
    before = contents("out")
    save_clip(tmp_path / "mine", 2)
    message = error_of(*words)
    assert f"the weights of {folder} are not those that out was begun with" in message and "--output_dir" in message
    assert contents("out") == before


def test_a_teacher_is_in_the_machine_s_number_format_which_is_recorded(teacher_folder, monkeypatch):
    few = load_benchmark(SHAPES)
    few.items = few.items[:2]
    monkeypatch.setattr(evaluate_models, "load_benchmark", lambda *_: few)
    words = "--teacher", teacher_folder, "--benchmark", SHAPES, "--num_draws", 2
    (plain,) = run(*words)["models"].values()
    assert "dtype" not in plain  # as in results of earlier versions
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr(precision, "mixed_precision", lambda: "bf16")
        assert "which were float32 and are bfloat16 on this machine. Choose another --output_dir" in error_of(*words)
        (rounded,) = run(*words, output="rounded")["models"].values()
        assert rounded["dtype"] == "bfloat16" and rounded["fingerprint"] != plain["fingerprint"]
        (asked,) = run(*words, "--dtype", "float32", output="asked")["models"].values()
        assert asked == plain


@pytest.mark.parametrize("kept", ["results.json", "scores.parquet", "scores.png", "parts/mine.txt"])
def test_folder_of_something_else_is_refused_and_kept(clip_folder, kept):
    Path("out", kept).parent.mkdir(parents=True)
    Path("out", kept).write_text('{"before": {}}')
    message = error_of("--model", clip_folder, "--benchmark", SHAPES)
    assert "out holds the results of another run" in message and "--output_dir" in message
    assert contents("out") == {kept: b'{"before": {}}'}


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model fails the test."""
    monkeypatch.setattr(evaluate_models, "load_dual_encoder", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(DiffusionTeacher, "from_pretrained", lambda *_, **__: pytest.fail("a teacher was loaded"))


@pytest.mark.parametrize("ranked", ["classification", "retrieval:validation=shapes"])
def test_teacher_with_ranks_is_refused_before_anything_is_scored(teacher_folder, classes, no_model, ranked):
    spec = f"classification={classes}" if ranked == "classification" else ranked
    message = error_of("--model", "m", "--teacher", teacher_folder, "--benchmark", SHAPES, spec)
    assert f"{spec} compares every image with every caption" in message and "--model" in message
    assert not Path("out").exists()


def test_model_named_twice_is_refused(clip_folder, no_model):
    assert f"{clip_folder} name one twice" in error_of("--model", clip_folder, clip_folder, "--benchmark", SHAPES)


def test_unknown_benchmark_is_refused_with_the_choices(clip_folder, no_model):
    message = error_of("--model", clip_folder, "--benchmark", SHAPES, "winogrand")
    assert "unknown benchmark 'winogrand'; choose from winoground, aro_relation" in message
    assert not Path("out").exists()


def test_scores_that_are_nan_are_refused_with_their_item(tmp_path, classes):
    folder = save_clip(tmp_path / "broken", 1)
    model = CLIPModel.from_pretrained(folder)
    torch.nn.init.constant_(model.visual_projection.weight, float("nan"))
    model.save_pretrained(folder)
    assert f"{SHAPES}: the scores of item 0 hold NaN" in error_of("--model", folder, "--benchmark", SHAPES)
    spec = f"classification={classes}"
    assert f"the embedding of {spec}: item '0' holds NaN" in error_of(
        "--model", folder, "--benchmark", spec, output="o"
    )
    spec = "retrieval:validation=shapes"
    assert f"the embedding of {spec}: item '0' holds NaN" in error_of(
        "--model", folder, "--benchmark", spec, output="p"
    )


def test_nan_is_refused_as_soon_as_it_is_met_and_not_kept(clip_folder, monkeypatch):
    done = chunked(monkeypatch, ClipScorer, 50)
    score = ClipScorer.score_chunks

    def broken(self, items):
        for number, chunk in enumerate(score(self, items)):
            if number == 2:
                chunk[7] = chunk[7] * np.nan
            yield chunk

    monkeypatch.setattr(ClipScorer, "score_chunks", broken)
    assert f"{SHAPES}: the scores of item 107 hold NaN" in error_of("--model", clip_folder, "--benchmark", SHAPES)
    assert done == [50, 50, 50]
    assert len(list(Path("out/parts").rglob("*.parquet"))) == 2


def test_folder_of_a_run_that_failed_before_it_scored_anything_is_used_again(clip_folder, tmp_path):
    assert "could not load" in error_of("--model", "no/such-model", "--benchmark", SHAPES)
    assert Path("out/evaluation.json").exists()
    folder = save_clip(tmp_path / "broken", 1)
    model = CLIPModel.from_pretrained(folder)
    torch.nn.init.constant_(model.visual_projection.weight, float("nan"))
    model.save_pretrained(folder)
    assert "hold NaN" in error_of("--model", folder, "--benchmark", SHAPES)
    save_clip(tmp_path / "broken", 2)
    assert list(run("--model", folder, "--benchmark", SHAPES)["models"]) == ["broken"]
    assert "holds another evaluation: its model" in error_of("--model", clip_folder, "--benchmark", SHAPES)


def test_long_names_that_end_alike_have_folders_of_their_own():
    ending = "x" * 200
    slugs = {evaluate_models._slug(name) for name in (f"a{ending}", f"b{ending}", "a/b", "a_b", "a:b")}
    assert len(slugs) == 5 and all(len(slug) < 100 and "/" not in slug for slug in slugs)


def test_changed_pictures_are_refused(clip_folder, tmp_path):
    copy = aro_relation()
    source = write_json(tmp_path / "copy", copy)
    words = "--model", clip_folder, "--benchmark", f"aro_relation={source}"
    run(*words)
    path = next((source / "images").iterdir())
    Image.new("RGB", (90, 90), "red").save(path)
    with pytest.raises(SystemExit, match="holds another evaluation"):
        run(*words)


def test_changed_preprocessing_is_refused(clip_folder, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "clip")
    words = "--model", tmp_path / "clip", "--benchmark", SHAPES
    run(*words)
    processor = CLIPProcessor.from_pretrained(tmp_path / "clip")
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(tmp_path / "clip")
    with pytest.raises(SystemExit, match=r"the weights .* are not those"):
        run(*words)
