"""SDSCLIPConfig: what it refuses, and what a resumed run must agree on."""

import math
from dataclasses import fields, make_dataclass

import pytest
from transformers import TrainingArguments

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.config import knob

OWN = [
    entry
    for entry in fields(SDSCLIPConfig)
    if entry.name not in {inherited.name for inherited in fields(TrainingArguments)}
]


@pytest.fixture
def make(tmp_path):
    return lambda **options: SDSCLIPConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_defaults_are_valid_and_leave_the_paper_s_choices(make):
    config = make()
    assert (config.trainable, config.sds_gradient, config.sds_weighting) == ("layernorm", "full", None)
    assert config.remove_unused_columns is False
    assert config.dataloader_drop_last is True
    assert config.logging_nan_inf_filter is False


@pytest.mark.parametrize(
    "name, value, rule",
    [
        *((name, -1, "zero or more") for name in ("mapper_warmup_steps", "max_bad_images", "health_steps")),
        ("gradient_norm_steps", -1, "zero or more"),
        *((name, -0.1, "zero or more") for name in ("lambda_clip", "lambda_sds", "lambda_rank", "lambda_cosine")),
        ("lambda_sds", math.nan, "zero or more"),
        *((name, 0.0, "more than zero") for name in ("mapper_scale", "snr_gamma", "mapper_warmup_learning_rate")),
        *((name, -1.0, "more than zero") for name in ("mapper_scale", "snr_gamma", "mapper_warmup_learning_rate")),
        *((name, 0, "more than zero") for name in ("lora_r", "lora_alpha", "latent_size")),
        ("latent_size", -4, "more than zero"),
        ("mapper_learning_rate", -1e-3, "zero or more"),
        ("lora_dropout", -0.1, r"in \[0, 1\)"),
        ("lora_dropout", 1.0, r"in \[0, 1\)"),
        *(("wise_ft_alpha", alpha, r"in \(0, 1\]") for alpha in (0.0, 1.5)),
        ("sds_reading", "noisy", "one of noised, as_printed"),
        ("sds_gradient", "half", "one of full, stop_gradient"),
        ("sds_weighting", "snr", "one of constant, sigma_squared, min_snr, velocity"),
        ("trainable", "all", "one of layernorm, lora, full"),
        ("mapper_warmup_inputs", "both", "one of image, text"),
        ("teacher_dtype", "int8", "one of auto, float32, bfloat16, float16"),
        ("timestep_range", [5, 4], "0 <= first <= last"),
        ("timestep_range", [-1, 4], "0 <= first <= last"),
        ("timestep_range", [4], "0 <= first <= last"),
        ("timestep_range", [], "0 <= first <= last"),
        ("timestep_range", [1, 2, 3], "0 <= first <= last"),
        ("remove_unused_columns", True, "false"),
    ],
)
def test_value_outside_its_range_raises_with_value_rule_and_option(make, name, value, rule):
    with pytest.raises(ValueError, match=rf"^{name} is .*; it must be .*{rule}.* Set --{name}\.$") as error:
        make(**{name: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"lambda_sds": 0.0},
        {"lambda_clip": 0.0},
        {"mapper_learning_rate": 0.0},
        {"mapper_learning_rate": None},
        {"lora_dropout": 0.999},
        {"timestep_range": [0, 0]},
        {"timestep_range": [0, 999]},
        {"latent_size": 1},
        {"health_steps": 0, "gradient_norm_steps": 0, "max_bad_images": 0},
        {"per_device_train_batch_size": 2},
    ],
    ids=str,
)
def test_limits_themselves_are_allowed(make, options):
    config = make(**options)
    assert {name: getattr(config, name) for name in options} == options


def test_warm_up_without_the_term_raises(make):
    with pytest.raises(ValueError, match=r"mapper_warmup_steps needs the distillation term; set --lambda_sds above 0"):
        make(mapper_warmup_steps=5, lambda_sds=0.0)


def test_no_term_at_all_raises(make):
    with pytest.raises(
        ValueError,
        match=r"lambda_clip, lambda_sds, lambda_rank, lambda_images, lambda_cosine are all 0.* set one of them",
    ):
        make(lambda_clip=0.0, lambda_sds=0.0)


def test_a_best_checkpoint_by_a_loss_that_stays_zero_is_refused(make):
    alone = {"lambda_clip": 0.0, "lambda_sds": 0.0, "lambda_rank": 1.0, "ranking_scores": "org/scores"}
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 5, "save_steps": 5}
    with pytest.raises(ValueError, match=r"metric_for_best_model is 'loss', which stays 0 .*eval_contrastive"):
        make(**alone, **best)
    make(**alone, **best, metric_for_best_model="eval_contrastive", greater_is_better=False)
    make(**alone | {"lambda_clip": 0.1}, **best)


def test_captions_of_a_batch_of_one_cannot_be_shuffled(make, monkeypatch):
    monkeypatch.setattr(SDSCLIPConfig, "world_size", 2)
    make(per_device_train_batch_size=1)
    with pytest.raises(ValueError, match="shuffle_captions exchanges captions within a process's batch"):
        make(per_device_train_batch_size=1, shuffle_captions=True)


def test_shared_captions_are_not_sought_in_parts_of_a_batch(make):
    with pytest.raises(ValueError, match="ranking_symmetric looks for captions that images of a batch share"):
        make(ranking_symmetric=True, per_device_train_batch_size=4, contrastive_batch_size=8)


def test_negatives_for_a_loss_that_is_switched_off_raise(make):
    with pytest.raises(ValueError, match="hard_negatives needs the contrastive term; set --lambda_clip above 0"):
        make(lambda_clip=0.0, hard_negatives=True, ranking_scores="org/scores")


@pytest.mark.parametrize(
    "options, told",
    [
        ({"teacher_channels_last": True}, "leave --teacher_channels_last out"),
        (
            {"distill_fraction": 0.1, "per_device_train_batch_size": 4},
            "0.1 of per_device_train_batch_size 4 leaves some",
        ),
    ],
)
def test_what_a_split_teacher_cannot_have_is_refused(make, options, told):
    with pytest.raises(ValueError, match=told):
        make(shard_teacher=True, **options)


@pytest.mark.parametrize("several", [{"contrastive_batch_size": 64}, {"gradient_accumulation_steps": 2}])
def test_cuda_graphs_and_gradients_that_add_up_do_not_go_together(make, several, monkeypatch):
    make(torch_compile_mode="default", **several)
    make(torch_compile_mode="reduce-overhead")
    with pytest.raises(ValueError, match=f"gradients that add up; leave --torch_compile_mode out, or --{min(several)}"):
        make(torch_compile_mode="reduce-overhead", **several)
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "max-autotune")
    with pytest.raises(ValueError, match="torch_compile_mode max-autotune replays CUDA graphs"):
        make(**several)


def test_batch_of_one_raises_and_names_the_option(make):
    with pytest.raises(ValueError, match=r"batch_size 1 on 1 process .* --per_device_train_batch_size to 2 or more"):
        make(per_device_train_batch_size=1)


def test_mutable_defaults_are_not_shared():
    Options = make_dataclass("Options", [("names", list, knob(("one",), "A list."))])
    one, other = Options(), Options()
    one.names.append("extra")
    assert other.names == ["one"]


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: entry.name)
def test_every_own_knob_has_a_help_text(entry):
    assert len(entry.metadata["help"]) > 15
    assert entry.metadata["help"].rstrip().endswith(".")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("label_smoothing_factor", 0.1),
        ("neftune_noise_alpha", 5.0),
        ("include_for_metrics", ["loss"]),
        ("label_names", ["x"]),
    ],
)
def test_options_of_trainer_that_would_be_ignored_are_refused(make, option, value):
    with pytest.raises(ValueError, match=f"{option} is .* no effect on a CLIP; leave --{option} out"):
        make(**{option: value})
