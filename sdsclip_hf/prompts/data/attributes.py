"""Attributes of pictures, a word or two each, such as a colour: what [a] is in "a photo of a [a] [class]"."""

import hashlib
import json
import logging
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import pyarrow as pa
from datasets.table import embed_table_storage
from huggingface_hub import DatasetCard, DatasetCardData
from tqdm.auto import tqdm

from sdsclip_hf.common.chunks import Chunks
from sdsclip_hf.common.errors import read_json
from sdsclip_hf.common.writing import sweep, whole_folder, write_json
from sdsclip_hf.data.images import read_image

if TYPE_CHECKING:
    from sdsclip_hf.prompts.data.describers import Describer  # loads what only describing needs

logger = logging.getLogger(__name__)
PARTS, SETTINGS_FILE = "parts", "attributes.json"
ROWS_IN_A_PART = 32
CARD = """---
{data}
---

# {title}

The pictures of {dataset} with their classes, and an `attribute` of each: a word or two that tells how it looks, for prompts
such as "a photo of a [attribute] [class]". {how}

{rows:,} pictures, {classes} classes, {different:,} different attributes, the commonest of them {commonest}. {missing}

Columns: `image`, `label`, `attribute`. To learn prompts from them, with the Python package `sdsclip_hf`:

```bash
sdsclip prompt-tune --method intcoop --dataset_name FOLDER_OR_HUB_ID --test_dataset_name {source}
```
"""


def check_attributes(dataset: datasets.Dataset, name: str) -> None:
    """Raise ValueError unless every row has an attribute; ``name`` is what the message calls the dataset."""
    cells = dataset["attribute"] if "attribute" in dataset.column_names else [None] * len(dataset)
    missing = [row for row, cell in enumerate(cells) if not (cell or "").strip()]
    if missing:
        shown = ", ".join(map(str, missing[:10])) + ", ..." * (len(missing) > 10)
        raise ValueError(
            f"{len(missing)} of {len(dataset)} rows of {name} have no attribute: {shown}. Mend these rows, have attributes "
            "made by `sdsclip describe-attributes`, or choose a method that needs none."
        )


def describe(
    dataset: datasets.Dataset, describer: "Describer", folder: str | Path, name: str, split: str
) -> datasets.Dataset:
    """Have each picture described, and write it all as a dataset with a card; go on where a run was killed.

    Args:
        dataset: with ``image`` and ``label``, as [`load_labelled`] gives it.
        describer: [`Answers`], [`BestWords`], or any other.
        folder: is made. What stands there already, by the same describer of the same data, is not asked again.
        name: of the dataset, for the card.
        split: of the dataset, which names the files.

    Returns:
        The dataset with ``attribute``. Rows of which nothing is told have an empty one, which a warning counts.

    Raises:
        OSError: a picture cannot be read.
        ValueError: the folder is of other data or another describer.

    Example:

    ```python
    from sdsclip_hf.prompts.data.attributes import describe
    from sdsclip_hf.prompts.data.describers import BestWords
    from sdsclip_hf.prompts.data.shapes import load_labelled_shapes
    from sdsclip_hf.prompts.data.sources import load_labelled

    pictures = load_labelled_shapes("validation", per_class=3).remove_columns("attribute")
    colors = BestWords("shapes/student", ["red", "green", "blue"])
    described = describe(pictures, colors, "outputs/colors", name="shapes", split="validation")
    print(described["attribute"][2])  # blue
    print(load_labelled("outputs/colors", "validation").column_names)  # ['image', 'label', 'attribute']
    ```
    """
    folder = Path(folder)
    settings = {"dataset": name, "split": split, "data": _identity(dataset)} | describer.settings
    parts = Chunks(folder / PARTS, split)
    _claim(folder, split, settings)
    names = dataset.features["label"].names
    undecoded = dataset.cast_column("image", datasets.Image(decode=False))
    starts = range(0, len(dataset), ROWS_IN_A_PART)
    done = parts.numbers()
    for number in tqdm([n for n in range(len(starts)) if n not in done], "pictures", unit_scale=ROWS_IN_A_PART):
        rows = undecoded[starts[number] : starts[number] + ROWS_IN_A_PART]
        told = describer([read_image(cell) for cell in rows["image"]], [names[label] for label in rows["label"]])
        parts.write(number, pa.table({"attribute": told}))
    attributes = pa.concat_tables(parts.read(range(len(starts))))["attribute"].to_pylist()
    kept = [column for column in dataset.column_names if column != "attribute"]
    described = dataset.select_columns(kept).add_column("attribute", attributes)
    missing = sum(not attribute for attribute in attributes)
    if missing:
        logger.warning(
            f"{missing} of {len(attributes)} pictures have got no attribute; fill them in, or leave those rows out."
        )
    _write(described, folder, split, settings)
    return described


def _identity(dataset: datasets.Dataset) -> str:
    told = json.dumps([dataset.features["label"].names, dataset["label"][:]])
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def _claim(folder: Path, split: str, settings: dict) -> None:
    """See that a folder holds nothing, or what was begun with the same settings."""
    sweep(folder, alone=True)
    path = folder / PARTS / f"{split}.json"
    finished = folder / SETTINGS_FILE
    for known in (path, finished):
        if known.is_file():
            told = read_json(known, f"Delete {folder}, or choose another --output_dir.")
            told = told.get(split) if known == finished else told
            if told not in (None, settings):
                changed = next(key for key in settings if told.get(key) != settings[key])
                raise ValueError(
                    f"{folder} holds attributes of other settings: its {changed} is {told.get(changed)!r:.100}, not "
                    f"{settings[changed]!r:.100}. Choose another --output_dir."
                )
    others = any((folder / name).exists() for name in ("README.md", "data"))
    if others and not path.is_file() and not finished.is_file():
        raise ValueError(f"{folder} holds files that are no attributes. Choose another --output_dir.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def _write(described: datasets.Dataset, folder: Path, split: str, settings: dict) -> None:
    """The parquet, the card and the settings of the splits so far."""
    path = folder / SETTINGS_FILE
    splits = (read_json(path, f"Delete {folder}.") if path.is_file() else {}) | {split: settings}
    embedded = described.with_format("arrow").map(embed_table_storage, batched=True, batch_size=100).with_format(None)
    data = folder / "data"
    with whole_folder(data, replaces=[f"{split}-*.parquet"]) as new:
        embedded.to_parquet(new / f"{split}-00000-of-00001.parquet")
    with whole_folder(folder) as new:
        (new / "README.md").write_text(_card(described, settings), encoding="utf-8")
        write_json(new / SETTINGS_FILE, splits)
    for left in (folder / PARTS).glob(f"{split}[-.]*"):
        left.unlink()
    if not any((folder / PARTS).iterdir()):
        shutil.rmtree(folder / PARTS)


def _card(described: datasets.Dataset, settings: dict) -> str:
    counts = Counter(attribute for attribute in described["attribute"] if attribute)
    if settings["kind"] == "answers":
        how = f"They are the answers of {settings['model']} to the question “{settings['question']}”, of which at most "
        how += f"{settings['max_words']} words were kept."
    elif settings["kind"] == "best words":
        words = ", ".join(settings["words"])
        how = f"The CLIP {settings['model']} picked each from {len(settings['words'])} words ({words}) by the prompt "
        how += f"“{settings['template']}”."
    else:
        how = f"They are by {settings['kind']}."
    missing = len(described) - sum(counts.values())
    data = DatasetCardData(
        pretty_name=f"Attributes of {settings['dataset']}",
        tags=["sdsclip_hf", "clip", "prompt-tuning", "attributes"],
        task_categories=["image-classification"],
    )
    text = CARD.format(
        data=data.to_yaml(),
        title=data.pretty_name,
        dataset=settings["dataset"],
        source=shlex.quote(settings["dataset"]),
        how=how,
        rows=len(described),
        classes=described.features["label"].num_classes,
        different=len(counts),
        commonest=", ".join(f"{word} ({count})" for word, count in counts.most_common(5)) or "none",
        missing=f"{missing} pictures have none." if missing else "",
    )
    return str(DatasetCard(text))
