"""The ledger against what is counted by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from sdsclip_hf.planning.ledger import Ledger, Phase

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 3, 5, 7, 8


def linear(device):
    weight = torch.empty(11, 5, requires_grad=True, device=device)
    return F.linear(torch.empty(4, 5, requires_grad=True, device=device), weight)


def convolution(device):
    weight = torch.empty(6, 4, 3, 3, device=device)
    return F.conv2d(torch.empty(2, 4, 8, 8, requires_grad=True, device=device), weight, padding=1)


def attention(device):
    shape = (BATCH, HEADS, QUERIES, WIDTH), (BATCH, HEADS, KEYS, WIDTH), (BATCH, HEADS, KEYS, WIDTH)
    return F.scaled_dot_product_attention(*(torch.empty(one, requires_grad=True, device=device) for one in shape))


FORWARD_AND_BACKWARD = {
    linear: (2 * 4 * 5 * 11, 2 * (2 * 4 * 5 * 11)),  # the gradients of input and weight
    convolution: (2 * 2 * 64 * 6 * 4 * 9, 2 * 2 * 64 * 6 * 4 * 9),  # the weight is frozen
    # cosines and mean; backward has the cosines again, and two products for each of the two
    attention: (4 * BATCH * HEADS * QUERIES * KEYS * WIDTH, 10 * BATCH * HEADS * QUERIES * KEYS * WIDTH),
}


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("layer", FORWARD_AND_BACKWARD, ids=lambda layer: layer.__name__)
def test_operations_are_those_counted_by_hand(layer, fake):
    mode = FakeTensorMode() if fake else torch.enable_grad()
    with mode, Ledger() as ledger:
        with ledger.during("layer", "forward"):
            result = layer("cpu")
        with ledger.during("layer", "backward", times=3):
            result.sum().backward()
    forward, backward = FORWARD_AND_BACKWARD[layer]
    assert ledger.flops == {Phase("layer", "forward"): forward, Phase("layer", "backward"): 3 * backward}


def test_bytes_are_held_from_their_making_to_their_end_and_views_hold_none():
    weights, forward, backward = (Phase("part", stage) for stage in ("weights", "forward", "backward"))
    held = torch.empty(100)
    with Ledger() as ledger:
        with ledger.during(*weights):
            ledger.hold([held, held[:10]])
        with ledger.during(*forward):
            one = torch.empty(1000, dtype=torch.float16)
            view = one.view(10, 100).T
            del one
            other = torch.empty(50)
        assert ledger.live == {weights: 400, forward: 2200}
        del view, other
        with ledger.during(*backward):
            last = torch.empty(200)
        assert ledger.live == {weights: 400, forward: 0, backward: 800}
    del last
    assert ledger.peak == {weights: 400, forward: 2200}


def test_what_backward_needs_is_held_until_it_is_done():
    kept, freed, later = (Phase(name, "") for name in ("kept", "freed", "later"))
    with FakeTensorMode():
        layers = torch.nn.Sequential(torch.nn.Linear(10, 1000), torch.nn.Sigmoid(), torch.nn.Linear(1000, 10))
        with Ledger() as ledger:
            with ledger.during("weights", ""):
                ledger.hold(layers.parameters())
            with ledger.during(*freed), torch.no_grad():
                layers(torch.empty(8, 10))
            with ledger.during(*kept):
                loss = layers(torch.empty(8, 10)).sum()
            assert ledger.live[freed] == 0
            assert ledger.live[kept] == 4 * (8 * 10 + 8 * 1000 + 1)  # the input, what Sigmoid gives, the loss
            with ledger.during(*later):
                loss.backward()
            del loss
            assert ledger.live[kept] == 0
            assert ledger.live[later] == 4 * (2 * 10 * 1000 + 1000 + 10)  # the gradients
