"""What is done to the latent mapper before a run begins: whitening of its inputs, and a warm-up on L_SDS alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import set_seed

from sdsclip_hf.terms import prompts_of

if TYPE_CHECKING:
    from sdsclip_hf.trainer import SDSCLIPTrainer

WHITENING_SAMPLE = 2048


def prepare_mapper(trainer: SDSCLIPTrainer) -> None:
    """Whiten the mapper's inputs and warm it up, as far as the trainer's arguments ask for it."""
    args = trainer.args
    if args.mapper_whitening:
        sample, per_batch = [], args.per_device_train_batch_size * args.world_size
        for batch in trainer.endless_batches(-(-WHITENING_SAMPLE // per_batch)):
            sample.append(trainer.accelerator.gather(_mapper_inputs(trainer, batch)))
        trainer.student.mapper.whiten(torch.cat(sample))
    if args.mapper_warmup_steps:
        _warm_up(trainer)
    set_seed(args.seed)


@torch.no_grad()
def _mapper_inputs(trainer: SDSCLIPTrainer, batch: dict[str, Tensor]) -> Tensor:
    """The embeddings (B, D) that the mapper is prepared on."""
    if trainer.args.mapper_warmup_inputs == "image":
        return trainer.student.encode_images(batch["pixel_values"])
    return trainer.student.encode_texts(batch["input_ids"], batch["attention_mask"])


def _warm_up(trainer: SDSCLIPTrainer) -> None:
    """Train h_w alone on L_SDS."""
    args, mapper = trainer.args, trainer.student.mapper
    optimizer = torch.optim.AdamW(mapper.parameters(), lr=args.mapper_warmup_learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.mapper_warmup_steps)
    trainer.model.train()
    for step, batch in enumerate(trainer.endless_batches(args.mapper_warmup_steps)):
        latents = mapper(_mapper_inputs(trainer, batch))
        with_gap = bool(args.health_steps) and step % args.health_steps == 0
        loss, figures = trainer.distillation(latents, prompts_of(batch), (0, step), with_gap)
        trainer.check_finite({"sds (mapper warm-up)": loss})
        optimizer.zero_grad()
        loss.backward()
        for parameter in mapper.parameters():
            parameter.grad = trainer.accelerator.reduce(parameter.grad, "mean")
        optimizer.step()
        schedule.step()
        trainer.note(figures | {"sds": loss})
        if (step + 1) % max(1, args.mapper_warmup_steps // 5) == 0 or step + 1 == args.mapper_warmup_steps:
            notes = {f"warmup/{name}": value for name, value in trainer.take_notes("train").items()}
            trainer.log(notes | {"warmup_step": step + 1})
    mapper.zero_grad(set_to_none=True)
