"""What makes a checkpoint whole, and whether it belongs to the run that wants to go on from it."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sdsclip_hf.common.writing import OWNED, is_left, own_name, owned, remove, sweep, telling_full_disk, write_json

logger = logging.getLogger(__name__)

RUN_FILE, UNFINISHED = "sdsclip_run.json", "unfinished"
WRITTEN_TO = (".", "checkpoint-*", "compared/*", ".eval_results")  # of a run's folder
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(model: nn.Module | Mapping[str, Tensor]) -> str:
    """A short digest of a model's weights, or of tensors by name: names, shapes, dtypes, and the exact sums of their bits as
    integers."""
    digest, weights = hashlib.sha256(), model.state_dict() if isinstance(model, nn.Module) else model
    for name, tensor in sorted(weights.items()):
        if type(tensor).dequantize is not Tensor.dequantize:  # of a quantisation library, which has no bits of its own
            tensor = tensor.dequantize()
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
    broken = [folder for folder, (number, _) in written.items() if number < 0 and (folder / RUN_FILE).is_file()]
    wrong, found = {folder: damage(folder) for folder in broken}, None
    for folder in (folder for folder, (number, _) in reversed(written.items()) if number >= 0):
        what = damage(folder)
        if what is None:
            found = str(folder)
            break
        wrong[folder] = what
    for folder, what in wrong.items():
        logger.warning(f"{folder} is damaged: {what}. The newest whole checkpoint is {found}.")
    return found


@contextmanager
def new_checkpoint(checkpoint: Path, needs: int) -> Iterator[None]:
    """An empty folder for a checkpoint, which is to be sealed at the end; where writing fails, it goes.

    Args:
        checkpoint: its folder. What stands there goes.
        needs: bytes that will be written.

    Raises:
        NoRoomError: the disk is full.
    """
    with telling_full_disk(checkpoint, needs):
        remove(checkpoint)
        checkpoint.mkdir(parents=True)
        with owned(checkpoint / UNFINISHED) as mark:
            try:
                mark.touch()
                yield
            except BaseException:
                remove(checkpoint)
                raise


def sweep_run(run: Path, alone: bool = False) -> None:
    """Remove what killed processes left half-written in a run's folder, checkpoints included; see [`sweep`]."""
    for mark in run.glob(f"checkpoint-*/{UNFINISHED}.*"):
        if is_left(mark, alone) and not (mark.parent / RUN_FILE).is_file():
            remove(mark.parent)
    sweep(run, alone, WRITTEN_TO)


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
    if not isinstance(mark, dict) or not {"base_fingerprint", "teacher_fingerprint"} <= mark.keys():
        return None
    if not isinstance(mark.get("settings"), dict) or not isinstance(mark.get("number", 0), int):
        return None
    told = mark.pop("seal", None)
    if told is None:  # as earlier versions of this package sealed, which told no digests
        return None if "files" in mark else mark
    return mark if told == _digest_of(mark) else None


def _digest_of(mark: dict) -> str:
    return hashlib.blake2b(json.dumps(mark, sort_keys=True).encode(), digest_size=16).hexdigest()


def _files(checkpoint: Path) -> list[Path]:
    paths = (path for path in checkpoint.rglob("*") if path.is_file())
    return sorted(path for path in paths if path.name != RUN_FILE and not OWNED.fullmatch(path.name))


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
        remove(folder.replace(own_name(folder)))  # by another name, so that half of one never looks damaged


def _written(run: Path) -> dict[Path, tuple[int, int]]:
    """A run's checkpoints as they were written: the number of each among them, -1 where it is not whole, and its step."""
    found = {}
    for folder in run.glob("checkpoint-*"):
        step = folder.name.rpartition("-")[2]
        if step.isdigit():
            mark = _mark(folder)
            found[folder] = -1 if mark is None else mark.get("number", 0), int(step)
    return dict(sorted(found.items(), key=lambda entry: entry[1]))


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
        dtype, dtype_now = (one["settings"].get("teacher_dtype") for one in (then, now))
        also = f" in --teacher_dtype {dtype}" if dtype != dtype_now else ""
        raise ValueError(
            f"the checkpoint {checkpoint} belongs to a run with the teacher {then['teacher']!r}, whose weights differ "
            f"from those of {now['teacher']!r}. Give that --teacher_name_or_path{also}, or another "
            "--resume_from_checkpoint."
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
    changed = _changes(_flat(defaults | then["settings"]), _flat(now["settings"]), "is now")
    if changed:
        raise ValueError(
            f"the checkpoint {checkpoint} belongs to a run with other settings: {'; '.join(changed)}. Use the same "
            "settings, or start anew in another --output_dir."
        )
    return [f"{change} from here on." for change in _changes(_flat(then.get("obeyed", {})), _flat(now["obeyed"]), "is")]


def _flat(settings: dict) -> dict:
    """Settings by their names in messages, the fields of a PEFT configuration one by one."""
    flat = {f"--{name}": value for name, value in settings.items() if name != "peft_config"}
    adapter = settings.get("peft_config")
    flat["peft_config"] = "none" if adapter in (None, "None") else "one"  # earlier versions wrote a text
    return flat | (
        {f"peft_config.{name}": value for name, value in adapter.items()} if isinstance(adapter, dict) else {}
    )


def _changes(then: dict, now: dict, word: str) -> list[str]:
    """What both know, and what differs. Other versions, of PEFT for one, may know less."""
    both = [name for name in now if name in then]
    return [f"{name} was {then[name]!r} and {word} {now[name]!r}" for name in both if then[name] != now[name]]
