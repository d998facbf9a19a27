"""Saved prompts as features of classes, for whatever has a CLIP of its own: evaluations, exports."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sdsclip_hf.prompts.methods import make_learner, method_of
from sdsclip_hf.prompts.saved import (
    CONFIG_FILE,
    PromptRecord,
    check_same_clip,
    find_prompts,
    load_trained,
    read_record,
)
from sdsclip_hf.students.dual_encoder import DualEncoder


class SavedPrompts:
    """Prompts that do not hang on the image, as [`ClipScorer`] takes them.

    Args:
        folder: of the two files.
        record: what they tell.
        name: what they were asked for by.

    Raises:
        ValueError: the prompts hang on the image.
    """

    def __init__(self, folder: Path, record: PromptRecord, name: str):
        if method_of(record.settings.method).of_image:
            raise ValueError(
                f"the prompts {name} are of {record.settings.method}, which makes others for each image, so that a class "
                "has no embedding of its own. Take PromptedCLIP.from_pretrained in Python, or prompts of coop or kgcoop."
            )
        self.folder, self.record, self.name = folder, record, name
        self.fingerprint = hashlib.blake2b((folder / CONFIG_FILE).read_bytes(), digest_size=8).hexdigest()

    @classmethod
    def load(cls, name_or_path: str) -> "SavedPrompts":
        """From a folder, or from the Hub by NAME or NAME@REVISION.

        Raises:
            OSError: there are none.
            ValueError: they are not whole, or hang on the image.
        """
        base, _, revision = (name_or_path, "", "") if Path(name_or_path).exists() else name_or_path.partition("@")
        folder = find_prompts(base, revision or None)
        return cls(folder, read_record(folder), name_or_path)

    @property
    def model(self) -> str:
        """The CLIP that they were trained on, as ``--model`` takes it."""
        revision = self.record.base_revision
        return self.record.base_model + (f"@{revision}" if revision else "")

    @torch.no_grad()
    def embed_classes(self, encoder: DualEncoder, class_names: Sequence[str]) -> Tensor:
        """Unit-length embeddings (C, D) of C classes, on the CPU.

        Raises:
            ValueError: the encoder is another CLIP, or the classes cannot be.
        """
        check_same_clip(self.record, encoder.model)
        settings, tokenizer = self.record.settings, encoder.processor.tokenizer
        learner = make_learner(encoder.model, tokenizer, self.record.class_names, settings)
        load_trained(learner, self.folder)
        learner.to(encoder.model.device).eval().set_classes(class_names)
        return learner.fixed_text_embeds()[0].cpu()
