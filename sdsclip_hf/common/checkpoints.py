"""What makes a checkpoint whole, and whether it belongs to the run that wants to go on from it."""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from torch import nn

RUN_FILE = "sdsclip_run.json"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(model: nn.Module) -> str:
    """A short digest of a model's weights: names, shapes, dtypes, and the exact sums of their bits as integers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        integers = tensor.detach().contiguous().reshape(-1).view(_INTEGERS[tensor.element_size()])
        total = integers.sum(dtype=torch.int64).item()  # unlike a sum of floats, the same in any order
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{total}".encode())
    return digest.hexdigest()[:16]


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The whole checkpoint in a run's folder that was written last; one whose writing was cut short is passed over.

    That is not the one of most steps where a run went on from an earlier one than it had.
    """
    whole = [folder for folder, (number, _) in _written(Path(output_dir)).items() if number >= 0]
    return str(whole[-1]) if whole else None


def seal(checkpoint: Path, identity: dict) -> None:
    """Mark a checkpoint as whole, with what tells its run from others. To be called last."""
    last = max((number for number, _ in _written(checkpoint.parent).values()), default=-1)
    write_json(checkpoint / RUN_FILE, identity | {"number": last + 1})


def remove_old(run: Path, limit: int | None, best: str | None) -> None:
    """Delete a run's checkpoints but the ``limit`` that were written last (None: all), the very last and ``best``."""
    folders = list(_written(run))
    spare = [folder for folder in folders[:-1] if best is None or folder != Path(best)]
    for folder in spare[: max(0, len(folders) - limit)] if limit else []:
        shutil.rmtree(folder, ignore_errors=True)


def _written(run: Path) -> dict[Path, tuple[int, int]]:
    """A run's checkpoints as they were written: the number of each among them, -1 where it is not whole, and its step."""
    found = {}
    for folder in run.glob("checkpoint-*"):
        step, mark = folder.name.rpartition("-")[2], folder / RUN_FILE
        if step.isdigit():
            number = json.loads(mark.read_text()).get("number", 0) if mark.is_file() else -1
            found[folder] = number, int(step)
    return dict(sorted(found.items(), key=lambda entry: entry[1]))


def unseal(checkpoint: Path) -> None:
    """Take the mark off a checkpoint that is about to be written anew."""
    (checkpoint / RUN_FILE).unlink(missing_ok=True)


def check_same_run(checkpoint: Path, identity: dict, defaults: dict) -> None:
    """Raise ValueError unless ``checkpoint`` is whole and was sealed with the same base weights and settings.

    Args:
        checkpoint: its folder.
        identity: of the run that wants to go on from it.
        defaults: of the settings; those that the checkpoint does not know, since they came later, had these.
    """
    if not (checkpoint / RUN_FILE).is_file():
        raise ValueError(
            f"{checkpoint} is not a whole checkpoint of this trainer: it has no {RUN_FILE}. Give another folder to "
            "--resume_from_checkpoint, or start anew."
        )
    then, now = json.loads((checkpoint / RUN_FILE).read_text()), json.loads(json.dumps(identity))
    if then["base_fingerprint"] != now["base_fingerprint"]:
        raise ValueError(
            f"the checkpoint {checkpoint} belongs to a run that started from {then['base_model']!r}, whose weights "
            f"differ from those of {now['base_model']!r}. Give that model, or another --resume_from_checkpoint."
        )
    if then["teacher_fingerprint"] != now["teacher_fingerprint"]:
        raise ValueError(
            f"the checkpoint {checkpoint} belongs to a run with the teacher {then['teacher']!r}, whose weights differ "
            f"from those of {now['teacher']!r}. Give that --teacher_name_or_path, or another --resume_from_checkpoint."
        )
    if then.get("scores_fingerprint") != now.get("scores_fingerprint"):
        raise ValueError(
            f"the checkpoint {checkpoint} belongs to a run with other ranking scores. Give those --ranking_scores, or start "
            "anew in another --output_dir."
        )
    settings = defaults | then["settings"]
    changed = [
        f"--{name} was {settings.get(name)!r} and is now {value!r}"
        for name, value in now["settings"].items()
        if settings.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"the checkpoint {checkpoint} belongs to a run with other settings: {'; '.join(changed)}. Use the same "
            "settings, or start anew in another --output_dir."
        )


def write_json(path: Path, content: dict) -> None:
    """Write a file at once or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
