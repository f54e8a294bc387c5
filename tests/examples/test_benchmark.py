"""examples/benchmark: run as a user runs it; and that what it forces, counts and projects is what it says."""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf

from lm_power import PowerSampler, SamplerConfig
from lm_power.chains import Stream
from lm_power.engine import Counters

EXAMPLE = Path(__file__).parents[2] / "examples" / "benchmark"
sys.path.insert(0, str(EXAMPLE))
try:
    import bandwidth
    import benchmark
    import contenders
    import contest
    import forced
    import linear
    import shapes
    import step
    import table
finally:
    sys.path.remove(str(EXAMPLE))

PROMPTS, LONGEST = 12, 24
SMALL = {"--max-new-tokens": LONGEST, "--block-size": 8, "--mcmc-steps": 3, "--rows": 4}


def run(*arguments: object) -> str:
    """What the command prints."""
    command = [EXAMPLE / "benchmark.py", *(part for pair in SMALL.items() for part in pair), *arguments]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    return done.stdout


def cells(printed: str) -> dict[str, dict[str, str]]:
    """The table: cells by heading, by contender."""
    table_ = [line.strip("|") for line in printed.splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in line.split("|")] for line in table_]
    return {line[0]: dict(zip(lines[0][1:], line[1:], strict=True)) for line in lines[2:]}


def arguments(**changed: object) -> argparse.Namespace:
    """A command line as `Contest` reads it."""
    values = {"rows": 4, "alpha": 4.0, "block_size": 8, "mcmc_steps": 3, "max_new_tokens": LONGEST, "repeats": 1}
    values |= {"lengths": "lognormal", "mean_length": 10.0, "acceptance": None, "prompts_of_a": None}
    values |= {"prompts_of_b": None, "attention": None, "torch_compile": False, "only": ["C"]}
    return argparse.Namespace(**(values | changed))


@pytest.fixture(scope="module")
def sampler() -> PowerSampler:
    model = shapes.random_model("tiny", 1, torch.device("cpu"), torch.float32, None, positions=1)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)  # else nearly uniform, and nearly everything is accepted
    return PowerSampler(model.eval(), None, max_rows=4)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return torch.randint(2, 512, (PROMPTS, 5), generator=torch.Generator().manual_seed(0)).tolist()


def test_random_weights_as_a_user_runs_them() -> None:
    """Guards every contender, the parts of A and B, forced lengths and rates, and the lines under the table."""
    printed = run(
        *("--shape", "tiny", "--layers", 1, "--prompts", PROMPTS, "--prompt-length", 5, "--lengths", "lognormal"),
        *("--acceptance", 0.3, "--prompts-of-a", 1, "--prompts-of-b", 2, "--only", *"ABCDEF"),
    )
    rows = cells(printed)
    assert [name[0] for name in rows] == list("ABCDDDEF")
    assert [row["completions"] for row in rows.values()] == ["1", "2", *["12"] * 4, "", ""]
    assert rows["F all rows busy"]["tokens decoded"] == str(4 * LONGEST)
    for name, row in rows.items():
        assert row["of bandwidth bound"].endswith("%") == (name[0] in "CDEF")
        assert row["forward"].endswith("%") and float(row["tokens/s"]) > 0
    ours, floor = (int(rows[name]["tokens decoded"]) for name in ("C lm-power", "E plain decoding"))
    assert abs(ours - floor) < 0.1 * ours
    for told in ("Lengths of completions are forced", "by a coin, at a rate of 0.3", "A drew for 1 of the 12 prompts"):
        assert told in printed
    assert "C, projected MATH500 time: " in printed and "projected: this run's wall time" in printed


@pytest.mark.slow
def test_prompts_from_a_file(tmp_path: Path) -> None:
    """Guards `--prompts-file` on a real tokenizer: one prompt per line, empty ones left out."""
    file = tmp_path / "prompts.txt"
    file.write_text("Add a1 b2 and give the last digit:\n\nAdd a4 b9 c3 and give the last digit:\n")
    printed = run("--prompts-file", file, "--only", "C")
    assert cells(printed)["C lm-power"]["completions"] == "2"
    assert "2 prompts, 4 rows" in printed and "time of 500 completions such as these" in printed


def test_prompts_of_a_data_set(tmp_path: Path) -> None:
    """Guards prompts of several lines, as code has them, in the form that data sets are handed around in."""
    prompts = ["def f():\n    pass\n", "Größe?"]
    lines = "\n".join(json.dumps({"prompt": prompt, "answer": "4"}) for prompt in prompts)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("a.jsonl", "b.jsonl.gz"):
        assert benchmark.read_prompts(tmp_path / name) == prompts


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--shape", "qwen2.5-7b", "--rows", 10**5, "--prompts", 10**5, "--max-new-tokens", 10**5], "do not fit into"),
        (["--shape", "tiny", "--alpha", 0.5], "alpha=0.5: must be >= 1"),
        (["--acceptance", 1.5], "--acceptance 1.5: must be in [0, 1]"),
    ],
)
def test_wrong_settings_are_named(
    options: list[object], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a traceback, or a machine that runs out of memory, in place of a sentence."""
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, options)])
    with pytest.raises(SystemExit) as end:
        benchmark.main()
    assert told in f"{end.value.code}{capsys.readouterr().err}"


def test_lengths_are_forced_in_all_contenders(sampler: PowerSampler, prompts: list[list[int]]) -> None:
    """Guards lengths that differ between contenders, or that an EOS drawn by chance cuts.

    The last length is a multiple of the block: where the horizon ends a stage, it must end the completion too.
    """
    match = contest.Contest(arguments(), sampler, prompts)
    wanted = [match.length(prompt) for prompt in prompts]
    assert len(set(wanted)) > 5 and any(length % 8 == 0 and length < LONGEST for length in wanted)
    every = range(sampler.host.backend.vocabulary)  # all of them EOS: nothing may end by them
    ids, sampler.eos_ids = sampler.eos_ids, tuple(every)
    try:
        match.ours("C")
        match.ours("D", prefetch=False, early_rejection=False, coupled_resume=False)
    finally:
        sampler.eos_ids = ids
    for name in "CD":
        assert [len(completion.token_ids) for completion in match.drawn[name]] == wanted
        assert {completion.finish_reason for completion in match.drawn[name]} == {"eos"}
    config = SamplerConfig(**match.options, coupled_resume=False, early_rejection=False)
    chain = forced.ForcedChain(contest.make_algorithm(config), match.lengths)
    side_by_side = contenders.Lockstep(sampler.host.backend.model, chain, 1 / config.beta, ()).sample(prompts[:4])
    assert [len(tokens) for tokens in side_by_side] == wanted[:4]
    alone = contenders.ReleasedChain(sampler.host.backend.model, config, ())
    assert alone.sample(torch.tensor([prompts[0]]), wanted[0]).shape == (1, wanted[0])


def test_part_costs_what_all_do(sampler: PowerSampler, prompts: list[list[int]]) -> None:
    """Guards against a part of middling lengths, cheaper than the whole: costs grow as the square of the length.

    Up to a block of 8 a completion costs its length, and half of that at each of three steps; then more.
    """
    match = contest.Contest(arguments(), sampler, prompts)
    lengths = dict(zip(map(tuple, prompts), [3, 24, 3, 4, 3, 16, 3, 3, 12, 4, 3, 24], strict=True))
    match.length = lambda prompt: lengths[tuple(prompt)]
    costs = [match.cost(index) for index in range(PROMPTS)]
    assert (costs[0], costs[8], costs[1]) == (3 + 3 * 1.5, 12 + 3 * (4 + 6), 24 + 3 * (4 + 8 + 12))
    assert match.part(1) == [prompts[8]]  # nearest to the mean of 29.25; the median is 10
    assert match.part(3) == [prompt for prompt in prompts if prompt in match.part(3)]
    assert match.part(PROMPTS) == match.part(None) == prompts


def test_accelerations_leave_forced_completions_as_they_are(sampler: PowerSampler, prompts: list[list[int]]) -> None:
    """Guards against forced requests that depend on what is decoded beside them."""
    match = contest.Contest(arguments(rows=8), sampler, prompts)
    match.ours("C")
    match.ours("D", prefetch=False, early_rejection=False)
    tokens = [[completion.token_ids for completion in match.drawn[name]] for name in "CD"]
    assert tokens[0] == tokens[1]
    assert any(completion.stats.rejected_early for completion in match.drawn["C"])


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_acceptance_is_forced(sampler: PowerSampler, prompts: list[list[int]], rate: float) -> None:
    """Within four standard errors of the rate: false alarm below 1 in 10,000; the seed is fixed anyway."""
    match = contest.Contest(arguments(acceptance=rate, mcmc_steps=10), sampler, prompts)
    match.ours("C")
    stats = [completion.stats for completion in match.drawn["C"]]
    proposals, accepted = (sum(getattr(s, name) for s in stats) for name in ("proposals", "accepted"))
    assert abs(accepted / proposals - rate) <= 4 * (rate * (1 - rate) / proposals) ** 0.5
    assert not any(s.rejected_early for s in stats)


def test_lengths_are_those_of_the_simulation() -> None:
    """Mean 680 before clipping at 3072: about 660 after it, one in a hundred at the limit; keyed by the stream."""
    lengths = forced.Lengths(680, 3072)
    streams = [Stream.for_request(0, (index,), 0) for index in range(4000)]
    drawn = np.array([lengths.of(stream) for stream in streams])
    assert 620 < drawn.mean() < 700 and drawn.max() == 3072 and 0.004 < (drawn == 3072).mean() < 0.025
    assert [lengths.of(stream) for stream in streams[:20]] == drawn[:20].tolist()


def test_plain_decoding_does_what_it_counts(sampler: PowerSampler, prompts: list[list[int]]) -> None:
    """Guards the floor's tokens, passes and positions, by the shapes that the model is really given."""
    model, seen = sampler.host.backend.model, []
    ragged = [prompt[: 3 + index % 3] for index, prompt in enumerate(prompts)]
    plain = contenders.PlainDecoding.like(tokens=400, context=4 + 10, prompts=ragged, rows=4)
    assert (plain.rows, plain.batches, plain.length) == (4, 5, 20)
    counting = model.register_forward_pre_hook(
        lambda _, __, given: seen.append((given["input_ids"].shape, int(given["attention_mask"].sum()))),
        with_kwargs=True,
    )
    watch = table.Stopwatch(model)
    watch.start()
    plain.run(model, ragged, "E", watch.paused)
    counting.remove()
    steps = [mask for shape, mask in seen if shape == (4, 1)]
    assert len(steps) == plain.steps and 4 * len(steps) == plain.tokens == 400
    assert sum(steps) == plain.attended(ragged)
    assert abs(sum(steps) / 400 - (4 + 10)) < 1


def test_only_what_a_step_reads_is_counted() -> None:
    """Guards against an embedding that is looked up, not read, among the weights; a tied one is the output layer."""
    shape = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    tied, untied = (
        tf.AutoModelForCausalLM.from_config(tf.Qwen2Config(**shape, tie_word_embeddings=tie), dtype=torch.bfloat16)
        for tie in (True, False)
    )
    assert bandwidth.weight_bytes(tied) == bandwidth.weight_bytes(untied) == 2 * tied.num_parameters()
    assert untied.num_parameters() == tied.num_parameters() + 50 * 8


def test_bound_and_bandwidth() -> None:
    """The bound by hand; and a copy runs at a rate that memory can have."""
    traffic = bandwidth.Traffic(weights=1000, position=10, bandwidth=500.0)
    assert traffic.seconds(steps=3, attended=50) == (3 * 1000 + 50 * 10) / 500
    assert 1e8 < bandwidth.copy_bandwidth(torch.device("cpu"), megabytes=8, rounds=3) < 1e13


def test_projection() -> None:
    """A run's own wall where it is of the wanted size; else the rest at the rate of full rows, or in proportion."""
    work = table.Work(completions=100, tokens=10_000)
    result = table.Result(work, wall=120.0, cpu=1.0, forward=None)
    assert table.time_of(100, result, 90, 8, 500.0) == "2.00 min, measured"
    assert table.time_of(400, result, 100, 8, 500.0).startswith("3.00 min, projected")  # 120 s + 300·100/500 s
    assert table.time_of(400, result, 100, 8, None).startswith("8.00 min, projected in proportion")


def test_pace_is_that_of_full_rows() -> None:
    """Guards against a rate that the tail, or the runs before, are part of."""
    counters, now = Counters(decoded=1000), [0.0]
    pace = table.Pace(jobs=6, rows=4, counters=counters, bar=None, clock=lambda: now[0])
    for decoded in (1050, 1100, 1e9, 1e9, 1e9, 1e9):
        counters.decoded = decoded
        now[0] += 2.0
        pace.finished()
    assert pace.rate == 100 / 4


def test_ratios_are_a_completions() -> None:
    """Guards against a part of the prompts compared with all of them."""
    whole = table.Result(table.Work(100, 1000), wall=50.0, cpu=40.0, forward=10.0)
    part = table.Result(table.Work(5, 100), wall=25.0, cpu=24.0, forward=None)
    traffic = bandwidth.Traffic(1, 1, 1.0)
    printed = [cell.strip() for cell in table.line("A", part, whole, traffic).split("|")]
    row = dict(zip(("", "name", *table.HEADINGS), printed, strict=False))
    assert (row["wall ratio to C"], row["CPU ratio to C"]) == ("10.00", "12.00")
    assert (row["forward"], row["of bandwidth bound"]) == ("–", "")


def test_a_part_of_a_step_counts_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards parts that are counted twice, and a prefill's matrix products among those of the steps."""
    now = iter(range(100))
    monkeypatch.setattr(step.time, "process_time", lambda: next(now))
    clock = step.Clock()
    clock.clocked("model", lambda: clock.clocked("matmuls", lambda: None)())()
    clock.clocked(step.PREFILL, lambda: clock.clocked("matmuls", lambda: None)())()
    clock.stop()
    # A second passes between any two changes: into a part, or out of it.
    assert clock.spent == {"loop": 3, "model": 2, "matmuls": 1, step.PREFILL: 3}


def test_steps_as_a_user_runs_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards a contender that decodes nothing, a part that is never clocked, and clocks that outlive the run."""
    model = str(EXAMPLE.parent / "pocket" / "model")
    options = {"--model": model, "--rows": 3, "--length": 4, "--prompt-length": 5, "--rounds": 1}
    options["--threads"] = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["step.py", *(str(part) for pair in options.items() for part in pair)])
    functions = torch.multinomial, torch.nn.functional.scaled_dot_product_attention
    step.main()
    assert functions == (torch.multinomial, torch.nn.functional.scaled_dot_product_attention)
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| 3 ")]
    rates, parts = lines[:4], lines[4:]
    assert [line[1] for line in rates] == [line[1] for line in parts]
    assert all(float(rate) > 0 for line in rates for rate in line[2:4]) and "1.00" in {line[3] for line in rates[:2]}
    for line in parts:
        shares = [float(cell.rstrip("%")) for cell in line[3:]]
        assert len(shares) == len(step.PARTS) and min(shares) > 0
        assert sum(shares) == pytest.approx(100, abs=0.3)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_ways_to_compute_a_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a way that is never run, or that torch no longer has."""
    monkeypatch.setattr(linear, "CACHES", 1)
    taken = linear.seconds(inputs=8, outputs=16, rows=3, rounds=2)
    assert len(taken) == 4 and all(len(times) == 2 and min(times) >= 0 for times in taken.values())
