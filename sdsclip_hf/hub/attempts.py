"""Requests to the Hub tried again with growing waits, and an error that says what to do."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sdsclip_hf.hub.failures import Failure

logger = logging.getLogger(__name__)

WAITS = (1.0, 5.0, 20.0)  # seconds before each further attempt; inside one, the client repeats some requests itself

Returned = TypeVar("Returned")


class HubError(OSError):
    """The Hub could not be reached or refused; the message tells the reason and the remedy.

    Attributes:
        passing: whether it may mend itself, as a busy Hub does, and a missing right does not.
        unseen: whether the Hub may have done all the same what was asked, which could not be looked up.
    """

    def __init__(self, message: str, passing: bool = False, unseen: bool = False):
        super().__init__(message)
        self.passing, self.unseen = passing, unseen


def insist(
    attempt: Callable[[], Returned],
    repo_id: str,
    needs_network: bool = False,
    settle: Callable[[Failure], Returned | None] | None = None,
) -> Returned:
    """What ``attempt`` returns, once it does not fail.

    What waiting may mend is tried four times, a refusal twice, and what is wrong on this side once.

    Args:
        attempt: makes requests to the Hub.
        repo_id: what it is about, for errors.
        needs_network: whether to give up at once where no connection comes about; otherwise that is tried again, too.
        settle: asked before giving up: what the attempts have reached although they failed, or None.

    Raises:
        HubError: it failed for good.
    """
    refusals = set()
    for wait in (*WAITS, None):
        try:
            return attempt()
        except Exception as raised:  # the client passes those of its network library on, whichever it is
            failure = Failure.of(raised)
            hopeless = failure.is_local or failure.status in refusals or (needs_network and failure.is_no_network)
            if hopeless or wait is None:
                done = None if settle is None else settle(failure)
                if done is not None:
                    return done
                passing = not hopeless and not failure.is_refusal
                raise HubError(f"{repo_id} on the Hub: {failure.reason} {failure.remedy(repo_id)}", passing) from raised
            if failure.is_refusal:
                refusals.add(failure.status)
            wait = max(wait, failure.asked_wait)
            logger.warning("%s on the Hub: %s Trying again in %.0f s.", repo_id, failure.reason, wait)
            time.sleep(wait)
    raise AssertionError  # the last attempt returns or raises
