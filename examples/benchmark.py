"""How much faster than the released algorithm: both in one process, same model, prompts and settings.

    python examples/benchmark.py                              # pocket model, 64 prompts, CPU
    python examples/benchmark.py --model ID_OR_DIR --prompts-file prompts.txt --block-size 192 --max-new-tokens 3072

A  the algorithm as Karan & Du (2025) released it, written plainly: one chain at a time, `model.generate` from
   the whole prefix at every step, proposals capped at the current length, no cut ratio.
B  lm-power: exact for variable lengths, all chains on one engine.

A's chain is not exact and, since it cannot grow back, decodes fewer tokens; the wall-clock ratio is for the
same number of finished completions, the tokens a second say the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lm_power import PowerSampler, SamplerConfig
from lm_power.engine import UnsupportedModelError
from lm_power.sampler import find_eos_ids

HERE = Path(__file__).resolve().parent
PROBLEMS = HERE.parent / "tasks" / "pocket_sums" / "problems.jsonl"


@dataclasses.dataclass(frozen=True)
class Result:
    """What one contender needed for all prompts: seconds of wall-clock, tokens decoded."""

    name: str
    seconds: float
    tokens: int


class ReleasedChain:
    """One chain of the released algorithm over `model.generate`."""

    def __init__(self, model: PreTrainedModel, config: SamplerConfig, eos_ids: list[int]) -> None:
        self.model, self.config, self.eos_ids = model, config, eos_ids
        self.tokens_decoded = 0

    def sample(self, prompt: torch.Tensor) -> torch.Tensor:
        """A completion of `prompt` ([1, n] token ids): blockwise Metropolis-Hastings."""
        config, start = self.config, prompt.shape[1]
        sequence, log_p, log_q = prompt, torch.empty(0), torch.empty(0)
        for end in range(config.block_size, config.max_new_tokens + config.block_size, config.block_size):
            room = min(end, config.max_new_tokens) - len(log_p)
            sequence, new_p, new_q = self._extend(sequence, room)
            log_p, log_q = torch.cat([log_p, new_p]), torch.cat([log_q, new_q])
            for _ in range(config.mcmc_steps):
                cut = int(torch.randint(len(log_p), ()))
                proposal, new_p, new_q = self._extend(sequence[:, : start + cut], len(log_p) - cut)
                old = slice(cut, cut + len(new_p))
                gain = config.alpha * (new_p.sum() - log_p[old].sum()) - (new_q.sum() - log_q[old].sum())
                if torch.rand(()).log() < gain:
                    sequence = proposal
                    log_p, log_q = torch.cat([log_p[:cut], new_p]), torch.cat([log_q[:cut], new_q])
            if int(sequence[0, -1]) in self.eos_ids:
                break
        return sequence[:, start:]

    def _extend(self, prefix: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(prefix and a draw of at most `length` tokens, their log p, their log q)."""
        out = self.model.generate(
            prefix,
            attention_mask=torch.ones_like(prefix),
            max_new_tokens=length,
            do_sample=True,
            temperature=self.config.tau,
            top_k=0,
            eos_token_id=self.eos_ids,
            pad_token_id=self.eos_ids[0],
            return_dict_in_generate=True,
            output_logits=True,
            output_scores=True,
        )
        new = out.sequences[0, prefix.shape[1] :].cpu()
        at = torch.arange(len(new)), new
        self.tokens_decoded += len(new)
        log_p = torch.cat(out.logits).float().log_softmax(-1).cpu()[at]
        return out.sequences, log_p, torch.cat(out.scores).float().log_softmax(-1).cpu()[at]


def measure(name: str, run: Callable[[], int]) -> Result:
    """Time `run`, which returns the tokens it decoded."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    tokens = run()
    return Result(name, time.perf_counter() - start, tokens)


def main() -> None:
    """Run both contenders and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(HERE / "pocket" / "model"), help="hub id or folder")
    parser.add_argument("--prompts-file", type=Path, help="one prompt a line; default: pocket_sums problems")
    parser.add_argument("--prompts", type=int, default=64, help="how many of them")
    parser.add_argument("--rows", type=int, default=64, help="rows of our engine")
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--block-size", type=int, default=4)
    parser.add_argument("--mcmc-steps", type=int, default=10)
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; a tiny model gains nothing from more")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    if args.prompts_file:
        prompts = args.prompts_file.read_text().splitlines()[: args.prompts]
    else:
        lines = PROBLEMS.read_text().splitlines()[: args.prompts]
        prompts = [json.loads(line)["prompt"] for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).to(args.device).eval()
    options = {name: getattr(args, name) for name in ("alpha", "block_size", "mcmc_steps", "max_new_tokens")}
    try:
        sampler = PowerSampler(model, tokenizer, max_rows=args.rows)
    except UnsupportedModelError as error:
        raise SystemExit(str(error)) from None
    encoded = [list(sampler.encode(prompt)) for prompt in prompts]

    def released() -> int:
        torch.manual_seed(0)
        chain = ReleasedChain(model, SamplerConfig(**options), find_eos_ids(model, tokenizer))
        for ids in tqdm(encoded, desc="A released"):
            chain.sample(torch.tensor([ids], device=args.device))
        return chain.tokens_decoded

    def ours() -> int:
        completions = sampler.generate(encoded, progress=True, **options)
        return sum(c.stats.tokens_decoded for many in completions for c in many)

    sampler.generate(encoded[:2], max_new_tokens=4, block_size=4, mcmc_steps=1)  # warm up
    with torch.inference_mode():
        results = [measure("B lm-power", ours), measure("A released algorithm", released)]

    parameters = sum(p.numel() for p in model.parameters())
    print(f"\n{args.model}: {parameters / 1e6:.2f}M parameters, {model.dtype}, {args.device}, ", end="")
    print(f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}")
    print(f"{len(encoded)} prompts, {args.rows} rows, {options}\n")
    print("| | seconds | tokens decoded | tokens/s | tokens/completion | wall ratio to B |")
    print("|---|---:|---:|---:|---:|---:|")
    for result in reversed(results):
        print(
            f"| {result.name} | {result.seconds:.1f} | {result.tokens} | {result.tokens / result.seconds:.0f} "
            f"| {result.tokens / len(encoded):.0f} | {result.seconds / results[0].seconds:.1f} |"
        )


if __name__ == "__main__":
    main()
