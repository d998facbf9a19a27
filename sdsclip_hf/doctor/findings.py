"""What a check gives: one line each, and what to do where all is not well."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

WIDTH = 15  # of what was looked at, with its colon


class Finding(NamedTuple):
    """One line of the report.

    Args:
        status: a run with a ``fail`` ends with an error; one with a ``warn`` runs, perhaps not as it was meant to.
        what: was looked at.
        found: there.
        remedy: what to do about it.
    """

    status: Literal["ok", "warn", "fail"]
    what: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        text = " ".join(f"{self.found} {self.remedy}".split())
        return f"{self.status:<5} {self.what + ':':<{WIDTH}} {text}"


class Trouble(Exception):
    """What a check found wrong, and the remedy: the run will fail of it."""

    def __init__(self, found: str, remedy: str):
        super().__init__(f"{found} {remedy}")
        self.found, self.remedy = found, remedy


def checked(what: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check; one that raises has failed, and the others go on.

    The package's own errors (ValueError, OSError, ImportError) tell their remedy; of any other the kind is told.
    """
    try:
        yield from check()
    except Trouble as trouble:
        yield Finding("fail", what, trouble.found, trouble.remedy)
    except (ValueError, OSError, ImportError) as error:
        yield Finding("fail", what, str(error) or repr(error))
    except Exception as error:
        remedy = "The check itself went wrong; please report it, with the command."
        yield Finding("fail", what, f"{type(error).__name__}: {str(error).rstrip('. ')}.", remedy)


def summary(findings: Iterable[Finding]) -> str:
    """The last line of the report."""
    statuses = [finding.status for finding in findings]
    counts = {status: statuses.count(status) for status in ("ok", "warn", "fail")}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count or status != "warn")
    if counts["fail"]:
        return f"{told}: this run will not get through; mend what failed and look again."
    return f"{told}: this run can be started" + (", if the warnings are meant." if counts["warn"] else ".")
