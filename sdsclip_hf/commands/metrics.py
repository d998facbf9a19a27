"""``sdsclip metrics``: place the metrics where ``evaluate.load`` finds them: in its cache, or on the Hub as Spaces."""

import argparse
import sys
from collections.abc import Sequence

from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.hub.commits import check_login
from sdsclip_hf.metrics import names, path
from sdsclip_hf.metrics.install import Installed, install, installed, uninstall
from sdsclip_hf.metrics.push import check_org, push

NOTES = {
    "foreign": "a module from elsewhere, left as it is; remove its folder to place ours",
    "newer": "placed by a newer version of this package, left as it is",
}


@one_line_errors("sdsclip metrics")
def main(argv: Sequence[str] | None = None) -> None:
    """Run ``sdsclip metrics install | list | uninstall | path | push``."""
    args = _parser().parse_args(argv)
    args.run(args)


def _parser() -> argparse.ArgumentParser:
    epilog = f"The metrics: {', '.join(names())}."
    parser = argparse.ArgumentParser(prog="sdsclip metrics", description=__doc__.replace("``", ""), epilog=epilog)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("install", _install, "place metrics in evaluate's cache; nothing is written where they are there already"),
        ("uninstall", _uninstall, "remove what install has placed"),
    ):
        command = commands.add_parser(name, help=text, description=text, epilog=epilog)
        command.add_argument("names", nargs="*", metavar="NAME", help="a metric; all of them by default")
        command.set_defaults(run=run)
    text = "tell for each metric what evaluate's cache holds: absent, current, older, newer or foreign"
    commands.add_parser("list", help=text, description=text).set_defaults(run=_list)
    text = "print the folder of a metric, for evaluate.load(folder)"
    command = commands.add_parser("path", help=text, description=text, epilog=epilog)
    command.add_argument("name", metavar="NAME", help="a metric")
    command.set_defaults(run=lambda args: print(path(args.name)))
    text = "create or update a Space for each metric, so that evaluate.load finds it as ORG/NAME; one commit a Space"
    command = commands.add_parser("push", help=text, description=text, epilog=epilog)
    command.add_argument("--org", required=True, help="the organisation or user whose Spaces they are")
    command.add_argument(
        "--name", nargs="+", action="extend", dest="names", metavar="NAME", help="a metric; all of them by default"
    )
    command.add_argument("--private", action="store_true", help="a new Space is private")
    command.add_argument("--force", action="store_true", help="push even where a Space holds something else")
    command.set_defaults(run=_push)
    return parser


def _install(args: argparse.Namespace) -> None:
    _print(install(args.names or None))


def _list(args: argparse.Namespace) -> None:
    _print(installed())


def _uninstall(args: argparse.Namespace) -> None:
    removed = uninstall(args.names or None)
    print(f"removed: {', '.join(removed)}" if removed else "nothing was installed")


def _push(args: argparse.Namespace) -> None:
    """Try every metric; at the end, name those that failed and the command that finishes them."""
    check_org(args.org)
    wanted = list(dict.fromkeys(args.names or names()))
    for name in wanted:
        path(name)
    check_login()
    failed = []
    for name in wanted:
        try:
            commit = push(name, args.org, private=args.private, force=args.force)
            print(f'evaluate.load("{args.org}/{name}"): {commit}', flush=True)
        except (ValueError, OSError) as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr)
    if failed:
        flags = f"{' --private' * args.private}{' --force' * args.force}"
        raise OSError(
            f"{len(failed)} of {len(wanted)} Spaces failed, for the reasons above; once they are mended, this finishes "
            f"them:\n  sdsclip metrics push --org {args.org} --name {' '.join(failed)}{flags}"
        )


def _print(metrics: list[Installed]) -> None:
    for metric in metrics:
        print(f"{metric.name:<24} {metric.state:<8} {metric.version or '-':<10} {metric.folder or '-'}")
    for state in sorted({metric.state for metric in metrics} & set(NOTES)):
        print(f"{state}: {NOTES[state]}")
