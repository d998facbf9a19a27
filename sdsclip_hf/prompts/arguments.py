"""The options of ``sdsclip prompt-tune``: which CLIP, which labelled pictures; from a command line and a yaml file."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import HfArgumentParser

from sdsclip_hf.common.config_files import read_settings, set_from_file
from sdsclip_hf.common.launching import HELP
from sdsclip_hf.common.resources import find_config
from sdsclip_hf.config import knob
from sdsclip_hf.prompts.config import PromptConfig


@dataclass
class PromptArguments:
    """Which CLIP and which pictures."""

    model_name_or_path: str = knob(
        "shapes/student", "The CLIP: a Hub id, a folder, or shapes/student, which comes with the package."
    )
    dataset_name: str = knob(
        "shapes",
        "Labelled images: a Hub id, a folder of class folders, a parquet file, a split_zhou_NAME.json or the folder with "
        "one, or shapes, which comes with the package.",
    )
    dataset_config_name: str | None = knob(None, "Configuration of the dataset.")
    dataset_revision: str | None = knob(None, "Branch, tag or commit of the dataset on the Hub.")
    image_dir: str | None = knob(None, "Where the pictures of a split_zhou_NAME.json are; default: beside it.")
    train_split_name: str = knob("train", "Split to train on.")
    test_dataset_name: str | None = knob(
        None, "Dataset to score on, read by the same options; default: the same. It needs no attributes."
    )
    test_split_name: str = knob("test", "Split to score on when training has ended.")
    image_column: str | None = knob(None, "Column of the images; default: the only one.")
    label_column: str | None = knob(None, "Column of the labels; default: the ClassLabel, else label.")
    attribute_column: str | None = knob(
        None, "Column of an attribute of each image, a word or two, which intcoop learns from; default: attribute."
    )
    shots: int = knob(16, "Images of each class to train on; a class that has fewer gives all.")
    picks: str | None = knob(
        None,
        "A file that tells which images those are: read where it is there, else written, so that a run can be had again.",
    )
    classes: Literal["all", "base", "new"] = knob(
        "all", "Train on all classes, or on the first or the second half of them; with base both halves are scored."
    )
    overwrite_output_dir: bool = knob(False, "Delete the run that --output_dir holds, and begin anew.")

    @property
    def reading(self) -> dict[str, str | None]:
        """How the dataset is read, for [`load_labelled`]."""
        names = ("image_column", "label_column", "attribute_column", "image_dir")
        return {name: getattr(self, name) for name in names} | {
            "config_name": self.dataset_config_name,
            "revision": self.dataset_revision,
        }


KINDS = (PromptArguments, PromptConfig)
CHOOSE_ONE_RUN = {"--config", "--method", "--model_name_or_path", "--dataset_name"}


def asks_for_one_run(argv: Sequence[str]) -> bool:
    """Whether a command line names a method, a model or data; otherwise the methods are compared on the embedded world."""
    return any(word.partition("=")[0].replace("-", "_").replace("__", "--", 1) in CHOOSE_ONE_RUN for word in argv)


def parse_arguments(argv: Sequence[str]) -> tuple[PromptArguments, PromptConfig, str]:
    """Command line over ``--config FILE.yaml`` over defaults.

    Returns:
        The arguments, and what the run's folder is called where none is given.

    Raises:
        ValueError: an option that there is not, or a value that does not fit.
        OSError: there is no such configuration.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    known, rest = first.parse_known_args(argv)
    parser = HfArgumentParser(
        KINDS,
        description="Learn prompts for a frozen CLIP from a few images of each class. Without --method, "
        "--model_name_or_path, --dataset_name and --config: all methods on the embedded shapes world.",
        epilog=HELP,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="A yaml file of options; options on the command line win.")
    settings: dict = {}
    if known.config:
        path = find_config(known.config)
        settings = read_settings(path)
        set_from_file(parser, path, settings, KINDS)
    arguments, config, _, left = parser.parse_args_into_dataclasses(
        rest, look_for_args_file=False, return_remaining_strings=True
    )
    if left:  # without their values, which may be secrets
        named = [word.partition("=")[0] for word in left if word.startswith("-")] or ["(values without an option)"]
        raise ValueError(f"unknown options {', '.join(named)}; see --help for those there are.")
    given = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in rest if word.startswith("--")}
    if "output_dir" not in given and "output_dir" not in settings:
        config.output_dir = None
    return arguments, config, Path(known.config).stem if known.config else "prompts"
