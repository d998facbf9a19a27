"""Push a finished run to the Hub: the plain CLIP, what the method adds, card and scores, in one commit."""

import json
import shlex
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitInfo

from sdsclip_hf.cards.model_card import CARD_FILE, EVAL_RESULTS, MODEL_NAME
from sdsclip_hf.data.scores import portable_name
from sdsclip_hf.hub.attempts import HubError
from sdsclip_hf.hub.commits import check_holds_clip, check_login, check_repo_id, claim_repo, push_files
from sdsclip_hf.reports.page import REPORT_FILE
from sdsclip_hf.students.loading import is_dual_encoder
from sdsclip_hf.students.processor_files import VOCABULARIES
from sdsclip_hf.students.sdsclip_model import MAPPER_FILE

ADAPTER_CONFIG = "adapter/adapter_config.json"
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
PROCESSOR = (
    *("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("merges.txt", "special_tokens_map.json", "added_tokens.json", *VOCABULARIES),
)
BESIDE = (
    MAPPER_FILE,
    "adapter/adapter_*",
    CARD_FILE,
    f"{EVAL_RESULTS}/*.yaml",
    "run.yaml",
    "results.json",
    "results.md",
    REPORT_FILE,
    "*.png",
)
OTHER_WEIGHTS = ("pytorch_model*.bin*", "*.msgpack", "tf_model.h5", "*.safetensors")
STALE = (*OTHER_WEIGHTS, *WEIGHTS, *PROCESSOR, *BESIDE, "adapter/*")  # of an earlier push, where this one has none


def model_files(folder: Path, model_name: str, revision: str | None = None) -> dict[str, Path | bytes]:
    """What of a run's folder belongs on the Hub: path there -> file, or its content where that is changed on the way.

    Checkpoints, logs and notes of bad images stay. The card gets the model's name, and the branch if it is not
    main; the adapter's configuration loses the local path of its base model.

    Raises:
        ValueError: the folder holds no exported model.
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
        text = found[CARD_FILE].read_text(encoding="utf-8")
        if revision not in (None, "main"):
            text = text.replace(
                f'from_pretrained("{MODEL_NAME}"', f'from_pretrained("{MODEL_NAME}", revision="{revision}"'
            )
        files[CARD_FILE] = text.replace(MODEL_NAME, model_name).encode()
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
    if not config.is_file() or not _has_weights(folder):
        raise ValueError(f"{folder} holds no exported model; {remedy}.")
    model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    if not is_dual_encoder(model_type):
        raise ValueError(f"{folder} holds a model of type {model_type!r}, which is no dual encoder; {remedy}.")


def _has_weights(folder: Path) -> bool:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / shard).is_file() for shard in shards)


def push_model(
    folder: str | Path,
    repo_id: str,
    *,
    message: str = "Push of a finished run",
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    force: bool = False,
    leave_out: Sequence[str] = (),
    extra: dict[str, Path] | None = None,
    delete_patterns: Sequence[str] = (),
) -> CommitInfo:
    """Put an export into a model repository, in one commit; what an earlier push left there and this one lacks is removed.

    Args:
        folder: what [`SDSCLIPTrainer.save_model`] wrote.
        repo_id, message, token, private, revision, delete_patterns: see [`push_files`].
        force: push even where the repository holds something other than a CLIP.
        leave_out: patterns of files that stay.
        extra: further files, path in the repository -> file.

    Raises:
        ValueError: the folder holds no exported CLIP, or the name cannot be one.
        HubError: there is no token, the repository holds something else, or the Hub could not be reached, or refused; the
            message tells what is missing there, and the command that pushes it.

    Example:

    ```python
    from sdsclip_hf.cards.push import push_model
    from sdsclip_hf.shapes import model_path

    # Logged in by `hf auth login`; "org" is your name or your organisation's.
    commit = push_model(model_path("student"), "org/my-clip", message="A first try")
    print(commit.commit_message)  # A first try
    ```
    """
    folder, where = Path(folder), {"token": token, "private": private, "revision": revision}
    _check_is_export(folder)
    check_repo_id(repo_id)
    try:
        try:
            check_login(token)
            repo_id = claim_repo(repo_id, **where)
            if not force:
                check_holds_clip(repo_id, token=token, revision=revision)
        except ValueError as error:
            raise HubError(str(error)) from None
        files = model_files(folder, repo_id, revision)
        kept = {name: file for name, file in files.items() if not any(fnmatchcase(name, one) for one in leave_out)}
        return push_files(
            kept | (extra or {}), repo_id, message=message, delete_patterns=(*STALE, *delete_patterns), **where
        )
    except HubError as error:
        weights_first = sorted(model_files(folder, repo_id), key=lambda name: (not name.endswith(".safetensors"), name))
        names = ", ".join(weights_first[:4])
        words = ["sdsclip", "push", str(folder), repo_id, *["--private"] * bool(private), *["--force"] * force]
        command = shlex.join(words + (["--revision", revision] if revision else []))
        raise HubError(
            f"{error} The commit “{message}” {'may be missing' if error.unseen else 'is missing'} on the Hub as a whole "
            f"({names} and the rest); all of it is in {folder}. To push it, logged in: {command}",
            error.passing,
            error.unseen,
        ) from error
