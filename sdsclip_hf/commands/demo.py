"""``sdsclip demo``: a page on which one sees which of two captions the base model and the tuned one prefer."""

import argparse
from collections.abc import Sequence

from sdsclip_hf import shapes
from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.common.errors import expand
from sdsclip_hf.demo.show import find_models, import_page


@one_line_errors("sdsclip demo")
def main(argv: Sequence[str] | None = None) -> None:
    """Show the page until it is interrupted."""
    args = _parser().parse_args(argv)
    names = find_models(args.model, args.base)
    models = {heading: expand(shapes.resolve(name)) for heading, name in names.items()}
    page = import_page()
    try:
        page.load_all(models)
    except page.ModelError as error:
        raise ValueError(f"{error} --model and --base take a folder or a Hub id.") from error
    page.launch(page.build(models, names), server_port=args.port, share=args.share)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sdsclip demo", description=__doc__.replace("``", ""))
    parser.add_argument("--model", required=True, metavar="MODEL", help="the tuned model: a folder or a Hub id")
    parser.add_argument(
        "--base", metavar="MODEL", help="the model to compare with; default: what MODEL's card or run.yaml names"
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="have gradio give the page a public address for a while")
    return parser
