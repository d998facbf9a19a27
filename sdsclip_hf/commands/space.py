"""``sdsclip space push``: the demo page of a tuned model as a Space on the Hub."""

import argparse
from collections.abc import Sequence

from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.demo.space import push


@one_line_errors("sdsclip space")
def main(argv: Sequence[str] | None = None) -> None:
    """Run ``sdsclip space push``."""
    args = _parser().parse_args(argv)
    print(push(args.space, args.model, args.base, private=args.private, force=args.force))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sdsclip space", description=__doc__.replace("``", ""))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "create a demo Space, or update it; in one commit, what else is in it is removed"
    command = commands.add_parser("push", help=text, description=text)
    command.add_argument("space", metavar="NAMESPACE/NAME", help="of the Space")
    command.add_argument("--model", required=True, metavar="ID", help="the tuned model's Hub id")
    command.add_argument("--base", metavar="ID", help="the base model's Hub id; default: what ID's card names")
    command.add_argument("--private", action="store_true", help="a new Space is private")
    command.add_argument("--force", action="store_true", help="put it even where the Space holds something else")
    return parser
