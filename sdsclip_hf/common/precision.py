"""In which number formats a run computes where it does not say: the student's passes, and the weights of frozen models."""

import os
from typing import Any, Literal, get_args

import torch
from accelerate.utils import parse_flag_from_env

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = get_args(Dtype)
OF_MIXED_PRECISION = {"bf16": "bfloat16", "fp16": "float16", None: "float32"}


def mixed_precision() -> str | None:
    """The best that this machine has: ``bf16`` on a GPU that has it, ``fp16`` on another GPU, None on CPUs."""
    if not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return None
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def settled_dtype(dtype: str, use_cpu: bool = False) -> str:
    """The number format of a frozen model's weights: the one asked for, or of ``auto`` the best that the machine has."""
    if dtype != "auto":
        return dtype
    return OF_MIXED_PRECISION[None if use_cpu else mixed_precision()]


def settle_precision(config: Any) -> None:
    """Set what a configuration leaves open: ``bf16`` or ``fp16``, unless its launcher decides, and ``teacher_dtype``."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no" or "ACCELERATE_USE_DEEPSPEED" in os.environ
    if config.precision == "auto" and not (
        launched or config.bf16 or config.fp16 or config.use_cpu or config.deepspeed
    ):
        config.bf16, config.fp16 = (mixed_precision() == name for name in ("bf16", "fp16"))
    config.teacher_dtype = settled_dtype(config.teacher_dtype, config.use_cpu)
