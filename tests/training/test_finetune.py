"""The main job from its command line: what it leaves behind, how it goes on, and how it refuses."""

import json
import re
from pathlib import Path

import datasets
import matplotlib.pyplot as plt
import pytest
import torch
import yaml
from conftest import make_rows
from finetuning import error_of
from folders import contents
from forking import run_forked
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor

from sdsclip_hf.commands.finetune import main
from sdsclip_hf.evaluation.results import evaluate_benchmarks
from sdsclip_hf.evaluation.scorers import ClipScorer


@pytest.fixture(scope="session")
def imagefolder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagefolder")
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as file:
        for number, row in enumerate(make_rows(12)):
            row["image"].save(folder / f"{number}.png")
            file.write(json.dumps({"file_name": f"{number}.png", "caption": row["caption"]}) + "\n")
    return str(folder)


def test_run_leaves_a_model_results_plot_and_arguments(drawn, words, clip_folder):
    main(words())
    clip, info = CLIPModel.from_pretrained("out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    CLIPProcessor.from_pretrained("out")
    before = CLIPModel.from_pretrained(clip_folder).state_dict()
    assert any(not torch.equal(before[name], tensor) for name, tensor in clip.state_dict().items())
    results = json.loads(Path("out/results.json").read_text())
    assert results["steps"] == 2
    assert torch.__version__.startswith(results["versions"]["torch"])
    assert results["command"].startswith("finetune --model_name_or_path")
    height, width, _ = plt.imread("out/losses.png").shape
    assert height > 100 and width > 100
    assert not list(Path("out").rglob("*.partial"))


def test_written_arguments_give_the_same_run_again(words):
    main(words(lambda_sds=0.5, timestep_range=[10, 500], mapper_learning_rate=1e-3, train_text=False))
    settings = yaml.safe_load(Path("out/run.yaml").read_text())
    assert settings["lambda_sds"] == 0.5
    assert settings["timestep_range"] == [10, 500]
    kept = {"caption_column": "caption", "sds_reading": "noised", "trainable": "layernorm", "dataset_revision": None}
    kept |= {
        "train_split_name": "train",
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "gradient_accumulation_steps": 1,
    }
    assert settings | kept == settings  # what was left at its default decided the run, too
    assert "hub_token" not in settings and "overwrite_output_dir" not in settings
    main(["--config", "out/run.yaml", "--output_dir", "again"])
    one, other = load_file("out/model.safetensors"), load_file("again/model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    again = yaml.safe_load(Path("again/run.yaml").read_text())
    assert again | {"output_dir": "out"} == settings


def test_imagefolder_trains_and_evaluates_on_a_split(words, imagefolder):
    main(
        words(
            dataset_name=imagefolder, train_split_name="train[:8]", eval_split_name="train[8:]", eval_strategy="epoch"
        )
    )
    evaluation = json.loads(Path("out/results.json").read_text())["evaluation"]
    assert evaluation["eval_loss"] == pytest.approx(evaluation["eval_contrastive"] + evaluation["eval_sds"], rel=1e-5)


def test_benchmarks_are_scored_before_and_after(drawn, words, clip_folder, capsys):
    main(words(test_benchmarks=["shapes:validation"], learning_rate=0.1))
    results = json.loads(Path("out/results.json").read_text())
    for moment, model in (("before", clip_folder), ("after", "out")):
        scorer = ClipScorer(CLIPModel.from_pretrained(model), CLIPProcessor.from_pretrained(model))
        expected = json.loads(json.dumps(evaluate_benchmarks(scorer, ["shapes:validation"])))
        assert results[moment] == expected
        rows = results[moment]["shapes:validation"]
        assert {row["subset"] for row in rows} == {"all", "attribute", "attribute in relation", "relation"}
    assert results["before"] != results["after"]
    assert Path("out/scores.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "Scored before and after on shapes:validation." in printed and "Everything goes to out." in printed
    assert re.search(r"^before: attribute [\d.]+ \(group\), .*relation [\d.]+ \(group\)$", printed, re.M)
    assert (
        max(map(len, printed.partition("Scores in %, with 95 % intervals:")[2].partition("The tuned")[0].splitlines()))
        < 101
    )
    assert "{'" not in printed  # Trainer's dictionaries
    report = Path("out/results.md").read_text()
    for row in results["after"]["shapes:validation"]:
        assert f"| {row['subset']} | {row['score']} | {row['n']} |" in report
    assert {f"![{alt}]({file})" for alt, file in (("scores", "scores.png"), ("all scores", "scores_all.png"))} < {
        *report.splitlines()
    }


def test_run_without_teacher_needs_none(words):
    main(words(teacher_name_or_path=None, lambda_sds=0))
    assert not Path("out/latent_mapper.safetensors").exists()
    assert CLIPModel.from_pretrained("out")


def test_stream_trains_and_tells_at_the_end_what_it_skipped(words, pairs, capsys):
    rows = pairs.select(range(9)).cast_column("image", datasets.Image(decode=False)).to_list()
    rows[3]["caption"] = None
    datasets.Dataset.from_list(rows, features=pairs.features).to_parquet("rows.parquet")
    main(words(dataset_name="rows.parquet", streaming=True, max_train_samples=9, max_bad_images=1, max_steps=3))
    assert json.loads(Path("out/results.json").read_text())["steps"] == 3
    assert Path("out/bad_images.txt").read_text().startswith(f"row 3 of {Path('rows.parquet').resolve()}\t")
    told = "1 unreadable image or missing caption was skipped; out/bad_images.txt names each."
    assert told in capsys.readouterr().out


KILLED = """
import os, sys
from transformers import TrainerCallback
from sdsclip_hf.commands import finetune
from sdsclip_hf.training import sealed_checkpoints

seal = sealed_checkpoints.seal
def killed(checkpoint, identity):
    if checkpoint.name == "checkpoint-4":
        os._exit(9)
    seal(checkpoint, identity)
sealed_checkpoints.seal = killed
finetune.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_model(words):
    options = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "trainable": "full",
        "test_benchmarks": ["shapes:validation"],
    }
    killed = run_forked(KILLED, *words(output_dir="killed", **options))
    assert killed.returncode == 9, killed.stderr
    before = Path("killed/before.json").read_text()
    main([*words(output_dir="killed", **options), "--resume_from_checkpoint", "last"])
    main(words(output_dir="whole", **options))
    assert Path("killed/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    one, other = (json.loads(Path(folder, "results.json").read_text()) for folder in ("killed", "whole"))
    assert json.loads(before) == one["before"]
    assert (one["before"], one["after"], one["steps"]) == (other["before"], other["after"], 6)
    assert yaml.safe_load(Path("killed/run.yaml").read_text()) == yaml.safe_load(Path("whole/run.yaml").read_text()) | {
        "output_dir": "killed"
    }


@pytest.mark.parametrize(
    "options",
    [{"lambda_sds": 0}, pytest.param({"trainable": "lora", "lora_dropout": 0.5}, marks=pytest.mark.slow)],
    ids=str,
)
def test_checkpoint_may_be_named_and_its_run_is_found_and_ends_the_same(words, options):
    options = options | {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    main(words(**options))
    first = Path("out/model.safetensors").read_bytes()
    Path("out/model.safetensors").unlink()
    main(words(**options, output_dir=None, resume_from_checkpoint="out/checkpoint-2"))
    assert Path("out/model.safetensors").read_bytes() == first
    assert not Path("outputs").exists()


def test_resuming_before_the_first_checkpoint_starts_at_step_0(words, capsys):
    main(words(resume_from_checkpoint="last"))
    assert "no whole checkpoint yet: starting at step 0" in capsys.readouterr().out
    assert Path("out/model.safetensors").exists()
    assert Path("out/run.yaml").exists()


def test_checkpoint_that_is_nowhere_is_refused(words):
    assert "there is no such folder" in error_of(words(resume_from_checkpoint="out/checkpoint-7"))
    assert not Path("out").exists()


def test_resuming_with_other_settings_is_refused_by_their_name_and_changes_nothing(words):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    main(words(**options))
    before = contents("out")
    message = error_of(words(**options, lambda_sds=3, resume_from_checkpoint="last"))
    assert "--lambda_sds was 1.0 and is now 3.0" in message
    assert contents("out") == before


@pytest.fixture(scope="session")
def odd_data(tmp_path_factory, pairs):
    """Datasets that cannot be trained on, each saved to disk."""
    folder = tmp_path_factory.mktemp("odd")
    numbers = pairs.remove_columns("caption").add_column("caption", list(range(len(pairs))))
    numbers.save_to_disk(folder / "numbers")
    pairs.select([]).save_to_disk(folder / "empty")
    pairs.select([0]).save_to_disk(folder / "single")
    broken = [{"image": {"bytes": b"no picture", "path": None}, "caption": "cat"}] * 8
    features = datasets.Features({"image": datasets.Image(decode=False), "caption": datasets.Value("string")})
    datasets.Dataset.from_list(broken, features=features).save_to_disk(folder / "broken")
    return folder


MISTAKES = {
    "caption column": ({"caption_column": "text"}, "'text' not found; the dataset has 'image', 'caption'"),
    "image column": ({"image_column": "img"}, "'img' not found"),
    "empty dataset": ({"dataset_name": "{odd}/empty"}, "no rows"),
    "one pair": ({"dataset_name": "{odd}/single"}, "at least two pairs"),
    "captions that are numbers": ({"dataset_name": "{odd}/numbers"}, "a caption must be a string"),
    "fewer pairs than a batch": ({"max_train_samples": 3}, "fewer than one batch of 4"),
    "no samples": ({"max_train_samples": 0}, "max_samples is 0"),
    "unknown split": ({"train_split_name": "training"}, "training"),
    "unknown dataset": ({"dataset_name": "nobody/nothing"}, "nobody/nothing"),
    "unknown model": ({"model_name_or_path": "nobody/nothing"}, "--model_name_or_path"),
    "unknown teacher": ({"teacher_name_or_path": "nobody/nothing"}, "--teacher_name_or_path"),
    "no teacher": ({"teacher_name_or_path": None}, "--teacher_name_or_path or --lambda_sds 0"),
    "batch of one": ({"per_device_train_batch_size": 1}, "no negatives"),
    "negative lambda": ({"lambda_sds": -1}, "lambda_sds is -1.0; it must be zero or more"),
    "timesteps": ({"timestep_range": [0, 5000]}, "0 <= first <= last <= 999"),
    "unknown benchmark": ({"test_benchmarks": ["winogrand"]}, "unknown benchmark 'winogrand'"),
    "unknown benchmark in evaluation": (
        {"benchmarks": ["winogrand"], "eval_split_name": "train", "eval_strategy": "epoch"},
        "unknown benchmark 'winogrand'",
    ),
    "stream without steps": ({"streaming": True, "max_steps": None}, "max_steps"),
}


@pytest.mark.parametrize("options, expected", MISTAKES.values(), ids=MISTAKES)
def test_mistake_ends_in_one_clear_line_and_leaves_nothing(words, odd_data, options, expected):
    filled = {k: v.format(odd=odd_data) if isinstance(v, str) else v for k, v in options.items()}
    message = error_of(words(**filled))
    assert message.startswith("error: ")
    assert expected in message
    assert "\n" not in message.strip()
    assert not contents("out")


def test_broken_image_is_named_and_the_mended_command_then_works(words, odd_data, parquet):
    message = error_of(words(dataset_name=f"{odd_data}/broken"))
    assert "could not be read" in message and "row " in message
    main(words())


def test_mistake_exits_with_status_one_and_no_traceback(words):
    done = run_forked("from sdsclip_hf.commands.cli import main; main()", "finetune", *words(lambda_sds=-1))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: lambda_sds")
    assert "Traceback" not in done.stderr
