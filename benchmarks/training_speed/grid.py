"""The rows without a target: what each cheap option brings, how time and memory grow, and what processes bring."""

import shutil
import statistics
from collections.abc import Iterator

import torch
from torch import nn

from sdsclip_hf.losses import GRADIENTS
from training_speed.bench import Bench
from training_speed.measure import in_fresh_process, in_turns, memory_ratio, ratio, timed, trainers_in_turns
from training_speed.trainings import training_memory, training_seconds

MUCH_SLOWER = 10


def cheap_options(bench: Bench) -> Iterator[dict]:
    """Options that make a step with L_SDS cheaper, each alone."""
    yield {"sds_gradient": "stop_gradient"}
    yield {"sds_gradient": "stop_gradient", "teacher_pack_weights": False}
    yield {"teacher_gradient_checkpointing": True}
    yield {"teacher_dtype": "bfloat16"}
    yield {"teacher_dtype": "float16"}
    yield {"latent_size": bench.size.latent // 2}
    yield {"distill_every": 4}
    yield {"distill_fraction": 0.25}
    yield {"prompt_cache_dir": "prompts"}
    yield {"teacher_channels_last": True}
    yield {"teacher_compile": True}
    yield {"sds_gradient": "stop_gradient", "teacher_compile": True}


def option(bench: Bench, settings: dict) -> dict:
    """A step with an option against one in the full form without it."""
    if settings.get("teacher_compile") and shutil.which("g++") is None:
        return {"figures": [], "note": "not measured: torch.compile needs a C++ compiler"}
    slowdown = _slowdown(getattr(torch, settings.get("teacher_dtype", "float32")))
    if slowdown > MUCH_SLOWER:
        return {"figures": [], "note": f"not measured: a convolution takes {slowdown:.0f} times as long on this CPU"}
    if "prompt_cache_dir" in settings:
        settings = {"prompt_cache_dir": str(bench.folder / "prompts")}
    batch = max(bench.size.batch, round(1 / settings.get("distill_fraction", 1)))
    try:
        seconds = in_fresh_process(_option, bench, settings, batch)
    except (RuntimeError, ValueError) as error:
        if not {"teacher_dtype", "teacher_compile"} & settings.keys():
            raise
        return {"figures": [], "note": f"not measured: {str(error).splitlines()[0]:.200}"}
    mib = {"full": training_memory(bench, batch=batch), "option": training_memory(bench, batch=batch, **settings)}
    figures = [ratio("time of a step", "", seconds["option"], seconds["full"])]
    figures.append(memory_ratio("peak memory of a step", "", "peak", mib["option"], mib["full"]))
    return {"figures": figures, "seconds": seconds, "MiB": mib, "batch": batch}


def _slowdown(dtype: torch.dtype) -> float:
    """How many times as long as in float32 a convolution like the denoiser's takes: CPUs lack some number formats."""
    seconds = []
    for kind in (torch.float32, dtype):
        layer, values = nn.Conv2d(320, 320, 3, padding=1).to(kind), torch.randn(1, 320, 16, 16, dtype=kind)
        seconds.append(min(timed(layer, values) for _ in range(3)))
    return seconds[1] / seconds[0]


def _option(bench: Bench, settings: dict, batch: int) -> dict[str, list[float]]:
    common = {"teacher": "random", "per_device_train_batch_size": batch}
    trainers = {
        "full": bench.trainer(**common),
        "option": bench.trainer(**common, **settings, steps=settings.get("distill_every", 1)),
    }
    return trainers_in_turns(bench.pairs, trainers)


def points(bench: Bench) -> Iterator[dict]:
    """Where time and memory are measured: over batch sizes, over latent sizes, and in two processes."""
    size = bench.size
    for form in GRADIENTS:
        for batch in size.batches:
            yield {"form": form, "batch": batch, "latent": size.latent, "processes": 1}
        for latent in size.latents:
            if latent != size.latent:
                yield {"form": form, "batch": size.batch, "latent": latent, "processes": 1}
        yield {"form": form, "batch": 2 * size.batch, "latent": size.latent, "processes": 2}


def growth(bench: Bench, point: dict) -> dict:
    """Seconds and memory of a step at one of the [`points`]."""
    options = {"sds_gradient": point["form"], "latent_size": point["latent"]}
    options |= {"batch": point["batch"], "processes": point["processes"]}
    seconds = training_seconds(bench, steps=bench.pairs, **options)
    mib = training_memory(bench, **options)
    figures = [{"what": "seconds of a step", "value": statistics.median(seconds), "pairs": seconds}]
    figures.append({"what": "GiB at the peak of a step", "value": mib and mib["peak"] / 1024})
    return {"figures": figures, "point": point, "MiB": mib}


def processes(bench: Bench, student: str, teacher: str | None) -> dict:
    """Two processes with half of the threads each against one with all, the same batch on all together."""
    steps = bench.size.steps[student not in bench.size.students]
    options = {"student": student, "teacher": teacher, "batch": 32, "steps": steps}
    if teacher is None:
        options |= {"trainable": "full"}
    runs = {
        f"{count} processes": lambda count=count: statistics.median(training_seconds(bench, count, **options))
        for count in (1, 2)
    }
    seconds = in_turns(bench.pairs, runs, warm_up=False)
    what = f"time of a step, one process to two ({student}, {'L_SDS' if teacher else 'contrastive, all weights'}, batch 32)"
    return {"figures": [ratio(what, "", *seconds.values())], "seconds": seconds}
