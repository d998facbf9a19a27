"""One wording for the ways in which loading from a folder or from the Hub fails."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from json import JSONDecodeError
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError

OPTIONAL = ("sentencepiece", "torchvision", "protobuf", "tiktoken", "ftfy", "timm")  # what parts of transformers need


def expand(name_or_path: str | Path) -> str:
    """``~`` expanded where that gives a folder; a Hub id as it is."""
    path = Path(name_or_path).expanduser()
    return str(path) if path.is_dir() else str(name_or_path)


def read_json(path: Path, remedy: str) -> dict:
    """What a file of json holds.

    Args:
        path: of the file, which is there.
        remedy: what to do where it is damaged.

    Raises:
        ValueError: it holds no json, or no mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not what was written ({error}). {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not what was written (it holds no mapping). {remedy}")
    return content


@contextmanager
def explain_loading(what: str, name: str, option: str) -> Iterator[None]:
    """Turn a library's error while loading ``name`` into one that says what was asked for and what to do.

    Args:
        what: the thing being loaded, e.g. "the teacher".
        name: the folder or Hub id that was asked for.
        option: the option that takes it, e.g. "--teacher_name_or_path".

    Raises:
        OSError: ``name`` is neither a usable folder nor a Hub id that can be reached.
        ValueError: its tokenizer lacks a file.
        ImportError: it needs a package that is not installed.
    """
    try:
        yield
    except (OSError, ConnectionError, HFValidationError, JSONDecodeError, SafetensorError) as error:
        path = Path(name).expanduser()
        if path.exists():
            remedy = f"the {'folder' if path.is_dir() else 'file'} exists, but what is in it could not be loaded"
        else:
            remedy = (
                "there is no such folder, and it could not be had from the Hub. Without a network connection, give "
                f"{option} a local folder; with one, check the id, and log in with `hf auth login` if it is private "
                "or gated"
            )
        reason = str(error).strip().splitlines()
        raise OSError(f"could not load {what} {name!r}: {remedy}. ({reason[0] if reason else error!r})") from error
    except (ImportError, ValueError) as error:
        if "`vocab` and `merges`" in str(error):
            raise ValueError(
                f"the tokenizer of {what} {name!r} has one of vocab.json and merges.txt without the other; complete its "
                "files, such as tokenizer.json."
            ) from error
        asks_for_tiktoken = "`tiktoken` is required" in str(
            error
        )  # what transformers says last of SentencePiece's files
        if isinstance(error, ValueError) and "optional dependencies" not in str(error) and not asks_for_tiktoken:
            raise
        sentences = re.split(r"(?<=\.)\s+", str(error).strip())
        found = [(package, one) for one in sentences for package in OPTIONAL if package in one.lower()]
        package, reason = found[0] if found else ("", sentences[0])
        if asks_for_tiktoken and find_spec("sentencepiece") is None:
            package, reason = "sentencepiece protobuf", "its words are in a file of SentencePiece's"
        remedy = f"pip install {package}" if package else "install what it names"
        raise ImportError(
            f"{what} {name!r} needs a package that is not installed: {remedy}. ({reason.rstrip('.')})"
        ) from error
