"""Linear layers by oneDNN: the same numbers, and PyTorch's own way wherever it is not made for."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from st_prompteol.fast import linear
from st_prompteol.fast.linear import install_fast_linear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the inputs that oneDNN multiplies, of whatever size, whichever way is faster on this CPU."""
    shapes: list[tuple[int, ...]] = []
    product = linear._product
    monkeypatch.setattr(linear, "_SMALL", 0)
    monkeypatch.setattr(linear, "_is_faster", lambda: True)
    monkeypatch.setattr(
        linear, "_product", lambda rows, *rest: shapes.append(tuple(rows.shape)) or product(rows, *rest)
    )
    return shapes


def build(*, bias: bool = True) -> torch.nn.Linear:
    layer = torch.nn.Linear(24, 56, bias=bias)
    install_fast_linear(layer)
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40, 24), (1, 40, 24), (2, 20, 24), (5, 2, 4, 24)])
def test_products_are_those_in_float64(used: list[tuple[int, ...]], shape: tuple[int, ...], bias: bool) -> None:
    layer, rows = build(bias=bias), torch.randn(shape)
    with torch.no_grad():
        got = layer(rows)
    expected = torch.nn.functional.linear(rows.double(), layer.weight.double(), layer.bias.double() if bias else None)
    assert used == [shape]
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_inputs_and_weights_may_lie_anyhow_in_memory(used: list[tuple[int, ...]]) -> None:
    layer, rows = build(bias=False), torch.randn(24, 80).t()[::2]
    layer.weight = torch.nn.Parameter(torch.randn(24, 56).t())
    with torch.no_grad():
        got = layer(rows)
    assert used == [(40, 24)]
    torch.testing.assert_close(got, rows @ layer.weight.detach().t(), rtol=1e-5, atol=1e-5)


def test_weights_that_change_are_seen(used: list[tuple[int, ...]]) -> None:
    layer, rows = build(), torch.randn(40, 24)
    with torch.no_grad():
        before = layer(rows)
        layer.weight.data.mul_(2)
        layer.bias.mul_(2)
        torch.testing.assert_close(layer(rows), 2 * before)
    assert len(used) == 2


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_computes_with_its_own_weights(used: list[tuple[int, ...]], clone: object) -> None:
    layer, rows = build(), torch.randn(40, 24)
    twin = clone(layer)  # type: ignore[operator]
    with torch.no_grad():
        twin.weight.zero_()
        torch.testing.assert_close(twin(rows), twin.bias.expand(40, 56))
        assert not torch.equal(layer(rows), twin(rows))
    assert len(used) == 3


def test_what_it_is_not_made_for_is_left_to_pytorch(
    used: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, rows = build(), torch.randn(40, 24)
    layer(rows).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        layer(rows[:7])  # few rows
        assert copy.deepcopy(layer).bfloat16()(rows.bfloat16()).dtype == torch.bfloat16
        assert copy.deepcopy(layer).double()(rows.double()).dtype == torch.float64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(rows).dtype == torch.bfloat16
        compiled = torch.compile(layer, backend="eager")
        compiled(rows)
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
        layer(rows)
    assert used == []
