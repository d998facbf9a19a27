"""``sdsclip paint-negatives``: a teacher paints wrong pictures of look-alike captions, for --negative_image_column."""

import argparse
import sys
from collections.abc import Sequence

from sdsclip_hf.commands.ending import INTERRUPTED, one_line_errors
from sdsclip_hf.common.devices import default_device
from sdsclip_hf.common.precision import DTYPES
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.losses import WEIGHTINGS
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.scoring.candidates import parse_sources
from sdsclip_hf.scoring.painting import paint_negatives
from sdsclip_hf.scoring.score_captions import load_teacher


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="sdsclip paint-negatives", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--teacher_name_or_path", required=True, help="the text-to-image model that paints, and checks what it painted")
    add("--teacher_dtype", choices=DTYPES, default="auto", help="number format of its weights; default: by the device")
    add("--teacher_revision", help="branch, tag or commit on the Hub")
    add("--teacher_variant", help="of its weight files, e.g. fp16")
    add("--latent_size", type=int, help="height and width of a picture in latent pixels; default: the teacher's own")
    add("--dataset_name", default="shapes", help="pictures and captions, as of sdsclip score-captions")
    add("--dataset_config_name", help="configuration of the dataset")
    add("--dataset_revision", help="branch, tag or commit of the dataset on the Hub")
    add("--split", default="train", help="of the dataset")
    add("--max_samples", type=int, help="rows at most; default: all")
    add("--image_column", default="image", help="of the dataset")
    add("--caption_column", default="caption", help="of the dataset: a caption, or a list of them")
    add("--max_bad_images", type=int, default=0, help="rows without a readable picture or caption that are left out")
    add("--candidates", nargs="+", default=["swap:1"], help="wrong captions: swap, batch or column; a row takes one")
    add("--candidates_column", help="of source column")
    add("--num_inference_steps", type=int, default=30, help="of the pipeline")
    add("--guidance_scale", type=float, help="of the pipeline; default: its own")
    add("--num_draws", type=int, default=8, help="draws by which the teacher checks a picture")
    add("--timestep_range", nargs=2, type=int, help="first and last timestep of these; default: the whole schedule")
    add("--weighting", choices=WEIGHTINGS, help="w(t) of these; default: by the teacher's kind")
    add("--seed", type=int, default=0, help="of the pictures, and of all that is drawn")
    add("--batch_size", type=int, default=64, help="denoiser inputs at once in the check")
    add("--output_dir", default="outputs/painted", help="receives the dataset")
    return parser.parse_args(argv)


@one_line_errors(interrupted=INTERRUPTED)
def main(argv: Sequence[str] | None = None) -> None:
    """``sdsclip paint-negatives``."""
    args = parse_arguments(sys.argv[1:] if argv is None else list(argv))
    hush_libraries()
    given = vars(args).copy()
    steps, scale = given.pop("num_inference_steps"), given.pop("guidance_scale")
    if "nearest" in parse_sources(args.candidates):
        raise ValueError(
            "the nearest captions tell of other pictures, which exist; give --candidates swap, batch or column."
        )
    arguments = ScoringArguments(**given, stop_confidence=0.0)
    names, revision = (args.dataset_name, args.dataset_config_name), args.dataset_revision
    dataset = load_image_captions(*names, split=args.split, revision=revision, max_samples=args.max_samples)
    device = default_device()
    told = paint_negatives(load_teacher(arguments).place(device), dataset, arguments, steps, scale)
    share = told["kept"] / max(1, told["painted"])
    print(
        f"{told['painted']:,} pictures painted, {told['kept']:,} ({share:.0%}) kept: of the others the teacher says that"
    )
    print(f"they do not show their caption. All {told['rows']:,} rows are in {args.output_dir}.")
    print(
        f"Next: sdsclip finetune --dataset_name {args.output_dir} --negative_image_column negative_image --lambda_images 1"
    )
