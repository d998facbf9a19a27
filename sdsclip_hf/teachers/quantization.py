"""The denoiser in fewer bits, by the libraries that diffusers knows."""

from importlib.util import find_spec
from typing import Any

import diffusers
import torch

from sdsclip_hf.config import TEACHER_QUANTIZATIONS

PACKAGES = dict(zip(TEACHER_QUANTIZATIONS, ("bitsandbytes", "bitsandbytes", "torchao", "optimum.quanto"), strict=True))


def quantization_config(name: str, dtype: torch.dtype) -> Any:
    """What ``from_pretrained`` of a denoiser takes as ``quantization_config``.

    Args:
        name: one of [`config.TEACHER_QUANTIZATIONS`].
        dtype: in which the denoiser computes.

    Raises:
        ValueError: an unknown name.
        ImportError: its library is not installed.
    """
    if name not in PACKAGES:
        raise ValueError(f"teacher_quantization is {name!r}; it must be one of {', '.join(PACKAGES)}.")
    package = PACKAGES[name]
    if find_spec(package.partition(".")[0]) is None:
        raise ImportError(f"--teacher_quantization {name} needs {package}: pip install {package.replace('.', '-')}.")
    if name == "bitsandbytes-4bit":
        return diffusers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if name == "bitsandbytes-8bit":
        return diffusers.BitsAndBytesConfig(load_in_8bit=True)
    if name == "quanto-int8":
        return diffusers.QuantoConfig(weights_dtype="int8")
    from torchao.quantization import Int8WeightOnlyConfig

    return diffusers.TorchAoConfig(Int8WeightOnlyConfig())
