"""``sdsclip report``: one HTML file of an evaluation's items, with pictures, captions and both models' scores."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sdsclip_hf.cards.report_link import check_card, link_report
from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.reports.gather import MOST_ITEMS, Pictures, gather
from sdsclip_hf.reports.page import REPORT_FILE, write_page


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """``sdsclip report``."""
    parser = argparse.ArgumentParser(prog="sdsclip report", description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="the --output_dir of a finished `sdsclip evaluate`")
    add("--output", type=Path, metavar="FILE", help=f"default: {REPORT_FILE} in that folder")
    add("--card", type=Path, metavar="FOLDER", help="of the tuned model: put the page there, and a link into its card")
    add("--overwrite", action="store_true", help="write in the place of a file that is there")
    add("--model", help="the run that is compared with the first; default: the last")
    add("--max_items", type=int, default=MOST_ITEMS, help="in the page; of more a random sample is shown")
    of_pictures = parser.add_mutually_exclusive_group()
    of_pictures.add_argument("--no_images", action="store_true", help="captions only")
    of_pictures.add_argument(
        "--all_images",
        action="store_true",
        help="pictures of benchmarks whose licence forbids copies, too (Winoground); do not hand such a page on",
    )
    args = parser.parse_args(argv)
    hush_libraries()
    target = args.output or (args.card or args.folder) / REPORT_FILE
    if args.card and (args.output or args.all_images):
        raise ValueError("--card puts the page where it is pushed from; leave --output and --all_images out beside it.")
    if target.exists() and not args.overwrite:
        raise ValueError(f"there is {target} already. Pass --overwrite, or give another --output.")
    if args.max_items < 1:
        raise ValueError(f"--max_items is {args.max_items}; it must be at least 1.")
    pictures = Pictures(none=args.no_images, all=args.all_images)
    content, thumbnails = gather(args.folder, args.model, pictures, most_items=args.max_items)
    if args.card:
        check_card(args.card, content["models"][-1]["name"])
    write_page(target, content, thumbnails)
    if args.card:
        link_report(args.card)
    print(f"{target} ({target.stat().st_size / 1e6:.1f} MB) opens in any browser.")
