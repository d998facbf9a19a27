"""Zero-shot classification of any labelled image dataset by captions of its classes (Radford et al. 2021)."""

from sdsclip_hf.benchmarks.items import Benchmark, Item
from sdsclip_hf.benchmarks.rows import Row
from sdsclip_hf.benchmarks.sources import Options, collect, image_column, open_dataset
from sdsclip_hf.data.labels import label_column


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
    images = image_column(rows, options)
    labels = label_column(rows.dataset, rows.name, options.label_column)
    bad = [template for template in options.templates if "{}" not in template]
    if bad or not options.templates:
        where = (
            "--templates takes prompts with {} for the class, such as 'a photo of a {}.', or a file of them, one a line"
        )
        raise ValueError(
            f"{f'the template {bad[0]!r} has no {{}}' if bad else 'there is no prompt template'}; {where}."
        )

    def item(row: Row) -> Item:
        return Item(row.identifier, (row.image(images),), (), str(row[labels]))

    benchmark = collect(name, "classification", rows, item, options)
    names = rows.class_names.get(labels) or sorted({item.tag for item in benchmark.items})
    said = {label: label.replace("_", " ") for label in names}
    benchmark.classes = {label: tuple(t.replace("{}", word) for t in options.templates) for label, word in said.items()}
    return benchmark
