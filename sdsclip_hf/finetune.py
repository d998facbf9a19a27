"""The main job: fine-tune a CLIP, score it before and after, and leave a folder that anyone can load."""

import argparse
import json
import logging
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import datasets
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback, HfArgumentParser, set_seed

from sdsclip_hf import plots
from sdsclip_hf.benchmarks import expand
from sdsclip_hf.benchmarks.sources import commit_of
from sdsclip_hf.checkpoints import last_checkpoint, write_json
from sdsclip_hf.config import SDSCLIPConfig, as_yaml, knob
from sdsclip_hf.data import load_image_captions
from sdsclip_hf.evaluation import cached_benchmark, evaluate_benchmarks, table
from sdsclip_hf.images import BAD_IMAGES_FILE
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.processes import end_process_group
from sdsclip_hf.resources import find_config, versions
from sdsclip_hf.scorers import ClipScorer
from sdsclip_hf.trainer import SDSCLIPTrainer
from sdsclip_hf.trainer_hub import RUN_ARGUMENTS_FILE

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"


@dataclass
class ModelArguments:
    """Which student and which teacher."""

    model_name_or_path: str = knob(
        "shapes/student", "The CLIP to fine-tune: a Hub id, a folder, or shapes/student, which comes with the package."
    )
    teacher_name_or_path: str | None = knob(
        None, "The diffusion model: a Hub id or folder in Stable Diffusion's layout, or shapes/teacher."
    )


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
        "Further runs from the same start, made before this one and only scored: name -> options that differ, as yaml "
        "or json.",
    )
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
        parser.set_defaults(**{key: _as_typed(path, actions[key], value) for key, value in settings.items()})
    model, data, config, _, left = parser.parse_args_into_dataclasses(
        rest, look_for_args_file=False, return_remaining_strings=True
    )
    if left:  # without their values, which may be secrets
        named = [word.partition("=")[0] for word in left if word.startswith("-")] or ["(values without an option)"]
        raise ValueError(f"unknown options {', '.join(named)}; see --help for those there are.")
    name = Path(chosen).stem if chosen else "finetune"
    if "output_dir" not in given and not (chosen and "output_dir" in settings):
        config.output_dir = None
    return (model, data, config), name


def _read_settings(path: Path) -> dict:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid yaml: {' '.join(str(error).split())}.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no options; write one a line, as in `learning_rate: 5.0e-5`.")
    return settings


def _as_typed(path: Path, action: argparse.Action, value):
    """A yaml value as the command line would have it, so that argparse converts and refuses the same things."""
    if value is None or isinstance(value, (bool, dict)):
        return value
    if action.nargs == "+":
        words = value if isinstance(value, list) else [value]
        try:
            return [action.type(str(word)) for word in words]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {action.dest} is {value!r}; it takes {action.type.__name__} values.") from error
    if isinstance(value, list):
        if not value:
            return value
        raise ValueError(f"{path}: {action.dest} is {value!r}; it takes a single value.")
    return str(value)


def claim_output_dir(data: DataArguments, config: SDSCLIPConfig, name: str) -> None:
    """Settle ``config.output_dir`` and ``config.resume_from_checkpoint``, losing nothing of an earlier run.

    Without ``--output_dir`` each run gets a folder of its own: outputs/NAME, then outputs/NAME-2, and so on.

    Raises:
        ValueError: the folder holds another run.
    """
    resume = config.resume_from_checkpoint
    wants_last = str(resume).lower() in ("true", "last")
    if resume and not wants_last and not Path(resume).is_dir():
        raise ValueError(
            f"--resume_from_checkpoint {resume}: there is no such folder. Give a checkpoint-* folder, or last."
        )
    if config.output_dir is None:
        folders = [Path("outputs") / (name if number == 1 else f"{name}-{number}") for number in range(1, 10_000)]
        taken = [folder for folder in folders if folder.exists()]
        if resume and not wants_last:
            config.output_dir = str(Path(resume).parent)
        elif wants_last and taken:
            config.output_dir = str(taken[-1])
        else:
            config.output_dir = str(next(folder for folder in folders if not folder.exists()))
    folder = Path(config.output_dir)
    if resume:
        config.resume_from_checkpoint = last_checkpoint(folder) if wants_last else resume
        if config.resume_from_checkpoint is not None:
            return
        print(f"{folder} has no whole checkpoint yet: starting at step 0.", flush=True)
    if folder.exists() and any(BAD_IMAGES_FILE not in path.name for path in folder.iterdir()):
        if data.overwrite_output_dir:
            _check_is_run(folder)
        elif not resume:
            raise ValueError(
                f"the output folder {folder} holds another run. Go on with it by --resume_from_checkpoint last, delete "
                "it by --overwrite_output_dir, or choose another --output_dir."
            )


def _check_is_run(folder: Path) -> None:
    if not (folder / RUN_ARGUMENTS_FILE).exists():
        raise ValueError(
            f"the output folder {folder} holds files that no run of this program wrote; --overwrite_output_dir will not "
            "delete them. Choose another --output_dir."
        )


def finetune(arguments: Arguments, name: str, command: str) -> dict:
    """Run the main job and return what ``results.json`` holds.

    Args:
        arguments: from [`parse_arguments`].
        name: of the configuration; names the output folder where none is given.
        command: what was typed, for the record.
    """
    model, data, config = arguments
    state = PartialState()
    if state.is_main_process:
        claim_output_dir(data, config, name)
    config.output_dir, config.resume_from_checkpoint = broadcast_object_list(
        [config.output_dir, config.resume_from_checkpoint]
    )
    folder = Path(config.output_dir)
    existed = folder.exists()
    try:
        for benchmark in expand([*data.test_benchmarks, *(config.benchmarks or [])]):
            cached_benchmark(benchmark)
        to_compare = {name: _config_of(name, options, config) for name, options in (data.compare or {}).items()}
        trainer = _make_trainer(model, data, config)
        next(iter(trainer.get_train_dataloader()))  # what is wrong with the data shows before anything is written
        set_seed(config.seed)
    except BaseException:
        if state.is_main_process and not existed and not (folder / BAD_IMAGES_FILE).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    commands = _commands(folder, command, config)
    trainer.card_facts["arguments"] = "".join(f"# {one}\n" for one in commands) + as_yaml(*arguments)
    if state.is_main_process and not config.resume_from_checkpoint:  # a resumed run may yet be refused
        if data.overwrite_output_dir:
            shutil.rmtree(folder)
            folder.mkdir(parents=True)
        (folder / RUN_ARGUMENTS_FILE).write_text(trainer.card_facts["arguments"], encoding="utf-8")
    results = {"command": command, "versions": versions(), "output_dir": str(folder), "label": data.label}
    results |= {"base_revision": trainer.base_revision, "dataset_revision": _revision(trainer)}
    results["benchmarks"] = {spec: cached_benchmark(spec).source for spec in expand(data.test_benchmarks)}
    trainer.card_facts |= {"dataset_name": data.dataset_name, "dataset_revision": results["dataset_revision"]}
    trainer.card_facts["commands"] = commands
    results["before"] = _score_before(trainer, data, folder)
    results["compared"] = _compare(model, data, to_compare, config)
    set_seed(config.seed)  # whatever was compared with
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    results["train_seconds"] = round(time.perf_counter() - started, 1)
    results["steps"] = trainer.state.global_step
    results["captions_cut"] = trainer.captions_cut
    results["after"] = _score(trainer, data)
    if config.eval_strategy != "no" or data.eval_split_name:
        results["evaluation"] = trainer.evaluate()
    runs = {"before": results["before"], **results["compared"], data.label: results["after"]}
    trainer.card_facts |= {"scores": runs if results["after"] else {}, "sources": results["benchmarks"]}
    trainer.card_facts["train_seconds"] = None if config.resume_from_checkpoint else results["train_seconds"]
    trainer.save_model(str(folder), _internal_call=True)
    trainer.accelerator.wait_for_everyone()
    if state.is_main_process:
        write_json(folder / RESULTS_FILE, results)
        _report(trainer, results, runs, folder)
        trainer.create_model_card()  # anew, with the plots
    if config.push_to_hub:
        commit = trainer.push_to_hub(f"{data.label}, {results['steps']} steps")
        if state.is_main_process:
            print(f"On the Hub: {commit}")
    return results


def _commands(folder: Path, command: str, config: SDSCLIPConfig) -> tuple[str, ...]:
    """What is typed to get here: before this command, those of the run that it goes on with."""
    typed = f"sdsclip {command}"
    if config.world_size > 1:
        arguments = command.removeprefix("finetune")
        typed = f"accelerate launch --num_processes {config.world_size} recipes/finetune.py{arguments}"
    earlier = folder / RUN_ARGUMENTS_FILE
    if not config.resume_from_checkpoint or not earlier.exists():
        return (typed,)
    lines = earlier.read_text(encoding="utf-8").splitlines()
    return (*(line.removeprefix("# ") for line in lines if line.startswith("# ")), typed)


def _revision(trainer: SDSCLIPTrainer) -> str | None:
    """The commit on the Hub of what is trained on."""
    dataset = getattr(trainer.train_dataset, "source", None)
    return commit_of(dataset) if isinstance(dataset, datasets.Dataset) else None


def _make_trainer(
    model: ModelArguments, data: DataArguments, config: SDSCLIPConfig, eval_data: bool = True
) -> SDSCLIPTrainer:
    source = {"config_name": data.dataset_config_name, "revision": data.dataset_revision}
    train = load_image_captions(
        data.dataset_name,
        split=data.train_split_name,
        streaming=data.streaming,
        max_samples=data.max_train_samples,
        **source,
    )
    evaluation = None
    if data.eval_split_name and eval_data:
        evaluation = load_image_captions(
            data.dataset_name, split=data.eval_split_name, max_samples=data.max_eval_samples, **source
        )
    callbacks = []
    if data.early_stopping_patience is not None and eval_data:
        if config.metric_for_best_model is None or config.eval_strategy == "no":
            raise ValueError(
                "--early_stopping_patience needs to know what to watch and when; set, for instance, "
                "--metric_for_best_model eval_loss --greater_is_better false --eval_strategy steps."
            )
        callbacks.append(EarlyStoppingCallback(data.early_stopping_patience))
    return SDSCLIPTrainer(
        model=model.model_name_or_path,
        teacher=model.teacher_name_or_path,
        args=config,
        train_dataset=train,
        eval_dataset=evaluation,
        callbacks=callbacks,
    )


def _score(trainer: SDSCLIPTrainer, data: DataArguments) -> dict:
    scorer = ClipScorer(trainer.whole_student().base_clip, trainer.processing_class)
    return evaluate_benchmarks(scorer, data.test_benchmarks)


def _score_before(trainer: SDSCLIPTrainer, data: DataArguments, folder: Path) -> dict:
    """The scores of the untouched student; a resumed run keeps those of its start."""
    if trainer.args.resume_from_checkpoint and (folder / "before.json").exists():
        return json.loads((folder / "before.json").read_text())
    scores = _score(trainer, data)
    if trainer.is_world_process_zero():
        write_json(folder / "before.json", scores)
        if scores:
            print("Before:\n" + table({"before": scores}), flush=True)
    return scores


def _compare(
    model: ModelArguments, data: DataArguments, configs: dict[str, SDSCLIPConfig], main: SDSCLIPConfig
) -> dict:
    """The scores of the runs that this one is compared with; a resumed run keeps those that it has."""
    path, scores = Path(main.output_dir) / "compared.json", {}
    if main.resume_from_checkpoint and path.exists():
        scores = json.loads(path.read_text())
    for name, config in configs.items():
        if name in scores:
            continue
        trainer = _make_trainer(model, data, config, eval_data=False)
        trainer.train()
        scores[name] = _score(trainer, data)
        if trainer.is_world_process_zero():
            write_json(path, scores)
            print(f"{name}:\n" + table({name: scores[name]}), flush=True)
            plots.plot_losses(trainer.state.log_history, Path(trainer.args.output_dir) / "losses.png")
    return scores


def _config_of(name: str, options: dict | None, config: SDSCLIPConfig) -> SDSCLIPConfig:
    """The configuration of a run to compare with: nothing of it is kept but its scores."""
    actions = {action.dest: action for action in HfArgumentParser(SDSCLIPConfig)._actions}
    unknown = sorted(set(options or {}) - {entry.name for entry in fields(SDSCLIPConfig) if entry.init})
    if unknown:
        raise ValueError(f"compare: unknown options {', '.join(unknown)} of {name!r}; see --help for those there are.")
    options = {option: _converted(name, actions[option], value) for option, value in (options or {}).items()}
    kept = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
    kept |= {"resume_from_checkpoint": None, "push_to_hub": False, "report_to": "none"}
    kept["output_dir"] = str(Path(config.output_dir) / "compared" / re.sub(r"\W+", "_", name).strip("_"))
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
    value = _as_typed(Path(f"compare, {name}"), action, value)
    try:
        return action.type(value) if isinstance(value, str) and action.type else value
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(
            f"compare: {action.dest} of {name!r} is {value!r}; it takes {action.type.__name__} values."
        ) from error


def _report(trainer: SDSCLIPTrainer, results: dict, runs: dict, folder: Path) -> None:
    if results["after"]:
        print(f"\nScores in % with 95 % intervals:\n{table(runs)}\n")
        plots.plot_scores(runs, folder / "scores.png")
    plots.plot_losses(trainer.state.log_history, folder / "losses.png")
    if results["captions_cut"]:
        print(f"{results['captions_cut']} captions were longer than the text tower reads, and were cut.")
    bad = folder / BAD_IMAGES_FILE
    if bad.exists():
        print(f"{len(bad.read_text(encoding='utf-8').splitlines())} unreadable images were skipped; {bad} names them.")
    print(
        f'The tuned model is in {folder}: CLIPModel.from_pretrained("{folder}"). Plots: '
        f"{', '.join(sorted(path.name for path in folder.glob('*.png')))}.\n"
        "Next: your own data, with --config lora_vit_b32_coco_sd15 --dataset_name FOLDER --teacher_name_or_path TEACHER."
    )


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


def main(argv: Sequence[str] | None = None) -> None:
    """``recipes/finetune.py`` and ``sdsclip finetune``."""
    argv = sys.argv[1:] if argv is None else list(argv)
    install_quietly()
    try:
        arguments, name = parse_arguments(argv)
        finetune(arguments, name, shlex.join(["finetune", *without_token(argv)]))
        end_process_group()
    except (ValueError, OSError, FloatingPointError) as error:
        logger.debug("the traceback of the error below", exc_info=True)
        sys.exit(f"error: {error}")
