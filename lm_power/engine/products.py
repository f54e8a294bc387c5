"""Linear layers of float32 weights on a CPU, by faster ways than `torch.nn.functional.linear`.

PyTorch has MKL compute `x W^T`, and on a processor without AVX-512 MKL takes up to three times as long for 4 rows of x
as for one. Asked for `W x^T`, it takes little longer than for one. For more rows, and where W has many, oneDNN is
faster than either. What was measured is in examples/benchmark/BENCHMARKS.md.
"""

from __future__ import annotations

import functools
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

_LARGE = 2**18  # weights of a layer below which they stay in a core's cache, and nothing is gained
_FEW = 8  # rows of x up to which `W x^T` is the fastest
_WIDE = 4096  # outputs from which on oneDNN is the fastest for more rows than that


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """What a linear layer computes: `x W^T + b`.

    How depends on the sizes alone, never on a clock, so that the same run gives the same numbers again.

    Args:
        layer: of weights W and bias b.
        x: [..., inputs], of any dtype.

    Returns:
        [..., outputs], contiguous.
    """
    weight, bias = layer.weight, layer.bias
    outputs, inputs = weight.shape
    rows = x.numel() // inputs
    if x.dtype == weight.dtype == torch.float32:
        if 1 < rows <= _FEW:
            columns = x.reshape(rows, inputs).t()
            y = torch.mm(weight, columns) if bias is None else torch.addmm(bias[:, None], weight, columns)
            return y.t().contiguous().view(*x.shape[:-1], outputs)
        if rows > _FEW and outputs >= _WIDE:
            wide: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
            return wide
    return functional.linear(x, weight, bias)


class FastLinears:
    """Within it, the linear layers of a model compute by `linear`; before and after, the model is as it was given.

    Args:
        model: any. Small layers stay as they are, and those that are not plain (quantised, say, or moved between
            devices by hooks); on a processor that gains nothing, all do.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [layer for layer in model.modules() if _is_plain(layer)] if gains() else []
        self._forwards = [(vars(layer), functools.partial(linear, layer)) for layer in layers]

    def __enter__(self) -> None:
        for attributes, forward in self._forwards:
            attributes["forward"] = forward

    def __exit__(self, *error: object) -> None:
        for attributes, _ in self._forwards:
            attributes.pop("forward", None)  # gone already if another thread has left


def gains() -> bool:
    """Whether the ways of `linear` are faster here: with MKL, on x86 processors without AVX-512."""
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return has_both and torch.backends.cpu.get_cpu_capability() == "AVX2"


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter or "forward" in vars(layer):
        return False
    plain = layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32
    return plain and layer.weight.numel() >= _LARGE
