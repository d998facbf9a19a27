"""What goes wrong at the Hub of the tests when it is asked to."""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from hub_answers import Answer
from hub_repositories import HubError

MESSAGES = {
    400: "Invalid request",
    401: "Invalid username or password.",
    402: "Payment required",
    403: "Authorization error.",
    404: "Sorry, we can't find the page you are looking for.",
    409: "Cannot do this: another operation on the repository is in progress",
    412: "A commit has happened since. Please refresh and try again.",
    413: "Payload too large",
    422: "Unprocessable content",
    429: "We had to rate limit you.",
    500: "Internal Error - We're working hard to fix this as soon as possible!",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Time-out",
}


@dataclass
class Fault:
    """One way in which requests fail.

    Which: those of the `stage` (a name of `hub_server.STAGES`), of the `method`, whose path is found by the regex `path`;
    of them the first `after` pass, the next `times` meet the fault (None: all of them).

    How: `status` is answered, or the connection is cut, or (neither given) the answer is only late.

    * `cut="silence"`: the request is read, and nothing answered;
    * `cut="upload"`: half of the request's body is read;
    * `cut="answer"`: the request is carried out, and half of the answer's body sent.

    With a `body` that is answered, instead of a message, under the `status` (200 if none is given); `headers` go with any
    answer, such as the Location of a redirect.

    With `applied` the request is carried out before it fails: its answer is lost. With `late` it is carried out behind its
    answer, just before the next request of its stage. `delay` is in seconds; it passes before the request is carried out,
    with `applied` after it. `fired` tells how many requests have met the fault.
    """

    stage: str | None = None
    status: int | None = None
    method: str | None = None
    path: str = ""
    cut: str | None = None
    delay: float = 0.0
    applied: bool = False
    late: bool = False
    times: int | None = 1
    after: int = 0
    code: str = ""
    message: str | None = None
    retry_after: int | None = None
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    passed: int = 0
    fired: int = 0

    def __post_init__(self):
        if self.cut not in (None, "silence", "upload", "answer"):
            raise ValueError(f"cut={self.cut!r} is none of 'silence', 'upload', 'answer'")
        if self.body is not None and self.status is None:
            self.status = 200
        if self.status is None and self.cut is None and not self.delay:
            raise ValueError("A fault needs a status, a body, a cut or a delay")
        if self.cut is not None and self.body is not None:
            raise ValueError("A connection that is cut answers no body")
        if self.cut == "upload" and (self.applied or self.late):
            raise ValueError("A request cut in the middle of its body cannot be applied")
        if self.late and (self.applied or self.cut == "answer"):
            raise ValueError("A request is carried out before its answer or late")
        if self.status == 429 and self.retry_after is None:
            self.retry_after = 0

    def meets(self, stage: str, method: str, path: str) -> bool:
        """Whether the request fails. It is counted: ask once for each request."""
        if self.stage not in (None, stage) or self.method not in (None, method) or not re.search(self.path, path):
            return False
        if self.times is not None and self.fired >= self.times:
            return False
        if self.passed < self.after:
            self.passed += 1
            return False
        self.fired += 1
        return True

    @property
    def carried_out(self) -> bool:
        return self.applied or self.cut == "answer" or (self.status is None and self.cut is None)

    def answer(self) -> Answer:
        headers = (
            dict(self.headers) if self.retry_after is None else {"Retry-After": str(self.retry_after), **self.headers}
        )
        if self.body is None and self.status >= 400:
            message = self.message or MESSAGES.get(self.status, "Something went wrong")
            return Answer.of_error(HubError(self.status, self.code, message, headers))
        return Answer(self.body or b"", self.status, headers)

    def wait(self) -> None:
        """Unlike time.sleep, which tests replace to spare themselves the clients' waits."""
        threading.Event().wait(self.delay)
