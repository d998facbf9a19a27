"""Every knob of a run: `sdsclip_config` has them all, `checks` tells what does not fit."""

from sdsclip_hf.config.knobs import LORA_LAYERS, TEACHER_OFFLOADS, TEACHER_QUANTIZATIONS, TRAINABLE, Trainable, knob
from sdsclip_hf.config.sdsclip_config import SDSCLIPConfig

__all__ = [
    "LORA_LAYERS",
    "TEACHER_OFFLOADS",
    "TEACHER_QUANTIZATIONS",
    "TRAINABLE",
    "SDSCLIPConfig",
    "Trainable",
    "knob",
]
