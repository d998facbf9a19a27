"""A study: arms x seeds from the same starts at equal steps, with paired differences and intervals over seeds and items."""

import copy
import hashlib
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import datasets
import numpy as np
import torch
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from sdsclip_hf import shapes
from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.common.devices import default_device
from sdsclip_hf.common.errors import read_json
from sdsclip_hf.common.precision import settled_dtype
from sdsclip_hf.common.processes import cores
from sdsclip_hf.common.writing import sweep, whole_file, write_json, write_text
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.evaluation.results import cached_benchmark, evaluate_benchmarks, flatten
from sdsclip_hf.evaluation.scorers import ClipScorer, DiffusionScorer, RememberingClipScorer
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.scoring.report import print_report
from sdsclip_hf.scoring.score_captions import score_named
from sdsclip_hf.students.loading import load_student
from sdsclip_hf.study import plots
from sdsclip_hf.study.measures import decode, drift, skill
from sdsclip_hf.study.settings import check, fill_in, slug
from sdsclip_hf.study.summary import BEFORE, summarize, table
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.training.progress import RunProgress
from sdsclip_hf.training.trainer import SDSCLIPTrainer

SCORES, PROMPTS = "study_scores", "study_prompts"

_cached_data = cache(load_image_captions)


@cache
def _cached_scorer(student: str) -> RememberingClipScorer:
    clip, processor = load_student(student)
    return RememberingClipScorer(clip.to(default_device()), processor)


class Study:
    """Runs what is missing of a study and sums it up.

    Args:
        settings: ``dataset_name`` to train on; ``benchmark`` of 2 x 2 items, whose group score is compared, with the text
            or image score beside it where ``figures`` names them, and ``retained``, benchmarks that shall not fall;
            ``seeds``; ``arms`` (name -> options of [`SDSCLIPConfig`]) with ``common`` options, and ``baseline``, the arm
            that the others are compared with. The students and teachers are ``model_name_or_path`` and
            ``teacher_name_or_path``, or those of ``worlds`` (each with ``student``, ``teacher`` and any names that options
            may refer to as ``{name}``), which the seeds take in turn. An arm may have fewer ``seeds``, a number of them;
            arms that differ in ``wise_ft_alpha`` alone share a training. ``scores`` (name -> options of ``sdsclip
            score-captions`` that differ from ``scoring``) are made once a world, and an arm takes those that its
            ``scores`` names. ``curves`` (name -> options) become an arm with each of the scores, to be drawn against the
            skill of their teachers.
        folder: receives one folder an arm with a file of scores a seed, ``results.json``, the tables and the plots. The
            scores of training pictures are kept beside it, in ``study_scores``, and the teachers' prompts of their captions,
            in ``study_prompts``.
        workers: how many processes run at once.
    """

    def __init__(self, settings: dict, folder: Path, workers: int = 1):
        check(settings)
        self.settings, self.folder, self.workers = settings, folder, workers
        self.worlds = settings.get("worlds") or [
            {"student": settings["model_name_or_path"], "teacher": settings["teacher_name_or_path"]}
        ]
        self.arms = dict(settings["arms"])
        for curve, options in (settings.get("curves") or {}).items():
            self.arms |= {f"{curve}, {name}": {**(options or {}), "scores": name} for name in settings["scores"]}
        for arm in self.arms:
            for seed in self.seeds_of(arm):
                self._origin(arm, seed)  # what cannot be filled in shows now
        for name in settings.get("scores") or {}:
            for world in range(len(self.worlds)):
                self._scoring_arguments(name, world)  # and what cannot be scored
        _cached_data(settings["dataset_name"], split=settings.get("train_split_name", "train"))
        self.teachers: dict[tuple, DiffusionTeacher] = {}

    def run(self, seeds: Sequence[int] | None = None) -> dict | None:
        """Every arm and seed, then the summary; what is on disk already is not made again.

        Args:
            seeds: run these alone; the summary is then left to a call without them.

        Raises:
            ValueError: the study has no such seeds.
        """
        strange = sorted({*(seeds or ())} - {*self.settings["seeds"]})
        if strange:
            have = ", ".join(map(str, self.settings["seeds"]))
            raise ValueError(f"the study has no seeds {', '.join(map(str, strange))}; choose from {have}.")
        chosen = [seed for seed in self.settings["seeds"] if seeds is None or seed in seeds]
        names, worlds = self.settings.get("scores") or {}, sorted({self.world_of(seed) for seed in chosen})
        to_score = {self.scores_folder(name, world): ("make_scores", name, world) for name in names for world in worlds}
        stages = [
            list(to_score.values()),
            [("score_start", world) for world in worlds],
            [("measure_skill", name, world) for name in names for world in worlds if self.settings.get("curves")],
            [("train", arm, seed) for seed in chosen for arm in self._to_train(seed)],
        ]
        sweep(self.folder)
        with self._pool() as pool:
            for stage in stages:
                self._do([task for task in stage if not self._is_done(*task)], pool)
        return self.sum_up() if seeds is None else None

    def _pool(self) -> ProcessPoolExecutor | nullcontext:
        if self.workers == 1:
            return nullcontext()
        threads = max(1, cores() // self.workers)
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.workers, context, initializer=torch.set_num_threads, initargs=(threads,))

    def sum_up(self) -> dict:
        """The summary of finished runs, written with its tables and plots."""
        runs = {
            arm: [self.run_path(arm, self.world_of(seed) if arm == BEFORE else seed) for seed in self.seeds_of(arm)]
            for arm in [BEFORE, *self.arms]
        }
        makers = self.settings["scores"] if self.settings.get("curves") else {}
        skills = {name: [self.skill_path(name, world) for world in range(len(self.worlds))] for name in makers}
        summary = summarize(self.settings, self.folder, runs, skills)
        write_json(self.folder / "results.json", summary)
        write_text(self.folder / "tables.md", table(summary) + "\n")
        plots.plot_all(summary, self.folder)
        return summary

    def _do(self, tasks: list[tuple], pool: ProcessPoolExecutor | None) -> None:
        """Each task is the name of a method and its arguments; what it makes is in a file that is known beforehand."""
        if pool is None:
            for method, *arguments in tasks:
                getattr(self, method)(*arguments)
            return
        running = [pool.submit(_do_in_worker, json.dumps(self.settings), str(self.folder), task) for task in tasks]
        try:
            for number, future in enumerate(as_completed(running), 1):
                future.result()
                print(f"{tasks[0][0]}: {number} of {len(tasks)} done", flush=True)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise

    def _is_done(self, method: str, name, number: int = 0) -> bool:
        if method == "make_scores":
            return False  # scoring itself knows what is finished, and refuses other settings
        if method == "train":
            path, origin = self.run_path(name, number), self._origin(name, number)
        elif method == "score_start":
            path, origin = self.run_path(BEFORE, name), self._start_origin(name)
        else:
            path, origin = self.skill_path(name, number), self._skill_origin(name, number)
        if not path.exists():
            return False
        told = _origin_of(path)
        if told is None:
            print(f"{path} is not what was written: it is made anew.", flush=True)
            path.unlink()
            return False
        if told != json.loads(json.dumps(origin)):
            raise ValueError(f"{path} comes from other settings; delete it, or give another --output_dir.")
        return True

    def run_path(self, arm: str, number: int) -> Path:
        """The file of a run's scores: of an arm's seed, or of the untrained student of a world."""
        return self.folder / slug(arm) / f"{'world' if arm == BEFORE else 'seed'}-{number}.npz"

    def scores_folder(self, name: str, world: int) -> Path:
        """Where scores stand: beside the study's folder, so that studies which need the same make them once."""
        options = self._scoring_options(name, world)
        asked = {name: self.settings.get(name) for name in ("dataset_name", "train_split_name")} | options
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
        maker = options.get("teacher_name_or_path") or options["ranker"]
        return self.folder.parent / SCORES / f"{slug(Path(maker).name)}-{digest}"

    def _prompts_folder(self, teacher: DiffusionTeacher) -> Path:
        """Where the training captions stand as a teacher's text encoders give them, for all runs that need it."""
        encoders = "+".join(fingerprint(encoder) for encoder in teacher.text_encoders.values())
        asked = [encoders, *map(self.settings.get, ("dataset_name", "train_split_name"))]
        return self.folder.parent / PROMPTS / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]

    def skill_path(self, name: str, world: int) -> Path:
        """Where the skill of the teacher that made scores is written."""
        return self.folder / "skill" / f"{slug(name)}-{world}.json"

    def seeds_of(self, arm: str) -> list[int]:
        """The seeds that an arm is run with: all, or the first so many that its ``seeds`` tells."""
        return self.settings["seeds"][: (self.arms.get(arm) or {}).get("seeds")]

    def world_of(self, seed: int) -> int:
        """Which world a seed begins in."""
        return self.settings["seeds"].index(seed) % len(self.worlds)

    def options(self, arm: str, seed: int) -> dict:
        """All options of a run, with the names of its world filled in."""
        number = self.world_of(seed)
        world = self.worlds[number]
        given = {**(self.settings.get("common") or {}), **(self.arms[arm] or {}), "seed": seed}
        options = {"teacher_name_or_path": world["teacher"], "model_name_or_path": world["student"]}
        options |= fill_in(given, world)
        options = {name: value for name, value in options.items() if name not in ("scores", "seeds")}
        dtype = settled_dtype(options.get("teacher_dtype", "auto"), options.get("use_cpu", False))
        if options.get("lambda_sds") != 0 and dtype != "float32":
            options["teacher_dtype"] = dtype  # by which runs of other machines are told from these
        scores = self._scores_of(arm)
        return options | ({"ranking_scores": str(self.scores_folder(scores, number))} if scores else {})

    def _to_train(self, seed: int) -> list[str]:
        """The arms to train with a seed: those without scores, of those that share a training one."""
        missing = [arm for arm in self.arms if seed in self.seeds_of(arm) and not self._is_done("train", arm, seed)]
        return [arm for place, arm in enumerate(missing) if not {*self._alphas(arm, seed)} & {*missing[:place]}]

    def _alphas(self, arm: str, seed: int) -> dict[str, float]:
        """The arms whose run with a seed differs from this one's in ``wise_ft_alpha`` alone, and theirs."""

        def training(other: str) -> dict:
            return {name: value for name, value in self.options(other, seed).items() if name != "wise_ft_alpha"}

        same = [o for o in self.arms if seed in self.seeds_of(o) and training(o) == training(arm)]
        return {other: self.options(other, seed).get("wise_ft_alpha", 1.0) for other in same}

    def _origin(self, arm: str, seed: int) -> dict:
        """What decides a run's scores."""
        options, scores = self.options(arm, seed), self._scores_of(arm)
        if scores:
            options["ranking_scores"] = self._scoring_options(scores, self.world_of(seed))  # the folder may be moved
        return self._start_origin(self.world_of(seed)) | {"options": options}

    def _start_origin(self, world: int) -> dict:
        names = ("dataset_name", "train_split_name", "benchmark", "retained")
        return {name: self.settings.get(name) for name in names} | {"student": self.worlds[world]["student"]}

    def _skill_origin(self, name: str, world: int) -> dict:
        return {"benchmark": self.settings["skill_benchmark"], "scoring": self._scoring_options(name, world)}

    def _scores_of(self, arm: str) -> str | None:
        return {**(self.settings.get("common") or {}), **(self.arms[arm] or {})}.get("scores")

    def _scoring_options(self, name: str, world: int) -> dict:
        given = {**(self.settings.get("scoring") or {}), **(self.settings["scores"][name] or {})}
        teacher = {} if given.get("ranker") else {"teacher_name_or_path": self.worlds[world]["teacher"]}
        return teacher | fill_in(given, self.worlds[world])

    def make_scores(self, name: str, world: int) -> None:
        """Score the candidates of the training pictures, see [`score_captions`]."""
        arguments = self._scoring_arguments(name, world)
        print_report(score_named(arguments), Path(arguments.output_dir))

    def _scoring_arguments(self, name: str, world: int) -> ScoringArguments:
        options = self._scoring_options(name, world) | {
            "dataset_name": self.settings["dataset_name"],
            "split": self.settings.get("train_split_name", "train"),
            "output_dir": str(self.scores_folder(name, world)),
        }
        words = []
        for option, value in options.items():
            words += [f"--{option}", *(map(str, value) if isinstance(value, list) else [str(value)])]
        (arguments,) = HfArgumentParser(ScoringArguments).parse_args_into_dataclasses(words, look_for_args_file=False)
        return arguments

    def measure_skill(self, name: str, world: int) -> None:
        """How often the teacher that made some scores is right on ``skill_benchmark``, see [`skill`]."""
        options = self._scoring_options(name, world)
        draws = {key: options[key] for key in ("num_draws", "timestep_range", "weighting") if key in options}
        dtype = settled_dtype(options.get("teacher_dtype", "auto"))
        scorer = DiffusionScorer(self._teacher(options["teacher_name_or_path"], dtype).to(default_device()), **draws)
        by_tag = skill(scorer, cached_benchmark(self.settings["skill_benchmark"]).items)
        path = self.skill_path(name, world)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"origin": self._skill_origin(name, world), **by_tag})

    def score_start(self, world: int) -> None:
        """Score a world's student as it is before any training."""
        scorer = _cached_scorer(shapes.resolve(self.worlds[world]["student"]))
        self._save(self.run_path(BEFORE, world), scorer, {"origin": self._start_origin(world), "history": []})

    def train(self, arm: str, seed: int) -> None:
        """One run and its scores; and those of the arms that differ from it in ``wise_ft_alpha`` alone."""
        options, alphas = self.options(arm, seed) | {"wise_ft_alpha": 1.0}, self._alphas(arm, seed)
        model, teacher = options.pop("model_name_or_path"), options.pop("teacher_name_or_path")
        folder = self.run_path(arm, seed).with_suffix("")
        config = SDSCLIPConfig(
            output_dir=str(folder), save_strategy="no", disable_tqdm=True, report_to="none", **options
        )
        teacher = self._teacher(teacher, config.teacher_dtype, config.latent_size) if config.lambda_sds else None
        if teacher is not None and config.prompt_cache_dir is None:
            config.prompt_cache_dir = str(self._prompts_folder(teacher))
        trainer = SDSCLIPTrainer(
            model=model,
            teacher=teacher,
            args=config,
            train_dataset=_cached_data(
                self.settings["dataset_name"], split=self.settings.get("train_split_name", "train")
            ),
        )
        trainer.remove_callback(RunProgress)  # of two runs at once the lines would mix; they are in the file of the run
        before = trainer.student.start_weights() if min(alphas.values()) < 1 else {}
        trainer.train()
        start, items = _cached_scorer(shapes.resolve(model)), cached_benchmark(self.settings["benchmark"]).items
        for name, alpha in alphas.items():
            student = copy.deepcopy(trainer.whole_student())
            student.go_back(before, alpha)
            scorer = RememberingClipScorer(student.base_clip, trainer.processing_class)
            told = {"origin": self._origin(name, seed), "history": trainer.state.log_history}
            told["drift"] = drift(start, scorer, items)
            decoded = decode(student, trainer, items) if seed == self.settings["seeds"][0] else {}
            self._save(self.run_path(name, seed), scorer, told, decoded)

    def _save(self, path: Path, scorer: ClipScorer, told: dict, arrays: dict | None = None) -> None:
        items = cached_benchmark(self.settings["benchmark"]).items
        scores, tags = np.stack(scorer.score(items)), [item.tag for item in items]
        told["retained"] = flatten(evaluate_benchmarks(scorer, self.settings.get("retained") or []))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path.with_suffix(".json"), told)
        with whole_file(path, scores.nbytes) as partial, partial.open("wb") as file:
            np.savez(file, scores=scores, tags=np.array(tags), **(arrays or {}))

    def _teacher(self, name: str, dtype: str, latent_size: int | None = None) -> DiffusionTeacher:
        key = name, dtype, latent_size
        if key not in self.teachers:
            self.teachers[key] = DiffusionTeacher.from_pretrained(
                shapes.resolve(name), dtype=dtype, latent_size=latent_size, load_vae=True
            )
        return self.teachers[key]


def _origin_of(path: Path) -> dict | None:
    """What a file of scores was made from, as the one beside it tells; None where one of them is damaged."""
    try:
        if path.suffix == ".npz":
            with ZipFile(path) as file:
                if file.testzip() is not None:
                    return None
        return read_json(path.with_suffix(".json"), "").get("origin")
    except (BadZipFile, OSError, ValueError):
        return None


@cache
def _study_in_worker(settings: str, folder: str) -> Study:
    return Study(json.loads(settings), Path(folder))


def _do_in_worker(settings: str, folder: str, task: tuple) -> None:
    be_quiet()
    method, *arguments = task
    getattr(_study_in_worker(settings, folder), method)(*arguments)


def be_quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
