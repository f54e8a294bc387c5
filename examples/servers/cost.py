"""What power sampling costs beside plain generation by the same vLLM engine, in tokens per CPU second.

    python examples/servers/cost.py MODEL                       # in this process
    python examples/servers/cost.py MODEL --serve               # by `vllm serve`, over HTTP on this machine

Each round draws chains, and then plain completions of as many tokens, in the same number of rows: without log-probs,
and with the lists that chains need. CPU seconds are those of all processes, so that other work on the machine matters
less. On a GPU most of the time is not the CPU's: there compare seconds, on a machine of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import psutil

from lm_power import PowerSampler
from lm_power.remote.client import HTTPClient

PROMPTS = [f"Question: what is {n} times {n + 3}? Think step by step.\nAnswer:" for n in range(11, 1000)]
CHAIN = {"method": "power", "alpha": 4.0, "mcmc_steps": 4}
ENGINE = {"dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False, "max_model_len": 1024,
          "max_num_batched_tokens": 1024, "block_size": 32}  # fmt: skip
TOP = 20


def main() -> None:
    """Measure, and print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="hub id or folder")
    parser.add_argument("--serve", action="store_true", help="by `vllm serve`, over HTTP")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64, help="longest completion; blocks have half as many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8731)
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    (over_http if arguments.serve else in_process)(arguments)


def in_process(arguments: argparse.Namespace) -> None:
    """All in one process, whose CPU time is the cost."""
    from vllm import LLM, SamplingParams

    from lm_power.remote.vllm_engine import serve

    llm = LLM(model=arguments.model, max_num_seqs=arguments.rows, **ENGINE)
    server = serve(llm, arguments.model, llm.get_tokenizer(), top_logprobs=TOP)
    sampler = PowerSampler(server, server.tokenizer, max_rows=arguments.rows)

    def plain(tokens: int, logprobs: int | None) -> int:
        params = SamplingParams(
            temperature=1 / CHAIN["alpha"], max_tokens=arguments.tokens, ignore_eos=True, detokenize=False,
            logprobs=logprobs, flat_logprobs=True,
        )  # fmt: skip
        prompts = [PROMPTS[n % len(PROMPTS)] for n in range(-(-tokens // arguments.tokens))]
        return sum(len(out.outputs[0].token_ids) for out in llm.generate(prompts, params, use_tqdm=False))

    compare(arguments, sampler, plain, time.process_time)


def over_http(arguments: argparse.Namespace) -> None:
    """The server in processes of its own; the cost is theirs and the client's."""
    flags = ["--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill", "--block-size", "32"]
    flags += ["--max-model-len", "1024", "--max-num-batched-tokens", "1024", "--max-num-seqs", str(arguments.rows)]
    command = ["vllm", "serve", arguments.model, *flags, "--served-model-name", "model", "--port", str(arguments.port)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server does not stay behind
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{arguments.port}/v1"
    try:
        while not _answers(url):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)}: ended with status {process.returncode}")
            time.sleep(2)
        sampler = PowerSampler.from_server(url, tokenizer=arguments.model, max_rows=arguments.rows, top_logprobs=TOP)
        client: Any = HTTPClient(url, "model")

        async def draw(prompts: list[str], logprobs: int | None) -> int:
            slots = asyncio.Semaphore(arguments.rows)

            async def one(prompt: str) -> int:
                body = client.body(prompt, arguments.tokens, 1 / CHAIN["alpha"], seed=0)
                body |= {"logprobs": logprobs, "stop_token_ids": [], "seed": None}
                async with slots:
                    answer = await client.post(client.places[0], "/completions", body)
                return int(answer["usage"]["completion_tokens"])

            return sum(await asyncio.gather(*map(one, prompts)))

        def plain(tokens: int, logprobs: int | None) -> int:
            prompts = [PROMPTS[n % len(PROMPTS)] for n in range(-(-tokens // arguments.tokens))]
            return client.call(draw(prompts, logprobs))

        def everybody() -> float:
            server = psutil.Process(process.pid)
            times = [one.cpu_times() for one in (server, *server.children(recursive=True))]
            return time.process_time() + sum(spent.user + spent.system for spent in times)

        compare(arguments, sampler, plain, everybody)
        client.close()
        sampler.host.close()
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/models", timeout=5).status == 200
    except OSError:
        return False


def compare(
    arguments: argparse.Namespace,
    sampler: PowerSampler,
    plain: Callable[[int, int | None], int],
    cpu_seconds: Callable[[], float],
) -> None:
    """Chains and plain generation in turns; print the medians over the rounds."""
    rates: dict[str, list[float]] = {"plain": [], "plain with lists": [], "chains": []}
    client_times: list[float] = []

    def timed(name: str, run: Callable[[], int]) -> int:
        before, own = cpu_seconds(), time.process_time()
        tokens = run()
        rates[name].append(tokens / (cpu_seconds() - before))
        if name == "chains":
            client_times.append((time.process_time() - own) / tokens)
        return tokens

    def chains(seed: int) -> int:
        before = sampler.counters.decoded
        sampler.generate(
            PROMPTS[: 2 * arguments.rows], **CHAIN, block_size=arguments.tokens // 2, max_new_tokens=arguments.tokens,
            seed=seed,
        )  # fmt: skip
        return sampler.counters.decoded - before

    plain(arguments.rows * arguments.tokens, TOP)  # what is done once only
    for seed in range(arguments.rounds):
        tokens = timed("chains", lambda seed=seed: chains(seed))
        timed("plain", lambda tokens=tokens: plain(tokens, None))
        timed("plain with lists", lambda tokens=tokens: plain(tokens, TOP))
        shares = ", ".join(f"{name} {each[-1] / rates['plain'][-1]:.2f}" for name, each in rates.items())
        print(f"round {seed + 1}, {tokens} tokens, tokens per CPU second over plain's: {shares}", flush=True)
    print(
        f"{arguments.model}, {arguments.rows} rows, completions of up to {arguments.tokens} tokens, medians of rounds"
    )
    base = statistics.median(rates["plain"])
    for name, rate in rates.items():
        print(f"{name:18} {statistics.median(rate):8.1f} tokens per CPU second, {statistics.median(rate) / base:.2f}")
    if arguments.serve:
        micro, queries = 1e6 * statistics.median(client_times), sampler.counters.decoded / sampler.counters.queries
        print(f"client             {micro:8.1f} µs of CPU per token, at {queries:.0f} tokens per query")


if __name__ == "__main__":
    main()
