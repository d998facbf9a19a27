"""Image-text retrieval on any captioned image dataset: which caption of all, which image of all."""

from sdsclip_hf.benchmarks.items import Benchmark, Item, picture_key
from sdsclip_hf.benchmarks.rows import Row
from sdsclip_hf.benchmarks.sources import Options, collect, image_column, open_dataset


def load(name: str, split: str, source: str, options: Options) -> Benchmark:
    """Images with all their captions; rows of the same image are one item.

    Raises:
        ValueError: no source is named, or a column is missing.
    """
    if not source:
        raise ValueError(f"{name} needs to know of what: give a dataset, as in retrieval=shapes or {name}=FOLDER.")
    rows = open_dataset(source, split)
    images, column = image_column(rows, options), options.caption_column or "caption"
    if column not in rows.text.column_names:
        have = ", ".join(rows.dataset.column_names)
        raise ValueError(f"{rows.name} has no caption column {column!r}; it has {have}. Pass --caption_column.")

    def item(row: Row) -> Item:
        captions = row[column] if isinstance(row[column], list) else [row[column]]
        if not captions:
            raise ValueError(f"item {row.identifier} of {rows.name} has no caption; give it one, or take the row away.")
        return Item(row.identifier, (row.image(images),), tuple(captions))

    benchmark = collect(name, "retrieval", rows, item, options)
    merged: dict = {}
    for one in benchmark.items:
        known = merged.get(picture_key(one.images[0]))
        captions = dict.fromkeys((*known.captions, *one.captions) if known else one.captions)
        merged[picture_key(one.images[0])] = (known or one)._replace(captions=tuple(captions))
    benchmark.items = list(merged.values())
    benchmark.source["items"] = len(merged)
    return benchmark
