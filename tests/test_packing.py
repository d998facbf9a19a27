"""Packed weights: the same numbers as in float64, only where they belong, and never those of other weights."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from sdsclip_hf import packing
from sdsclip_hf.packing import PackedForward, pack_weights

WIDE = 384  # whose square is above the least number of weights
LAYERS = {
    "linear": (lambda: nn.Linear(WIDE, WIDE), (3, 5, WIDE)),
    "linear, a vector": (lambda: nn.Linear(WIDE, WIDE), (WIDE,)),
    "linear, no bias": (lambda: nn.Linear(WIDE, WIDE, bias=False), (7, WIDE)),
    "3 x 3": (lambda: nn.Conv2d(128, 128, 3, padding=1), (2, 128, 6, 5)),
    "1 x 1, no bias": (lambda: nn.Conv2d(WIDE, WIDE, 1, bias=False), (2, WIDE, 3, 3)),
    "strided": (lambda: nn.Conv2d(128, 128, 3, stride=2, padding=(1, 0)), (2, 128, 9, 8)),
    "dilated groups": (lambda: nn.Conv2d(256, 256, 3, dilation=2, groups=4), (1, 256, 9, 9)),
}
needs_onednn = pytest.mark.skipif(not packing._can_pack(), reason="this PyTorch or CPU packs nothing")


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
        twin = copy.deepcopy(layer).double()
        expected = type(twin).forward(twin, values.double())
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
    layer = packed(nn.Linear(WIDE, WIDE))
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
    assert twin.forward.layer is twin and len(packings) == 2


def test_small_layers_and_other_kinds_stay_as_they_are():
    model = nn.Sequential(
        nn.Linear(128, 128), nn.Conv2d(128, 128, 3, padding="same"), nn.Conv1d(256, 256, 3), nn.Embedding(1000, 128)
    )
    assert not any(isinstance(layer.forward, PackedForward) for layer in packed(model))


@pytest.mark.parametrize("case", ["gradient", "float64", "empty", "unbatched"])
def test_calls_that_it_does_not_suit_go_the_usual_way(packings, case):
    layer, values = packed(nn.Conv2d(128, 128, 3, padding=1)), torch.randn(2, 128, 4, 4)
    if case == "gradient":
        values.requires_grad_()
        (found,) = torch.autograd.grad(layer(values).sum(), values)
        torch.testing.assert_close(found[0, :, 1, 1], layer.weight.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)
    else:
        with torch.no_grad():
            if case == "float64":
                assert layer.double()(values.double()).dtype == torch.float64
            else:
                assert layer(values[:0] if case == "empty" else values[0]).shape[-3:] == (128, 4, 4)
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
