"""``sdsclip finetune``."""

import shlex
import sys
from collections.abc import Sequence

from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.common.devices import refuse_old_driver
from sdsclip_hf.common.launching import start_processes
from sdsclip_hf.common.processes import end_process_group
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.training.arguments import parse_arguments, without_token
from sdsclip_hf.training.finetune import finetune


@one_line_errors(
    interrupted="interrupted; the same command with --resume_from_checkpoint last goes on from the last checkpoint"
)
def main(argv: Sequence[str] | None = None) -> None:
    """``recipes/finetune.py`` and ``sdsclip finetune``."""
    argv = sys.argv[1:] if argv is None else list(argv)
    hush_libraries()
    install_quietly()
    options = start_processes("finetune", argv)
    if options is None:
        return
    arguments, name = parse_arguments(options)
    if not arguments[-1].use_cpu:
        refuse_old_driver()
    finetune(arguments, name, shlex.join(["finetune", *without_token(argv)]))
    end_process_group()
