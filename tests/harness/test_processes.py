"""Real commands: killed and started again, and two processes; the results are those of one quiet run.

The quiet run is `simple_evaluate` in this process. float64, in which completions do not depend on what else
is in the batch.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from harness.tiny_lm import PROMPTS, write_task

from lm_power.store import read_store

BATCH = 4
REPEATS = 3
OPTIONS = {"dtype": "float64", "mcmc_steps": 4, "block_size": 8, "alpha": 2}
TASK = {"repeats": REPEATS, "generation_kwargs": {"max_gen_toks": 32}}


class Command:
    """An lm-eval command on the tiny model, with a store, in a folder of its own."""

    def __init__(self, tiny: str, folder: Path) -> None:
        self.store, self.output = folder / "store", folder / "out"
        self.settings = {
            "model": "power-hf",
            "model_args": {"pretrained": tiny, "completions": str(self.store), **OPTIONS},
            "tasks": ["tiny_task"],
            "include_path": str(write_task(folder / "task", **TASK)),
            "batch_size": BATCH,
            "device": "cpu",
            "output_path": str(self.output),
            "log_samples": True,
        }
        model_args = ",".join(f"{name}={value}" for name, value in self.settings["model_args"].items())
        flags = {**self.settings, "model_args": model_args, "tasks": "tiny_task"}
        del flags["log_samples"]
        given = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
        self.arguments = [sys.executable, "-m", "lm_eval", "run", *given, "--log_samples"]
        self.variables = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "cache"),
        }
        self.log = folder / "log.txt"

    def in_two_processes(self) -> Command:
        """The same settings from a file, under `accelerate launch`."""
        config = self.log.parent / "config.yaml"
        config.write_text(yaml.safe_dump(self.settings))
        with socket.socket() as free:
            free.bind(("", 0))
            port = str(free.getsockname()[1])
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        run = ["-m", "lm_eval", "run", "--config", str(config)]
        self.arguments = [sys.executable, *launch, "--main_process_port", port, *run]
        self.variables["ACCELERATE_USE_CPU"] = "1"
        return self

    def start(self) -> subprocess.Popen:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.arguments, env=self.variables, stdout=log, stderr=subprocess.STDOUT, cwd=self.log.parent
            )

    def run(self) -> None:
        assert self.start().wait() == 0, self.log.read_text()

    def files(self) -> dict[str, list[dict]]:
        """The store's records, file by file."""
        return {
            path.name: [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted(self.store.glob("*.jsonl"))
        }

    def lines(self) -> int:
        return sum(path.read_bytes().count(b"\n") for path in self.store.glob("*.jsonl"))

    def results(self) -> dict:
        (path,) = self.output.rglob("results_*.json")
        return json.loads(path.read_text())["results"]["tiny_task"]

    def samples(self) -> list[dict]:
        (path,) = self.output.rglob("samples_*.jsonl")
        return sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda s: s["doc_id"])


@pytest.fixture(scope="module")
def quiet(evaluate, tmp_path_factory):
    """The same evaluation in this process, uninterrupted; and its store's records by key."""
    folder = tmp_path_factory.mktemp("quiet")
    run = evaluate(
        task=TASK, options={"batch_size": BATCH, "completions": str(folder), **OPTIONS}, bootstrap_iters=100000
    )
    return run, {record["key"]: record for record in read_store(folder)}


def assert_same_outcome(command: Command, quiet) -> None:
    """The command's results, samples and store equal the quiet run's."""
    run, expected = quiet
    ours, theirs = command.results(), run.results["results"]["tiny_task"]
    for metric in ("acc,none", "acc_stderr,none", "self_reward,none", "self_reward_stderr,none"):
        assert ours[metric] == pytest.approx(theirs[metric], abs=1e-6), metric
    texts = [[str(text) for text in texts] for texts in run.completions]
    # lm-eval logs the padding too: empty texts beyond the repeats.
    assert [s["resps"][0][:REPEATS] for s in command.samples()] == texts
    records = [record for records in command.files().values() for record in records]
    assert sorted(record["key"] for record in records) == sorted(expected)
    for record in records:
        other = expected[record["key"]]
        assert record["log_probs"] == pytest.approx(other["log_probs"], abs=1e-6)
        assert settled(record) == settled(other)


def settled(record: dict) -> dict:
    """What two runs must agree on exactly: all but seconds, work done ahead, and the last bits of log-probs."""
    of_the_batch = {"seconds", "tokens_prefetched", "tokens_dropped"}
    inexact = {"sum_log_prob", "self_reward", "log_probs"}
    stats = {name: value for name, value in record["stats"].items() if name not in of_the_batch}
    return {**{name: value for name, value in record.items() if name not in inexact}, "stats": stats}


def test_killed_and_started_again(tiny, tmp_path, quiet):
    """Guards resume: SIGKILL half way and a torn last line cost nothing but what was not finished."""
    command = Command(tiny, tmp_path / "killed")
    process = command.start()
    while process.poll() is None and command.lines() < 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, command.log.read_text()
    kept = command.lines()
    total = len(PROMPTS) * REPEATS
    assert 4 <= kept < total, "killed too late to show anything"
    (path,) = command.store.glob("*.jsonl")
    whole = path.read_bytes().rpartition(b"\n")[0] + b"\n"
    path.write_bytes(whole + whole[:100])

    command.run()
    assert path.read_bytes() == whole
    files = command.files()
    assert [len(records) for records in files.values()] == [kept, total - kept]
    assert "removed an incomplete last line of 100 bytes" in command.log.read_text()
    assert_same_outcome(command, quiet)


def test_two_processes(tiny, tmp_path, quiet):
    """Guards sharding: each process draws its own documents only, and padding changes no number.

    Five documents: the second process has two, and lm-eval fills it up with clones of its last request.
    """
    command = Command(tiny, tmp_path / "two").in_two_processes()
    command.run()
    assert sorted(len(records) for records in command.files().values()) == [2 * REPEATS, 3 * REPEATS]
    for records in command.files().values():
        assert len({record["prompt"] for record in records}) * REPEATS == len(records)
    assert command.log.read_text().count("has no effect") == 1
    samples = command.samples()
    assert [len(s["doc"]["lm_power"]["correct"]) for s in samples] == [REPEATS] * len(PROMPTS)
    assert_same_outcome(command, quiet)


def drawn(run) -> dict[str, list[tuple]]:
    """(tokens, log-probs) of each document's completions, by prompt."""
    pairs = zip(run.samples, run.completions, strict=True)
    return {s["doc"]["prompt"]: [(c.token_ids, c.log_probs) for c in cs] for s, cs in pairs}


SMALL = {"repeats": 2, "generation_kwargs": {"max_gen_toks": 16}}


@pytest.fixture
def shuffled():
    return random.Random(3).sample(PROMPTS, len(PROMPTS))


def test_batch_size_and_order_do_not_matter(evaluate, shuffled):
    """Guards independence: in float64 the tokens are the same for every batch size and order."""
    runs = [evaluate(task=SMALL, options={**OPTIONS, "batch_size": n}) for n in (1, 7, 64)]
    runs.append(evaluate(task=SMALL, prompts=shuffled, options={**OPTIONS, "batch_size": 7}))
    first = {prompt: [tokens for tokens, _ in pairs] for prompt, pairs in drawn(runs[0]).items()}
    for run in runs[1:]:
        assert {prompt: [tokens for tokens, _ in pairs] for prompt, pairs in drawn(run).items()} == first


def test_the_same_command_repeats_exactly(evaluate):
    """Guards a run that depends on anything but its command: in float32, the same requests give the same bits."""
    options = {**OPTIONS, "dtype": "float32", "batch_size": 3}
    first, second = (drawn(evaluate(task=SMALL, options=options)) for _ in range(2))
    assert first == second


def test_the_rows_beside_it_do_not_matter(evaluate, shuffled):
    """Guards what a completion may depend on: in float64 not on order, nor on the requests beside it.

    In float32 the place of a row may decide its last bits, by the CPU's kernels.
    """
    options = {**OPTIONS, "batch_size": 3}
    more = evaluate(task=SMALL, options=options, prompts=[*PROMPTS, "and another one?"])
    runs = [evaluate(task=SMALL, options=options, prompts=shuffled), more]
    tokens = [{prompt: [ids for ids, _ in drawn(run)[prompt]] for prompt in PROMPTS} for run in runs]
    assert tokens[0] == tokens[1]
