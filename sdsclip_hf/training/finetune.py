"""The main job: fine-tune a CLIP, score it before and after, and leave a folder that anyone can load."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import datasets
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import set_seed

from sdsclip_hf.benchmarks import expand
from sdsclip_hf.benchmarks.rows import commit_of
from sdsclip_hf.common.errors import read_json
from sdsclip_hf.common.launching import started_its_processes
from sdsclip_hf.common.locks import LOCK_FILES
from sdsclip_hf.common.resources import versions
from sdsclip_hf.common.writing import write_json, write_text
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.data.images import BAD_IMAGES_FILE
from sdsclip_hf.evaluation.results import cached_benchmark
from sdsclip_hf.evaluation.tables import main_line
from sdsclip_hf.training.arguments import Arguments, DataArguments
from sdsclip_hf.training.beside import ComparedRuns
from sdsclip_hf.training.compared import config_of
from sdsclip_hf.training.hub_trainer import RUN_ARGUMENTS_FILE
from sdsclip_hf.training.output_dir import clear, own_output_dir
from sdsclip_hf.training.parts import check_optimizer
from sdsclip_hf.training.record import as_yaml
from sdsclip_hf.training.report import announce, next_steps, report
from sdsclip_hf.training.runs import cached_data, make_trainer, score
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
    _, data, config = arguments
    cached_data.cache_clear()  # files may have changed since another run in this process
    with own_output_dir(data, config, name) if PartialState().is_main_process else nullcontext():
        config.output_dir, config.resume_from_checkpoint = broadcast_object_list(
            [config.output_dir, config.resume_from_checkpoint]
        )
        return _finetune(arguments, command)


def _finetune(arguments: Arguments, command: str) -> dict:
    model, data, config = arguments
    state, folder = PartialState(), Path(config.output_dir)
    is_new = not any(path.name not in LOCK_FILES for path in folder.iterdir()) if state.is_main_process else False
    with _nothing_left_by_errors(folder if is_new else None):
        to_compare = {name: config_of(name, options, config) for name, options in (data.compare or {}).items()}
    with ComparedRuns(model, data, to_compare, config) as compared:
        with _nothing_left_by_errors(folder if is_new else None):
            for benchmark in expand([*data.test_benchmarks, *(config.benchmarks or [])]):
                cached_benchmark(benchmark)
            check_optimizer(config)
            trainer = make_trainer(model, data, config, data.label)
            next(iter(trainer.get_train_dataloader()))  # what is wrong with the data shows before anything is written
            set_seed(config.seed)
        results = _begin(arguments, command, trainer)
        compared.begin()
        results["before"] = _score_before(trainer, data, folder)
        set_seed(config.seed)  # whatever was compared with
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
        results["train_seconds"] = round(time.perf_counter() - started, 1)
        results["steps"] = trainer.state.global_step
        results |= {f"captions_{what}": count for what, count in trainer.odd_captions.items()}
        trainer.save_model(str(folder), _internal_call=True)  # whatever comes of the scores
        results["after"] = score(trainer, data)
        if config.eval_strategy != "no" or data.eval_split_name:
            results["evaluation"] = trainer.evaluate()
        results["compared"] = compared.finish()
    runs = {"before": results["before"], **results["compared"], data.label: results["after"]}
    trainer.card_facts |= {"scores": runs if results["after"] else {}, "sources": results["benchmarks"]}
    trainer.card_facts["train_seconds"] = None if config.resume_from_checkpoint else results["train_seconds"]
    trainer.accelerator.wait_for_everyone()
    if state.is_main_process:
        write_json(folder / RESULTS_FILE, results)
        report(results, runs, trainer.state.log_history, folder, next_steps(model, data, folder))
        trainer.create_model_card()  # anew, with the plots
    compared.raise_error()
    if config.push_to_hub:
        commit = trainer.push_to_hub(f"{data.label}, {results['steps']} steps")
        if state.is_main_process:
            print(f"On the Hub: {commit}")
    return results


@contextmanager
def _nothing_left_by_errors(folder: Path | None) -> Iterator[None]:
    """Clear a folder that is new where what follows fails, but for what is told of pictures that cannot be read."""
    try:
        yield
    except BaseException:
        if folder is not None and not (folder / BAD_IMAGES_FILE).exists():
            clear(folder)
        raise


def _begin(arguments: Arguments, command: str, trainer: SDSCLIPTrainer) -> dict:
    """Write down what was asked for, say what is about to be done, and return the results as far as they are known."""
    model, data, config = arguments
    folder = Path(config.output_dir)
    commands = _commands(folder, command, config)
    trainer.card_facts["arguments"] = "".join(f"# {one}\n" for one in commands) + as_yaml(*arguments)
    if trainer.is_world_process_zero() and not config.resume_from_checkpoint:  # a resumed run may yet be refused
        if data.overwrite_output_dir:
            clear(folder)
        write_text(folder / RUN_ARGUMENTS_FILE, trainer.card_facts["arguments"])
    results = {"command": command, "versions": versions(), "output_dir": str(folder), "label": data.label}
    results |= {"base_revision": trainer.base_revision, "dataset_revision": _revision(trainer)}
    results["benchmarks"] = {spec: cached_benchmark(spec).source for spec in expand(data.test_benchmarks)}
    trainer.card_facts |= {"dataset_name": data.dataset_name, "dataset_revision": results["dataset_revision"]}
    trainer.card_facts["commands"] = commands
    if trainer.is_world_process_zero():
        announce(model, data, config, trainer.num_rows, trainer.get_total_train_batch_size(config))
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


def _score_before(trainer: SDSCLIPTrainer, data: DataArguments, folder: Path) -> dict:
    """The scores of the untouched student; a resumed run keeps those of its start."""
    if trainer.args.resume_from_checkpoint and (folder / "before.json").exists():
        return read_json(folder / "before.json", "Delete it, and the same command makes it anew.")
    scores = score(trainer, data)
    if trainer.is_world_process_zero():
        write_json(folder / "before.json", scores)
        if scores:
            print(f"before: {main_line(scores)}\n", flush=True)
    return scores
