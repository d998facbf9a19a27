"""The linear layer by oneDNN: the same numbers as in float64, and only where it belongs."""

import pytest
import torch
import torch.nn.functional as F

from sdsclip_hf.students import onednn
from sdsclip_hf.students.onednn import FastLinear, linear

SHAPES = [(24,), (1, 24), (7, 24), (3, 5, 24), (2, 3, 4, 24), (600, 24)]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def taken(monkeypatch):
    """How often the fast layer was used."""
    calls = []
    monkeypatch.setattr(onednn, "linear", lambda *args, **kwargs: calls.append(1) or linear(*args, **kwargs))
    return calls


def assert_exact(found, values, weight, bias):
    expected = F.linear(values.double(), weight.double(), None if bias is None else bias.double())
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_equals_the_layer_in_double_precision(threads, shape, with_bias):
    values, weight = torch.randn(shape), torch.randn(10, 24)
    bias = torch.randn(10) if with_bias else None
    assert_exact(linear(values, weight, bias), values, weight, bias)


@pytest.mark.parametrize(
    "values, weight",
    [
        (torch.randn(6, 5, 24).transpose(0, 1), torch.randn(10, 24)),
        (torch.randn(6, 48)[:, ::2], torch.randn(10, 24)),
        (torch.randn(24).expand(6, 24), torch.randn(10, 24)),
        (torch.randn(6, 24), torch.randn(24, 10).T),
        (torch.randn(6, 24), torch.randn(20, 48)[::2, ::2]),
        (torch.randn(6, 1), torch.randn(10, 1)),
        (torch.randn(6, 24), torch.randn(1, 24)),
    ],
    ids=["transposed", "strided", "expanded", "weight transposed", "weight strided", "one input", "one output"],
)
def test_memory_layout_does_not_matter(threads, values, weight):
    with torch.no_grad():
        assert_exact(linear(values, weight), values, weight, None)


def test_layers_in_the_context_go_through_it(taken):
    layer, values = torch.nn.Linear(24, 10), torch.randn(7, 24)
    with torch.no_grad(), FastLinear():
        found = layer(values)
        without = F.linear(values, layer.weight)
        named = F.linear(values, layer.weight, bias=layer.bias)
    assert len(taken) == 3
    assert_exact(found, values, layer.weight, layer.bias)
    assert_exact(without, values, layer.weight, None)
    assert_exact(named, values, layer.weight, layer.bias)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_left_alone(taken, dtype):
    layer, values = torch.nn.Linear(24, 10, dtype=dtype), torch.randn(7, 24, dtype=dtype)
    with torch.no_grad():
        expected = layer(values)
        with FastLinear():
            assert torch.equal(layer(values), expected)
    assert not taken


def test_gradients_are_left_alone(taken):
    layer, values = torch.nn.Linear(24, 10), torch.randn(7, 24)
    with FastLinear():
        layer(values).sum().backward()
    torch.testing.assert_close(layer.weight.grad, values.sum(0).expand(10, 24))
    assert not taken


def test_empty_batch_and_a_vector_for_a_weight_are_left_alone(taken):
    with torch.no_grad(), FastLinear():
        assert F.linear(torch.randn(0, 24), torch.randn(10, 24)).shape == (0, 10)
        assert F.linear(torch.randn(3, 24), torch.randn(24)).shape == (3,)
    assert not taken


def test_arguments_by_name_are_the_default_layer_s(taken):
    values, weight = torch.randn(3, 24), torch.randn(10, 24)
    with torch.no_grad(), FastLinear():
        assert_exact(F.linear(input=values, weight=weight), values, weight, None)


def test_it_is_off_after_the_context_and_after_an_error(taken):
    layer, values = torch.nn.Linear(24, 10), torch.randn(7, 24)
    with torch.no_grad():
        with pytest.raises(RuntimeError), FastLinear():
            layer(torch.randn(7, 25))
        taken.clear()
        layer(values)
    assert not taken
