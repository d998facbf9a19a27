"""The main job: fine-tune a CLIP, score it before and after, and leave a folder that anyone can load."""

import argparse
import json
import logging
import re
import shutil
import time
from dataclasses import fields, replace
from pathlib import Path

import datasets
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback, HfArgumentParser, set_seed

from sdsclip_hf.benchmarks import expand
from sdsclip_hf.benchmarks.sources import commit_of
from sdsclip_hf.common.checkpoints import write_json
from sdsclip_hf.common.launching import started_its_processes
from sdsclip_hf.common.resources import versions
from sdsclip_hf.config import SDSCLIPConfig, as_yaml
from sdsclip_hf.data.images import BAD_IMAGES_FILE
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.evaluation import plots
from sdsclip_hf.evaluation.results import cached_benchmark, evaluate_benchmarks, table
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.training.arguments import Arguments, DataArguments, ModelArguments, as_typed
from sdsclip_hf.training.hub_trainer import RUN_ARGUMENTS_FILE
from sdsclip_hf.training.output_dir import claim_output_dir
from sdsclip_hf.training.trainer import SDSCLIPTrainer

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"


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
    if config.world_size > 1 and not started_its_processes():
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
    value = as_typed(Path(f"compare, {name}"), action, value)
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
