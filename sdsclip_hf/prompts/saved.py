"""What is left of a run: the trained tensors, and a file that tells what they are and which CLIP they belong to."""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.common.errors import explain_loading, read_json
from sdsclip_hf.common.resources import versions
from sdsclip_hf.common.writing import whole_file, write_json
from sdsclip_hf.prompts.learner import PromptLearner, check_clip
from sdsclip_hf.prompts.settings import PromptSettings

WEIGHTS_FILE, CONFIG_FILE = "prompt_learner.safetensors", "prompt_config.json"
REMEDY = "Give the folder or Hub id that `sdsclip prompt-tune` left."


@dataclass(frozen=True)
class PromptRecord:
    """What ``prompt_config.json`` tells.

    Args:
        settings: of the method.
        class_names: that the prompts were trained on.
        base_model: folder or Hub id of the CLIP, and its commit where it is known.
        text_fingerprint: of its text tower, see [`text_fingerprint`].
    """

    settings: PromptSettings
    class_names: list[str]
    base_model: str
    base_revision: str | None
    text_fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """As it is written."""
        told = {"method": self.settings.method, "base_model": self.base_model, "base_revision": self.base_revision}
        told |= {"text_fingerprint": self.text_fingerprint, "class_names": self.class_names}
        return told | {"settings": self.settings.to_dict_of_settings(), "sdsclip_hf": versions()["sdsclip_hf"]}


def text_fingerprint(clip: CLIPModel) -> str:
    """Of the weights that prompts are read by, in float32 whatever they are kept in."""
    parts = {"text_model": clip.text_model, "text_projection": clip.text_projection}
    return fingerprint(
        {f"{part}.{name}": value.float() for part in parts for name, value in parts[part].state_dict().items()}
    )


def save_prompts(folder: Path, learner: PromptLearner, record: PromptRecord) -> None:
    """Write both files.

    Raises:
        NoRoomError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: one.detach().float().cpu().contiguous() for name, one in learner.trained_parameters().items()}
    with whole_file(folder / WEIGHTS_FILE, sum(4 * one.numel() for one in tensors.values())) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    write_json(folder / CONFIG_FILE, record.to_dict() | {"weights_digest": _digest(folder / WEIGHTS_FILE)})


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def find_prompts(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The folder that holds saved prompts, downloaded where it is a Hub id.

    Raises:
        OSError: there is no such folder or repository.
        ValueError: one of the two files is missing.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        for name, other in ((CONFIG_FILE, WEIGHTS_FILE), (WEIGHTS_FILE, CONFIG_FILE)):
            if not (folder / name).is_file():
                there = f" beside {other}" if (folder / other).is_file() else ""
                raise ValueError(f"{folder} holds no saved prompts: it has no {name}{there}. {REMEDY}")
        return folder
    with explain_loading("the prompts", str(name_or_path), "--prompts"):
        paths = [hf_hub_download(str(name_or_path), name, revision=revision) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    return Path(paths[0]).parent


def read_record(folder: Path) -> PromptRecord:
    """What a folder's ``prompt_config.json`` tells.

    Raises:
        ValueError: it or the tensors beside it are not what was written, or a later version of this package wrote it.
    """
    path = folder / CONFIG_FILE
    told = read_json(path, REMEDY)
    if told.get("weights_digest") != _digest(folder / WEIGHTS_FILE):
        raise ValueError(f"{folder / WEIGHTS_FILE} is not what was saved with the {CONFIG_FILE} beside it. {REMEDY}")
    try:
        known = {entry.name for entry in fields(PromptSettings)}
        unknown = sorted(set(told["settings"]) - known)
        if unknown:
            raise ValueError(
                f"{path} has settings that this version does not know ({', '.join(unknown)}); sdsclip_hf "
                f"{told.get('sdsclip_hf')} wrote it. Upgrade sdsclip_hf."
            )
        settings = PromptSettings(**told["settings"])
        names = [str(name) for name in told["class_names"]]
        return PromptRecord(settings, names, told["base_model"], told.get("base_revision"), told["text_fingerprint"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what was written ({error!r}). {REMEDY}") from error


def check_same_clip(record: PromptRecord, clip: CLIPModel) -> None:
    """Raise ValueError unless prompts were trained on this CLIP's text tower."""
    check_clip(clip)
    if text_fingerprint(clip) != record.text_fingerprint:
        raise ValueError(
            f"these prompts were trained on the text tower of {record.base_model!r}, and that of the model that was given "
            "has other weights, to which they mean nothing. Give that model, or one whose text tower was left as it was."
        )


def load_trained(learner: PromptLearner, folder: Path) -> None:
    """Put saved tensors into a learner.

    Raises:
        ValueError: they are of other names or shapes.
    """
    path = folder / WEIGHTS_FILE
    tensors = load_file(path)
    own = learner.trained_parameters()
    fits = {name: tuple(value.shape) for name, value in tensors.items()} == {
        name: tuple(value.shape) for name, value in own.items()
    }
    if not fits:
        raise ValueError(
            f"{path} and {CONFIG_FILE} beside it do not belong together: the tensors are not those of such a prompt "
            f"learner. {REMEDY}"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
