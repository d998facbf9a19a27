"""A command that starts its own processes: two options of its command line, handed over to accelerate's launcher."""

import argparse
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import yaml

from sdsclip_hf.common.processes import cores
from sdsclip_hf.common.resources import recipes_dir

HELP = (
    "Several processes: --num_processes N starts that many on this machine, one a GPU, or on CPUs where there is none; "
    "--accelerate_config NAME takes one of recipes/accelerate (such as fsdp2) or your own file. Or start them by "
    "`accelerate launch`."
)
PLAIN = "multi_cpu"  # data parallel in the precision that the run's own options ask for, on whatever devices there are
STARTED = "SDSCLIP_STARTED_ITS_PROCESSES"
SCRIPT = Path(__file__).parents[1] / "commands/launched/run.py"


def started_its_processes() -> bool:
    """Whether this is one of the processes that [`start_processes`] has started, rather than ``accelerate launch``."""
    return os.environ.get(STARTED) == "1"


def start_processes(command: str, argv: Sequence[str]) -> list[str] | None:
    """Start the processes that a command line asks for, and wait for them.

    Args:
        command: of ``sdsclip``, which each process runs with the same options.
        argv: what follows it.

    Returns:
        The command line without ``--num_processes`` and ``--accelerate_config``, for this process to go on with;
        None: other processes have done it.

    Raises:
        ValueError: a number or a configuration that cannot be, here.
        OSError: there is no such configuration.
        SystemExit: a process failed; with its exit code.
    """
    number, config, rest = _take_options(argv)
    if started_its_processes() or (number is None and config is None):
        return rest
    if "LOCAL_RANK" in os.environ:
        raise ValueError(
            "--num_processes and --accelerate_config start processes, but this is one that a launcher has started "
            "already; give them to accelerate launch, before the script, or leave it out."
        )
    if number is not None and number < 1:
        raise ValueError(f"--num_processes is {number}; it must be at least 1.")
    if number == 1 and config is None:
        return rest
    _launch(_launch_arguments(number, config, rest), [command, *argv])
    return None


def _take_options(argv: Sequence[str]) -> tuple[int | None, str | None, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--num_processes", "--num-processes")
    parser.add_argument("--accelerate_config", "--accelerate-config")
    try:
        known, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}.") from error
    try:
        number = None if known.num_processes is None else int(known.num_processes)
    except ValueError as error:
        raise ValueError(f"--num_processes is {known.num_processes!r}; it must be a whole number.") from error
    return number, known.accelerate_config, rest


def _launch_arguments(number: int | None, config: str | None, rest: Sequence[str]) -> list[str]:
    """The options of ``accelerate launch``."""
    path = _find_config(config or PLAIN)
    settings = _read_settings(path)
    devices = 0 if _on_cpu(rest) else _devices()
    if number is None:
        packaged = path.parent == recipes_dir() / "accelerate"
        number = devices if packaged and devices and _distributed(settings) else int(settings.get("num_processes") or 1)
    _check(number, config, settings, devices)
    arguments = ["--config_file", str(path), "--num_processes", str(number)]
    if int(settings.get("num_machines") or 1) == 1:
        arguments += ["--main_process_port", "0"]  # a free one
    if "OMP_NUM_THREADS" not in os.environ:  # processes that take all threads each hold one another up
        arguments += ["--num_cpu_threads_per_process", str(max(1, cores() // number))]
    return arguments


def _check(number: int, config: str | None, settings: dict, devices: int) -> None:
    """Raise where the launcher would start something else, or end in a traceback."""
    kind = str(settings.get("distributed_type", "NO"))
    needs_gpus = kind not in ("NO", "MULTI_GPU") or settings.get("mixed_precision", "no") not in ("no", False)
    if number > 1 and not _distributed(settings):
        raise ValueError(
            f"--accelerate_config {config} starts one process, and --num_processes is {number}; give --accelerate_config "
            f"{PLAIN}, or --num_processes alone."
        )
    if needs_gpus and not devices and not settings.get("use_cpu"):
        raise ValueError(
            f"--accelerate_config {config} is for GPUs ({kind}, {settings.get('mixed_precision', 'no')}), and PyTorch finds "
            f"none here; --num_processes N or --accelerate_config {PLAIN} starts processes on CPUs."
        )
    if kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise ValueError(f"--accelerate_config {config} needs DeepSpeed; `pip install deepspeed`.")
    if devices and number > devices and int(settings.get("num_machines") or 1) == 1:
        raise ValueError(
            f"{number} processes need as many GPUs, and PyTorch finds {devices} here; give --num_processes {devices}, or "
            "--use_cpu to train on CPUs."
        )


def _find_config(name: str) -> Path:
    path, folder = Path(name).expanduser(), recipes_dir() / "accelerate"
    if path.is_file():
        return path
    packaged = folder / f"{path.stem}.yaml"
    if path.parent == Path() and packaged.is_file():
        return packaged
    have = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
    raise OSError(f"--accelerate_config {name}: there is no such file; recipes/accelerate has {have}.")


def _read_settings(path: Path) -> dict:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"--accelerate_config: {path} is not valid yaml: {' '.join(str(error).split())}.") from error
    if not isinstance(settings, dict):
        raise ValueError(
            f"--accelerate_config: {path} holds no options of accelerate; `accelerate config` writes a file."
        )
    return settings


def _distributed(settings: dict) -> bool:
    return str(settings.get("distributed_type", "NO")) not in ("NO", "False")  # an unquoted NO is false in yaml


def _devices() -> int:
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def _on_cpu(rest: Sequence[str]) -> bool:
    """Whether the run's own options keep it on CPUs."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--use_cpu", "--use-cpu", nargs="?", const="true", default="false")
    return parser.parse_known_args(rest)[0].use_cpu.lower() in ("true", "yes", "t", "y", "1")


def _launch(options: list[str], words: list[str]) -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes tell what went wrong
    os.environ[STARTED] = "1"
    try:
        launch_command(launch_command_parser().parse_args([*options, str(SCRIPT), *words]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        _end(failure.exitcode, f"process {rank}")
    except subprocess.CalledProcessError as error:
        _end(error.returncode, "the process")
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        del os.environ[STARTED]


def _end(code: int, who: str) -> None:
    """End as a process did; of one that a signal ended nobody has told yet."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the system does that where memory is short" if -code == signal.SIGKILL else ""
        print(f"error: {who} was ended by {name}{hint}.", file=sys.stderr)
        code = 128 - code
    sys.exit(code)
