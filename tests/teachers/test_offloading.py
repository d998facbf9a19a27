"""A teacher whose parts are on the device only while they work: the same scores, and never all at once."""

import pytest
import torch
from torch import nn

from sdsclip_hf import DiffusionTeacher
from sdsclip_hf.teachers import offloading

CPU = torch.device("cpu")


def test_encoders_and_denoiser_take_turns(teacher_folder, monkeypatch):
    """There is one device here: where a part is said to be moved stands for where it lies."""
    teacher = DiffusionTeacher.from_pretrained(teacher_folder, load_vae=True)
    parts, lies, working = {"encoder": teacher.text_encoder, "denoiser": teacher.denoiser, "vae": teacher.vae}, {}, []
    monkeypatch.setattr(offloading, "AWAY", "away")
    monkeypatch.setattr(nn.Module, "to", lambda self, place=None, *_, **__: lies.__setitem__(id(self), place) or self)

    def note(name):
        there = {other for other, part in parts.items() if lies.get(id(part)) == CPU}
        assert there == ({"encoder"} if name == "encoder" else {"denoiser", "vae"})
        if working[-1:] != [name]:
            working.append(name)

    for name in ("encoder", "denoiser"):
        parts[name].register_forward_pre_hook(lambda *_, name=name: note(name))
    teacher.place(CPU, "model")
    for _ in range(2):
        teacher.diffusion_score(torch.rand(2, 3, 32, 32), ["a dog", "a cat"], num_draws=2, batch_size=1)
    assert working == ["encoder", "denoiser"] * 2


@pytest.mark.parametrize("form", ["model", "group"])
def test_the_scores_are_those_of_a_teacher_that_stays(teacher_folder, form):
    pictures, options = torch.rand(2, 3, 32, 32), {"captions": ["a dog", "a cat"], "num_draws": 2, "batch_size": 3}
    stays, moves = (DiffusionTeacher.from_pretrained(teacher_folder, load_vae=True) for _ in range(2))
    expected = stays.diffusion_score(pictures, **options)
    moves.place(CPU, form)
    for _ in range(2):
        assert torch.equal(moves.diffusion_score(pictures, **options), expected)


def test_weights_that_cannot_move_are_refused(teacher_folder):
    teacher = DiffusionTeacher.from_pretrained(teacher_folder)
    teacher.quantization = "bitsandbytes-8bit"
    with pytest.raises(ValueError, match=r"bitsandbytes-8bit stay where they were loaded; take .*torchao-int8"):
        teacher.place(CPU, "model")


def test_a_run_with_an_offloaded_teacher_ends_with_the_same_weights(make_trainer, tmp_path):
    options = {"sds_gradient": "stop_gradient", "prompt_cache_dir": str(tmp_path / "prompts"), "max_steps": 2}
    stays, moves = (make_trainer(**options, teacher_offload=offload) for offload in (None, "group"))
    for trainer in (stays, moves):
        trainer.train()
    for ours, theirs in zip(stays.student.parameters(), moves.student.parameters(), strict=True):
        assert torch.equal(ours, theirs)
