"""SDS-CLIP (arXiv 2307.09233) for the Hugging Face libraries: distil a text-to-image diffusion model into CLIP."""

from typing import TYPE_CHECKING

from sdsclip_hf.common.importing import import_quickly

__version__ = "0.1.0"
_WHERE = {
    "CandidateScores": "data.scores",
    "CaptionRanker": "rankers.caption_ranker",
    "ClipScorer": "evaluation.scorers",
    "DiffusionScorer": "evaluation.scorers",
    "DiffusionTeacher": "teachers.diffusion_teacher",
    "FunctionRanker": "rankers.caption_ranker",
    "LatentMapper": "students.latent_mapper",
    "PromptConfig": "prompts.config",
    "PromptTrainer": "prompts.trainer",
    "PromptedCLIP": "prompts.prompted_clip",
    "SDSCLIPConfig": "config",
    "SDSCLIPModel": "students.sdsclip_model",
    "SDSCLIPTrainer": "training.trainer",
    "contrastive_loss": "contrastive_losses",
    "distillation_loss": "losses",
    "load_image_captions": "data.loading",
    "ranking_loss": "losses",
}
__all__ = [
    "CandidateScores",
    "CaptionRanker",
    "ClipScorer",
    "DiffusionScorer",
    "DiffusionTeacher",
    "FunctionRanker",
    "LatentMapper",
    "PromptConfig",
    "PromptTrainer",
    "PromptedCLIP",
    "SDSCLIPConfig",
    "SDSCLIPModel",
    "SDSCLIPTrainer",
    "contrastive_loss",
    "distillation_loss",
    "load_image_captions",
    "ranking_loss",
]  # written out, for type checkers

if TYPE_CHECKING:
    from sdsclip_hf.config import SDSCLIPConfig
    from sdsclip_hf.contrastive_losses import contrastive_loss
    from sdsclip_hf.data.loading import load_image_captions
    from sdsclip_hf.data.scores import CandidateScores
    from sdsclip_hf.evaluation.scorers import ClipScorer, DiffusionScorer
    from sdsclip_hf.losses import distillation_loss, ranking_loss
    from sdsclip_hf.prompts.config import PromptConfig
    from sdsclip_hf.prompts.prompted_clip import PromptedCLIP
    from sdsclip_hf.prompts.trainer import PromptTrainer
    from sdsclip_hf.rankers.caption_ranker import CaptionRanker, FunctionRanker
    from sdsclip_hf.students.latent_mapper import LatentMapper
    from sdsclip_hf.students.sdsclip_model import SDSCLIPModel
    from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
    from sdsclip_hf.training.trainer import SDSCLIPTrainer
else:  # a type checker would take any name for one that there is

    def __getattr__(name: str):
        """Import a public name when it is first used, so that ``import sdsclip_hf`` is quick."""
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_quickly(f"{__name__}.{_WHERE[name]}"), name)
