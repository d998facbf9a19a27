"""SugarCrepe (Hsieh et al. 2023, arXiv 2306.14610): one image, its caption, and a fluent false one."""

from pathlib import Path

from sdsclip_hf.benchmarks.items import Benchmark, Item
from sdsclip_hf.benchmarks.rows import Row
from sdsclip_hf.benchmarks.sources import Options, collect, join, open_rows

HUB_ID = "HuggingFaceM4/SugarCrepe"  # one dataset a subset: HuggingFaceM4/SugarCrepe_swap_obj, ...
SUBSETS = {
    "add_obj": 2062,
    "add_att": 692,
    "replace_obj": 1652,
    "replace_att": 788,
    "replace_rel": 1406,
    "swap_obj": 245,
    "swap_att": 666,
}


def load(name: str, subset: str, source: str, options: Options) -> Benchmark:
    """One subset, or all seven, each tagged by its name.

    Raises:
        ValueError: there is no such subset, or all are asked for of what holds only one.
    """
    parts = [_load_subset(name, part, source, options) for part in _chosen(name, subset)]
    if len({part.source["name"] for part in parts}) < len(parts):
        raise ValueError(f"{name}: {source} holds one subset; say which, as in sugarcrepe:swap_obj={source}.")
    return join(name, parts)


def places(name: str, subset: str, source: str) -> list[str]:
    """Where the subset, or each of the seven, lies: a folder, a file, or a Hub id.

    Raises:
        ValueError: there is no such subset.
    """
    return [_place(source or HUB_ID, part) for part in _chosen(name, subset)]


def _chosen(name: str, subset: str) -> list[str]:
    if subset and subset not in SUBSETS:
        raise ValueError(f"{name}: unknown subset {subset!r}; choose from {', '.join(SUBSETS)}.")
    return [subset] if subset else list(SUBSETS)


def _load_subset(name: str, subset: str, source: str, options: Options) -> Benchmark:
    def item(row: Row) -> Item:
        true, false = _captions(row)
        return Item(f"{subset}/{row.identifier}", (row.image("filename", "image", "images"),), (true, false), subset)

    rows = open_rows(_place(source or HUB_ID, subset), [f"{subset}.json"], options)
    return collect(name, "sugarcrepe", rows, item, options, published_items=SUBSETS[subset])


def _place(source: str, subset: str) -> str:
    """Where a subset lies in a folder, or on the Hub beside the others."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        candidates = (folder / subset, folder / f"SugarCrepe_{subset}", folder / f"{subset}.parquet")
        return str(next((path for path in candidates if path.exists()), folder))
    if folder.suffix in (".json", ".parquet"):
        return source
    base, at, revision = source.partition("@")
    return f"{base.removesuffix(f'_{subset}')}_{subset}{at}{revision}"


def _captions(row: Row) -> tuple[str, str]:
    """The true and the false caption: the authors' keys, or the Hub copy's list and label."""
    if row.get("tested_labels") is None:
        return row["caption"], row["negative_caption"]
    true = row["true_label"]
    false = [caption for caption in row["tested_labels"] if caption != true]
    if len(false) != 1:
        raise ValueError(f"item {row.identifier}: tested_labels must hold true_label and one other caption.")
    return true, false[0]
