"""The options of the main job: which model, which data; read from the command line and from a yaml file."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from sdsclip_hf import shapes
from sdsclip_hf.common.launching import HELP
from sdsclip_hf.common.resources import find_config
from sdsclip_hf.config import SDSCLIPConfig, knob
from sdsclip_hf.students.open_clip_checkpoints import OpenClipOptions

BUNDLED_STUDENTS = tuple(f"shapes/{name}" for name in shapes.MODELS if name.startswith("student"))


@dataclass
class ModelArguments:
    """Which student and which teacher."""

    model_name_or_path: str = knob(
        "shapes/student",
        "The CLIP, SigLIP or other dual encoder to fine-tune: a Hub id, a folder, or shapes/student, which comes with the "
        "package; or a checkpoint in open_clip's form.",
    )
    architecture: str | None = knob(
        None, "Of a student that is a file of weights in open_clip's form: its architecture, e.g. ViT-B-32-quickgelu."
    )
    processor: str | None = knob(
        None,
        "Hub id or folder of the tokenizer of a student in open_clip's form; default: the one beside it, or OpenAI's.",
    )
    checkpoint_key: str | None = knob(
        None, "Under which a file of weights holds the student, e.g. ema; default: looked for."
    )
    teacher_name_or_path: str | None = knob(
        None,
        "The diffusion model: the Hub id or folder of a pipeline (see sdsclip teachers), or shapes/teacher. Default: the "
        "bundled teacher with a bundled student, none with another.",
    )

    @property
    def open_clip(self) -> OpenClipOptions:
        """What was told of a student in open_clip's form."""
        return OpenClipOptions(self.architecture, self.processor, self.checkpoint_key)


@dataclass
class DataArguments:
    """Which pictures and captions, what is scored before and after, and what the run is compared with.

    Raises:
        ValueError: ``compare`` is no mapping of names to options.
    """

    dataset_name: str = knob(
        "shapes",
        "Images and captions: a Hub id, a folder (imagefolder with metadata, parquet, webdataset, save_to_disk), a "
        "parquet file, or shapes, which comes with the package.",
    )
    dataset_config_name: str | None = knob(None, "Configuration of the dataset.")
    dataset_revision: str | None = knob(None, "Branch, tag or commit of the dataset on the Hub.")
    train_split_name: str = knob("train", "Split to train on, e.g. train or train[:5000].")
    eval_split_name: str | None = knob(None, "Split on which the loss is measured, e.g. validation; default: none.")
    max_train_samples: int | None = knob(None, "Rows to train on at most; default: all.")
    max_eval_samples: int | None = knob(None, "Rows to evaluate on at most; default: all.")
    streaming: bool = knob(False, "Read the training rows as they come; needs --max_steps.")
    test_benchmarks: list[str] = knob([], "Benchmarks scored before and after the run, e.g. shapes:test.")
    overwrite_output_dir: bool = knob(False, "Delete the run that --output_dir holds, and begin anew.")
    early_stopping_patience: int | None = knob(
        None, "Stop after so many evaluations without a better metric_for_best_model; default: never."
    )
    compare: dict | str | None = knob(
        None,
        "Further runs from the same start, made before this one or at the same time, and only scored: name -> options that "
        "differ, as yaml or json.",
    )
    about: str | None = knob(None, "What is told before the run, e.g. how long it takes.")
    label: str = knob("after", "What to call this run in tables and plots.")

    def __post_init__(self):
        if isinstance(self.compare, str):
            self.compare = yaml.safe_load(self.compare)
        named = self.compare is None or isinstance(self.compare, dict)
        if not named or not all(isinstance(options or {}, dict) for options in (self.compare or {}).values()):
            raise ValueError(
                f"compare is {self.compare!r}; it must map names of runs to options, as in "
                "--compare '{contrastive only: {lambda_rank: 0}}'."
            )


Arguments = tuple[ModelArguments, DataArguments, SDSCLIPConfig]


def parse_arguments(argv: Sequence[str]) -> tuple[Arguments, str]:
    """Command line over ``--config FILE.yaml`` over defaults.

    Without ``--config`` the embedded default ``shapes`` is used, unless a model or a dataset is named.

    Returns:
        The arguments and the name of the configuration.

    Raises:
        ValueError: the configuration has a key that is no option.
        OSError: there is no such configuration.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    known, rest = first.parse_known_args(argv)
    given = {word.split("=")[0].lstrip("-").replace("-", "_") for word in rest if word.startswith("--")}
    names_own = bool(given & {"model_name_or_path", "dataset_name"})
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, SDSCLIPConfig),
        description="Fine-tune CLIP by diffusion distillation (arXiv 2307.09233) and ranking distillation.",
        epilog=HELP,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        default=None if names_own else "shapes",
        help="A yaml file of options, or the name of one in recipes/configs; options on the command line win.",
    )
    chosen = known.config or (None if names_own else "shapes")
    if chosen:
        path = find_config(chosen)
        settings = _read_settings(path)
        unknown = sorted(set(settings) - {action.dest for action in parser._actions})
        if unknown:
            raise ValueError(f"{path}: unknown options {', '.join(unknown)}; see --help for those there are.")
        actions = {action.dest: action for action in parser._actions}
        parser.set_defaults(**{key: as_typed(path, actions[key], value) for key, value in settings.items()})
    model, data, config, _, left = parser.parse_args_into_dataclasses(
        rest, look_for_args_file=False, return_remaining_strings=True
    )
    if left:  # without their values, which may be secrets
        named = [word.partition("=")[0] for word in left if word.startswith("-")] or ["(values without an option)"]
        raise ValueError(f"unknown options {', '.join(named)}; see --help for those there are.")
    with_teacher = config.lambda_sds or any((one or {}).get("lambda_sds") for one in (data.compare or {}).values())
    if model.teacher_name_or_path is None and with_teacher and model.model_name_or_path in BUNDLED_STUDENTS:
        model.teacher_name_or_path = "shapes/teacher"
    name = Path(chosen).stem if chosen else "finetune"
    if "output_dir" not in given and not (chosen and "output_dir" in settings):
        config.output_dir = None
    return (model, data, config), name


def _read_settings(path: Path) -> dict:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid yaml: {' '.join(str(error).split())}.") from error
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise ValueError(f"{path} holds no options; write one a line, as in `learning_rate: 5.0e-5`.")
    return settings


@cache
def _kinds() -> dict[str, set[type]]:
    """Option -> the types that its value may have."""
    found = {}
    for arguments in (ModelArguments, DataArguments, SDSCLIPConfig):
        for name, hint in get_type_hints(arguments).items():
            found[name] = {get_origin(part) or part for part in (get_args(hint) if _is_union(hint) else (hint,))}
    return found


def _is_union(hint) -> bool:
    return get_origin(hint) in (Union, UnionType)


def as_typed(path: Path, action: argparse.Action, value):
    """A yaml value as the command line would have it, so that argparse converts and refuses the same things.

    Raises:
        ValueError: it is of a type that the option does not take, or none of its choices.
    """
    kinds = _kinds().get(action.dest, {str})
    if value is False and "no" in (action.choices or ()):  # yaml's word for it
        return "no"
    if (value is None or isinstance(value, (bool, dict))) and type(value) in kinds:
        return value
    if value is True and action.dest == "resume_from_checkpoint":
        return "last"
    wrong = value is None or isinstance(value, (bool, dict)) or (isinstance(value, float) and not math.isfinite(value))
    if wrong:
        raise ValueError(
            f"{path}: {action.dest} is {json.dumps(value)}; it takes {_told(kinds)}. Leave it out for the default, or put a "
            "word in quotes."
        )
    if action.nargs == "+":
        words = value if isinstance(value, list) else [value]
        try:
            return [action.type(str(word)) for word in words]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {action.dest} is {value!r}; it takes {action.type.__name__} values.") from error
    if isinstance(value, list):
        if not value and list in kinds:
            return value
        raise ValueError(f"{path}: {action.dest} is {value!r}; it takes a single value.")
    if action.choices and str(value) not in map(str, action.choices):
        raise ValueError(f"{path}: {action.dest} is {value!r}; choose from {', '.join(map(str, action.choices))}.")
    return str(value)


def _told(kinds: set[type]) -> str:
    return " or ".join(sorted({"null" if kind is type(None) else kind.__name__ for kind in kinds}))


def without_token(argv: Sequence[str]) -> list[str]:
    """A command line for the record: a token that stood in it is left out."""
    kept, words = [], iter(argv)
    for word in words:
        name = word.partition("=")[0].replace("-", "_")
        if "token" not in name or not name.startswith("__"):
            kept.append(word)
        elif "=" not in word:
            next(words, None)
    return kept
