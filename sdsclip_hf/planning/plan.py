"""What a run will need, from its options alone: weights, floating-point operations, memory and time, before it is started.

    memory = weights + optimiser states + activations and gradients alive at the step's worst moment
    time   = floating-point operations of a step / those that the device sustains in a second * steps

Of the models only the configurations are read; operations and memory are those of one optimiser step that is rehearsed
on tensors without contents, see [`rehearsal`]. The memory is that of the tensors of one process. Beyond it come Python and
the libraries (on a GPU its context), what single operations and the allocator take for themselves, the buffers of DDP,
evaluation and saving. The time is that of the training steps alone, as if the device never waited for data.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from sdsclip_hf.common.devices import default_device
from sdsclip_hf.config import SDSCLIPConfig, knob
from sdsclip_hf.planning.ledger import Phase
from sdsclip_hf.planning.rehearsal import (
    BACKWARD,
    CHECKPOINTING,
    FORWARD,
    GAP,
    OPTIMIZER,
    PARTS,
    STUDENT,
    WEIGHTS,
    StepCost,
    rehearse,
)
from sdsclip_hf.planning.scoring import plan_scoring
from sdsclip_hf.scoring.arguments import ScoringArguments, scoring_settings
from sdsclip_hf.training.arguments import DataArguments, ModelArguments

logger = logging.getLogger(__name__)

GIB, TERA, MILLION = 2**30, 1e12, 1e6
STAGES = (WEIGHTS, OPTIMIZER, FORWARD, BACKWARD)
UNITS = {"tflop": "TFLOP", "gib": "GiB"}


@dataclass
class PlanArguments:
    """What ``sdsclip plan`` takes beside every option of ``sdsclip finetune``.

    Raises:
        ValueError: a number that is not above zero.
    """

    tflops: float | None = knob(
        None,
        "Floating-point operations that the device sustains on these models, in 10^12 a second; default: what this machine "
        "reaches on float32 matrix products.",
    )
    caption_tokens: int | None = knob(
        None, "Tokens of a caption for the student, padding included; default: as many as its text tower reads."
    )
    train_pairs: int | None = knob(
        None, "Pairs of the training data, from which the number of steps follows; default: max_train_samples."
    )
    processes: int = field(
        default=1,
        metadata={
            "help": "Processes of the run, of which one is planned; the others do the same.",
            "aliases": ["--num_processes"],
        },
    )
    alternatives: bool = knob(True, "Whether other settings are planned, too, to compare with.")
    output_json: str | None = knob(None, "File that receives the plan.")

    def __post_init__(self):
        for name in ("tflops", "caption_tokens", "train_pairs", "processes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value!r}; it must be more than zero. Set --{name}.")


def plan(arguments: PlanArguments, model: ModelArguments, data: DataArguments, config: SDSCLIPConfig) -> dict:
    """The plan of a run, as ``--output_json`` has it.

    Returns:
        ``batch`` (pairs a step of all ``processes``), ``latent_shape``; ``parts``, for each part of the step its ``weights``
        and those that are ``trained``, its ``tflop`` of a step and the ``gib`` that it holds at the peak, by stage;
        ``tflop`` and ``gib`` in all; ``tflops``, the device's speed, and ``seconds`` a step; ``steps`` and ``hours`` of
        the run, None where its length is not known; ``prompt_cache_gib``, of prompts kept on disk;
        ``optimizer_is_assumed``, see [`StepCost`]; ``scoring``, of what is scored before the run, see [`plan_scoring`], None
        where the configuration tells of nothing; ``alternatives``, with the ``options`` that differ, ``tflop``, ``gib``
        and ``seconds``.

    Raises:
        OSError: a configuration cannot be had.
        ValueError: the parts do not fit one another.
    """

    scoring = None
    if data.scoring is not None:
        scoring = ScoringArguments(**scoring_settings(vars(model) | vars(data) | vars(config)))

    def cost_of(config: SDSCLIPConfig) -> StepCost:
        names = model.model_name_or_path, model.teacher_name_or_path
        candidates = None if scoring is None else sum(scoring.sources.values())
        return rehearse(*names, config, arguments.caption_tokens, arguments.processes, model.open_clip, candidates)

    step = config.per_device_train_batch_size * arguments.processes
    if config.contrastive_batch_size is not None and config.contrastive_batch_size % step:
        raise ValueError(
            f"contrastive_batch_size {config.contrastive_batch_size} is no multiple of {step}, which is "
            f"per_device_train_batch_size times {arguments.processes} processes; change --contrastive_batch_size."
        )
    cost, pairs = cost_of(config), arguments.train_pairs or data.max_train_samples
    speed, steps = arguments.tflops or matrix_speed() / TERA, num_steps(config, pairs, arguments.processes)
    totals, alternatives = _totals(cost, speed), []
    for options in other_settings(config, cost.latent_shape, arguments.processes) if arguments.alternatives else ():
        try:
            alternatives.append({"options": options, **_totals(cost_of(replace(config, **options)), speed)})
        except ValueError:  # the run cannot have it: a latent too small for the denoiser, for instance
            logger.debug("left out: %s", options, exc_info=True)
    batch = config.contrastive_batch_size or config.per_device_train_batch_size * arguments.processes
    return {
        "batch": batch * config.gradient_accumulation_steps,
        "processes": arguments.processes,
        "latent_shape": cost.latent_shape,
        "parts": _parts(cost),
        **totals,
        "tflops": speed,
        "steps": steps,
        "hours": None if steps is None else steps * totals["seconds"] / 3600,
        "prompt_cache_gib": pairs * cost.prompt_bytes / GIB if pairs and config.prompt_cache_dir else None,
        "optimizer_is_assumed": not cost.knows_optimizer,
        "scoring": scoring and plan_scoring(scoring, speed, pairs, arguments.processes),
        "alternatives": alternatives,
    }


def _totals(cost: StepCost, speed: float) -> dict[str, float]:
    tflop = sum(cost.flops.values()) / TERA
    return {"tflop": tflop, "gib": sum(cost.memory.values()) / GIB, "seconds": tflop / speed}


def _parts(cost: StepCost) -> dict[str, dict]:
    return {
        part: {
            "weights": cost.weights.get(part, 0),
            "trained": cost.trained if part == STUDENT else 0,
            "tflop": _by_stage(cost.flops, part, TERA),
            "gib": _by_stage(cost.memory, part, GIB),
        }
        for part in PARTS
        if part == STUDENT or cost.latent_shape
    }


def _by_stage(counts: dict[Phase, float], part: str, unit: float) -> dict[str, float]:
    found = {stage: counts.get(Phase(part, stage), 0) / unit for stage in STAGES}
    found[FORWARD] += counts.get(Phase(part, GAP), 0) / unit
    return found


def num_steps(config: SDSCLIPConfig, pairs: int | None, processes: int = 1) -> int | None:
    """The optimiser steps of a run on ``pairs`` pairs; None where neither they nor ``max_steps`` are known."""
    if config.max_steps > 0 or pairs is None:
        return config.max_steps if config.max_steps > 0 else None
    batch = config.contrastive_batch_size or config.per_device_train_batch_size * processes
    batches = pairs // batch if config.dataloader_drop_last else math.ceil(pairs / batch)
    return math.ceil(config.num_train_epochs * max(1, math.ceil(batches / config.gradient_accumulation_steps)))


def other_settings(
    config: SDSCLIPConfig, latent_shape: tuple[int, int, int] | None, processes: int = 1
) -> Iterator[dict]:
    """Options to compare with: the forms of L_SDS and latents of half the size, less that is kept, fewer pairs at once."""
    again = "teacher_gradient_checkpointing"
    forms = [{"sds_gradient": "full", again: False}, {"sds_gradient": "full", again: True}]
    forms.append({"sds_gradient": "stop_gradient", again: False})
    for size in (latent_shape[1], latent_shape[1] // 2) if latent_shape else ():
        for form in forms:
            differing = {name: value for name, value in form.items() if value != getattr(config, name)}
            differing |= {"latent_size": size} if size != latent_shape[1] else {}
            if differing:
                yield differing
    if not config.gradient_checkpointing:
        yield {CHECKPOINTING: True}
    size = config.per_device_train_batch_size
    if size % 2 == 0 and size > 2:
        whole = config.contrastive_batch_size or size * processes
        yield {"per_device_train_batch_size": size // 2, "contrastive_batch_size": whole}


def matrix_speed(tries: int = 5) -> float:
    """Floating-point operations a second that this machine's accelerator, or else its CPU, reaches on matrix products."""
    device = default_device()
    size = 1024 if device.type == "cpu" else 8192
    matrix, best = torch.ones(size, size, device=device), math.inf
    for _ in range(tries):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for an accelerator
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def report(plan: dict) -> str:
    """A plan as text for a terminal, its tables as Markdown."""
    columns = [("tflop", FORWARD), ("tflop", BACKWARD), *(("gib", stage) for stage in STAGES)]
    rows = [
        [name, f"{part['weights'] / MILLION:.2f}", f"{part['trained'] / MILLION:.2f}"]
        + [_number(part[kind][stage]) for kind, stage in columns]
        for name, part in plan["parts"].items()
    ]
    head = ["part", "weights, M", "trained, M", *(f"{stage}, {UNITS[kind]}" for kind, stage in columns)]
    of_latents = "" if plan["latent_shape"] is None else f", z0 of {' x '.join(map(str, plan['latent_shape']))}"
    of_processes = f", on one of {plan['processes']} processes" if plan["processes"] > 1 else ""
    lines = [
        f"One optimiser step, {plan['batch']} pairs{of_processes}{of_latents}. Memory is that at the peak.",
        *("", *_table(head, rows), ""),
        f"Memory: {plan['gib']:.2f} GiB, beside what Python, the libraries and the allocator take.",
        f"A step: {_number(plan['tflop'])} TFLOP; {_duration(plan['seconds'])} at {plan['tflops']:.3g} TFLOP/s.",
    ]
    if plan["steps"] is None:
        lines.append("The run: give --max_steps, or --train_pairs, to have its time.")
    else:
        lines.append(f"The run: {plan['steps']:,} steps, {_duration(plan['steps'] * plan['seconds'])}.")
    if plan["prompt_cache_gib"] is not None:
        lines.append(f"The prompts on disk: {plan['prompt_cache_gib']:.2f} GiB.")
    if plan["optimizer_is_assumed"]:
        lines.append("The optimiser cannot be made here: two float32 numbers a trained weight are assumed.")
    if plan["alternatives"]:
        told = [("as asked", plan)] + [(_options(other["options"]), other) for other in plan["alternatives"]]
        rows = [[name, _number(one["tflop"]), f"{one['gib']:.2f}", _duration(one["seconds"])] for name, one in told]
        lines += ["", *_table(["settings", "TFLOP a step", "GiB", "time a step"], rows)]
    if plan["scoring"] is not None:
        lines += ["", *_report_scoring(plan["scoring"])]
    return "\n".join(lines)


def _report_scoring(plan: dict) -> list[str]:
    rows = [
        [name, f"{part['weights'] / MILLION:.2f}", f"{part['gib']:.2f}", f"{part['alive']:.2f}"]
        for name, part in plan["parts"].items()
    ]
    calls = f"up to {plan['captions']} captions x {plan['draws']} draws"
    lines = [
        f"Before it: sdsclip score-captions with {plan['teacher']}, z0 of {' x '.join(map(str, plan['latent_shape']))}, "
        f"batches of {plan['batch_size']}.",
        *("", *_table(["part", "weights, M", "weights, GiB", "at work, GiB"], rows), ""),
        f"Memory: {plan['gib']:.2f} GiB; "
        + "; ".join(
            f"{other['gib']:.2f} with {_options(other['options']) or 'neither'}" for other in plan["alternatives"]
        )
        + ".",
        f"A draw of a picture and a caption: {_number(plan['tflop'])} TFLOP.",
    ]
    if plan["hours"] is None:
        lines.append(f"The scoring: {calls} a picture; give --train_pairs to have its time.")
    else:
        lines.append(
            f"The scoring: {plan['pictures']:,} pictures x {calls}, at most {_duration(3600 * plan['hours'])}."
        )
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return [
        f"| {lines[0]} |",
        f"|-{'-|-'.join('-' * width for width in widths)}-|",
        *(f"| {line} |" for line in lines[1:]),
    ]


def _number(value: float) -> str:
    """Two decimals, or as many as show two digits."""
    return f"{value:.2f}" if value >= 0.1 or not value else f"{value:.2g}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _options(options: dict) -> str:
    return " ".join(f"--{name} {str(value).lower() if value is True else value}" for name, value in options.items())
