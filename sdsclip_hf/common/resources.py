"""Files that stand beside the package in a checkout and inside it once it is installed."""

import subprocess
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def recipes_dir() -> Path:
    """The folder of recipes: the checkout's, or the copy that an installed package carries."""
    installed, checkout = _PACKAGE / "_recipes", _PACKAGE.parent / "recipes"
    return installed if installed.is_dir() else checkout


def model_cards_dir() -> Path:
    """The folder of model cards and their template."""
    installed, checkout = _PACKAGE / "_model_cards", _PACKAGE.parent / "model_cards"
    return installed if installed.is_dir() else checkout


@cache
def git_revision() -> str | None:
    """The commit of the checkout that the package is run from, marked where files differ from it; None elsewhere."""
    if not (_PACKAGE.parent / ".git").exists():
        return None
    command = ["git", "-C", str(_PACKAGE.parent), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Of this package and of those that decide its results."""
    names = ("sdsclip_hf", "torch", "transformers", "diffusers", "peft", "accelerate", "datasets")
    names += ("evaluate", "huggingface_hub", "numpy", "pillow", "tokenizers")
    names += ("torchvision",) if find_spec("torchvision") else ()  # it prepares pictures then, by roundings of its own
    return {name: _version(name) for name in names}


_version = cache(metadata.version)  # which reads the disk anew each time


def find_config(name: str) -> Path:
    """A yaml file by path, or by its name in recipes/configs.

    Raises:
        OSError: there is no such file.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    folder = recipes_dir() / "configs"
    bundled = folder / f"{Path(name).stem}.yaml"
    if path.parent == Path() and bundled.is_file():
        return bundled
    have = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
    raise OSError(f"--config {name}: there is no such file; recipes/configs has {have}.")
