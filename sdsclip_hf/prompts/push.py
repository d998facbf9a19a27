"""Push learned prompts to the Hub: tensors, configuration, card and scores, in one commit."""

import json
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi

from sdsclip_hf.cards.model_card import CARD_FILE, MODEL_NAME
from sdsclip_hf.data.scores import portable_name
from sdsclip_hf.hub.attempts import insist
from sdsclip_hf.hub.commits import HARMLESS, claim_repo, push_files
from sdsclip_hf.prompts.saved import CONFIG_FILE, WEIGHTS_FILE, find_prompts

BESIDE = ("run.yaml", "results.json")


def claim_prompts_repo(
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    force: bool = False,
) -> str:
    """[`claim_repo`] of a repository that holds prompts or nothing; with ``force`` anything.

    Raises:
        ValueError: there is no token, the name cannot be one, or the repository holds something else.
        HubError: it could not be reached, or refused.
    """
    repo_id = claim_repo(repo_id, token=token, private=private, revision=revision)
    held = insist(lambda: set(HfApi(token=token).list_repo_files(repo_id, revision=revision)) - HARMLESS, repo_id)
    if held and CONFIG_FILE not in held and not force:
        named = ", ".join(sorted(held)[:3])
        raise ValueError(
            f"{repo_id} on the Hub holds something other than prompts: {named}. Choose another name, or say that they shall "
            "be put on top, with --force (in training: --hub_force)."
        )
    return repo_id


def push_prompts(
    folder: str | Path, repo_id: str, *, message: str | None = "Push of learned prompts", **where
) -> CommitInfo:
    """Put saved prompts into a model repository, in one commit.

    Args:
        folder: what [`PromptTrainer`] saved.
        repo_id: NAMESPACE/NAME; it is created where there is none.
        message: of the commit.
        where: ``token``, ``private``, ``revision`` and ``force`` of [`claim_prompts_repo`].

    Raises:
        ValueError: the folder holds no prompts, or see [`claim_prompts_repo`].
        HubError: it could not be reached, or refused.
    """
    folder = find_prompts(folder)
    repo_id = claim_prompts_repo(repo_id, **where)
    record = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    record["base_model"] = portable_name(record["base_model"])
    files: dict[str, Path | bytes] = {WEIGHTS_FILE: folder / WEIGHTS_FILE}
    files[CONFIG_FILE] = (json.dumps(record, indent=2) + "\n").encode()
    if (folder / CARD_FILE).is_file():
        files[CARD_FILE] = (folder / CARD_FILE).read_text(encoding="utf-8").replace(MODEL_NAME, repo_id).encode()
    files |= {name: folder / name for name in BESIDE if (folder / name).is_file()}
    where.pop("force", None)
    return push_files(files, repo_id, message=message or "Push of learned prompts", delete_patterns=BESIDE, **where)
