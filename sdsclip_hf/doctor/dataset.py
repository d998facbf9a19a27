"""The data: there, open to this login, with the splits and columns that are asked for; nothing of it is prepared."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import datasets

from sdsclip_hf import shapes
from sdsclip_hf.benchmarks import parse, places
from sdsclip_hf.benchmarks.storage import is_url
from sdsclip_hf.common.errors import explain_loading
from sdsclip_hf.common.writing import size
from sdsclip_hf.data.local_files import BUILDERS, local_source
from sdsclip_hf.data.tars import uneven_columns
from sdsclip_hf.doctor.case import Case
from sdsclip_hf.doctor.findings import Finding, Trouble
from sdsclip_hf.doctor.hub_access import Hub, Place, check_name

OPTION = "--dataset_name"


class Contents(NamedTuple):
    """What a dataset tells of itself.

    Args:
        columns: their kinds, None where only the rows tell.
        rows: by split; None where they would have to be counted.
        files: what is read, as paths or addresses; empty of what is prepared.
        prepared: the folder that a run would prepare it in, below that of all prepared datasets; None where it has none.
        prepared_bytes: how much that will take, where it is known.
    """

    columns: dict[str, object]
    rows: dict[str, int | None]
    files: tuple[str, ...] = ()
    prepared: Path | None = None
    prepared_bytes: int | None = None


def check_dataset(case: Case, hub: Hub, scratch: Path) -> Iterator[Finding]:
    """The training data and that of evaluation: source, splits, then columns.

    Args:
        case: the options.
        hub: the Hub.
        scratch: an empty folder, for what the clients fetch to look at it.
    """
    data, name = case.data, case.data.dataset_name
    if name == "shapes":
        place, contents = None, Contents(dict(shapes.FEATURES), dict.fromkeys(shapes.SPLITS))
        told = "bundled"
    else:
        place = _source(case, hub)
        contents = _contents(case, hub, place, scratch)
        told = place.told
    for option, split in (("--train_split_name", data.train_split_name), ("--eval_split_name", data.eval_split_name)):
        if split:
            _check_split(name, split, contents, option)
    if data.streaming and case.config.max_steps <= 0:
        raise Trouble("--streaming does not tell how long the run is.", "Set --max_steps.")
    if data.streaming and "[" in data.train_split_name:
        raise Trouble(
            f"--train_split_name {data.train_split_name} cannot be had of a stream.", "Use --max_train_samples."
        )
    case.pairs = _pairs(case, contents)
    yield Finding("ok", "dataset", f"{name}: {told}{_space(case, hub, place, contents)}")
    yield _columns(case, contents)


def _source(case: Case, hub: Hub) -> Place:
    """Where it is; a folder is not listed, since it may hold very many pictures."""
    name = case.data.dataset_name
    path = Path(name).expanduser()
    if path.is_file() and path.suffix not in BUILDERS:
        raise Trouble(
            f"{name} is no parquet file and no tar.", f"Give {OPTION} such a file, or the folder that it is in."
        )
    if path.is_dir() and not any(path.iterdir()):
        raise Trouble(f"the folder {name} is empty.", f"Give {OPTION} a folder of images with their captions.")
    if path.exists() or local_source(name):
        return Place(name, {}, path, told=f"a local {'folder' if path.is_dir() else 'file'}")
    check_name(name, OPTION)
    if hub.unreachable is None:
        try:
            return hub.place(name, "dataset", OPTION, case.data.dataset_revision)
        except Trouble:
            if hub.unreachable is None:
                raise
    return Place(name, {}, commit="-", told=f"prepared on this machine ({hub.unreachable})")


def _contents(case: Case, hub: Hub, place: Place, scratch: Path) -> Contents:
    data, path = case.data, place.folder
    if place.commit is not None and hub.unreachable is not None:
        return _in_cache(case, hub)
    if path is not None and (path / "dataset_dict.json").is_file():
        parts = {part.parent.name: _info(part.parent) for part in sorted(path.glob("*/dataset_info.json"))}
        columns = next((info.features for info in parts.values() if info.features), None) or {}
        return Contents(dict(columns), {name: _num_rows(info, name) for name, info in parts.items()})
    if path is not None and (path / "state.json").is_file():
        return Contents(dict(_info(path).features or {}), {"train": None})
    with explain_loading("the dataset", data.dataset_name, OPTION):
        try:
            return _of_builder(case, place, scratch)
        except datasets.exceptions.DatasetGenerationError as error:
            raise OSError(" ".join(str(error.__cause__ or error).split())) from error
        except (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
            raise OSError(str(error)) from error


def _of_builder(case: Case, place: Place, scratch: Path) -> Contents:
    """As ``datasets`` sees it, by its own rules; of the rows at most the first is read."""
    data, path = case.data, place.folder
    source = (path and local_source(str(path))) or {"path": data.dataset_name}
    revision = None if path else place.commit
    source |= {"name": data.dataset_config_name, "revision": revision, "cache_dir": str(scratch)}
    builder = datasets.load_dataset_builder(**source)
    if (columns := uneven_columns(builder)) is not None:
        builder = datasets.load_dataset_builder(**source, features=columns)
    files = builder.config.data_files or {}
    infos = builder.info.splits or {}
    rows = {str(name): infos[name].num_examples if name in infos else None for name in files or infos}
    columns = builder.info.features
    if columns is None:
        split = _splits(data.train_split_name)[0]
        stream = builder.as_streaming_dataset(split if split in rows else next(iter(rows)))
        columns = stream.features or dict.fromkeys(next(iter(stream), {}))
    return Contents(
        dict(columns),
        rows,
        tuple(str(file) for of_split in files.values() for file in of_split),
        Path(builder.cache_dir).relative_to(scratch),
        builder.info.dataset_size,
    )


def _in_cache(case: Case, hub: Hub) -> Contents:
    """Of what an earlier run prepared."""
    name, config = case.data.dataset_name, case.data.dataset_config_name or "*"
    found = _prepared(name, f"{config}/*/*")
    if not found:
        raise Trouble(
            f"{name} has not been prepared on this machine, and {hub.unreachable}.",
            f"Connect to the network (without HF_HUB_OFFLINE), or give {OPTION} a folder.",
        )
    info = _info(found[-1])
    return Contents(
        dict(info.features or {}), {split: _num_rows(info, split) for split in info.splits or {"train": None}}
    )


def _prepared(name: str, pattern: str) -> list[Path]:
    """Folders that hold a Hub dataset as Arrow files."""
    owner, _, last = name.rpartition("/")
    folder = f"{owner}___" * bool(owner) + datasets.naming.camelcase_to_snakecase(last)
    found = Path(datasets.config.HF_DATASETS_CACHE).glob(f"{folder}/{pattern}/dataset_info.json")
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def _info(folder: Path) -> datasets.DatasetInfo:
    return datasets.DatasetInfo.from_directory(str(folder))


def _num_rows(info: datasets.DatasetInfo, split: str) -> int | None:
    return info.splits[split].num_examples if info.splits and split in info.splits else None


def _splits(spec: str) -> list[str]:
    """``train[:10%]+test`` to train and test."""
    return [part.strip() for part in re.sub(r"\[[^]]*\]", "", spec).split("+")]


def _check_split(name: str, spec: str, contents: Contents, option: str) -> None:
    for split in _splits(spec):
        if contents.rows and split not in contents.rows:
            have = ", ".join(map(repr, contents.rows))
            raise Trouble(f"{name} has no split {split!r}; it has {have}.", f"Set {option}.")


def _pairs(case: Case, contents: Contents) -> int | None:
    limit, split = case.data.max_train_samples, case.data.train_split_name
    rows = contents.rows.get(split)
    return limit if rows is None else min(rows, limit or rows)


def _space(case: Case, hub: Hub, place: Place | None, contents: Contents) -> str:
    """What has to be downloaded and prepared, noted for later and told."""
    if place is None or case.data.streaming or contents.prepared is None:
        return ""
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    if (cache / contents.prepared).exists():
        return "; prepared already"
    inside = [file.partition(f"@{place.commit}/")[2] for file in contents.files] if place.commit else []
    to_download = place.to_download(file for file in inside if file in place.files)
    case.disk.append((hub.cache, "downloads", to_download))
    case.disk.append((cache, "the prepared dataset", contents.prepared_bytes or _whole(place, contents, inside)))
    return f"; {size(to_download)} to download" if to_download else ""


def _whole(place: Place, contents: Contents, inside: list[str]) -> int:
    """Bytes of the files whose contents are copied into the prepared dataset; pictures of their own stay where they are."""
    copied = (".parquet", ".arrow", ".tar", ".csv", ".json", ".jsonl")
    if place.commit is not None:
        return sum(place.files.get(file, 0) for file in inside if file.endswith(copied))
    return sum(Path(file).stat().st_size for file in contents.files if file.endswith(copied) and Path(file).is_file())


def _columns(case: Case, contents: Contents) -> Finding:
    """Image and caption, for all runs."""
    columns = contents.columns
    if not columns:
        return Finding("warn", "columns", "the data does not tell them before it is read.", "Look at it yourself.")
    for config in case.configs.values():
        wanted = (("image", config.image_column, _is_picture), ("caption", config.caption_column, _is_text))
        for what, column, fits in wanted:
            if column not in columns:
                have = ", ".join(map(repr, columns))
                found = f"{what} column {column!r} not found; the dataset has {have}."
                return Finding("fail", "columns", found, f"Pass --{what}_column.")
            if columns[column] is not None and not fits(columns[column]):
                found = f"column {column!r} holds {_name_of(columns[column])}, and no {what}s."
                return Finding("fail", "columns", found, f"Choose another --{what}_column.")
    names = (case.config.image_column, case.config.caption_column)
    told = (f"{name!r}{f' ({_name_of(columns[name])})' if columns[name] is not None else ''}" for name in names)
    return Finding("ok", "columns", " and ".join(told))


def _is_picture(kind) -> bool:
    return not isinstance(kind, datasets.Value) or kind.dtype in ("string", "large_string", "binary", "large_binary")


def _is_text(kind) -> bool:
    inner = kind[0] if isinstance(kind, list) else getattr(kind, "feature", kind)
    return getattr(inner, "dtype", None) in ("string", "large_string")


def _name_of(kind) -> str:
    if isinstance(kind, datasets.Value):
        return kind.dtype
    inner = kind[0] if isinstance(kind, list) else getattr(kind, "feature", None)
    return f"list of {_name_of(inner)}" if inner is not None else type(kind).__name__.lower()


def check_benchmark(case: Case, hub: Hub, spec: str) -> Iterator[Finding]:
    """A benchmark's source; whether its items are whole shows when they are loaded."""
    told = list(dict.fromkeys(_benchmark(case, hub, spec, source) for source in places(spec)))
    yield Finding("ok", "benchmark", f"{spec}: {', '.join(told)}")


def _benchmark(case: Case, hub: Hub, spec: str, source: str) -> str:
    _, split, _ = parse(spec)
    if source == "shapes":
        if split and split not in shapes.SPLITS:
            raise Trouble(
                f"{spec}: the shapes world has no split {split!r}.", f"Choose from {', '.join(shapes.SPLITS)}."
            )
        return "bundled"
    if Path(source).expanduser().exists():
        return f"{source} is there"
    if is_url(source):
        return f"{source}, on the web"
    name, _, revision = source.partition("@")
    place = hub.place(name, "dataset", f"{spec.partition('=')[0]}=", revision or None)
    if place.folder is None and not _prepared(name, f"*/*/{place.commit}"):
        to_download = place.to_download(place.files)
        case.disk.append((hub.cache, "downloads", to_download))
        prepared = sum(size for file, size in place.files.items() if file.endswith((".parquet", ".tar")))
        case.disk.append((Path(datasets.config.HF_DATASETS_CACHE), "the prepared dataset", prepared))
        return f"{name}, {place.told}; {size(to_download)} to download"
    return f"{name}, {place.told}"
