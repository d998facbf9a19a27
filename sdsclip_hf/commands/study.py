"""``sdsclip study``: compare arms over seeds, with intervals."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.common.resources import find_config
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.study import study
from sdsclip_hf.study.settings import quick
from sdsclip_hf.study.study import Study, be_quiet
from sdsclip_hf.study.summary import table


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """``recipes/study.py`` and ``sdsclip study``."""
    parser = argparse.ArgumentParser(description=study.__doc__)
    parser.add_argument("--config", default="study_ranking", help="a yaml file, or the name of one in recipes/configs")
    parser.add_argument("--output_dir", type=Path, help="default: outputs/ and the name of the configuration")
    parser.add_argument("--quick", action="store_true", help="the configuration's small form")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that run at once, each with a share of the cores"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="run these alone, without the summary; default: all")
    args = parser.parse_args(argv)
    hush_libraries()
    install_quietly()
    be_quiet()
    path = find_config(args.config)
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    name = f"{path.stem}_quick" if args.quick else path.stem
    folder = args.output_dir or Path("outputs") / name
    summary = Study(quick(settings) if args.quick else settings, folder, args.workers).run(args.seeds)
    if summary is None:
        print(
            f"The runs of the seeds {args.seeds} are in {folder}; the command without --seeds makes the rest and sums up."
        )
        return
    print(table(summary))
    print(f"\nScores of every run, results.json, tables.md and the plots are in {folder}.")
