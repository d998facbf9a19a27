"""One commit that comes about once and whole, whatever the Hub answers."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants

from sdsclip_hf.hub.attempts import WAITS, HubError
from sdsclip_hf.hub.failures import Failure, Unfit
from sdsclip_hf.hub.heads import Head, Wanted, look


@dataclass
class OneCommit:
    """A commit to a branch.

    What the Hub answers to a commit is no proof: it may have made one that it tells as failed, or that it never answered,
    and the other way round. So the branch is looked at before each attempt, and behind each.

    Attributes:
        open: makes sure of the repository and the branch; returns the repository's full name.
        wanted: what the branch shall hold.
        name: the repository's full name, once it is known.
        sent: whether the Hub may have got the commit.
    """

    api: HfApi
    repo_id: str
    repo_type: str
    branch: str
    message: str
    wanted: Wanted
    open: Callable[[], str]
    name: str = ""
    sent: bool = False

    def attempt(self) -> CommitInfo:
        """Make the commit, unless the branch holds everything already.

        Raises:
            Exception: it failed, as far as can be told.
        """
        self.name = self.open()
        head = self._look(self.branch)
        if self._is_held(head):
            return self._info(head)
        return self._info(self._seen(parent=head, sha=self._send(head)))

    def settle(self, failure: Failure) -> CommitInfo | None:
        """The commit, where it came about although the last attempt failed; None where it did not.

        Raises:
            HubError: that cannot be seen.
        """
        if not self.sent:
            return None
        try:
            head = self._look_twice()
            return self._info(head) if self._is_held(head) else None
        except Exception as raised:
            raise HubError(
                f"{self.repo_id} on the Hub: {failure.reason} Whether it made the commit all the same cannot be seen: "
                f"{Failure.of(raised).reason} Look at {self._url}/commits/{self.branch}, or push again: what is there is "
                "not pushed twice.",
                passing=not (failure.is_local or failure.is_refusal),
                unseen=True,
            ) from raised

    def _look(self, revision: str) -> Head:
        return look(self.api, self.name, self.repo_type, revision)

    def _look_twice(self) -> Head:
        try:
            return self._look(self.branch)
        except Exception:
            time.sleep(WAITS[0])
            return self._look(self.branch)

    def _is_held(self, head: Head) -> bool:
        return next(self.wanted.lacking(head), None) is None

    def _send(self, head: Head) -> str:
        """The sha that the Hub tells.

        A commit that the Hub makes only after its answer was given up has the same parent as the next attempt's, and the
        Hub takes but one of them.
        """
        operations = [CommitOperationDelete(path) for path in self.wanted.stale(head)]
        operations += [CommitOperationAdd(path, content) for path, content in self.wanted.files.items()]
        self.sent = True
        return self.api.create_commit(
            self.name,
            operations,
            commit_message=self.message,
            repo_type=self.repo_type,
            revision=self.branch,
            parent_commit=head.sha,
        ).oid

    def _seen(self, parent: Head, sha: str) -> Head:
        """The head that holds the commit, or the commit of that sha, where somebody else's stands on top of it."""
        head = self._look(self.branch)
        if head.sha not in (parent.sha, sha) and not self._is_held(head):
            head = self._look(sha)
        lacking = list(self.wanted.lacking(head))
        if lacking:
            names = ", ".join(lacking[:3]) + " …" * (len(lacking) > 3)
            remedy = "Take them out of the repository's .gitignore if they are there; else try again later."
            raise Unfit(
                f"it told the commit as made, but the branch {self.branch} lacks {names}",
                remedy if ".gitignore" in head.files else None,
            )
        return head

    def _info(self, head: Head) -> CommitInfo:
        return CommitInfo(f"{self._url}/commit/{head.sha}", self.message, "", head.sha, _endpoint=self.api.endpoint)

    @property
    def _url(self) -> str:
        return f"{self.api.endpoint}/{constants.REPO_TYPES_URL_PREFIXES.get(self.repo_type, '')}{self.name}"
