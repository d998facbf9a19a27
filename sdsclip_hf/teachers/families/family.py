"""What tells one family of text-to-image models from another: how captions, latents and noise levels reach the denoiser."""

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from sdsclip_hf.teachers.conditions import Conditions, shortened
from sdsclip_hf.teachers.schedule import Level

LIBRARIES = ("diffusers", "transformers")


class Known(NamedTuple):
    """A checkpoint that many use.

    Args:
        name: its Hub id.
        weights: of the denoiser, in billions.
        cost: of one call of it for one picture of 512 x 512, in 10^12 operations.
        licence: of the weights, by its short name; look at the checkpoint's page before you rely on it.
    """

    name: str
    weights: float
    cost: float
    licence: str


class Family:
    """The conventions of a family, bound to the parts of one pipeline.

    A new family tells its class attributes, and overrides the methods in which it differs. All tensors are batch first.

    Args:
        pipeline: whose parts are used as they are when a method is called; its denoiser and autoencoder may be empty ones
            on the meta device until then.

    Attributes:
        pipelines: the classes of pipelines that it serves.
        denoiser_part: the pipeline's name for the denoiser.
        needs: the parts without which nothing works.
        outputs: the names of what ``encode_prompt`` returns, in the denoiser's own words; None for what is not used.
        mask: which of them is zero where there is no word; None where padding counts as words do.
        is_flow: whether it is a flow model.
        multiple: of what latents' height and width must be a multiple.
        known: checkpoints that many use.
        distilled: whether all of its checkpoints were distilled from others.
        exact_autoencoder: whether the autoencoder stays in float32, whose numbers may be too large for float16.
        version: raised where a convention is corrected, since scores change by it.

    Example:

    ```python
    from sdsclip_hf import DiffusionTeacher
    from sdsclip_hf.shapes import model_path

    family = DiffusionTeacher.from_pretrained(model_path("teacher")).family
    print(type(family).__name__, family.is_flow, family.factor)  # StableDiffusion False 4
    ```
    """

    pipelines: ClassVar[tuple[str, ...]]
    denoiser_part: ClassVar[str] = "transformer"
    needs: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer", "scheduler")
    outputs: ClassVar[tuple[str | None, ...]] = ("encoder_hidden_states",)
    mask: ClassVar[str | None] = None
    is_flow: ClassVar[bool] = True
    multiple: ClassVar[int] = 2
    known: ClassVar[tuple[Known, ...]] = ()
    distilled: ClassVar[bool] = False
    exact_autoencoder: ClassVar[bool] = True
    version: ClassVar[int] = 1

    def __init__(self, pipeline: DiffusionPipeline):
        self.pipeline: Any = pipeline

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipeline, self.denoiser_part)

    @property
    def vae(self) -> Any:
        return self.pipeline.vae

    # --- captions

    def encode(self, captions: list[str], device: torch.device) -> Conditions:
        """What the denoiser is told of captions, one row each."""
        given = self.encode_prompt(captions, device)
        return {name: values for name, values in zip(self.outputs, given, strict=False) if name is not None}

    def encode_prompt(self, captions: list[str], device: torch.device) -> tuple:
        """The pipeline's own, with the defaults of the pipeline's own call, which are others than its own in some."""
        options = _defaults(type(self.pipeline))
        options = options | ({"device": device} if "device" in options else {})
        with hushed(), _sparing_lookups(self.pipeline):
            given = self.pipeline.encode_prompt(list(captions), **options)  # some write their template into the list
        return given if isinstance(given, tuple) else (given,)

    def rehearse(self, captions: int, words: int) -> Conditions:
        """As [`encode`], of text encoders without contents, for so many captions of so many tokens each."""
        conditions = self.encode(["a"] * captions, torch.device("cpu"))
        return conditions if self.mask is None else shortened(conditions, words, self.mask)

    # --- the denoiser

    @property
    def latent_channels(self) -> int:
        return self.denoiser.config.in_channels

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents that the model was trained on last."""
        size = getattr(self.denoiser.config, "sample_size", None) or getattr(self.pipeline, "default_sample_size", 128)
        return (size, size) if isinstance(size, int) else tuple(size)

    def predict(self, latents: Tensor, level: Level, conditions: Conditions) -> Tensor:
        """The denoiser's own prediction for noisy latents (B, C, h, w), a flow's as eps - z0; of the same shape."""
        return self.denoiser(latents, timestep=level.t, **conditions).sample

    def told(self, sigmas: Tensor, dtype: torch.dtype) -> Tensor:
        """The noise levels of which a denoiser of some dtype is in fact told, where ``sigmas`` are meant."""
        return sigmas

    @property
    def largest(self) -> int | None:
        """The longest edge of latents that the denoiser has places for; None where there is no end."""

    # --- the autoencoder

    @property
    def factor(self) -> int:
        """Pixels of a picture's edge that one latent pixel stands for."""
        return self.pipeline.vae_scale_factor

    def to_latents(self, pixels: Tensor) -> Tensor:
        """Clean latents of pictures (N, 3, H, W) in [-1, 1]: the mode of the posterior, at the denoiser's scale."""
        latents = self.vae.encode(pixels).latent_dist.mode().float()
        return (latents - self._shift) * self.vae.config.scaling_factor

    def to_pixels(self, latents: Tensor) -> Tensor:
        """The inverse of [`to_latents`]."""
        latents = latents.float() / self.vae.config.scaling_factor + self._shift
        return self.vae.decode(latents.to(self.vae.dtype)).sample

    @property
    def autoencoder_channels(self) -> int:
        """Channels of the latents that the autoencoder makes, as the denoiser sees them."""
        return self.vae.config.latent_channels

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0

    # --- the whole

    def check(self) -> None:
        """Raise ValueError where the parts do not fit one another, or need more than a latent and a caption."""


@cache
def _defaults(pipeline: type[DiffusionPipeline]) -> dict[str, Any]:
    """What a pipeline's own call tells its ``encode_prompt`` beside the captions and the device."""
    takes, call = (inspect.signature(f).parameters for f in (pipeline.encode_prompt, pipeline.__call__))
    options = {
        name: call[name].default for name in takes if name in call and call[name].default is not inspect.Parameter.empty
    }
    options |= dict.fromkeys(("prompt_2", "prompt_3", "device"))
    options |= {"do_classifier_free_guidance": False, "num_images_per_prompt": 1}
    return {name: value for name, value in options.items() if name in takes and name != "prompt"}


@contextmanager
def _sparing_lookups(pipeline: Any) -> Iterator[None]:
    """Without a search of each caption for a textual inversion of several vectors, where the tokenizers know none."""
    tokenizers = [getattr(pipeline, name, None) for name in ("tokenizer", "tokenizer_2")]
    added = [token for tokenizer in tokenizers if tokenizer is not None for token in tokenizer.added_tokens_encoder]
    if not hasattr(pipeline, "maybe_convert_prompt") or any(token.endswith("_1") for token in added):
        yield
        return
    pipeline.maybe_convert_prompt = lambda prompt, tokenizer: prompt
    try:
        yield
    finally:
        del pipeline.maybe_convert_prompt  # so that it is its class's again


@contextmanager
def hushed() -> Iterator[None]:
    """Without what pipelines warn of at every caption that is longer than they read, and at every load."""
    loggers = [logging.getLogger(name) for name in (None, *LIBRARIES)]
    handlers = [handler for logger in loggers for handler in logger.handlers]  # to set levels takes milliseconds

    def is_heard(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or record.name.partition(".")[0] not in LIBRARIES

    for handler in handlers:
        handler.addFilter(is_heard)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_heard)


def blocks_of(denoiser: nn.Module) -> list[nn.Module]:
    """The parts of a denoiser that follow one another, in which most of its weights are."""
    if hasattr(denoiser, "down_blocks"):
        blocks = (*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks)
        return [block for block in blocks if block is not None]
    names = set(getattr(denoiser, "_repeated_blocks", None) or []) | set(
        getattr(denoiser, "_no_split_modules", None) or []
    )
    return [module for module in denoiser.modules() if type(module).__name__ in names]
