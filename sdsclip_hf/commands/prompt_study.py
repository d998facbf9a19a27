"""``sdsclip prompt-study``: compare ways to tune prompts over datasets and seeds, by the literature's protocols."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sdsclip_hf.commands.ending import INTERRUPTED, one_line_errors
from sdsclip_hf.common.config_files import read_settings
from sdsclip_hf.common.locks import working_in
from sdsclip_hf.common.resources import find_config
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.prompts.study.study import PromptStudy


@one_line_errors(interrupted=INTERRUPTED)
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see [`PromptStudy`] for what the configuration holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="prompts_shapes", help="a yaml file, or the name of one in recipes/configs")
    parser.add_argument("--output_dir", type=Path, help="default: outputs/ and the name of the configuration")
    parser.add_argument("--seeds", type=int, nargs="+", help="these in place of the configuration's")
    args = parser.parse_args(argv)
    hush_libraries()
    path = find_config(args.config)
    settings = read_settings(path)
    if args.seeds:
        settings["seeds"] = args.seeds
    folder = args.output_dir or Path("outputs") / path.stem
    study = PromptStudy(settings, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with working_in(folder):
        print(study.run())
    print(f"Every run, the picks, results.json, tables.md and the plots are in {folder}.")
