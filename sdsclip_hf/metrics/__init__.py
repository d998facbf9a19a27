"""The scores as ``evaluate`` modules: one folder a metric, loadable with ``evaluate.load(path(name))``."""

from pathlib import Path


def names() -> list[str]:
    """The metrics of this package."""
    return sorted(folder.name for folder in Path(__file__).parent.iterdir() if (folder / f"{folder.name}.py").is_file())


def path(name: str) -> str:
    """The folder of a metric, for ``evaluate.load``.

    Raises:
        ValueError: there is no metric of that name.
    """
    if name not in names():
        raise ValueError(f"unknown metric {name!r}; choose from {', '.join(names())}.")
    return str(Path(__file__).parent / name)
