"""Score candidate captions of a dataset's pictures with a diffusion model, once, for training with --ranking_scores."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import HfArgumentParser

from sdsclip_hf.commands.ending import INTERRUPTED, one_line_errors
from sdsclip_hf.common.config_files import read_settings, set_from_file
from sdsclip_hf.common.devices import refuse_old_driver
from sdsclip_hf.common.launching import HELP, start_processes
from sdsclip_hf.common.processes import end_process_group
from sdsclip_hf.common.resources import find_config
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.data.scores import SCORES_FILE
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.scoring.arguments import ScoringArguments, scoring_settings
from sdsclip_hf.scoring.combine import combine_scores
from sdsclip_hf.scoring.dataset_on_hub import push_scores
from sdsclip_hf.scoring.report import print_report
from sdsclip_hf.scoring.reweight import reweight_scores
from sdsclip_hf.scoring.score_captions import processes, score_named


def parse_scoring(argv: Sequence[str]) -> ScoringArguments:
    """Command line over ``--config FILE.yaml`` over defaults.

    Raises:
        ValueError: the configuration has a key that is no option.
        OSError: there is no such configuration.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    known, rest = first.parse_known_args(argv)
    parser = HfArgumentParser(ScoringArguments, description=__doc__, epilog=HELP, allow_abbrev=False)
    parser.add_argument(
        "--config",
        help="A yaml file of options of sdsclip finetune, or the name of one in recipes/configs; its `scoring` has those of "
        "this command. Options on the command line win.",
    )
    if known.config is not None:
        path = find_config(known.config)
        set_from_file(parser, path, scoring_settings(read_settings(path)), (ScoringArguments,))
    arguments, _ = parser.parse_args_into_dataclasses(rest, look_for_args_file=False)
    return arguments


def make_scores(arguments: ScoringArguments) -> dict | None:
    """What ``scores.json`` holds in the end; None on all processes but one where there is nothing to share."""
    if arguments.combine is None and arguments.reweight is None:
        return score_named(arguments)
    if not processes().is_main_process:
        return None
    if arguments.reweight is not None:
        return reweight_scores(arguments.reweight, arguments.fit_weights, arguments.labelled_items)
    return combine_scores(arguments.combine, arguments.output_dir, arguments.combine_weights, arguments.labelled_items)


@one_line_errors(interrupted=INTERRUPTED)
def main(argv: Sequence[str] | None = None) -> None:
    """``recipes/score_captions.py`` and ``sdsclip score-captions``."""
    argv = sys.argv[1:] if argv is None else list(argv)
    hush_libraries()
    install_quietly()
    options = start_processes("score-captions", argv)
    if options is None:
        return
    arguments = parse_scoring(options)
    refuse_old_driver(on_cpu="CUDA_VISIBLE_DEVICES=")
    folder = Path(arguments.reweight or arguments.output_dir)
    was_finished = arguments.reweight is None and (folder / SCORES_FILE).is_file()
    scores = make_scores(arguments)
    if processes().is_main_process:
        if was_finished:
            print(f"{folder} is finished: it holds the scores of these settings.")
        print_report(scores, folder)
        print(
            f"Next: sdsclip finetune --dataset_name {scores['dataset']['name']} --ranking_scores {folder} --lambda_rank 1 "
            "--lambda_sds 0\nwith the model to fine-tune as --model_name_or_path."
        )
        if arguments.push_to_hub:
            print(f"On the Hub: {push_scores(folder, arguments.hub_dataset_id, arguments.private)}")
    end_process_group()
