"""Scorers: how well captions fit images, by CLIP's cosine or by the teacher's own denoising error."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from sdsclip_hf.benchmarks import Item
from sdsclip_hf.teacher import DiffusionTeacher


class ClipScorer:
    """Cosines of a CLIP's embeddings, each distinct image and caption encoded once, in float32.

    Args:
        clip: the model.
        processor: its processor.
        batch_size: how many images or captions are encoded at once.
    """

    def __init__(self, clip: CLIPModel, processor: CLIPProcessor, batch_size: int = 128):
        self.clip, self.processor, self.batch_size = clip, processor, batch_size

    def score(self, items: Sequence[Item]) -> list[np.ndarray]:
        """A matrix (captions, images) of cosines for each item; higher means a better match."""
        images, image_rows = _distinct([image for item in items for image in item.images], key=id)
        captions, caption_rows = _distinct([caption for item in items for caption in item.captions], key=str)
        was_training = self.clip.training
        self.clip.eval()
        try:
            image_embeds = self.embed_images(images)[image_rows].split([len(item.images) for item in items])
            text_embeds = self.embed_captions(captions)[caption_rows].split([len(item.captions) for item in items])
        finally:
            self.clip.train(was_training)
        return [(texts @ pictures.T).numpy() for texts, pictures in zip(text_embeds, image_embeds, strict=True)]

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit-length embeddings (N, D) of N pictures, on the CPU."""
        batches = []
        for start in range(0, len(images), self.batch_size):
            batch = list(images[start : start + self.batch_size])
            pixels = self.processor.image_processor(batch, return_tensors="pt").pixel_values
            features = self.clip.get_image_features(pixel_values=pixels.to(self.clip.device, self.clip.dtype))
            batches.append(F.normalize(features.pooler_output.float(), dim=-1).cpu())
        return torch.cat(batches)

    @torch.no_grad()
    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """Unit-length embeddings (N, D) of N captions, on the CPU; batched by length, so that little is padding."""
        tokenizer = self.processor.tokenizer
        ids = tokenizer(list(captions), truncation=True, max_length=tokenizer.model_max_length).input_ids
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        embeds = torch.empty(len(ids), self.clip.config.projection_dim)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            tokens = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt").to(self.clip.device)
            features = self.clip.get_text_features(**tokens)
            embeds[rows] = F.normalize(features.pooler_output.float(), dim=-1).cpu()
        return embeds


class DiffusionScorer:
    """The teacher's own matching score: minus d(x, c), with the same draws for all candidates (the paper's first half).

    Args:
        teacher: loaded with its autoencoder.
        options: ``num_draws``, ``timestep_range``, ``weighting``, ``seed`` and ``batch_size`` of
            [`DiffusionTeacher.diffusion_score`].
    """

    def __init__(self, teacher: DiffusionTeacher, **options):
        self.teacher, self.options = teacher, options

    def score(self, items: Sequence[Item]) -> list[np.ndarray]:
        """A matrix (captions, images) of -d(x, c) for each item; higher means a better match."""
        images = [image for item in items for image in item.images]
        captions = [list(item.captions) for item in items for _ in item.images]
        errors = self.teacher.diffusion_score(images, captions, **self.options)  # (all images, captions)
        return [-rows.T.numpy() for rows in errors.split([len(item.images) for item in items])]


def _distinct(values: list, key) -> tuple[list, list[int]]:
    """The distinct values in order, and for each value its place among them."""
    first: dict = {}
    rows = [first.setdefault(key(value), (len(first), value))[0] for value in values]
    return [value for _, value in first.values()], rows
