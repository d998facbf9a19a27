"""The paper's d(x, c): how badly a denoiser finds the noise in a picture when it is told a caption."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdsclip_hf.common.compiling import filled_up
from sdsclip_hf.common.devices import sent
from sdsclip_hf.teachers.conditions import Conditions, rows_of, trimmed


class CaptionScores:
    """The scores of [`DiffusionTeacher`], by what it encodes and how it denoises."""

    device: Any
    dtype: Any
    is_compiled: Any
    family: Any
    schedule: Any
    latent_shape: Any
    encode_captions: Any
    encode_images: Any
    denoising_error: Any
    check_timestep_range: Any

    @torch.no_grad()
    def diffusion_score(
        self,
        images: Sequence[Image.Image] | Tensor,
        captions: Sequence[str] | Sequence[Sequence[str]],
        *,
        num_draws: int = 10,
        timestep_range: Sequence[int] | None = None,
        weighting: str | None = None,
        seed: int = 0,
        batch_size: int = 64,
    ) -> Tensor:
        """The paper's d(x, c) = E_{t, eps} || eps_theta(z_t, t, c) - eps ||^2; lower means a better match.

        All captions of all images share the same draws of (t, eps): timesteps spread evenly over the range, noise from
        ``seed``. The differences between captions therefore carry far less variance than the scores themselves.

        Args:
            images: PIL pictures, or floats in [-1, 1] (N, 3, H, W).
            captions: K strings to score against every image, or for each image its own K strings.
            num_draws: how many (t, eps) are averaged over.
            timestep_range: first and last timestep; default: the whole schedule, or of a flow model 20 to 980.
            weighting: w(t), see [`noise_weight`]; default: see [`denoising_error`].
            seed: of the noise.
            batch_size: how many denoiser inputs go through at once; it does not change the scores.

        Returns:
            (N, K) float32 on the CPU.

        Raises:
            ValueError: no autoencoder was loaded, the candidate lists differ in length, or the range does not fit.
        """
        if num_draws < 1 or not captions or not captions[0]:
            raise ValueError(f"num_draws {num_draws} and captions {captions!r}: there must be at least one of each.")
        starts = range(0, len(images), batch_size)
        latents = torch.cat([self.encode_images(images[start : start + batch_size]) for start in starts])
        per_image = cast(
            Sequence[Sequence[str]], [captions] * len(latents) if isinstance(captions[0], str) else captions
        )
        candidates = len(per_image[0])
        if len(per_image) != len(latents) or any(len(row) != candidates for row in per_image):
            raise ValueError(
                f"{len(latents)} images need {len(latents)} lists of captions of one length; got "
                f"{len(per_image)} lists of lengths {sorted({len(row) for row in per_image})}."
            )
        distinct = {caption: None for row in per_image for caption in row}
        timesteps, noises = self.draws(num_draws, timestep_range, seed, latents.shape[1:])
        prompts = self.encode_captions(list(distinct), batch_size)
        row_of = {caption: row for row, caption in enumerate(distinct)}
        prompt_rows = torch.tensor([row_of[caption] for row in per_image for caption in row])
        image_rows = torch.arange(len(latents)).repeat_interleave(candidates)
        options = {"weighting": weighting, "batch_size": batch_size}
        scores = torch.zeros(len(image_rows))
        for timestep, noise in zip(timesteps, noises, strict=True):
            scores += self.draw_errors(latents, prompts, image_rows, prompt_rows, timestep, noise, **options)
        return (scores / num_draws).view(len(latents), candidates)

    def draws(
        self,
        num_draws: int,
        timestep_range: Sequence[int] | None = None,
        seed: int = 0,
        latent_shape: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The draws of (t, eps) that d(x, c) is averaged over, see [`diffusion_score`].

        Returns:
            Timesteps (R,), rising, and noise (R, C, h, w), on the teacher's device.

        Raises:
            ValueError: the range does not fit the schedule.
        """
        timestep_range = timestep_range or self.schedule.default_range
        self.check_timestep_range(timestep_range)
        first, last = timestep_range
        timesteps = torch.from_numpy(np.linspace(first, last, num_draws).round().astype(np.int64))
        noises = torch.randn(
            (num_draws, *(latent_shape or self.latent_shape)), generator=torch.Generator().manual_seed(seed)
        )
        return timesteps.to(self.device), noises.to(self.device)

    @torch.no_grad()
    def draw_errors(
        self,
        latents: Tensor,
        prompts: Conditions,
        latent_rows: Tensor,
        prompt_rows: Tensor,
        timestep: Tensor,
        noise: Tensor,
        *,
        weighting: str | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """The error of one draw of (t, eps) on N pairs of a latent and a prompt.

        Args:
            latents: z0, (I, C, h, w).
            prompts: from [`encode_captions`], of P rows.
            latent_rows, prompt_rows: which of them make the pairs, (N,) each, on the CPU.
            timestep: t, scalar.
            noise: eps, (C, h, w).
            weighting: w(t), see [`noise_weight`]; default: see [`denoising_error`].
            batch_size: how many denoiser inputs go through at once, of a compiled denoiser exactly so many.

        Returns:
            (N,) float32 on the CPU.
        """
        mask = self.family.mask
        has_words = None if mask is None else prompts[mask].bool().cpu()
        errors = []
        for rows, captions in zip(latent_rows.split(batch_size), prompt_rows.split(batch_size), strict=True):
            count = len(rows)
            if self.is_compiled:  # one graph, for batches of one size
                rows, captions = (filled_up(part, batch_size) for part in (rows, captions))
            batch = latents[sent(rows, latents.device)]
            shared = timestep.expand(len(batch)), noise.expand_as(batch)
            places = None if has_words is None else has_words[captions].any(0).nonzero()[:, 0]
            of_rows = trimmed(rows_of(prompts, captions), mask, places)
            errors.append(self.denoising_error(batch, of_rows, *shared, weighting=weighting)[:count])
        found = torch.cat(errors).cpu()  # once, since a GPU's queue runs empty while the copy is waited for
        if not found.isfinite().all():
            raise ValueError(
                f"the teacher's error is not finite at timestep {timestep.item()}; its numbers may have overflowed "
                f"{self.dtype}. Choose --teacher_dtype bfloat16, or float32; of sdsclip evaluate --dtype."
            )
        return found
