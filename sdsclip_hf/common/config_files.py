"""Options in a yaml file, as the command line would have them."""

import argparse
import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml


def set_from_file(parser: argparse.ArgumentParser, path: Path, settings: dict, kinds: Sequence[type]) -> None:
    """Let what a file says be the defaults of a parser.

    Args:
        parser: of dataclasses, as ``HfArgumentParser`` makes it.
        path: the file, for messages.
        settings: what it says.
        kinds: the dataclasses.

    Raises:
        ValueError: a key that is no option, or a value that its option does not take.
    """
    actions = {action.dest: action for action in parser._actions}
    unknown = sorted(set(settings) - set(actions))
    if unknown:
        raise ValueError(f"{path}: unknown options {', '.join(unknown)}; see --help for those there are.")
    values = {key: as_typed(path, actions[key], value, tuple(kinds)) for key, value in settings.items()}
    parser.set_defaults(**values)


def read_settings(path: Path) -> dict:
    """What a yaml file of options holds.

    Raises:
        ValueError: it is no such file.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid yaml: {' '.join(str(error).split())}.") from error
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise ValueError(f"{path} holds no options; write one a line, as in `learning_rate: 5.0e-5`.")
    return settings


@cache
def _kinds(classes: tuple[type, ...]) -> dict[str, set[type]]:
    """Option -> the types that its value may have."""
    found = {}
    for arguments in classes:
        for name, hint in get_type_hints(arguments).items():
            found[name] = {get_origin(part) or part for part in (get_args(hint) if _is_union(hint) else (hint,))}
    return found


def _is_union(hint) -> bool:
    return get_origin(hint) in (Union, UnionType)


def as_typed(path: Path, action: argparse.Action, value, classes: tuple[type, ...]):
    """A yaml value as the command line would have it, so that argparse converts and refuses the same things.

    Raises:
        ValueError: it is of a type that the option does not take, or none of its choices.
    """
    kinds = _kinds(classes).get(action.dest, {str})
    if value is False and "no" in (action.choices or ()):  # yaml's word for it
        return "no"
    if (value is None or isinstance(value, (bool, dict))) and type(value) in kinds:
        return value
    if value is True and action.dest == "resume_from_checkpoint":
        return "last"
    wrong = value is None or isinstance(value, (bool, dict)) or (isinstance(value, float) and not math.isfinite(value))
    if wrong:
        raise ValueError(
            f"{path}: {action.dest} is {json.dumps(value)}; it takes {_told(kinds)}. Leave it out for the default, or put a "
            "word in quotes."
        )
    if action.nargs == "+":
        convert: Any = action.type
        words = value if isinstance(value, list) else [value]
        try:
            return [convert(str(word)) for word in words]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {action.dest} is {value!r}; it takes {convert.__name__} values.") from error
    if isinstance(value, list):
        if not value and list in kinds:
            return value
        raise ValueError(f"{path}: {action.dest} is {value!r}; it takes a single value.")
    if action.choices and str(value) not in map(str, action.choices):
        raise ValueError(f"{path}: {action.dest} is {value!r}; choose from {', '.join(map(str, action.choices))}.")
    return str(value)


def _told(kinds: set[type]) -> str:
    return " or ".join(sorted({"null" if kind is type(None) else kind.__name__ for kind in kinds}))
