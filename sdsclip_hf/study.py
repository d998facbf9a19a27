"""A study: arms x seeds from one start at equal steps, with paired differences and intervals over seeds and items."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import yaml
from transformers.utils import logging as transformers_logging

from sdsclip_hf import plots, shapes
from sdsclip_hf.checkpoints import write_json
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.data import load_image_captions
from sdsclip_hf.evaluation import cached_benchmark
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.metrics.winoground_group_score import winoground
from sdsclip_hf.resources import find_config
from sdsclip_hf.scorers import ClipScorer
from sdsclip_hf.student import load_clip
from sdsclip_hf.teacher import DiffusionTeacher
from sdsclip_hf.trainer import SDSCLIPTrainer

BEFORE = "before"


class Study:
    """Runs what is missing of a study and sums it up.

    Args:
        settings: ``model_name_or_path``, ``teacher_name_or_path``, ``dataset_name``, ``benchmark``, ``seeds``,
            ``baseline`` (the arm that the others are compared with), ``common`` (options of [`SDSCLIPConfig`] for all
            arms) and ``arms`` (name -> options that differ).
        folder: receives one folder an arm with a file of scores a seed, ``results.json`` and the plot.
    """

    def __init__(self, settings: dict, folder: Path):
        _check(settings)
        self.settings, self.folder = settings, folder
        self.data = load_image_captions(settings["dataset_name"], split=settings.get("train_split_name", "train"))
        self.teachers: dict[str, DiffusionTeacher] = {}

    def run(self) -> dict:
        """Every arm and seed, then the summary; runs that are on disk already are not repeated."""
        self._score_start()
        for seed in self.settings["seeds"]:
            for arm, options in self.settings["arms"].items():
                path = self._path(arm, seed)
                options = {**(self.settings.get("common") or {}), **(options or {}), "seed": seed}
                if path.exists():
                    self._check_same(path, options)
                else:
                    self._run_once(path, options)
        summary = self.summarize()
        write_json(self.folder / "results.json", summary)
        plots.plot_study(summary, self.folder / "study.png")
        return summary

    def _path(self, arm: str, seed: int) -> Path:
        return self.folder / re.sub(r"\W+", "_", arm).strip("_") / f"seed-{seed}.npz"

    def _origin(self, options: dict) -> str:
        """What decides a run's scores, as text."""
        names = ("model_name_or_path", "teacher_name_or_path", "dataset_name", "train_split_name", "benchmark")
        return json.dumps({**{name: self.settings.get(name) for name in names}, **options}, sort_keys=True)

    def _check_same(self, path: Path, options: dict) -> None:
        file = np.load(path)
        if "origin" in file and file["origin"].item() != self._origin(options):
            raise ValueError(f"{path} comes from other settings; delete it, or give another --output_dir.")

    def _run_once(self, path: Path, options: dict) -> None:
        origin = self._origin(options)
        teacher_name = options.pop("teacher_name_or_path", self.settings["teacher_name_or_path"])
        config = SDSCLIPConfig(
            output_dir=str(path.with_suffix("")), save_strategy="no", disable_tqdm=True, report_to="none", **options
        )
        trainer = SDSCLIPTrainer(
            model=self.settings["model_name_or_path"],
            teacher=self._teacher(teacher_name) if config.lambda_sds else None,
            args=config,
            train_dataset=self.data,
        )
        trainer.train()
        scorer = ClipScorer(trainer.student.base_clip, trainer.processing_class)
        self._save(path, scorer, trainer.state.log_history, origin)

    def _score_start(self) -> None:
        path = self._path(BEFORE, 0)
        if not path.exists():
            scorer = ClipScorer(*load_clip(shapes.resolve(self.settings["model_name_or_path"])))
            self._save(path, scorer, [])

    def _save(self, path: Path, scorer: ClipScorer, history: list[dict], origin: str = "") -> None:
        items = cached_benchmark(self.settings["benchmark"]).items
        scores, tags = np.stack(scorer.score(items)), [item.tag for item in items]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(history))
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, scores=scores, tags=np.array(tags), origin=np.array(origin))
        partial.replace(path)

    def _teacher(self, name: str) -> DiffusionTeacher:
        if name not in self.teachers:
            self.teachers[name] = DiffusionTeacher.from_pretrained(shapes.resolve(name))
        return self.teachers[name]

    def summarize(self) -> dict:
        """arm -> tag -> group score, its interval, the difference to the baseline and its interval, in per cent."""
        seeds = self.settings["seeds"]
        right = {arm: [self._right(arm, seed) for seed in seeds] for arm in self.settings["arms"]}
        right[BEFORE] = [self._right(BEFORE, 0)] * len(seeds)
        tags = np.load(self._path(BEFORE, 0))["tags"]
        baseline = np.stack(right[self.settings["baseline"]])
        summary = {}
        for arm in [BEFORE, *self.settings["arms"]]:
            rows = np.stack(right[arm])  # (seeds, items)
            summary[arm] = {}
            for tag in dict.fromkeys(tags.tolist()):
                chosen, base = rows[:, tags == tag], baseline[:, tags == tag]
                summary[arm][tag] = {
                    "group": 100 * chosen.mean(),
                    "interval": _interval(chosen),
                    "gain": 100 * (chosen.mean() - base.mean()),
                    "gain_interval": _interval(chosen - base),
                    "seeds": [100 * row.mean() for row in chosen],
                    "items": int(chosen.shape[1]),
                }
        return {"settings": self.settings, "arms": summary}

    def _right(self, arm: str, seed: int) -> np.ndarray:
        return winoground.right_items(np.load(self._path(arm, seed))["scores"])["group"].astype(float)


def _check(settings: dict) -> None:
    """Raise ValueError for what would otherwise fail after hours: a missing part, a name that is no option."""
    needed = ("model_name_or_path", "teacher_name_or_path", "dataset_name", "benchmark", "seeds", "baseline", "arms")
    missing = [name for name in needed if not settings.get(name)]
    if missing:
        raise ValueError(f"the study's settings lack {', '.join(missing)}.")
    arms = settings["arms"]
    if settings["baseline"] not in arms:
        raise ValueError(f"the baseline {settings['baseline']!r} is no arm; choose from {', '.join(arms)}.")
    known = {entry.name for entry in fields(SDSCLIPConfig) if entry.init} | {"teacher_name_or_path"}
    for arm, options in {"common": settings.get("common"), **arms}.items():
        unknown = sorted(set(options or {}) - known)
        if unknown:
            raise ValueError(f"unknown options {', '.join(unknown)} of {arm}; see `sdsclip finetune --help`.")


def _interval(values: np.ndarray, resamples: int = 4000) -> tuple[float, float]:
    """95 % percentile interval, in per cent, of the mean of (seeds, items), resampling both."""
    rng = np.random.default_rng(0)
    seeds, items = values.shape
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    of_items = rng.multinomial(items, np.full(items, 1 / items), size=resamples) / items
    means = np.einsum("bs,si,bi->b", of_seeds, values, of_items, optimize=True)
    low, high = np.quantile(means, [0.025, 0.975])
    return 100 * float(low), 100 * float(high)


def table(summary: dict) -> str:
    """The summary as a Markdown table: group score and gain over the baseline, each with its 95 % interval."""
    baseline = summary["settings"]["baseline"]
    tags = list(next(iter(summary["arms"].values())))
    lines = ["| arm | " + " | ".join(f"{tag}: group | gain" for tag in tags) + " |", "|---" * (1 + 2 * len(tags)) + "|"]
    for arm, by_tag in summary["arms"].items():
        cells = []
        for tag in tags:
            row = by_tag[tag]
            cells.append(f"{row['group']:.1f} [{row['interval'][0]:.1f}, {row['interval'][1]:.1f}]")
            same = arm == baseline
            cells.append(
                "" if same else f"{row['gain']:+.1f} [{row['gain_interval'][0]:+.1f}, {row['gain_interval'][1]:+.1f}]"
            )
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """``recipes/study.py`` and ``sdsclip study``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="study_sds", help="a yaml file, or the name of one in recipes/configs")
    parser.add_argument("--output_dir", type=Path, help="default: outputs/ and the name of the configuration")
    args = parser.parse_args(argv)
    install_quietly()
    transformers_logging.set_verbosity_error()
    try:
        path = find_config(args.config)
        folder = args.output_dir or Path("outputs") / path.stem
        summary = Study(yaml.safe_load(path.read_text(encoding="utf-8")), folder).run()
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    print(table(summary))
    print(f"\nScores of every run, results.json and study.png are in {folder}.")
