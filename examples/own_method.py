"""A sampler of one's own in one file: independence Metropolis-Hastings on p^alpha, and its distribution checked.

    python examples/own_method.py

Every step draws a whole new completion y from q and accepts it with probability min(1, W(y)/W(x)), W = p^alpha/q:
exact as the steps grow, and slow where q is far from p^alpha. The model is tiny and random, so that p^alpha can be
enumerated.
"""

import collections
import dataclasses
import itertools
import math

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from lm_power import PowerSampler, SamplerConfig
from lm_power.chains import EMPTY_PATH, Info, Move, OneLane, Path, Result
from lm_power.decoding import Request
from lm_power.jobs import Job


@dataclasses.dataclass(frozen=True)
class State:
    """The current completion, and the draws made so far."""

    path: Path = EMPTY_PATH
    draws: int = 0


@dataclasses.dataclass(frozen=True)
class Independence(OneLane):
    """`steps` fresh draws from q after the first, each accepted with probability min(1, W(y)/W(x))."""

    alpha: float
    length: int
    steps: int
    rewinds = True  # a draw overwrites the completion, which a rejection puts back

    def start(self):
        return State()

    def held(self, state):
        return (state.path.tokens,)

    def result(self, state):
        return Result(state.path) if state.draws > self.steps else None

    def work_left(self, state):
        return float(self.length * (self.steps + 1 - state.draws))

    def next_move(self, state, stream):
        uniforms = stream.at(1, state.draws).random(self.length + 1)
        return dataclasses.replace(Draw(Request(0, self.length, self.alpha, uniforms[1:])), uniform=1 - uniforms[0])

    def settle(self, state, move, segment):
        proposed = state.path.spliced(0, segment)
        accepted = state.draws == 0 or math.log(move.uniform) <= self.log_weight(proposed) - self.log_weight(state.path)
        return State(proposed if accepted else state.path, state.draws + 1), Info(kept=accepted)

    def log_weight(self, path):
        return float((self.alpha * path.log_p - path.log_q).sum())


@dataclasses.dataclass(frozen=True)
class Draw(Move):
    """A move that brings the uniform of its acceptance test along."""

    uniform: float = 1.0


def main(draws=2000, alpha=2.0, length=2, vocabulary=5, eos=4, seed=7):
    torch.manual_seed(seed)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Qwen2Config(vocab_size=vocabulary, num_key_value_heads=1, initializer_range=0.5, **shape)
    model = Qwen2ForCausalLM(config).double().eval()
    sampler = PowerSampler(model, None, max_rows=256, eos_token_ids=[eos])
    completions = [x for x in itertools.product(range(vocabulary), repeat=length) if x[0] != eos] + [(eos,)]
    log_p = [model(torch.tensor([[0, *x]])).logits[0, :-1].log_softmax(-1).gather(1, torch.tensor(x)[:, None]).sum()
             for x in completions]  # fmt: skip
    target = torch.softmax(alpha * torch.stack(log_p), 0).tolist()
    jobs = [Job((0,), repeat) for repeat in range(draws)]
    for name, own in (("temperature", 0), ("independence, 20 steps", 20)):
        drawn = sampler.sample(jobs, SamplerConfig(max_new_tokens=length), algorithm=Independence(alpha, length, own))
        counts = collections.Counter(completion.token_ids for _, completion in drawn)
        error = sum(abs(counts[x] / draws - p) for x, p in zip(completions, target, strict=True)) / 2
        print(f"{name:24s} total variation to p^alpha: {error:.3f}")
        yield error


if __name__ == "__main__":
    list(main())
