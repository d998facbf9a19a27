"""A CLIP, or another dual encoder that transformers loads, with its own processor."""

import inspect
from functools import lru_cache

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from .scores import Scores

# SigLIP, by its types: trained on small letters, without a mask of what is padding. SigLIP 2's tokenizer leaves capitals.
SIGLIP, SIGLIP2, SIGLIP2_WORDS = ("siglip", "siglip2"), "siglip2", 256_000


class ModelError(Exception):
    """A model cannot be used; the message is for the reader of the page."""


class Model:
    """Scores captions and pictures; in float32, on the GPU if there is one.

    Args:
        name: a folder or a Hub id.

    Raises:
        ModelError: it cannot be loaded, or is no dual encoder.
    """

    def __init__(self, name: str):
        self.name = name
        try:
            self.model = AutoModel.from_pretrained(name, dtype=torch.float32).eval()
            self.processor = AutoProcessor.from_pretrained(name)
        except Exception as error:  # each library behind has errors of its own; the reader of the page needs the reason
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise ModelError(
                f"The model {name} could not be loaded ({reason}). If it is private or gated, the page needs a token "
                "that may read it: in a Space, as a secret named HF_TOKEN."
            ) from error
        self._check_kind()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        longest = getattr(self.model.config.text_config, "max_position_embeddings", None)
        self.max_length = min(filter(None, (self.processor.tokenizer.model_max_length, longest)))

    def score(self, pictures: list[Image.Image], captions: list[str]) -> Scores:
        """The scores of two captions and one or two pictures.

        Captions are encoded one at a time, and the cosines summed one at a time: in a batch the last digit can hang on
        the place, and captions that are one to the model would not tie.

        Raises:
            ModelError: the processor cannot read a picture.
        """
        with torch.no_grad():
            texts = [self._embed_caption(caption) for caption in captions]
            images = [self._embed_picture(picture, number) for number, picture in enumerate(pictures, start=1)]
            scale = self._scale()
        cosines = [[(text * image).sum().item() for image in images] for text in texts]
        return Scores(cosines, scale, tuple(number for number in (0, 1) if self._is_cut(captions[number])))

    def _scale(self) -> float:
        """What the model multiplies cosines by; some divide by a temperature."""
        if hasattr(self.model, "logit_scale"):
            return self.model.logit_scale.exp().item()
        return 1 / self.model.temperature.item()

    def _check_kind(self) -> None:
        parts = ("get_image_features", "get_text_features")
        parts += () if hasattr(self.model, "temperature") else ("logit_scale",)
        readers = ("tokenizer", "image_processor")
        missing = [name for name in parts if not hasattr(self.model, name)]
        missing += [name for name in readers if not hasattr(self.processor, name)]
        if missing:
            raise ModelError(
                f"{self.name} is a {type(self.model).__name__} and no dual encoder such as CLIP: it has no "
                f"{' and no '.join(missing)}."
            )
        tokenizer = self.processor.tokenizer
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise ModelError(f"The tokenizer of {self.name} knows no words; its files are incomplete.")

    def _embed_caption(self, caption: str) -> Tensor:
        # Some models, SigLIP for one, were trained with captions padded to the full length; to CLIP it is all the same.
        kind, config = self.model.config.model_type, self.model.config.text_config
        is_siglip2 = kind == SIGLIP2 or getattr(config, "vocab_size", None) == SIGLIP2_WORDS
        tokens = self.processor.tokenizer(
            caption.lower() if kind in SIGLIP and is_siglip2 else caption,
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=kind not in SIGLIP,
            padding_side="right" if kind in SIGLIP else None,
            return_tensors="pt",
        )
        taken = inspect.signature(self.model.get_text_features).parameters
        inputs = {name: value.to(self.model.device) for name, value in tokens.items() if name in taken}
        return _unit(self.model.get_text_features(**inputs))

    def _embed_picture(self, picture: Image.Image, number: int) -> Tensor:
        try:
            inputs = self.processor.image_processor([picture.convert("RGB")], return_tensors="pt")
        except Exception as error:  # such as on a picture one pixel wide
            size = f"{picture.width} x {picture.height} pixels"
            raise ModelError(f"{self.name} cannot read picture {number} of {size}; choose another one.") from error
        return _unit(self.model.get_image_features(**inputs.to(self.model.device)))

    def _is_cut(self, caption: str) -> bool:
        return len(self.processor.tokenizer(caption, truncation=False, verbose=False).input_ids) > self.max_length


@lru_cache(maxsize=4)
def load(name: str) -> Model:
    """The model of that name, loaded once; a failure is not remembered."""
    return Model(name)


def _unit(features) -> Tensor:
    """The model's output for one caption or picture as a vector of length 1."""
    pooled = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(pooled.float(), dim=-1).cpu()[0]
