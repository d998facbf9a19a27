"""``sdsclip env``: what a report of a bug needs to tell of the machine. No token is printed, only whether there is one."""

import argparse
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
from accelerate.commands.config.config_args import default_config_file
from huggingface_hub import constants

from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.common.devices import default_device
from sdsclip_hf.common.resources import git_revision, versions

OPTIONAL = ("torchvision", "deepspeed", "gradio", "textblob", "tensorboard", "trackio", "wandb")
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
SETTINGS = (
    *("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_HUB_OFFLINE"),
    *("HF_HUB_DISABLE_XET", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "NCCL_DEBUG", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"),
    *("ACCELERATE_MIXED_PRECISION", "WORLD_SIZE"),
)
GIB = 2**30


def environment() -> dict[str, str]:
    """What is told, by its name, in the order in which it is printed."""
    told = {"sdsclip_hf revision": git_revision() or "no git checkout"}
    told |= {"Python": platform.python_version(), "platform": platform.platform()}
    told |= versions() | {name: _version(name) for name in OPTIONAL}
    told |= {"torch build": _torch_build(), **_devices()}
    memory = psutil.virtual_memory()
    told["memory"] = f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} available"
    told["CPU cores"] = f"{os.cpu_count()}, of which PyTorch takes {torch.get_num_threads()}"
    told["accelerate's default configuration"] = _there(Path(default_config_file))
    told["token stored by hf auth login"] = _there(Path(constants.HF_TOKEN_PATH))
    told |= {name: "set" if os.environ.get(name) else "not set" for name in SECRETS}
    return told | {name: _without_password(os.environ[name]) for name in SETTINGS if name in os.environ}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _torch_build() -> str:
    built = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    named = [f"{name} {number}" for name, number in built.items() if number]
    return f"{', '.join(named) or 'CPU'}; {torch.backends.cpu.get_cpu_capability()}"


def _devices() -> dict[str, str]:
    """Each accelerator with its memory."""
    if not torch.accelerator.is_available():
        return {"accelerator": "none"}
    kind = default_device().type
    if kind != "cuda":
        return {"accelerator": f"{torch.accelerator.device_count()} x {kind}"}
    devices = {}
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        capability = f"compute capability {found.major}.{found.minor}"
        devices[f"cuda:{number}"] = f"{found.name}, {found.total_memory / GIB:.1f} GiB, {capability}"
    return devices


def _there(file: Path) -> str:
    return "present" if file.is_file() else "absent"


def _without_password(value: str) -> str:
    """A setting as it stands, but for what stands before the host of an address (user:password@)."""
    scheme, found, rest = value.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if found else value


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """``sdsclip env``."""
    argparse.ArgumentParser(prog="sdsclip env", description=__doc__.replace("``", "")).parse_args(argv)
    told = environment()
    width = max(map(len, told))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in told.items()))
