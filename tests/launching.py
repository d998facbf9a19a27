"""Runs of several processes that talk by gloo, started one by one, so that each can be looked at for itself."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from forking import Forked

ROOT = Path(__file__).parents[1]
# What the processes did is looked at, and not how gloo's threads end with the interpreter; see processes.end_process_group.
ENDING = """
import os
from accelerate import PartialState
PartialState().wait_for_everyone()
os._exit(0)
"""


def launch(
    code: str, *words, processes: int = 2, expected: int | None = 0, timeout: int = 1200, **env: str
) -> list[str]:
    """Run Python code with the arguments ``words`` on each of the processes; what each of them printed.

    Args:
        expected: the exit code that all must have; None: any.
        env: further variables.
    """
    started = [Forked(code + ENDING, *words, env=os.environ | own | env) for own in processes_env(processes)]
    try:
        done = [process.finish(timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    printed = [f"{process.stderr}\n{process.stdout}" for process in done]
    for process, text in zip(done, printed, strict=True):
        assert expected in (None, process.returncode), text[-3000:]
    return printed


def processes_env(processes: int) -> list[dict[str, str]]:
    """The variables by which each process of a run finds the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT, "PYTHONUNBUFFERED": 1}
    return [
        {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        for rank in range(processes)
    ]


def accelerate_launch(
    config: str, script: Path, *words, processes: int = 2, options: tuple[str, ...] = (), **env: str
) -> str:
    """Run a script by ``accelerate launch`` as one of recipes/accelerate tells; what all processes printed."""
    file = ROOT / "recipes/accelerate" / f"{config}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file]
    command += ["--num_processes", processes, "--main_process_port", 0, *options, script, *words]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | env
    command = list(map(str, command))
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout
