"""The tensors in a file of weights: safetensors, a pickle or a TorchScript archive. Nothing in it is run."""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

NESTS = ("state_dict", "model_state_dict", "model", "module", "ema", "model_ema", "ema_state_dict", "state_dict_ema")
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile and modules that hold the model
STORAGES = {"Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32, "Double": torch.float64}
STORAGES |= {"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8}
STORAGES |= {"Bool": torch.bool}
OPENAI = "__torch__.multimodal.model.multimodal_transformer"  # where the classes of OpenAI's archives come from


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Args:
        tensors: by name, without the prefixes that wrappers add to all names.
        entry: under which key of the file they stood, dots between the levels; None where there is one state dict alone.
        activation: ``gelu`` or ``quick_gelu`` where the file itself tells, as TorchScript archives do.
    """

    tensors: dict[str, Tensor]
    entry: str | None = None
    activation: str | None = None


def read_weights(path: Path, entry: str | None = None) -> WeightFile:
    """Read the tensors of a model out of a file, on the CPU.

    Args:
        path: of the file.
        entry: the key under which they stand, dots between the levels; default: the first of ``NESTS`` that is there.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds more than tensors, or none, or nothing under ``entry``.
    """
    activation = None
    if path.suffix == ".safetensors":
        content: Any = load_file(path)
    elif root := _torchscript_root(path):
        content, activation = _read_torchscript(path, root)
    else:
        content = _load_tensors(path)
    found, keys = _nested(path, content, entry)
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"{path} holds no tensors under {'.'.join(keys) or 'its top level'}, whose keys are {_told(found)}. Give "
            "another key as --checkpoint_key, or another file."
        )
    return WeightFile(_without_prefixes(tensors), ".".join(keys) or None, activation)


def _load_tensors(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        wanted = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if wanted is None:
            reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines() or [type(error).__name__]
            raise OSError(f"it is no file of weights, or a damaged one: {reason[0]}") from error
        raise ValueError(
            f"{path} holds more than tensors: it wants {wanted[1]}. Such a file can run any code, so it is not read. If you "
            "trust where it comes from, take the tensors out once, in an environment that has what it wants: python -c "
            f"\"import torch; torch.save(torch.load('{path}', 'cpu', weights_only=False)['state_dict'], 'weights.pt')\"; "
            "then give weights.pt."
        ) from error


def _nested(path: Path, content: Any, entry: str | None) -> tuple[Mapping, list[str]]:
    """The mapping that holds the tensors, and the keys that lead there."""
    keys: list[str] = []
    wanted = entry.split(".") if entry else None
    while isinstance(content, Mapping):
        nests = [wanted[0]] if wanted else NESTS if wanted is None else ()
        found = next((key for key in nests if isinstance(content.get(key), Mapping)), None)
        if wanted and found is None:
            raise ValueError(
                f"{path} has no {entry!r}: the keys at {'.'.join(keys) or 'its top level'} are {_told(content)}. Give one "
                "that holds a model's weights as --checkpoint_key."
            )
        if found is None:
            return content, keys
        content, keys, wanted = content[found], [*keys, found], wanted and wanted[1:]
    raise ValueError(
        f"{path} holds a {type(content).__name__}, not tensors by their names. Save the model's state_dict() and give that."
    )


def _told(content: Mapping) -> str:
    names = [str(key) for key in content]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


# TorchScript archives, which torch.jit.load would run


def _torchscript_root(path: Path) -> str | None:
    """The folder inside a TorchScript archive; None of another file."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    roots = [name.removesuffix("/constants.pkl") for name in names if name.endswith("/constants.pkl")]
    return next((root for root in roots if f"{root}/data.pkl" in names), None)


def _read_torchscript(path: Path, root: str) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of all modules by their dotted names, and the activation that the names of the classes tell."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{root}/data.pkl") as file:
        reader = _ModulesOnly(file, archive, root)
        try:
            module = reader.load()
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} is a TorchScript archive that holds more than modules and tensors: {error}. Save its state_dict() "
                "by torch.save, where you trust it, and give that."
            ) from error
    if any(name.startswith(OPENAI) or name.endswith(".QuickGELU") for name in reader.classes):
        activation = "quick_gelu"
    else:
        activation = "gelu" if any(name.endswith(".GELU") for name in reader.classes) else None
    return _flat(module), activation


class _Module:
    """Stands for a module of any class: what it holds, by name."""

    state: Mapping = {}

    def __setstate__(self, state: Mapping) -> None:
        self.state = state


class _ModulesOnly(pickle.Unpickler):
    """Reads an archive's ``data.pkl``. The only things it makes are tensors, lists, mappings and [`_Module`]."""

    def __init__(self, file, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self.archive, self.root, self.classes = archive, root, set()

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            self.classes.add(f"{module}.{name}")
            return _Module
        if module == "torch" and name.removesuffix("Storage") in STORAGES:
            return STORAGES[name.removesuffix("Storage")]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        known = {("torch._utils", "_rebuild_tensor_v2"): _tensor, ("collections", "OrderedDict"): OrderedDict}
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it wants {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        content = self.archive.read(f"{self.root}/data/{key}")
        return torch.frombuffer(bytearray(content), dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _flat(module: Any, before: str = "") -> dict[str, Tensor]:
    found = {}
    for name, value in module.state.items() if isinstance(module, _Module) else ():
        if isinstance(value, Tensor):
            found[f"{before}{name}"] = value
        else:
            found |= _flat(value, f"{before}{name}.")
    return found
