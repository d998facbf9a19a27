"""Room for the run: its folder, memory, and disk."""

import contextlib
import io
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from sdsclip_hf import shapes
from sdsclip_hf.common.errors import expand
from sdsclip_hf.common.shared_memory import PLACE, REMEDY, bytes_on_their_way
from sdsclip_hf.common.writing import size
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.doctor.case import Case
from sdsclip_hf.doctor.findings import Finding, Trouble
from sdsclip_hf.doctor.hub_access import Hub
from sdsclip_hf.planning.plan import num_steps
from sdsclip_hf.planning.rehearsal import OPTIMIZER, STUDENT, WEIGHTS, StepCost, rehearse
from sdsclip_hf.students.loading import picture_shapes, student_config
from sdsclip_hf.training.compared import run_beside
from sdsclip_hf.training.output_dir import claim_output_dir

BESIDE = {"cpu": 10**9}  # bytes that Python and the libraries take for themselves; on a GPU its context
BESIDE_OF_GPU = 5 * 10**8
NEARLY = 0.9  # of what there is
RUN = "the run's own files"
WEIGHT_BYTES = 4  # weights that train, and exports, are float32


def check_output_dir(case: Case) -> Iterator[Finding]:
    """Whether the folder is free for this run, and can be written to."""
    asked = case.config.output_dir
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            claim_output_dir(case.data, case.config, case.name)
    finally:
        case.config.output_dir = case.config.output_dir or asked or f"outputs/{case.name}"
    folder = Path(case.config.output_dir)
    there = existing(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise Trouble(f"{folder} cannot be written to.", "Choose another --output_dir.")
    resumed = case.config.resume_from_checkpoint
    begins = f"goes on from {resumed}" if resumed else "begins anew"
    if folder.exists() and any(folder.iterdir()) and case.data.overwrite_output_dir:
        found = f"{folder} holds another run, which --overwrite_output_dir will delete."
        yield Finding(
            "warn", "output folder", found, "Leave it out, if that is not meant, or choose another --output_dir."
        )
    else:
        yield Finding("ok", "output folder", f"{folder}, where the run {begins}")


def existing(path: Path) -> Path:
    """The folder itself, or the first above it that there is."""
    path = path.expanduser().absolute()
    return next(one for one in (path, *path.parents) if one.exists())


def check_memory(case: Case) -> Iterator[Finding]:
    """What ``sdsclip plan`` finds that a step needs, against what is free."""
    if case.missing:
        found = f"not looked at: the run has no {' and no '.join(dict.fromkeys(case.missing))} yet."
        yield Finding("warn", "memory", found, "Mend that first.")
        return
    needs: dict[str, int] = {}
    for run, config in case.configs.items():
        names = case.model.model_name_or_path, case.model.teacher_name_or_path
        cost = rehearse(*names, config, processes=case.processes, options=case.model.open_clip)
        case.cost = case.cost or cost
        needs[run] = sum(cost.memory.values())
    (main, *others), names = case.configs.values(), list(needs)
    together = bool(others) and case.processes == 1 and run_beside(main, others)
    name = max(names[1:] if together else names, key=needs.get)
    needed = needs[name] + (needs[names[0]] if together else 0)
    if name != names[0] and not together:  # this run's models are there already
        needed += sum(size for phase, size in case.cost.memory.items() if phase.stage == WEIGHTS)
    sharing = case.processes if case.device.type in ("cpu", "mps") else 1
    needed *= sharing
    free, where = free_memory(case.device), "of memory" if case.device.type in ("cpu", "mps") else "of the GPU's memory"
    beside = BESIDE.get(case.device.type, BESIDE_OF_GPU) * (2 if together else sharing)
    of_run = "" if name == "this run" else f" of {name!r}, which it is compared with"
    of_run = f" of this run and of {name!r}, made at the same time," if together else of_run
    of_all = f", all {sharing} processes together" if sharing > 1 else ""
    found = f"a step{of_run} holds {size(needed)} of tensors{of_all}; {size(free)} {where} are free"
    remedy = (
        "Lower --per_device_train_batch_size (--contrastive_batch_size keeps the batch); see what `sdsclip plan` tells."
    )
    if needed > free:
        fits = None if together else _fitting(case, case.configs[name], free / sharing)
        raise Trouble(f"{found}.", f"{fits} would fit; see what `sdsclip plan` tells." if fits else remedy)
    if needed + beside > NEARLY * free:
        yield Finding("warn", "memory", f"{found}, with little left for Python and the libraries.", remedy)
    else:
        yield Finding("ok", "memory", found)


def _fitting(case: Case, config: SDSCLIPConfig, free: float) -> str | None:
    """The options, of those that leave the batch as it is, with which a step fits into so many bytes; None: none do."""
    names, processes = (case.model.model_name_or_path, case.model.teacher_name_or_path), case.processes
    forms = [{}]
    if config.lambda_sds and config.sds_gradient == "full":
        forms.append({"sds_gradient": "stop_gradient"})
    whole = config.contrastive_batch_size or config.per_device_train_batch_size * processes
    for form in forms:
        size = config.per_device_train_batch_size
        while size % 2 == 0 and size > 2:
            size //= 2
            options = form | {"per_device_train_batch_size": size, "contrastive_batch_size": whole}
            cost = rehearse(*names, replace(config, **options), processes=processes, options=case.model.open_clip)
            if sum(cost.memory.values()) < NEARLY * free:
                return " ".join(f"--{name} {value}" for name, value in options.items())
    return None


def free_memory(device: torch.device) -> int:
    """Bytes that a new process may take on the device; on a CPU within what a container is allowed."""
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).mem_get_info()[0]
    free, group = psutil.virtual_memory().available, Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without limit ("max")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        free = min(free, limit - used + (int(cached[1]) if cached else 0))  # the files' cache is given back
    return free


def check_shared_memory(case: Case) -> Iterator[Finding]:
    """Room for what loader workers hand over; nothing where there are none."""
    workers, config = case.config.dataloader_num_workers, case.config
    if not workers or not PLACE.is_dir() or case.missing or config.preprocess_on_device:
        return  # the last hands over whole pictures, whose sizes the run looks at
    name = expand(shapes.resolve(case.model.model_name_or_path))
    of_picture = picture_shapes(student_config(name, options=case.model.open_clip))
    batch = {name: torch.empty(1, *shape) for name, shape in of_picture.items()}
    of_process = (config.contrastive_batch_size or 0) // case.processes
    rows = of_process or config.per_device_train_batch_size
    needed = bytes_on_their_way(batch, rows, workers, config.dataloader_prefetch_factor) * case.processes
    free = shutil.disk_usage(PLACE).free
    found = f"{size(free)} free in {PLACE}; the pictures of {workers} loader workers need {size(needed)}"
    if needed > free:
        yield Finding("warn", "shared memory", f"{found}: the run will go on without workers.", f"{REMEDY}.")
    else:
        yield Finding("ok", "shared memory", found)


def check_disk(case: Case, hub: Hub) -> Iterator[Finding]:
    """What will be written, against the free space of each disk that it is written to."""
    disks: dict[int, list[tuple[Path, str, int]]] = {}
    for need in [*case.disk, (hub.cache, "downloads", 0), *needs_of_run(case)]:
        disks.setdefault(existing(need[0]).stat().st_dev, []).append(need)
    for needs in disks.values():
        yield _disk(needs, unknown=case.cost is None and any(what == RUN for _, what, _ in needs))
    if case.cost is not None and checkpoints(case) is None:
        one = size(checkpoint_bytes(case.cost))
        yield Finding("warn", "disk", f"all checkpoints are kept, of {one} each.", "Set --save_total_limit.")


def needs_of_run(case: Case) -> list[tuple[Path, str, int]]:
    """Bytes that the run itself writes, with their folder, by what they are for."""
    folder = Path(case.config.output_dir)
    if case.cost is None:
        return [(folder, RUN, 0)]
    kept, whole = checkpoints(case) or 0, WEIGHT_BYTES * case.cost.weights[STUDENT]
    needs = [(folder, f"{kept} checkpoints", kept * checkpoint_bytes(case.cost))]
    exports = 2 if case.config.push_to_hub else 1  # a push in mid-training has a copy of its own
    needs.append((folder, "exports", exports * whole))
    caches = {config.prompt_cache_dir for config in case.configs.values() if config.prompt_cache_dir}
    prompts = (case.pairs or 0) * case.cost.prompt_bytes
    needs += [(Path(cache), "prompts", prompts) for cache in sorted(caches)]
    return needs


def _disk(needs: list[tuple[Path, str, int]], unknown: bool) -> Finding:
    needed, free = sum(count for _, _, count in needs), shutil.disk_usage(existing(needs[0][0])).free
    parts: dict[str, int] = {}
    for _, what, count in needs:
        parts[what] = parts.get(what, 0) + count
    of = ", ".join(f"{what} {size(count)}" for what, count in parts.items() if count)
    where = " and ".join(dict.fromkeys(str(path) for path, _, _ in needs))
    found = f"{size(free)} free for {where}; {size(needed)} needed{f' ({of})' if of else ''}"
    found += f", beside {RUN}, whose size is not known yet" if unknown else ""
    remedy = "Free some, lower --save_total_limit, or move them: --output_dir, and HF_HOME for the cache."
    if needed > free:
        return Finding("fail", "disk", f"{found}.", remedy)
    if needed > NEARLY * free:
        return Finding("warn", "disk", f"{found}.", remedy)
    return Finding("ok", "disk", found)


def checkpoint_bytes(cost: StepCost) -> int:
    """Of one checkpoint: the weights that train, and what the optimiser keeps for them."""
    states = sum(count for phase, count in cost.memory.items() if (phase.part, phase.stage) == (STUDENT, OPTIMIZER))
    return WEIGHT_BYTES * cost.trained + states


def checkpoints(case: Case) -> int | None:
    """How many a run keeps at most at one time; None where that is not known."""
    config = case.config
    strategy = getattr(config.save_strategy, "value", config.save_strategy)
    if strategy == "no":
        return 0
    steps = num_steps(config, case.pairs, case.processes)
    if strategy == "epoch":
        made = math.ceil(config.num_train_epochs) if config.max_steps <= 0 else None
    elif config.save_steps < 1:
        made = math.ceil(1 / config.save_steps)
    else:
        made = None if steps is None else math.ceil(steps / config.save_steps)
    if not config.save_total_limit:
        return made
    kept = config.save_total_limit + 1 + bool(config.load_best_model_at_end)  # the oldest goes once the newest is whole
    return kept if made is None else min(kept, made)
