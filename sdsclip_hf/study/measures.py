"""What is measured of a run beside its scores, and of a teacher whose scores a run learns from."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sdsclip_hf.benchmarks.items import Item, picture_key, read_picture
from sdsclip_hf.evaluation.scorers import ClipScorer, DiffusionScorer
from sdsclip_hf.metrics.common.winoground import right_items
from sdsclip_hf.students.sdsclip_model import SDSCLIPModel
from sdsclip_hf.training.trainer import SDSCLIPTrainer

DECODED = 8


def skill(scorer: DiffusionScorer, items: Sequence[Item]) -> dict[str, dict[str, float]]:
    """How often a teacher is right on 2 x 2 items, by their tags.

    Returns:
        ``skill``: of two captions for a picture; ``group``: of both captions and both pictures of an item.
    """
    scores, tags = np.stack(list(scorer.score(items))), np.array([item.tag for item in items])
    right = {
        "skill": np.stack([scores[:, 0, 0] > scores[:, 1, 0], scores[:, 1, 1] > scores[:, 0, 1]], 1),
        "group": right_items(scores)["group"],
    }
    return {
        figure: {tag: float(values[tags == tag].mean()) for tag in dict.fromkeys(tags.tolist())}
        for figure, values in right.items()
    }


def drift(start: ClipScorer, end: ClipScorer, items: Sequence[Item]) -> dict[str, float]:
    """How far training has moved each tower: 1 - the mean cosine of an embedding before and after it."""
    pictures = list({picture_key(image): image for item in items for image in item.images}.values())
    captions = list(dict.fromkeys(caption for item in items for caption in item.captions))
    pairs = {
        "images": (start.embed_images(pictures), end.embed_images(pictures)),
        "captions": (start.embed_captions(captions), end.embed_captions(captions)),
    }
    return {kind: 1 - (before * after).sum(-1).mean().item() for kind, (before, after) in pairs.items()}


def decode(student: SDSCLIPModel, trainer: SDSCLIPTrainer, items: Sequence[Item]) -> dict[str, np.ndarray]:
    """Some pictures, what the teacher's autoencoder makes of them, and what of h_w(f(x)): (N, H, W, 3) bytes each."""
    if student.mapper is None or trainer.teacher.vae is None:
        return {}
    images = [read_picture(item.images[0]) for item in items[:: max(1, len(items) // DECODED)][:DECODED]]
    pixels = trainer.processing_class.image_processor(images, return_tensors="pt")
    embeds = student.encode_images(**{name: value.to(trainer.args.device) for name, value in pixels.items()})
    found = {"pictures": trainer.teacher.encode_images(images), "decoded": student.mapper(embeds)}
    return {name: _bytes(trainer.teacher.decode(z)) for name, z in found.items()}


def _bytes(pictures: Tensor) -> np.ndarray:
    return ((pictures.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().cpu().numpy()
