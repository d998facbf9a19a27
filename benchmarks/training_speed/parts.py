"""The row that compares a step of the whole training loop with the sum of its parts."""

from functools import partial

import torch
import torch.nn.functional as F

from sdsclip_hf import SDSCLIPTrainer
from sdsclip_hf.shapes import load_shapes
from sdsclip_hf.teachers.conditions import as_captions
from sdsclip_hf.training.terms import prompts_of
from training_speed.bench import Bench, photos
from training_speed.measure import in_fresh_process, in_turns, ratio, seconds_a_step, timed


def overhead(bench: Bench, student: str, gradient: str, steps: int) -> dict:
    """A step of the whole training loop against the sum of its parts, each the mean of ``steps``."""
    return in_fresh_process(_overhead, bench, student, gradient, steps)


def _overhead(bench: Bench, student: str, gradient: str, steps: int) -> dict:
    random = student in bench.size.students
    batch = bench.size.batch if random else 128 * bench.size.batch
    trainer = bench.trainer(
        student,
        "random" if random else "shapes/teacher",
        data=photos(4 * batch) if random else load_shapes("train"),
        per_device_train_batch_size=batch,
        sds_gradient=gradient,
        steps=steps,
    )
    parts = BareParts(trainer)
    runs = {"trainer": partial(seconds_a_step, trainer), "parts": partial(parts.run, steps)}
    seconds = in_turns(bench.pairs, runs)
    what = f"step to the sum of its bare parts ({student}, {gradient} gradient, batch {batch})"
    parts_seconds = {name: found[1:] for name, found in parts.seconds.items()}  # without the round that warms up
    figures = [ratio(what, "<= 1.05", seconds["trainer"], seconds["parts"])]
    return {"figures": figures, "seconds": seconds | parts_seconds}


class BareParts:
    """What a step of a trainer with L_SDS cannot do without, on one of its batches, by the models alone."""

    def __init__(self, trainer: SDSCLIPTrainer):
        self.batch = next(iter(trainer.get_train_dataloader()))
        self.clip, self.mapper = trainer.student.base_clip, trainer.student.mapper.linear
        self.teacher, self.full = trainer.teacher, trainer.args.sds_gradient == "full"
        trained = [parameter for parameter in trainer.student.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
        pairs = len(self.batch["pixel_values"])
        self.embeds = F.normalize(torch.randn(pairs, self.mapper.in_features), dim=-1).requires_grad_()
        self.noise = torch.randn(pairs, *self.teacher.latent_shape)
        self.timesteps = torch.randint(0, self.teacher.num_timesteps, (pairs,))
        captions = as_captions(prompts_of(self.batch))
        (self.prompts,) = self.teacher.encode_captions(captions).values()
        tokenizer = self.teacher.tokenizers["tokenizer"]
        options = {"truncation": True, "max_length": self.prompts.shape[1], "return_tensors": "pt"}
        self.caption_ids = tokenizer(captions, padding="max_length", **options).input_ids
        self.parts = (self.encode, self.map, self.denoise, self.read_captions, self.optimize)
        self.seconds: dict[str, list[float]] = {part.__name__: [] for part in self.parts}

    def run(self, times: int) -> float:
        """Seconds of all parts, the mean of so many times; those of each are kept."""
        totals = dict.fromkeys(self.seconds, 0.0)
        for _ in range(times):
            for part in self.parts:
                totals[part.__name__] += timed(part) / times
        for name, seconds in totals.items():
            self.seconds[name].append(seconds)
        return sum(totals.values())

    def encode(self) -> None:
        """CLIP forward and backward."""
        images = self.clip.get_image_features(pixel_values=self.batch["pixel_values"]).pooler_output
        tokens = {name: self.batch[name] for name in ("input_ids", "attention_mask")}
        texts = self.clip.get_text_features(**tokens).pooler_output
        logits, labels = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T, torch.arange(len(images))
        (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)).backward()

    def map(self) -> None:
        """The mapper forward and backward."""
        self.mapper(self.embeds).square().sum().backward()

    def denoise(self) -> None:
        """The denoiser forward and, in the full form, backward to its input."""
        noisy = self.noise.clone().requires_grad_(self.full)
        with torch.set_grad_enabled(self.full):
            predicted = self.teacher.denoiser(noisy, self.timesteps, self.prompts).sample
        if self.full:
            predicted.square().sum().backward()

    @torch.no_grad()
    def read_captions(self) -> None:
        """The teacher's text encoder."""
        self.teacher.text_encoder(self.caption_ids)

    def optimize(self) -> None:
        """The optimiser's step, with the gradients of the first two parts."""
        self.optimizer.step()
        self.optimizer.zero_grad()
