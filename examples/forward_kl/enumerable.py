"""A model small enough to count its completions, samples of it, and students of those, by the project's own parts."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lm_power import PowerSampler
from lm_power.config import SamplerConfig
from lm_power.distill.options import DistillConfig
from lm_power.distill.run import distill
from lm_power.fingerprint import fingerprint
from lm_power.sampler import Job
from lm_power.store import CompletionStore, Provenance
from lm_power.theory import SequenceDistribution

Tokens = tuple[int, ...]

PROMPT = "abc"
PROMPT_IDS = (0, 1, 2)
EOS = 3
LONGEST = 3

# Picked among random models as one where completions of every length are likely and tempering is far from the power
# distribution. Proposals at the default temperature 1/alpha, which favour the wrong first tokens, need twice the steps.
MODEL_SEED = 4
POWER = {"method": "power", "proposal_temperature": 1.0, "block_size": LONGEST, "mcmc_steps": 24}

# The trainer's own adapter at its default rank; a tiny model takes a higher learning rate and larger batches.
STEPS = 300
BATCH_SIZE = 250
TRAINING = {
    "learning_rate": 0.003, "weight_decay": 0.0, "gradient_accumulation": 1, "gradient_checkpointing": False,
    "precision": "fp32",
}  # fmt: skip


def save_base(folder: Path) -> Path:
    """A transformer with random weights, and its tokenizer of the letters a, b, c."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(MODEL_SEED)
        config = Qwen2Config(
            vocab_size=4,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
            initializer_range=0.1,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=EOS,
            pad_token_id=None,
        )
        Qwen2ForCausalLM(config).save_pretrained(folder)
    inner = Tokenizer(BPE({"a": 0, "b": 1, "c": 2, "</s>": EOS}, []))
    inner.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(folder)
    return folder


@torch.inference_mode()
def exact_law(base: Path, adapter: Path | None = None) -> SequenceDistribution:
    """The law of all completions, each prefix by one plain forward pass in float64."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).double()

    def next_log_p(prefix: Tokens) -> np.ndarray:
        logits = model(torch.tensor([[*PROMPT_IDS, *prefix]]), use_cache=False).logits[0, -1]
        return torch.log_softmax(logits, -1).numpy()

    return SequenceDistribution.from_next_token(next_log_p, lambda x: x[-1] == EOS or len(x) == LONGEST)


def load_sampler(base: Path, adapter: Path | None = None) -> PowerSampler:
    """Base or student, to draw from."""
    peft = None if adapter is None else str(adapter)
    return PowerSampler.from_pretrained(str(base), device="cpu", dtype="float32", max_rows=500, peft=peft)


def draw(sampler: PowerSampler, n: int, seed: int, store: Path | None = None, **options) -> list[Tokens]:
    """Draw n completions of the prompt, and keep them in a store, if one is named, as `power-hf` does."""
    config = SamplerConfig(**options, seed=seed, max_new_tokens=LONGEST)
    drawn = dict(sampler.sample([Job(PROMPT_IDS, repeat) for repeat in range(n)], config))
    if store is not None:
        source = Provenance(f"base@{fingerprint(sampler.host.backend.model)}", config, (), sampler.eos_ids)
        with CompletionStore(store, source.model) as lines:
            for repeat, completion in sorted(drawn.items()):
                lines.add(PROMPT, PROMPT_IDS, repeat, source, completion)
    return [drawn[repeat].token_ids for repeat in range(n)]


def student_law(
    base: Path, store: Path, n: int, seed: int, output: Path, deduplicate: bool = False, steps: int = STEPS
) -> SequenceDistribution:
    """Distil the base on n completions of a store; the student's exact law.

    Args:
        base: folder of the model.
        store: folder of its completions.
        n: how many to learn; with `deduplicate`, how many different ones there are.
        seed: of the training.
        output: folder of the adapter.
        deduplicate: learn each completion once, however often it was drawn.
        steps: of the optimiser, the same for every n.
    """
    batch_size = min(n, BATCH_SIZE)
    config = DistillConfig(
        model=str(base), data=(str(store),), output=str(output), select="all", deduplicate=deduplicate, per_prompt=n,
        epochs=steps * batch_size / n, batch_size=batch_size, seed=seed, logging_steps=steps, save_steps=steps,
        trainer={"disable_tqdm": True}, **TRAINING,
    )  # fmt: skip
    with output.with_suffix(".log").open("w") as log, contextlib.redirect_stdout(log):
        distill(config)
    return exact_law(base, output)
