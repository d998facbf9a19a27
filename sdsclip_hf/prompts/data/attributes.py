"""Attributes of pictures, a word or two each, such as a colour: what [a] is in "a photo of a [a] [class]"."""

import datasets


def check_attributes(dataset: datasets.Dataset, name: str) -> None:
    """Raise ValueError unless every row has an attribute; ``name`` is what the message calls the dataset."""
    cells = dataset["attribute"] if "attribute" in dataset.column_names else [None] * len(dataset)
    missing = [row for row, cell in enumerate(cells) if not (cell or "").strip()]
    if missing:
        shown = ", ".join(map(str, missing[:10])) + ", ..." * (len(missing) > 10)
        raise ValueError(
            f"{len(missing)} of {len(dataset)} rows of {name} have no attribute: {shown}. Mend these rows, or "
            "choose a method that needs none."
        )
