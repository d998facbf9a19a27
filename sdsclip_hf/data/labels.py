"""Columns of labelled pictures."""

import datasets


def label_column(dataset: datasets.Dataset, name: str, asked: str | None = None) -> str:
    """The column of classes: the one that is asked for, else the first that knows their names, else ``label``.

    Args:
        dataset: the dataset.
        name: what messages call it.
        asked: from ``--label_column``.

    Raises:
        ValueError: it has none, or a column of numbers whose names nobody knows.
    """
    features = dataset.features
    named = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    candidates = [asked] if asked else [*named, "label"]
    found = next((column for column in candidates if column in features), None)
    if found is None:
        raise ValueError(
            f"{name} has no label column {' or '.join(map(repr, candidates))}; it has {', '.join(features)}. Pass "
            "--label_column."
        )
    if found not in named and getattr(features[found], "dtype", None) not in ("string", "large_string"):
        raise ValueError(
            f"column {found!r} of {name} holds numbers and no names of classes; cast it to a ClassLabel with names, or "
            "pass a --label_column of names."
        )
    return found
