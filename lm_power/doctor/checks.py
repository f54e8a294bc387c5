"""The doctor's trials, one function for each part. A trial that raises is a part that does not work."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from lm_power import cpu
from lm_power.doctor import machine
from lm_power.doctor.command import PARTS
from lm_power.doctor.finding import Finding
from lm_power.engine.attention import check_kernel
from lm_power.engine.backend import HFBackend
from lm_power.engine.device import default_device
from lm_power.engine.fallback import try_draw, try_recorded_steps
from lm_power.engine.memory import free_memory, total_memory
from lm_power.errors import one_line

_GIB = 2**30
_PROMPT = "Question: what is seventeen times twenty-three? Think step by step.\nAnswer:"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What to try.

    Attributes:
        device: where.
        model: a model to load; or None.
        dtype: of it, by its name.
        max_new_tokens: of its completions, tokens.
    """

    device: torch.device
    model: str | None
    dtype: str
    max_new_tokens: int

    @classmethod
    def of(cls, device: str | None, model: str | None, dtype: str, max_new_tokens: int) -> Setting:
        """The setting that the options ask for. Raises ValueError for a wrong one."""
        if dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"--dtype {dtype}: must be auto, float32, bfloat16 or float16")
        chosen = device or default_device()
        try:
            where = torch.device(chosen)
        except RuntimeError as error:
            raise ValueError(f"--device {chosen}: must be a device of torch's, such as cpu or cuda") from error
        if where.type not in ("cpu", "cuda"):
            raise ValueError(f"--device {chosen}: the doctor knows cpu and cuda")
        if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"--device {chosen}: torch {torch.__version__} sees {torch.cuda.device_count()} NVIDIA GPUs"
            )
        return cls(where, model, dtype, max_new_tokens)


def examine(setting: Setting) -> list[Finding]:
    """Try each part, and the model if one is named."""
    trials: dict[str, Callable[[Setting], Finding]] = {name: TRIALS[name] for name in PARTS}
    if setting.model is not None:
        trials["model"] = _model
    findings = []
    for part, trial in trials.items():
        try:
            findings.append(trial(setting))
        except Exception as error:  # whatever it is, it is what the doctor is asked about
            why = f"{type(error).__name__}: {one_line(error, 400)}"
            findings.append(Finding(part, "fails", why, REMEDIES.get(part, "")))
    return findings


REMEDIES = {
    "engine": "report this, with the output of `lm-power doctor --json`",
    "kernel": "attn_implementation=sdpa; the sampler falls back to it by itself where it chose the kernel",
    "graphs": "cuda_graphs=False; the sampler falls back to plain steps by itself unless cuda_graphs=True is given",
    "draw": "nothing: the sampler falls back to the plain draw by itself; a C compiler may be missing",
    "sandbox": "run HumanEval and MBPP in a Linux container that allows it",
    "math": "pip install 'math-verify[antlr4_13_2]'",
    "hub": "check the network or HF_ENDPOINT; with everything in the cache, set HF_HUB_OFFLINE=1",
    "model": "the message says what; --dtype and --device choose another way to load it",
}
"""Part → what to do where its trial raises."""


def _packages(setting: Setting) -> Finding:
    missing, needed = [], 0
    try:
        listed = importlib.metadata.requires("lm-power") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", "fails", "lm-power itself is not installed", "pip install . in its folder")
    from packaging.requirements import Requirement

    for requirement in map(Requirement, listed):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        needed += 1
        version = machine.version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{requirement.name}{requirement.specifier} ({version or 'not installed'})")
    if missing:
        return Finding("packages", "fails", f"needed: {', '.join(missing)}", "pip install --upgrade lm-power")
    return Finding("packages", "works", f"all {needed} are there")


def _plugin(setting: Setting) -> Finding:
    # The .pth file that brings us into lm-eval imports this module when Python starts.
    if "lm_power._autoload" in sys.modules:
        return Finding("plugin", "works", "its .pth file was read when Python started")
    return Finding(
        "plugin", "fails", "the .pth file that brings power-hf into lm-eval was not read when Python started",
        "install with pip (not by PYTHONPATH), and start Python without -S and -I",
    )  # fmt: skip


def _threads(setting: Setting) -> Finding:
    cores, threads, named = machine.cores(), torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    seen = f"{threads} of torch's threads on {cores} cores, OMP_NUM_THREADS {'is ' + named if named else 'is not set'}"
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    seen += f"; load {busy:.1f}"
    if threads > cores:
        return Finding("threads", "fails", f"{seen}: threads wait for one another", f"OMP_NUM_THREADS={cores}")
    if busy > cores / 2 and threads > 1:
        return Finding(
            "threads", "works",
            f"{seen}: other programs are busy, and threads wait, spinning, for one that was put aside; each product "
            "can then take ten times as long",
            f"OMP_NUM_THREADS={max(1, cores - round(busy))}, or run alone",
        )  # fmt: skip
    return Finding("threads", "works", seen)


def _memory(setting: Setting) -> Finding:
    devices = {torch.device("cpu"), setting.device}
    parts = [
        f"{free_memory(device) / _GIB:.1f} of {total_memory(device) / _GIB:.1f} GiB free on {device}"
        for device in sorted(devices, key=str)
    ]
    return Finding("memory", "works", "; ".join(parts))


def _gpu(setting: Setting) -> Finding:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "torch finds none" if built else f"torch {torch.__version__} is built without CUDA"
        return Finding("gpu", "absent", why, "none needed; else install a torch built for CUDA, and a driver for it")
    capability = torch.cuda.get_device_capability(setting.device if setting.device.type == "cuda" else 0)
    return Finding(
        "gpu", "works", f"{torch.cuda.device_count()} found, compute capability {capability[0]}.{capability[1]}"
    )


def _engine(setting: Setting) -> Finding:
    from lm_power.sampler import PowerSampler

    model = tiny_model("sdpa", setting.device)
    sampler = PowerSampler(model, None, max_rows=4, cuda_graphs=False)
    options: dict[str, Any] = {"max_new_tokens": 16, "block_size": 8, "mcmc_steps": 2}
    drawn = sampler.generate([[5, 6], [7, 8, 9]], n=2, **options)
    again = sampler.generate([[7, 8, 9]], n=2, **options)
    if [c.token_ids for c in drawn[1]] != [c.token_ids for c in again[0]]:
        return Finding("engine", "fails", "the same seed draws other completions", REMEDIES["engine"])
    return Finding("engine", "works", "decodes as full forward passes do, and repeats")


def _kernel(setting: Setting) -> Finding:
    if setting.device.type != "cuda":
        return Finding("kernel", "absent", "is for NVIDIA GPUs; a CPU decodes with transformers' sdpa")
    if torch.cuda.get_device_capability(setting.device) < (8, 0):
        return Finding("kernel", "absent", "needs compute capability 8.0 (Ampere) or higher; sdpa decodes here")
    check_kernel([setting.device])
    for dtype in (torch.float32, torch.bfloat16):  # the backend compares with full passes, which are sdpa's
        HFBackend(tiny_model("lm_power", setting.device, dtype), cuda_graphs=False)
    return Finding("kernel", "works", "agrees with sdpa in float32 and bfloat16")


def _graphs(setting: Setting) -> Finding:
    if setting.device.type != "cuda":
        return Finding("graphs", "absent", "are for NVIDIA GPUs; a CPU runs plain steps")
    backend = HFBackend(tiny_model("sdpa", setting.device))
    backend.compiles_draw = False  # which is tried by itself
    try_recorded_steps(backend)
    return Finding("graphs", "works", "recorded steps agree with plain ones")


def _draw(setting: Setting) -> Finding:
    if setting.device.type != "cuda":
        return Finding("draw", "absent", "is used on NVIDIA GPUs only")
    try_draw(setting.device, 32_000)
    return Finding("draw", "works", "agrees with the plain one")


def _bfloat16(setting: Setting) -> Finding:
    ratio = _seconds(torch.float32, setting.device) / _seconds(torch.bfloat16, setting.device)
    seen = f"a product takes 1/{ratio:.1f} of its time in float32" if ratio >= 1 else f"is {1 / ratio:.1f} times slower"
    if setting.device.type == "cuda":
        return Finding("bfloat16", "works", seen)
    units = cpu.bfloat16_units()
    if units is not None:
        return Finding("bfloat16", "works", f"{seen}; this CPU has {units}, so it is not emulated", "dtype=bfloat16")
    remedy = "dtype=float32, if memory allows" if ratio < 1.1 else ""
    if not cpu.cpuinfo():
        return Finding("bfloat16", "works", f"{seen}; this system does not tell whether it is emulated", remedy)
    return Finding("bfloat16", "works", f"{seen}; this CPU has neither AMX nor AVX512-BF16, and emulates it", remedy)


def _sandbox(setting: Setting) -> Finding:
    from lm_power.sandbox import runner

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    runner._notice.cache_clear()
    runner.require_sandbox.cache_clear()
    runner.logger.addHandler(handler)
    propagate, runner.logger.propagate = runner.logger.propagate, False
    try:
        runner.require_sandbox()
    finally:
        runner.logger.removeHandler(handler)
        runner.logger.propagate = propagate
    if said:
        return Finding("sandbox", "works", said[0].partition(". ")[0], "a container or a virtual machine of its own")
    return Finding("sandbox", "works", "with all its layers: namespaces, Landlock, filter of system calls")


def _math(setting: Setting) -> Finding:
    from lm_power.grading.math_grader import MathGrader

    grader = MathGrader()
    try:
        right, wrong = grader.equal(r"\frac{1}{2}", "0.5", 60), grader.equal(r"\frac{1}{3}", "0.5", 60)
    finally:
        grader.close()
    if (right, wrong) != (True, False) or grader.failures:
        return Finding(
            "math", "fails", f"1/2 = 0.5: {right}; 1/3 = 0.5: {wrong}; {dict(grader.failures)}", REMEDIES["math"]
        )
    return Finding("math", "works", "knows 1/2 from 1/3")


def _hub(setting: Setting) -> Finding:
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "absent", "HF_HUB_OFFLINE is set: models and data must be in the cache or in folders")
    answer = huggingface_hub.get_session().head(f"{constants.ENDPOINT}/api/models/gpt2", timeout=10)
    if answer.status_code >= 400:
        return Finding("hub", "fails", f"{constants.ENDPOINT} answers {answer.status_code}", REMEDIES["hub"])
    if huggingface_hub.get_token() is None:
        return Finding("hub", "works", "answers; no token is set", "`hf auth login`, for gated data (GPQA) and models")
    return Finding("hub", "works", "answers; a token is set")


def _optional(name: str, setting: Setting) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(name, "absent", "is not installed", f"pip install {name}, if you want it")
    importlib.import_module(name)
    return Finding(name, "works", f"version {machine.version(name) or 'unknown'} imports")


def _model(setting: Setting) -> Finding:
    from lm_power.host import LocalHost
    from lm_power.sampler import PowerSampler

    assert setting.model is not None
    sampler = PowerSampler.from_pretrained(
        setting.model, device=str(setting.device), dtype=setting.dtype, max_rows="auto"
    )
    host = sampler.host
    assert isinstance(host, LocalHost)
    backend = host.backend
    assert isinstance(backend, HFBackend)
    prompt = sampler.encode(_PROMPT)
    longest = setting.max_new_tokens
    if backend.max_positions is not None:
        longest = max(1, min(longest, backend.max_positions - len(prompt)))
    fit = host.rows_that_fit(len(prompt) + longest, longest)
    rows = min(fit, 16)
    before, started = sampler.counters.decoded, time.perf_counter()
    sampler.generate([prompt], n=rows, method="standard", max_new_tokens=min(24, longest))
    rate = (sampler.counters.decoded - before) / (time.perf_counter() - started)
    how = f"{backend.config._attn_implementation}, {'recorded' if backend.replays else 'plain'} steps"
    dtype = str(backend.shapes[0].dtype).removeprefix("torch.")
    return Finding(
        "model", "works",
        f"{backend.name} in {dtype} ({how}) is served: {fit} rows of {len(prompt)} + {longest} tokens fit, "
        f"{rate:.0f} tokens per second with {rows} of them",
        f"batch_size=auto, or at most {fit}",
    )  # fmt: skip


TRIALS: dict[str, Callable[[Setting], Finding]] = {
    "packages": _packages,
    "plugin": _plugin,
    "threads": _threads,
    "memory": _memory,
    "gpu": _gpu,
    "engine": _engine,
    "kernel": _kernel,
    "graphs": _graphs,
    "draw": _draw,
    "bfloat16": _bfloat16,
    "sandbox": _sandbox,
    "math": _math,
    "hub": _hub,
    "vllm": functools.partial(_optional, "vllm"),
    "aiohttp": functools.partial(_optional, "aiohttp"),
}
"""Part → its trial."""


def tiny_model(attention: str, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A two-layer Qwen2 with random weights, the same every time."""
    config = Qwen2Config(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, bos_token_id=1, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    made: PreTrainedModel = model.to(device, dtype).eval()
    return made


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    """CPU seconds (on a GPU, seconds) of a product like those of a small model's decode step; the best of five."""
    size, rows = (4096, 64) if device.type == "cuda" else (1536, 16)
    left, right = (
        torch.ones((rows, size), dtype=dtype, device=device),
        torch.ones((size, size), dtype=dtype, device=device),
    )

    def once() -> float:
        cuda = device.type == "cuda"
        clock = time.perf_counter if cuda else time.process_time
        if cuda:
            torch.cuda.synchronize(device)
        started = clock()
        for _ in range(4):
            left @ right
        if cuda:
            torch.cuda.synchronize(device)
        return max(clock() - started, 1e-6)

    once()
    return min(once() for _ in range(5))
