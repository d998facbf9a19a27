"""ARO (Yuksekgonul et al. 2023, arXiv 2210.01936): relations, attributes, and the order of words."""

from sdsclip_hf.benchmarks.items import Benchmark, Box, Item
from sdsclip_hf.benchmarks.rows import Row
from sdsclip_hf.benchmarks.sources import Options, collect, open_rows

HUB_IDS = {
    "aro_relation": "mteb/ARO-Visual-Relation",
    "aro_attribution": "mteb/ARO-Visual-Attribution",
    "aro_coco_order": "mteb/ARO-COCO-order",
    "aro_flickr30k_order": "mteb/ARO-Flickr-Order",
}
BOX_KEYS = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
PERTURBATIONS = tuple(f"hard_text_{number}" for number in range(1, 5))


def load_relation(name: str, split: str, source: str, options: Options) -> Benchmark:
    """Visual Genome relations: which way round? Tagged by relation; symmetric ones are the metric's to drop."""
    rows = open_rows(source or HUB_IDS["aro_relation"], ["visual_genome_relation.json"], options, split)
    return collect(name, "aro_relation", rows, _relation, options, published_items=23_937)


def load_attribution(name: str, split: str, source: str, options: Options) -> Benchmark:
    """Visual Genome attributes: which object has which? Tagged by the pair of attributes."""
    rows = open_rows(source or HUB_IDS["aro_attribution"], ["visual_genome_attribution.json"], options, split)
    return collect(name, "aro_attribution", rows, _attribution, options, published_items=28_748)


def load_coco_order(name: str, split: str, source: str, options: Options) -> Benchmark:
    """COCO captions against four frozen perturbations of their words."""
    rows = open_rows(source or HUB_IDS["aro_coco_order"], ["coco_order.json"], options, split)
    return collect(name, "aro_order", rows, _order, options, published_items=25_010)


def load_flickr30k_order(name: str, split: str, source: str, options: Options) -> Benchmark:
    """Flickr30k captions against four frozen perturbations of their words."""
    rows = open_rows(source or HUB_IDS["aro_flickr30k_order"], ["flickr30k_order.json"], options, split)
    return collect(name, "aro_order", rows, _order, options, published_items=5_000)


def _relation(row: Row) -> Item:
    return _choice(row, row.get("relation_name") or "")


def _attribution(row: Row) -> Item:
    attributes = row.get("attributes") or ""
    return _choice(row, attributes if isinstance(attributes, str) else "_".join(attributes))


def _choice(row: Row, tag: str) -> Item:
    image = row.image("image_path", "image", box=_box(row))
    return Item(row.identifier, (image,), (row["true_caption"], row["false_caption"]), tag)


def _box(row: Row) -> Box | None:
    """The part of the image that the captions speak of; the authors show nothing else.

    The parquet copies hold it as one ``bbox``; a copy that knows nothing of boxes holds crops.
    """
    box = row.get("bbox")
    if {"image_path", "bbox", *BOX_KEYS}.isdisjoint(row.values):
        return None
    left, top, width, height = (row[key] for key in BOX_KEYS) if box is None else (box[key] for key in "xywh")
    if width <= 0 or height <= 0:
        raise ValueError(f"item {row.identifier} has a bbox of {width} x {height} pixels; mend the copy.")
    return left, top, left + width, top + height


def _order(row: Row) -> Item:
    """From ``caption_options`` as the authors' tool makes them (the true one first), or the parquet copies' columns."""
    captions = row.get("caption_options")
    if captions is None:
        captions = [row["correct_caption"], *(row[column] for column in PERTURBATIONS)]
    if not isinstance(captions, list) or len(captions) < 2:
        raise ValueError(f"item {row.identifier}: caption_options must list the true caption and its perturbations.")
    return Item(row.identifier, (row.image("image", "images", "image_path"),), tuple(captions))
