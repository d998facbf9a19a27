"""The teacher: a frozen text-to-image diffusion model, of any family that is known."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from sdsclip_hf.common.compiling import allow_graphs, few_lengths
from sdsclip_hf.common.errors import expand, explain_loading
from sdsclip_hf.data.pixels import to_rgb
from sdsclip_hf.losses import Weighting, distillation_loss, predicted_noise
from sdsclip_hf.teachers.caption_scores import CaptionScores
from sdsclip_hf.teachers.conditions import Conditions, joined, lengthened, moved, trimmed
from sdsclip_hf.teachers.families.catalogue import family_of
from sdsclip_hf.teachers.float16_gradients import Float16Gradients
from sdsclip_hf.teachers.offloading import Turns
from sdsclip_hf.teachers.packing import pack_weights, unpack_weights
from sdsclip_hf.teachers.quantization import quantization_config
from sdsclip_hf.teachers.saved_pipeline import SavedPipeline, check_tokenizers
from sdsclip_hf.teachers.schedule import schedule_of

PIXELS_AT_ONCE = 2**21  # of an autoencoder, which takes half a gigabyte for each 512 x 512 of them

logger = logging.getLogger(__name__)


class DiffusionTeacher(CaptionScores, nn.Module):
    """A frozen denoiser with its text encoders and noise schedule.

    It is held beside the student, never inside it: nothing of it trains, is saved or is moved to training mode.

    Args:
        pipeline: a text-to-image pipeline of diffusers, such as ``StableDiffusionPipeline``; `sdsclip teachers` lists those
            that can be teachers. Its autoencoder is needed by [`diffusion_score`] and [`decode`] alone.
        latent_size: height and width of the latents; default: those that the denoiser was trained on.

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

    denoiser: Any
    vae: Any

    def __init__(self, pipeline: DiffusionPipeline, latent_size: int | None = None):
        super().__init__()
        self.name_or_path: str = getattr(cast(Any, pipeline).config, "_name_or_path", "")
        self.family = family_of(self.name_or_path, type(pipeline).__name__)(pipeline)
        self.family.check()
        check_tokenizers(pipeline)
        self.denoiser, self.vae = self.family.denoiser, self.family.vae
        if self.vae is not None:
            self._check_autoencoder()
        for name, part in pipeline.components.items():
            if name.startswith("text_encoder"):
                self.add_module(name, part)
        scheduler = dict(cast(Any, pipeline).scheduler.config)
        scheduler["_class_name"] = type(cast(Any, pipeline).scheduler).__name__
        self.schedule = schedule_of(scheduler, self.family.is_flow, lambda sigmas: self.family.told(sigmas, self.dtype))
        self.quantization: str | None = None
        self._turns: Turns | None = None
        self.prediction_type: Any = self.schedule.prediction_type
        self.latent_shape = self._latent_shape(latent_size)
        self._is_channels_last = False
        self._float16_gradients = Float16Gradients()
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
        quantization: str | None = None,
    ) -> "DiffusionTeacher":
        """Load the parts of a text-to-image pipeline that a teacher needs, and no others.

        Args:
            name_or_path: a folder written by ``save_pretrained``, or a Hub id.
            dtype: of the denoiser and text encoders, e.g. ``torch.bfloat16`` or ``"bfloat16"``. The autoencoder stays in
                float32, but for Stable Diffusion 1 and 2, where it follows.
            latent_size: height and width of the latents in latent pixels; half the checkpoint's own costs about a quarter.
            load_vae: whether the autoencoder is loaded too.
            revision: branch, tag or commit on the Hub.
            variant: of the weight files, e.g. "fp16".
            quantization: of the denoiser's weights, one of [`config.TEACHER_QUANTIZATIONS`]; default: none.

        Raises:
            ImportError: a package that it needs is not installed.
            OSError: the folder or Hub id cannot be loaded.
            ValueError: it holds a pipeline that cannot be a teacher.
        """
        name = expand(name_or_path)
        kept = cast(torch.dtype, getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        with explain_loading("the teacher", name, "--teacher_name_or_path"):
            saved = SavedPipeline(name, revision, variant)
            if saved.is_distilled:
                logger.warning(
                    f"the teacher {name} is a distilled checkpoint: what it predicts is no longer the mean of what is "
                    "possible, and its errors may order captions less well. Score with the one that it was distilled from."
                )
            rounded = {} if quantization is None else {"quantization_config": quantization_config(quantization, kept)}
            parts: dict[str, Any] = {
                saved.family.denoiser_part: saved.load(saved.family.denoiser_part, kept, **rounded)
            }
            if load_vae:
                parts["vae"] = saved.load("vae", torch.float32 if saved.family.exact_autoencoder else kept)
            pipeline = cast(Any, saved.pipeline(kept, **parts))
            pipeline.vae = parts.get("vae")
            teacher = cls(pipeline, latent_size)
        teacher.name_or_path, teacher.quantization = name, quantization
        return teacher

    def _latent_shape(self, latent_size: int | None) -> tuple[int, int, int]:
        """(C, h, w); raises ValueError where the denoiser cannot see latents of that size."""
        height, width = (latent_size,) * 2 if latent_size else self.family.latent_size
        step, largest = self.family.multiple, self.family.largest
        if height % step or width % step or min(height, width) < step:
            raise ValueError(
                f"latent_size {height} x {width} does not fit this denoiser, which sees squares of {step} x {step}; choose "
                f"a multiple of {step}."
            )
        if largest is not None and max(height, width) > largest:
            raise ValueError(
                f"latent_size {height} x {width} does not fit this denoiser, which has places for {largest} x {largest}; "
                "choose a smaller one."
            )
        return self.family.latent_channels, height, width

    def _check_autoencoder(self) -> None:
        given, taken = self.family.autoencoder_channels, self.family.latent_channels
        if given != taken:
            raise ValueError(
                f"the teacher's autoencoder makes latents of {given} channels, but its denoiser takes {taken}; give parts "
                "of one checkpoint."
            )

    def train(self, mode: bool = True) -> "DiffusionTeacher":
        """Stay in evaluation mode, whatever is asked for."""
        return super().train(False)

    def speed_up(
        self,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
        compiled: bool | str = False,
        packed: bool = False,
    ) -> "DiffusionTeacher":
        """Change how the denoiser computes, and not what; what an earlier call asked for and this one does not is undone.

        Args:
            gradient_checkpointing: keep the inputs of the denoiser's blocks alone for its backward pass, and compute the
                rest again: less memory, one more forward pass. Without effect where there is no such pass.
            channels_last: store weights and latents with channels as the innermost axis.
            compiled: pass the denoiser through ``torch.compile``, with a graph of its own for each shape; or one of its
                modes, such as ``reduce-overhead``, which replays CUDA graphs.
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
            allow_graphs()
            self.denoiser.compile(dynamic=False, mode=compiled if isinstance(compiled, str) else None)
        else:
            self.denoiser._compiled_call_impl = None  # where torch keeps it
        unpack_weights(self)
        if packed and not compiled and self.device.type == "cpu" and self.quantization is None:
            pack_weights(self)
        return self

    @property
    def is_compiled(self) -> bool:
        """Whether calls of the denoiser go through graphs, of which there is one for each shape."""
        return self.denoiser._compiled_call_impl is not None

    @property
    def device(self) -> torch.device:
        return self.schedule.alphas.device

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.dtype

    @property
    def alphas(self) -> Tensor:
        """alpha of each timestep, (T,)."""
        return self.schedule.alphas

    @property
    def sigmas(self) -> Tensor:
        """sigma of each timestep, (T,)."""
        return self.schedule.sigmas

    @property
    def conventions(self) -> dict[str, Any]:
        """What of the code decides its scores; nothing where that is as it has been from the beginning."""
        family = type(self.family)
        return {} if family.version == 1 else {"family": family.__name__, "version": family.version}

    @property
    def num_timesteps(self) -> int:
        """How many timesteps the noise schedule has; a flow model's are thousandths of sigma."""
        return len(self.schedule)

    def check_timestep_range(self, timestep_range: Sequence[int]) -> None:
        """Raise ValueError unless ``timestep_range`` is (first, last), both inside the schedule."""
        first, last = timestep_range
        if not 0 <= first <= last < self.num_timesteps:
            raise ValueError(
                f"timestep_range {first} to {last} lies outside the teacher's schedule; choose "
                f"0 <= first <= last <= {self.num_timesteps - 1}."
            )

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str], batch_size: int | None = None) -> Conditions:
        """What the denoiser is told of N captions, as the family's own pipeline encodes them.

        Args:
            captions: N of them.
            batch_size: how many are encoded at a time; default: all. It does not change what comes out.

        Returns:
            Tensors by name, one row a caption, in the text encoders' dtype.

        Raises:
            ValueError: the text encoders were freed.
        """
        if not self.text_encoders:
            raise ValueError(
                "the teacher's text encoder was freed, since its prompts are read from --prompt_cache_dir. Give the trainer "
                "a DiffusionTeacher, whose encoder stays, or load the teacher anew."
            )
        self._take_turn(encoding=True)
        size, captions = batch_size or len(captions), list(captions)
        device = next(iter(self.text_encoders.values())).device
        parts = [
            trimmed(self.family.encode(captions[start : start + size], device), self.family.mask)
            for start in range(0, len(captions), size)
        ]
        return joined(parts, self.family.mask)

    @property
    def text_encoders(self) -> dict[str, Any]:
        """Those that are there, by the pipeline's names."""
        parts = self._modules.items()
        return {name: part for name, part in parts if name.startswith("text_encoder") and part is not None}

    @property
    def tokenizers(self) -> dict[str, Any]:
        """The pipeline's, by its names."""
        parts = self.family.pipeline.components.items()
        return {name: part for name, part in parts if name.startswith("tokenizer") and part is not None}

    def place(self, device: torch.device, offload: str | None = None) -> "DiffusionTeacher":
        """Bring the teacher to a device.

        Args:
            device: where it computes.
            offload: ``model``: text encoders and denoiser are there by turns; ``group``: and of the denoiser one block at a
                time, through which no gradient goes. Default: all of it is there.

        Raises:
            ValueError: the denoiser's weights cannot move.
        """
        if offload is None:
            return self.to(device)
        self._turns = Turns(self, device, in_groups=offload == "group")
        return self

    def _take_turn(self, encoding: bool) -> None:
        if self._turns is not None:
            self._turns.take(encoding)

    def place_encoders(self, device: torch.device) -> None:
        """Bring the text encoders alone to a device, where there is no room for the denoiser beside them."""
        for encoder in self.text_encoders.values():
            encoder.to(device)

    def free_text_encoders(self) -> None:
        """Give their memory back; captions can then be encoded no more."""
        for name in self.text_encoders:
            setattr(self, name, None)
            setattr(self.family.pipeline, name, None)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, prompts: Conditions) -> Tensor:
        """What the denoiser itself predicts: noise, v or a flow, see ``prediction_type``.

        Args:
            noisy_latents: z_t, (B, C, h, w).
            timesteps: t, integers, (B,).
            prompts: from [`encode_captions`], of B rows.

        Returns:
            (B, C, h, w) float32. Gradients flow to ``noisy_latents``.
        """
        self._take_turn(encoding=False)
        dtype = self.dtype  # asked once: diffusers looks through all of the denoiser for it
        prompts, level = moved(prompts, self.device, dtype), self.schedule.level(timesteps)
        if self.is_compiled and self.family.mask is not None:
            prompts = lengthened(prompts, few_lengths(prompts[self.family.mask].shape[1]), self.family.mask)

        def denoise(noisy: Tensor) -> Tensor:
            return self.family.predict(noisy.to(dtype), level, prompts).float()

        if dtype == torch.float16:
            return self._float16_gradients(denoise, noisy_latents.float())
        return denoise(noisy_latents)

    def predict_noise(self, noisy_latents: Tensor, timesteps: Tensor, prompts: Conditions) -> Tensor:
        """eps_theta: the noise in ``noisy_latents``, whatever the checkpoint predicts; as [`predict`]."""
        noisy_latents = noisy_latents.float()
        predicted = self.predict(noisy_latents, timesteps, prompts)
        alpha, sigma, _ = self.schedule.level(timesteps)
        return predicted_noise(self.prediction_type, predicted, noisy_latents, alpha, sigma)

    def denoising_error(
        self,
        latents: Tensor,
        prompts: Conditions,
        timesteps: Tensor,
        noise: Tensor,
        *,
        weighting: Weighting | None = None,
        **options,
    ) -> Tensor:
        """The error of the denoiser on each sample, [`distillation_loss`] with this teacher's schedule.

        Args:
            latents: z0, (B, C, h, w).
            prompts: from [`encode_captions`], of B rows.
            timesteps: t, integers, (B,).
            noise: eps, (B, C, h, w).
            weighting: w(t); default: the family's, ``velocity`` for flow models and ``constant`` for others.
            options: ``reading``, ``gradient`` and ``snr_gamma`` of the loss.

        Returns:
            (B,) float32: mean squared error over the elements of a latent, weighted.
        """
        return distillation_loss(
            latents,
            noise,
            self.alphas[timesteps],
            self.sigmas[timesteps],
            lambda seen: self.predict(seen, timesteps, prompts),
            prediction=self.prediction_type,
            weighting=weighting or self.schedule.default_weighting,
            **options,
        )

    def crop(self, image: Image.Image) -> Image.Image:
        """A picture as [`encode_images`] looks at it: RGB, resized and centre-cropped to the teacher's size."""
        self._require_vae("crop pictures")
        factor = self.family.factor
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
        at_once = max(1, PIXELS_AT_ONCE // images[0, 0].numel())
        parts = [self.family.to_latents(part.to(self.device, vae.dtype)) for part in images.split(at_once)]
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (N, 3, H, W), floats in [-1, 1], of latents (N, C, h, w); the inverse of [`encode_images`]."""
        self._require_vae("decode latents")
        return self.family.to_pixels(latents.to(self.device)).float().clamp(-1, 1)

    def _require_vae(self, purpose: str) -> Any:
        if self.vae is None:
            raise ValueError(f"the teacher was loaded without its autoencoder; pass load_vae=True to {purpose}.")
        self._take_turn(encoding=False)
        return self.vae
