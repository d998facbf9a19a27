"""What the libraries tell in a terminal that nobody can act on, left out."""

import sys
import warnings

import datasets
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging


def hush_libraries() -> None:
    """Warnings that have no remedy here, bars of loading weights, and in a file every bar of ``datasets``."""
    warnings.filterwarnings("ignore", message=".*'pin_memory' argument is set as true but no accelerator is found.*")
    warnings.filterwarnings("ignore", message=".*requires torchvision.*|.*torchvision is not available.*")
    logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
