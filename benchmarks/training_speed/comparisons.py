"""The rows that have a target: each compares two ways to the same thing."""

from collections.abc import Callable, Sequence
from functools import partial

import datasets
import torch
from torch import Tensor, nn

from sdsclip_hf import SDSCLIPTrainer
from sdsclip_hf.data.images import picture_digest
from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.losses import GRADIENTS
from sdsclip_hf.shapes import load_shapes
from training_speed.bench import SMALL, Bench, photos
from training_speed.measure import (
    EXACT_MEMORY,
    MemoryWatch,
    can_measure_memory,
    in_fresh_process,
    in_turns,
    memory_ratio,
    ratio,
    read_weights,
    seconds_a_step,
    timed,
    trainers_in_turns,
)
from training_speed.plain_loop import PlainLoop
from training_speed.trainings import training_memory

# Ranking distillation


def ranking(bench: Bench, student: str, candidates: int) -> dict:
    """A step with L_rank against a contrastive step."""
    return in_fresh_process(_ranking, bench, student, candidates)


def _ranking(bench: Bench, student: str, candidates: int) -> dict:
    data, steps = _three_others(load_shapes("train")), bench.size.steps[student not in bench.size.students]
    terms = {"lambda_rank": 1.0, "ranking_scores": "shapes/scores", "ranking_candidates": candidates}
    options = {"steps": steps, "data": data, "trainable": "full"}
    trainers = {
        "contrastive": bench.trainer(student, **options),
        "with L_rank": bench.trainer(student, **options, **terms),
    }
    seconds = trainers_in_turns(bench.pairs, trainers)
    what = f"step with L_rank, K = {candidates}, to a contrastive one ({student}, all weights, batch 32)"
    target = "<= 1.3" if candidates == 1 else ""
    return {"figures": [ratio(what, target, seconds["with L_rank"], seconds["contrastive"])], "seconds": seconds}


def _three_others(data: datasets.Dataset) -> datasets.Dataset:
    """The pictures whose caption was scored among three others, captioned with it alone."""
    scores = CandidateScores.load("shapes/scores")
    items = [scores.item(scores.numbers_of(picture_digest(image))[0]) for image in data["image"]]
    kept = [number for number, item in enumerate(items) if len(item.candidates) == 4]
    captions = [items[number].caption for number in kept]
    return data.select(kept).remove_columns("caption").add_column("caption", captions)


# The two forms of the gradient


def stop_gradient(bench: Bench) -> dict:
    """A step in the stop-gradient form against one in the full form."""
    seconds = in_fresh_process(_forms, bench)
    figures = [ratio("time of a step, full to stop-gradient", ">= 2.5", seconds["full"], seconds["stop_gradient"])]
    mib = {form: training_memory(bench, sds_gradient=form) for form in GRADIENTS}
    figures.append(
        memory_ratio("peak activations, stop-gradient to full", "<= 0.4", "step", mib["stop_gradient"], mib["full"])
    )
    return {"figures": figures, "seconds": seconds, "MiB": mib}


def _forms(bench: Bench) -> dict[str, list[float]]:
    teacher = bench.load_teacher()
    options = {"teacher": teacher, "per_device_train_batch_size": bench.size.batch}
    return trainers_in_turns(bench.pairs, {form: bench.trainer(**options, sds_gradient=form) for form in GRADIENTS})


# Against a plain loop


def plain_loop(bench: Bench) -> dict:
    """Both forms against a plain loop over the paper's formula."""
    found = in_fresh_process(_plain_loop, bench)
    seconds, mib = found["seconds"], {}
    if can_measure_memory():
        mib["plain"] = in_fresh_process(_plain_memory, bench, env=EXACT_MEMORY)
        mib |= {form: training_memory(bench, sds_gradient=form, mapper_unit_rms=False) for form in GRADIENTS}
    figures = []
    for form, target in zip(GRADIENTS, (">= 1.3", ">= 3"), strict=True):
        figures.append(ratio(f"time of a step, plain loop to ours, {form}", target, seconds["plain"], seconds[form]))
        what = f"memory of training, plain loop to ours, {form}"
        figures.append(memory_ratio(what, "> 1", "training", mib.get("plain"), mib.get(form)))
    for name, value in found["differences"].items():
        figures.append({"what": f"relative difference of the {name}", "target": "<= 1e-4", "value": value})
    return {"figures": figures, "seconds": seconds, "MiB": mib}


def _plain_loop(bench: Bench) -> dict:
    teacher, data = bench.load_teacher(), photos(bench.size.batch)
    options = {"teacher": teacher, "per_device_train_batch_size": bench.size.batch, "data": data}
    ours = {form: bench.trainer(**options, sds_gradient=form, mapper_unit_rms=False) for form in GRADIENTS}
    plain = PlainLoop(
        bench.student(), bench.teacher(), bench.size.latent, mapper=ours["full"].student.mapper.as_linear()
    )
    images, captions = data["image"][:], data["caption"][:]
    differences = {
        f"{name}, {form}": value
        for form, trainer in ours.items()
        for name, value in differences_to_plain(trainer, plain, images, captions).items()
    }
    runs = {"plain": lambda: timed(plain.step, images, captions)}
    runs |= {form: partial(seconds_a_step, trainer) for form, trainer in ours.items()}
    return {"seconds": in_turns(bench.pairs, runs), "differences": differences}


def differences_to_plain(
    trainer: SDSCLIPTrainer, plain: PlainLoop, images: Sequence, captions: Sequence[str]
) -> dict[str, float]:
    """How far a new trainer's first step is from that of the plain loop with the same weights, t and eps.

    Returns:
        ``loss``, and of the full form ``gradient`` of CLIP's trained weights: the norm of the difference, relative to the
        plain one's.
    """
    batch = trainer.data_collator([{"image": i, "caption": c} for i, c in zip(images, captions, strict=True)])
    timesteps, noise = trainer.distillation.draw(torch.empty(len(captions), *trainer.teacher.latent_shape), (0, 0))
    found = {
        "ours": trainer.compute_loss(trainer.model, batch),
        "plain": plain.loss(images, captions, timesteps, noise),
    }
    differences = {"loss": _relative_difference(found["ours"].detach(), found["plain"].detach())}
    if trainer.args.sds_gradient == "full":
        for loss in found.values():
            loss.backward()
        gradients = [_gradient(clip) for clip in (trainer.student.base_clip, plain.clip)]
        differences["gradient"] = _relative_difference(*gradients)
        trainer.model.zero_grad()
    return differences


def _gradient(module: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters() if parameter.requires_grad])


def _relative_difference(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def _plain_memory(bench: Bench) -> dict[str, float]:
    plain, watch = PlainLoop(bench.student(), bench.teacher(), bench.size.latent), MemoryWatch()
    data = photos(bench.size.batch)
    read_weights(plain.clip, plain.unet, plain.text_encoder)
    watch.mark()
    for _ in range(2):
        plain.step(data["image"][:], data["caption"][:])
        watch.mark()
    return watch.mib()


# GradCache


def grad_cache_memory(bench: Bench) -> dict:
    """A large contrastive batch by mini-batches against one mini-batch, in memory."""
    small, large = bench.size.contrastive
    options = {"teacher": None, "trainable": "full", "batch": small}
    mib = {str(small): training_memory(bench, **options)}
    mib[f"{large} by {small}"] = training_memory(bench, **options, contrastive_batch_size=large)
    pair, sides = (
        f"contrastive batch {large} by {small} to batch {small}",
        (mib[f"{large} by {small}"], mib[str(small)]),
    )
    figures = [memory_ratio(f"peak memory, {pair} (ViT-B/32, all weights)", "<= 1.3", "peak", *sides)]
    figures.append(memory_ratio(f"of that, what a step takes, {pair}", "", "step", *sides))
    return {"figures": figures, "MiB": mib}


def grad_cache_time(bench: Bench) -> dict:
    """A large contrastive batch by mini-batches against the same batch at once, in time."""
    return in_fresh_process(_grad_cache_time, bench)


def grad_cache_gradient(bench: Bench) -> dict:
    """A large contrastive batch by mini-batches against the same batch at once, in the gradient."""
    return in_fresh_process(_grad_cache_gradient, bench)


def _at_once_and_by_parts(bench: Bench) -> dict[str, SDSCLIPTrainer]:
    small, large = bench.size.contrastive
    options = {"student": SMALL, "trainable": "full"}
    by_parts = {"per_device_train_batch_size": small, "contrastive_batch_size": large}
    return {
        f"{large}": bench.trainer(**options, per_device_train_batch_size=large),
        f"{large} by {small}": bench.trainer(**options, **by_parts),
    }


def _grad_cache_gradient(bench: Bench) -> dict:
    (small, large), trainers = bench.size.contrastive, _at_once_and_by_parts(bench)
    some = next(iter(trainers.values()))
    batch, gradients = some.data_collator([some.train_dataset[number] for number in range(large)]), []
    for trainer in trainers.values():
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(trainer.model, dict(batch))
        gradients.append(_gradient(trainer.student))
    what = f"relative difference of the gradient, contrastive batch {large} by {small} to {large} at once"
    figure = {"what": what, "target": "<= 1e-5", "value": _relative_difference(*reversed(gradients))}
    return {"figures": [figure]}


def _grad_cache_time(bench: Bench) -> dict:
    (small, large), trainers = bench.size.contrastive, _at_once_and_by_parts(bench)
    for trainer in trainers.values():
        trainer.data_collator = Once(trainer.data_collator)
    seconds = trainers_in_turns(bench.pairs, trainers)
    what = f"time of a step, contrastive batch {large} by {small} to {large} at once ({SMALL}, all weights)"
    return {"figures": [ratio(what, "<= 1.6", *reversed(seconds.values()))], "seconds": seconds}


class Once:
    """A collator's first batch, again and again, so that the time of reading pictures does not count."""

    def __init__(self, collator: Callable):
        self.collator, self.batch = collator, None

    def __call__(self, examples: list) -> dict[str, Tensor]:
        self.batch = self.batch or self.collator(examples)
        return self.batch
