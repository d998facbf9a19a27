"""Python code in a process of its own that need not import the libraries anew: a fork of this one.

What the libraries read from the environment when they are imported is set in the child by hand. It computes with one thread,
since threads do not outlive a fork.
"""

import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

import datasets
import torch
import transformers.utils.hub
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub import constants, hf_api
from tqdm.std import TqdmDefaultWriteLock, tqdm

HANGS_AFTER = 300  # seconds; a fork then tells where it stands, and ends


class Forked:
    """A running fork. ``code`` is executed as a program with the arguments ``words`` and the environment ``env``."""

    def __init__(self, code: str, *words, env: dict[str, str] | None = None):
        self.code, self.words = code, words
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        sys.stdout.flush(), sys.stderr.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._be_the_child(dict(os.environ if env is None else env))

    def finish(self, timeout: float = 600) -> CompletedProcess:
        """Wait until it ends.

        Raises:
            TimeoutExpired: it does not.
        """
        end = time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                self.kill()
                raise TimeoutExpired(self.code, timeout)
            else:
                time.sleep(0.02)
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return CompletedProcess(self.code, self.returncode, *texts)

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def _be_the_child(self, env: dict[str, str]) -> None:
        code = 1
        try:
            os.dup2(self._out.fileno(), 1)
            os.dup2(self._err.fileno(), 2)
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
            faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
            _log_here()
            os.environ.clear()
            os.environ.update(env)
            _as_if_imported_now(env)
            sys.argv = ["-c", *map(str, self.words)]
            exec(compile(self.code, "<forked>", "exec"), {"__name__": "__main__"})
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)


def run_forked(code: str, *words, env: dict[str, str] | None = None, timeout: float = 600) -> CompletedProcess:
    """Start a fork and wait until it ends."""
    return Forked(code, *words, env=env).finish(timeout)


def _log_here() -> None:
    """Tell warnings on this process's stderr, and to pytest no longer."""
    logging.getLogger().handlers.clear()
    for logger in logging.Logger.manager.loggerDict.values():
        for handler in getattr(logger, "handlers", []):
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setStream(sys.stderr)


def _as_if_imported_now(env: dict[str, str]) -> None:
    torch.set_num_threads(1)
    # Forks share one of tqdm's locks, and a thread of this process may hold the other: none that is killed lets go of it.
    TqdmDefaultWriteLock.th_lock, TqdmDefaultWriteLock.mp_lock = threading.RLock(), multiprocessing.RLock()
    tqdm.set_lock(TqdmDefaultWriteLock())
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "HF_ENDPOINT" in env:
        url, home = env["HF_ENDPOINT"], Path(env["HF_HOME"])
        constants.HUGGINGFACE_CO_URL_TEMPLATE = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
        constants.ENDPOINT = datasets.config.HF_ENDPOINT = url
        constants.HF_HOME, constants.HF_HUB_CACHE = str(home), str(home / "hub")
        constants.HF_TOKEN_PATH, constants.HF_STORED_TOKENS_PATH = str(home / "token"), str(home / "stored_tokens")
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = False
        constants.HF_HUB_DISABLE_XET = True
        datasets.config.HF_DATASETS_CACHE = home / "datasets"
        transformers.utils.hub._hf_api = None
        hf_api.api.endpoint = url
