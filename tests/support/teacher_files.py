"""Stores and lm-eval samples files as their writers leave them, for tests of what reads teacher data."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer

from lm_power.completion import Completion, Stats
from lm_power.config import SamplerConfig
from lm_power.store import CompletionStore, Provenance

MODEL = "some/model@0123456789abcdef"
CONFIG = SamplerConfig(max_new_tokens=200)
EOS = 0
TOKENIZER = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "examples/pocket/model", local_files_only=True)


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text, add_special_tokens=False))


def completion(text: str, finish: str = "eos", self_reward: float = -0.5, end: tuple[int, ...] = (EOS,)) -> Completion:
    """`end`: the tokens beyond the text, EOS or a stop string's; ignored for "length"."""
    tokens = (*ids(text), *(() if finish == "length" else end))
    log_probs = [self_reward] * len(tokens)
    return Completion(text, tokens, log_probs, finish, Stats(tokens_decoded=10 * len(tokens)))


def put(folder, *rows, model: str = MODEL, config: SamplerConfig = CONFIG, stop=()) -> Path:
    """Add (prompt, repeat, completion) rows by one process of a store."""
    source = Provenance(model, config, tuple(stop), (EOS,))
    with CompletionStore(folder, model) as store:
        for prompt, repeat, drawn in rows:
            store.add(prompt, ids(prompt), repeat, source, drawn)
    return Path(folder)


def store_lines(folder) -> list[dict]:
    return [json.loads(line) for path in sorted(Path(folder).glob("*.jsonl")) for line in path.open()]


def write_lines(path, rows) -> Path:
    """JSON Lines; a row that is a text already is written as it is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def sample(doc_id: int, prompt, texts, told=None, doc=None, options=None, **metrics) -> dict:
    """A line of `--log_samples`; `told` has columns of `doc["lm_power"]`, which other tasks than ours (None) lack."""
    doc = {"problem": str(prompt), **(doc or {})}
    if told is not None:
        n = len(next(iter(told.values())))
        names = ("correct", "self_reward", "finish_reason", "tokens", "cost")
        doc["lm_power"] = {name: [None] * n for name in names} | {"correct": [1.0] * n} | told
    return {
        "doc_id": doc_id,
        "doc": doc,
        "target": "4",
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": options or {"until": [], "max_gen_toks": 200}}},
        "resps": [list(texts)],
        "filtered_resps": [list(texts)],
        "filter": "none",
        "metrics": list(metrics),
        **metrics,
    }


def write_samples(folder, *rows, task: str = "sums", time: str = "2026-01-02T03-04-05.678901", **results) -> Path:
    """A samples file and, if `results` are given, the results file that lm-eval writes beside it."""
    if results:
        write_lines(Path(folder) / f"results_{time}.json", [results])
    return write_lines(Path(folder) / f"samples_{task}_{time}.jsonl", rows)
