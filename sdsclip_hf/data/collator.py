"""Batches of pictures and captions, as tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import ProcessorMixin

from sdsclip_hf.common.reading import CaptionReader
from sdsclip_hf.data.decoded import PIXELS, SIZES, packed, unpacked
from sdsclip_hf.data.duplicates import caption_key, caption_keys, picture_keys, token_key
from sdsclip_hf.data.scores import RankedItem

PROMPTS = "prompts."  # what a batch's entries for the teacher begin with
NEGATIVE = "negative_"  # and those of wrong pictures


@dataclass
class ImageCaptionCollator:
    """Batches of pictures and captions for the student, and the captions again for the teacher.

    Args:
        processor: the student's.
        prompts: gives what a teacher's denoiser is told of captions, or captions as [`conditions.as_bytes`] does, tensors
            by name with a row each; None when no term needs them.
        max_candidates: K, how many candidates a picture has at most; 0 when no term needs them.
        with_keys: whether to tell by what numbers equal pictures and captions are known.
        reader: how the student reads captions; default: as CLIP does, padded to the longest of a batch.
        decode_only: whether pictures are left as they were decoded, for [`decoded.prepared`].

    An example holds ``image`` or, preprocessed, ``pixel_values`` and what else the image processor gives, and ``caption``,
    with candidates ``item``, too; and perhaps ``captions``, all that are true of the image, and ``negative``, a picture in
    the same form that its caption is not true of, or None.

    Returns of a call, for B examples: ``pixel_values`` (B, 3, H, W), and whatever other tensors the image processor gives;
    ``input_ids`` and ``attention_mask`` (B, L), the latter even where the model takes none; ``caption_cut`` (B,), true
    where a caption was longer than the text tower reads; ``caption_empty`` (B,); in evaluation ``readable`` (B,), false
    where a blank stands for a picture that could not be read or a caption that is missing; with a teacher
    ``prompts.NAME`` (B, ...) of all that ``prompts`` gives; and with candidates ``candidate_input_ids`` and
    ``candidate_attention_mask`` (B, K, L), the latter all zero where there is no candidate, ``candidate_errors`` (B, K),
    the teacher's d(x, c_k), NaN where there is none, ``candidate_is_own`` (B, K) and ``candidate_confidence`` (B,).
    With wrong pictures all that the image processor gives of them as ``negative_pixel_values`` and the like, and
    ``has_negative`` (B,), false where the own picture stands for one that is missing.
    Keys, int64, are equal where pictures or the words of captions are: ``picture_keys`` (B,), ``caption_keys`` (B, C) of
    the caption and the others of its image, and ``candidate_keys`` (B, K); 0 where there is none. Nothing for rows passed
    over.

    Example:

    ```python
    from sdsclip_hf.data.captioned_images import ImageCaptionDataset
    from sdsclip_hf.data.collator import ImageCaptionCollator
    from sdsclip_hf.shapes import load_shapes, model_path
    from sdsclip_hf.students.sdsclip_model import load_clip

    dataset = ImageCaptionDataset(load_shapes("validation", per_scene=1))
    collate = ImageCaptionCollator(load_clip(model_path("student"))[1])
    batch = collate([dataset[0], dataset[1]])
    print(batch["pixel_values"].shape)  # torch.Size([2, 3, 32, 32])
    ```
    """

    processor: ProcessorMixin
    prompts: Callable[[Sequence[str]], dict[str, Tensor]] | None = None
    max_candidates: int = 0
    with_keys: bool = True
    reader: CaptionReader | None = None
    decode_only: bool = False

    def __post_init__(self):
        if self.reader is None:
            tokenizer = self.processor.tokenizer
            self.reader = CaptionReader(tokenizer, tokenizer.model_max_length)

    def __call__(self, examples: list[dict]) -> dict[str, Tensor]:
        if not any(examples):
            return {}
        captions = [example["caption"] for example in examples]
        items = [example["item"] for example in examples] if self.max_candidates and "item" in examples[0] else []
        texts = captions + [candidate for item in items for candidate in item.candidates]
        tokens, pictures = self.reader(texts), self._pictures(examples)
        batch = {name: value[: len(captions)] for name, value in tokens.items()} | pictures
        batch["caption_cut"] = self._cut(captions, batch["attention_mask"].sum(1))
        batch["caption_empty"] = torch.tensor([not caption.strip() for caption in captions])
        if "negative" in examples[0]:
            batch |= self._negatives(examples)
        if "readable" in examples[0]:
            batch["readable"] = torch.tensor([example["readable"] for example in examples])
        if self.prompts is not None:
            batch |= {f"{PROMPTS}{name}": values for name, values in self.prompts(captions).items()}
        keys = self._text_keys(texts, **tokens) if self.with_keys else None
        if keys is not None:
            batch["picture_keys"] = self._picture_keys(pictures)
            batch["caption_keys"] = _of_images(examples, keys[: len(captions)])
        if items:
            of_candidates = tokens | ({} if keys is None else {"keys": keys})
            batch |= self._candidates(items, {name: flat[len(captions) :] for name, flat in of_candidates.items()})
        return batch

    def _text_keys(self, texts: list[str], input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """A number for each text, (N,): for its words, or of one that fills the text tower for what is left of it."""
        full = (attention_mask.sum(1) >= self.reader.max_length).tolist()
        keys = [0 if is_full else caption_key(text) for text, is_full in zip(texts, full, strict=True)]
        return torch.tensor([key or token_key(input_ids[number].tolist()) for number, key in enumerate(keys)])

    def _cut(self, captions: list[str], lengths: Tensor) -> Tensor:
        """Which captions lost tokens, (B,): of those that fill the text tower."""
        cut = lengths >= self.reader.max_length
        for number in cut.nonzero()[:, 0].tolist():
            cut[number] = self.reader.whole_lengths([captions[number]])[0] > self.reader.max_length
        return cut

    def _pictures(self, examples: list[dict]) -> dict[str, Tensor]:
        """All that the image processor gives, whether here or, kept in memory, beforehand."""
        if "pixel_values" in examples[0]:
            names = [name for name, value in examples[0].items() if isinstance(value, Tensor)]
            return {name: torch.stack([example[name] for example in examples]) for name in names}
        images = [example["image"] for example in examples]
        return packed(images) if self.decode_only else dict(self.processor.image_processor(images, return_tensors="pt"))

    def _picture_keys(self, pictures: dict[str, Tensor]) -> Tensor:
        if not self.decode_only:
            return picture_keys(*pictures.values())
        sizes = pictures[SIZES]
        each = zip(unpacked(pictures[PIXELS], sizes), sizes, strict=True)
        return torch.cat([picture_keys(picture[None], size[None]) for picture, size in each])

    def _negatives(self, examples: list[dict]) -> dict[str, Tensor]:
        """The wrong pictures, with the own one in the place of those that are missing, and which are there, (B,)."""
        given = [example["negative"] for example in examples]
        shown = [example if wrong is None else wrong for example, wrong in zip(examples, given, strict=True)]
        pictures = {f"{NEGATIVE}{name}": value for name, value in self._pictures(shown).items()}
        return pictures | {"has_negative": torch.tensor([wrong is not None for wrong in given])}

    def _candidates(self, items: list[RankedItem], told: dict[str, Tensor]) -> dict[str, Tensor]:
        """The items' candidates, and what is ``told`` of them one after another, as a row of K an image."""
        shape = len(items), self.max_candidates
        exists, errors = torch.zeros(shape, dtype=torch.bool), torch.full(shape, torch.nan)
        for number, item in enumerate(items):
            exists[number, : len(item.candidates)] = True
            errors[number, : len(item.candidates)] = torch.from_numpy(item.errors)
        is_own = torch.zeros(shape, dtype=torch.bool)
        is_own[exists] = torch.tensor([text == item.caption for item in items for text in item.candidates])
        batch = {"candidate_errors": errors, "candidate_is_own": is_own}
        for name, flat in told.items():
            batch[f"candidate_{name}"] = flat.new_zeros((*shape, *flat.shape[1:]))
            batch[f"candidate_{name}"][exists] = flat
        return batch | {"candidate_confidence": torch.tensor([item.confidence for item in items])}


def _of_images(examples: list[dict], keys: Tensor) -> Tensor:
    """Of each image the keys of the caption in the batch and of all others, each once, (B, C); 0 where there is none."""
    others = (caption_keys(tuple(row.get("captions", ()))) for row in examples)
    rows = [[key, *(other for other in row if other != key)] for key, row in zip(keys.tolist(), others, strict=True)]
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])
