"""``sdsclip teacher-report``: what a teacher is worth on pairs whose answer is known, before it scores a dataset."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from sdsclip_hf.benchmarks import Options, load_benchmark
from sdsclip_hf.commands.ending import one_line_errors
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
from sdsclip_hf.scoring.arguments import DTYPES, ScoringArguments
from sdsclip_hf.scoring.caption_errors import CaptionErrors
from sdsclip_hf.scoring.score_captions import load_teacher
from sdsclip_hf.students.dual_encoder import load_dual_encoder
from sdsclip_hf.teacher_report.page import PAGE_FILE, write_page
from sdsclip_hf.teacher_report.questions import Question, benchmark_questions, dataset_questions
from sdsclip_hf.teacher_report.report import report_on, scoring_cost
from sdsclip_hf.teacher_report.text import report_text

REPORT_FILE = "teacher_report.json"
OWN = ("benchmark", "image_dir", "fetch_images", "model", "overwrite")  # options that a scoring does not have


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="sdsclip teacher-report", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--teacher_name_or_path", required=True, help="the diffusion model: see sdsclip score-captions")
    add("--teacher_dtype", choices=DTYPES, default="float32", help="number format of its weights")
    add("--teacher_quantization", choices=TEACHER_QUANTIZATIONS, help="of its denoiser; default: none")
    add("--teacher_offload", choices=TEACHER_OFFLOADS, help="what of it is on the GPU only while it works")
    add("--teacher_revision", help="branch, tag or commit on the Hub")
    add("--teacher_variant", help="of its weight files, e.g. fp16")
    add("--latent_size", type=int, help="height and width of a picture in latent pixels; default: the teacher's own")
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
    add("--num_draws", type=int, default=16, help="draws of (timestep, noise) a caption")
    add("--timestep_range", nargs=2, type=int, help="first and last timestep; default: the whole schedule")
    add("--weighting", choices=WEIGHTINGS, help="w(t); default: by the teacher's kind")
    add("--seed", type=int, default=0, help="of the noise and of all that is drawn")
    add("--batch_size", type=int, default=64, help="denoiser inputs at once")
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
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    students = {run: _student(name, device) for run, name in name_runs(args.model).items()}
    questions, source, pictures = _ask(args, arguments, next(iter(students.values()), None))
    teacher = load_teacher(arguments).place(device, arguments.teacher_offload).speed_up(packed=True)
    draws = {
        name: getattr(arguments, name) for name in ("num_draws", "timestep_range", "weighting", "seed", "batch_size")
    }
    found = report_on(CaptionErrors(teacher, **draws), questions, students)
    told = {"teacher": {"name": portable_name(args.teacher_name_or_path), "revision": args.teacher_revision}}
    told |= {"source": source, "students": list(students), "settings": draws, "versions": versions()}
    cost = scoring_cost(found, arguments, pictures)
    return told | found | {"cost": cost, "next": _next_command(args, found["verdict"])}


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


def _next_command(args: argparse.Namespace, verdict: dict) -> str:
    """The scoring that the verdict asks for."""
    words = ["sdsclip", "score-captions", "--teacher_name_or_path", args.teacher_name_or_path]
    words += ["--dataset_name", args.dataset_name, "--candidates", *args.candidates]
    words += ["--model_name_or_path", args.model[0]] if args.model else []
    words += ["--num_draws", str(verdict["draws"])]
    words += ["--timestep_range", *map(str, args.timestep_range)] if args.timestep_range else []
    words += ["--fit_weights", "own", "--stop_confidence", "0"] if verdict["weighted"] else []
    return shlex.join([*words, "--output_dir", "outputs/scores"])
