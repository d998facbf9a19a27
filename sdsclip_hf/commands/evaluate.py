"""``sdsclip evaluate``: score models on benchmarks."""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sdsclip_hf.commands.ending import INTERRUPTED, one_line_errors
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.config import TEACHER_OFFLOADS, TEACHER_QUANTIZATIONS
from sdsclip_hf.evaluation.evaluate_models import evaluate_models, report
from sdsclip_hf.losses import WEIGHTINGS
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.prompts.class_features import SavedPrompts
from sdsclip_hf.reports.gather import Pictures, gather
from sdsclip_hf.reports.page import REPORT_FILE, write_page


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="sdsclip evaluate", description=__doc__)
    add = parser.add_argument
    many = {"nargs": "+", "action": "extend", "default": []}  # may be repeated, too
    add(
        "--model",
        "--model_name_or_path",
        **many,
        help="CLIP, SigLIP, ...: a Hub id, a folder, a LoRA adapter; or open_clip's form",
    )
    add(
        "--architecture",
        **(many | {"default": None}),
        help="of a file of weights, e.g. ViT-B-32-quickgelu; one for all or each",
    )
    add("--processor", help="whose tokenizer goes with open_clip's form; default: the one beside it, or OpenAI's")
    add("--checkpoint_key", help="under which a file of weights holds the model, e.g. ema; default: looked for")
    add("--teacher", "--teacher_name_or_path", **many, help="a diffusion model, scored by its denoising error")
    add("--prompts", help="learned prompts that tell the classes: a folder or Hub id that `sdsclip prompt-tune` left")
    add("--benchmark", **many, help="NAME[:PART][=SOURCE[@REVISION]], see docs/evaluating.md")
    add("--data", help="a folder with the benchmarks' data, one folder each by name, or of one benchmark")
    add("--output_dir", default="outputs/evaluation", help="receives results, every item's scores, a plot and a page")
    add("--allow_missing", action="store_true", help="leave out items whose image is missing, and count them")
    add("--image_dir", help="folder, zip or tar of the images that a json or csv file names; default: beside it")
    add("--fetch_images", action="store_true", help="fetch images that have an address and are not on this machine")
    add(
        "--batch_size",
        type=_at_least(1),
        help="inputs of a model at once; default: 128 of a --model, 16 of a --teacher",
    )
    add("--num_workers", type=_at_least(0), default=2, help="processes that read images ahead")
    add(
        "--preprocess_on_device",
        action="store_true",
        help="these only decode images, and a --model's are prepared on the GPU, which needs torchvision",
    )
    dtypes = ["auto", "float32", "float16", "bfloat16"]
    add(
        "--dtype",
        default="auto",
        choices=dtypes,
        help="of the weights; auto: of a --model as they are stored, of a --teacher bfloat16 on a GPU that has it, float16 "
        "on another, float32 on CPUs. Scores are float32 whatever it is",
    )
    add("--teacher_quantization", choices=TEACHER_QUANTIZATIONS, help="of a teacher's denoiser; default: none")
    add("--teacher_offload", choices=TEACHER_OFFLOADS, help="what of a teacher is on the GPU only while it works")
    add("--templates", nargs="+", default=["a photo of a {}."], help="prompts of classification, or a file of them")
    add("--image_column", help="of classification and retrieval data; default: the only one of images")
    add("--caption_column", help="of retrieval data; default: caption")
    add("--label_column", help="of classification data; default: the ClassLabel column, or label")
    add("--num_draws", type=_at_least(1), default=10, help="draws of (t, noise) that a teacher's score is the mean of")
    add("--timestep_range", nargs=2, type=int, help="first and last timestep of a teacher's score; default: all")
    add("--weighting", choices=WEIGHTINGS, help="w(t) of a teacher's score; default: by its kind")
    add("--seed", type=int, default=0, help="of a teacher's noise")
    add("--no_report", action="store_true", help=f"of two models, make no {REPORT_FILE}, see `sdsclip report`")
    add("--no_images", action="store_true", help=f"no pictures in {REPORT_FILE}")
    args = parser.parse_args(argv)
    if not args.model and not args.teacher and not args.prompts:
        args.model = ["shapes/student"]
    if not args.benchmark:
        args.benchmark = ["shapes:test", "retrieval:test=shapes"]
    return args


def _at_least(lowest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text} is below {lowest}")
        return int(text)

    return number


@one_line_errors(interrupted=INTERRUPTED)
def main(argv: Sequence[str] | None = None) -> None:
    """``recipes/evaluate.py`` and ``sdsclip evaluate``."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse_arguments(argv)
    hush_libraries()
    install_quietly()
    folder = Path(args.output_dir)
    started = time.perf_counter()
    prompts = None if args.prompts is None else SavedPrompts.load(args.prompts)
    if prompts is not None and not args.model:
        args.model = [prompts.model]
    results, benchmarks = evaluate_models(args, shlex.join(["sdsclip", "evaluate", *argv]), prompts)
    report(results, folder)
    if len(results["models"]) == 2 and not args.no_report:
        pictures = Pictures(none=args.no_images)
        write_page(folder / REPORT_FILE, *gather(folder, pictures=pictures, benchmarks=benchmarks))
        print(f"{folder / REPORT_FILE} shows what was won and lost, item by item; it opens in any browser.")
    print(f"It took {time.perf_counter() - started:.0f} s.")
