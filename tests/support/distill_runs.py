"""A tiny model in a folder, a store of its completions, and distillation of the one on the other."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from harness.tiny_lm import CHARACTERS, save_model

from lm_power import PowerSampler
from lm_power.config import SamplerConfig
from lm_power.distill.options import DistillConfig
from lm_power.distill.run import distill
from lm_power.fingerprint import fingerprint
from lm_power.store import CompletionStore, Provenance

__all__ = ["LONGEST", "PROMPTS", "free_port", "losses", "options", "run", "sample_store", "save_model"]

EOS = 0
PROMPTS = 13
LONGEST = 12


def sample_store(
    folder: Path, model: str, prompts: int = PROMPTS, repeats: int = 1, temperature: float = 0.7, **options: Any
) -> str:
    """A store of completions of prompts of 3 to 6 tokens, as `power-hf` writes it."""
    sampler = PowerSampler.from_pretrained(model, device="cpu", **options)
    config = SamplerConfig(method="temperature", proposal_temperature=temperature, max_new_tokens=LONGEST)
    texts = [CHARACTERS[i % 20 : i % 20 + 2 + i % 4] for i in range(prompts)]
    peft = f"+peft={options['peft']}" if "peft" in options else ""
    source = Provenance(f"{model}{peft}@{fingerprint(sampler.host.backend.model)}", config, (), (EOS,))
    law = {"method": "temperature", "proposal_temperature": temperature, "max_new_tokens": LONGEST}
    out = sampler.generate(texts, repeats, **law)
    with CompletionStore(folder, source.model) as store:
        for text, completions in zip(texts, out, strict=True):
            for repeat, completion in enumerate(completions):
                store.add(text, sampler.encode(text), repeat, source, completion)
    return str(folder)


def options(tiny: str, store: str, output: Path, **changes: Any) -> dict[str, Any]:
    """Options of a short run: a global batch of 4, a higher learning rate than is wise, every step logged.

    In float32 on every machine, as the teacher: what is computed by hand is compared to the last digits.
    """
    return {
        "model": tiny, "data": [store], "output": str(output), "gradient_accumulation": 4, "epochs": 2,
        "learning_rate": 0.01, "logging_steps": 1, "lora_r": 4, "precision": "fp32",
        "trainer": {"disable_tqdm": True}, **changes,
    }  # fmt: skip


def run(tiny: str, store: str, output: Path, resume: bool = False, **changes: Any) -> dict[str, Any]:
    """Distil in this process; the record."""
    return distill(DistillConfig(**options(tiny, store, output, **changes)), resume=resume)


def losses(output: Path | str) -> list[float]:
    """Every loss that a run logged, training and validation, in order."""
    log = json.loads((Path(output) / "training_log.json").read_text())
    return [entry[name] for entry in log for name in ("loss", "eval_loss") if name in entry]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("", 0))
        return str(free.getsockname()[1])
