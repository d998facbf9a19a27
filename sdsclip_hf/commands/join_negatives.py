"""``sdsclip join-negatives``: wrong captions of a dataset without pictures, put beside another's pictures by their ids."""

import argparse
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.common.writing import refuse_occupied, whole_folder
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.data.text_negatives import NEGATIVES, join_negatives

MOST_TOLD = 10  # wrong captions of a picture that are counted apart


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """``sdsclip join-negatives``."""
    parser = argparse.ArgumentParser(prog="sdsclip join-negatives", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--dataset_name", required=True, help="pictures and captions, as of sdsclip finetune")
    add("--dataset_config_name", help="configuration of the dataset")
    add("--dataset_revision", help="branch, tag or commit of the dataset on the Hub")
    add("--split", default="train", help="of the dataset")
    add("--image_id_column", default="image_id", help="of the dataset: each picture's id, a number or a text")
    add("--caption_column", default="caption", help="of the dataset: a caption, or a list of them")
    add("--negatives_dataset_name", required=True, help="ids and wrong captions, e.g. imirandam/TROHN-Text")
    add("--negatives_dataset_config_name", help="its configuration")
    add("--negatives_dataset_revision", help="its branch, tag or commit on the Hub")
    add("--negatives_split", default="train", help="its split, e.g. train+validation")
    add("--negative_id_column", default="image_id", help="its column of the pictures' ids")
    add(
        "--negative_caption_column", default="negative_caption", help="its column of a wrong caption, or a list of them"
    )
    add("--id_pattern", help="a regular expression that finds the id in both columns, e.g. [0-9]+; default: all of it")
    add("--output_dir", type=Path, default=Path("outputs/joined"), help="receives the dataset, new or empty")
    args = parser.parse_args(argv)
    hush_libraries()
    refuse_occupied(args.output_dir)
    names, revision = (args.dataset_name, args.dataset_config_name), args.dataset_revision
    pictures = load_image_captions(*names, split=args.split, revision=revision)
    names, revision = (args.negatives_dataset_name, args.negatives_dataset_config_name), args.negatives_dataset_revision
    option = "--negatives_dataset_name"
    negatives = load_image_captions(*names, split=args.negatives_split, revision=revision, option=option)
    columns = ("image_id_column", "negative_id_column", "negative_caption_column", "caption_column", "id_pattern")
    joined = join_negatives(pictures, negatives, **{name: getattr(args, name) for name in columns})
    with whole_folder(args.output_dir) as new:
        joined.save_to_disk(new)
    print(f"{len(joined):,} pictures are in {args.output_dir}, by the number of their wrong captions:")
    print(_counts(joined[NEGATIVES]))
    words = ["--dataset_name", str(args.output_dir), "--candidates", "column:3", "--candidates_column", NEGATIVES]
    words += [] if args.caption_column == "caption" else ["--caption_column", args.caption_column]
    print(f"Next: sdsclip score-captions {shlex.join(words)}\nwith --teacher_name_or_path or --ranker.")


def _counts(captions: Iterable[Sequence[str]]) -> str:
    counts = Counter(min(len(texts), MOST_TOLD) for texts in captions)
    more = {MOST_TOLD: " or more"}
    return ", ".join(f"{number}{more.get(number, '')}: {counts[number]:,}" for number in sorted(counts))
