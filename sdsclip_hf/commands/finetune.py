"""``sdsclip finetune``."""

import logging
import shlex
import sys
from collections.abc import Sequence

from sdsclip_hf.common.launching import start_processes
from sdsclip_hf.common.processes import end_process_group
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.training.arguments import parse_arguments, without_token
from sdsclip_hf.training.finetune import finetune

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """``recipes/finetune.py`` and ``sdsclip finetune``."""
    argv = sys.argv[1:] if argv is None else list(argv)
    hush_libraries()
    install_quietly()
    try:
        options = start_processes("finetune", argv)
        if options is None:
            return
        arguments, name = parse_arguments(options)
        finetune(arguments, name, shlex.join(["finetune", *without_token(argv)]))
        end_process_group()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command with --resume_from_checkpoint last goes on from the last checkpoint")
    except (ValueError, OSError, FloatingPointError) as error:
        logger.debug("the traceback of the error below", exc_info=True)
        sys.exit(f"error: {error}")
