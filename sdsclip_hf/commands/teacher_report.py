"""``sdsclip teacher-report``: what a teacher or ranker is worth on known pairs, before it scores a dataset."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch

from sdsclip_hf.benchmarks import Options, load_benchmark
from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.common.devices import default_device
from sdsclip_hf.common.precision import DTYPES
from sdsclip_hf.common.resources import versions
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.common.writing import write_json
from sdsclip_hf.config import TEACHER_OFFLOADS, TEACHER_QUANTIZATIONS
from sdsclip_hf.data.images import BAD_IMAGES_FILE, BadImages
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.data.scores import portable_name
from sdsclip_hf.evaluation.evaluate_models import name_runs
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.losses import WEIGHTINGS
from sdsclip_hf.rankers.caption_ranker import CaptionRanker
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.scoring.caption_errors import CaptionErrors
from sdsclip_hf.scoring.score_captions import caption_errors, load_named_ranker, load_teacher
from sdsclip_hf.students.dual_encoder import load_dual_encoder
from sdsclip_hf.teacher_report.page import PAGE_FILE, write_page
from sdsclip_hf.teacher_report.questions import Question, benchmark_questions, dataset_questions
from sdsclip_hf.teacher_report.report import report_on, scoring_cost
from sdsclip_hf.teacher_report.text import report_text

REPORT_FILE = "teacher_report.json"
OWN = ("benchmark", "image_dir", "fetch_images", "model", "overwrite")  # options that a scoring does not have
ALWAYS_TOLD = ("dataset_name", "candidates", "output_dir")  # in the command of the scoring


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="sdsclip teacher-report", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--teacher_name_or_path", help="the diffusion model: see sdsclip score-captions")
    add("--teacher_dtype", choices=DTYPES, default="auto", help="number format of its weights; default: by the device")
    add("--teacher_quantization", choices=TEACHER_QUANTIZATIONS, help="of its denoiser; default: none")
    add("--teacher_offload", choices=TEACHER_OFFLOADS, help="what of it is on the GPU only while it works")
    add("--teacher_revision", help="branch, tag or commit on the Hub")
    add("--teacher_variant", help="of its weight files, e.g. fp16")
    add("--latent_size", type=int, help="height and width of a picture in latent pixels; default: the teacher's own")
    add("--ranker", help="in its place a model that ranks, MODEL or KIND=MODEL: see sdsclip score-captions")
    add("--ranker_revision", help="branch, tag or commit on the Hub")
    add("--ranker_dtype", choices=DTYPES, default="auto", help="number format of its weights; default: by the device")
    add("--ranker_question", help="what a generative one is asked; default: VQAScore's question, or for a description")
    add("--architecture", help="of a ranker that is a file of weights in open_clip's form, e.g. ViT-B-32-quickgelu")
    add("--processor", help="of a ranker in open_clip's form; default: the one beside it, or OpenAI's")
    add("--checkpoint_key", help="under which a file of weights holds the ranker, e.g. ema; default: looked for")
    add("--dataset_name", default="shapes", help="pictures and captions, as of sdsclip score-captions")
    add("--dataset_config_name", help="configuration of the dataset")
    add("--dataset_revision", help="branch, tag or commit of the dataset on the Hub")
    add("--split", default="train", help="of the dataset")
    add("--image_column", default="image", help="of the dataset")
    add("--caption_column", default="caption", help="of the dataset: a caption, or a list of them")
    add("--max_bad_images", type=int, default=0, help="rows without a readable picture or caption that are left out")
    add(
        "--candidates",
        nargs="+",
        help="wrong captions, see sdsclip score-captions; default: swap:3, and nearest:1 with a model",
    )
    add("--candidates_column", help="of source column")
    add("--benchmark", help="pairs=SOURCE, choices=SOURCE or another, whose pairs are asked in place of the dataset's")
    add("--image_dir", help="of the benchmark: folder, zip or tar of the images that its table names")
    add("--fetch_images", action="store_true", help="of the benchmark: fetch images that have an address")
    add("--model", "--model_name_or_path", nargs="+", default=[], help="students that the teacher has to beat")
    add("--max_samples", type=int, default=300, help="pictures, or items of the benchmark, drawn at random")
    add("--num_draws", type=int, default=16, help="draws of (timestep, noise) a caption; a ranker has one score")
    add("--timestep_range", nargs=2, type=int, help="first and last timestep; default: the whole schedule")
    add("--weighting", choices=WEIGHTINGS, help="w(t); default: by the teacher's kind")
    add("--seed", type=int, default=0, help="of the noise and of all that is drawn")
    add("--batch_size", type=int, default=64, help="denoiser inputs, or a ranker's pictures with a caption, at once")
    add("--output_dir", default="outputs/teacher_report", help=f"receives {REPORT_FILE} and {PAGE_FILE}")
    add("--overwrite", action="store_true", help="write in the place of a report that is there")
    args = parser.parse_args(argv)
    args.candidates = args.candidates or ["swap:3", *(["nearest:1"] if args.model else [])]
    return args


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """``sdsclip teacher-report``."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse_arguments(argv)
    hush_libraries()
    folder = Path(args.output_dir)
    if (folder / REPORT_FILE).exists() and not args.overwrite:
        raise ValueError(f"there is {folder / REPORT_FILE} already. Pass --overwrite, or give another --output_dir.")
    given = {name: value for name, value in vars(args).items() if name not in OWN}
    clip = args.model[0] if args.model else None
    arguments = ScoringArguments(**given, model_name_or_path=clip, stop_confidence=0.0)
    if args.teacher_name_or_path is None and args.ranker is None:
        raise ValueError(
            "neither --teacher_name_or_path nor --ranker is given, so there is nobody to ask; give one of them."
        )
    report = make_report(args, arguments) | {"command": shlex.join(["sdsclip", "teacher-report", *argv])}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / REPORT_FILE, report)
    write_page(folder / PAGE_FILE, report)
    print(report_text(report))
    print(f"{folder / PAGE_FILE} has plots; it opens in any browser.")


def make_report(args: argparse.Namespace, arguments: ScoringArguments) -> dict:
    """What ``teacher_report.json`` holds, but for the command.

    Args:
        args: from [`parse_arguments`].
        arguments: the same, as a scoring has them.

    Raises:
        ValueError: options or data that do not fit, or there are no pairs.
        OSError: a model, the data or a picture cannot be had.
    """
    device = default_device()
    students = {run: _student(name, device) for run, name in name_runs(args.model).items()}
    questions, source, pictures = _ask(args, arguments, next(iter(students.values()), None))
    teacher, told = _teacher(arguments, device)
    found = report_on(teacher, questions, students)
    told |= {"source": source, "students": list(students), "versions": versions()}
    cost = scoring_cost(found, arguments, pictures)
    return told | found | {"cost": cost, "next": _next_command(arguments, found["verdict"])}


def _teacher(arguments: ScoringArguments, device: torch.device) -> tuple[CaptionErrors | CaptionRanker, dict]:
    """What is asked, and what the report tells of it and of its settings."""
    settings = {name: getattr(arguments, name) for name in ("seed", "batch_size")}
    if arguments.ranker is not None:
        ranker = load_named_ranker(arguments, str(device))
        return ranker, {"teacher": ranker.settings(), "settings": settings}
    told = {"name": portable_name(str(arguments.teacher_name_or_path)), "revision": arguments.teacher_revision}
    settings = {name: getattr(arguments, name) for name in ("num_draws", "timestep_range", "weighting")} | settings
    return caption_errors(load_teacher(arguments), arguments, device), {"teacher": told, "settings": settings}


def _student(name: str, device: torch.device) -> ClipScorer:
    encoder = load_dual_encoder(name)
    return ClipScorer(encoder.model.to(device), encoder.processor)


def _ask(
    args: argparse.Namespace, arguments: ScoringArguments, embedder: ClipScorer | None
) -> tuple[list[Question], dict, int]:
    """The questions, what they are of, and how many pictures a scoring of the dataset has."""
    names = args.dataset_name, args.dataset_config_name
    dataset = load_image_captions(*names, split=args.split, revision=args.dataset_revision)
    if args.benchmark is None:
        bad_images = BadImages(args.max_bad_images, Path(args.output_dir) / BAD_IMAGES_FILE)
        questions = dataset_questions(dataset, arguments, embedder, bad_images)
        return questions, {"name": portable_name(args.dataset_name), "split": args.split}, len(dataset)
    options = Options(image_dir=args.image_dir, fetch_images=args.fetch_images)
    questions, left_out = benchmark_questions(load_benchmark(args.benchmark, options), args.max_samples, args.seed)
    return questions, {"name": args.benchmark, "choices_of_pictures_left_out": left_out}, len(dataset)


def _next_command(arguments: ScoringArguments, verdict: dict) -> str:
    """The scoring that the verdict asks for, by the options that the report was given."""
    plain = ScoringArguments()
    fit = "own" if verdict.get("weighted") else None
    scoring = replace(
        arguments,
        max_samples=None,
        num_draws=verdict.get("draws", plain.num_draws),
        stop_confidence=0.0 if fit else plain.stop_confidence,
        fit_weights=fit,
        output_dir=plain.output_dir,
    )
    words = ["sdsclip", "score-captions"]
    for name in (entry.name for entry in fields(scoring)):
        value = getattr(scoring, name)
        if value != getattr(plain, name) or name in ALWAYS_TOLD:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)
