"""Image-caption datasets from any source that ``datasets`` reads."""

from pathlib import Path

import datasets
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError

from sdsclip_hf.common.errors import explain_loading
from sdsclip_hf.data.local_files import local_source
from sdsclip_hf.data.places import with_places
from sdsclip_hf.data.tars import uneven_columns
from sdsclip_hf.shapes import load_shapes


def load_image_captions(
    name_or_path: str,
    config_name: str | None = None,
    *,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    max_samples: int | None = None,
    option: str = "--dataset_name",
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a dataset of images and captions.

    Args:
        name_or_path: a Hub id; a folder (imagefolder with metadata, parquet, webdataset tars, what img2dataset or
            ``save_to_disk`` wrote); a parquet file, a tar, or a pattern of such files (``folder/*.tar``); or ``shapes``,
            the embedded world.
        config_name: the dataset's configuration.
        split: which split, e.g. "train" or, except in a stream and for ``shapes``, "train[:10%]". What has no splits is
            all "train".
        revision: branch, tag or commit on the Hub.
        streaming: read rows as they come instead of preparing the whole dataset first. ``shapes`` and what
            ``save_to_disk`` wrote are prepared already and stay map-style.
        max_samples: keep the first so many rows.
        option: what the user gave the name by, for messages.

    Raises:
        OSError: it cannot be loaded.
        ValueError: the split or configuration does not exist, the split is empty, or ``max_samples`` is below 1.

    Example:

    ```python
    from sdsclip_hf import load_image_captions

    dataset = load_image_captions("shapes", split="validation", max_samples=4)
    print(len(dataset), dataset.column_names)  # 4 ['image', 'caption']
    ```
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(
            f"max_samples is {max_samples}; it must be at least 1, or left out for all rows. Set --max_samples (in training "
            "--max_train_samples, --max_eval_samples)."
        )
    with explain_loading("the dataset", name_or_path, option):
        try:
            dataset = _load(name_or_path, config_name, split, revision, streaming)
        except DatasetGenerationError as error:
            raise OSError(" ".join(str(error.__cause__ or error).split())) from error
        except (DatasetNotFoundError, DataFilesNotFoundError) as error:
            raise OSError(str(error)) from error
        except ValueError as error:
            raise ValueError(f"could not load split {split!r} of the dataset {name_or_path!r}: {error}") from error
        except OSError:
            raise
        except Exception as error:  # AttributeError, KeyError, StopIteration and the like
            raise OSError(
                "a file of it is damaged, empty or of another form than datasets reads, which says no more than "
                f"{type(error).__name__}; have it written or downloaded again"
            ) from error
    if _is_empty(dataset):
        raise ValueError(
            f"the dataset {name_or_path!r} has no rows in split {split!r}; choose another split or source."
        )
    if max_samples is None:
        return dataset
    is_stream = isinstance(dataset, datasets.IterableDataset)
    return dataset.take(max_samples if is_stream else min(max_samples, len(dataset)))


def _load(name_or_path: str, config_name: str | None, split: str, revision: str | None, streaming: bool):
    path = Path(name_or_path).expanduser()
    if name_or_path == "shapes":
        return load_shapes(split)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        try:
            return _take_split(datasets.load_from_disk(str(path)), split)
        except IndexError as error:  # datasets cannot read what it wrote for a dataset without rows
            raise ValueError("it has no rows; choose another split or source.") from error
    source = local_source(name_or_path) or {"path": name_or_path}
    source |= {"name": config_name, "revision": revision}
    try:
        loaded = datasets.load_dataset(**source, split=split, streaming=streaming)
    except ValueError as error:
        if "WebDataset" not in str(error):
            raise
        columns = uneven_columns(datasets.load_dataset_builder(**source))
        if columns is None:
            raise
        loaded = datasets.load_dataset(**source, features=columns, split=split, streaming=streaming)
    return with_places(loaded) if isinstance(loaded, datasets.IterableDataset) else loaded


def _take_split(loaded: datasets.Dataset | datasets.DatasetDict, split: str) -> datasets.Dataset:
    parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    ranges = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(part) for name, part in parts.items()})
    chosen = [parts[r.splitname].select(range(r.from_, r.to)) for r in ranges if r.from_ < r.to]
    if not chosen:
        raise ValueError("it has no rows; choose another split or source.")
    return datasets.concatenate_datasets(chosen)


def _is_empty(dataset: datasets.Dataset | datasets.IterableDataset) -> bool:
    if isinstance(dataset, datasets.Dataset):
        return len(dataset) == 0
    undecoded = dataset.decode(False) if dataset.features else dataset
    return next(iter(undecoded), None) is None
