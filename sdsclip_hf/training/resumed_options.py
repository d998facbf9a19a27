"""Which options of a run one that goes on from its checkpoint must share, and which it may change."""

from dataclasses import fields

from transformers import TrainingArguments

from sdsclip_hf.config import LORA_LAYERS, SDSCLIPConfig

# Of TrainingArguments. A checkpoint holds what follows from the first, so that Trainer would not take others; what is to
# follow from the second is decided anew.
KEPT = (
    *("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay"),
    *("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon"),
)
OBEYED = (
    *("max_steps", "num_train_epochs", "max_grad_norm", "bf16", "fp16", "tf32", "ignore_data_skip"),
    *("world_size", "gradient_checkpointing", "torch_compile"),
)
# Of SDSCLIPConfig, what decides no weights. Scores may move: their fingerprint is compared.
FREE = {"hub_license", "hub_force", "ranking_scores", "ranking_scores_revision", "shard_teacher", "benchmarks"}
FREE |= {"health_steps", "gradient_norm_steps", "max_bad_images", "prompt_cache_dir"}
FREE |= {"keep_images_in_memory", "preprocess_on_device"}
FREE |= {"teacher_gradient_checkpointing", "teacher_compile", "teacher_channels_last", "teacher_pack_weights"}
FREE |= {"teacher_offload", "wise_ft_alpha", "log_failures", "precision"}
# What newer options stood for before there were any, where not their default.
EARLIER = {"mask_duplicates": False, "teacher_dtype": "float32", "ranking_form": "divergence"}


def _own_defaults() -> dict:
    inherited = {entry.name for entry in fields(TrainingArguments)}
    return {entry.name: entry.default for entry in fields(SDSCLIPConfig) if entry.name not in inherited}


def kept_options(args: SDSCLIPConfig, model_type: str = "clip") -> dict:
    """The options on which a resumed run must agree, by name.

    Args:
        args: of the run.
        model_type: of the student; LoRA finds the layers of one that is no ``clip`` by looking.
    """
    own = [name for name in _own_defaults() if name not in FREE]
    kept = {name: getattr(args, name) for name in [*own, *KEPT]}
    if model_type == "clip":
        kept["lora_target_modules"] = kept["lora_target_modules"] or list(
            LORA_LAYERS
        )  # the default of earlier versions
    return kept


def obeyed_options(args: SDSCLIPConfig) -> dict:
    """Those of TrainingArguments that decide the result, and that a resumed run may change from where it goes on."""
    return {name: getattr(args, name) for name in OBEYED}


def earlier_defaults() -> dict:
    """What the options were in runs of versions that did not know them."""
    return _own_defaults() | EARLIER
