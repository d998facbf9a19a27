"""The machine itself: Python, the libraries, the device and its number formats, and how many processes it can take."""

import importlib.metadata
import importlib.util
import platform
import shutil
from collections.abc import Iterator

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from transformers import Trainer
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from sdsclip_hf.common.devices import gpu_names, refuse_old_driver
from sdsclip_hf.common.precision import settled_dtype
from sdsclip_hf.common.processes import cores
from sdsclip_hf.doctor.case import Case
from sdsclip_hf.doctor.findings import Finding, Trouble

PACKAGE = "sdsclip_hf"
TOLD = ("torch", "transformers", "diffusers", "datasets")  # whose versions are told in any case


def check_python(case: Case) -> Iterator[Finding]:
    """Python against what the package declares."""
    found, wanted = platform.python_version(), importlib.metadata.metadata(PACKAGE)["Requires-Python"]
    if not SpecifierSet(wanted or "").contains(found, prereleases=True):
        raise Trouble(f"{found}, but the package needs {wanted}.", "Install it in an environment with another Python.")
    yield Finding("ok", "python", f"{found} (needs {wanted})")


def check_libraries(case: Case) -> Iterator[Finding]:
    """Each library against the bounds that the package declares; one line in all where nothing is wrong."""
    wanted = [Requirement(line) for line in importlib.metadata.requires(PACKAGE) or []]
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [finding for one in wanted if (finding := _library(one))]
    yield from wrong
    if not wrong:
        told = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in TOLD)
        yield Finding("ok", "libraries", f"all {len(wanted)} within bounds: {told}, ...")


def _library(wanted: Requirement) -> Finding | None:
    try:
        found = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found is not None and wanted.specifier.contains(found, prereleases=True):
        return None
    have = "is not installed" if found is None else f"{found} is installed"
    return Finding(
        "fail",
        "libraries",
        f"{wanted.name} {have}; the package needs {wanted.specifier or 'it'}.",
        f'pip install "{wanted.name}{wanted.specifier}"',
    )


def check_extras(case: Case) -> Iterator[Finding]:
    """The packages that these options alone need; nothing where there are none."""
    if case.lacks:
        raise Trouble(f"--deepspeed needs {case.lacks}, which is not installed.", f"pip install {case.lacks}")
    for name in case.config.report_to or []:
        yield _reporting(name)
    if case.config.deepspeed:
        yield Finding("ok", "packages", "deepspeed is installed, for --deepspeed")
    try:
        Trainer.get_optimizer_cls_and_kwargs(case.config)
    except ImportError as error:
        raise Trouble(
            f"--optim {getattr(case.config.optim, 'value', case.config.optim)}: {error}",
            "Install what it names, or leave --optim out.",
        ) from error
    if case.config.preprocess_on_device and case.device.type != "cpu" and not importlib.util.find_spec("torchvision"):
        remedy = "pip install torchvision, or leave --preprocess_on_device out."
        raise Trouble("--preprocess_on_device needs torchvision, which is not installed.", remedy)
    compiles = {"teacher_compile": case.needs_teacher and case.config.teacher_compile}
    compiles["torch_compile"] = case.config.torch_compile_backend == "inductor"
    asked = [f"--{name}" for name, given in compiles.items() if given]
    if asked and case.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        yield Finding(
            "warn",
            "packages",
            f"{asked[0]} needs a C++ compiler, and there is none on the PATH.",
            f"Install one (Debian: apt install g++), or leave {asked[0]} out.",
        )


def _reporting(name: str) -> Finding:
    if name in get_available_reporting_integrations() or importlib.util.find_spec(name):
        return Finding("ok", "packages", f"{name} is installed, for --report_to")
    if name not in INTEGRATION_TO_CALLBACK:
        names = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
        return Finding("fail", "packages", f"--report_to {name}: there is no such tracker.", f"Choose from {names}.")
    remedy = f"pip install {name}, or leave --report_to out."
    return Finding("fail", "packages", f"--report_to {name}: it is not installed.", remedy)


def check_device(case: Case) -> Iterator[Finding]:
    """What the run computes on."""
    if case.device.type == "cpu":
        if not case.config.use_cpu:
            refuse_old_driver()
        spared = torch.accelerator.is_available() and "; the accelerator is left alone, by --use_cpu"
        yield Finding("ok", "device", f"CPU, {cores()} cores{spared or ''}")
        return
    count, kind = torch.accelerator.device_count(), case.device.type
    names = gpu_names() if kind == "cuda" else [kind]
    kinds = list(dict.fromkeys(names))
    if len(kinds) > 1:
        alike = ",".join(str(number) for number, name in enumerate(names) if name == names[0])
        yield Finding(
            "warn",
            "device",
            f"{count} GPUs of {len(kinds)} kinds, {', '.join(kinds)}: in each step the others wait for the slowest, and the "
            "batch must fit the smallest.",
            f"Take those of one kind: CUDA_VISIBLE_DEVICES={alike}. Scoring shares out its work by speed.",
        )
        return
    yield Finding("ok", "device", f"{count} x {', '.join(kinds)}")


def check_precision(case: Case) -> Iterator[Finding]:
    """The number formats that are asked for, on this device."""
    config, device = case.config, case.device.type
    asked = [name for name in ("bf16", "fp16") if getattr(config, name)]
    if case.refused:
        option = asked[0] if asked else "tf32"
        raise Trouble(
            f"--{option}: {case.refused}", f"Leave --{option} out (--{option} false), or use a GPU that has it."
        )
    if config.fp16 and device == "cpu":
        raise Trouble("--fp16 needs a GPU, and the run takes place on the CPU.", "Leave --fp16 out (--fp16 false).")
    if config.teacher_dtype != "float32" and case.needs_teacher:
        if device == "cpu" and config.teacher_dtype == "float16":
            yield Finding(
                "warn",
                "precision",
                "--teacher_dtype float16 on a CPU saves memory and is slow.",
                "Set --teacher_dtype float32, unless memory is short.",
            )
            return
        if device == "cuda" and config.teacher_dtype == "bfloat16" and not torch.cuda.is_bf16_supported(False):
            yield Finding(
                "warn",
                "precision",
                "--teacher_dtype bfloat16 is emulated on this GPU, and slow.",
                "Set --teacher_dtype float16.",
            )
            return
    if device == "cuda" and case.needs_teacher and config.teacher_dtype == "float32":
        yield Finding(
            "warn",
            "precision",
            "the teacher in float32 takes twice the memory and several times the time that this GPU needs for it.",
            f"Set --teacher_dtype {settled_dtype('auto')}.",
        )
        return
    of_teacher = f", the teacher in {config.teacher_dtype}" if case.needs_teacher else ""
    yield Finding("ok", "precision", f"{asked[0] if asked else 'float32'}{of_teacher}")


def check_processes(case: Case) -> Iterator[Finding]:
    """The number of processes against that of devices, and against the contrastive batch."""
    count, devices = case.processes, 1 if case.device.type == "cpu" else torch.accelerator.device_count()
    step = case.config.per_device_train_batch_size * count
    whole = case.config.contrastive_batch_size
    if whole is not None and whole % step:
        raise Trouble(
            f"--contrastive_batch_size {whole} is no multiple of {step}, per_device_train_batch_size times {count} "
            "processes.",
            f"Set it to {max(1, whole // step) * step}, for instance.",
        )
    if case.device.type == "cpu":
        if count > cores():
            found = f"{count} processes on {cores()} cores: they wait for one another."
            yield Finding("warn", "processes", found, f"Start {cores()} at most.")
        else:
            yield Finding("ok", "processes", f"{count} on {cores()} cores")
    elif count > devices:
        raise Trouble(f"{count} processes on {devices} devices: each needs its own.", f"Start {devices} at most.")
    elif count < devices:
        yield Finding(
            "warn",
            "processes",
            f"{count} on {devices} devices.",
            f"Start {devices} (and give --num_processes {devices} here), or hide the others by CUDA_VISIBLE_DEVICES: "
            "one process alone takes one of them.",
        )
    else:
        yield Finding("ok", "processes", f"{count}, one a device")
