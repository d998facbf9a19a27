"""The settings of a study of prompts, as its yaml file has them, and the runs that they ask for."""

import re
from dataclasses import dataclass, fields
from typing import Any

from sdsclip_hf.prompts.config import PromptConfig
from sdsclip_hf.prompts.methods import METHODS

SETTINGS = ("model_name_or_path", "protocols", "seeds", "shots", "datasets", "source", "common", "arms", "baseline")
PROTOCOLS = ("few_shot", "base_to_new", "cross_dataset", "domain_generalization")
BASELINES = ("zero_shot", "linear_probe", "lora")
OF_DATASETS = (
    *("dataset_name", "dataset_config_name", "dataset_revision", "image_dir", "image_column", "label_column"),
    *("attribute_column", "class_names", "present_only", "train_split_name", "test_split_name", "template"),
    *("of", "halves", "attribute_pairs"),
)
OF_LORA = ("rank", "alpha", "dropout", "learning_rate", "batch_size", "steps_per_shot")


@dataclass(frozen=True)
class Task:
    """What is trained on: some classes of a dataset, so many pictures of each.

    Args:
        dataset: a name of the settings.
        classes: all or base.
        shots: of each class.
    """

    dataset: str
    classes: str
    shots: int

    def __str__(self) -> str:
        return slug(f"{self.dataset}-{self.classes}-{self.shots}")


@dataclass(frozen=True)
class Scored:
    """What is scored: some classes of a dataset among themselves, or its pairs of attributes.

    Args:
        dataset: a name of the settings.
        what: all, base, new, or pairs.
    """

    dataset: str
    what: str

    def __str__(self) -> str:
        return f"{self.dataset} {self.what}"


def slug(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_")


def tasks(settings: dict[str, Any]) -> dict[Task, list[Scored]]:
    """What is trained on, and what is scored after it, by all protocols of the settings."""
    found: dict[Task, list[Scored]] = {}
    data, most = settings["datasets"], max(settings["shots"])
    own = [name for name, options in data.items() if "of" not in options]

    def add(task: Task, *tests: Scored) -> None:
        found[task] = list(dict.fromkeys([*found.get(task, []), *tests]))

    for protocol in settings["protocols"]:
        if protocol == "few_shot":
            for name in own:
                for shots in settings["shots"]:
                    add(Task(name, "all", shots), Scored(name, "all"))
        elif protocol == "base_to_new":
            for name in own:
                others = [one for one, options in data.items() if options.get("of") == name and options.get("halves")]
                halves = [Scored(one, half) for one in (name, *others) for half in ("base", "new")]
                pairs = [Scored(one, "pairs") for one in (name, *others) if data[one].get("attribute_pairs")]
                add(Task(name, "base", most), *halves, *pairs)
        else:
            source = settings["source"]
            add(Task(source, "all", most), *(Scored(name, "all") for name in (source, *targets(settings, protocol))))
    return found


def targets(settings: dict[str, Any], protocol: str) -> list[str]:
    """The datasets that the source's prompts are tested on: other datasets, or other domains of the same classes."""
    source = settings["source"]
    wanted = None if protocol == "cross_dataset" else source
    return [name for name, options in settings["datasets"].items() if name != source and options.get("of") == wanted]


def check(settings: dict[str, Any]) -> None:
    """Raise ValueError for what would otherwise fail after hours: a missing part, a name that is none."""
    needed = [name for name in SETTINGS if name not in ("source", "common", "baseline")]
    missing = [name for name in needed if not settings.get(name)]
    strange = sorted(set(settings) - set(SETTINGS))
    if missing or strange:
        raise ValueError(
            f"the settings of the prompts' study {'lack' if missing else 'know no'} {', '.join(missing or strange)}; they "
            f"are {', '.join(SETTINGS)}."
        )
    _check_names("protocol", settings["protocols"], PROTOCOLS)
    for name, options in settings["datasets"].items():
        _check_names(f"option of the dataset {name}:", options, OF_DATASETS)
        if "dataset_name" not in options:
            raise ValueError(f"the dataset {name} of the prompts' study has no dataset_name; tell where it is.")
        if "of" in options:
            _check_names("dataset", [options["of"]], settings["datasets"])
    if {"cross_dataset", "domain_generalization"} & {*settings["protocols"]}:
        _check_names("source", [settings.get("source") or "(none)"], settings["datasets"])
    known = {entry.name for entry in fields(PromptConfig) if entry.init} - {"output_dir", "seed"}
    _check_names("option of common:", settings.get("common") or {}, known)
    for arm, options in settings["arms"].items():
        method = options.get("method", "(none)")
        _check_names("method", [method], (*BASELINES, *METHODS))
        of_method = known if method in METHODS else OF_LORA if method == "lora" else ()
        _check_names(f"option of the arm {arm}:", options, {*of_method, "method", "shuffle_attributes"})
    _check_names("baseline", [settings["baseline"]] if settings.get("baseline") else [], settings["arms"])
    slugs = [slug(arm) for arm in settings["arms"]]
    if len({*slugs}) < len(slugs):
        raise ValueError(f"two arms of {', '.join(settings['arms'])} would share a folder; rename one of them.")


def _check_names(what: str, names, known) -> None:
    strange = [str(name) for name in names if name not in known]
    if strange:
        raise ValueError(f"unknown {what} {', '.join(strange)}; choose from {', '.join(sorted(map(str, known)))}.")
