"""Placing the metrics in ``evaluate``'s cache of modules, so that ``evaluate.load(name)`` finds them from any folder.

For a name without a slash ``evaluate`` looks for a local folder, then on the Hub, and last among the modules it has
cached. There it takes the newest of ``evaluate_modules/metrics/evaluate-metric--NAME/<64 hex digits>/NAME.py`` below
``HF_MODULES_CACHE``, by the time when the file was last changed. Ours lie in a folder named by the hash of their code.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock
from packaging.version import Version

from sdsclip_hf.metrics import files, names

logger = logging.getLogger(__name__)

STAMP = "sdsclip_hf.json"
UNFINISHED = ".sdsclip_hf-"


@dataclass
class Installed:
    """What ``evaluate.load(name)`` would take from the cache.

    Attributes:
        name: of the metric.
        state: "absent"; "current", "older" or "newer" than this package's own; or "foreign", which is not from here.
        version: the version of the package that placed it; None if absent or foreign.
        folder: where it lies; None if absent.
    """

    name: str
    state: str
    version: str | None = None
    folder: Path | None = None


def install(wanted: Iterable[str] | None = None) -> list[Installed]:
    """Place metrics in ``evaluate``'s cache, unless they are there already.

    A newer one of ours and a module of the same name from elsewhere stay, and stay the one that is loaded.

    Args:
        wanted: names of metrics; all of them by default.

    Returns:
        What then lies in the cache for each.

    Raises:
        ValueError: there is no metric of that name.
        OSError: the cache cannot be written to.

    Example:

    ```python
    import evaluate
    from sdsclip_hf.metrics.install import install

    install()
    metric = evaluate.load("winoground_group_score")
    print(metric.compute(scores=[[[0.9, 0.1], [0.2, 0.8]]])["winoground_group_score"])  # 1.0
    ```
    """
    return [_install(name) for name in _known(wanted)]


def install_quietly() -> None:
    """[`install`] all metrics; whatever hinders it is a warning in the log and no error."""
    try:
        for found in install():
            if found.state == "foreign":
                logger.warning(
                    "evaluate.load(%r) would take a module from elsewhere; remove its folder to have ours placed: %s",
                    found.name,
                    found.folder,
                )
    except Exception as error:
        logger.warning(
            "The metrics were not placed in evaluate's cache, so that evaluate.load needs a folder, which `sdsclip metrics "
            "path NAME` tells: %s",
            error,
        )


def uninstall(wanted: Iterable[str] | None = None) -> list[str]:
    """Remove what [`install`] has placed, of any version, and nothing else.

    Args:
        wanted: names of metrics; all of them by default.

    Returns:
        The names of those that were there.

    Raises:
        ValueError: there is no metric of that name.

    Example:

    ```python
    from sdsclip_hf.metrics.install import install, uninstall

    install(["aro_order"])
    print(uninstall(["aro_order"]))  # ['aro_order']
    ```
    """
    removed = []
    for name in _known(wanted):
        folder = _folder(name)
        if folder.is_dir():
            with _lock(folder):
                if _remove_ours(folder):
                    removed.append(name)
    return removed


def installed() -> list[Installed]:
    """What ``evaluate``'s cache holds for each metric of this package.

    Example:

    ```python
    from sdsclip_hf.metrics.install import install, installed

    install()
    print({metric.state for metric in installed()})  # {'current'}
    ```
    """
    return [_find(name) for name in names()]


def _known(wanted: Iterable[str] | None) -> list[str]:
    wanted = names() if wanted is None else [wanted] if isinstance(wanted, str) else list(wanted)
    for name in wanted:
        files(name)
    return wanted


def _install(name: str) -> Installed:
    folder = _folder(name)
    if _find(name).state in ("absent", "older"):
        _make_packages(folder)
        with _lock(folder):
            # Another process may have come first.
            if _find(name).state in ("absent", "older"):
                _place(name, folder)
    return _find(name)


def _place(name: str, folder: Path) -> None:
    """Write the module beside its place, then rename it, so that no one sees half of it."""
    code = _code(files(name))
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as temporary:
        new = Path(temporary) / "module"
        new.mkdir()
        for file, text in code.items():
            (new / file).write_bytes(text)
        (new / "__init__.py").touch()
        (new / STAMP).write_text(json.dumps({"version": _own_version(), "hash": _hash(code)}), encoding="utf-8")
        place = folder / _hash(code)
        if place.exists():  # it was changed after it was placed
            _remove(place)
        os.replace(new, place)
    _remove_ours(folder, but=place)


def _remove_ours(folder: Path, but: Path | None = None) -> bool:
    """Remove the modules that [`install`] has placed; whether there were any."""
    for left in folder.glob(f"{UNFINISHED}*"):  # by a process that was killed
        shutil.rmtree(left)
    ours = [module for module in _modules(folder) if module != but and _stamp(module)]
    for module in ours:
        _remove(module)
    return bool(ours)


def _remove(module: Path) -> None:
    """Rename the module before its files go, so that no one sees half of it."""
    away = module.with_name(f"{UNFINISHED}{module.name}")
    os.replace(module, away)
    shutil.rmtree(away)


def _find(name: str) -> Installed:
    """The module that ``evaluate`` would take, judged by its stamp and its code."""
    while True:
        try:
            return _look(name)
        except FileNotFoundError:  # another process has removed it in between
            continue


def _look(name: str) -> Installed:
    modules = [module for module in _modules(_folder(name)) if (module / f"{name}.py").exists()]
    if not modules:
        return Installed(name, "absent")
    newest = max(modules, key=lambda module: (module / f"{name}.py").stat().st_mtime)
    placed_by = _stamp(newest)
    if placed_by is None:
        return Installed(name, "foreign", folder=newest)
    if _hash(_code(_read(newest))) == _hash(_code(files(name))):
        state = "current"
    else:
        state = "newer" if Version(placed_by) > Version(_own_version()) else "older"
    return Installed(name, state, placed_by, newest)


def _stamp(module: Path) -> str | None:
    """The version of the package that placed a module; None for a module from elsewhere.

    Raises:
        FileNotFoundError: another process has removed the module.
    """
    try:
        return str(Version(json.loads((module / STAMP).read_text(encoding="utf-8"))["version"]))
    except FileNotFoundError:
        if not module.exists():
            raise
        return None
    except (ValueError, KeyError, TypeError):
        return None


def _hash(code: dict[str, bytes]) -> str:
    """64 hex digits of a metric's code."""
    digest = hashlib.sha256()
    for file, text in code.items():
        digest.update(file.encode() + b"\0" + text + b"\0")
    return digest.hexdigest()


def _code(content: dict[str, bytes]) -> dict[str, bytes]:
    """The files that the metric is made of, without the page of its Space, by name."""
    kept = {file for file in content if file.endswith(".py")} - {"app.py", "__init__.py"}
    return {file: content[file] for file in sorted(kept)}


def _read(module: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in module.glob("*.py")}


def _own_version() -> str:
    return version("sdsclip_hf")


def _modules(folder: Path) -> list[Path]:
    """The folders that ``evaluate`` takes for modules."""
    return [module for module in folder.iterdir() if len(module.name) == 64] if folder.is_dir() else []


def _folder(name: str) -> Path:
    # The same place as evaluate.config's: beside recipes/evaluate.py, `import evaluate` would not give the library.
    from datasets import config

    root = Path(config.HF_MODULES_CACHE) / "evaluate_modules"
    return root / "metrics" / f"evaluate-metric--{name}"


def _make_packages(folder: Path) -> None:
    """The metric's folder and the empty ``__init__.py`` files that ``evaluate`` would make."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in (folder, *folder.parents[:3]):
        (package / "__init__.py").touch()


def _lock(folder: Path) -> FileLock:
    """The lock that ``evaluate`` itself takes when it writes there."""
    return FileLock(f"{folder}.lock")
