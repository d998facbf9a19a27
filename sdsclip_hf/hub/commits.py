"""Pushing to the Hub: one commit that is seen to be there, or an error that says what to do."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, RepoUrl, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from sdsclip_hf.hub.attempts import insist
from sdsclip_hf.hub.heads import GIT_FILE, Wanted, matches
from sdsclip_hf.hub.one_commit import OneCommit
from sdsclip_hf.students.loading import is_dual_encoder

TEXTS = (".md", ".json", ".yaml", ".txt", ".py")  # files that could hold what somebody typed
HARMLESS = {GIT_FILE, "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md"}


def check_login(token: str | None = None) -> None:
    """Raise ValueError unless there is a token for the Hub, given or from a login, that can be sent."""
    token = token or get_token()
    if not token:
        raise ValueError(
            "a push needs a login on the Hub, and there is no token; type `hf auth login`, or set HF_TOKEN to a token with "
            "write rights."
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(
            "the token for the Hub holds a space, a line break or another character that no token has; give it without, or "
            "type `hf auth login`."
        )


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError unless ``repo_id`` is a name that the Hub can have, NAMESPACE/NAME or NAME."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name on the Hub; give it as NAMESPACE/NAME. ({error})") from error


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form NAMESPACE/NAME, and is neither a local path nor what comes with this package."""
    if name.count("/") != 1 or name.split("/")[0] == "shapes" or Path(name).expanduser().exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def claim_repo(
    repo_id: str,
    *,
    repo_type: str = "model",
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    space_sdk: str | None = None,
    needs_network: bool = False,
) -> str:
    """Create a repository where there is none, and its branch, and make sure that the token may write there.

    Args:
        repo_id, repo_type, token, private, revision, space_sdk: see [`push_files`].
        needs_network: see [`insist`].

    Returns:
        The repository's full name.

    Raises:
        ValueError: there is no token, or the name cannot be one.
        HubError: it could not be reached, or refused.
    """
    check_login(token)
    check_repo_id(repo_id)
    api = HfApi(token=token)
    return insist(lambda: _open(api, repo_id, repo_type, private, revision, space_sdk), repo_id, needs_network)


def check_holds_clip(repo_id: str, *, token: str | None = None, revision: str | None = None) -> None:
    """Raise ValueError if a model repository holds something other than a CLIP, which a push would bury.

    Raises:
        ValueError: it does.
        HubError: it could not be read.
    """
    api = HfApi(token=token)

    def look() -> tuple[list[str], str | None]:
        files = sorted(set(api.list_repo_files(repo_id, revision=revision)) - HARMLESS)
        if "config.json" not in files:
            return files, None
        return files, _model_type(Path(api.hf_hub_download(repo_id, "config.json", revision=revision)))

    files, model_type = insist(look, repo_id)
    if files and not is_dual_encoder(model_type):
        held = f"a model of type {model_type!r}" if model_type else f"{', '.join(files[:3])}{' …' * (len(files) > 3)}"
        raise ValueError(
            f"{repo_id} on the Hub holds something other than a CLIP: {held}. Choose another name, or say that it shall "
            "be put on top, with --force (in training: --hub_force)."
        )


def _model_type(config: Path) -> str | None:
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError):  # no json, or no mapping
        return None


def push_files(
    files: Mapping[str, Path | bytes],
    repo_id: str,
    *,
    repo_type: str = "model",
    message: str,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    space_sdk: str | None = None,
    delete_patterns: Iterable[str] = (),
) -> CommitInfo:
    """Put files into a repository, in one commit; it is created where there is none.

    An attempt that fails is made again, after 1, 5 and 20 seconds, one that the Hub refuses once. Each looks first at what
    the branch holds, so that no commit is made twice, and none is told as made before it has been seen there.

    Args:
        files: path in the repository -> content, or the file that holds it.
        repo_id: NAMESPACE/NAME.
        repo_type: ``model``, ``dataset`` or ``space``.
        message: of the commit.
        token: default: that of the login.
        private: whether a new repository is private; default: as the namespace has it.
        revision: the branch; it is created where there is none. Default: main.
        space_sdk: of a new Space, e.g. ``gradio``.
        delete_patterns: what is removed in the same commit, unless it is among ``files``. A pattern without a slash
            means files at the top alone.

    Returns:
        The commit; as a string, its address.

    Raises:
        ValueError: there is no token, it stands in one of the files, or the name cannot be one.
        HubError: it could not be reached, or refused; ``unseen`` where the commit may be there all the same.
    """
    check_login(token)
    check_repo_id(repo_id)
    _check_tells_no_secret(files, token or get_token())
    api = HfApi(token=token)
    commit = OneCommit(
        api=api,
        repo_id=repo_id,
        repo_type=repo_type,
        branch=revision or "main",
        message=message,
        wanted=Wanted(files, list(delete_patterns)),
        open=lambda: _open(api, repo_id, repo_type, private, revision, space_sdk),
    )
    return insist(commit.attempt, repo_id, settle=commit.settle)


def push_folder(
    folder: str | Path, repo_id: str, *, allow_patterns: Iterable[str] | None = None, **options
) -> CommitInfo:
    """[`push_files`] for a folder's files: all of them, or those that ``allow_patterns`` name.

    Bytecode and hidden files are left out. ``options`` are those of [`push_files`].
    """
    found = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    patterns = None if allow_patterns is None else list(allow_patterns)
    chosen = {
        name: path
        for name, path in found.items()
        if not any(part.startswith(".") or part == "__pycache__" for part in Path(name).parts)
        and (patterns is None or matches(name, patterns))
    }
    return push_files(chosen, repo_id, **options)


def _check_tells_no_secret(files: Mapping[str, Path | bytes], token: str) -> None:
    for name, content in files.items():
        if name.endswith(TEXTS) and token.encode() in (content if isinstance(content, bytes) else content.read_bytes()):
            raise ValueError(
                f"{name} holds the token for the Hub, and is not pushed; take it out of the file, and give the token by "
                "`hf auth login` or HF_TOKEN."
            )


def _open(
    api: HfApi, repo_id: str, repo_type: str, private: bool | None, revision: str | None, space_sdk: str | None
) -> str:
    url: RepoUrl = api.create_repo(repo_id, repo_type=repo_type, private=private, space_sdk=space_sdk, exist_ok=True)
    api.auth_check(url.repo_id, repo_type=repo_type, write=True)
    if revision and revision != "main":
        api.create_branch(url.repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
    return url.repo_id
