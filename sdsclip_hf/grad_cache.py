"""GradCache: the gradient of a large contrastive batch from the memory of small ones (Gao et al. 2021, arXiv 2101.06983).

The batch is encoded by mini-batches without gradient; the contrastive loss of all the embeddings gives the gradient of each
embedding; then each mini-batch is encoded again, with the same random numbers, and its embeddings' gradients go back from
there. The other terms are means over images, and are computed mini-batch by mini-batch on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sdsclip_hf.terms import Pairs

if TYPE_CHECKING:
    from sdsclip_hf.trainer import SDSCLIPTrainer

EMBEDS = ("images", "captions", "candidates")
EXACT, ROUGH = 1e-4, 1e-2  # how far an element of an embedding may differ between the passes, in float32 and in less


def cached_step(trainer: SDSCLIPTrainer, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Forward and backward of one batch, by mini-batches of ``per_device_train_batch_size``.

    Args:
        trainer: whose terms are computed.
        model: as accelerate has wrapped it.
        batch: from [`data.ImageCaptionCollator`], on the device.

    Returns:
        The loss, scalar, without gradient; the parameters' gradients are in place.

    Raises:
        ValueError: the second pass gives other embeddings than the first.
        FloatingPointError: a term is NaN or infinite.
    """
    size, rows = trainer.args.per_device_train_batch_size, len(batch["pixel_values"])
    parts = mini_batches(batch, size)
    states, cached = [], []
    with torch.no_grad():
        for part in parts:
            states.append(RandomState(trainer.args.device))
            with trainer.compute_loss_context_manager():
                cached.append(trainer.encode(model, part)[1])
    whole = _join(cached)
    with torch.autocast(trainer.args.device.type, enabled=False):
        contrastive = trainer.contrastive_term(whole)
    trainer.take_in({"contrastive": contrastive}, {})
    contrastive = trainer.term_weights["contrastive"] * contrastive
    leaves = _leaves(whole)
    gradients = dict(
        zip(leaves, torch.autograd.grad(contrastive, list(leaves.values()), allow_unused=True), strict=True)
    )
    total, accumulated = contrastive.detach(), trainer.current_gradient_accumulation_steps
    for number, (part, state) in enumerate(zip(parts, states, strict=True)):
        start, is_last = number * size, number == len(parts) - 1
        later = nullcontext() if is_last else trainer.accelerator.no_sync(model)  # processes agree once, at the end
        with later:
            with state.replayed(), trainer.compute_loss_context_manager():
                output, pairs = trainer.encode(model, part)
            _check_replay(trainer, cached[number], pairs)
            with torch.autocast(trainer.args.device.type, enabled=False):
                terms = trainer.other_terms(output, pairs, part, (start, rows))
            trainer.take_in(terms, part)
            share = len(part["pixel_values"]) / rows
            others = sum((trainer.term_weights[name] * share * term for name, term in terms.items()), start=0.0)
            total = total + (others.detach() if terms else 0.0)
            stand_in = _stand_in(pairs, gradients, slice(start, start + size), first=number == 0)
            trainer.accelerator.backward((stand_in + others) / accumulated)
    return total / accumulated


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
            joined[name] = values[0].clone() if name == "logit_scale" else torch.cat(values)
    return Pairs(
        **{
            name: value.requires_grad_() if name in (*EMBEDS, "logit_scale") else value
            for name, value in joined.items()
        }
    )


def _leaves(pairs: Pairs) -> dict[str, Tensor]:
    return {name: getattr(pairs, name) for name in (*EMBEDS, "logit_scale") if getattr(pairs, name) is not None}


def _stand_in(pairs: Pairs, gradients: dict[str, Tensor | None], rows: slice, first: bool) -> Tensor:
    """A scalar whose gradient for a mini-batch's embeddings is the contrastive loss's."""
    known = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    total = sum((getattr(pairs, name) * known[name][rows]).sum() for name in EMBEDS if name in known)
    return total + pairs.logit_scale * known["logit_scale"] if first else total


def _check_replay(trainer: SDSCLIPTrainer, before: Pairs, now: Pairs) -> None:
    """Whether the second pass gives the first one's embeddings, looked at in the first step of a run."""
    if getattr(trainer, "replay_was_checked", None) not in (None, trainer.state.global_step):
        return
    trainer.replay_was_checked = trainer.state.global_step
    exact = trainer.student.dtype == torch.float32 and not (trainer.args.bf16 or trainer.args.fp16)
    difference = max((getattr(before, name) - getattr(now, name)).abs().max().item() for name in EMBEDS[:2])
    if difference > (EXACT if exact else ROUGH):
        dropouts = [name for name, part in trainer.student.named_modules() if isinstance(part, nn.Dropout) and part.p]
        raise ValueError(
            "contrastive_batch_size encodes each mini-batch twice with the same random numbers, but here the embeddings "
            f"differ by up to {difference:.2g}: something random in the model cannot be replayed (its dropouts: "
            f"{', '.join(dropouts[:3]) or 'none'}). Switch it off (--lora_dropout 0, or the model config's dropouts), "
            "or leave --contrastive_batch_size out."
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
