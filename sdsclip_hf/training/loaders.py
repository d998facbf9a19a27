"""The trainer's side of the data: batches of pairs, each process's share of a stream, batches without end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.data_loader import IterableDatasetShard
from torch import Tensor
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from sdsclip_hf.common.devices import sent
from sdsclip_hf.common.shared_memory import HandedOver, workers_with_room
from sdsclip_hf.data.captioned_images import BLANK
from sdsclip_hf.data.collator import NEGATIVE, PROMPTS, ImageCaptionCollator
from sdsclip_hf.data.decoded import PIXELS, SIZES, prepared
from sdsclip_hf.teachers.conditions import CAPTIONS
from sdsclip_hf.training.grad_cache import mini_batches
from sdsclip_hf.training.parts import endless_share

# What the collator tells of texts: the terms look at the numbers, and send to the device what they need there.
STAY_ON_CPU = ("input_ids", "attention_mask", "caption_", "candidate_", "picture_keys", "readable", PROMPTS + CAPTIONS)
DECODED = {prefix: {f"{prefix}{PIXELS}", f"{prefix}{SIZES}"} for prefix in ("", NEGATIVE)}


class PairLoaders(Trainer):
    """[`transformers.Trainer`] with batches for a contrastive loss: never of one pair, never cut short by a stream's end."""

    _batches_done = 0  # by the run that is gone on with

    @property
    def num_rows(self) -> int | None:
        """Of the training data; None of a stream."""
        return len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None

    def batches_to_skip(self, checkpoint: Path) -> int:
        """How many batches of a stream Trainer passes over until it is where ``checkpoint`` was written."""
        steps = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step % self.args.max_steps
        return 0 if self.args.ignore_data_skip else steps * self.args.gradient_accumulation_steps

    def endless_batches(self, steps: int) -> Iterator[dict[str, Tensor]]:
        """``steps`` batches of ``per_device_train_batch_size``, on the device; the data begins anew when it ends."""
        loader, done = self.get_train_dataloader(), 0
        while done < steps:
            before = done
            for batch in loader:
                for part in mini_batches(self._prepare_inputs(batch), self.args.per_device_train_batch_size):
                    if done == steps:
                        return
                    yield part
                    done += 1
            if done == before:
                raise ValueError(
                    "the training data gives no full batch; lower --per_device_train_batch_size or add data."
                )

    def get_total_train_batch_size(self, args) -> int:
        """Pairs of one optimiser step, over all processes."""
        if args.contrastive_batch_size is None:
            return super().get_total_train_batch_size(args)
        return args.contrastive_batch_size * args.gradient_accumulation_steps

    def _get_dataloader(self, dataset, description, batch_size, *args, is_training=False, **kwargs):
        if is_training and self.args.contrastive_batch_size is not None:
            batch_size = self.args.contrastive_batch_size // self.args.world_size
        if hasattr(dataset, "__len__"):
            per_process = len(dataset) // self.args.world_size
            if per_process < 2:
                raise ValueError(
                    f"{description.lower()} needs at least two pairs on each of {self.args.world_size} processes, since "
                    f"a batch of one has no negatives; the dataset has {len(dataset)}. Add data, or take fewer processes."
                )
            if is_training and per_process < batch_size:
                small = self.args.contrastive_batch_size is None
                option = "per_device_train_batch_size" if small else "contrastive_batch_size"
                raise ValueError(
                    f"the training data has {len(dataset)} pairs, fewer than one batch of {batch_size} on each of "
                    f"{self.args.world_size} processes; lower --{option}."
                )
            batch_size = min(batch_size, per_process)
            alone = not self.args.dataloader_drop_last and self.args.world_size == 1 and len(dataset) % batch_size == 1
            if is_training and alone:
                raise ValueError(
                    f"of {len(dataset)} pairs in batches of {batch_size} one is left, which has no negatives; leave "
                    "--dataloader_drop_last false out, or set another --per_device_train_batch_size."
                )
        elif is_training:
            ours = isinstance(self.data_collator, ImageCaptionCollator)  # another may not know what is passed over
            dataset = endless_share(dataset, self.args, batch_size, self._batches_done if ours else 0)
        with self._workers_with_room(dataset, batch_size), self._batches_on_cpu():
            loader = super()._get_dataloader(dataset, description, batch_size, *args, is_training=is_training, **kwargs)
        if is_training and isinstance(loader.dataset, IterableDatasetShard):  # it is a share, not to be split again
            loader.dataset.num_processes, loader.dataset.process_index = 1, 0
        if not torch.accelerator.is_available():
            # There is no device to copy to, of which PyTorch would warn.
            getattr(loader, "base_dataloader", loader).pin_memory = False
        return loader

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Send pictures and prompts to the device; what is small stays on the CPU, where a look at it waits for nothing."""
        if not inputs:
            return super()._prepare_inputs(inputs)  # which tells
        inputs = self.with_pictures(inputs)
        stays = {name: value for name, value in inputs.items() if name.startswith(STAY_ON_CPU)}
        return stays | {name: sent(value, self.args.device) for name, value in inputs.items() if name not in stays}

    def with_pictures(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch with its pictures prepared on the device, where loader workers have only decoded them."""
        for prefix, names in DECODED.items():
            if names <= inputs.keys():
                made = prepared(inputs, self.processing_class.image_processor, self.args.device, prefix)
                inputs = made | {name: value for name, value in inputs.items() if name not in names}
        return inputs

    @contextmanager
    def _batches_on_cpu(self) -> Iterator[None]:
        """Have accelerate leave the batches of a loader where they are."""
        placement, self.accelerator.device_placement = self.accelerator.device_placement, False
        try:
            yield
        finally:
            self.accelerator.device_placement = placement

    @contextmanager
    def _workers_with_room(self, dataset, batch_size: int) -> Iterator[None]:
        """Without the loader workers that are asked for, where their batches have no room in shared memory."""
        args, collate, option = self.args, self.data_collator, "--dataloader_num_workers"
        if not args.dataloader_num_workers:
            yield
            return
        off = {"num_workers": 0, "prefetch_factor": None, "persistent_workers": False, "multiprocessing_context": None}
        off = {f"dataloader_{name}": value for name, value in off.items()}
        asked = {name: getattr(args, name) for name in off}
        batch, stream = None, not hasattr(dataset, "__len__")
        if not stream:
            batch = collate([dataset[0], dataset[1]])
        elif isinstance(collate, ImageCaptionCollator):  # its own rows would be read twice
            batch = collate([{"image": BLANK, "caption": ""}] * 2)
        times, prefetch = batch_size / 2, args.dataloader_prefetch_factor
        has_room = workers_with_room(args.dataloader_num_workers, batch, times, prefetch, option, stream)
        try:
            self.data_collator = HandedOver(collate, option)
            for name, value in (asked if has_room else off).items():
                setattr(args, name, value)
            yield
        finally:
            self.data_collator = collate
            for name, value in asked.items():
                setattr(args, name, value)
