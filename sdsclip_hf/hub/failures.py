"""Why a request to the Hub failed: in the Hub's own words, where the client has put an error of its own in their place."""

import json
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from sdsclip_hf.common.writing import full_disk

BUSY = (408, 409, 412, 423, 425, 429)  # of the refusals, 4xx, those that pass by themselves
LONGEST_WAIT = 60.0  # seconds that the Hub may ask for
LONGEST_WORDS = 200
WRAPPERS = (RuntimeError, LocalEntryNotFoundError)  # what the client puts around another error
# What it raises over an answer of another form than the Hub's.
STUMBLES = (ValueError, TypeError, LookupError, AttributeError, NameError, RecursionError)
LOCAL = (ValueError, FileNotFoundError, PermissionError, OfflineModeIsEnabled)
OF_UPLOADS = "LFS batch API returned errors"  # the client's words before those of the Hub, in a ValueError


class Unfit(Exception):
    """The Hub answered in the right form, but what it tells cannot be, or is not what was asked for."""

    def __init__(self, message: str, remedy: str | None = None):
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class Failure:
    """What went wrong in an attempt.

    Attributes:
        error: the innermost error that tells something.
        answer: the Hub's, a response of the client's network library; None where none came.
    """

    error: Exception
    answer: Any | None

    @classmethod
    def of(cls, raised: Exception) -> "Failure":
        chain = list(_causes(raised))
        for error in chain:
            if getattr(getattr(error, "response", None), "status_code", None):
                return cls(error, error.response)
        error = next((error for error in chain if not isinstance(error, WRAPPERS)), raised)
        return cls(error, _answer_in_hand(error) if isinstance(error, STUMBLES) else None)

    @property
    def status(self) -> int | None:
        return None if self.answer is None else self.answer.status_code

    @property
    def is_refusal(self) -> bool:
        """Whether another attempt seldom mends it; one is made, since the Hub or a proxy before it errs now and then."""
        if self.status is None:
            return str(self.error).startswith(OF_UPLOADS)
        return 400 <= self.status < 500 and self.status not in BUSY

    @property
    def is_local(self) -> bool:
        """Whether neither the Hub nor the network failed, but what was to be pushed, or the disk here."""
        if self.answer is not None or self.is_refusal or isinstance(self.error, LocalEntryNotFoundError):
            return False
        return isinstance(self.error, LOCAL) or full_disk(self.error) is not None

    @property
    def is_no_network(self) -> bool:
        """Whether no connection came about at all."""
        return bool(_names(self.error) & {"ConnectError", "OfflineModeIsEnabled"})

    @property
    def asked_wait(self) -> float:
        asked = "" if self.answer is None else self.answer.headers.get("Retry-After", "")
        return min(float(asked), LONGEST_WAIT) if asked.isascii() and asked.isdigit() else 0.0

    @property
    def reason(self) -> str:
        """One sentence."""
        if self.answer is not None:
            return _reason_of_answer(self.answer)
        if isinstance(self.error, UnicodeError):
            return "a text among the files is not in UTF-8."
        if isinstance(self.error, STUMBLES) and not isinstance(self.error, ValueError):
            return f"an answer that the client's {_client_function(self.error)} got cannot be understood."
        request = getattr(self.error, "_request", None)
        if "DecodingError" in _names(self.error):
            return f"the answer to {_told(request)} cannot be unpacked."
        line = _one_line(str(self.error)) or type(self.error).__name__
        return f"{line}{f' (at {_told(request)})' if request is not None else ''}."

    def remedy(self, repo_id: str) -> str:
        status = self.status
        if status == 401:
            return "Log in with `hf auth login`, or set HF_TOKEN to a valid token with write rights."
        if status == 402:
            return "The Hub wants a payment: see https://huggingface.co/settings/billing, or take another namespace."
        if status == 404:
            return f"Check the name, that the branch exists, and that the token may see {repo_id}."
        if status == 403:
            return (
                f"Use a token that may write to {repo_id} (its role on https://huggingface.co/settings/tokens must be "
                "write), or a name in a namespace of your own."
            )
        if status == 413:
            return "Push smaller files, or fewer at once."
        if status == 429:
            return "The Hub limits how often one may ask; try again later."
        if self.is_no_network:
            return "Check the network connection, and that HF_HUB_OFFLINE is not set."
        if full_disk(self.error):
            return "Make room where the client keeps files on their way (HF_HOME), then type the same command again."
        if self.is_local:
            return "Mend what is pushed."
        if self.is_refusal:
            return "Mend what is pushed; if nothing is wrong with it, try again later."
        if self.answer is not None and status < 400:
            return "Check that no proxy or login page stands between here and the Hub, and HF_ENDPOINT; or try again later."
        return getattr(self.error, "remedy", None) or "Try again later."


def _causes(error: BaseException | None) -> Iterator[Exception]:
    while error is not None:
        yield error
        error = error.__cause__


def _names(value: object) -> set[str]:
    """Of its classes: the client has its network library under changing names."""
    return {kind.__name__ for kind in type(value).__mro__}


def _answer_in_hand(error: Exception) -> Any | None:
    """The answer over which the client stumbled: its error does not hold it, but the function that raised it did."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        found = next((value for value in frame.f_locals.values() if "Response" in _names(value)), found)
    return found


def _client_function(error: Exception) -> str:
    names = [
        frame.f_code.co_name
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").startswith("huggingface_hub")
    ]
    return next((name for name in names if not name.startswith("_")), "request")


def _reason_of_answer(answer: Any) -> str:
    status, request = answer.status_code, _told(answer.request)
    if status >= 400:
        words = _words(answer) or f"{request} failed without a reason"
        return f"{words}{'' if str(status) in words else f' (status {status})'}."
    if status >= 300:
        to = _one_line(answer.headers.get("Location", "").partition("?")[0])
        return f"{request} is redirected{to and f' to {to}'} and not carried out (status {status})."
    if answer.history:
        request = f"{_told(answer.history[0].request)}, which was redirected to {_told(answer.request)},"
    body = _body(answer)
    if not body:
        return f"the answer to {request} is empty (status {status})."
    return f"the answer to {request} cannot be understood: {_excerpt(body)} (status {status})."


def _told(request: Any) -> str:
    """Without the query, which may sign."""
    return "a request" if request is None else f"{request.method} {request.url.path}"


def _body(answer: Any) -> bytes:
    try:
        return answer.content.strip()
    except Exception:  # it was not read to its end
        return b""


def _words(answer: Any) -> str:
    """What a refusal says: the Hub's header for that, the errors of its JSON, or the text."""
    if header := _one_line(answer.headers.get("X-Error-Message", "")):
        return header
    body = _body(answer)
    try:
        told = json.loads(body)
        words = _one_line("; ".join(_messages(told)))
    except (ValueError, RecursionError):
        told, words = body, ""
    return words or (_excerpt(body) if told else "")


def _messages(told: object) -> list[str]:
    """What stands under "error", "errors" and "message", each once; of another form than the Hub's there is none."""
    if isinstance(told, str):
        return [told] if told.strip() else []
    if isinstance(told, list):
        return [message for one in told for message in _messages(one)]
    if isinstance(told, dict):
        found = [message for name in ("error", "errors", "message") for message in _messages(told.get(name))]
        return list(dict.fromkeys(found))
    return []


def _excerpt(body: bytes) -> str:
    text = body.decode("utf-8", errors="replace")
    if text.startswith("<"):
        text = (
            re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE) or "an HTML page"
        )
    text = _one_line(text)
    if not text or sum(letter == "\ufffd" or not letter.isprintable() for letter in text) > len(text) / 10:
        return f"{len(body)} bytes that are no text"
    return f"“{text}”"


def _one_line(text: str) -> str:
    text = " ".join(text.split()).rstrip(". ")
    return text if len(text) <= LONGEST_WORDS else f"{text[:LONGEST_WORDS].rstrip()} …"
