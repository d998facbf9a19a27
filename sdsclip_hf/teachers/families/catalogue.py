"""Which family a pipeline belongs to."""

from sdsclip_hf.teachers.families.aura_flow import AuraFlow
from sdsclip_hf.teachers.families.cogview_4 import CogView4
from sdsclip_hf.teachers.families.family import Family
from sdsclip_hf.teachers.families.flux import Flux
from sdsclip_hf.teachers.families.flux_2 import Flux2
from sdsclip_hf.teachers.families.krea_2 import Krea2
from sdsclip_hf.teachers.families.lumina_2 import Lumina2
from sdsclip_hf.teachers.families.pixart import PixArt
from sdsclip_hf.teachers.families.qwen_image import QwenImage
from sdsclip_hf.teachers.families.sana import Sana
from sdsclip_hf.teachers.families.stable_diffusion import StableDiffusion
from sdsclip_hf.teachers.families.stable_diffusion_3 import StableDiffusion3
from sdsclip_hf.teachers.families.stable_diffusion_xl import StableDiffusionXL
from sdsclip_hf.teachers.families.z_image import ZImage

FAMILIES: tuple[type[Family], ...] = (
    *(StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, Flux2, Sana, ZImage, PixArt, QwenImage),
    *(Lumina2, AuraFlow, Krea2, CogView4),
)
BY_PIPELINE = {pipeline: family for family in FAMILIES for pipeline in family.pipelines}


def family_of(name: str, pipeline: str) -> type[Family]:
    """The family of a pipeline's class.

    Args:
        name: of the teacher, for the message.
        pipeline: the class, as ``model_index.json`` tells it.

    Raises:
        ValueError: it is none of those that can be teachers.
    """
    if pipeline not in BY_PIPELINE:
        raise ValueError(
            f"the teacher {name!r} is a {pipeline}, which cannot be one: a teacher predicts noise or velocity for a latent, "
            f"given nothing but a caption. Give one of {', '.join(BY_PIPELINE)} (`sdsclip teachers` tells of each)."
        )
    return BY_PIPELINE[pipeline]
