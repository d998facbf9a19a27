"""In which number format the student's passes are computed, where a run does not say."""

import os
from typing import Any

import torch


def mixed_precision() -> str | None:
    """The best that this machine has: ``bf16`` on a GPU that has it, ``fp16`` on another GPU, None on CPUs."""
    if not torch.cuda.is_available():
        return None
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def settle_precision(config: Any) -> None:
    """Set ``bf16`` or ``fp16`` of a configuration whose ``precision`` is ``auto``, unless it or its launcher decides."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no" or "ACCELERATE_USE_DEEPSPEED" in os.environ
    if config.precision == "auto" and not (
        launched or config.bf16 or config.fp16 or config.use_cpu or config.deepspeed
    ):
        config.bf16, config.fp16 = (mixed_precision() == name for name in ("bf16", "fp16"))
