"""The faster ways of a linear layer compute what it computes, and leave the model as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from models import make_model
from torch import nn
from torch.nn import functional

from lm_power.engine import HFBackend, products
from lm_power.engine.products import FastLinears, linear

INPUTS = 24

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [7, products._WIDE])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (8, 1), (9, 1), (3, 5), (6,)])
def test_every_way_computes_the_same(shape: tuple[int, ...], outputs: int, bias: bool) -> None:
    """Guards: a product transposed the wrong way round, a bias left out, an input or output that is a strided view."""
    torch.manual_seed(0)
    layer = nn.Linear(INPUTS, outputs, bias)
    x = torch.randn(*shape, 2 * INPUTS)[..., ::2]  # strided, as a slice of another layer's output is
    with torch.inference_mode():
        y = linear(layer, x)
        expected = functional.linear(x.double(), layer.weight.double())
        expected = expected if layer.bias is None else expected + layer.bias
    assert y.shape == (*shape, outputs) and y.dtype == torch.float32 and y.is_contiguous()
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=0)  # 24 products of order 1, in float32


def test_other_dtypes_are_left_to_torch() -> None:
    """Guards the promise that float64 completions are the same whatever the shape of the batch, to the last bit."""
    layer, x = nn.Linear(INPUTS, products._WIDE).double(), torch.randn(4, INPUTS, dtype=torch.float64)
    assert torch.equal(linear(layer, x), functional.linear(x, layer.weight, layer.bias))


def test_the_model_is_as_before_outside_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a model that keeps the engine's layers: a copy of it would go on with the weights of the original."""
    monkeypatch.setattr(products, "gains", lambda: True)
    monkeypatch.setattr(products, "_LARGE", 0)
    model = make_model("qwen2")
    called = []
    monkeypatch.setattr(products, "linear", lambda layer, x: called.append(layer) or linear(layer, x))
    backend = HFBackend(model)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert set(called) == set(layers), "not every layer has been used in decoding"
    with pytest.raises(ZeroDivisionError), backend._products:
        assert all("forward" in vars(layer) for layer in layers)
        1 / 0  # noqa: B018
    assert not any("forward" in vars(layer) for layer in layers)
    copy.deepcopy(model)


def test_layers_that_are_not_plain_or_small_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards quantised weights, those of other dtypes, and layers whose forward pass a hook has replaced."""
    monkeypatch.setattr(products, "gains", lambda: True)
    monkeypatch.setattr(products, "_LARGE", 16)

    class Quantised(nn.Linear):
        pass

    hooked = nn.Linear(4, 4)
    hooked.forward = hooked.forward
    others = Quantised(4, 4), nn.Linear(4, 4).double(), hooked, nn.Linear(4, 3)
    fast = FastLinears(nn.Sequential(*others, nn.Linear(4, 4)))
    assert len(fast._forwards) == 1
    before = hooked.forward
    with fast:
        assert hooked.forward is before
    assert hooked.forward is before
