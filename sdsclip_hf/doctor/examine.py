"""All checks, in the order in which their lines stand."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import datasets
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from sdsclip_hf.doctor.case import Case
from sdsclip_hf.doctor.dataset import check_benchmark, check_dataset
from sdsclip_hf.doctor.findings import Finding, checked
from sdsclip_hf.doctor.hub_access import Hub, check_hub_login
from sdsclip_hf.doctor.machine import (
    check_device,
    check_extras,
    check_libraries,
    check_precision,
    check_processes,
    check_python,
)
from sdsclip_hf.doctor.models import check_scores, check_student, check_teacher
from sdsclip_hf.doctor.push import check_push
from sdsclip_hf.doctor.room import check_disk, check_memory, check_output_dir, check_shared_memory
from sdsclip_hf.training.compared import config_of


def examine(case: Case) -> Iterator[Finding]:
    """What is found, line by line, as soon as it is.

    Nothing is written: what the Hub's clients fetch to look at it goes into a folder that is deleted at the end.
    """
    with tempfile.TemporaryDirectory(prefix="sdsclip-doctor-") as scratch, _quiet():
        yield from _machine(case)
        with Hub.looked_at(Path(scratch)) as hub:
            yield from checked("Hub login", lambda: check_hub_login(case, hub))
            yield from checked("student", lambda: check_student(case, hub))
            yield from checked("teacher", lambda: check_teacher(case, hub))
            yield from checked("scores", lambda: check_scores(case, hub))
            yield from checked("dataset", lambda: check_dataset(case, hub, Path(scratch)))
            for spec in case.benchmarks:
                yield from checked("benchmark", partial(check_benchmark, case, hub, spec))
            yield from checked("push", lambda: check_push(case, hub))
            yield from checked("memory", lambda: check_memory(case))
            yield from checked("shared memory", lambda: check_shared_memory(case))
            yield from checked("disk", lambda: check_disk(case, hub))


def _machine(case: Case) -> Iterator[Finding]:
    yield from checked("python", lambda: check_python(case))
    yield from checked("libraries", lambda: check_libraries(case))
    yield from checked("output folder", lambda: check_output_dir(case))
    yield from checked("compare", lambda: _compare(case))
    yield from checked("packages", lambda: check_extras(case))
    yield from checked("device", lambda: check_device(case))
    yield from checked("precision", lambda: check_precision(case))
    yield from checked("processes", lambda: check_processes(case))


def _compare(case: Case) -> Iterator[Finding]:
    """The runs that this one is compared with; they tell what else is needed."""
    for name, options in (case.data.compare or {}).items():
        case.compared[name] = config_of(name, options, case.config)
    return iter(())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' own lines, between which the findings would be lost."""
    bars = not are_progress_bars_disabled(), datasets.are_progress_bars_disabled()
    logging.disable(logging.WARNING)
    disable_progress_bars()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        if bars[0]:
            enable_progress_bars()
        if not bars[1]:
            datasets.enable_progress_bars()
