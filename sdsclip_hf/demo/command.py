"""``sdsclip demo``: a page on which one sees which of two captions the base model and the tuned one prefer."""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from sdsclip_hf import shapes
from sdsclip_hf.demo.base_model import find_base
from sdsclip_hf.errors import expand

PAGE = Path(__file__).parent / "page"


def main(argv: Sequence[str] | None = None) -> None:
    """Show the page until it is interrupted."""
    args = _parser().parse_args(argv)
    try:
        names = find_models(args.model, args.base)
        models = {heading: expand(shapes.resolve(name)) for heading, name in names.items()}
        page = _import_page()
        try:
            page.load_all(models)
        except page.ModelError as error:
            raise ValueError(f"{error} --model and --base take a folder or a Hub id.") from error
        page.launch(page.build(models, names), server_port=args.port, share=args.share)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"sdsclip demo: error: {error}")


def find_models(model: str, base: str | None = None) -> dict[str, str]:
    """The page's headings with the models' names; the base is the given one, or what the tuned one was made from.

    Raises:
        ValueError: the base cannot be told, or is the tuned model itself.
    """
    base = base or find_base(model)
    if base == model:
        raise ValueError(f"{model} would be compared with itself; give another model as --base.")
    return {"Base": base, "Tuned": model}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sdsclip demo", description=__doc__.replace("``", ""))
    parser.add_argument("--model", required=True, metavar="MODEL", help="the tuned model: a folder or a Hub id")
    parser.add_argument(
        "--base", metavar="MODEL", help="the model to compare with; default: what MODEL's card or run.yaml names"
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="have gradio give the page a public address for a while")
    return parser


def _import_page():
    """The Space's app.py, which imports what lies beside it as it does in the Space."""
    if importlib.util.find_spec("gradio") is None:
        raise ImportError('the page is made with gradio, which is not installed; pip install "sdsclip_hf[demo]"')
    sys.path.insert(0, str(PAGE))
    return importlib.import_module("app")
