"""Run a study with the flow model of train_shapes_flow.py at a tenth of the cost: ``python tools/study_flow.py``.

Takes the options of recipes/study.py, but for ``--workers``. The denoiser sees one place for the 256 of an absent T5, which
changes what it predicts by less than 1e-5 (tests/project/test_train_shapes.py); files of one serve the other.
"""

import sys

from torch import Tensor
from train_shapes_flow import T5_PLACES, OneForAll

from sdsclip_hf.commands import study
from sdsclip_hf.teachers.conditions import Conditions
from sdsclip_hf.teachers.families.family import Family
from sdsclip_hf.teachers.families.stable_diffusion_3 import StableDiffusion3
from sdsclip_hf.teachers.schedule import Level


def predict(family: StableDiffusion3, latents: Tensor, level: Level, conditions: Conditions) -> Tensor:
    """As the family's own, of a checkpoint without T5, whose places hold one and the same vector."""
    words = conditions["encoder_hidden_states"][:, : 1 - T5_PLACES]
    family.denoiser.set_attn_processor(OneForAll())
    return Family.predict(family, latents, level, conditions | {"encoder_hidden_states": words})


if __name__ == "__main__":
    StableDiffusion3.predict = predict
    named = any(word.startswith("--config") for word in sys.argv)
    study.main(sys.argv[1:] if named else ["--config", "study_flow", *sys.argv[1:]])
