"""Score candidate captions of a dataset's pictures with a diffusion model, once, for training with --ranking_scores."""

import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import HfArgumentParser

from sdsclip_hf.commands.ending import INTERRUPTED, one_line_errors
from sdsclip_hf.common.launching import HELP, start_processes
from sdsclip_hf.common.processes import end_process_group
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.data.scores import SCORES_FILE
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.scoring.dataset_on_hub import push_scores
from sdsclip_hf.scoring.report import print_report
from sdsclip_hf.scoring.score_captions import processes, score_named


@one_line_errors(interrupted=INTERRUPTED)
def main(argv: Sequence[str] | None = None) -> None:
    """``recipes/score_captions.py`` and ``sdsclip score-captions``."""
    argv = sys.argv[1:] if argv is None else list(argv)
    hush_libraries()
    install_quietly()
    options = start_processes("score-captions", argv)
    if options is None:
        return
    parser = HfArgumentParser(ScoringArguments, description=__doc__, epilog=HELP)
    (arguments,) = parser.parse_args_into_dataclasses(options, look_for_args_file=False)
    folder = Path(arguments.output_dir)
    was_finished = (folder / SCORES_FILE).is_file()
    scores = score_named(arguments)
    if processes().is_main_process:
        if was_finished:
            print(f"{folder} is finished: it holds the scores of these settings.")
        print_report(scores, folder)
        print(
            f"Next: sdsclip finetune --dataset_name {arguments.dataset_name} --ranking_scores {folder} --lambda_rank 1 "
            "--lambda_sds 0\nwith the model to fine-tune as --model_name_or_path."
        )
        if arguments.push_to_hub:
            print(f"On the Hub: {push_scores(folder, arguments.hub_dataset_id, arguments.private)}")
    end_process_group()
