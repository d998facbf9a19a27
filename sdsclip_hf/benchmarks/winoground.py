"""Winoground (Thrush et al. 2022, arXiv 2204.03162): two images, two captions of the same words."""

from sdsclip_hf.benchmarks.items import Benchmark, Item
from sdsclip_hf.benchmarks.rows import Row
from sdsclip_hf.benchmarks.sources import Options, collect, open_rows

HUB_ID = "facebook/winoground"
LABELS = ("num_main_preds", "secondary_tag", "tag")


def load(name: str, split: str, source: str, options: Options) -> Benchmark:
    """The 400 items, tagged by ``collapsed_tag`` (Object, Relation, Both) and labelled by the other subsets."""
    rows = open_rows(source or HUB_ID, options=options, split=split)
    return collect(name, "winoground", rows, _item, options, published_items=400)


def _item(row: Row) -> Item:
    return Item(
        row.identifier,
        (row.image("image_0"), row.image("image_1")),
        (row["caption_0"], row["caption_1"]),
        row.get("collapsed_tag") or "",
        tuple((label, str(row.get(label))) for label in LABELS if row.get(label) not in (None, "")),
    )
