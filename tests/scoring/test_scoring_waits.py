"""A draw of the scoring waits for a GPU once, when all of its work has been handed over."""

import pytest
import torch
from pretend_gpu import META, Waits

from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher


def test_a_draw_is_handed_over_whole_before_its_errors_are_waited_for(teacher_folder):
    teacher = DiffusionTeacher.from_pretrained(teacher_folder)
    prompts = {name: values.to(META) for name, values in teacher.encode_captions(["a cat", "a dog"]).items()}
    timesteps, noises = (part.to(META) for part in teacher.draws(2))
    latents, calls = torch.empty(3, *teacher.latent_shape, device=META), []
    teacher.to(META).denoiser.register_forward_hook(lambda *_: calls.append(1))
    rows = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 0, 1, 0])
    with Waits() as waits, pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        teacher.draw_errors(latents, prompts, *rows, timesteps[1], noises[1], batch_size=2)
    assert len(calls) == 3 and not waits.found
