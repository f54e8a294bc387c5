"""A sampler of one's own in one file: independence Metropolis-Hastings on p^alpha, and its distribution checked.

    python examples/own_method.py

A step draws a new completion y from q and accepts it with probability min(1, W(y)/W(x)), W = p^alpha/q. The result is
exact as the steps grow. The model is so small that p^alpha can be enumerated.
"""

import collections
import dataclasses
import math

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from lm_power import PowerSampler, SamplerConfig
from lm_power.chains import EMPTY_PATH, Info, Move, OneLane, Path, Result
from lm_power.decoding import Request
from lm_power.jobs import Job


@dataclasses.dataclass(frozen=True)
class State:
    path: Path = EMPTY_PATH  # the current completion
    log_weight: float = -math.inf  # its log W, nats; the first draw is always accepted
    draws: int = 0  # made so far


@dataclasses.dataclass(frozen=True)
class Independence(OneLane):
    alpha: float
    length: int
    steps: int  # draws after the first
    rewinds = True  # a draw overwrites the completion, which a rejection puts back

    def start(self):
        return State()

    def next_move(self, state, stream):
        uniforms = stream.at(1, state.draws).random(self.length)  # one per token
        return Move(Request(keep=0, horizon=self.length, beta=self.alpha, uniforms=uniforms))

    def advance(self, state, moves, segments, stream):
        (drawn,) = segments
        log_weight = float((self.alpha * drawn.log_p - drawn.log_q).sum())
        kept = math.log1p(-stream.at(2, state.draws).random()) <= log_weight - state.log_weight
        path, log_weight = (EMPTY_PATH.spliced(0, drawn), log_weight) if kept else (state.path, state.log_weight)
        return State(path, log_weight, state.draws + 1), [Info(kept)]

    def held(self, state):
        return (state.path.tokens,)

    def work_left(self, state):
        return float(self.length * (self.steps + 1 - state.draws))

    def result(self, state):
        return Result(state.path) if state.draws > self.steps else None


def main(draws=2000, alpha=2.0):
    torch.manual_seed(7)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=5, num_key_value_heads=1, **sizes)).double().eval()
    # After the prompt (0,): two tokens of 0 … 4, or the EOS token 4 alone.
    law = model(torch.tensor([[0, a] for a in range(5)])).logits.log_softmax(-1)
    log_p = {(a, b): law[a, 0, a] + law[a, 1, b] for a in range(4) for b in range(5)} | {(4,): law[0, 0, 4]}
    target = torch.stack([alpha * value for value in log_p.values()]).softmax(0).tolist()
    sampler = PowerSampler(model, None, max_rows=256, eos_token_ids=[4])
    jobs = [Job((0,), repeat) for repeat in range(draws)]
    for steps in (0, 20):
        drawn = sampler.sample(jobs, SamplerConfig(max_new_tokens=2), algorithm=Independence(alpha, 2, steps))
        counts = collections.Counter(completion.token_ids for _, completion in drawn)
        error = sum(abs(counts[x] / draws - p) for x, p in zip(log_p, target, strict=True)) / 2
        print(f"{steps:2d} steps after a draw at temperature 1/alpha: total variation to p^alpha {error:.3f}")
        yield error


if __name__ == "__main__":
    list(main())
