"""SDS-CLIP (arXiv 2307.09233) for the Hugging Face libraries: distil a text-to-image diffusion model into CLIP."""

import importlib
from typing import TYPE_CHECKING

_WHERE = {
    "CandidateScores": "ranking",
    "ClipScorer": "scorers",
    "DiffusionScorer": "scorers",
    "DiffusionTeacher": "teacher",
    "LatentMapper": "student",
    "SDSCLIPConfig": "config",
    "SDSCLIPModel": "student",
    "SDSCLIPTrainer": "trainer",
    "contrastive_loss": "losses",
    "distillation_loss": "losses",
    "load_image_captions": "data",
    "ranking_loss": "losses",
}
__all__ = list(_WHERE)

if TYPE_CHECKING:
    from sdsclip_hf.config import SDSCLIPConfig
    from sdsclip_hf.data import load_image_captions
    from sdsclip_hf.losses import contrastive_loss, distillation_loss, ranking_loss
    from sdsclip_hf.ranking import CandidateScores
    from sdsclip_hf.scorers import ClipScorer, DiffusionScorer
    from sdsclip_hf.student import LatentMapper, SDSCLIPModel
    from sdsclip_hf.teacher import DiffusionTeacher
    from sdsclip_hf.trainer import SDSCLIPTrainer


def __getattr__(name: str):
    """Import a public name when it is first used, so that ``import sdsclip_hf`` is quick."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
