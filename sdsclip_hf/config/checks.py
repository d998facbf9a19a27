"""What a run's options may not be: values outside their range, and options that do not fit one another."""

import math
import os
import re
from typing import Any

from sdsclip_hf.common.precision import DTYPES
from sdsclip_hf.config.knobs import TEACHER_OFFLOADS, TEACHER_QUANTIZATIONS, TRAINABLE
from sdsclip_hf.contrastive_losses import CONTRASTIVE_FORMS
from sdsclip_hf.losses import GRADIENTS, RANKING_FORMS, RANKING_TARGETS, READINGS, WEIGHTINGS

WITHOUT_EFFECT = {  # options of TrainingArguments for models of words, with the value that switches each off
    **{"label_smoothing_factor": 0, "label_names": None, "include_for_metrics": [], "batch_eval_metrics": False},
    **{"neftune_noise_alpha": None, "include_num_input_tokens_seen": "no", "use_liger_kernel": False},
}
WEIGHTS = ("lambda_clip", "lambda_sds", "lambda_rank", "lambda_images", "lambda_cosine")
NOT_NEGATIVE = (
    *(*WEIGHTS, "mapper_warmup_steps", "max_bad_images", "shuffle_buffer_size", "health_steps"),
    *("gradient_norm_steps", "log_failures", "mapper_learning_rate"),
    *("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps"),
)
ABOVE_ZERO = (
    *("contrastive_batch_size", "contrastive_chunk_size", "mapper_scale", "snr_gamma", "latent_size"),
    *("lora_r", "lora_alpha", "mapper_warmup_learning_rate", "distill_every", "ranking_candidates"),
    *("ranking_temperature", "ranking_temperature_share", "ranking_logit_scale"),
)
GRAPHED = ("reduce-overhead", "max-autotune")  # torch.compile's modes that take CUDA graphs
AT_LEAST_ONE = ("gradient_accumulation_steps", "per_device_train_batch_size", "per_device_eval_batch_size")
CHOICES = {
    "contrastive_form": CONTRASTIVE_FORMS,
    "sds_reading": READINGS,
    "sds_gradient": GRADIENTS,
    "sds_weighting": (*WEIGHTINGS, None),
    "ranking_targets": RANKING_TARGETS,
    "trainable": TRAINABLE,
    "ranking_form": RANKING_FORMS,
    "mapper_warmup_inputs": ("image", "text"),
    "teacher_quantization": (*TEACHER_QUANTIZATIONS, None),
    "teacher_offload": (*TEACHER_OFFLOADS, None),
    "teacher_dtype": DTYPES,
}


def check(config: Any) -> None:
    """Raise ValueError where an option of a [`SDSCLIPConfig`] is outside its range, or does not fit the others."""
    for name, off in WITHOUT_EFFECT.items():
        value = getattr(config, name)
        if value != off and value:
            raise ValueError(f"{name} is {value!r}, and would have no effect on a CLIP; leave --{name} out.")
    _check_ranges(config)
    for name, among in CHOICES.items():
        rule = f"one of {', '.join(filter(None, among))}"
        _require(getattr(config, name) in among, name, getattr(config, name), rule)
    _check_inherited(config)
    _check_contrastive_batch(config)
    _check_ranking(config)
    _check_teacher(config)
    _check_batch(config)
    _check_compiled(config)


def _require(holds: bool, name: str, value, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; it must be {rule}. Set --{name}.")


def _check_ranges(config: Any) -> None:
    for name in NOT_NEGATIVE:
        value = getattr(config, name)
        _require(value is None or 0 <= value < math.inf, name, value, "zero or more, and no infinity")
    if not any(getattr(config, name) for name in WEIGHTS):
        raise ValueError(f"{', '.join(WEIGHTS)} are all 0, so that nothing would train; set one of them above 0.")
    for name in ABOVE_ZERO:
        value = getattr(config, name)
        _require(value is None or value > 0, name, value, "more than zero")
    for name in ("wise_ft_alpha", "distill_fraction"):
        _require(0 < getattr(config, name) <= 1, name, getattr(config, name), "in (0, 1]")
    for name in ("lora_dropout", "adam_beta1", "adam_beta2"):
        _require(0 <= getattr(config, name) < 1, name, getattr(config, name), "in [0, 1)")
    for name in AT_LEAST_ONE:
        _require(getattr(config, name) >= 1, name, getattr(config, name), "1 or more")
    timesteps = config.timestep_range
    if timesteps is not None:
        fits = len(timesteps) == 2 and 0 <= timesteps[0] <= timesteps[1]
        _require(fits, "timestep_range", timesteps, "two timesteps, 0 <= first <= last")


def _check_inherited(config: Any) -> None:
    """Options of TrainingArguments, and of the Hub."""
    _require(not config.remove_unused_columns, "remove_unused_columns", True, "false: the collator needs the columns")
    has_evaluation_loss = config.lambda_clip or config.lambda_sds or config.lambda_cosine
    if config.metric_for_best_model in ("loss", "eval_loss") and not has_evaluation_loss:
        raise ValueError(
            f"metric_for_best_model is {config.metric_for_best_model!r}, which stays 0 where L_rank alone is switched on, "
            "since evaluation data is not scored; set, for instance, --metric_for_best_model eval_contrastive "
            "--greater_is_better false."
        )
    if config.hub_license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", config.hub_license):
        raise ValueError(
            f"hub_license {config.hub_license!r} is no identifier of a licence; set --hub_license to one of "
            "https://huggingface.co/docs/hub/repositories-licenses, such as apache-2.0, mit or other."
        )


def _check_contrastive_batch(config: Any) -> None:
    step = config.per_device_train_batch_size * config.world_size
    if config.contrastive_batch_size is None:
        return
    if config.contrastive_batch_size % step:
        raise ValueError(
            f"contrastive_batch_size {config.contrastive_batch_size} is no multiple of {step}, which is "
            f"per_device_train_batch_size {config.per_device_train_batch_size} times {config.world_size} processes; set "
            f"--contrastive_batch_size to {max(1, config.contrastive_batch_size // step) * step}, for instance."
        )
    if config.gradient_norm_steps:
        raise ValueError(
            "gradient_norm_steps needs the whole batch in memory, which contrastive_batch_size avoids; leave one out."
        )
    if config.ranking_symmetric:
        raise ValueError(
            "ranking_symmetric looks for captions that images of a batch share, which contrastive_batch_size encodes in "
            "parts; leave one of them out."
        )


def _check_ranking(config: Any) -> None:
    if (config.lambda_rank or config.hard_negatives) and config.ranking_scores is None:
        needy = "lambda_rank is above 0" if config.lambda_rank else "hard_negatives is on"
        raise ValueError(
            f"{needy}, but there are no candidate captions; give --ranking_scores a folder that sdsclip "
            "score-captions wrote, or its Hub id."
        )
    if config.hard_negatives and config.lambda_clip == 0:
        raise ValueError("hard_negatives needs the contrastive term; set --lambda_clip above 0.")


def _check_teacher(config: Any) -> None:
    if config.shard_teacher and config.teacher_channels_last:
        raise ValueError("shard_teacher deals out weights row by row; leave --teacher_channels_last out beside it.")
    if config.shard_teacher and config.distill_fraction * config.per_device_train_batch_size < 1:
        raise ValueError(
            f"distill_fraction {config.distill_fraction} of per_device_train_batch_size "
            f"{config.per_device_train_batch_size} leaves some processes nothing to distil, for whose part of the "
            "teacher's weights the others would wait; raise one of them, or leave --shard_teacher out."
        )
    for name in ("mapper_warmup_steps", "prompt_cache_dir", "shard_teacher"):
        if getattr(config, name) and config.lambda_sds == 0:
            raise ValueError(f"{name} needs the distillation term; set --lambda_sds above 0.")


def _check_batch(config: Any) -> None:
    """A caption needs others beside it, and a picture is prepared once."""
    if config.preprocess_on_device and config.keep_images_in_memory:
        raise ValueError(
            "keep_images_in_memory keeps pictures that are prepared already; leave --preprocess_on_device out beside it."
        )
    if config.per_device_eval_batch_size * config.world_size < 2:
        raise ValueError(
            f"per_device_eval_batch_size {config.per_device_eval_batch_size} leaves a caption no negatives; set "
            "--per_device_eval_batch_size to 2 or more."
        )
    if config.shuffle_captions and config.per_device_train_batch_size < 2:
        raise ValueError(
            "shuffle_captions exchanges captions within a process's batch; set --per_device_train_batch_size to 2 or "
            "more."
        )
    if config.per_device_train_batch_size * config.world_size < 2:
        raise ValueError(
            f"per_device_train_batch_size {config.per_device_train_batch_size} on {config.world_size} process leaves a "
            "caption no negatives; set --per_device_train_batch_size to 2 or more."
        )


def _check_compiled(config: Any) -> None:
    """Gradients that add up over several backward passes lie in what the next replay of a CUDA graph writes over."""
    several = "contrastive_batch_size" if config.contrastive_batch_size is not None else "gradient_accumulation_steps"
    has_several = config.contrastive_batch_size is not None or config.gradient_accumulation_steps > 1
    mode = config.torch_compile_mode or os.environ.get("ACCELERATE_DYNAMO_MODE")  # the latter by `accelerate launch`
    if has_several and mode in GRAPHED:
        raise ValueError(
            f"torch_compile_mode {mode} replays CUDA graphs, which write over gradients that add up; "
            f"leave --torch_compile_mode out, or --{several}."
        )
