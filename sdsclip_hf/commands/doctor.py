"""``sdsclip doctor``: check this machine, the Hub and the data against a configuration, before a run."""

import argparse
import sys
from collections.abc import Sequence

from sdsclip_hf import doctor
from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.doctor.case import Case, read_case
from sdsclip_hf.doctor.examine import examine
from sdsclip_hf.doctor.findings import summary


def parse_doctor(argv: Sequence[str]) -> Case:
    """The command line of ``sdsclip doctor``.

    Raises:
        ValueError: an unknown option, or a value that does not fit.
        OSError: there is no such configuration.
    """
    parser = argparse.ArgumentParser(
        prog="sdsclip doctor",
        description=doctor.__doc__,
        epilog="And every option of sdsclip finetune, --config among them; see sdsclip finetune --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--num_processes", type=int, default=1, help="Processes of the run, all on this machine.")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.num_processes < 1:
        raise ValueError(f"num_processes is {arguments.num_processes}; it must be at least 1. Set --num_processes.")
    return read_case(rest, arguments.num_processes)


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """``sdsclip doctor``: a line for each finding; exit code 1 where one has failed."""
    case = parse_doctor(sys.argv[1:] if argv is None else list(argv))
    findings = []
    for finding in examine(case):
        findings.append(finding)
        print(finding, flush=True)
    print(f"\n{summary(findings)}")
    if any(finding.status == "fail" for finding in findings):
        sys.exit(1)
