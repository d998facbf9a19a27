"""How every command ends that cannot do what it was asked for: with one line and exit code 1."""

import functools
import logging
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence

from sdsclip_hf.common.writing import GO_ON, NoRoomError, full_disk

logger = logging.getLogger(__name__)

EXPECTED = (ValueError, OSError, ImportError, FloatingPointError)
PARTED = re.compile(r"gloo.*(Connection closed by peer|Connection reset by peer)", re.DOTALL)
INTERRUPTED = "interrupted; type the same command again to go on from here"
Main = Callable[[Sequence[str] | None], None]


def one_line_errors(command: str = "", interrupted: str = "interrupted") -> Callable[[Main], Main]:
    """Decorate a command's ``main``, so that no error ends in a traceback.

    Args:
        command: what stands before "error:".
        interrupted: what is said after Ctrl-C.
    """
    before = f"{command}: " * bool(command)

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> None:
            try:
                main(argv)
            except KeyboardInterrupt:
                sys.exit(interrupted)
            except Exception as error:
                logger.debug("the traceback of the error below", exc_info=True)
                told = isinstance(error, NoRoomError) or GO_ON in str(error)
                if full_disk(error) and not told:  # in a cache, for instance
                    sys.exit(f"{before}error: {' '.join(own_words(error).split()).rstrip('.')}. {GO_ON}")
                if isinstance(error, EXPECTED):
                    sys.exit(f"{before}error: {own_words(error)}")
                sys.exit(f"{before}error: {_fault(error)}")  # this program's, or a library's that nothing here knows of

        return run

    return decorate


def own_words(error: BaseException) -> str:
    """What an error says; of one that PyTorch brings from a loader worker its last words, without the traceback."""
    text = str(error)
    caught = re.match(r"Caught (\w+) in .*\nOriginal Traceback", text)
    if caught is None:
        return text
    last = re.split(rf"\n(?:\w+\.)*{caught[1]}: ", text)
    return last[-1].strip() if len(last) > 1 else text


def _fault(error: Exception) -> RuntimeError:
    if PARTED.search(str(error)):
        return RuntimeError("another process of this run has ended; its own message tells why.")
    words = " ".join(own_words(error).split())[:200]
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="sdsclip-", suffix=".log", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(text)
        log = f"{file.name}, which holds the traceback"
    except OSError:  # the disk is full, for instance
        log = f"this traceback:\n{text}"
    return RuntimeError(
        f"{type(error).__name__}: {words or 'no more is told'}. This should have been told in plainer words; please report "
        f"it with what `sdsclip env` prints and {log}."
    )
