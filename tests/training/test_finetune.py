"""The main job from its command line: what it leaves behind, how it goes on, and how it refuses."""

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import datasets
import matplotlib.pyplot as plt
import pytest
import torch
import yaml
from conftest import make_rows
from forking import run_forked
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor, HfArgumentParser, TrainingArguments

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.commands.finetune import main
from sdsclip_hf.evaluation.results import evaluate_benchmarks
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.training import beside
from sdsclip_hf.training.arguments import DataArguments, ModelArguments, parse_arguments

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="session")
def parquet(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("parquet") / "pairs.parquet"
    pairs.to_parquet(path)
    return str(path)


@pytest.fixture(scope="session")
def imagefolder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagefolder")
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as file:
        for number, row in enumerate(make_rows(12)):
            row["image"].save(folder / f"{number}.png")
            file.write(json.dumps({"file_name": f"{number}.png", "caption": row["caption"]}) + "\n")
    return str(folder)


@pytest.fixture
def words(tmp_path, monkeypatch, clip_folder, teacher_folder, parquet):
    """A command line of a short run, with options replaced, added or (None) left out; the working folder is empty."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def make(**options):
        defaults = {
            "model_name_or_path": clip_folder,
            "teacher_name_or_path": teacher_folder,
            "dataset_name": parquet,
            "output_dir": "out",
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        line = []
        for name, value in (defaults | options).items():
            if value is not None:
                line += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
        return line

    return make


def error_of(line) -> str:
    with pytest.raises(SystemExit) as stop:
        main(line)
    assert isinstance(stop.value.code, str), f"exit code {stop.value.code!r} without a message"
    return stop.value.code


def content(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_run_leaves_a_model_results_plot_and_arguments(words, clip_folder):
    main(words())
    clip, info = CLIPModel.from_pretrained("out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    CLIPProcessor.from_pretrained("out")
    before = CLIPModel.from_pretrained(clip_folder).state_dict()
    assert any(not torch.equal(before[name], tensor) for name, tensor in clip.state_dict().items())
    results = json.loads(Path("out/results.json").read_text())
    assert results["steps"] == 2
    assert results["versions"]["torch"] == torch.__version__
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


def test_benchmarks_are_scored_before_and_after(words, clip_folder, capsys):
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


def test_runs_to_compare_with_are_scored_from_the_same_start_and_only_scored(words, capsys):
    compare = "{contrastive only: {lambda_sds: 0}, + L_SDS 9: {lambda_sds: 9e0, max_steps: 3}}"
    main(words(test_benchmarks=["shapes:validation"], compare=compare, label="mine", learning_rate=0.05))
    results = json.loads(Path("out/results.json").read_text())
    assert list(results["compared"]) == ["contrastive only", "+ L_SDS 9"]
    main(words(test_benchmarks=["shapes:validation"], lambda_sds=0, learning_rate=0.05, output_dir="alone"))
    assert json.loads(Path("alone/results.json").read_text())["after"] == results["compared"]["contrastive only"]
    printed = capsys.readouterr().out
    table = printed.partition("Scores in %, with 95 % intervals:")[2].partition("The tuned")[0]
    assert re.findall(r"^(before|contrastive only|\+ L_SDS 9|mine) +\d", table, re.M) == [
        *("before", "contrastive only", "+ L_SDS 9", "mine")
    ]
    assert "3 runs from the same start: contrastive only, + L_SDS 9, mine." in printed
    assert not list(Path("out/compared").rglob("*.safetensors"))
    assert (Path("out/compared/contrastive_only/losses.png")).stat().st_size > 1000


def test_runs_beside_the_main_run_score_alike_and_their_failure_loses_nothing(words, monkeypatch):
    monkeypatch.setattr("sdsclip_hf.training.compared.STEPS_THAT_PAY", 1)
    monkeypatch.setattr("sdsclip_hf.training.compared.cores", lambda: 2)
    threads, compare = torch.get_num_threads(), "{as the main run: {}, lost: {learning_rate: 1.0e+30}}"
    with pytest.raises(SystemExit, match=r"term is (nan|inf)"):
        main(words(test_benchmarks=["shapes:validation"], compare=compare, learning_rate=0.05))
    results = json.loads(Path("out/results.json").read_text())
    assert results["compared"] == {"as the main run": results["after"]}
    assert results["after"] != results["before"] and Path("out/model.safetensors").exists()
    assert json.loads(Path("out/compared.json").read_text()) == results["compared"]
    assert torch.get_num_threads() == threads


def test_a_process_beside_the_main_run_that_is_killed_is_told(words, monkeypatch):
    monkeypatch.setattr("sdsclip_hf.training.compared.STEPS_THAT_PAY", 1)
    monkeypatch.setattr("sdsclip_hf.training.compared.cores", lambda: 2)
    monkeypatch.setattr(beside, "_make_apart", os._exit)  # takes the arguments of none of them
    with pytest.raises(SystemExit, match="'other' was compared with in a process that ended with exit code"):
        main(words(compare="{other: {lambda_sds: 2.0}}"))
    assert json.loads(Path("out/results.json").read_text())["compared"] == {}


def test_resumed_run_keeps_the_scores_that_it_compares_with(words, monkeypatch):
    options = {"compare": "{contrastive only: {lambda_sds: 0}}", "save_strategy": "steps", "save_steps": 1}
    main(words(test_benchmarks=["shapes:validation"], **options))
    first = json.loads(Path("out/results.json").read_text())["compared"]
    trained, make = [], beside.make_trainer
    monkeypatch.setattr(beside, "make_trainer", lambda *parts, **more: trained.append(parts) or make(*parts, **more))
    main(words(test_benchmarks=["shapes:validation"], resume_from_checkpoint="last", **options))
    assert json.loads(Path("out/results.json").read_text())["compared"] == first
    assert not trained


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        ("contrastive", "it must map names of runs to options"),
        ("{a: {lambda_sd: 0}}", "unknown options lambda_sd of 'a'"),
        ("{a: 3}", "it must map names of runs to options"),
        ("{a: {lambda_sds: much}}", "lambda_sds of 'a' is 'much'; it takes float values"),
        ("{a: {output_dir: elsewhere}}", "output_dir of 'a' cannot be set"),
        (
            "{a: {lambda_clip: 0, lambda_sds: 0}}",
            "compare: 'a': lambda_clip, lambda_sds, lambda_rank, lambda_cosine are all",
        ),
    ],
)
def test_mistakes_in_what_to_compare_with_are_named(words, compare, said):
    assert said in error_of(words(compare=compare))


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


# Configurations


def write(path: str, **settings) -> str:
    Path(path).write_text(yaml.safe_dump(settings))
    return path


def test_command_line_wins_over_the_file_and_the_file_over_defaults(words):
    write("my.yaml", lambda_sds=0.25, learning_rate=0.5, lora_target_modules=["fc1"], train_text=False, seed=9)
    (_, _, config), name = parse_arguments([*words(), "--config", "my.yaml", "--seed", "11"])
    assert name == "my"
    assert (config.lambda_sds, config.seed, config.train_text) == (0.25, 11, False)
    assert config.lora_target_modules == ["fc1"]
    assert config.learning_rate == 1e-2  # given on the command line too
    assert config.lora_r == 16


def test_booleans_and_lists_of_the_file_can_be_overridden(words):
    write("my.yaml", train_text=False, benchmarks=["shapes:test"])
    line = ["--config", "my.yaml", "--train_text", "True", "--benchmarks", "shapes:validation"]
    (_, _, config), _ = parse_arguments([*words(), *line])
    assert config.train_text is True
    assert config.benchmarks == ["shapes:validation"]


def test_number_that_yaml_reads_as_a_word_is_a_number(words):
    Path("my.yaml").write_text("learning_rate: 5e-5\n")  # YAML 1.1 wants 5.0e-5
    (_, _, config), _ = parse_arguments([*words(learning_rate=None), "--config", "my.yaml"])
    assert config.learning_rate == 5e-5


def test_output_folder_of_the_file_is_kept(words):
    write("my.yaml", output_dir="elsewhere")
    (_, _, config), _ = parse_arguments([*words(output_dir=None), "--config", "my.yaml"])
    assert config.output_dir == "elsewhere"


def test_unknown_key_is_refused_by_its_name(words):
    write("my.yaml", lamda_sds=0.25)
    assert "unknown options lamda_sds" in error_of([*words(), "--config", "my.yaml"])


def test_unknown_option_on_the_command_line_is_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*words(), "--lamda_sds", "3"])
    message = str(stop.value.code) + capsys.readouterr().err
    assert stop.value.code not in (0, None) and "lamda_sds" in message


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "lambda_sds: [1\n"], ids=["list", "words", "broken"])
def test_file_that_holds_no_options_is_refused_with_its_name(words, text):
    Path("my.yaml").write_text(text)
    assert "my.yaml" in error_of([*words(), "--config", "my.yaml"])


def test_configuration_that_is_nowhere_is_refused_with_those_there_are(words):
    message = error_of([*words(), "--config", "nowhere"])
    assert "nowhere" in message and "vit_b32_coco_sd15" in message


def test_empty_file_is_a_configuration_of_defaults(words):
    Path("my.yaml").write_text("")
    assert parse_arguments([*words(), "--config", "my.yaml"])[1] == "my"


@pytest.fixture(scope="module")
def help_text():
    lines = []

    class Wide(argparse.ArgumentDefaultsHelpFormatter):
        def __init__(self, prog):
            super().__init__(prog, width=4000, max_help_position=1000)

    parser = HfArgumentParser((ModelArguments, DataArguments, SDSCLIPConfig), formatter_class=Wide)
    lines = parser.format_help().splitlines()
    return {line.split()[0].rstrip(","): line for line in lines if line.lstrip().startswith("--")}


OWN = [
    entry
    for part in (ModelArguments, DataArguments, SDSCLIPConfig)
    for entry in fields(part)
    if entry.name not in {inherited.name for inherited in fields(TrainingArguments)}
]


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: entry.name)
def test_every_knob_is_in_the_help_with_a_text(help_text, entry):
    text = " ".join(entry.metadata["help"].split()[:4])
    assert text in help_text[f"--{entry.name}"]


def test_help_is_printed_with_defaults(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--model_name_or_path", "x", "--help"])
    assert stop.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for entry in OWN:
        assert f"--{entry.name} " in printed
    assert "(default: 1.0)" in printed and "(default: layernorm)" in printed


# Output folders


def test_folder_of_another_run_is_kept_unless_told_otherwise(words):
    main(words())
    before = {name: Path("out", name).read_bytes() for name in content(Path("out"))}
    message = error_of(words(seed=7))
    assert all(
        word in message for word in ("holds another run", "--resume_from_checkpoint last", "--overwrite_output_dir")
    )
    assert {name: Path("out", name).read_bytes() for name in content(Path("out"))} == before
    Path("out/left_over.txt").write_text("old")
    main([*words(seed=7), "--overwrite_output_dir"])
    assert not Path("out/left_over.txt").exists()
    assert Path("out/model.safetensors").read_bytes() != before["model.safetensors"]


@pytest.mark.parametrize("resume", [[], ["--resume_from_checkpoint", "last"]])
def test_folder_of_something_else_is_never_deleted(words, resume):
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("precious")
    message = error_of([*words(), "--overwrite_output_dir", *resume])
    assert "no run of this program wrote" in message
    assert Path("out/thesis.tex").read_text() == "precious"


def test_a_mistake_in_the_arguments_does_not_delete_the_run_to_be_overwritten(words):
    main(words())
    before = content(Path("out"))
    error_of([*words(caption_column="txt"), "--overwrite_output_dir"])
    assert content(Path("out")) == before


def test_empty_output_folder_is_used(words):
    Path("out").mkdir()
    main(words())
    assert Path("out/model.safetensors").exists()


def test_default_output_folders_are_numbered(words):
    write("tiny.yaml", max_steps=1)
    for expected in ("outputs/tiny", "outputs/tiny-2", "outputs/tiny-3"):
        main([*words(output_dir=None, max_steps=None), "--config", "tiny.yaml"])
        assert Path(expected, "model.safetensors").exists()
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["tiny", "tiny-2", "tiny-3"]
    main([*words(output_dir=None, max_steps=None), "--config", "tiny.yaml", "--resume_from_checkpoint", "last"])
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["tiny", "tiny-2", "tiny-3"]


def test_default_output_folder_is_named_finetune_without_a_configuration(words):
    main(words(output_dir=None))
    assert Path("outputs/finetune/model.safetensors").exists()
    assert not Path("trainer_output").exists()


# Going on

KILLED = """
import os, sys
from transformers import TrainerCallback
from sdsclip_hf.commands import finetune
from sdsclip_hf.training import checkpoint_trainer

seal = checkpoint_trainer.seal
def killed(checkpoint, identity):
    if checkpoint.name == "checkpoint-4":
        os._exit(9)
    seal(checkpoint, identity)
checkpoint_trainer.seal = killed
finetune.main(sys.argv[1:])
"""


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


@pytest.mark.parametrize("options", [{}, {"lambda_sds": 0}, {"trainable": "lora", "lora_dropout": 0.5}], ids=str)
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
    before = {name: Path("out", name).read_bytes() for name in content(Path("out"))}
    message = error_of(words(**options, lambda_sds=3, resume_from_checkpoint="last"))
    assert "--lambda_sds was 1.0 and is now 3.0" in message
    assert {name: Path("out", name).read_bytes() for name in content(Path("out"))} == before


# Mistakes: one line, no traceback, nothing left behind


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
    assert not Path("out").exists() or content(Path("out")) == []


def test_broken_image_is_named_and_the_mended_command_then_works(words, odd_data, parquet):
    message = error_of(words(dataset_name=f"{odd_data}/broken"))
    assert "could not be read" in message and "row " in message
    main(words())


@pytest.mark.parametrize("option, value", [("max_steps", "many"), ("trainable", "everything")])
def test_value_of_the_wrong_kind_is_refused_by_the_parser(words, capsys, option, value):
    with pytest.raises(SystemExit) as stop:
        main(words(**{option: value}))
    assert stop.value.code not in (0, None)
    assert option in capsys.readouterr().err + str(stop.value.code)


def test_mistake_exits_with_status_one_and_no_traceback(words):
    words_ = words(lambda_sds=-1)
    program = "import sys; from sdsclip_hf.commands.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "finetune", *words_], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: lambda_sds")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [({"timestep_range": "soon"}, "timestep_range"), ({"lambda_sds": [1]}, "lambda_sds"), ({"lora_r": 8.5}, "lora_r")],
)
def test_values_of_the_wrong_type_in_the_file_are_refused_by_name(words, capsys, setting, said):
    with pytest.raises((SystemExit, ValueError)) as caught:
        parse_arguments(["--config", write("wrong.yaml", **setting)])
    assert said in str(caught.value) + capsys.readouterr().err.replace("-", "_")


def test_single_word_in_the_file_makes_a_list_where_one_is_wanted(words):
    (_, data, config), _ = parse_arguments(
        ["--config", write("lists.yaml", lora_target_modules="q_proj", test_benchmarks="shapes:test")]
    )
    assert config.lora_target_modules == ["q_proj"] and data.test_benchmarks == ["shapes:test"]


def test_options_may_be_spelt_with_dashes(words):
    (model, data, _), name = parse_arguments(["--model-name-or-path", "x", "--dataset-name", "y"])
    assert (name, model.model_name_or_path, data.dataset_name) == ("finetune", "x", "y")


def test_early_stopping_without_a_metric_says_what_to_set(words):
    assert "--metric_for_best_model" in error_of([*words(), "--early_stopping_patience", "2"])
