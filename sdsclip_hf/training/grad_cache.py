"""GradCache: the gradient of a large contrastive batch from the memory of small ones (Gao et al. 2021, arXiv 2101.06983).

The batch is encoded by mini-batches without gradient; the contrastive loss of all the embeddings gives the gradient of each
embedding; then each mini-batch is encoded again, with the same random numbers, and its embeddings' gradients go back from
there. The other terms are means over images, and are computed mini-batch by mini-batch on the way.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sdsclip_hf.students.sdsclip_model import SDSCLIPOutput
from sdsclip_hf.training.terms import Pairs

EMBEDS = ("images", "captions", "candidates")
SCALARS = ("logit_scale", "logit_bias")
EXACT, ROUGH = 1e-4, 1e-2  # how far an element of an embedding may differ between the passes, in float32 and in less
Batch = dict[str, Tensor]


class GradCache:
    """Forward and backward of a batch by mini-batches, with the gradient of the whole.

    Args:
        size: rows of a mini-batch.
        accelerator: of the run.
        encode: a mini-batch to the model's output and what the terms need of it.
        contrastive: the weighted contrastive term of all pairs, scalar.
        others: the weighted sum of the other terms, scalar: what a mini-batch adds to that of the whole batch, from its
            output, its pairs, itself, and its place (first row, rows of the whole batch).
        autocast: gives the context in which the model computes.
    """

    def __init__(
        self,
        size: int,
        accelerator: Accelerator,
        encode: Callable[[nn.Module, Batch], tuple[SDSCLIPOutput, Pairs]],
        contrastive: Callable[[Pairs], Tensor],
        others: Callable[[SDSCLIPOutput, Pairs, Batch, tuple[int, int]], Tensor],
        autocast: Callable[[], AbstractContextManager],
    ):
        self.size, self.accelerator, self.autocast = size, accelerator, autocast
        self.encode, self.contrastive, self.others = encode, contrastive, others
        self._replay_is_checked = False

    def step(self, model: nn.Module, batch: Batch, accumulated: int = 1) -> Tensor:
        """The loss of a batch, scalar, without gradient; the parameters' gradients are then in place.

        Args:
            model: as accelerate has wrapped it.
            batch: from [`ImageCaptionCollator`], on the device.
            accumulated: batches of an optimiser step, of which this is one.

        Raises:
            ValueError: the second pass gives other embeddings than the first.
            FloatingPointError: a term is NaN or infinite.
        """
        parts, rows = mini_batches(batch, self.size), len(batch["pixel_values"])
        states, cached = self._encode_without_gradient(model, parts)
        whole = _join(cached)
        contrastive = self.contrastive(whole)
        gradients = _gradients(contrastive, whole)
        total = contrastive.detach()
        for number, (part, state) in enumerate(zip(parts, states, strict=True)):
            start, is_last = number * self.size, number == len(parts) - 1
            later = nullcontext() if is_last else self.accelerator.no_sync(model)  # processes agree once, at the end
            with later:
                with state.replayed(), self.autocast():
                    output, pairs = self.encode(model, part)
                if not self._replay_is_checked:
                    _check_replay(self.accelerator.unwrap_model(model), cached[number], pairs, self._tolerance(model))
                others = self.others(output, pairs, part, (start, rows))
                total = total + others.detach()
                stand_in = _stand_in(pairs, gradients, slice(start, start + self.size), first=number == 0)
                self.accelerator.backward((stand_in + others) / accumulated)
        self._replay_is_checked = True
        return total / accumulated

    @torch.no_grad()
    def _encode_without_gradient(self, model: nn.Module, parts: list[Batch]) -> tuple[list["RandomState"], list[Pairs]]:
        """The random numbers that each mini-batch begins with, and its embeddings."""
        states, cached = [], []
        for part in parts:
            states.append(RandomState(part["pixel_values"].device))
            with self.autocast():
                cached.append(self.encode(model, part)[1])
        return states, cached

    def _tolerance(self, model: nn.Module) -> float:
        exact = self.accelerator.unwrap_model(model).dtype == torch.float32
        return EXACT if exact and self.accelerator.mixed_precision == "no" else ROUGH


def mini_batches(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """A batch in parts of ``size`` rows; the last may have fewer."""
    rows = len(batch["pixel_values"])
    return [{name: value[start : start + size] for name, value in batch.items()} for start in range(0, rows, size)]


def _join(parts: list[Pairs]) -> Pairs:
    """The whole batch's embeddings, cut off from what made them, each to take a gradient."""
    joined = {}
    for name in Pairs._fields:
        values = [getattr(part, name) for part in parts]
        if values[0] is not None and name != "identities":  # those are numbers within a mini-batch
            joined[name] = values[0].clone() if name in SCALARS else torch.cat(values)
    return Pairs(
        **{name: value.requires_grad_() if name in (*EMBEDS, *SCALARS) else value for name, value in joined.items()}
    )


def _gradients(contrastive: Tensor, pairs: Pairs) -> dict[str, Tensor | None]:
    """The gradient of the contrastive term for each of the embeddings, for the factor on cosines and for the bias."""
    leaves = {name: getattr(pairs, name) for name in (*EMBEDS, *SCALARS) if getattr(pairs, name) is not None}
    found = torch.autograd.grad(contrastive, list(leaves.values()), allow_unused=True)
    return dict(zip(leaves, found, strict=True))


def _stand_in(pairs: Pairs, gradients: dict[str, Tensor | None], rows: slice, first: bool) -> Tensor:
    """A scalar whose gradient for a mini-batch's embeddings is the contrastive loss's."""
    known = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    total = sum((getattr(pairs, name) * known[name][rows]).sum() for name in EMBEDS if name in known)
    return total + sum(getattr(pairs, name) * known[name] for name in SCALARS if name in known) if first else total


def _check_replay(student: nn.Module, before: Pairs, now: Pairs, tolerance: float) -> None:
    """Raise ValueError unless the second pass gives the first one's embeddings."""
    difference = max((getattr(before, name) - getattr(now, name)).abs().max().item() for name in EMBEDS[:2])
    if difference > tolerance:
        dropouts = [name for name, part in student.named_modules() if isinstance(part, nn.Dropout) and part.p]
        raise ValueError(
            "contrastive_batch_size encodes each mini-batch twice with the same random numbers, but here the embeddings "
            f"differ by up to {difference:.2g}: something random in the model cannot be replayed (its dropouts: "
            f"{', '.join(dropouts[:3]) or 'none'}). Switch it off (--lora_dropout 0, or the model config's dropouts), "
            "or leave --contrastive_batch_size out; or --torch_compile, whose random numbers may be others."
        )


class RandomState:
    """The state of the random numbers at one moment, of the CPU and of a device."""

    def __init__(self, device: torch.device):
        self.device = device
        self.of_cpu = torch.get_rng_state()
        self.of_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside the context the random numbers come from that moment on; after it as if nothing had been."""
        now = RandomState(self.device)
        self.restore()
        try:
            yield
        finally:
            now.restore()

    def restore(self) -> None:
        torch.set_rng_state(self.of_cpu)
        if self.of_device is not None:
            torch.get_device_module(self.device).set_rng_state(self.of_device, self.device)
