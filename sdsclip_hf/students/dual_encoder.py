"""Any checkpoint that embeds images and captions into one space: CLIP, SigLIP and their like, LoRA adapters too."""

import hashlib
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin

from sdsclip_hf import shapes
from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.common.devices import sent
from sdsclip_hf.common.errors import expand, explain_loading
from sdsclip_hf.common.reading import picture_reading
from sdsclip_hf.students.kinds import caption_reader, image_features, inference, needs_mask, text_features
from sdsclip_hf.students.loading import check_dual_encoder, check_processor
from sdsclip_hf.students.open_clip_checkpoints import OpenClipOptions, find_open_clip, load_open_clip


class DualEncoder:
    """Unit-length embeddings of images and captions, in float32 whatever the model's dtype.

    Args:
        model: has ``get_image_features`` and ``get_text_features``.
        processor: its processor, of an image processor and a tokenizer.
        read_as: of a checkpoint in open_clip's form what it was read as, see [`load_open_clip`].

    Raises:
        ValueError: the model or the processor is of another kind.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, read_as: dict[str, str | None] | None = None):
        check_dual_encoder(model)
        check_processor(processor)
        self.model, self.processor, self.read_as = model, processor, read_as
        self.preprocess = _Preprocess(processor.image_processor)
        self.reader = caption_reader(model, processor.tokenizer)

    def embed_pixels(self, inputs: dict[str, Tensor]) -> Tensor:
        """Preprocessed images to (B, D), on the CPU."""
        device, dtype = self.model.device, self.model.dtype
        moved = {
            name: sent(value, device).to(dtype if value.is_floating_point() else value.dtype)
            for name, value in inputs.items()
        }
        with inference(self.model):
            return _unit(image_features(self.model, moved))

    def tokenize(self, captions: list[str]) -> list[list[int]]:
        """The token ids of each caption, cut at the longest that the text tower reads."""
        return self.reader.tokenize(captions)

    def count_cut(self, captions: list[str]) -> int:
        """How many of the captions are longer than the text tower reads."""
        longest = self.reader.max_length
        full = [caption for caption, ids in zip(captions, self.tokenize(captions), strict=True) if len(ids) >= longest]
        return sum(length > longest for length in self.reader.whole_lengths(full)) if full else 0

    def fingerprint(self) -> str:
        """Of the weights, and of all that preprocesses and tokenizes."""
        tokenizer = self.processor.tokenizer
        vocabulary = (
            tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else str(sorted(tokenizer.get_vocab().items()))
        )
        lower = "lower" if self.reader.lower else ""
        reading = f"{picture_reading(self.processor.image_processor)}{vocabulary}{self.reader.max_length}{lower}"
        return f"{fingerprint(self.model)}-{hashlib.sha256(reading.encode()).hexdigest()[:8]}"

    def embed_tokens(self, ids: list[list[int]]) -> Tensor:
        """Tokenised captions to (B, D), on the CPU; padded to the longest of them where padding changes nothing."""
        tokens, device = self.reader.pad(ids), self.model.device
        if not needs_mask(self.model, tokens["attention_mask"], device):
            del tokens["attention_mask"]
        tokens = {name: sent(value, device) for name, value in tokens.items()}
        with inference(self.model):
            return _unit(text_features(self.model, **tokens))


class _Preprocess:
    """PIL images to what the image tower takes: ``pixel_values`` (B, 3, H, W), and what else the model wants."""

    def __init__(self, image_processor):
        self.image_processor = image_processor

    def __call__(self, images: list[Image.Image]) -> dict[str, Tensor]:
        return dict(self.image_processor(images, return_tensors="pt"))


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1).cpu()


def load_dual_encoder(
    name_or_path: str | Path,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    options: OpenClipOptions | None = None,
) -> DualEncoder:
    """A dual encoder from a file, a folder or the Hub; a LoRA adapter is merged into the base model that it names.

    Args:
        name_or_path: a model, an adapter that PEFT wrote, ``shapes/student``, or a checkpoint in open_clip's form.
        revision: branch, tag or commit on the Hub.
        dtype: of the weights, e.g. ``float16``; ``auto``: as they are stored, of open_clip's form float32.
        device: default: the GPU if there is one.
        options: what a checkpoint in open_clip's form does not tell.

    Raises:
        OSError: it cannot be loaded.
        ValueError: it is no dual encoder, or in open_clip's form and does not fit what ``options`` tell.

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
        if checkpoint := find_open_clip(name, revision):
            of_weights = torch.float32 if dtype == "auto" else getattr(torch, dtype)
            model, processor, read_as = load_open_clip(checkpoint, options or OpenClipOptions(), of_weights)
            return DualEncoder(cast(Any, model).to(device), processor, read_as)
        try:
            AutoConfig.from_pretrained(name, revision=revision)
        except (OSError, ValueError):
            adapter = find_adapter(name, revision)
            if adapter is None:
                raise
            return _load_adapter(name, revision, adapter, dtype, device, options)
        model = AutoModel.from_pretrained(name, revision=revision, dtype=dtype).to(device).eval()
        check_dual_encoder(model)
        return DualEncoder(model, AutoProcessor.from_pretrained(name, revision=revision))


def find_adapter(name: str, revision: str | None) -> PeftConfig | None:
    """The configuration of an adapter that PEFT wrote; None where a folder or Hub id holds none."""
    try:
        return PeftConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError):  # there is no adapter_config.json
        return None


def _load_adapter(
    name: str, revision: str | None, adapter: PeftConfig, dtype: str, device: str, options: OpenClipOptions | None
) -> DualEncoder:
    base = adapter.base_model_name_or_path
    if not base:
        raise OSError("its adapter_config.json names no base model")
    encoder = load_dual_encoder(base, revision=adapter.revision, dtype=dtype, device=device, options=options)
    tuned = PeftModel.from_pretrained(encoder.model, name, revision=revision)
    encoder.model = tuned.merge_and_unload().eval()
    return encoder
