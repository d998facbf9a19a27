"""Batches in which pictures and captions stand several times, with hard negatives that are true, against a plain loop."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from plain_contrastive import masked_by_loops

from sdsclip_hf.data.duplicates import KnownPairs
from sdsclip_hf.losses import contrastive_loss


def unit(rng: np.random.Generator, rows: int) -> torch.Tensor:
    return F.normalize(torch.from_numpy(rng.normal(size=(rows, 5))), dim=-1)


def trial(rng: np.random.Generator, folder: Path) -> str:
    rows, extra = int(rng.integers(2, 9)), int(rng.integers(0, 4))
    pictures = rng.integers(1, 6, rows).tolist()
    captions = [rng.choice(range(1, 7), int(rng.integers(1, 4)), replace=False).tolist() for _ in range(rows)]
    others = rng.integers(1, 9, extra).tolist()
    images, texts, negatives = unit(rng, rows), unit(rng, rows), unit(rng, extra)
    expected = masked_by_loops(images, texts, negatives, 3.0, pictures, captions, others)
    width = max(map(len, captions))
    keys = torch.tensor([[*words, *[0] * (width - len(words))] for words in captions])
    known = KnownPairs(torch.tensor(pictures), keys, torch.tensor(others, dtype=torch.int64))
    scale, chunk = torch.tensor(3.0, dtype=torch.float64), [None, 1, 3][rng.integers(3)]
    found = contrastive_loss(images, texts, scale, negative_embeds=negatives, chunk_size=chunk, known=known)
    assert abs(found.item() - float(expected)) < 1e-10
    every = torch.arange(rows)
    masked = known.true_of_images(every).any(1) | known.true_of_texts(every).any(1)
    assert torch.equal(known.are_shared(every), masked)
    return "right"
