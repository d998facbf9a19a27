"""``sdsclip plan``: tell what a run will need of memory and time, before it is started."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import HfArgumentParser

from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.common.checkpoints import write_json
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.planning import plan as planning
from sdsclip_hf.planning.plan import PlanArguments, plan, report
from sdsclip_hf.training.arguments import DataArguments, ModelArguments, parse_arguments


def parse_plan(argv: Sequence[str]) -> tuple[PlanArguments, ModelArguments, DataArguments, SDSCLIPConfig]:
    """The command line of ``sdsclip plan``; where the run is to take place need not be here.

    Raises:
        ValueError: an unknown option, or a value that does not fit.
        OSError: there is no such configuration.
    """
    parser = HfArgumentParser(
        PlanArguments,
        prog="sdsclip plan",
        description=planning.__doc__,
        epilog="And every option of sdsclip finetune, --config among them; see sdsclip finetune --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    arguments, rest = parser.parse_args_into_dataclasses(argv, look_for_args_file=False, return_remaining_strings=True)
    (model, data, config), _ = parse_arguments([*rest, "--use_cpu"])  # else bf16 is refused where no GPU is
    return arguments, model, data, config


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """``sdsclip plan``."""
    hush_libraries()
    install_quietly()
    arguments, model, data, config = parse_plan(sys.argv[1:] if argv is None else list(argv))
    found = plan(arguments, model, data, config)
    print(report(found))
    if arguments.output_json is not None:
        Path(arguments.output_json).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(arguments.output_json), found)
