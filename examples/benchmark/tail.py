#!/usr/bin/env python3
"""What the last rows of a run cost: one completion many times as long as the others, on the engine itself.

    python examples/benchmark/tail.py --model ID_OR_FOLDER --dtype bfloat16

Prints the CPU time of a step for each number of rows, c(r), with all of them busy; then the time of a run whose lengths
are given, with the batch that shrinks and with the fixed one, over the sum of c(busy rows) over the steps: what a batch
would cost that is never larger than its work.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from lm_power.decoding import Request
from lm_power.engine import Engine, HFBackend, StopStrings

PROMPT = [5, 9, 33, 2, 17, 60, 8, 21]


def started(backend: HFBackend, lengths: list[int], shape: str) -> Engine:
    """An engine with a row per length, all of them about to decode; nothing but the length ends a completion."""
    engine = Engine(
        backend, len(lengths), len(PROMPT), max(lengths), (), StopStrings(None, [], backend.vocabulary),
        batch_shape=shape,
    )  # fmt: skip
    for row, length in enumerate(lengths):
        engine.load(row, PROMPT)
        engine.submit(row, Request(0, length, 1.0, np.random.default_rng(row).random(length)))
    return engine


def cost_of_a_step(backend: HFBackend, rows: int, steps: int) -> float:
    """Median CPU seconds of a step with all rows busy."""
    engine = started(backend, [steps + 2] * rows, "fixed")
    engine.step()
    times = []
    for _ in range(steps):
        before = time.process_time()
        engine.step()
        times.append(time.process_time() - before)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="hub id or folder")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, default=64, help="completions, and rows")
    parser.add_argument("--length", type=int, default=20, help="tokens of all completions but one")
    parser.add_argument("--longer", type=int, default=10, help="times as long as the others the one is")
    parser.add_argument("--steps", type=int, default=6, help="steps measured for each number of rows")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backend = HFBackend(AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).eval())
    lengths = [args.length] * args.rows
    lengths[args.rows // 2] *= args.longer
    cost = {}
    for rows in sorted({1, args.rows, *(2**k for k in range(1, 10) if 2**k < args.rows)}):
        cost[rows] = cost_of_a_step(backend, rows, args.steps)
        print(f"c({rows}) = {1e3 * cost[rows]:.1f} ms, {1e3 * cost[rows] / rows:.2f} ms per token", flush=True)
    ideal = args.length * cost[args.rows] + (max(lengths) - args.length) * cost[1]
    for shape in ("shrinking", "fixed"):
        engine = started(backend, lengths, shape)
        before, left = time.process_time(), args.rows
        while left:
            left -= len(engine.step())
        spent, counters = time.process_time() - before, engine.counters
        print(
            f"{shape}: {spent:.1f} s, {spent / ideal:.2f} times the ideal; {counters.decoded} tokens, "
            f"{counters.row_steps} rows run in {counters.steps} steps, {counters.moves} moves",
            flush=True,
        )


if __name__ == "__main__":
    main()
