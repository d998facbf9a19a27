"""What is done to the latent mapper before a run begins: whitening of its inputs, and a warm-up on L_SDS alone."""

from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import set_seed

from sdsclip_hf.common.devices import sent
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.students.sdsclip_model import SDSCLIPModel
from sdsclip_hf.training.notes import Notes
from sdsclip_hf.training.terms import DistillationTerm, pictures_of, prompts_of

WHITENING_SAMPLE = 2048


class MapperWarmup:
    """Whitens the mapper's inputs and warms it up, as far as the arguments of the run ask for it.

    Args:
        student: in training mode, without what accelerate wraps around it.
        distillation: L_SDS.
        args: of the run.
        accelerator: of the run.
        batches: gives so many batches, see [`PairLoaders._prepare_inputs`].
        check: is given each value of the term by its name, and raises where it is not finite.
        log: is given the figures of the warm-up from time to time.
    """

    def __init__(
        self,
        student: SDSCLIPModel,
        distillation: DistillationTerm,
        args: SDSCLIPConfig,
        accelerator: Accelerator,
        batches: Callable[[int], Iterator[dict[str, Tensor]]],
        check: Callable[[dict[str, Tensor]], None],
        check_arrived: Callable[[], None],
        log: Callable[[dict[str, float]], None],
    ):
        self.student, self.distillation, self.args, self.accelerator = student, distillation, args, accelerator
        self.batches, self.check, self.check_arrived, self.log = batches, check, check_arrived, log

    def run(self) -> None:
        """Whitening, then the warm-up; the random numbers begin anew afterwards."""
        if self.args.mapper_whitening:
            sample, per_batch = [], self.args.per_device_train_batch_size * self.args.world_size
            for batch in self.batches(-(-WHITENING_SAMPLE // per_batch)):
                sample.append(self.accelerator.gather(self._inputs(batch)))
            self.student.mapper.whiten(torch.cat(sample))
        if self.args.mapper_warmup_steps:
            self._warm_up()
        set_seed(self.args.seed)

    @torch.no_grad()
    def _inputs(self, batch: dict[str, Tensor]) -> Tensor:
        """The embeddings (B, D) that the mapper is prepared on."""
        if self.args.mapper_warmup_inputs == "image":
            return self.student.encode_images(**pictures_of(batch, self.student))
        return self.student.encode_texts(
            *(sent(batch[name], self.args.device) for name in ("input_ids", "attention_mask"))
        )

    def _warm_up(self) -> None:
        """Train h_w alone on L_SDS."""
        args, mapper, notes = self.args, self.student.mapper, Notes()
        optimizer = torch.optim.AdamW(mapper.parameters(), lr=args.mapper_warmup_learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.mapper_warmup_steps)
        for step, batch in enumerate(self.batches(args.mapper_warmup_steps)):
            latents = mapper(self._inputs(batch))
            with_gap = bool(args.health_steps) and step % args.health_steps == 0
            loss, figures = self.distillation(latents, prompts_of(batch), (0, step), with_gap)
            self.check({"sds (mapper warm-up)": loss})
            optimizer.zero_grad()
            loss.backward()
            for parameter in mapper.parameters():
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
            optimizer.step()
            schedule.step()
            notes.add(figures | {"sds": loss})
            if (step + 1) % max(1, args.mapper_warmup_steps // 5) == 0 or step + 1 == args.mapper_warmup_steps:
                self.check_arrived()
                means = {f"warmup/{name}": value for name, value in notes.take(self.accelerator).items()}
                self.log(means | {"warmup_step": step + 1})
        mapper.zero_grad(set_to_none=True)
