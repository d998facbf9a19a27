"""The teacher: a frozen text-to-image diffusion model in Stable Diffusion's layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTokenizer

from sdsclip_hf.common.errors import expand, explain_loading
from sdsclip_hf.common.tokenizers import check_words, max_length
from sdsclip_hf.data.pixels import to_rgb
from sdsclip_hf.losses import distillation_loss
from sdsclip_hf.teachers.packing import pack_weights, unpack_weights
from sdsclip_hf.teachers.pipeline_layout import check_layout, check_parts_fit, load_schedule, model_index
from sdsclip_hf.teachers.prompt_tokenizer import PromptTokenizer


class DiffusionTeacher(nn.Module):
    """A frozen denoiser with its text encoder and noise schedule.

    It is held beside the student, never inside it: nothing of it trains, is saved or is moved to training mode.

    Args:
        denoiser: predicts the noise or the velocity of a latent (B, C, h, w) at timesteps (B,) given prompts.
        text_encoder: encodes token ids (B, L) to prompts (B, L, D).
        tokenizer: of the text encoder; captions are padded to its ``model_max_length``, as the pipeline does.
        scheduler: holds the noise schedule and ``prediction_type``.
        vae: the autoencoder, needed by [`diffusion_score`] and [`decode`] alone.
        latent_size: height and width of the latents; default: the denoiser's ``sample_size``.

    Raises:
        ValueError: the parts do not fit one another, or the model is none that predicts noise or velocity for a latent
            given a caption.

    Example:

    ```python
    from sdsclip_hf import DiffusionTeacher
    from sdsclip_hf.benchmarks import load_benchmark
    from sdsclip_hf.shapes import model_path

    teacher = DiffusionTeacher.from_pretrained(model_path("teacher"), load_vae=True)
    item = load_benchmark("shapes:test").items[0]  # two pictures and their captions
    errors = teacher.diffusion_score(item.images, item.captions, num_draws=4, timestep_range=(100, 990))
    print(errors.shape)  # torch.Size([2, 2])
    print(errors.argmin(1).tolist())  # [0, 1]
    ```
    """

    denoiser: UNet2DConditionModel
    text_encoder: nn.Module | None
    vae: AutoencoderKL | None
    alphas: Tensor
    sigmas: Tensor

    def __init__(
        self,
        denoiser: UNet2DConditionModel,
        text_encoder: nn.Module,
        tokenizer: CLIPTokenizer,
        scheduler: DDPMScheduler,
        vae: AutoencoderKL | None = None,
        latent_size: int | None = None,
    ):
        super().__init__()
        check_parts_fit(denoiser, text_encoder, scheduler, vae)
        self.denoiser, self.text_encoder, self.vae = denoiser, text_encoder, vae
        self.tokenizer, self.scheduler = tokenizer, scheduler
        schedule, form = cast(Any, scheduler.config), cast(Any, denoiser.config)
        check_words(tokenizer)
        self.prompt_tokenizer = PromptTokenizer(tokenizer, max_length(tokenizer, text_encoder.config))
        self.max_length = self.prompt_tokenizer.max_length
        self.prediction_type: str = schedule.prediction_type
        self.name_or_path = getattr(form, "_name_or_path", "")
        size = form.sample_size
        height, width = (
            (latent_size,) * 2 if latent_size else (size if isinstance(size, (list, tuple)) else (size,) * 2)
        )
        step = 2 ** (len(form.block_out_channels) - 1)
        if height % step or width % step or min(height, width) < step:
            raise ValueError(
                f"latent_size {height} x {width} does not fit this denoiser, which halves it "
                f"{len(form.block_out_channels) - 1} times; choose a multiple of {step}."
            )
        self.latent_shape: tuple[int, int, int] = (form.in_channels, height, width)
        alphas_cumprod = scheduler.alphas_cumprod.double()
        self.register_buffer("alphas", alphas_cumprod.sqrt().float(), persistent=False)
        self.register_buffer("sigmas", (1 - alphas_cumprod).sqrt().float(), persistent=False)
        self._is_channels_last = False
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        dtype: torch.dtype | str = torch.float32,
        latent_size: int | None = None,
        load_vae: bool = False,
        revision: str | None = None,
        variant: str | None = None,
    ) -> "DiffusionTeacher":
        """Load the parts of a Stable-Diffusion-layout pipeline that a teacher needs, and no others.

        Args:
            name_or_path: a folder written by ``save_pretrained``, or a Hub id.
            dtype: of the denoiser, text encoder and autoencoder, e.g. ``torch.float16`` or ``"float16"``.
            latent_size: height and width of the latents in latent pixels. The denoiser is convolutional: half the
                checkpoint's sample size costs a quarter.
            load_vae: whether the autoencoder is loaded too.
            revision: branch, tag or commit on the Hub.
            variant: of the weight files, e.g. "fp16".

        Raises:
            OSError: the folder or Hub id cannot be loaded.
            ValueError: it holds a pipeline of another layout.
        """
        name = expand(name_or_path)
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        with explain_loading("the teacher", name, "--teacher_name_or_path"):
            index = model_index(name, revision)
            check_layout(name, index)
            hub = {"revision": revision}
            weights = {**hub, "variant": variant, "torch_dtype": dtype}
            encoder_class = getattr(transformers, index["text_encoder"][1])
            teacher = cls(
                UNet2DConditionModel.from_pretrained(name, subfolder="unet", **weights),
                encoder_class.from_pretrained(name, subfolder="text_encoder", **hub, variant=variant, dtype=dtype),
                AutoTokenizer.from_pretrained(name, subfolder="tokenizer", **hub),
                load_schedule(name, revision),
                AutoencoderKL.from_pretrained(name, subfolder="vae", **weights) if load_vae else None,
                latent_size,
            )
        teacher.name_or_path = name
        return teacher

    def train(self, mode: bool = True) -> "DiffusionTeacher":
        """Stay in evaluation mode, whatever is asked for."""
        return super().train(False)

    def speed_up(
        self,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
        compiled: bool = False,
        packed: bool = False,
    ) -> "DiffusionTeacher":
        """Change how the denoiser computes, and not what; what an earlier call asked for and this one does not is undone.

        Args:
            gradient_checkpointing: keep the inputs of the denoiser's blocks alone for its backward pass, and compute the
                rest again: less memory, one more forward pass. Without effect where there is no such pass.
            channels_last: store weights and latents with channels as the innermost axis.
            compiled: pass the denoiser through ``torch.compile``.
            packed: on a CPU, keep a second copy of the weights in the order that suits passes without gradient best, of
                the text encoder and the autoencoder too; see [`packing.pack_weights`]. Not beside ``compiled``.
        """
        if gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        else:
            self.denoiser.disable_gradient_checkpointing()
        if channels_last != self._is_channels_last:
            layout = torch.channels_last if channels_last else torch.contiguous_format
            self.denoiser.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
            self._is_channels_last = channels_last
        if compiled:
            self.denoiser.compile()
        else:
            self.denoiser._compiled_call_impl = None  # where torch keeps it
        unpack_weights(self)
        if packed and not compiled and self.device.type == "cpu":
            pack_weights(self)
        return self

    @property
    def device(self) -> torch.device:
        return self.alphas.device

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.dtype

    @property
    def num_timesteps(self) -> int:
        """How many timesteps the noise schedule has."""
        return len(self.alphas)

    def check_timestep_range(self, timestep_range: Sequence[int]) -> None:
        """Raise ValueError unless ``timestep_range`` is (first, last), both inside the schedule."""
        first, last = timestep_range
        if not 0 <= first <= last < self.num_timesteps:
            raise ValueError(
                f"timestep_range {first} to {last} lies outside the teacher's schedule; choose "
                f"0 <= first <= last <= {self.num_timesteps - 1}."
            )

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Token ids (N, max_length) of captions, padded and cut as the teacher's pipeline does it."""
        return self.prompt_tokenizer(captions)

    @torch.no_grad()
    def encode_tokens(self, input_ids: Tensor) -> Tensor:
        """Prompts (N, L, D) of token ids (N, L) made by [`tokenize`].

        Raises:
            ValueError: the text encoder was freed.
        """
        if self.text_encoder is None:
            raise ValueError(
                "the teacher's text encoder was freed, since its prompts are read from --prompt_cache_dir. Give the trainer "
                "a DiffusionTeacher, whose encoder stays, or load the teacher anew."
            )
        input_ids = input_ids.to(self.device)
        mask = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            mask = torch.ne(input_ids, cast(int, self.tokenizer.pad_token_id)).long()
        return self.text_encoder(input_ids, attention_mask=mask).last_hidden_state

    def encode_captions(self, captions: Sequence[str], batch_size: int | None = None) -> Tensor:
        """Prompts (N, L, D) of N captions, in the teacher's dtype, encoded ``batch_size`` at a time; default: all."""
        return torch.cat(
            [self.encode_tokens(ids) for ids in self.tokenize(captions).split(batch_size or len(captions))]
        )

    def predict_noise(self, noisy_latents: Tensor, timesteps: Tensor, prompts: Tensor) -> Tensor:
        """eps_theta: the noise in ``noisy_latents``, converted from velocity where the checkpoint predicts that.

        Args:
            noisy_latents: z_t, (B, C, h, w).
            timesteps: t, integers, (B,).
            prompts: from [`encode_captions`], (B, L, D).

        Returns:
            (B, C, h, w) float32. Gradients flow to ``noisy_latents``.
        """
        noisy_latents = noisy_latents.float()
        predicted = self.denoiser(noisy_latents.to(self.dtype), timesteps, prompts.to(self.dtype)).sample.float()
        if self.prediction_type == "epsilon":
            return predicted
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        sigma = self.sigmas[timesteps].view(-1, 1, 1, 1)
        return alpha * predicted + sigma * noisy_latents

    def denoising_error(self, latents: Tensor, prompts: Tensor, timesteps: Tensor, noise: Tensor, **options) -> Tensor:
        """The error of the denoiser on each sample, [`distillation_loss`] with this teacher's schedule.

        Args:
            latents: z0, (B, C, h, w).
            prompts: from [`encode_captions`], (B, L, D).
            timesteps: t, integers, (B,).
            noise: eps, (B, C, h, w).
            options: ``reading``, ``gradient``, ``weighting`` and ``snr_gamma`` of the loss.

        Returns:
            (B,) float32: mean squared error over the elements of a latent, weighted.
        """
        return distillation_loss(
            latents,
            noise,
            self.alphas[timesteps],
            self.sigmas[timesteps],
            lambda denoiser_input: self.predict_noise(denoiser_input, timesteps, prompts),
            **options,
        )

    def crop(self, image: Image.Image) -> Image.Image:
        """A picture as [`encode_images`] looks at it: RGB, resized and centre-cropped to the teacher's size."""
        factor = 2 ** (len(cast(Any, self._require_vae("crop pictures").config).block_out_channels) - 1)
        height, width = self.latent_shape[1] * factor, self.latent_shape[2] * factor
        image = to_rgb(image)
        scale = max(height / image.height, width / image.width)
        if scale != 1:
            size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
            image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image] | Tensor) -> Tensor:
        """Clean latents z0 of images: the mode of the autoencoder's posterior, at the denoiser's scale.

        Args:
            images: PIL pictures, see [`crop`], or floats in [-1, 1] (N, 3, H, W).

        Returns:
            (N, C, h, w) float32

        Raises:
            ValueError: the teacher was loaded without its autoencoder.
        """
        vae = self._require_vae("encode images")
        if not isinstance(images, Tensor):
            pixels = np.stack([np.asarray(self.crop(image)) for image in images])  # (N, H, W, 3), bytes
            images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
        posterior = cast(Any, vae.encode(images.to(self.device, vae.dtype))).latent_dist
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return (posterior.mode().float() - shift) * cast(Any, vae.config).scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (N, 3, H, W), floats in [-1, 1], of latents (N, C, h, w); the inverse of [`encode_images`]."""
        vae = self._require_vae("decode latents")
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        unscaled = latents.to(self.device).float() / cast(Any, vae.config).scaling_factor + shift
        return cast(Any, vae.decode(unscaled.to(vae.dtype))).sample.float().clamp(-1, 1)

    @torch.no_grad()
    def diffusion_score(
        self,
        images: Sequence[Image.Image] | Tensor,
        captions: Sequence[str] | Sequence[Sequence[str]],
        *,
        num_draws: int = 10,
        timestep_range: Sequence[int] | None = None,
        weighting: str = "constant",
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
            timestep_range: first and last timestep; default: the whole schedule.
            weighting: w(t), see [`noise_weight`].
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
        timestep_range = timestep_range or (0, self.num_timesteps - 1)
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
        prompts: Tensor,
        latent_rows: Tensor,
        prompt_rows: Tensor,
        timestep: Tensor,
        noise: Tensor,
        *,
        weighting: str = "constant",
        batch_size: int = 64,
    ) -> Tensor:
        """The error of one draw of (t, eps) on N pairs of a latent and a prompt.

        Args:
            latents: z0, (I, C, h, w).
            prompts: from [`encode_captions`], (P, L, D).
            latent_rows, prompt_rows: which of them make the pairs, (N,) each.
            timestep: t, scalar.
            noise: eps, (C, h, w).
            weighting: w(t), see [`noise_weight`].
            batch_size: how many denoiser inputs go through at once.

        Returns:
            (N,) float32 on the CPU.
        """
        latent_rows, prompt_rows = latent_rows.to(latents.device), prompt_rows.to(prompts.device)
        errors = []
        for rows, captions in zip(latent_rows.split(batch_size), prompt_rows.split(batch_size), strict=True):
            batch = latents[rows]
            shared = timestep.expand(len(batch)), noise.expand_as(batch)
            errors.append(self.denoising_error(batch, prompts[captions], *shared, weighting=weighting))
        return torch.cat(errors).cpu()  # once, since a GPU's queue runs empty while the copy is waited for

    def _require_vae(self, purpose: str) -> AutoencoderKL:
        if self.vae is None:
            raise ValueError(f"the teacher was loaded without its autoencoder; pass load_vae=True to {purpose}.")
        return self.vae
