"""Runs the commands of the documents, each in a process of its own that need not import anything: a fork of this one.

Reads a JSON object a line: ``folder``, ``kind`` (bash or python), ``code``. Answers with the exit code and the output.
"""

import glob
import json
import os
import runpy
import shlex
import subprocess
import sys
import tempfile
import traceback

import diffusers  # noqa: F401  imported before the fork, as what follows
import transformers  # noqa: F401

import sdsclip_hf.evaluation.evaluate_models
import sdsclip_hf.scoring.score_captions
import sdsclip_hf.training.trainer  # noqa: F401
from sdsclip_hf.commands import cli


def run(kind: str, code: str) -> int:
    """What a shell or Python would do with the code; the exit code."""
    if kind == "python":
        exec(compile(code, "<block>", "exec"), {"__name__": "__main__"})
        return 0
    words = [path for word in shlex.split(code) for path in sorted(glob.glob(word)) or [word]]
    if words[:2] == ["accelerate", "launch"]:
        words = ["python", *words[2:]]
    if words[0] == "sdsclip":
        sys.argv = words
        cli.main()
    elif words[0] == "python" and words[1].endswith(".py"):
        sys.argv = words[1:]
        sys.path.insert(0, os.path.dirname(os.path.realpath(words[1])))
        runpy.run_path(words[1], run_name="__main__")
    else:
        return subprocess.run(["bash", "-ec", code]).returncode
    return 0


def forked(folder: str, kind: str, code: str) -> tuple[int, str]:
    """Exit code and output of the code in a child of this process."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.chdir(folder)
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                status = run(kind, code)
            except SystemExit as end:
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode(errors="replace")


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(forked(**request)), file=answers, flush=True)
