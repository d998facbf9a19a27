"""Pairs of attributes: whether a classifier tells a picture's own attribute with its class from another one."""

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor

from sdsclip_hf.prompts.data.attributes import check_attributes
from sdsclip_hf.prompts.labelled_images import LabelledImages, collate
from sdsclip_hf.prompts.learner import PromptLearner

BATCH = 64


def attribute_pairs(
    learner: PromptLearner, dataset: datasets.Dataset, image_processor: BaseImageProcessor, seed: int = 0
) -> float:
    """The share of pictures for which the right one of two prompts wins, "green circle" against "red circle".

    The two differ in the attribute alone, and stand as class names in the learner's prompts. Chance is one half.

    Args:
        learner: of any method; its classes are left as they are.
        dataset: with ``image``, ``label`` and ``attribute``, of at least two words.
        image_processor: of the learner's CLIP.
        seed: of the draws of the other attributes.

    Raises:
        ValueError: a row has no attribute, or all have the same.

    Example:

    ```python
    from sdsclip_hf.prompts.composition import attribute_pairs
    from sdsclip_hf.prompts.data.shapes import load_labelled_shapes
    from sdsclip_hf.prompts.settings import PromptSettings
    from sdsclip_hf.prompts.zero_shot import ZeroShot
    from sdsclip_hf.shapes import model_path
    from sdsclip_hf.students.loading import load_clip

    clip, processor = load_clip(model_path("student"))
    data = load_labelled_shapes("validation", per_class=5)
    learner = ZeroShot(clip, processor.tokenizer, data.features["label"].names, PromptSettings())
    print(f"{attribute_pairs(learner, data, processor.image_processor):.1f}")  # 0.9
    ```
    """
    check_attributes(dataset, "the dataset of pairs")
    words = sorted(set(dataset["attribute"]))
    if len(words) < 2:
        raise ValueError(f"all {len(dataset)} rows have the attribute {words[0]!r}; pairs need two or more.")
    rng, names = np.random.default_rng(seed), dataset.features["label"].names
    labels, own = np.array(dataset["label"]), np.array([words.index(word) for word in dataset["attribute"]])
    other = (own + rng.integers(1, len(words), size=len(own))) % len(words)
    was_training, right = learner.training, 0
    learner.eval()
    for label, name in enumerate(names):  # one class at a time, since each picture asks for prompts of its own alone
        rows = np.flatnonzero(labels == label)
        data = LabelledImages(dataset.select(rows), image_processor)
        with torch.no_grad(), learner.for_classes([f"{word} {name}" for word in words]):
            batches = DataLoader(data, BATCH, collate_fn=collate)
            logits = [learner(batch["pixel_values"].to(learner.context.device)).logits.cpu() for batch in batches]
        found = torch.cat(logits) if logits else torch.empty(0, len(words))
        place = torch.arange(len(rows))
        right += int((found[place, own[rows]] > found[place, other[rows]]).sum())
    learner.train(was_training)
    return right / len(labels)
