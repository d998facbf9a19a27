"""What ``sdsclip score-captions`` will need: its memory on one device, and its time, rehearsed without weights.

memory = weights on the device + what is alive at the worst moment of encoding captions, pictures, or denoising
time   = pictures * captions * draws * operations of the denoiser for one of them / operations a second
"""

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sdsclip_hf.config import TEACHER_OFFLOADS, TEACHER_QUANTIZATIONS
from sdsclip_hf.planning.ledger import Ledger, Phase
from sdsclip_hf.planning.rehearsal import FORWARD, WEIGHTS, bare_teacher, empty, prompts_of, tensors_of
from sdsclip_hf.planning.teacher_memory import denoiser_bytes, kept_bytes
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

ENCODERS, AUTOENCODER, DENOISER = PARTS = ("text encoders", "autoencoder", "denoiser")
GIB, TERA = 2**30, 1e12


@dataclass(frozen=True)
class ScoringCost:
    """What scoring costs one device.

    Attributes:
        weights: how many each part has.
        held: bytes of each part's weights, as they are.
        denoiser: those of the denoiser alone, by quantisation and offloading.
        alive: bytes of what else is alive at the worst moment of each part's work.
        flops: operations of the denoiser for one draw of one picture and caption.
        latent_shape: (C, h, w).
    """

    weights: dict[str, int]
    held: dict[str, float]
    denoiser: dict[tuple[str | None, str | None], float]
    alive: dict[str, float]
    flops: float
    latent_shape: tuple[int, int, int]

    def memory(self, quantization: str | None, offload: str | None) -> float:
        """Bytes on the device at the worst moment."""
        encoders, latents = self.held[ENCODERS], self.held[AUTOENCODER] + self.denoiser[quantization, offload]
        on_latents = max(self.alive[AUTOENCODER], self.alive[DENOISER])
        if offload is None:
            return encoders + latents + max(self.alive[ENCODERS], on_latents)
        return max(encoders + self.alive[ENCODERS], latents + on_latents)


def rehearse_scoring(arguments: ScoringArguments) -> ScoringCost:
    """What scoring costs one device, found without weights and without data.

    Raises:
        OSError: a configuration cannot be had.
        ValueError: the parts do not fit one another, or a ranker takes the teacher's place.
    """
    if arguments.ranker is not None:
        raise ValueError(
            f"what scoring by the ranker {arguments.ranker!r} costs is not planned, a diffusion teacher's alone is; plan "
            "the training without `scoring`, and try the ranker on a few rows with --max_samples."
        )
    name, dtype = str(arguments.teacher_name_or_path), getattr(torch, arguments.teacher_dtype)
    teacher = bare_teacher(name, dtype, arguments.latent_size, arguments.teacher_revision, load_vae=True)
    captions = 1 + sum(arguments.sources.values())
    with FakeTensorMode(), torch.no_grad():
        empty(teacher)
        alive, flops, prompt_bytes = _work(teacher, arguments.batch_size)
    alive[DENOISER] += prompt_bytes * captions * arguments.chunk_size
    modules = {
        ENCODERS: list(teacher.text_encoders.values()),
        AUTOENCODER: [teacher.vae],
        DENOISER: [teacher.denoiser],
    }
    forms = [(bits, offload) for bits in (None, *TEACHER_QUANTIZATIONS) for offload in (None, *TEACHER_OFFLOADS)]
    return ScoringCost(
        weights={
            name: sum(weight.numel() for part in parts for weight in part.parameters())
            for name, parts in modules.items()
        },
        held={name: sum(kept_bytes(part) for part in parts) for name, parts in modules.items()},
        denoiser={form: denoiser_bytes(teacher.denoiser, *form) for form in forms},
        alive=alive,
        flops=flops / arguments.batch_size,
        latent_shape=teacher.latent_shape,
    )


def _work(teacher: DiffusionTeacher, batch_size: int) -> tuple[dict[str, float], int, int]:
    """Bytes that each part's work has alive, operations of a batch of the denoiser, and the bytes of a caption's prompt."""
    height, width = (teacher.family.factor * edge for edge in teacher.latent_shape[1:])
    prompts, latents = prompts_of(teacher, batch_size), torch.ones(batch_size, *teacher.latent_shape)
    draw = torch.zeros(batch_size, dtype=torch.long), latents.clone()
    given = {
        ENCODERS: lambda: prompts_of(teacher, batch_size),
        AUTOENCODER: lambda: teacher.encode_images(torch.ones(batch_size, 3, height, width)),
        DENOISER: lambda: teacher.denoising_error(latents, prompts, *draw),
    }
    alive, flops = {}, {}
    for name, work in given.items():
        with Ledger() as ledger:
            with ledger.during(name, WEIGHTS):
                ledger.hold([*tensors_of(teacher), *prompts.values(), latents, *draw])
            with ledger.during(name, FORWARD):
                work()
        alive[name], flops[name] = ledger.peak[Phase(name, FORWARD)], ledger.flops[Phase(name, FORWARD)]
    return alive, flops[DENOISER], sum(value.nbytes for value in prompts.values()) // batch_size


def plan_scoring(arguments: ScoringArguments, tflops: float, pictures: int | None = None, processes: int = 1) -> dict:
    """The plan of a scoring, as ``sdsclip plan --output_json`` has it.

    Args:
        arguments: of the scoring.
        tflops: operations that a device sustains, in 10^12 a second.
        pictures: of the dataset; default: ``max_samples``.
        processes: that share the pictures.

    Returns:
        ``teacher``, ``latent_shape``; ``parts``, with each one's ``weights``, the ``gib`` that they take and those
        ``alive`` while it works; ``gib`` in all, ``tflop`` of one draw of one picture and caption, ``captions`` of a picture
        and ``draws`` at most; ``hours`` at most, None where the number of pictures is not known; and ``alternatives``, the
        ``gib`` of other ways to keep the teacher, by their ``options``.
    """
    cost = rehearse_scoring(arguments)
    pictures = pictures or arguments.max_samples
    captions, tflop = 1 + sum(arguments.sources.values()), cost.flops / TERA
    as_asked = arguments.teacher_quantization, arguments.teacher_offload
    held = cost.held | {DENOISER: cost.denoiser[as_asked]}
    others = [("torchao-int8", None), (None, "model"), ("torchao-int8", "model"), ("bitsandbytes-4bit", "model")]
    calls = pictures and pictures * captions * arguments.num_draws / processes
    return {
        "teacher": arguments.teacher_name_or_path,
        "latent_shape": cost.latent_shape,
        "batch_size": arguments.batch_size,
        "parts": {
            name: {"weights": cost.weights[name], "gib": held[name] / GIB, "alive": cost.alive[name] / GIB}
            for name in PARTS
        },
        "gib": cost.memory(*as_asked) / GIB,
        "tflop": tflop,
        "captions": captions,
        "draws": arguments.num_draws,
        "pictures": pictures,
        "hours": calls and calls * tflop / tflops / 3600,
        "alternatives": [
            {"options": _options(*form), "gib": cost.memory(*form) / GIB}
            for form in [(None, None), *others, (None, "group")]
            if form != as_asked
        ],
    }


def _options(quantization: str | None, offload: str | None) -> dict[str, str]:
    options = {"teacher_quantization": quantization, "teacher_offload": offload}
    return {name: value for name, value in options.items() if value is not None}
