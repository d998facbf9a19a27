"""Every knob of a prompt learning: [`transformers.TrainingArguments`], the methods' options, and the published recipe."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import TrainingArguments

from sdsclip_hf.common.devices import OneGpu, launch_on_cpus
from sdsclip_hf.config import knob
from sdsclip_hf.prompts.methods import method_of
from sdsclip_hf.prompts.settings import PromptSettings

# As the configurations in the authors' repositories have them (KaiyangZhou/CoOp, htyao89/KgCoOp). IntCoOp's are not known.
BATCH_SIZES = {"coop": 32, "cocoop": 1, "kgcoop": 128, "intcoop": 8}
EPOCHS = {"cocoop": 10, "kgcoop": 100, "intcoop": 10}
COOP_EPOCHS = {1: 50, 4: 100}  # up to so many shots; 200 for more


def published_epochs(method: str, shots: int) -> int:
    """How many passes over the data a method's authors made; CoOp's number hangs on the shots (50 on ImageNet always).

    Args:
        method: its name.
        shots: pictures of a class.
    """
    if method != "coop":
        return EPOCHS[method]
    return next((epochs for most, epochs in COOP_EPOCHS.items() if shots <= most), 200)


@dataclass
class PromptConfig(PromptSettings, OneGpu, TrainingArguments):
    """The arguments of [`PromptTrainer`]. See ``metadata["help"]`` of each field, or ``sdsclip prompt-tune --help``.

    Raises:
        ValueError: a value outside its range.

    Example:

    ```python
    from sdsclip_hf import PromptConfig

    args = PromptConfig(output_dir="outputs/prompts", method="kgcoop")
    print(args.learning_rate, args.weight_decay, args.per_device_train_batch_size)  # 0.002 0.0005 128
    ```
    """

    # Values that differ from TrainingArguments' own.
    per_device_train_batch_size: int | None = knob(
        None,
        "Images in a batch on each device; default: as published, coop 32, cocoop 1, kgcoop 128, and for intcoop 8.",
    )
    num_train_epochs: float | None = knob(
        None,
        "Passes over the data; default: as published, coop 50 (1 shot), 100 (2 to 4) or 200, cocoop 10, kgcoop 100, and for "
        "intcoop 10.",
    )
    learning_rate: float = knob(0.002, "Learning rate after the warm-up epochs.")
    optim: str = knob("sgd", "The optimiser.")
    optim_args: str | None = knob("momentum=0.9", "Options of the optimiser; empty with one that knows no momentum.")
    weight_decay: float = knob(5e-4, "Weight decay, of all that trains.")
    max_grad_norm: float = knob(0.0, "Largest norm of the gradient; 0: any.")
    lr_scheduler_type: str = knob(
        "cosine", "cosine: as published, a step an epoch, see warmup_epochs; another: transformers' own."
    )
    logging_steps: float = knob(10, "Log every so many optimiser steps (below 1: as a share of all steps).")
    logging_nan_inf_filter: bool = knob(False, "Hide NaN and infinite losses from the logs; here they stop the run.")
    dataloader_drop_last: bool = knob(True, "Drop the last incomplete batch, where there is a full one.")
    remove_unused_columns: bool = knob(False, "Must stay off: pictures are prepared from raw columns.")
    save_total_limit: int | None = knob(2, "How many checkpoints are kept.")

    # The published recipe.
    warmup_epochs: int = knob(
        1, "Epochs at warmup_learning_rate before the cosine begins; the cosine's span is all epochs."
    )
    warmup_learning_rate: float = knob(1e-5, "Learning rate of the warm-up epochs.")
    augmentation: bool = knob(True, "Random resized crop (0.08 to 1 of the area, bicubic) and random flip.")

    # The Hub, beside TrainingArguments' own push_to_hub, hub_model_id, hub_private_repo, hub_revision, ...
    hub_license: str | None = knob(
        None, "Licence that the card names; default: that of the base model's card, or unknown."
    )
    hub_force: bool = knob(False, "Push even into a repository that holds something other than prompts.")

    def __post_init__(self):
        launch_on_cpus()
        method_of(self.method)
        PromptSettings.__post_init__(self)
        if self.per_device_train_batch_size is None:
            self.per_device_train_batch_size = BATCH_SIZES[self.method]
        self.dataloader_pin_memory &= torch.accelerator.is_available()  # else PyTorch would warn
        TrainingArguments.__post_init__(self)
        for name in ("warmup_epochs", "warmup_learning_rate", "learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; set --{name} to zero or more.")
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns is true, but pictures are prepared from raw columns; leave "
                "--remove_unused_columns out."
            )

    @property
    def settings(self) -> PromptSettings:
        """What is saved with the prompts."""
        return PromptSettings(**self.to_dict_of_settings())

    def own_options(self) -> dict[str, Any]:
        """Those that are not TrainingArguments' own, by name."""
        inherited = {entry.name for entry in fields(TrainingArguments)}
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in inherited}
