"""What makes a checkpoint whole, and whether it belongs to the run that wants to go on from it."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

logger = logging.getLogger(__name__)

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
    """The whole checkpoint in a run's folder that was written last. One whose writing was cut short is passed over, and
    so is one that is damaged, with a warning.

    That is not the one of most steps where a run went on from an earlier one than it had.
    """
    written = _written(Path(output_dir))
    sealed = [folder for folder in reversed(written) if (folder / RUN_FILE).is_file()]
    wrong = {
        folder: damage(folder) for folder in sealed if written[folder][0] < 0
    }  # in no order, their seals being broken
    found = None
    for folder in (folder for folder in sealed if folder not in wrong):
        wrong[folder] = damage(folder)
        if wrong[folder] is None:
            found = str(folder)
            break
    for folder, what in wrong.items():
        if what:
            logger.warning(f"{folder} is damaged: {what}. The newest whole checkpoint is {found}.")
    return found


def seal(checkpoint: Path, identity: dict) -> None:
    """Mark a checkpoint as whole, with what tells its run from others and a digest of each file. To be called last."""
    last = max((number for number, _ in _written(checkpoint.parent).values()), default=-1)
    files = {path.relative_to(checkpoint).as_posix(): _digest(path) for path in _files(checkpoint)}
    mark = identity | {"number": last + 1, "files": files}
    write_json(checkpoint / RUN_FILE, mark | {"seal": _digest_of(mark)})


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a sealed checkpoint: a file that is gone or is not what was saved. None: nothing."""
    mark = _mark(checkpoint)
    if mark is None:
        return f"{RUN_FILE} is not what was written"
    for name, digest in mark.get("files", {}).items():  # earlier versions of this package did not tell them
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if _digest(checkpoint / name) != digest:
            return f"{name} is not what was saved"
    return None


def _mark(checkpoint: Path) -> dict | None:
    """What a checkpoint's seal tells; None where there is none, or where it is not as it was written."""
    try:
        mark = json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(mark, dict) or not {"base_fingerprint", "teacher_fingerprint", "settings"} <= mark.keys():
        return None
    told = mark.pop("seal", None)
    return mark if told is None or told == _digest_of(mark) else None


def _digest_of(mark: dict) -> str:
    return hashlib.blake2b(json.dumps(mark, sort_keys=True).encode(), digest_size=16).hexdigest()


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != RUN_FILE)


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
        step = folder.name.rpartition("-")[2]
        if step.isdigit():
            mark = _mark(folder)
            found[folder] = -1 if mark is None else mark.get("number", 0), int(step)
    return dict(sorted(found.items(), key=lambda entry: entry[1]))


def unseal(checkpoint: Path) -> None:
    """Take the mark off a checkpoint that is about to be written anew."""
    (checkpoint / RUN_FILE).unlink(missing_ok=True)


def check_same_run(checkpoint: Path, identity: dict, defaults: dict) -> list[str]:
    """Raise ValueError unless ``checkpoint`` is whole and was sealed with the same base weights, data and settings.

    Args:
        checkpoint: its folder.
        identity: of the run that wants to go on from it.
        defaults: of the settings; those that the checkpoint does not know, since they came later, had these.

    Returns:
        What else differs and is obeyed from here on, a sentence each.
    """
    if not (checkpoint / RUN_FILE).is_file():
        raise ValueError(
            f"{checkpoint} is not a whole checkpoint of this trainer: it has no {RUN_FILE}. Give another folder to "
            "--resume_from_checkpoint, or start anew."
        )
    wrong = damage(checkpoint)
    if wrong:
        raise ValueError(
            f"the checkpoint {checkpoint} is damaged: {wrong}. Give an earlier one to --resume_from_checkpoint; last takes "
            "the newest that is whole."
        )
    then, now = _mark(checkpoint) or {}, json.loads(json.dumps(identity))
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
    data, data_now = then.get("data") or {}, now.get("data") or {}
    other = next((what for what in data if what in data_now and data[what] != data_now[what]), None)
    if other is not None:
        told = f"{data['rows']} rows, and there are {data_now['rows']} now" if other == "rows" else f"other {other}"
        raise ValueError(
            f"the checkpoint {checkpoint} belongs to a run on {told}, or on the same in another order. Give the same data, "
            "or start anew in another --output_dir."
        )
    settings = defaults | then["settings"]
    changed = [
        f"{name} was {was!r} and is now {value!r}" for name, was, value in _changes(settings, now["settings"], "--")
    ]
    if changed:
        raise ValueError(
            f"the checkpoint {checkpoint} belongs to a run with other settings: {'; '.join(changed)}. Use the same "
            "settings, or start anew in another --output_dir."
        )
    return [
        f"{name} was {was!r} and is {value!r} from here on."
        for name, was, value in _changes(then.get("obeyed") or now["obeyed"], now["obeyed"], "--")
    ]


def _changes(then: dict, now: dict, prefix: str) -> Iterator[tuple[str, object, object]]:
    """Settings that differ, by name; of a PEFT configuration those of its fields that both versions of PEFT know."""
    for name, value in now.items():
        if name not in then and name != "peft_config":  # earlier versions of this package did not tell it
            continue
        was = then.get(name)
        if name == "peft_config" and isinstance(was, (dict, str)) and isinstance(value, dict):
            known = {field: value[field] for field in value if field in was} if isinstance(was, dict) else {}
            yield from _changes(was if isinstance(was, dict) else {}, known, "peft_config.")
        elif was != value and {str(was), str(value)} != {"None"}:
            yield prefix + name, was, value


def write_json(path: Path, content: dict) -> None:
    """Write a file at once or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
