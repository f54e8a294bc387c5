"""Synthetic files: lm-eval's, as `--output_path DIR --log_samples` would leave them, and stores."""

import dataclasses
import hashlib
import json
from pathlib import Path

from lm_power.completion import Completion, Stats, Steps
from lm_power.config import SamplerConfig
from lm_power.logs.samples import LoggedCompletion
from lm_power.report.runs import Problem, Run
from lm_power.store import CompletionStore, Provenance

TIME = "2026-01-01T00-00-00.000000"


def write_evaluation(
    folder: Path, *runs: Run, time: str = TIME, power: bool = True, model_args: dict | str | None = None, **changes
) -> Path:
    """One lm-eval command that ran the runs' tasks with one model and sampler; the results file.

    Args:
        folder: lm-eval's folder of the model.
        runs: of one command: one per task and filter.
        time: of the file names.
        power: whether the model was `power-hf`; others tell nothing but texts and verdicts.
        model_args: lm-eval's.
        changes: of entries of the results file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = runs[0]
    sampler = {"method": first.method, "seed": 0, "model": "examples/pocket/model@0123456789abcdef", **first.options}
    results: dict = {
        "results": {}, "configs": {}, "versions": {}, "n-samples": {},
        "config": {
            "model": "power-hf" if power else "hf",
            "model_args": model_args or {"pretrained": "examples/pocket/model"},
            **({"power_sampler": sampler} if power else {}),
        },
        "model_name": "examples/pocket/model",
        "total_evaluation_time_seconds": None if first.seconds is None else str(first.seconds),
    }  # fmt: skip
    lines: dict[str, list[str]] = {}
    for run in runs:
        size = len(run.problems)
        results["results"].setdefault(run.task, {})
        results["configs"][run.task] = {"task": run.task, "output_type": "generate_until", "repeats": run.n}
        results["versions"][run.task] = float(run.task_version)
        results["n-samples"][run.task] = {"original": size, "effective": size}
        lines.setdefault(run.task, []).extend(json.dumps(sample(run, p, power)) for p in run.problems)
    for task, texts in lines.items():
        path = folder / f"samples_{task}_{time}.jsonl"
        path.write_text("".join(line + "\n" for line in texts), encoding="utf-8")
    path = folder / f"results_{time}.json"
    path.write_text(json.dumps({**results, **changes}), encoding="utf-8")
    return path


def sample(run: Run, problem: Problem, power: bool = True) -> dict:
    """A document's line."""
    texts = [completion.text for completion in problem.completions]
    log = {
        "correct": [completion.correct for completion in problem.completions],
        "cost": [_cost(a, power) for a in problem.completions],
    }
    for name in ("answer", "self_reward", "finish_reason", "tokens"):
        log[name] = [
            getattr(completion, name) if power or name == "answer" else None for completion in problem.completions
        ]
    return {
        "doc_id": problem.doc_id,
        "doc": {"prompt": problem.prompt, "lm_power": log},
        "target": problem.target,
        "arguments": {"gen_args_0": {"arg_0": problem.prompt, "arg_1": {"until": [], "max_gen_toks": 40}}},
        "resps": [texts],
        "filtered_resps": [texts],
        "filter": run.filter,
        "metrics": ["acc"],
        "doc_hash": problem.doc_hash,
        "prompt_hash": problem.prompt_hash,
        "target_hash": hashlib.sha256(str(problem.target).encode()).hexdigest(),
        "acc": sum(completion.correct for completion in problem.completions) / len(problem.completions),
    }


def _cost(completion: LoggedCompletion, power: bool) -> dict | None:
    if not power:
        return None
    steps = completion.steps
    counts = {"proposals": len(steps.accepted), "accepted": sum(steps.accepted), "tokens_reused": 0}
    return {
        **counts,
        "tokens_decoded": completion.tokens_decoded,
        "seconds": completion.seconds,
        "steps": steps.record(),
    }


def with_texts(run: Run, texts: list[str]) -> Run:
    """The run with other texts, over and over, for its completions."""
    problems = [
        dataclasses.replace(
            problem,
            completions=tuple(
                dataclasses.replace(completion, text=texts[(i + k) % len(texts)])
                for k, completion in enumerate(problem.completions)
            ),
        )
        for i, problem in enumerate(run.problems)
    ]
    return dataclasses.replace(run, problems=tuple(problems))


def fill_store(folder, repeats, seed=0, model="pocket/model+RandW@0123456789abcdef", **options):
    """A store with `repeats[prompt]` completions per prompt."""
    source = Provenance(model, SamplerConfig(seed=seed, **options), (), (0,))
    with CompletionStore(folder, source.model) as store:
        for prompt, n in repeats.items():
            for repeat in range(n):
                completion = Completion(
                    f"{prompt} {repeat}", [5, 6, 0], [-0.5, -0.25, -0.75], "eos",
                    Stats(proposals=2, accepted=1, tokens_decoded=9, seconds=1.5),
                    Steps((1, 1), (0, 1), (3, 3), (0, 1)),
                )  # fmt: skip
                store.add(prompt, [len(prompt)], repeat, source, completion)
