"""The job of ``sdsclip prompt-tune``: learn prompts, score them beside hand-written ones, and leave a folder to share."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from sdsclip_hf.common.checkpoints import last_checkpoint
from sdsclip_hf.common.resources import versions
from sdsclip_hf.common.writing import write_json, write_text
from sdsclip_hf.prompts.arguments import PromptArguments
from sdsclip_hf.prompts.config import PromptConfig
from sdsclip_hf.prompts.data.few_shot import classes_of, few_shot
from sdsclip_hf.prompts.data.sources import load_labelled
from sdsclip_hf.prompts.labelled_images import LabelledImages, collate
from sdsclip_hf.prompts.learner import PromptLearner
from sdsclip_hf.prompts.methods import LABELS, METHODS
from sdsclip_hf.prompts.tables import harmonic_mean
from sdsclip_hf.prompts.trainer import PromptTrainer
from sdsclip_hf.prompts.zero_shot import ZeroShot
from sdsclip_hf.training.hub_trainer import RUN_ARGUMENTS_FILE
from sdsclip_hf.training.output_dir import clear, own_output_dir
from sdsclip_hf.training.record import as_yaml

RESULTS_FILE = "results.json"
BATCH = 64
SHIFTED = "shapes/shifted"
# A class of the embedded world is a pair of shapes, of which a crop shows one.
OF_WORLD = ("--augmentation", "false")
Parse = Callable[[Sequence[str]], tuple[PromptArguments, PromptConfig, str]]


def accuracy(learner: PromptLearner, data: LabelledImages, batch_size: int = BATCH) -> float:
    """The share of the images whose class, among those of the data, is found."""
    was_training, right = learner.training, 0
    learner.eval()
    with torch.no_grad(), learner.for_classes(data.class_names):
        for batch in DataLoader(data, batch_size, collate_fn=collate):
            logits = learner(batch["pixel_values"].to(learner.context.device)).logits
            right += int((logits.argmax(-1).cpu() == batch["labels"]).sum())
    learner.train(was_training)
    return right / len(data)


def tune(arguments: PromptArguments, config: PromptConfig, name: str, command: str) -> dict:
    """Learn prompts, and return what ``results.json`` holds.

    Args:
        arguments, config: what was asked for.
        name: names the output folder where none is given.
        command: what was typed, for the record.

    Raises:
        OSError: model or data cannot be loaded.
        ValueError: the parts do not fit one another, or the output folder holds another run.
    """
    with _own_folder(arguments, config, name):
        trainer = PromptTrainer(arguments.model_name_or_path, config, few_shot_data(arguments, config.seed))
        trainer.dataset_name = arguments.dataset_name
        tests = _prepared(trainer, _test_sets(arguments))
        if trainer.is_world_process_zero() and not config.resume_from_checkpoint:  # a resumed run may yet be refused
            _begin(arguments, config, command)
        results = _learn(trainer, tests, lambda: zero_shot(trainer, tests))
        if trainer.is_world_process_zero():
            results = {"command": command, "versions": versions()} | results
            write_json(Path(config.output_dir) / RESULTS_FILE, results)
            _print_scores({LABELS[config.method]: results["scores"]})
            print(
                f"\nThe prompts are in {config.output_dir}; `sdsclip push {config.output_dir} NAMESPACE/NAME` shares them."
            )
        if config.push_to_hub:
            commit = trainer.push_to_hub(f"{LABELS[config.method]}, {arguments.shots} shots")
            if trainer.is_world_process_zero():
                print(f"On the Hub: {commit}")
        return results


def compare(parse: Parse, argv: Sequence[str], command: str) -> dict:
    """Learn the prompts of all methods on the base classes of the embedded world, and print their scores as a table.

    Args:
        parse: of a command line.
        argv: the options that all methods get.
        command: what was typed, for the record.
    """
    started = time.perf_counter()
    argv = [*OF_WORLD, *argv]
    arguments, config, name = parse(argv)
    arguments.classes = "base"
    with _own_folder(arguments, config, name):
        folder, is_main = Path(config.output_dir), PartialState().is_main_process
        if is_main and not config.resume_from_checkpoint:
            _begin(arguments, config, command)
        train, sources = few_shot_data(arguments, config.seed), _test_sets(arguments)
        sources["shifted"] = classes_of(load_labelled(SHIFTED, arguments.test_split_name), "base")
        scores, tests, written = {}, {}, {}
        for method in METHODS:
            own = parse([*argv, "--method", method, "--output_dir", str(folder / method)])[1]
            own.resume_from_checkpoint = own.resume_from_checkpoint and last_checkpoint(own.output_dir)
            trainer = PromptTrainer(arguments.model_name_or_path, own, train)
            trainer.dataset_name = arguments.dataset_name
            if trainer.progress is not None:
                trainer.progress.title = LABELS[method]
            tests = tests or _prepared(trainer, sources)
            written = written or (zero_shot(trainer, tests) if is_main else {})
            scores[LABELS[method]] = _learn(trainer, tests, lambda known=written: known).get("scores", {})
        results = {"command": command, "versions": versions(), "scores": scores}
        results["seconds"] = round(time.perf_counter() - started, 1)
        if is_main:
            write_json(folder / RESULTS_FILE, results)
            _print_scores(scores)
            print(f"\nThe prompts of each method are in {folder}. It took {results['seconds']:.0f} s.")
        return results


def few_shot_data(arguments: PromptArguments, seed: int) -> datasets.Dataset:
    """The images to train on: ``shots`` of each class of the half that was asked for."""
    whole = load_labelled(arguments.dataset_name, arguments.train_split_name, **arguments.reading)
    return few_shot(classes_of(whole, arguments.classes), arguments.shots, seed, arguments.picks)


def _test_sets(arguments: PromptArguments) -> dict[str, datasets.Dataset]:
    """What is scored, by name: with the base classes each half among its own."""
    source = arguments.test_dataset_name or arguments.dataset_name
    reading = arguments.reading | {"attribute_column": None}  # no method is given attributes at test
    whole = load_labelled(source, arguments.test_split_name, **reading)
    halves = ("base", "new") if arguments.classes == "base" else (arguments.classes,)
    return {half: classes_of(whole, half) for half in halves}


@contextmanager
def _own_folder(arguments: PromptArguments, config: PromptConfig, name: str) -> Iterator[None]:
    """[`own_output_dir`], which the main process settles for all."""
    with own_output_dir(arguments, config, name) if PartialState().is_main_process else nullcontext():
        config.output_dir, config.resume_from_checkpoint = broadcast_object_list(
            [config.output_dir, config.resume_from_checkpoint]
        )
        yield


def _begin(arguments: PromptArguments, config: PromptConfig, command: str) -> None:
    """Make the folder ready, and write down what was asked for."""
    folder = Path(config.output_dir)
    if arguments.overwrite_output_dir:
        clear(folder)
    write_text(folder / RUN_ARGUMENTS_FILE, f"# {command}\n" + as_yaml(arguments, config))


def _prepared(trainer: PromptTrainer, sources: dict[str, datasets.Dataset]) -> dict[str, LabelledImages]:
    image_processor = trainer.processing_class.image_processor
    return {name: LabelledImages(source, image_processor) for name, source in sources.items()}


def _learn(trainer: PromptTrainer, tests: dict[str, LabelledImages], written: Callable[[], dict[str, float]]) -> dict:
    """Train, save, score beside the accuracies of hand-written prompts, and write the card. Nothing on other processes."""
    args, started = trainer.args, time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = round(time.perf_counter() - started, 1)
    trainer.save_model(_internal_call=True)
    if not trainer.is_world_process_zero():
        return {}
    trainer.scores = _scores(trainer, tests, written())
    trainer.create_model_card()
    told = {"output_dir": args.output_dir, "steps": trainer.state.global_step, "train_seconds": seconds}
    return told | {"scores": trainer.scores}


def _scores(trainer: PromptTrainer, tests: dict[str, LabelledImages], written: dict[str, float]) -> dict[str, dict]:
    """What is scored -> accuracy of hand-written and learned prompts, as fractions, and how many images."""
    return {
        name: {"images": len(data), "zero_shot": written[name], "prompts": accuracy(trainer.learner, data)}
        for name, data in tests.items()
    }


def zero_shot(trainer: PromptTrainer, tests: dict[str, LabelledImages]) -> dict[str, float]:
    """Accuracies of the hand-written prompts of the trainer's template, as fractions."""
    learner, settings = trainer.learner, trainer.args.settings.without_context()
    written = ZeroShot(learner.clip, learner.text.tokenizer, learner.trained_classes, settings)
    written.to(learner.context.device)
    return {name: accuracy(written, data) for name, data in tests.items()}


def _print_scores(scores: dict[str, dict[str, dict]]) -> None:
    """A row for hand-written prompts and one for each method; HM where there are base and new classes."""
    first = next(iter(scores.values()))
    rows = {"zero-shot": {name: row["zero_shot"] for name, row in first.items()}}
    rows |= {method: {name: row["prompts"] for name, row in found.items()} for method, found in scores.items()}
    for row in rows.values():
        if {"base", "new"} <= row.keys():
            row["HM"] = float(harmonic_mean(row["base"], row["new"]))
    columns = [name for name in ("all", "base", "new", "HM", "shifted") if name in rows["zero-shot"]]
    print(f"\nAccuracy in %:\n{'':<10}" + "".join(f"{name:>9}" for name in columns))
    for method, row in rows.items():
        print(f"{method:<10}" + "".join(f"{100 * row[name]:>9.1f}" for name in columns))
