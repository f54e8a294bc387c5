"""Synthetic runs for the tests of the report: seeded, with every field filled in, and without any model."""

import hashlib
import random
from pathlib import Path

from lm_power.completion import Steps
from lm_power.logs.samples import LoggedCompletion
from lm_power.report.runs import Comparison, Problem, Run


def make_completion(rng: random.Random, skill: float, method: str = "power") -> LoggedCompletion:
    """A completion that is right with probability `skill`, and more self-confident where it is right."""
    correct = float(rng.random() < skill)
    tokens = rng.randint(5, 40)
    digit = "4" if correct else rng.choice("123")
    self_reward = -rng.uniform(0.02, 0.3) - 0.2 * (1 - correct)
    steps = make_steps(rng, tokens) if method == "power" else Steps()
    return LoggedCompletion(
        text=f" carefully {'a1 ' * tokens}so {digit}",
        correct=correct,
        answer=digit,
        self_reward=self_reward,
        sum_log_prob=self_reward * tokens,
        finish_reason="eos",
        tokens=tokens,
        tokens_decoded=tokens + sum(length - cut for cut, length in zip(steps.cut, steps.length, strict=True)),
        seconds=rng.uniform(0.1, 2.0),
        steps=steps,
    )


def make_steps(rng: random.Random, tokens: int, block_size: int = 8, mcmc_steps: int = 5) -> Steps:
    """The schedule's steps of a completion of that length, late cuts accepted more often."""
    stage, cut, length, accepted = [], [], [], []
    for k in range(1, -(-tokens // block_size) + 1):
        n = min(k * block_size, tokens)
        for _ in range(mcmc_steps):
            i = rng.randrange(n)
            stage.append(k), cut.append(i), length.append(n), accepted.append(int(rng.random() < 0.3 + 0.6 * i / n))
    return Steps(tuple(stage), tuple(cut), tuple(length), tuple(accepted))


def make_run(
    label: str = "pocket, power, alpha=4",
    *,
    skill: float = 0.8,
    problems: int = 20,
    n: int = 4,
    method: str = "power",
    seed: int = 0,
    **fields,
) -> Run:
    """A run of `problems` problems with n completions each; `fields` replace those of the record.

    Some problems are harder than others, in the same way for every seed and label, as in real runs.
    """
    rng = random.Random(f"{seed} {label}")
    made = []
    for doc_id in range(problems):
        prompt = f"Problem {doc_id}: add a{doc_id % 10} and give the last digit:"
        digest = hashlib.sha256(prompt.encode()).hexdigest()
        hardness = random.Random(doc_id).uniform(0.6, 1.2)
        completions = tuple(make_completion(rng, min(1.0, skill * hardness), method) for _ in range(n))
        made.append(Problem(doc_id, digest[::-1], digest, prompt, "4", completions))
    options = {
        "power": {"alpha": 4.0, "block_size": 8, "mcmc_steps": 5},
        "temperature": {"proposal_temperature": 0.25},
    }.get(method, {})
    given = {
        "label": label,
        "model": "pocket",
        "method": method,
        "options": options,
        "settings": {"pretrained": "examples/pocket/model", "method": method, **options},
        "task": "pocket_sums",
        "filter": "none",
        "task_version": "1.0",
        "n": n,
        "problems": tuple(made),
        "folder": Path("runs") / method,
        "has_answers": True,
        "seconds": 12.5,
    }
    return Run(**{**given, **fields})


def make_comparison(problems: int = 20, n: int = 4, seed: int = 0) -> Comparison:
    """Three methods on the same problems; the better they are, the more they cost."""
    runs = (
        make_run("pocket, standard", skill=0.5, problems=problems, n=n, method="standard", seed=seed),
        make_run("pocket, temperature=0.25", skill=0.65, problems=problems, n=n, method="temperature", seed=seed),
        make_run("pocket, power, alpha=4", skill=0.9, problems=problems, n=n, method="power", seed=seed),
    )
    return Comparison(task="pocket_sums", filter="none", runs=runs)
