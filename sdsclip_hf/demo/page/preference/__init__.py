"""What the page computes and shows. It knows nothing of gradio, and nothing of the package that it came with."""

from .comparison import compare
from .drawings import draw_examples
from .model import ModelError, load
from .rendering import show_error

__all__ = ["ModelError", "compare", "draw_examples", "load", "show_error"]
