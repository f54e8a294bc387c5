"""A tiny model with a tokenizer of single characters, and lm-eval tasks written on the spot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

CHARACTERS = "abcdefghijklmnopqrstuvwxyz ?:\n"
SPECIAL = ("</s>", "<s>")  # ids 0 and 1
POSITIONS = 96
CHAT_TEMPLATE = "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "

UTILS = '''
"""Verdicts that depend on every character of every completion."""
from lm_power.harness.metrics import completion_metrics, log_completions, real_completions

def process_results(doc, results):
    completions = real_completions(results)
    correct = [float(sum(map(ord, text)) % 2) for text in completions]
    log_completions(doc, correct, completions)
    return completion_metrics(correct, completions)
'''


def make_tokenizer(eos: bool = True):
    """One character a token; encoding begins with <s>."""
    from tokenizers import AddedToken, Tokenizer, decoders, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(BPE({piece: i for i, piece in enumerate((*SPECIAL, *CHARACTERS))}, []))
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "pad_token": "<s>", **({"eos_token": "</s>"} if eos else {})}
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=CHAT_TEMPLATE, **names)


def make_config(**changes: Any):
    """A Llama of 2 layers, whose distributions are neither flat nor sure."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **{
            "vocab_size": len(SPECIAL) + len(CHARACTERS),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": POSITIONS,
            "initializer_range": 0.15,
            "tie_word_embeddings": True,
            "eos_token_id": 0,
            "bos_token_id": 1,
            **changes,
        }
    )


def make_model(seed: int = 0, **changes: Any):
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(make_config(**changes)).eval()


def save_model(folder: Path, seed: int = 0, **changes: Any) -> str:
    make_model(seed, **changes).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


PROMPTS = ("add one and one?", "who are you?", "say abc", "why not?", "what now?")


def write_task(folder: Path, prompts=PROMPTS, name: str = "tiny_task", **settings: Any) -> Path:
    """Write the task `name` over `prompts`, as a user would for `--include_path`; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    data, utils = folder / f"{name}.jsonl", folder / "utils.py"
    data.write_text("".join(json.dumps({"prompt": prompt, "answer": "a"}) + "\n" for prompt in prompts))
    utils.write_text(UTILS)
    generation = {"until": [], "max_gen_toks": 8, "do_sample": False, **settings.pop("generation_kwargs", {})}
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "answer",
        "generation_kwargs": generation,
        "filter_list": [{"name": "none", "filter": []}],
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "self_reward")],
        **settings,
    }
    if task["output_type"] != "generate_until":
        for key in ("generation_kwargs", "filter_list", "metric_list"):
            del task[key]
    elif "process_results" not in task:
        (folder / f"{name}.yaml").write_text("process_results: !function utils.process_results\n")
    with (folder / f"{name}.yaml").open("a") as file:
        yaml.safe_dump(task, file)
    return folder


@dataclasses.dataclass
class Evaluation:
    """What `simple_evaluate` returned, and the model."""

    results: dict[str, Any]
    model: Any

    @property
    def samples(self) -> list[dict[str, Any]]:
        return [sample for samples in self.results["samples"].values() for sample in samples]

    @property
    def completions(self) -> list[list[Any]]:
        """[document][repeat]."""
        return [[text for texts in sample["resps"] for text in texts] for sample in self.samples]


CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_choice": ["yes", "no", "a b"],
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc"}],
}
"""A task of log-likelihoods."""


def assert_log_likelihoods_of(stock: Any, evaluate: Callable[..., Evaluation]) -> None:
    """A multiple-choice task by the model that `evaluate` makes, and by lm-eval's own `stock`."""
    ours, theirs = evaluate(task=CHOICES), evaluate(task=CHOICES, model=stock)
    pairs = list(zip(ours.samples, theirs.samples, strict=True))
    assert len(pairs) == len(PROMPTS)
    for mine, other in pairs:
        for (one,), (two,) in zip(mine["resps"], other["resps"], strict=True):
            assert one[0] == pytest.approx(two[0], abs=1e-5) and one[1] == two[1]
