"""The parts of a saved text-to-image pipeline: those that encode captions, and apart from them denoiser and autoencoder."""

import importlib
import json
import re
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import ConfigMixin, DDPMScheduler, DiffusionPipeline
from huggingface_hub import hf_hub_download
from torch import nn
from transformers import PreTrainedTokenizerBase

from sdsclip_hf.common.tokenizers import check_words, max_length
from sdsclip_hf.teachers.families.catalogue import family_of
from sdsclip_hf.teachers.families.family import hushed
from sdsclip_hf.teachers.schedule import schedule_of

DISTILLED = re.compile(r"turbo|schnell|lightning|hyper|\blcm|sprint|distill|klein(?!-base)")
TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"
LIBRARIES = ("diffusers", "transformers")
UNUSED = ("safety_checker", "image_encoder", "feature_extractor", "unconditional_transformer")


class SavedPipeline:
    """A folder or Hub id of a text-to-image pipeline, of which nothing but ``model_index.json`` is read yet.

    Args:
        name: a folder written by ``save_pretrained``, or a Hub id.
        revision: branch, tag or commit on the Hub.
        variant: of the weight files, e.g. "fp16".

    Raises:
        OSError: it has no such file, or parts that it names are not there.
        ValueError: it cannot be a teacher.
    """

    def __init__(self, name: str, revision: str | None = None, variant: str | None = None):
        self.name, self.hub, self.variant = name, {"revision": revision}, variant
        self.index = model_index(name, revision)
        self.parts = {name: entry for name, entry in self.index.items() if _is_part(entry)}
        self.family = family_of(name, self.index.get("_class_name", "pipeline"))
        missing = [part for part in (*self.family.needs, self.family.denoiser_part) if self._kind(part) is None]
        if missing:
            raise ValueError(
                f"the teacher {name!r}, a {self.index['_class_name']}, has no {', '.join(missing)}; give a checkpoint with "
                f"{', '.join((self.family.denoiser_part, *self.family.needs))}."
            )
        if Path(name).is_dir():
            needed = [part for part in self.parts if part not in (*UNUSED, "vae") and self._kind(part)]
            absent = [part for part in needed if not self._has(part)]
            if absent:
                raise OSError(f"it has no folder {', '.join(absent)}")

    @property
    def kind(self) -> str:
        """The class of the pipeline."""
        return self.index["_class_name"]

    @property
    def weighty(self) -> list[str]:
        """The parts with weights that score captions against latents."""
        encoders = [part for part in self.parts if part.startswith("text_encoder") and self._kind(part)]
        return [self.family.denoiser_part, *encoders]

    @property
    def small(self) -> list[str]:
        """The other parts that are always read."""
        return [part for part in self.parts if part.startswith(("tokenizer", "scheduler")) and self._kind(part)]

    @property
    def is_distilled(self) -> bool:
        """Whether it was made from another checkpoint to draw in few steps, by its configuration, its family or its name."""
        named = DISTILLED.search(Path(self.name).name.lower())
        return bool(self.index.get("is_distilled") or self.family.distilled or named)

    def pipeline(self, dtype: torch.dtype, bare: bool = False, **loaded: nn.Module) -> DiffusionPipeline:
        """The pipeline with its text encoders.

        Args:
            dtype: of the text encoders.
            bare: whether they, too, are to have a form and no weights.
            loaded: denoiser and autoencoder, by their names; those that are not given have a form and no weights.

        Raises:
            ImportError: a package that it needs is not installed.
            OSError: a part cannot be loaded.
        """
        given: dict[str, Any] = {part: None for part in self.parts if self._kind(part) is None or part in UNUSED}
        empty = [part for part in self.parts if bare and part.startswith("text_encoder") and self._kind(part)]
        empty += [part for part in (self.family.denoiser_part, "vae") if part not in loaded and self._has(part)]
        given |= (
            {"vae": None, "scheduler": self._scheduler()} | {part: self.empty(part, dtype) for part in empty} | loaded
        )
        with hushed():
            pipeline = DiffusionPipeline.from_pretrained(
                self.name, **given, **self.hub, variant=self.variant, torch_dtype=dtype
            )
        check_tokenizers(pipeline)
        return pipeline

    def empty(self, part: str, dtype: torch.dtype) -> nn.Module:
        """A part of the pipeline on the meta device."""
        kind = self._kind(part)
        with torch.device("meta"):
            if issubclass(kind, ConfigMixin):
                made = kind.from_config(kind.load_config(self.name, subfolder=part, **self.hub))
            else:
                made = kind(kind.config_class.from_pretrained(self.name, subfolder=part, **self.hub))
        with hushed():  # by what is said of parts that stay in float32, of which these have none
            return (made if dtype == torch.float32 else made.to(dtype)).eval()

    def load(self, part: str, dtype: torch.dtype, **options) -> nn.Module:
        """The denoiser or the autoencoder, with its weights.

        Raises:
            OSError: it cannot be loaded.
        """
        weights = {"torch_dtype": dtype, "variant": self.variant} | options
        return self._kind(part).from_pretrained(self.name, subfolder=part, **self.hub, **weights)

    def _scheduler(self) -> Any:
        """As its own file tells it, whatever class ``model_index.json`` names.

        Raises:
            ValueError: it is one of another kind of model.
        """
        config = cast(dict, DDPMScheduler.load_config(self.name, subfolder="scheduler", **self.hub))
        schedule_of(config, self.family.is_flow)
        kind = getattr(diffusers, config.get("_class_name", ""), DDPMScheduler)
        return kind.from_config(config)

    def _has(self, part: str) -> bool:
        """Whether a part is there, as far as can be seen without asking for it."""
        folder = Path(self.name)
        return self._kind(part) is not None and (not folder.is_dir() or (folder / part).is_dir())

    def _kind(self, part: str) -> Any:
        """The class of a part; None where the pipeline has none.

        Raises:
            ValueError: it comes from another library.
        """
        library, kind = self.parts.get(part, (None, None))
        if kind is None:
            return None
        if library not in LIBRARIES:
            return None if part in UNUSED else _refuse(self.name, part, library)
        found = getattr(importlib.import_module(library), kind, None)
        if found is None:
            raise ValueError(
                f"the teacher {self.name!r} has a {part} of the class {kind}, which this {library} does not know; upgrade "
                f"it: pip install -U {library}."
            )
        return found


def _is_part(entry: Any) -> bool:
    """Whether an entry of ``model_index.json`` tells the library and class of a part, or that there is none."""
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(one, (str, type(None))) for one in entry)


def _refuse(name: str, part: str, library: str) -> None:
    raise ValueError(
        f"the teacher {name!r} has a {part} from {library!r}, whose code is not to be run; give a checkpoint whose parts "
        f"are all of {' or '.join(LIBRARIES)}."
    )


def check_tokenizers(pipeline: DiffusionPipeline) -> None:
    """See to it that the tokenizers of a pipeline know words, and give no more of them than their text encoders read.

    Raises:
        ValueError: one knows none.
    """
    parts = pipeline.components
    for name, tokenizer in parts.items():
        encoder = parts.get(name.replace("tokenizer", "text_encoder"))
        if name.startswith("tokenizer") and isinstance(tokenizer, PreTrainedTokenizerBase):
            check_words(tokenizer)
            tokenizer.deprecation_warnings[TOO_LONG] = (
                True  # as if warned of: pipelines look at whole captions, then cut
            )
            if getattr(getattr(encoder, "config", None), "max_position_embeddings", None):
                tokenizer.model_max_length = max_length(tokenizer, encoder.config)


def model_index(name: str, revision: str | None) -> dict:
    """What ``model_index.json`` of a folder or Hub id holds.

    Raises:
        OSError: it has none.
    """
    folder = Path(name)
    if folder.is_dir():
        path = folder / "model_index.json"
        if not path.is_file():
            raise OSError("it has no model_index.json, so it is not a folder that diffusers wrote")
    else:
        path = Path(hf_hub_download(name, "model_index.json", revision=revision))
    return json.loads(path.read_text())
