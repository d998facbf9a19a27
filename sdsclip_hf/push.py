"""Push a finished run to the Hub: the plain CLIP, what the method adds, card and scores, in one commit."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitInfo

from sdsclip_hf.cards import CARD_FILE, EVAL_RESULTS, MODEL_NAME
from sdsclip_hf.hub import HubError, check_holds_clip, claim_repo, push_files
from sdsclip_hf.ranking import portable_name
from sdsclip_hf.student import MAPPER_FILE

ADAPTER_CONFIG = "adapter/adapter_config.json"
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
PROCESSOR = (
    *("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
    *("merges.txt", "special_tokens_map.json", "added_tokens.json"),
)
BESIDE = (MAPPER_FILE, "adapter/adapter_*", CARD_FILE, f"{EVAL_RESULTS}/*.yaml", "run.yaml", "results.json", "*.png")
STALE = (*WEIGHTS, MAPPER_FILE, "adapter/*")  # of an earlier push, where this one has none


def model_files(folder: Path, model_name: str) -> dict[str, Path | bytes]:
    """What of a run's folder belongs on the Hub: path there -> file, or its content where that is changed on the way.

    Checkpoints, logs and notes of unreadable images stay. The card gets the model's name; the adapter's configuration
    loses the local path of its base model.

    Raises:
        ValueError: the folder holds no exported CLIP.
    """
    _check_is_export(folder)
    patterns = ("config.json", *WEIGHTS, *PROCESSOR, *BESIDE)
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files: dict[str, Path | bytes] = {
        name: path
        for name, path in found.items()
        if any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)
    }
    if CARD_FILE in files:
        files[CARD_FILE] = found[CARD_FILE].read_text(encoding="utf-8").replace(MODEL_NAME, model_name).encode()
    if ADAPTER_CONFIG in files:
        settings = json.loads(found[ADAPTER_CONFIG].read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = portable_name(settings.get("base_model_name_or_path") or "")
        files[ADAPTER_CONFIG] = json.dumps(settings, indent=2).encode()
    return files


def _check_is_export(folder: Path) -> None:
    remedy = "give the folder that a finished run left, with config.json, model.safetensors and the processor's files"
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; {remedy}.")
    config = folder / "config.json"
    if not config.is_file() or not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no exported model; {remedy}.")
    model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    if model_type != "clip":
        raise ValueError(f"{folder} holds a model of type {model_type!r}, not 'clip'; {remedy}.")


def push_model(
    folder: str | Path,
    repo_id: str,
    *,
    message: str = "Push of a finished run",
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    extra: dict[str, Path] | None = None,
    delete_patterns: Sequence[str] = (),
) -> CommitInfo:
    """Put an export into a model repository, in one commit; files of the model that it no longer has are removed.

    Args:
        folder: what [`SDSCLIPTrainer.save_model`] wrote.
        repo_id, message, token, private, revision, delete_patterns: see [`hub.push_files`].
        extra: further files, path in the repository -> file.

    Raises:
        ValueError: the folder holds no exported CLIP, there is no token, or the name cannot be one.
        HubError: the Hub could not be reached, or refused; the message tells what is missing there, and the command that
            pushes it.
    """
    folder = Path(folder)
    _check_is_export(folder)
    try:
        where = {"token": token, "private": private, "revision": revision}
        repo_id = repo_id if "/" in repo_id else claim_repo(repo_id, **where)
        files = model_files(folder, repo_id) | (extra or {})
        return push_files(files, repo_id, message=message, delete_patterns=(*STALE, *delete_patterns), **where)
    except HubError as error:
        names = ", ".join(list(model_files(folder, repo_id))[:4])
        command = finishing_command(folder, repo_id, private, revision)
        raise HubError(
            f"{error} The commit “{message}” is missing on the Hub as a whole ({names} and the rest); all of it is in "
            f"{folder}. To push it: {command}",
            error.passing,
        ) from error


def finishing_command(folder: str | Path, repo_id: str, private: bool | None, revision: str | None) -> str:
    """What to type to push a folder later."""
    words = ["sdsclip", "push", str(folder), repo_id]
    return shlex.join(words + ["--private"] * bool(private) + (["--revision", revision] if revision else []))


def main(argv: Sequence[str] | None = None) -> None:
    """``sdsclip push``."""
    parser = argparse.ArgumentParser(prog="sdsclip push", description=__doc__)
    parser.add_argument("folder", type=Path, help="the output folder of a finished run")
    parser.add_argument("repo_id", help="NAMESPACE/NAME on the Hub; it is created where there is none")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to, created where there is none; default: main")
    parser.add_argument("--message", default="Push of a finished run", help="of the commit")
    parser.add_argument(
        "--force", action="store_true", help="push even into a repository that holds something other than a CLIP"
    )
    args = parser.parse_args(argv)
    where = {"private": args.private, "revision": args.revision}
    try:
        _check_is_export(args.folder)
        repo_id = claim_repo(args.repo_id, **where)
        if not args.force:
            check_holds_clip(repo_id, revision=args.revision)
        print(f"On the Hub: {push_model(args.folder, repo_id, message=args.message, **where)}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
