"""``sdsclip space push``: the demo page of a tuned model as a Space on the Hub."""

import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from string import Template

from huggingface_hub import HfApi, ModelInfo
from huggingface_hub.errors import RepositoryNotFoundError

from sdsclip_hf import shapes
from sdsclip_hf.common.errors import expand
from sdsclip_hf.data import pixels
from sdsclip_hf.demo.base_model import find_base
from sdsclip_hf.demo.show import PAGE
from sdsclip_hf.hub.attempts import insist
from sdsclip_hf.hub.commits import check_login, check_repo_id, push_folder
from sdsclip_hf.hub.spaces import STALE, check_space

SETTINGS = "sdsclip_demo.json"


def push(space: str, model: str, base: str | None = None, private: bool = False, force: bool = False) -> str:
    """Create or update the demo Space of a tuned model.

    Args:
        space: NAMESPACE/NAME.
        model: the tuned model's Hub id.
        base: the base model's Hub id; default: the ``base_model`` of the tuned model's card.
        private: whether a new Space is private.
        force: put it even where the Space holds something else.

    Returns:
        What is to be told: the Space's address, the commit's, and whether the Space needs a token.

    Raises:
        ValueError: there is no token, a name cannot be used, or the Space holds something else.
        OSError: the Hub could not be reached, or refused.
    """
    check_login()
    kept = [model] if _check_on_hub(model, "--model", "put it there first, with `sdsclip push`") else []
    base = base or find_base(model)
    if base == model:
        raise ValueError(f"{model} would be compared with itself; give another model as --base.")
    if _check_on_hub(base, "--base", "give --base the Hub id of the model that was tuned"):
        kept.append(base)
    check_space(space, SETTINGS, "a demo of this package", force)
    with tempfile.TemporaryDirectory() as folder:
        write_space(Path(folder), model, base)
        commit = push_folder(
            folder,
            space,
            repo_type="space",
            message=f"Demo of {model}",
            private=private or None,
            delete_patterns=STALE,
            space_sdk="gradio",
        ).commit_url
    told = [f"{HfApi().endpoint}/spaces/{space} compares {base} and {model}.", f"The commit: {commit}"]
    if kept:
        told.append(
            f"{' and '.join(kept)} can be read with a token only: give the Space one, as a secret named HF_TOKEN, in its "
            "settings."
        )
    return "\n".join(told)


def write_space(folder: Path, model: str, base: str) -> None:
    """Write the Space's files.

    Args:
        folder: exists, and is empty.
        model: the tuned model's Hub id.
        base: the base model's Hub id.
    """
    shutil.copytree(PAGE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(pixels.__file__, folder)
    own_version = version("sdsclip_hf")
    settings = {"version": own_version, "models": {"Base": base, "Tuned": model}}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    card = folder / "README.md"
    text = Template(card.read_text(encoding="utf-8")).substitute(tuned=model, base=base, version=own_version)
    card.write_text(text, encoding="utf-8")


def _check_on_hub(model: str, option: str, remedy: str) -> bool:
    """Whether a model on the Hub is read with a token only.

    Raises:
        ValueError: it is not on the Hub, or not for this login.
        OSError: the Hub could not be asked.
    """
    if shapes.resolve(model) != model:
        raise ValueError(f"{option} {model} is part of this package and not on the Hub, where a Space reads; {remedy}.")

    def look() -> ModelInfo | None:
        try:
            return HfApi().model_info(model)
        except RepositoryNotFoundError:
            return None

    try:
        check_repo_id(model)
        info = insist(look, model)
    except ValueError:
        info = None
    if info is None:
        where = "a folder here" if Path(expand(model)).is_dir() else "no folder either"
        raise ValueError(
            f"{option} {model}: there is no such model on the Hub, or this login may not see it ({where}); a Space reads "
            f"models from the Hub: {remedy}."
        )
    return bool(info.private or info.gated)
