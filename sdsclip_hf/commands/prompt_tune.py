"""``sdsclip prompt-tune``."""

import shlex
import sys
from collections.abc import Sequence

from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.common.launching import start_processes
from sdsclip_hf.common.processes import end_process_group
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.prompts.arguments import asks_for_one_run, parse_arguments
from sdsclip_hf.prompts.tuning import compare, tune
from sdsclip_hf.training.arguments import without_token


@one_line_errors(
    interrupted="interrupted; the same command with --resume_from_checkpoint last goes on from the last checkpoint"
)
def main(argv: Sequence[str] | None = None) -> None:
    """``recipes/prompt_tune.py`` and ``sdsclip prompt-tune``."""
    argv = sys.argv[1:] if argv is None else list(argv)
    hush_libraries()
    options = start_processes("prompt-tune", argv)
    if options is None:
        return
    command = shlex.join(["sdsclip", "prompt-tune", *without_token(argv)])
    if asks_for_one_run(options):
        tune(*parse_arguments(options), command)
    else:
        compare(parse_arguments, options, command)
    end_process_group()
