"""Gradients through a denoiser in float16: brought to a size that the format has, and back."""

from collections.abc import Callable

import torch
from torch import Tensor

SHRINKING, GROWING = 2**-4, 2**0.01
SMALLEST = 2**-126  # of float32


class Float16Gradients:
    """Lets the denoiser's backward pass begin with a gradient of size one, whatever the loss weighs, and takes that back.

    The gradient of a mean over a batch of latents lies below float16's least number, 6e-8, and would be nothing. What passes
    is linear in it, sample by sample, so that each has a factor of its own. A sample whose gradient overflows on its way has
    none in that step, and those after it begin smaller, as ``torch.amp.GradScaler`` does with whole steps. No GPU is waited
    for.
    """

    def __init__(self):
        self._size: Tensor | None = None  # with which gradients begin, a scalar: 1, or less after an overflow

    def __call__(self, denoise: Callable[[Tensor], Tensor], noisy: Tensor) -> Tensor:
        """``denoise(noisy)``, from (B, C, h, w) float32 to the same, whose gradients stay in range on their way."""
        if not (torch.is_grad_enabled() and noisy.requires_grad):
            return denoise(noisy)
        largest = size = torch.empty(0)

        def enlarge(gradient: Tensor) -> Tensor:
            nonlocal largest, size
            largest = gradient.abs().amax((1, 2, 3), keepdim=True).clamp(min=SMALLEST)  # (B, 1, 1, 1)
            size = gradient.new_ones(()) if self._size is None else self._size.to(gradient.device)
            return gradient * (size / largest)

        def restore(gradient: Tensor) -> Tensor:
            fits = gradient.isfinite().flatten(1).all(1).view_as(largest)
            self._size = torch.where(fits.all(), (size * GROWING).clamp(max=1), size * SHRINKING)
            return torch.where(fits, gradient * (largest / size), 0 * largest)  # that of a loss which is NaN stays so

        entering = noisy.view_as(noisy)
        entering.register_hook(restore)
        predicted = denoise(entering)
        predicted.register_hook(enlarge)
        return predicted
