"""A draw of the scoring waits for a GPU once, when all of its work has been handed over; which denoisers wait themselves."""

import pytest
import tiny_pipelines
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


# The first three take captions cut to their words; the last copies its table of places in each call.
WAITING = {"z_image", "lumina_2", "cogview_4", "qwen_image"}


@pytest.mark.parametrize("name", tiny_pipelines.MAKERS)
def test_which_denoisers_wait_in_a_call(name, tmp_path):
    teacher = DiffusionTeacher.from_pretrained(tiny_pipelines.save(name, tmp_path), latent_size=8)
    conditions = {name: values.to(META) for name, values in teacher.encode_captions(["a cat", "a dog"]).items()}
    latents = torch.empty(2, *teacher.latent_shape, device=META)
    timesteps, noises = (part.to(META) for part in teacher.draws(1))
    teacher.to(META)
    try:
        with Waits() as waits:
            teacher.denoising_error(latents, conditions, timesteps.expand(2), noises.expand_as(latents))
    except NotImplementedError:  # a number was looked at
        waits.found.append("a look")
    assert bool(waits.found) == (name in WAITING)
