"""Modules with large libraries behind them, imported without delay."""

import gc
import importlib
from types import ModuleType


def import_quickly(name: str) -> ModuleType:
    """Import a module while the garbage collector, which would look through the libraries again and again, is off."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        if was_on:
            gc.enable()
