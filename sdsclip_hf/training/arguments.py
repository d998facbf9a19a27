"""The options of the main job: which model, which data; read from the command line and from a yaml file."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from sdsclip_hf import shapes
from sdsclip_hf.common.config_files import read_settings, set_from_file
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
    scoring: dict | None = knob(
        None, "In a file: options of sdsclip score-captions, which makes the scores that the run learns from."
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


ARGUMENTS = (ModelArguments, DataArguments, SDSCLIPConfig)
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
        ARGUMENTS,
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
        settings = read_settings(path)
        set_from_file(parser, path, settings, ARGUMENTS)
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
