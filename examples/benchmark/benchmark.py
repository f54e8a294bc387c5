r"""What a completion from p^alpha costs: contenders in one process, on the same model, prompts and settings.

    python examples/benchmark/benchmark.py   # pocket model, 64 prompts, CPU
    python examples/benchmark/benchmark.py --shape 50m --prompts 16 --rows 16 --max-new-tokens 32 \
        --block-size 8 --only C E
    python examples/benchmark/benchmark.py --model ID_OR_DIR --prompts-file prompts.txt --block-size 192 \
        --max-new-tokens 3072
    python examples/benchmark/benchmark.py --shape qwen2.5-7b --dtype bfloat16 --lengths lognormal --prompts 500 \
        --rows 256 --block-size 192 --max-new-tokens 3072 --prompts-of-a 1 --only A C E F

A  the algorithm as Karan & Du (2025) released it: one chain at a time, `model.generate` from the whole prefix at
   every step. Its chain is not exact, and since it cannot grow back it decodes fewer tokens than an exact one.
B  exact chains in lockstep batches over padded `model.generate`, prefilled anew at every step.
C  lm-power.
D  lm-power with one acceleration off, each in turn, and with all off: plain exact Metropolis-Hastings.
E  plain batched decoding by `model.generate` of as many tokens as C decodes, at contexts as long on average, its
   prefill not counted: the floor. Compare its tokens per second.
F  lm-power's engine at plain decoding, every row busy from an empty completion to --max-new-tokens, EOS ignored: the
   rate that it sustains.

A, B, C and D finish completions of the same prompts: all of them, or in A and B the part that --prompts-of-a and
--prompts-of-b name, chosen to cost what all do on average. Ratios to C are ratios of the time that a finished
completion takes. Wall and CPU seconds are medians over --repeats rounds, in each of which every contender runs once; on
a machine that others use, trust the CPU seconds.

`forward` is the share of wall-clock in the model's forward passes, prefill included; on a GPU, or compiled, it cannot
be seen from outside. `of bandwidth bound` is meant for GPUs: the time in which the device could have copied the bytes
that must move (in every step the weights, and the keys and values of all positions that are attended to), over the
wall-clock; the prompts' prefill is not counted. A CPU keeps small weights in its caches and can exceed it.

Random weights end completions by chance and accept otherwise than trained ones do. --lengths lognormal ends each
prompt's completion at a length of its own, the same in all contenders; --acceptance decides proposals by a coin.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
from pathlib import Path

import torch
import transformers
from bandwidth import Traffic, copy_bandwidth
from contest import Contest
from shapes import SHAPES, random_model
from table import print_table
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_power import PowerSampler
from lm_power.config import OptionError
from lm_power.engine import UnsupportedModelError

HERE = Path(__file__).resolve().parent
PROBLEMS = HERE.parents[1] / "tasks" / "pocket_sums" / "problems.jsonl"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(HERE.parent / "pocket" / "model"), help="hub id or folder")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of a model")
    parser.add_argument("--layers", type=int, help="layers of the shape; default: all")
    parser.add_argument("--prompts-file", type=Path, help="one prompt per line, or JSON with one (.jsonl, .jsonl.gz)")
    parser.add_argument("--prompts", type=int, default=64, help="how many of them; with --shape random ones")
    parser.add_argument("--prompt-length", type=int, default=100, help="tokens of a random prompt")
    parser.add_argument("--prompts-of-a", type=int, help="how many of them for A; default: all")
    parser.add_argument("--prompts-of-b", type=int, help="the same for B")
    parser.add_argument("--rows", type=int, default=64, help="completions side by side, in B, C, D, E and F")
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--block-size", type=int, default=4)
    parser.add_argument("--mcmc-steps", type=int, default=10)
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--lengths", choices=["lognormal"], help="force lengths of this law; default: EOS decides")
    parser.add_argument("--mean-length", type=float, help="mean of --lengths; default: 680 of 3072 of the longest")
    parser.add_argument("--acceptance", type=float, help="force this acceptance rate; default: the weights decide")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto", help="auto: the checkpoint's, or float32 for a shape")
    parser.add_argument("--attention", help="attn_implementation of C, D and F; A, B and E then have sdpa")
    parser.add_argument("--torch-compile", action="store_true", help="C, D and F compile the model for decode steps")
    parser.add_argument("--no-cuda-graphs", action="store_true", help="C, D and F launch every kernel anew")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; a tiny model gains nothing from more")
    parser.add_argument("--only", nargs="+", choices="ABCDEF", default=list("ABCDE"), help="C runs beside any but F")
    parser.add_argument("--repeats", type=int, default=1, help="rounds; the table shows medians")
    args = parser.parse_args()
    if args.acceptance is not None and not 0 <= args.acceptance <= 1:
        parser.error(f"--acceptance {args.acceptance}: must be in [0, 1]")
    for name in ("prompts", "prompt_length", "prompts_of_a", "prompts_of_b", "repeats", "layers", "mean_length"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: must be >= 1")
    return args


def read_prompts(file: Path) -> list[str]:
    """One a line; of a .jsonl file, zipped or not, each line's `prompt`."""
    data = file.read_bytes()
    lines = [line for line in (gzip.decompress(data) if file.suffix == ".gz" else data).decode().splitlines() if line]
    return [json.loads(line)["prompt"] for line in lines] if ".jsonl" in file.suffixes else lines


def load(args: argparse.Namespace) -> tuple[PowerSampler, list[list[int]]]:
    """The sampler, around the model that all contenders use, and the prompts as token ids."""
    chosen = {} if args.attention is None else {"attn_implementation": args.attention}
    if args.shape:
        dtype = torch.float32 if args.dtype == "auto" else getattr(torch, args.dtype)
        positions = min(args.rows, args.prompts) * (args.prompt_length + args.max_new_tokens)
        device = torch.device(args.device)
        model = random_model(args.shape, args.layers, device, dtype, args.attention, positions)
        tokenizer = None
        every = torch.Generator().manual_seed(0)
        size = (args.prompts, args.prompt_length)
        prompts = torch.randint(2, model.config.vocab_size, size, generator=every).tolist()
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype, **chosen).to(args.device)
        prompts = read_prompts(args.prompts_file or PROBLEMS)
    if not prompts:
        raise OptionError(f"--prompts-file {args.prompts_file}: must have at least one line that is not empty")
    # On a GPU recorded steps must work, so that nothing slower is measured in their place.
    recorded = False if args.no_cuda_graphs else True if model.device.type == "cuda" else None
    sampler = PowerSampler(
        model.eval(), tokenizer, max_rows=args.rows, cuda_graphs=recorded, torch_compile=args.torch_compile
    )
    return sampler, [list(sampler.encode(prompt)) for prompt in prompts[: args.prompts]]


def main() -> None:
    """Run the contenders and print the table."""
    args = options()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    # Several times the caches of the processor, which would be measured instead of the memory.
    copied = copy_bandwidth(device, megabytes=1024 if device.type == "cuda" else 256)
    try:
        sampler, prompts = load(args)
        contest = Contest(args, sampler, prompts)
        results = contest.run()
    except (UnsupportedModelError, OptionError, MemoryError) as error:
        raise SystemExit(str(error)) from None
    except torch.OutOfMemoryError as error:
        raise SystemExit(f"out of memory; choose fewer --rows or a shorter --max-new-tokens\n{error}") from None
    model = sampler.host.backend.model
    traffic = Traffic.of(sampler.host.backend, copied)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{args.device}, {platform.machine()}"
    print(f"\n{args.shape or args.model}: {model.num_parameters() / 1e6:.2f}M parameters, {model.dtype}, {where}")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"{len(prompts)} prompts, {args.rows} rows, {contest.options}, medians of {args.repeats}")
    print(
        f"copy bandwidth {copied / 1e9:.1f} GB/s; a step reads {traffic.weights / 1e6:.1f} MB of weights and "
        f"{traffic.position / 1e3:.1f} kB per position\n"
    )
    print_table(results, traffic)
    print()
    contest.print_notes(results)


if __name__ == "__main__":
    main()
