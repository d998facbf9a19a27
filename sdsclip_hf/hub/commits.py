"""Pushing to the Hub: one commit, tried again with growing waits, and an error that says what to do."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, RepoUrl, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

logger = logging.getLogger(__name__)

WAITS = (1.0, 5.0, 20.0)  # seconds before each further attempt; inside one, the client repeats some requests itself
REFUSED = (401, 403, 404)  # what a further attempt seldom mends; one is made, since the Hub errs now and then
WRONG = (400, 402, 413, 422)  # what no further attempt mends
LONGEST_WAIT = 60.0  # seconds that the Hub may ask for
TEXTS = (".md", ".json", ".yaml", ".txt", ".py")  # files that could hold what somebody typed
GIT_FILE = ".gitattributes"  # the Hub's own, without which large files are not found
HARMLESS = {GIT_FILE, "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md"}

Returned = TypeVar("Returned")


class HubError(OSError):
    """The Hub could not be reached or refused; the message tells the reason and the remedy.

    Attributes:
        passing: whether it may mend itself, as a busy Hub does, and a missing right does not.
    """

    def __init__(self, message: str, passing: bool = False):
        super().__init__(message)
        self.passing = passing


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
    if files and model_type != "clip":
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

    An attempt that fails is made again, after 1, 5 and 20 seconds; nothing is on the Hub until one has succeeded.

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
        HubError: it could not be reached, or refused.
    """
    check_login(token)
    check_repo_id(repo_id)
    _check_tells_no_secret(files, token or get_token())
    api = HfApi(token=token)
    where = {"repo_type": repo_type, "revision": revision}
    patterns = list(delete_patterns)

    def attempt() -> CommitInfo:
        name = _open(api, repo_id, repo_type, private, revision, space_sdk)
        there = api.list_repo_files(name, **where) if patterns else []
        stale = [path for path in there if path not in {*files, GIT_FILE} and _matches(path, patterns)]
        operations = [CommitOperationDelete(path) for path in stale]
        operations += [CommitOperationAdd(path, content) for path, content in files.items()]
        return api.create_commit(name, operations, commit_message=message, **where)

    return insist(attempt, repo_id)


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
        and (patterns is None or _matches(name, patterns))
    }
    return push_files(chosen, repo_id, **options)


def _check_tells_no_secret(files: Mapping[str, Path | bytes], token: str) -> None:
    for name, content in files.items():
        if name.endswith(TEXTS) and token.encode() in (content if isinstance(content, bytes) else content.read_bytes()):
            raise ValueError(
                f"{name} holds the token for the Hub, and is not pushed; take it out of the file, and give the token by "
                "`hf auth login` or HF_TOKEN."
            )


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path, pattern) and ("/" in pattern or "/" not in path) for pattern in patterns)


def _open(
    api: HfApi, repo_id: str, repo_type: str, private: bool | None, revision: str | None, space_sdk: str | None
) -> str:
    url: RepoUrl = api.create_repo(repo_id, repo_type=repo_type, private=private, space_sdk=space_sdk, exist_ok=True)
    api.auth_check(url.repo_id, repo_type=repo_type, write=True)
    if revision and revision != "main":
        api.create_branch(url.repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
    return url.repo_id


def insist(attempt: Callable[[], Returned], repo_id: str, needs_network: bool = False) -> Returned:
    """What ``attempt`` returns, once it does not fail.

    Args:
        attempt: makes requests to the Hub.
        repo_id: what it is about, for errors.
        needs_network: whether to give up at once where no connection comes about; otherwise that is tried again, too.

    Raises:
        HubError: it failed for good.
    """
    refusals = 0
    for wait in (*WAITS, None):
        try:
            return attempt()
        except Exception as raised:  # the client passes those of its network library on, whichever it is
            error = _cause(raised)
            status, reason = _status(error), _first_line(error)
            refusals += status in REFUSED
            hopeless = status in WRONG or refusals > 1 or not _is_of_the_hub(error)
            hopeless = hopeless or (needs_network and _no_network(error))
            if hopeless or wait is None:
                passing = not hopeless and status not in REFUSED
                raise HubError(f"{repo_id} on the Hub: {reason} {_remedy(error, repo_id)}", passing) from raised
            wait = max(wait, _asked_wait(error))
            logger.warning("%s on the Hub: %s Trying again in %.0f s.", repo_id, reason, wait)
            time.sleep(wait)
    raise AssertionError  # the last attempt returns or raises


def _cause(error: Exception) -> Exception:
    """What the Hub answered, where the client has put an error of its own around it."""
    inner = error
    while inner is not None and _status(inner) is None:
        inner = inner.__cause__
    return inner or error


def _is_of_the_hub(error: Exception) -> bool:
    """Whether the Hub or the network failed, and not what was to be pushed."""
    local = (ValueError, FileNotFoundError, PermissionError, OfflineModeIsEnabled)
    return isinstance(error, (HfHubHTTPError, LocalEntryNotFoundError)) or not isinstance(error, local)


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _first_line(error: Exception) -> str:
    line = (getattr(error, "server_message", None) or str(error)).strip() or repr(error)
    line = line.splitlines()[0].rstrip(". ")
    status = _status(error)
    return f"{line}{f' (status {status})' if status and str(status) not in line else ''}."


def _asked_wait(error: Exception) -> float:
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return min(float(asked), LONGEST_WAIT) if asked.isdigit() else 0.0


def _no_network(error: Exception) -> bool:
    """Whether no connection came about at all."""
    return bool({kind.__name__ for kind in type(error).__mro__} & {"ConnectError", "OfflineModeIsEnabled"})


def _remedy(error: Exception, repo_id: str) -> str:
    status = _status(error)
    if status == 401:
        return "Log in with `hf auth login`, or set HF_TOKEN to a valid token with write rights."
    if status == 404:
        return f"Check the name, that the branch exists, and that the token may see {repo_id}."
    if status == 403:
        return (
            f"Use a token that may write to {repo_id} (its role on https://huggingface.co/settings/tokens must be write), "
            "or a name in a namespace of your own."
        )
    if status == 429:
        return "The Hub limits how often one may ask; try again later."
    if _no_network(error):
        return "Check the network connection, and that HF_HUB_OFFLINE is not set."
    if status in WRONG or not _is_of_the_hub(error):
        return "Mend what is pushed."
    return "Try again later."
