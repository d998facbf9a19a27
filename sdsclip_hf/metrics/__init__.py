"""The scores as ``evaluate`` modules, each loadable with ``evaluate.load(path(name))``.

What several metrics share stands once, in ``common``; a module is put together from there and from its own folder when it is
placed, pushed or asked for, since each must run alone.
"""

import hashlib
from pathlib import Path

from sdsclip_hf.common.writing import sweep, whole_file

OWN = Path(__file__).parent
OF_PAIRS, OF_CHOICES = ("scoring.py", "winoground.py"), ("scoring.py", "choices.py")
OF_TRIPLETS = (*OF_CHOICES, "triplets.py")
OF_SPACES = ("app.py", "requirements.txt")
SHARED = {
    "aro_attribution": OF_CHOICES,
    "aro_order": OF_CHOICES,
    "aro_relation": OF_CHOICES,
    "choices_accuracy": OF_CHOICES,
    "pairs_score": OF_PAIRS,
    "sugarcrepe_accuracy": OF_CHOICES,
    "sugarcrepe_pp": OF_TRIPLETS,
    "winoground_group_score": OF_PAIRS,
    "winoground_image_score": OF_PAIRS,
    "winoground_text_score": OF_PAIRS,
}


def names() -> list[str]:
    """The metrics of this package.

    Example:

    ```python
    import sdsclip_hf.metrics

    print(len(sdsclip_hf.metrics.names()))  # 10
    ```
    """
    return sorted(SHARED)


def files(name: str) -> dict[str, bytes]:
    """All files of a metric's Space, of which ``evaluate`` needs those in Python but for ``app.py``.

    Raises:
        ValueError: there is no metric of that name.
    """
    if name not in SHARED:
        raise ValueError(f"unknown metric {name!r}; choose from {', '.join(names())}.")
    own = [file for file in (OWN / name).iterdir() if file.is_file()]
    shared = [OWN / "common" / file for file in (*SHARED[name], *OF_SPACES)]
    return {file.name: file.read_bytes() for file in sorted([*own, *shared], key=lambda file: file.name)}


def path(name: str) -> str:
    """The folder of a metric, put together in the cache of modules, for ``evaluate.load`` and to look at.

    Args:
        name: one of [`names`].

    Raises:
        ValueError: there is no metric of that name.
        OSError: the cache cannot be written to.

    Example:

    ```python
    import evaluate
    import sdsclip_hf.metrics

    metric = evaluate.load(sdsclip_hf.metrics.path("winoground_group_score"))
    print(metric.compute(scores=[[[0.9, 0.1], [0.2, 0.8]]])["winoground_group_score"])  # 1.0
    ```
    """
    from datasets import config

    content = files(name)
    digest = hashlib.sha256(b"".join(file.encode() + b"\0" + text + b"\0" for file, text in content.items()))
    place = Path(config.HF_MODULES_CACHE) / "sdsclip_hf_metrics" / digest.hexdigest()[:16] / name
    if not all((place / file).is_file() and (place / file).read_bytes() == text for file, text in content.items()):
        _write(content, place)
    return str(place)


def _write(content: dict[str, bytes], place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    sweep(place)
    for file, text in content.items():
        with whole_file(place / file, len(text)) as partial:
            partial.write_bytes(text)
