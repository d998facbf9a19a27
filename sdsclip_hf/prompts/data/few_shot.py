"""A few pictures of each class, the same ones whenever they are picked again; halves of the classes."""

import hashlib
import json
import logging
from collections import Counter
from functools import partial
from pathlib import Path

import datasets

from sdsclip_hf.common.errors import read_json
from sdsclip_hf.common.writing import write_json
from sdsclip_hf.data.images import picture_digest
from sdsclip_hf.prompts.data.sources import relabel

logger = logging.getLogger(__name__)
HALVES = ("all", "base", "new")


def few_shot(dataset: datasets.Dataset, shots: int, seed: int, picks: str | Path | None = None) -> datasets.Dataset:
    """``shots`` pictures of each class, ordered by class.

    A picture's turn is a hash of the seed, its class's name and its own name: that of its file where a class's are all
    different, else its content. So the picks depend neither on the state of a generator nor on the order of the rows, the
    classes do not depend on one another, and the picks of fewer shots are among those of more.

    Args:
        dataset: with ``image`` and ``label``. A class with fewer pictures than shots gives all, which a warning tells.
        shots: pictures of each class, from 1.
        seed: of the picks.
        picks: a file of json that they are read from if it is there, and else written to.

    Raises:
        ValueError: ``shots`` is below 1, a class has no picture, or the file is of other picks or names other pictures.

    Example:

    ```python
    from sdsclip_hf.prompts.data.few_shot import few_shot
    from sdsclip_hf.prompts.data.sources import load_labelled

    train = few_shot(load_labelled("shapes"), shots=4, seed=1)
    print(len(train))  # 40
    ```
    """
    if shots < 1:
        raise ValueError(f"shots is {shots}; there must be at least 1 picture of each class.")
    names = dataset.features["label"].names
    rows: dict[str, list[int]] = {name: [] for name in names}
    for row, label in enumerate(dataset["label"]):
        rows[names[label]].append(row)
    _check_counts({name: len(found) for name, found in rows.items()}, shots)
    keys = _keys(dataset, rows)
    path = None if picks is None else Path(picks)
    chosen = _read(path, shots, seed, names) if path is not None and path.exists() else _pick(rows, keys, shots, seed)
    if path is not None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"shots": shots, "seed": seed, "pictures": chosen})
    return dataset.select([row for name in names for row in _find(chosen[name], rows[name], keys, name, path)])


def classes_of(dataset: datasets.Dataset, which: str) -> datasets.Dataset:
    """The rows of the base or the new classes: the first half by label, rounded up, or the rest, labelled from 0.

    Halves that are cut after [`few_shot`], as the published code does, and before it have the same rows.

    Args:
        dataset: with ``label``.
        which: all, base or new.

    Raises:
        ValueError: there is no such half, or one would have fewer than two classes.

    Example:

    ```python
    from sdsclip_hf.prompts.data.few_shot import classes_of
    from sdsclip_hf.prompts.data.shapes import load_labelled_shapes

    new = classes_of(load_labelled_shapes("test", per_class=2), "new")
    print(new.features["label"].names[:2])  # ['circle and triangle', 'square and cross']
    print(new["label"][:])  # [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    ```
    """
    if which not in HALVES:
        raise ValueError(f"there are no classes {which!r}; choose from {', '.join(HALVES)}.")
    count = dataset.features["label"].num_classes
    half = -(-count // 2)
    kept = {"all": range(count), "base": range(half), "new": range(half, count)}[which]
    if which != "all" and count < 4:
        raise ValueError(
            f"{count} classes do not make two halves of two or more; take all, or data with 4 classes or more."
        )
    return dataset if which == "all" else relabel(dataset, kept)


def _check_counts(counts: dict[str, int], shots: int) -> None:
    empty = [name for name, count in counts.items() if count == 0]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(counts)} classes have no picture in this split, the first {empty[0]!r}. Choose another "
            "split, or drop such classes (present_only)."
        )
    few = [f"{name!r} ({count})" for name, count in counts.items() if count < shots]
    if few:
        logger.warning(
            f"{len(few)} of {len(counts)} classes have fewer than {shots} pictures, of which all are used: "
            f"{', '.join(few[:5])}{', ...' * (len(few) > 5)}."
        )


def _keys(dataset: datasets.Dataset, rows: dict[str, list[int]]) -> list[str]:
    """What names each row's picture: the name of its file where those of every class differ, else its content."""
    undecoded = dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    paths = undecoded.flatten().select_columns(["image.path"])["image.path"][:]
    files = [path and Path(path).name for path in paths]
    if all(files) and all(len({files[row] for row in found}) == len(found) for found in rows.values()):
        return files
    return [picture_digest(row["image"]) for row in undecoded]


def _pick(rows: dict[str, list[int]], keys: list[str], shots: int, seed: int) -> dict[str, list[str]]:
    def turn(name: str, key: str) -> bytes:
        return hashlib.blake2b(json.dumps([seed, name, key]).encode(), digest_size=16).digest()

    return {name: sorted((keys[row] for row in found), key=partial(turn, name))[:shots] for name, found in rows.items()}


def _read(path: Path, shots: int, seed: int, names: list[str]) -> dict[str, list[str]]:
    content = read_json(path, "Delete it to have pictures picked anew.")
    asked = {"shots": shots, "seed": seed}
    if {name: content.get(name) for name in asked} != asked or set(content.get("pictures") or {}) != set(names):
        raise ValueError(
            f"{path} holds picks of {content.get('shots')} shots by seed {content.get('seed')} of "
            f"{len(content.get('pictures') or {})} classes, not of {shots} shots by seed {seed} of these {len(names)} "
            "classes. Give another file."
        )
    return content["pictures"]


def _find(chosen: list[str], rows: list[int], keys: list[str], name: str, path: Path | None) -> list[int]:
    """The rows of chosen pictures, of which several may be alike."""
    by_key: dict[str, list[int]] = {}
    for row in rows:
        by_key.setdefault(keys[row], []).append(row)
    missing = [key for key, count in Counter(chosen).items() if len(by_key.get(key, [])) < count]
    if missing:
        raise ValueError(
            f"{path} names the picture {missing[0]!r} of the class {name!r}, which the dataset does not have. Give the "
            "dataset that it was made from, or delete the file."
        )
    return [by_key[key].pop(0) for key in chosen]
