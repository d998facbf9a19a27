"""Labelled pictures from any source, as datasets with the columns ``image``, ``label`` and perhaps ``attribute``."""

from collections.abc import Sequence
from pathlib import Path

import datasets

from sdsclip_hf.common.errors import read_json
from sdsclip_hf.data.labels import label_column as find_label_column
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.prompts.data.attributes import check_attributes
from sdsclip_hf.prompts.data.shapes import load_labelled_shapes
from sdsclip_hf.prompts.prompt_texts import check_class_names

ZHOU = "split_zhou_*.json"
ZHOU_SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}


def load_labelled(
    source: str,
    split: str = "train",
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    attribute_column: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    image_dir: str | None = None,
    class_names: Sequence[str] | None = None,
    present_only: bool = False,
) -> datasets.Dataset:
    """Load labelled pictures.

    Args:
        source: a Hub id; a folder of class folders, or any other that ``datasets`` reads; a parquet file; a
            ``split_zhou_*.json`` or a folder that has one ({train, val, test: [[path, label, class name], ...]}); or
            ``shapes``, the embedded world, ``shapes/DOMAIN`` in one of its domains, see [`load_labelled_shapes`].
        split: which split, such as "train", "test" or "train[:10%]".
        image_column: default: the only column of images.
        label_column: a ClassLabel or a text; default: the first ClassLabel, else ``label``.
        attribute_column: a text, of which no row lacks one; default: ``attribute`` if there is one, as it is.
        config_name: the dataset's configuration.
        revision: branch, tag or commit on the Hub.
        image_dir: where the pictures of a ``split_zhou_*.json`` are; default: looked for beside it.
        class_names: what the prompt calls the classes, in the order of the labels; default: the dataset's own names, with
            spaces for underscores.
        present_only: drop classes without a picture, as of ImageNet-A and -R, whose pictures are of 200 of the 1000.

    Returns:
        A dataset with the columns ``image``, ``label`` (a ClassLabel, whose names are those in the prompt) and, where
        there are any, ``attribute``.

    Raises:
        OSError: it cannot be loaded.
        ValueError: a column or a label is missing, class names are not told apart, or there are fewer than two classes.

    Example:

    ```python
    from sdsclip_hf.prompts.data.sources import load_labelled

    dataset = load_labelled("shapes", "validation")
    print(dataset.column_names)  # ['image', 'label', 'attribute']
    ```
    """
    world, _, domain = source.partition("/")
    if world == "shapes" and not Path(source).exists():
        loaded = load_labelled_shapes(split, domain or "same")
    elif table := _zhou_table(Path(source).expanduser()):
        loaded = _read_zhou(table, split, image_dir)
    else:
        loaded = load_image_captions(source, config_name, split=split, revision=revision, option="--dataset_name")
    images = _image_column(loaded, source, image_column)
    labels = find_label_column(loaded, source, label_column)
    attributes = _attribute_column(loaded, source, attribute_column)
    chosen = {"image": images, "label": labels} | ({"attribute": attributes} if attributes else {})
    loaded = loaded.select_columns(list(chosen.values()))
    loaded = loaded.rename_columns({old: new for new, old in chosen.items() if old != new})
    if not isinstance(loaded.features["image"], datasets.Image):
        loaded = loaded.cast_column("image", datasets.Image())
    loaded = _with_names(loaded, source, class_names)
    if attribute_column:
        check_attributes(loaded, source)
    return _without_absent(loaded) if present_only else loaded


def relabel(dataset: datasets.Dataset, kept: Sequence[int]) -> datasets.Dataset:
    """The rows of some of the classes, these being all that there are from now on, in the given order."""
    names = dataset.features["label"].names
    place = {label: number for number, label in enumerate(kept)}
    labels = dataset["label"][:]
    rows = [number for number, label in enumerate(labels) if label in place]
    feature = datasets.ClassLabel(names=[names[label] for label in kept])
    columns, chosen = dataset.column_names, dataset.select(rows).remove_columns("label")
    chosen = chosen.add_column("label", [place[labels[row]] for row in rows], feature=feature)
    return chosen.select_columns(columns)


def _image_column(dataset: datasets.Dataset, name: str, asked: str | None) -> str:
    found = [column for column, kind in dataset.features.items() if isinstance(kind, datasets.Image)] or ["image"]
    columns = [asked] if asked else found
    if len(columns) != 1 or columns[0] not in dataset.column_names:
        raise ValueError(
            f"{name} has {'the image columns' if len(columns) > 1 else 'no image column'} "
            f"{', '.join(map(repr, columns))}; its columns are {', '.join(dataset.column_names)}. Pass --image_column."
        )
    return columns[0]


def _attribute_column(dataset: datasets.Dataset, name: str, asked: str | None) -> str | None:
    column = asked or "attribute"
    kind = getattr(dataset.features.get(column), "dtype", None)
    if kind in ("string", "large_string"):
        return column
    if not asked:
        return None
    wrong = "has no attribute column" if asked not in dataset.column_names else "has no texts in the attribute column"
    raise ValueError(
        f"{name} {wrong} {asked!r}; its columns are {', '.join(dataset.column_names)}. Name another, or "
        "have attributes made by `sdsclip describe-attributes`."
    )


def _with_names(dataset: datasets.Dataset, name: str, class_names: Sequence[str] | None) -> datasets.Dataset:
    """With a ClassLabel whose names are those in the prompt."""
    if not isinstance(dataset.features["label"], datasets.ClassLabel):
        cells = dataset["label"][:]
        own = sorted({cell for cell in cells if cell is not None})
        number = {cell: place for place, cell in enumerate(own)}
        labels = [number.get(cell, -1) for cell in cells]
    else:
        own, labels = dataset.features["label"].names, [-1 if cell is None else cell for cell in dataset["label"]]
    unlabelled = [row for row, label in enumerate(labels) if label < 0]
    if unlabelled:
        raise ValueError(
            f"{len(unlabelled)} of {len(labels)} rows of {name} have no label, the first of them row {unlabelled[0]}; "
            "choose another split, or another --label_column."
        )
    if class_names is not None and len(class_names) != len(own):
        raise ValueError(
            f"{len(class_names)} class names are given for the {len(own)} classes of {name}; give one for each, in the "
            "order of the labels."
        )
    said = [str(one).replace("_", " ").strip() for one in class_names or own]
    check_class_names(said)
    columns = dataset.column_names
    dataset = dataset.remove_columns("label").add_column("label", labels, feature=datasets.ClassLabel(names=said))
    return dataset.select_columns(columns)


def _without_absent(dataset: datasets.Dataset) -> datasets.Dataset:
    present = sorted(set(dataset["label"]))
    return dataset if len(present) == dataset.features["label"].num_classes else relabel(dataset, present)


def _zhou_table(source: Path) -> Path | None:
    if source.is_file():
        return source if source.match(ZHOU) else None
    found = sorted(source.glob(ZHOU)) if source.is_dir() else []
    if len(found) > 1:
        raise ValueError(
            f"{source} has several files {ZHOU}: {', '.join(file.name for file in found)}; give one of them as the source."
        )
    return found[0] if found else None


def _read_zhou(table: Path, split: str, image_dir: str | None) -> datasets.Dataset:
    content = read_json(table, "Fetch it again.")
    key = ZHOU_SPLITS.get(split)
    if key is None or key not in content:
        raise ValueError(f"{table} has no split {split!r}; choose from {', '.join(content)}.")
    try:
        names = {int(label): str(name) for part in content.values() for _, label, name in part}
        rows = [(str(path), int(label)) for path, label, _ in content[key]]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{table} is not what was expected ({error}); each row is to be [path, label, class name]."
        ) from error
    if sorted(names) != list(range(len(names))) or not rows:
        wrong = "no rows" if not rows else f"labels that are not 0 to {len(names) - 1} without a gap"
        raise ValueError(f"{table} has {wrong} in split {split!r}; fetch it again.")
    folder = _picture_folder(table, image_dir, rows[0][0])
    missing = [path for path, _ in rows if not (folder / path).is_file()]
    if missing:
        raise OSError(
            f"{len(missing)} of the {len(rows)} pictures that {table} names are not in {folder}, the first {missing[0]}; "
            "complete the copy, or name their folder (image_dir)."
        )
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[names[label] for label in sorted(names)])}
    )
    columns = {"image": [str(folder / path) for path, _ in rows], "label": [label for _, label in rows]}
    return datasets.Dataset.from_dict(columns, features=features)


def _picture_folder(table: Path, image_dir: str | None, first: str) -> Path:
    """The folder that paths of a table lead from: the one that is given, or the first beside it that has ``first``."""
    if image_dir:
        return Path(image_dir).expanduser()
    beside = [table.parent, *sorted(path for path in table.parent.iterdir() if path.is_dir())]
    return next((folder for folder in beside if (folder / first).is_file()), table.parent)
