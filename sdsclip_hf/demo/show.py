"""The page of the demo on this machine."""

import importlib
import importlib.util
import sys
from pathlib import Path

from sdsclip_hf.data import pixels
from sdsclip_hf.demo.base_model import find_base

PAGE = Path(__file__).parent / "page"


def find_models(model: str, base: str | None = None) -> dict[str, str]:
    """The page's headings with the models' names; the base is the given one, or what the tuned one was made from.

    Raises:
        ValueError: the base cannot be told, or is the tuned model itself.
    """
    base = base or find_base(model)
    if base == model:
        raise ValueError(f"{model} would be compared with itself; give another model as --base.")
    return {"Base": base, "Tuned": model}


def import_page():
    """The Space's app.py, which imports what lies beside it as it does in the Space."""
    if importlib.util.find_spec("gradio") is None:
        raise ImportError('the page is made with gradio, which is not installed; pip install "sdsclip_hf[demo]"')
    sys.path.insert(0, str(PAGE))
    sys.modules["pixels"] = pixels  # of which a Space gets a copy
    return importlib.import_module("app")
