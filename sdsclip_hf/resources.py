"""Files that stand beside the package in a checkout and inside it once it is installed."""

from importlib.metadata import version
from pathlib import Path

_PACKAGE = Path(__file__).parent


def recipes_dir() -> Path:
    """The folder of recipes: the checkout's, or the copy that an installed package carries."""
    installed, checkout = _PACKAGE / "_recipes", _PACKAGE.parent / "recipes"
    return installed if installed.is_dir() else checkout


def versions() -> dict[str, str]:
    """Of this package and of those that decide its results."""
    names = ("sdsclip_hf", "torch", "transformers", "diffusers", "peft", "accelerate", "datasets")
    names += ("evaluate", "numpy", "pillow", "tokenizers")
    return {name: version(name) for name in names}


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
