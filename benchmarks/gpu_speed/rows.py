"""What is measured, row by row; each row is a list of points, dictionaries of figures."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig

from gpu_speed.models import SIZES, TEACHERS, WIDE, Bench, training_step
from gpu_speed.timing import OUT_OF_MEMORY, free, peak_bytes
from sdsclip_hf.benchmarks import ImageFile
from sdsclip_hf.common.checkpoints import write_json
from sdsclip_hf.common.reading import picture_backend
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.planning.ledger import Ledger
from sdsclip_hf.planning.rehearsal import CHECKPOINTING, rehearse

GIB = 2**30
SAME = 1e-3  # of the largest element: how far the device may be from the CPU, in float32 without TF32
LONG = 1.0  # seconds of a step beyond which no larger batch is tried
CANDIDATES = 4  # of an image, with L_rank
PREPARED = "images/s, prepared on the device"
FORMS = {
    "contrastive": {},
    "L_SDS, full": {"lambda_sds": 1.0, "sds_gradient": "full"},
    "L_SDS, stop-gradient": {"lambda_sds": 1.0, "sds_gradient": "stop_gradient"},
    "L_rank": {"lambda_rank": 1.0, "ranking_scores": "shapes/scores"},
}
OPTIONS = {
    "student in float32": {"precision": "as_given"},
    "teacher_channels_last": {"teacher_channels_last": True},
    "teacher_gradient_checkpointing": {"teacher_gradient_checkpointing": True},
    "gradient_checkpointing": {},
    "optimiser not fused": {"optim": "adamw_torch"},
    "attention by plain matrix products": {},
    "teacher_compile": {"teacher_compile": True},
}

MODES = {"scoring": "default", "scoring by CUDA graphs": "reduce-overhead"}


def all_rows(bench: Bench) -> dict[str, Callable[[], list[dict]]]:
    """The rows by their names, in the order in which they are measured."""
    (first, *others), rows = bench.size.students, {}

    def trainings(student: str) -> dict[str, Callable[[], list[dict]]]:
        return {f"training/{student}/{form}": partial(training, bench, student, form) for form in FORMS}

    rows |= trainings(first) | {"grad_cache": partial(grad_cache, bench)}
    for teacher in TEACHERS:
        for latent in bench.size.latents:
            rows[f"scoring/{teacher}/{latent}"] = partial(scoring, bench, teacher, latent)
    rows |= {f"evaluation/{student}": partial(evaluation, bench, student) for student in bench.size.students}
    for student in others:
        rows |= trainings(student)
    rows |= {"compiled/student": partial(compiled_student, bench)}
    rows |= {f"compiled/{name}": partial(compiled_scoring, bench, mode) for name, mode in MODES.items()}
    plain = cache(partial(_option_point, bench))
    return rows | {f"option/{name}": partial(option, bench, name, plain) for name in OPTIONS}


def training(bench: Bench, student: str, form: str) -> list[dict]:
    """Steps of a student with one form of the loss, by batches that grow until one does not fit or takes long."""
    trainer, points = _trainer(bench, student, **FORMS[form]), []
    flops = None
    for pairs in bench.size.batches:
        try:
            batch = bench.batch(trainer, pairs, CANDIDATES if form == "L_rank" else 0)
            step = partial(training_step, trainer, batch)
            flops = flops or _flops(step) / pairs
            points.append(_point(bench, step, pairs, flops))
        except OUT_OF_MEMORY:
            break
        finally:
            trainer.model.zero_grad()
            free(bench.device)
        if points[-1]["seconds"] > LONG:
            break
    of_model = {"trained": sum(weight.numel() for weight in trainer.student.parameters() if weight.requires_grad)}
    of_model["width"] = trainer.student.config.projection_dim
    points = [point | of_model for point in points]
    if points and student == next(iter(bench.size.students)):
        points[-1]["planned GiB"] = planned_bytes(bench, trainer, points[-1]["pairs"]) / GIB
    return points


def grad_cache(bench: Bench) -> list[dict]:
    """A step with many negatives in the memory of few."""
    mini, whole = bench.size.contrastive
    sizes = {"per_device_train_batch_size": mini, "contrastive_batch_size": whole}
    trainer = _trainer(bench, next(iter(bench.size.students)), **sizes)
    step = partial(training_step, trainer, bench.batch(trainer, whole))
    return [_point(bench, step, whole, _flops(step) / whole) | {"mini-batch": mini}]


def scoring(bench: Bench, name: str, latent_size: int) -> list[dict]:
    """A draw on pairs of a picture and a caption, by growing batches of the denoiser."""
    teacher, (pairs, largest) = bench.teacher(name, latent_size), bench.size.scored
    latents, prompts, *rows, timestep, _ = given = _draw(bench, teacher)
    points, flops = [], None
    for size in (max(1, largest // 4), largest):
        draw = partial(teacher.draw_errors, *given, batch_size=size)
        alike = [part[:size] for part in (latents, timestep.expand(pairs))]
        told = {key: value[rows[1][:size].to(bench.device)] for key, value in prompts.items()}
        bare = partial(_bare, teacher, *alike, told, -(-pairs // size))
        try:
            point = {"batch": size, "GiB": _gib(peak_bytes(draw, bench.device)), **bench.timed(draw)}
            inside, flops = bench.timed(bare)["seconds"], flops or _flops(draw)
        except OUT_OF_MEMORY:
            break
        finally:
            free(bench.device)
        point |= {"pairs/s": pairs / point["seconds"], "share of the denoiser": inside / point["seconds"]}
        points.append(point | {"MFU": flops / point["seconds"] / bench.rate})
    return points


def _draw(bench: Bench, teacher) -> tuple:
    """What [`DiffusionTeacher.draw_errors`] takes: pairs of pictures of noise and four captions, and one draw."""
    pairs, (timesteps, noises) = bench.size.scored[0], teacher.draws(2)
    latents = torch.randn(pairs, *teacher.latent_shape).to(bench.device)
    rows = torch.arange(pairs) // 2, torch.arange(pairs) % 4
    return latents, teacher.encode_captions(["a"] * 4), *rows, timesteps[1], noises[1]


@torch.no_grad()
def _bare(teacher, latents, timesteps, told, calls: int) -> None:
    for _ in range(calls):
        teacher.predict(latents, timesteps, told)


def evaluation(bench: Bench, name: str) -> list[dict]:
    """Pictures from files, prepared by workers and by the device, and captions to embeddings; and the image tower alone."""
    clip, count = bench.student(name).eval(), bench.size.pictures
    edge, workers = clip.config.vision_config.image_size, min(16, os.cpu_count() or 1)
    workers, processor = workers if count > 64 else 0, bench.processor(edge)
    scorer = ClipScorer(clip.to(bench.dtype), processor, num_workers=workers)
    ways = {"images/s": scorer}
    if bench.size.is_tiny or picture_backend(processor.image_processor) == "torchvision":
        ways[PREPARED] = ClipScorer(clip, processor, num_workers=workers, preprocess_on_device=True)
    pixels = torch.randn(min(count, scorer.batch_size), 3, edge, edge, device=bench.device, dtype=bench.dtype)
    with tempfile.TemporaryDirectory() as folder:
        files = [ImageFile(str(path)) for path in _photos(Path(folder), min(count, 64))]
        pictures = (files * -(-count // len(files)))[:count]
        few = replace(bench, repeats=2, warm_up=1)
        times = {name: few.timed(lambda own=own: own.embed_images(pictures)) for name, own in ways.items()}
    captions = bench.timed(lambda: scorer.embed_captions([f"a photo of caption {n}" for n in range(count)]))
    with torch.no_grad():
        tower = bench.timed(lambda: clip.get_image_features(pixel_values=pixels))["seconds"] / len(pixels)
    return [
        {
            **times["images/s"],
            **{name: count / found["seconds"] for name, found in times.items()},
            "captions/s": count / captions["seconds"],
            "images/s of the tower": 1 / tower,
            "workers": scorer.num_workers,
        }
    ]


def _photos(folder: Path, count: int) -> Iterator[Path]:
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        yield folder / f"{number}.jpg"


def option(bench: Bench, name: str, without: Callable[[], dict]) -> list[dict]:
    """A step with L_SDS in the full form, with one option and without it: the ratios of time and memory."""
    return [_ratios(without(), _option_point(bench, name))]


def _ratios(plain: dict, other: dict) -> dict:
    memory = other["GiB"] / plain["GiB"] if plain["GiB"] else None
    ratio = other["seconds"] / plain["seconds"]
    return {"time": ratio, "memory": memory, "spread": max(plain["spread"], other["spread"])}


def compiled_student(bench: Bench) -> list[dict]:
    """A contrastive step of the first student, compiled and not: the ratios of time and memory."""
    points = []
    for compiled in (False, True):
        trainer = _trainer(bench, next(iter(bench.size.students)), torch_compile=compiled)
        step = partial(training_step, trainer, bench.batch(trainer, bench.size.pairs))
        points.append(_point(bench, step, bench.size.pairs, 0.0))
    return [_ratios(*points)]


def compiled_scoring(bench: Bench, mode: str) -> list[dict]:
    """A draw at SD 1.5's size, by a denoiser compiled in a mode and by a plain one: the ratios of time and memory."""
    teacher, points = bench.teacher(), []
    draw = partial(teacher.draw_errors, *_draw(bench, teacher), batch_size=bench.size.scored[1])
    for compiled in (False, mode):
        teacher.speed_up(compiled=compiled)
        draw()  # which compiles
        points.append({"GiB": _gib(peak_bytes(draw, bench.device)), **bench.timed(draw)})
    return [_ratios(*points)]


def _option_point(bench: Bench, name: str | None = None) -> dict:
    trainer = _trainer(bench, next(iter(bench.size.students)), **FORMS["L_SDS, full"] | OPTIONS.get(name, {}))
    if name == "gradient_checkpointing":
        getattr(trainer.student, f"{CHECKPOINTING}_enable")()
    kernels = sdpa_kernel(SDPBackend.MATH) if name == "attention by plain matrix products" else nullcontext()
    with kernels:
        step = partial(training_step, trainer, bench.batch(trainer, bench.size.pairs))
        return _point(bench, step, bench.size.pairs, 0.0)


def _trainer(bench: Bench, student: str, **options):
    free(bench.device)  # of the row before
    teacher = bench.teacher() if options.get("lambda_sds") else None
    return bench.trainer(bench.student(student), teacher, **{"trainable": "full"} | options)


def _point(bench: Bench, step: Callable[[], None], pairs: int, flops: float) -> dict:
    step()  # the optimiser's state is made in the first
    found = {"pairs": pairs, "GiB": _gib(peak_bytes(step, bench.device)), **bench.timed(step)}
    found["images/s"] = pairs / found["seconds"]
    return found | ({"MFU": flops * found["images/s"] / bench.rate} if flops else {})


def _gib(count: int | None) -> float | None:
    return None if count is None else count / GIB


def _flops(run: Callable[[], object]) -> int:
    with Ledger() as ledger:
        run()
    return ledger.flops.total()


def planned_bytes(bench: Bench, trainer, pairs: int) -> int:
    """What ``sdsclip plan`` expects that a step holds, of configurations in the usual layouts."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        root, teacher = Path(folder), None
        trainer.student.config.save_pretrained(root / "student")
        given = {"per_device_train_batch_size": pairs, "use_cpu": True}
        if trainer.teacher is not None:
            teacher = _teacher_configs(root / "teacher", trainer)
            given |= {"latent_size": trainer.teacher.latent_shape[1], "prompt_cache_dir": str(root / "prompts")}
        config = replace(trainer.args, **given)
        others = CANDIDATES - 1 if trainer.args.lambda_rank else None  # the own caption is encoded once
        cost = rehearse(str(root / "student"), teacher, config, bench.size.tokens, candidates=others)
    return sum(cost.memory.values())


def _teacher_configs(folder: Path, trainer) -> str:
    """Of a pipeline in Stable Diffusion 1.5's layout."""
    unet = trainer.teacher.denoiser.config
    parts = {"unet": ("diffusers", "UNet2DConditionModel"), "text_encoder": ("transformers", "CLIPTextModel")}
    parts |= {"tokenizer": ("transformers", "CLIPTokenizer"), "scheduler": ("diffusers", "DDPMScheduler")}
    (folder / "unet").mkdir(parents=True)
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", **parts})
    write_json(folder / "unet" / "config.json", dict(unet) | {"_class_name": "UNet2DConditionModel"})
    text = CLIPTextConfig(**WIDE | {"hidden_size": unet.cross_attention_dim, "num_attention_heads": 2})
    text.save_pretrained(folder / "text_encoder")
    trainer.processing_class.tokenizer.save_pretrained(folder / "tokenizer")
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    return str(folder)


def correctness(bench: Bench) -> dict[str, float]:
    """Before anything is timed: how far losses, gradients and scores on the device are from those on the CPU, in float32.

    Raises:
        ValueError: further than rounding takes them.
    """
    torch.backends.cudnn.allow_tf32, found = False, {}
    for form in FORMS:
        expected, actual = (_loss_and_gradient(bench, form, device) for device in (torch.device("cpu"), bench.device))
        found |= {
            f"{what} of {form}": _distance(*pair)
            for what, *pair in zip(("loss", "gradient"), expected, actual, strict=True)
        }
    expected, actual = (_errors(bench, device) for device in (torch.device("cpu"), bench.device))
    found["errors of the scoring"] = _distance(expected, actual)
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    wrong = {name: value for name, value in found.items() if not value < SAME}
    if wrong:
        raise ValueError(f"on {bench.device} these differ from the CPU's by more than {SAME:g}: {wrong}.")
    return found


def _small(bench: Bench, device: torch.device) -> Bench:
    return replace(bench, device=device, size=SIZES["tiny"], dtype=torch.float32)


def _loss_and_gradient(bench: Bench, form: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    on_cpu, there = _small(bench, torch.device("cpu")), _small(bench, device)
    torch.manual_seed(0)
    student = on_cpu.student("tiny").to(device)
    teacher = on_cpu.teacher().to(device) if FORMS[form].get("lambda_sds") else None
    told = {"precision": "as_given", "use_cpu": device.type == "cpu", "trainable": "full"}
    if teacher is not None:
        prompts = {key: value.to(device) for key, value in on_cpu.teacher().encode_captions(["a"] * 4).items()}
        teacher.encode_captions = lambda captions, _=None: {
            key: value[: len(captions)] for key, value in prompts.items()
        }
    trainer = there.trainer(student, teacher, **told | FORMS[form])
    batch = on_cpu.batch(trainer, 4, CANDIDATES if form == "L_rank" else 0)
    loss = trainer.training_step(trainer.model, batch)
    gradient = [weight.grad.flatten().cpu() for weight in trainer.student.parameters() if weight.grad is not None]
    return loss.cpu(), torch.cat(gradient)


def _errors(bench: Bench, device: torch.device) -> torch.Tensor:
    torch.manual_seed(0)
    on_cpu = _small(bench, torch.device("cpu")).teacher()
    latents, prompts = torch.randn(2, *on_cpu.latent_shape), on_cpu.encode_captions(["a", "b"])
    teacher = on_cpu.to(device)
    timesteps, noises = teacher.draws(2)
    prompts = {key: value.to(device) for key, value in prompts.items()}
    rows = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
    return teacher.draw_errors(latents.to(device), prompts, *rows, timesteps[1], noises[1])


def _distance(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())
