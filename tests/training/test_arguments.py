"""Options from a yaml file: of the type that each takes, in its range, or one error that names file, option and value."""

import argparse
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from finetuning import error_of
from transformers import HfArgumentParser, TrainingArguments

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.commands.finetune import main
from sdsclip_hf.training.arguments import DataArguments, ModelArguments, parse_arguments
from sdsclip_hf.training.parts import check_optimizer

WRONG = [
    ("warmup_steps", "null"),
    ("warmup_steps", ".inf"),
    ("learning_rate", ".nan"),
    ("learning_rate", "yes"),
    ("learning_rate", "{a: 1}"),
    ("gradient_accumulation_steps", "[]"),
    ("gradient_accumulation_steps", "[1, 2]"),
    ("lr_scheduler_kwargs", "no"),
    ("test_benchmarks", "null"),
    ("log_level", "1e-5"),
    ("hub_license", "no"),
    ("output_dir", "{a: 1}"),
    ("trainable", "null"),
    ("max_steps", "2020-01-01"),
    ("timestep_range", "[a, b]"),
    ("optim", "adamm"),
    ("timestep_range", "soon"),
    ("lambda_sds", "[1]"),
    ("lora_r", "8.5"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_of_another_type_is_refused_by_name(tmp_path, name, value, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(f"model_name_or_path: shapes/student\n{name}: {value}\n")
    with pytest.raises((ValueError, SystemExit)) as raised:
        parse_arguments(["--config", str(path)])
    assert name in str(raised.value) + capsys.readouterr().err.replace("-", "_")


@pytest.mark.parametrize("text", ["1: x", "[a]", "a", "? [a]\n: b", "[" * 3000, "a: &b [*b]", "lambda_sds: [1", "\x00"])
def test_what_holds_no_options_is_refused_by_its_file(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        parse_arguments(["--config", str(path)])


def test_values_of_the_right_type_are_taken(tmp_path):
    path = tmp_path / "mine.yaml"
    lines = [
        "save_strategy: no",
        "hub_license: null",
        "lr_scheduler_kwargs: {num_cycles: 2}",
        "resume_from_checkpoint: true",
    ]
    lines += [
        "learning_rate: 1e-5",
        "lora_target_modules: [q_proj, fc1]",
        "bf16: no",
        "benchmarks: null",
        "hub_private_repo: yes",
    ]
    path.write_text("\n".join([*lines, "model_name_or_path: shapes/student"]))
    (_, _, config), _ = parse_arguments(["--config", str(path)])
    assert (
        config.save_strategy == "no" and config.hub_license is None and config.lr_scheduler_kwargs == {"num_cycles": 2}
    )
    assert config.resume_from_checkpoint == "last" and config.learning_rate == 1e-5 and config.hub_private_repo is True
    assert config.lora_target_modules == ["q_proj", "fc1"] and config.bf16 is False and config.benchmarks is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("adam_beta1", 1.5),
        ("adam_epsilon", -1.0),
        ("learning_rate", -1.0),
        ("weight_decay", -0.1),
        ("max_grad_norm", -1.0),
        ("gradient_accumulation_steps", 0),
        ("warmup_steps", -3),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(name, value, tmp_path):
    with pytest.raises(ValueError, match=name):
        SDSCLIPConfig(output_dir=str(tmp_path / "run"), **{name: value})
    assert not (tmp_path / "run").exists()


def test_an_optimiser_or_a_schedule_that_cannot_be_made_is_told_before_a_run_begins(tmp_path):
    def config(**options):
        return SDSCLIPConfig(output_dir=str(tmp_path / "run"), **options)

    for options in ({}, {"optim": "sgd", "optim_args": "momentum=0.9"}, {"lr_scheduler_type": "cosine"}):
        check_optimizer(config(**options))
    with pytest.raises(ValueError, match="--optim sgd cannot be made of --optim_args momentum=-1"):
        check_optimizer(config(optim="sgd", optim_args="momentum=-1"))
    with pytest.raises(ValueError, match=r"--lr_scheduler_type cosine cannot .* {'cycles': 2}"):
        check_optimizer(config(lr_scheduler_type="cosine", lr_scheduler_kwargs={"cycles": 2}))


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


@pytest.mark.parametrize("option, value", [("max_steps", "many"), ("trainable", "everything")])
def test_value_of_the_wrong_kind_is_refused_by_the_parser(words, capsys, option, value):
    with pytest.raises(SystemExit) as stop:
        main(words(**{option: value}))
    assert stop.value.code not in (0, None)
    assert option in capsys.readouterr().err + str(stop.value.code)


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
