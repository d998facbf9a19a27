"""Gradients through a teacher in float16 are those of float32, however little the loss weighs."""

import pytest
import torch

from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.teachers.float16_gradients import Float16Gradients

CAPTIONS = ["a photo of a cat", "red dog on a blue mat", "a cat on a chair"]


@pytest.fixture(scope="module")
def gradient_of(teacher_folder):
    """The gradient of a weighted sum of three samples' errors to their latents, in a number format."""
    teachers = {
        dtype: DiffusionTeacher.from_pretrained(teacher_folder, dtype=dtype) for dtype in ("float32", "float16")
    }
    latents, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))

    def of(dtype: str, weights: torch.Tensor, **options) -> torch.Tensor:
        teacher, leaf = teachers[dtype], latents.clone().requires_grad_()
        told = teacher.encode_captions(CAPTIONS), torch.tensor([20, 500, 950]), noise
        return torch.autograd.grad((weights * teacher.denoising_error(leaf, *told, **options)).sum(), leaf)[0]

    return of


@pytest.mark.parametrize("weights", [[1e-12] * 3, [1.0, 1e-9, 1e-5], [0.0, 1.0, 1e9]])
def test_they_are_those_of_float32_whatever_each_sample_weighs(gradient_of, weights):
    weights = torch.tensor(weights)
    expected, found = gradient_of("float32", weights), gradient_of("float16", weights)
    assert found.dtype == torch.float32
    for row, of_float32 in zip(found, expected, strict=True):
        assert (row - of_float32).norm() <= 0.01 * of_float32.norm()


def test_no_gradient_passes_where_none_is_asked_for(gradient_of):
    expected, found = (
        gradient_of(dtype, torch.full((3,), 1e-12), gradient="stop_gradient") for dtype in ("float32", "float16")
    )
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)


def test_what_overflows_on_its_way_is_none_at_first_and_then_whole():
    gradients, weights = Float16Gradients(), torch.tensor([300.0, 1.0]).view(2, 1, 1, 1)
    found = []
    for _ in range(3):
        leaf = torch.ones(2, 1, 2, 2, requires_grad=True)
        seen = gradients(lambda noisy: (noisy.half() * weights.half() * weights.half()).float(), leaf * 1.0)
        found.append(torch.autograd.grad((1e-10 * seen).sum(), leaf)[0].flatten(1)[:, 0].tolist())
    assert found[0] == pytest.approx([0.0, 1e-10], rel=1e-3)
    for later in found[1:]:
        assert later == pytest.approx([9e-6, 1e-10], rel=1e-3)


def test_a_loss_that_is_nan_is_not_hidden():
    leaf = torch.ones(2, 1, 2, 2, requires_grad=True)
    seen = Float16Gradients()(lambda noisy: noisy.half().float(), leaf)
    weights = torch.tensor([torch.nan, 1.0]).view(2, 1, 1, 1)
    (found,) = torch.autograd.grad((weights * seen).sum(), leaf)
    assert found[0].isnan().all() and (found[1] == 1).all()
