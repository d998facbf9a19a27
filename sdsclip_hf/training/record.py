"""The record of a run: every option that decided it, as yaml that ``--config`` takes."""

from dataclasses import fields
from types import NoneType

import yaml
from transformers import TrainingArguments

# Of TrainingArguments' own what decides a run even where it is left at its default, which may change with their version.
DECIDING = {
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "max_steps",
    "num_train_epochs",
    "gradient_accumulation_steps",
    "optim",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "bf16",
    "fp16",
    "tf32",
    "seed",
    "data_seed",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "dataloader_drop_last",
}
NOT_RECORDED = {"resume_from_checkpoint", "overwrite_output_dir"}


def as_yaml(*parts) -> str:
    """Dataclasses of arguments as yaml that ``--config`` takes: all that decides a run, defaults included.

    Left out are secrets, what tells of an earlier run (where it goes on from, that it is deleted), and
    TrainingArguments' other options where they stand at their defaults.
    """
    settings = {}
    inherited = {entry.name for entry in fields(TrainingArguments)} - DECIDING
    for part in parts:
        for entry in fields(part):
            value = getattr(part, entry.name)
            default = entry.default_factory() if callable(entry.default_factory) else entry.default
            may = entry.init and entry.name not in NOT_RECORDED and not entry.name.startswith("_")
            if may and "token" not in entry.name and (value != default or entry.name not in inherited):
                settings[entry.name] = getattr(value, "value", value)
    simple = {
        key: value
        for key, value in settings.items()
        if isinstance(value, (str, int, float, bool, list, dict, NoneType))
    }
    return yaml.safe_dump(simple, sort_keys=True)
