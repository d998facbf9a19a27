"""Any checkpoint that embeds images and captions into one space: CLIP, SigLIP and their like, LoRA adapters too."""

import hashlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin

from sdsclip_hf import shapes
from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.common.errors import expand, explain_loading
from sdsclip_hf.common.tokenizers import check_words, max_length
from sdsclip_hf.students.onednn import FastLinear


class DualEncoder:
    """Unit-length embeddings of images and captions, in float32 whatever the model's dtype.

    Args:
        model: has ``get_image_features`` and ``get_text_features``.
        processor: its processor, of an image processor and a tokenizer.

    Raises:
        ValueError: the model or the processor is of another kind.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        _check_model(model)
        _check_processor(processor)
        self.model, self.processor = model, processor
        self.preprocess = _Preprocess(processor.image_processor)
        text = getattr(model.config, "text_config", None)
        self.max_length = max_length(processor.tokenizer, text)
        self._text_inputs = set(inspect.signature(cast(Callable, model.get_text_features)).parameters)
        self._pads_to_longest: bool | None = None

    def embed_pixels(self, inputs: dict[str, Tensor]) -> Tensor:
        """Preprocessed images to (B, D), on the CPU."""
        device, dtype = self.model.device, self.model.dtype
        moved = {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in inputs.items()
        }
        with _inference(self.model):
            return _unit(cast(Callable, self.model.get_image_features)(**moved))

    def tokenize(self, captions: list[str]) -> list[list[int]]:
        """The token ids of each caption, cut at the longest that the text tower reads."""
        return self.processor.tokenizer(captions, truncation=True, max_length=self.max_length).input_ids

    def count_cut(self, captions: list[str]) -> int:
        """How many of the captions are longer than the text tower reads."""
        full = [
            caption
            for caption, ids in zip(captions, self.tokenize(captions), strict=True)
            if len(ids) >= self.max_length
        ]
        whole = self.processor.tokenizer(full, truncation=False, verbose=False).input_ids if full else []
        return sum(len(ids) > self.max_length for ids in whole)

    def fingerprint(self) -> str:
        """Of the weights, and of all that preprocesses and tokenizes."""
        tokenizer = self.processor.tokenizer
        vocabulary = (
            tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else str(sorted(tokenizer.get_vocab().items()))
        )
        reading = f"{self.processor.image_processor.to_json_string()}{vocabulary}{self.max_length}"
        return f"{fingerprint(self.model)}-{hashlib.sha256(reading.encode()).hexdigest()[:8]}"

    def embed_tokens(self, ids: list[list[int]]) -> Tensor:
        """Tokenised captions to (B, D), on the CPU; padded to the longest of them where padding changes nothing."""
        if self._pads_to_longest is None:
            self._pads_to_longest = self._ignores_padding(ids[0])
        return self._embed_padded(ids, "longest" if self._pads_to_longest else "max_length")

    def _ignores_padding(self, ids: list[int]) -> bool:
        """SigLIP, for one, reads its padding and was trained with captions padded to the full length."""
        short, full = (self._embed_padded([ids[:1] + ids[-1:]], kind) for kind in ("longest", "max_length"))
        return bool((short - full).abs().max() < 1e-3 * full.abs().max())

    def _embed_padded(self, ids: list[list[int]], padding: str) -> Tensor:
        batch = self.processor.tokenizer.pad(
            {"input_ids": ids}, padding=padding, max_length=self.max_length, return_tensors="pt"
        )
        tokens = {name: value.to(self.model.device) for name, value in batch.items() if name in self._text_inputs}
        with _inference(self.model):
            return _unit(cast(Callable, self.model.get_text_features)(**tokens))


class _Preprocess:
    """PIL images to what the image tower takes: ``pixel_values`` (B, 3, H, W), and what else the model wants."""

    def __init__(self, image_processor):
        self.image_processor = image_processor

    def __call__(self, images: list[Image.Image]) -> dict[str, Tensor]:
        return dict(self.image_processor(images, return_tensors="pt"))


def _check_model(model: PreTrainedModel) -> None:
    for part in ("get_image_features", "get_text_features"):
        if not hasattr(model, part):
            raise ValueError(
                f"a {type(model).__name__} does not embed images and captions apart (it has no {part}); give an "
                "image-text dual encoder such as CLIP or SigLIP."
            )


def _check_processor(processor: ProcessorMixin) -> None:
    """Without its files transformers makes some tokenizers of special tokens alone, to which all captions are one."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not hasattr(processor, "image_processor"):
        raise ValueError(
            f"a {type(processor).__name__} is no processor of an image processor and a tokenizer; give the model's own, as "
            "AutoProcessor.from_pretrained loads it."
        )
    check_words(tokenizer)


@contextmanager
def _inference(model: PreTrainedModel) -> Iterator[None]:
    """No gradients, no dropout; afterwards the model is in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), FastLinear():
            yield
    finally:
        model.train(was_training)


def _unit(features) -> Tensor:
    pooled = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(pooled.float(), dim=-1).cpu()


def load_dual_encoder(
    name_or_path: str | Path, revision: str | None = None, dtype: str = "auto", device: str | None = None
) -> DualEncoder:
    """A dual encoder from a folder or the Hub; a LoRA adapter is merged into the base model that it names.

    Args:
        name_or_path: a model, an adapter that PEFT wrote, or ``shapes/student``.
        revision: branch, tag or commit on the Hub.
        dtype: of the weights, e.g. ``float16``; ``auto``: as they are stored.
        device: default: the GPU if there is one.

    Raises:
        OSError: it cannot be loaded.
        ValueError: it is no dual encoder.

    Example:

    ```python
    from sdsclip_hf.shapes import load_shapes
    from sdsclip_hf.students.dual_encoder import load_dual_encoder

    encoder = load_dual_encoder("shapes/student")
    pixels = encoder.preprocess(load_shapes("test", per_scene=1)[:3]["image"])
    embeds = encoder.embed_pixels(pixels)
    print(len(embeds), [round(norm, 4) for norm in embeds.norm(dim=1).tolist()])  # 3 [1.0, 1.0, 1.0]
    ```
    """
    name = expand(shapes.resolve(str(name_or_path)))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with explain_loading("the model", name, "--model"):
        if (Path(name) / "model_index.json").is_file():
            raise ValueError(f"{name} holds a diffusion pipeline and no dual encoder; give it as --teacher.")
        try:
            AutoConfig.from_pretrained(name, revision=revision)
        except (OSError, ValueError):
            adapter = _find_adapter(name, revision)
            if adapter is None:
                raise
            return _load_adapter(name, revision, adapter, dtype, device)
        model = AutoModel.from_pretrained(name, revision=revision, dtype=dtype).to(device).eval()
        _check_model(model)
        return DualEncoder(model, AutoProcessor.from_pretrained(name, revision=revision))


def _find_adapter(name: str, revision: str | None) -> PeftConfig | None:
    try:
        return PeftConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError):  # there is no adapter_config.json
        return None


def _load_adapter(name: str, revision: str | None, adapter: PeftConfig, dtype: str, device: str) -> DualEncoder:
    base = adapter.base_model_name_or_path
    if not base:
        raise OSError("its adapter_config.json names no base model")
    encoder = load_dual_encoder(base, revision=adapter.revision, dtype=dtype, device=device)
    tuned = PeftModel.from_pretrained(encoder.model, name, revision=revision)
    encoder.model = tuned.merge_and_unload().eval()
    return encoder
