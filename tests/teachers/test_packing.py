"""Packed weights: the same numbers as in float64, only where they belong, and never those of other weights."""

import copy

import datasets
import numpy as np
import pytest
import torch
from conftest import make_rows
from diffusers import UNet2DConditionModel
from torch import nn

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.scoring.score_captions import score_captions
from sdsclip_hf.teachers import packing
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.teachers.packing import PACKED, can_pack, pack_weights, unpack_weights
from sdsclip_hf.training.parts import place_teacher

WIDE = 384  # whose square is above the least number of weights
LAYERS = {
    "linear": (lambda: nn.Linear(WIDE, WIDE), (3, 5, WIDE)),
    "linear, a vector": (lambda: nn.Linear(WIDE, WIDE), (WIDE,)),
    "linear, no bias": (lambda: nn.Linear(WIDE, WIDE, bias=False), (7, WIDE)),
    "3 x 3": (lambda: nn.Conv2d(128, 128, 3, padding=1), (2, 128, 6, 5)),
    "1 x 1, no bias": (lambda: nn.Conv2d(WIDE, WIDE, 1, bias=False), (2, WIDE, 3, 3)),
    "unbatched": (lambda: nn.Conv2d(128, 128, 3, padding=1), (128, 6, 5)),
    "strided": (lambda: nn.Conv2d(128, 128, 3, stride=2, padding=(1, 0)), (2, 128, 9, 8)),
    "dilated groups": (lambda: nn.Conv2d(256, 256, 3, dilation=2, groups=4), (1, 256, 9, 9)),
}
needs_onednn = pytest.mark.skipif(not can_pack(), reason="this PyTorch or CPU packs nothing")


@pytest.fixture
def packings(monkeypatch):
    """The shapes that weights were packed for."""
    made, pack = [], torch.ops.mkldnn._reorder_convolution_weight
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_convolution_weight", lambda *args: made.append(tuple(args[-1])) or pack(*args)
    )
    return made


def packed(layer: nn.Module) -> nn.Module:
    pack_weights(layer.requires_grad_(False))
    return layer


def assert_exact(layer: nn.Module, values: torch.Tensor):
    with torch.no_grad():
        found = layer(values)
        twin = copy.deepcopy(layer)
        unpack_weights(twin)
        expected = twin.double()(values.double())
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@needs_onednn
@pytest.mark.parametrize("name", LAYERS)
def test_it_equals_the_layer_in_double_precision(packings, name):
    make, shape = LAYERS[name]
    layer = packed(make())
    for _ in range(2):
        assert_exact(layer, torch.randn(shape))
    assert len(packings) == 1


@needs_onednn
@pytest.mark.parametrize("order", ["transposed", "channels last", "every second"])
def test_memory_layout_does_not_matter(packings, order):
    layer, values = packed(nn.Conv2d(128, 128, 3, padding=1)), torch.randn(2, 128, 6, 6)
    if order == "channels last":
        layer, values = layer.to(memory_format=torch.channels_last), values.to(memory_format=torch.channels_last)
    else:
        values = values.transpose(2, 3) if order == "transposed" else values[:, :, ::2, ::2]
    assert_exact(layer, values)
    assert packings


@needs_onednn
def test_another_shape_and_changed_weights_are_packed_anew(packings):
    layer, convolution = packed(nn.Linear(WIDE, WIDE)), packed(nn.Conv2d(128, 128, 3))
    for size in (3, 4, 4):  # a convolution's batch does not matter to its packing
        assert_exact(convolution, torch.randn(size, 128, 5, 5))
    assert len(packings) == 1
    assert_exact(convolution, torch.randn(4, 128, 6, 5))
    assert len(packings) == 2
    packings.clear()
    for rows in (4, 4, 6, 6):
        assert_exact(layer, torch.randn(rows, WIDE))
    assert len(packings) == 2
    layer.weight.mul_(-2)
    assert_exact(layer, torch.randn(6, WIDE))
    layer.load_state_dict(nn.Linear(WIDE, WIDE).state_dict())
    assert_exact(layer, torch.randn(6, WIDE))
    layer.weight = nn.Parameter(torch.randn(WIDE, WIDE), requires_grad=False)
    assert_exact(layer, torch.randn(6, WIDE))
    assert len(packings) == 5


@needs_onednn
def test_a_copy_packs_its_own_weights(packings):
    layer = packed(nn.Linear(WIDE, WIDE))
    assert_exact(layer, torch.randn(4, WIDE))
    twin = copy.deepcopy(layer)
    twin.weight.mul_(3)
    assert_exact(twin, torch.randn(4, WIDE))
    assert_exact(layer, torch.randn(4, WIDE))
    assert len(packings) == 2


def test_unpacked_layers_are_as_before_and_free_what_they_took(packings):
    layer = nn.Sequential(nn.Linear(WIDE, WIDE), nn.Conv2d(128, 128, 3))
    names = [vars(part).keys() for part in layer]
    values = torch.randn(4, WIDE)
    with torch.no_grad():
        expected = layer[0](values)
        packed(layer)[0](values)
        unpack_weights(layer)
        assert torch.equal(layer[0](values), expected)
    assert [type(part) for part in layer] == [nn.Linear, nn.Conv2d]
    assert [vars(part).keys() for part in layer] == names


def test_small_layers_and_other_kinds_stay_as_they_are():
    model = nn.Sequential(
        nn.Linear(128, 128), nn.Conv2d(128, 128, 3, padding="same"), nn.Conv1d(256, 256, 3), nn.Embedding(1000, 128)
    )
    assert not any(type(layer) in PACKED.values() for layer in packed(model))


@pytest.mark.parametrize("case", ["gradient", "float64", "empty", "autocast", "inference"])
def test_calls_that_it_does_not_suit_go_the_usual_way(packings, case):
    with torch.inference_mode(case == "inference"):
        layer, values = packed(nn.Conv2d(128, 128, 3, padding=1)), torch.randn(2, 128, 4, 4)
    if case == "gradient":
        values.requires_grad_()
        (found,) = torch.autograd.grad(layer(values).sum(), values)
        torch.testing.assert_close(found[0, :, 1, 1], layer.weight.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)
    else:
        if case == "float64":
            layer, values = layer.double(), values.double()
        values = values[:0] if case == "empty" else values
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
            found = layer(input=values)
        assert found.shape == values.shape
        assert found.dtype == (torch.bfloat16 if case == "autocast" else values.dtype)
    assert not packings


@needs_onednn
def test_a_denoiser_predicts_the_same(packings):
    torch.manual_seed(0)
    options = {"block_out_channels": (128, 256), "layers_per_block": 1, "cross_attention_dim": 64, "norm_num_groups": 8}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
    denoiser = UNet2DConditionModel(sample_size=8, **options, **blocks).eval().requires_grad_(False)
    values = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 7, 64)
    with torch.no_grad():
        expected = denoiser(*values).sample
        names = list(denoiser.state_dict())
        found = packed(denoiser)(*values).sample
    assert len(packings) > 20 and list(denoiser.state_dict()) == names
    assert (found - expected).norm() < 1e-5 * expected.norm()


# Who packs


def packed_layers(teacher: DiffusionTeacher) -> int:
    return sum(type(layer) in PACKED.values() for layer in teacher.modules())


@pytest.fixture
def small_layers(monkeypatch):
    """Layers as small as those of the tests' teachers are packed, too."""
    monkeypatch.setattr(packing, "MIN_WEIGHTS", 100)


@needs_onednn
@pytest.mark.parametrize(
    "options, packs",
    [
        ({"sds_gradient": "stop_gradient"}, True),
        ({"sds_gradient": "stop_gradient", "teacher_pack_weights": False}, False),
        ({"sds_gradient": "full"}, False),
        ({"sds_gradient": "stop_gradient", "teacher_compile": True}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("before", [True, False], ids=["packed before", "plain before"])
def test_a_run_packs_its_teacher_where_that_helps(small_layers, teacher_folder, tmp_path, options, packs, before):
    teacher = DiffusionTeacher.from_pretrained(teacher_folder).speed_up(packed=before)
    assert bool(packed_layers(teacher)) is before
    place_teacher(teacher, SDSCLIPConfig(output_dir=str(tmp_path), use_cpu=True, **options))
    assert bool(packed_layers(teacher)) is packs


@needs_onednn
def test_scores_by_packed_weights_are_those_of_plain_ones(
    small_layers, packings, teacher_folder, tmp_path, monkeypatch
):
    rows = [row | {"others": ["a cat on a mat", "a red dog"]} for row in make_rows(3)]
    data, options = (
        datasets.Dataset.from_list(rows),
        {"candidates_column": "others", "candidates": ["column"], "num_draws": 2},
    )
    teacher = DiffusionTeacher.from_pretrained(teacher_folder, load_vae=True)
    score_captions(teacher, data, output_dir=str(tmp_path / "packed"), **options)
    assert packed_layers(teacher) > 10 and packings
    monkeypatch.setattr(packing, "can_pack", lambda: False)
    teacher = DiffusionTeacher.from_pretrained(teacher_folder, load_vae=True)
    score_captions(teacher, data, output_dir=str(tmp_path / "plain"), **options)
    assert packed_layers(teacher) == 0
    found, expected = (CandidateScores.load(str(tmp_path / name)).errors for name in ("packed", "plain"))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
