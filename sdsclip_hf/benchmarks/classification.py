"""Zero-shot classification of any labelled image dataset by captions of its classes (Radford et al. 2021)."""

from sdsclip_hf.benchmarks.items import Benchmark, Item
from sdsclip_hf.benchmarks.rows import DatasetRows, Row
from sdsclip_hf.benchmarks.sources import Options, collect, image_column, open_dataset


def load(name: str, split: str, source: str, options: Options) -> Benchmark:
    """Images tagged by class, and the captions of all classes: those that the column knows, or else those that occur.

    Raises:
        ValueError: no source is named, a column is missing, or a template has no ``{}``.
    """
    if not source:
        raise ValueError(
            f"{name} needs to know of what: give a dataset, as in classification=cifar10 or {name}=FOLDER."
        )
    rows = open_dataset(source, split)
    images, labels = image_column(rows, options), _label_column(rows, options)
    bad = [template for template in options.templates if "{}" not in template]
    if bad or not options.templates:
        where = (
            "--templates takes prompts with {} for the class, such as 'a photo of a {}.', or a file of them, one a line"
        )
        raise ValueError(
            f"{f'the template {bad[0]!r} has no {{}}' if bad else 'there is no prompt template'}; {where}."
        )

    if labels not in rows.class_names and rows.text.features[labels].dtype not in ("string", "large_string"):
        raise ValueError(
            f"column {labels!r} of {rows.name} holds numbers and no names of classes; cast it to a ClassLabel with names, "
            "or pass a --label_column of names."
        )

    def item(row: Row) -> Item:
        return Item(row.identifier, (row.image(images),), (), str(row[labels]))

    benchmark = collect(name, "classification", rows, item, options)
    names = rows.class_names.get(labels) or sorted({item.tag for item in benchmark.items})
    said = {label: label.replace("_", " ") for label in names}
    benchmark.classes = {label: tuple(t.replace("{}", word) for t in options.templates) for label, word in said.items()}
    return benchmark


def _label_column(rows: DatasetRows, options: Options) -> str:
    columns = [options.label_column] if options.label_column else [*rows.class_names, "label"]
    found = [column for column in columns if column in rows.text.column_names]
    if not found:
        raise ValueError(
            f"{rows.name} has no label column {' or '.join(map(repr, columns))}; it has "
            f"{', '.join(rows.dataset.column_names)}. Pass --label_column."
        )
    return found[0]
