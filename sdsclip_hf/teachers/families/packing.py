"""Latents as a row of patches, for transformers that do not cut pictures up themselves."""

import torch
from torch import Tensor


def to_patches(latents: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h / 2 * w / 2, 4 C): squares of two by two, the channel outermost."""
    batch, channels, height, width = latents.shape
    squares = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(batch, height // 2 * (width // 2), 4 * channels)


def from_patches(patches: Tensor, height: int, width: int) -> Tensor:
    """The inverse of [`to_patches`], for latents of ``height`` x ``width``."""
    batch, _, channels = patches.shape
    squares = patches.view(batch, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(batch, channels // 4, height, width)


def grid_ids(height: int, width: int, size: int, device: torch.device) -> Tensor:
    """Where each of ``height`` x ``width`` places lies, (height * width, size): row and column in the second and third."""
    ids = torch.zeros(height, width, size, device=device)
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)
    return ids.reshape(height * width, size)
