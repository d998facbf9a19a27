"""What of the Hub this login may read, and where it may push; without a network, what the cache holds."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from sdsclip_hf import shapes
from sdsclip_hf.benchmarks import places
from sdsclip_hf.benchmarks.storage import is_url
from sdsclip_hf.doctor.case import Case
from sdsclip_hf.doctor.findings import Finding, Trouble

TIMEOUT = 10.0  # seconds for one answer
# What the clients are told while the Hub is looked at; afterwards it is as it was.
CHANGED = ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN")
NO_ANSWER = {"TransportError", "OfflineModeIsEnabled"}  # of whichever network library the client uses


@dataclass(frozen=True)
class Place:
    """A folder or repository that a run reads.

    Attributes:
        name: as the user gave it.
        files: their sizes in bytes, by their paths inside.
        folder: where they lie on this machine; None of a repository that has to be asked.
        commit: of a repository.
        cached: those of the files that are in the cache.
        told: what is known of access to it.
    """

    name: str
    files: dict[str, int]
    folder: Path | None = None
    commit: str | None = None
    cached: frozenset[str] = frozenset()
    told: str = ""

    def to_download(self, files: Iterable[str]) -> int:
        """Bytes of those of the files that are not on this machine yet."""
        if self.folder is not None:
            return 0
        return sum(self.files[file] for file in set(files) - self.cached)


@dataclass
class Hub:
    """The Hub as this login sees it; nothing is written there.

    Attributes:
        cache: the folder of what was downloaded before.
        token: that reading takes; False once the Hub has refused it.
        unreachable: why only the cache counts; None while the Hub answers.
        user: whose the login is, once that was asked.
    """

    cache: Path
    token: str | bool | None
    unreachable: str | None = None
    user: str | None = None

    @classmethod
    @contextmanager
    def looked_at(cls, scratch: Path) -> Iterator["Hub"]:
        """The Hub, while what its clients fetch is kept in ``scratch``, or while they read the cache without asking it."""
        kept = {name: getattr(constants, name) for name in CHANGED}
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else None
        hub = cls(Path(constants.HF_HUB_CACHE), get_token(), reason)
        if hub.unreachable is None:
            constants.HF_HUB_CACHE = str(scratch)
        try:
            yield hub
        finally:
            for name, value in kept.items():
                setattr(constants, name, value)

    @property
    def api(self) -> HfApi:
        return HfApi(token=self.token)

    def who(self, token: str | None = None) -> dict:
        """Whose the token is, by default that of the login; of no meaning where the Hub turns out unreachable.

        Raises:
            Trouble: it is refused.
        """
        try:
            known = HfApi(token=token or self.token).whoami()
        except Exception as error:
            if getattr(getattr(error, "response", None), "status_code", None) == 401:
                if token is None:  # go on without it, as one who is not logged in
                    self.token, constants.HF_HUB_DISABLE_IMPLICIT_TOKEN = False, True
                remedy = "Type `hf auth login`, or set HF_TOKEN to a valid one."
                raise Trouble("the Hub refuses the token.", remedy) from error
            self._note_silence(error)
            if self.unreachable is None:
                found = f"the Hub does not tell whose the token is: {first_line(error)}."
                raise Trouble(found, "Try again later.") from error
            return {}
        self.user = self.user or known["name"]
        return known

    def place(self, name: str, kind: str, option: str, revision: str | None = None) -> Place:
        """A local folder, what comes with the package, or a repository that the login may read.

        Args:
            name: folder or Hub id.
            kind: ``model`` or ``dataset``.
            option: that gave the name, for messages.
            revision: branch, tag or commit on the Hub.

        Raises:
            Trouble: it is nothing of these.
        """
        folder = Path(shapes.resolve(name)).expanduser()
        if folder.exists():
            paths = sorted(folder.rglob("*")) if folder.is_dir() else []
            files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths if path.is_file()}
            return Place(name, files, folder, told="bundled" if name.startswith("shapes/") else "a local folder")
        try:
            validate_repo_id(name)
        except HFValidationError:
            raise Trouble(f"there is no folder {name}.", f"Give {option} a folder that exists, or a Hub id.") from None
        return (
            self._on_hub(name, kind, option, revision)
            if self.unreachable is None
            else self._in_cache(name, kind, option, revision)
        )

    def _on_hub(self, name: str, kind: str, option: str, revision: str | None) -> Place:
        page, at = page_of(name, kind), f" at revision {revision!r}" if revision else ""
        try:
            info = self.api.repo_info(name, repo_type=kind, revision=revision, files_metadata=True, timeout=TIMEOUT)
            if info.gated:
                self.api.auth_check(name, repo_type=kind)
        except GatedRepoError:
            raise self._gated(name, page) from None
        except RevisionNotFoundError:
            raise Trouble(
                f"{name} on the Hub has no revision {revision!r}.", f"Its revisions: {page}/tree/main."
            ) from None
        except RepositoryNotFoundError:
            seen = "this login may see" if self.token else "anyone may see without a login"
            log_in = "" if self.token else ", type `hf auth login` if it is private"
            raise Trouble(
                f"{name} is no folder here, and no {kind} on the Hub that {seen}.",
                f"Check the name at {page}{log_in}, or give {option} a folder.",
            ) from None
        except Exception as error:
            self._note_silence(error)
            if self.unreachable is None:
                raise Trouble(f"the Hub does not tell of {name}: {first_line(error)}.", "Try again later.") from error
            return self._in_cache(name, kind, option, revision)
        files = {file.rfilename: file.size or 0 for file in info.siblings or []}
        there = {"repo_type": kind, "revision": info.sha, "cache_dir": self.cache}
        cached = {file for file in files if isinstance(try_to_load_from_cache(name, file, **there), str)}
        access = "gated, and open to this login" if info.gated else "private" if info.private else "public"
        return Place(name, files, None, info.sha, frozenset(cached), f"{access} on the Hub{at}")

    def _gated(self, name: str, page: str) -> Trouble:
        if not self.token:
            return Trouble(
                f"{name} is gated, and there is no token.",
                f"Accept its licence at {page}, then type `hf auth login` or set HF_TOKEN.",
            )
        return Trouble(
            f"{name} is gated, and {self.user or 'this login'} has not been let in.",
            f"Accept its licence at {page} (or wait for the answer to your request); a fine-grained token also needs the "
            "right to read gated repositories.",
        )

    def _note_silence(self, error: Exception) -> None:
        if {kind.__name__ for kind in type(error).__mro__} & NO_ANSWER:
            self.unreachable = f"{constants.ENDPOINT} does not answer"
            constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = str(self.cache), True

    def _in_cache(self, name: str, kind: str, option: str, revision: str | None) -> Place:
        folder = self.cache / repo_folder_name(repo_id=name, repo_type=kind)
        ref = folder / "refs" / (revision or constants.DEFAULT_REVISION)
        commit = ref.read_text().strip() if ref.is_file() else revision or "-"
        snapshot = folder / "snapshots" / commit
        if not snapshot.is_dir():
            raise Trouble(
                f"{name} is no folder here, is not in the cache, and {self.unreachable}.",
                f"Connect to the network (without HF_HUB_OFFLINE), or give {option} a folder.",
            )
        paths = [path for path in sorted(snapshot.rglob("*")) if path.is_file()]
        files = {path.relative_to(snapshot).as_posix(): path.stat().st_size for path in paths}
        return Place(name, files, snapshot, commit, frozenset(files), f"in the cache ({self.unreachable})")


def check_name(name: str, option: str) -> None:
    """Raise Trouble unless a name that is no folder can be one on the Hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise Trouble(f"there is no folder {name}.", f"Give {option} a folder that exists, or a Hub id.") from None


def page_of(name: str, kind: str) -> str:
    """The address of a repository's page."""
    return f"{constants.ENDPOINT}/{'' if kind == 'model' else kind + 's/'}{name}"


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    text = (getattr(error, "server_message", None) or str(error)).strip() or type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    return text.splitlines()[0].rstrip(". ") + (f" (status {status})" if status else "")


def check_hub_login(case: Case, hub: Hub) -> Iterator[Finding]:
    """Who the token belongs to."""
    names = names_on_hub(case)
    if not names and not case.config.push_to_hub:
        yield Finding("ok", "Hub login", "not needed: all that is named is on this machine")
        return
    if hub.unreachable is None and not hub.token:
        yield Finding("ok", "Hub login", "none; what is public needs none")
        return
    known = hub.who() if hub.unreachable is None else None
    if hub.unreachable is not None:
        yield Finding("ok", "Hub login", f"not asked for, since {hub.unreachable}: what is in {hub.cache} counts")
    else:
        yield Finding("ok", "Hub login", f"{known['name']}, by a token to {role(known)}")


def names_on_hub(case: Case) -> list[str]:
    """What a run reads that is not on this machine as a folder or file."""
    names = [case.model.model_name_or_path, case.data.dataset_name]
    names += [case.model.teacher_name_or_path] if case.needs_teacher and case.model.teacher_name_or_path else []
    names += [config.ranking_scores for config in case.configs.values() if config.ranking_scores]
    for spec in case.benchmarks:
        with suppress(ValueError):  # told by the benchmark's own check
            names += [place for place in places(spec) if not is_url(place)]
    return [name for name in names if name != "shapes" and not Path(shapes.resolve(name)).expanduser().exists()]


def role(known: dict) -> str:
    """What a token is for, as ``whoami`` tells it: read, write or fineGrained."""
    return known.get("auth", {}).get("accessToken", {}).get("role") or "read"
