"""A study of prompts: arms x tasks x seeds, each run kept as a file, so that a killed study goes on where it stopped."""

import io
import json
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import BaseImageProcessor, CLIPModel, CLIPProcessor

from sdsclip_hf import shapes
from sdsclip_hf.common.errors import read_json
from sdsclip_hf.common.writing import sweep, write_json, write_text
from sdsclip_hf.prompts.composition import attribute_pairs
from sdsclip_hf.prompts.config import PromptConfig
from sdsclip_hf.prompts.data.few_shot import classes_of, few_shot
from sdsclip_hf.prompts.data.sources import load_labelled
from sdsclip_hf.prompts.data.templates import template_of
from sdsclip_hf.prompts.labelled_images import LabelledImages
from sdsclip_hf.prompts.learner import PromptLearner
from sdsclip_hf.prompts.methods import METHODS
from sdsclip_hf.prompts.settings import PromptSettings
from sdsclip_hf.prompts.study import plots
from sdsclip_hf.prompts.study.baselines import LinearProbe, tune_lora
from sdsclip_hf.prompts.study.settings import Scored, Task, check, slug, tasks
from sdsclip_hf.prompts.study.summary import summarize, tables
from sdsclip_hf.prompts.trainer import PromptTrainer
from sdsclip_hf.prompts.tuning import accuracy
from sdsclip_hf.prompts.zero_shot import ZeroShot
from sdsclip_hf.students.loading import load_clip
from sdsclip_hf.training.progress import RunProgress

_cached_data = cache(load_labelled)


class PromptStudy:
    """Runs what is missing of a study and sums it up.

    Args:
        settings: ``model_name_or_path``; ``protocols`` of few_shot, base_to_new, cross_dataset and domain_generalization;
            ``seeds``; ``shots``, of which the last three protocols take the most; ``datasets`` (name -> where it is and how
            it is read; ``of`` names the dataset that it is another domain of, with ``halves`` where base_to_new shall score
            both its halves, too, and ``attribute_pairs`` where it shall score these); ``source``, which the last two
            protocols train on; ``arms`` (name -> ``method`` and options of [`PromptConfig`]; of zero_shot and linear_probe
            none; ``shuffle_attributes`` deals the attributes out anew among the images) with ``common`` options of
            [`PromptConfig`]; ``baseline``, the arm that the others are compared with.
        folder: receives a file a run, the picks of each seed, ``results.json``, ``tables.md`` and the plots.

    Raises:
        ValueError: the settings are not whole.

    Example:

    ```python
    from pathlib import Path
    from sdsclip_hf.prompts.study.study import PromptStudy

    settings = {
        "model_name_or_path": "shapes/student",
        "protocols": ["base_to_new"],
        "seeds": [1],
        "shots": [1],
        "datasets": {"shapes": {"dataset_name": "shapes"}},
        "arms": {"zero-shot": {"method": "zero_shot"}},  # or {"method": "coop", "max_steps": 100}
    }
    table = PromptStudy(settings, Path("outputs/study")).run()
    print(table.splitlines()[2])  # | dataset | method | base | new | HM |
    ```
    """

    def __init__(self, settings: dict[str, Any], folder: Path):
        check(settings)
        self.settings, self.folder = settings, folder
        self._tests: dict[Scored, LabelledImages] = {}

    def run(self) -> str:
        """Every run that is missing, then the tables, which are also written.

        Raises:
            OSError: model or data cannot be loaded.
            ValueError: they do not fit, or a run in the folder is of other settings.
        """
        sweep(self.folder)
        found: dict[str, dict[Task, dict[Scored, list[float]]]] = {}
        for task, tests in tasks(self.settings).items():
            for seed in self.settings["seeds"]:
                for arm, options in self.settings["arms"].items():
                    if options["method"] == "zero_shot" and seed != self.settings["seeds"][0]:
                        continue
                    scores = self._scores(arm, task, tests, seed)
                    for test in tests:
                        if scores[str(test)] is not None:
                            of_test = found.setdefault(arm, {}).setdefault(task, {}).setdefault(test, [])
                            of_test.append(100 * scores[str(test)])
        summary, text = summarize(self.settings, found), tables(self.settings, found)
        write_json(self.folder / "results.json", summary)
        write_text(self.folder / "tables.md", text)
        plots.plot_all(self.settings, found, self.folder)
        return text

    def run_path(self, arm: str, task: Task, seed: int) -> Path:
        """The file of a run's scores."""
        return self.folder / slug(arm) / f"{task}-seed{seed}.json"

    def _scores(self, arm: str, task: Task, tests: list[Scored], seed: int) -> dict[str, float | None]:
        """Accuracies by test: from the run's file where it is there, else of the run, which is made now."""
        path, origin = self.run_path(arm, task, seed), self._origin(arm, task, tests, seed)
        if path.is_file():
            told = read_json(path, f"Delete {path} to have it made anew.")
            if told.get("origin") != json.loads(json.dumps(origin)):
                raise ValueError(f"{path} comes from other settings; delete it, or give another --output_dir.")
            return told["scores"]
        scores = self._make(arm, task, tests, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"origin": origin, "scores": scores})
        shown = ", ".join(f"{test} {100 * value:.1f}" for test, value in scores.items() if value is not None)
        print(f"{arm}, {task}, seed {seed}: {shown}", flush=True)
        return scores

    def _origin(self, arm: str, task: Task, tests: list[Scored], seed: int) -> dict[str, Any]:
        names = dict.fromkeys([task.dataset, *(test.dataset for test in tests)])
        return {
            "model": self.settings["model_name_or_path"],
            "options": self._options(arm),
            "datasets": {name: self.settings["datasets"][name] for name in names},
            "task": [task.dataset, task.classes, task.shots],
            "tests": list(map(str, tests)),
            "seed": seed,
        }

    def _options(self, arm: str) -> dict[str, Any]:
        options = self.settings["arms"][arm]
        return (self.settings.get("common") or {}) | options if options["method"] in METHODS else options

    def _make(self, arm: str, task: Task, tests: list[Scored], seed: int) -> dict[str, float | None]:
        clip, processor = load_clip(shapes.resolve(self.settings["model_name_or_path"]))
        clip.to("cuda" if torch.cuda.is_available() else "cpu")
        options = dict(self._options(arm))
        method, shuffled = options.pop("method"), options.pop("shuffle_attributes", False)
        train = self._train_data(task, seed, shuffled)
        written = PromptSettings(template=self._template(task.dataset))
        images, tokenizer = processor.image_processor, processor.tokenizer
        if method == "linear_probe":
            probe = LinearProbe(clip, LabelledImages(train, images))
            asked = {str(test): None if test.what == "pairs" else self._test_data(test, images) for test in tests}
            return {test: None if data is None else probe.accuracy(data) for test, data in asked.items()}
        if method == "lora":
            learner = tune_lora(
                clip, tokenizer, LabelledImages(train, images, False, True, seed), written, seed, **options
            )
        elif method == "zero_shot":
            learner = ZeroShot(clip, tokenizer, train.features["label"].names, written).to(clip.device)
        else:
            learner = self._tune(
                clip, processor, train, options | {"template": written.template, "method": method}, seed
            )
        return {str(test): self._score(learner, test, images) for test in tests}

    def _tune(
        self, clip: CLIPModel, processor: CLIPProcessor, train: datasets.Dataset, options: dict, seed: int
    ) -> PromptLearner:
        quiet = {
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "output_dir": str(self.folder / "run"),
        }
        config = PromptConfig(seed=seed, **quiet, **options)
        trainer = PromptTrainer(clip, config, train, processing_class=processor)
        trainer.remove_callback(RunProgress)
        with redirect_stdout(io.StringIO()):  # what it tells of each run
            trainer.train()
        return trainer.learner

    def _score(self, learner: PromptLearner, test: Scored, image_processor: BaseImageProcessor) -> float:
        if isinstance(learner, ZeroShot):  # hand-written prompts are those of what is scored
            written = PromptSettings(template=self._template(test.dataset))
            learner = ZeroShot(learner.clip, learner.text.tokenizer, learner.class_names, written).to(
                learner.context.device
            )
        if test.what == "pairs":
            return attribute_pairs(learner, self._labelled(test.dataset, "test"), image_processor)
        return accuracy(learner, self._test_data(test, image_processor))

    def _template(self, name: str) -> str:
        return template_of(self.settings["datasets"][name].get("template", "shapes"))

    def _labelled(self, name: str, split: str) -> datasets.Dataset:
        options = dict(self.settings["datasets"][name])
        renamed = {"config_name": "dataset_config_name", "revision": "dataset_revision"}
        reading = {name: options.get(given) for name, given in renamed.items()}
        reading |= {
            name: options.get(name) for name in ("image_dir", "image_column", "label_column", "attribute_column")
        }
        names = options.get("class_names")
        if isinstance(names, str):
            names = read_lines(Path(names))
        reading |= {"class_names": names and tuple(names), "present_only": bool(options.get("present_only"))}
        return _cached_data(options["dataset_name"], options.get(f"{split}_split_name", split), **reading)

    def _train_data(self, task: Task, seed: int, shuffled: bool) -> datasets.Dataset:
        picks = self.folder / "picks" / f"{slug(task.dataset)}-{task.shots}-seed{seed}.json"
        picked = classes_of(few_shot(self._labelled(task.dataset, "train"), task.shots, seed, picks), task.classes)
        if not shuffled:
            return picked
        order = np.random.default_rng(seed).permutation(len(picked))
        attributes = [picked["attribute"][int(row)] for row in order]
        return picked.remove_columns("attribute").add_column("attribute", attributes)

    def _test_data(self, test: Scored, image_processor: BaseImageProcessor) -> LabelledImages:
        if test not in self._tests:
            self._tests[test] = LabelledImages(
                classes_of(self._labelled(test.dataset, "test"), test.what), image_processor
            )
        return self._tests[test]


def read_lines(path: Path) -> list[str]:
    """The lines of a file that are not empty."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
