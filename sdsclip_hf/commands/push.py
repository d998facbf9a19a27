"""Push a finished run to the Hub: the plain CLIP or the prompts, what the method adds, card and scores, in one commit."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sdsclip_hf.cards.push import push_model
from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.prompts.push import push_prompts
from sdsclip_hf.prompts.saved import CONFIG_FILE


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """``sdsclip push``."""
    parser = argparse.ArgumentParser(prog="sdsclip push", description=__doc__)
    parser.add_argument("folder", type=Path, help="the output folder of a finished run")
    parser.add_argument("repo_id", help="NAMESPACE/NAME on the Hub; it is created where there is none")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to, created where there is none; default: main")
    parser.add_argument("--message", default="Push of a finished run", help="of the commit")
    parser.add_argument(
        "--force", action="store_true", help="push even into a repository that holds something other than a CLIP"
    )
    args = parser.parse_args(argv)
    where = {"private": args.private, "revision": args.revision}
    push = push_prompts if (args.folder / CONFIG_FILE).is_file() else push_model
    commit = push(args.folder, args.repo_id, message=args.message, force=args.force, **where)
    print(f"On the Hub: {commit}")
