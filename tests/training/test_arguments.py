"""Options from a yaml file: of the type that each takes, in its range, or one error that names file, option and value."""

import pytest

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.training.arguments import parse_arguments
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
    ("lora_target_modules", "null"),
    ("test_benchmarks", "null"),
    ("log_level", "1e-5"),
    ("hub_license", "no"),
    ("output_dir", "{a: 1}"),
    ("trainable", "null"),
    ("max_steps", "2020-01-01"),
    ("timestep_range", "[a, b]"),
    ("optim", "adamm"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_of_another_type_is_refused_by_name(tmp_path, name, value):
    path = tmp_path / "mine.yaml"
    path.write_text(f"model_name_or_path: shapes/student\n{name}: {value}\n")
    with pytest.raises((ValueError, SystemExit)) as raised:
        parse_arguments(["--config", str(path)])
    assert isinstance(raised.value, SystemExit) or name in str(raised.value)


@pytest.mark.parametrize("text", ["1: x", "[a]", "a", "? [a]\n: b", "[" * 3000, "a: &b [*b]", "\x00"])
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
