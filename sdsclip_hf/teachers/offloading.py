"""Parts of a teacher that are on its device only while they work, where it has no room for all of them."""

from typing import Any

import torch

AWAY = torch.device("cpu")


class Turns:
    """Text encoders and denoiser on the device by turns, as in diffusers' offloading of whole models.

    Args:
        teacher: a [`DiffusionTeacher`], whose parts lie anywhere.
        device: where they work.
        in_groups: whether the denoiser never comes as a whole, but one block after another (diffusers' group offloading).

    Raises:
        ValueError: the denoiser's weights cannot move.
    """

    def __init__(self, teacher: Any, device: torch.device, in_groups: bool):
        if teacher.quantization == "bitsandbytes-8bit":
            raise ValueError(
                "teacher_offload: weights of bitsandbytes-8bit stay where they were loaded; take --teacher_quantization "
                "bitsandbytes-4bit or torchao-int8, or leave --teacher_offload out."
            )
        self.teacher, self.device, self.in_groups = teacher, device, in_groups
        self.encoding: bool | None = None
        teacher.schedule.to(device)
        if in_groups:
            teacher.denoiser.enable_group_offload(
                onload_device=device,
                offload_device=AWAY,
                offload_type="block_level",
                num_blocks_per_group=1,
                use_stream=device.type == "cuda",
            )

    def take(self, encoding: bool) -> None:
        """Have the text encoders on the device, or else what works on latents, and the others away from it."""
        if encoding is self.encoding:
            return
        encoders, others = list(self.teacher.text_encoders.values()), [self.teacher.vae]
        others += [] if self.in_groups else [self.teacher.denoiser]
        going, coming = (others, encoders) if encoding else (encoders, others)
        for parts, place in ((going, AWAY), (coming, self.device)):
            for part in parts:
                if part is not None:
                    part.to(place)
        self.encoding = encoding
