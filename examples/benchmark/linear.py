#!/usr/bin/env python3
"""What a linear layer costs on this CPU, in float32, by four ways of computing it; see `lm_power/engine/products.py`.

    python examples/benchmark/linear.py --inputs 576 --outputs 1536 --rows 1 2 4 8 16 64 512

Prints the CPU time of `torch.nn.functional.linear`, and how many times as fast the other ways are: medians over rounds
in which all take turns, each through so many layers that their weights are not in the caches.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.nn import functional

CACHES = 2**25  # bytes


@torch.inference_mode()
def seconds(inputs: int, outputs: int, rows: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a layer in each round, by way."""
    layers = max(1, -(-2 * CACHES // (4 * inputs * outputs)))
    weights = [torch.randn(outputs, inputs) for _ in range(layers)]
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, rows) for weight in weights]
    x = torch.randn(rows, inputs)
    ways = {
        "linear": lambda i: functional.linear(x, weights[i]),
        "W x^T": lambda i: torch.mm(weights[i], x.t()).t().contiguous(),
        "oneDNN": lambda i: torch.ops.mkldnn._linear_pointwise(x, weights[i], None, "none", [], ""),
        "oneDNN, packed": lambda i: torch.ops.mkldnn._linear_pointwise(x, packed[i], None, "none", [], ""),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            before = time.process_time()
            for index in range(layers):
                run(index)
            taken[name].append((time.process_time() - before) / layers)
    return taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=576)
    parser.add_argument("--outputs", type=int, default=1536)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| rows | linear, µs | W x^T | oneDNN | oneDNN, packed |\n|---:|---:|---:|---:|---:|")
    for rows in args.rows:
        plain, *others = seconds(args.inputs, args.outputs, rows, args.rounds).values()
        ratios = [statistics.median(a / b for a, b in zip(plain, way, strict=True)) for way in others]
        print(
            f"| {rows} | {1e6 * statistics.median(plain):.0f} |",
            " | ".join(f"{r:.2f}" for r in ratios),
            "|",
            flush=True,
        )


if __name__ == "__main__":
    main()
