"""``sdsclip leaderboard``: a table over runs, models in rows and benchmarks in columns, with intervals and versions."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.common.writing import write_text
from sdsclip_hf.reports.leaderboard import leaderboard


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """``sdsclip leaderboard``."""
    parser = argparse.ArgumentParser(prog="sdsclip leaderboard", description=__doc__)
    add = parser.add_argument
    add("results", nargs="+", type=Path, help="results.json of evaluations or trainings, or their folders")
    add("--output", type=Path, metavar="FILE", help="default: it is printed; a name that ends in .csv makes a csv file")
    add("--format", choices=["markdown", "csv"], help="default: by the name of --output, else markdown")
    add("--overwrite", action="store_true", help="write in the place of a file that is there")
    args = parser.parse_args(argv)
    hush_libraries()
    if args.output and args.output.exists() and not args.overwrite:
        raise ValueError(f"there is {args.output} already. Pass --overwrite, or give another --output.")
    board = leaderboard(args.results)
    as_csv = args.format == "csv" or (args.format is None and args.output and args.output.suffix == ".csv")
    text = board.csv() if as_csv else board.markdown()
    if args.output is None:
        print(text, end="")
        return
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.output, text)
    print(f"{args.output}: {len(board.rows)} models, {len(board.columns)} scores.")
