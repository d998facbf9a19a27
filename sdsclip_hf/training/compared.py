"""The runs that a run is compared with: its own options but for a few."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from transformers import HfArgumentParser

from sdsclip_hf.common.config_files import as_typed
from sdsclip_hf.common.processes import cores
from sdsclip_hf.config import SDSCLIPConfig

STEPS_THAT_PAY = 300  # a process of its own takes some ten seconds to begin


def run_beside(main: SDSCLIPConfig, compared: Sequence[SDSCLIPConfig]) -> bool:
    """Whether runs are made at the same time as the main one: on CPUs with a core to spare, and where that pays."""
    alone = main.world_size == 1 and main.device.type == "cpu" and cores() > 1 and main.dataloader_num_workers == 0
    return alone and sum(max(0, config.max_steps) for config in compared) >= STEPS_THAT_PAY


def config_of(name: str, options: dict | None, config: SDSCLIPConfig) -> SDSCLIPConfig:
    """The configuration of a run to compare with: kept are its scores and its losses.

    Args:
        name: of the run.
        options: those that differ from the main run's; ``{output_dir}`` in a text stands for that run's own folder.
        config: the main run's.

    Raises:
        ValueError: an option does not exist, cannot be set, or does not fit.
    """
    actions = {action.dest: action for action in HfArgumentParser(SDSCLIPConfig)._actions}
    unknown = sorted(set(options or {}) - {entry.name for entry in fields(SDSCLIPConfig) if entry.init})
    if unknown:
        raise ValueError(f"compare: unknown options {', '.join(unknown)} of {name!r}; see --help for those there are.")
    options = {option: _converted(name, actions[option], value) for option, value in (options or {}).items()}
    kept = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
    kept |= {"resume_from_checkpoint": None, "push_to_hub": False, "report_to": "none", "log_failures": 0}
    kept["output_dir"] = str(Path(config.output_dir) / "compared" / re.sub(r"\W+", "_", name).strip("_"))
    options = {
        option: value.replace("{output_dir}", kept["output_dir"]) if isinstance(value, str) else value
        for option, value in options.items()
    }
    taken = sorted(option for option in options if option in kept or option.startswith("hub_"))
    if taken:
        raise ValueError(
            f"compare: {', '.join(taken)} of {name!r} cannot be set; what is compared with is only scored."
        )
    try:
        return replace(config, **kept, **options)
    except ValueError as error:
        raise ValueError(f"compare: {name!r}: {error}") from error


def _converted(name: str, action: argparse.Action, value):
    """A value of ``compare`` as argparse would have it on the command line."""
    value = as_typed(Path(f"compare, {name}"), action, value, (SDSCLIPConfig,))
    try:
        return action.type(value) if isinstance(value, str) and action.type else value
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(
            f"compare: {action.dest} of {name!r} is {value!r}; it takes {action.type.__name__} values."
        ) from error
