"""Power sampling against plain sampling, on the pocket model: under a minute on a laptop, offline, no GPU.

    python examples/quickstart.py

Each problem asks for the last digit of a sum. `standard` draws from the model's own distribution p, `temperature`
sharpens p one token at a time, and `power` sharpens whole completions: p(x)^4. Nothing is trained, and nothing
tells the sampler which answers are right. (The effect was built into this model on purpose; see pocket/README.md.)
"""

import argparse
import json
from pathlib import Path

from lm_power import PowerSampler

ROOT = Path(__file__).resolve().parents[1]
METHODS = {
    "standard": {"method": "standard"},
    "temperature": {"method": "temperature", "proposal_temperature": 0.25},
    "power": {"method": "power", "alpha": 4, "mcmc_steps": 10, "block_size": 4},
}


def main() -> None:
    """Sample by each method, and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=100, help="how many problems, at most 200 (default: 100)")
    count = parser.parse_args().problems

    lines = (ROOT / "tasks" / "pocket_sums" / "problems.jsonl").read_text(encoding="utf-8").splitlines()
    problems = [json.loads(line) for line in lines[:count]]
    prompts = [problem["prompt"] for problem in problems]
    sampler = PowerSampler.from_pretrained(str(ROOT / "examples" / "pocket" / "model"), device="cpu")

    table = [f"{'method':<12} {'accuracy':>8} {'log p(completion)':>18} {'tokens decoded per problem':>27}"]
    for name, options in METHODS.items():
        print(f"{name}, for example on: {prompts[0]}")
        drawn = [one for (one,) in sampler.generate(prompts, max_new_tokens=40, seed=0, progress=True, **options)]
        print(f"    {drawn[0].text.strip()}    (the answer is {problems[0]['answer']})\n")
        right = sum(text.split()[-1:] == [problem["answer"]] for text, problem in zip(drawn, problems, strict=True))
        log_p = sum(one.sum_log_prob for one in drawn) / len(drawn)
        decoded = sum(one.stats.tokens_decoded for one in drawn) / len(drawn)
        table.append(f"{name:<12} {right / len(drawn):8.0%} {log_p:13.1f} nats {decoded:27.0f}")
    print("\n".join(table))


if __name__ == "__main__":
    main()
