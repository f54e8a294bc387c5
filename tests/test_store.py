"""The store: what is written is whole, once, this model's, and found again."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from transformers import PreTrainedConfig

import lm_power.store as store_module
from lm_power.completion import Completion, Stats, Steps
from lm_power.config import METHODS, SamplerConfig
from lm_power.fingerprint import fingerprint
from lm_power.store import FIELDS, FORMAT, CompletionStore, Provenance, StoreError, read_store

MODEL = "some/model@0123456789abcdef"
SOURCE = Provenance(MODEL, SamplerConfig(), ("\n\n", "end"), (0, 7))
COMPLETION = Completion(
    "so\u2028 5 – 五",
    token_ids=[4, 5, 0],
    log_probs=[-0.25, -1.5, -1e-7],
    finish_reason="eos",
    stats=Stats(proposals=20, accepted=3, tokens_decoded=40, tokens_reused=9, seconds=1.5),
    steps=Steps(stage=(1, 1), cut=(0, 2), length=(2, 3), accepted=(1, 0)),
)


def fill(folder, *repeats, prompt=(1, 2), model=MODEL):
    with CompletionStore(folder, model) as store:
        for repeat in repeats:
            store.add("p", prompt, repeat, dataclasses.replace(SOURCE, model=model), COMPLETION)


def lines(folder):
    return [line for path in sorted(Path(folder).glob("*.jsonl")) for line in path.read_bytes().splitlines(True)]


def files(folder):
    return sorted(Path(folder).glob("*.jsonl"))


def test_round_trip(tmp_path):
    """Guards against a field that is lost or rounded on the way to disk and back."""
    fill(tmp_path / "new" / "store", 0)
    with CompletionStore(tmp_path / "new" / "store", MODEL) as store:
        back = store.get(SOURCE.key([1, 2], 0))
        assert store.get(SOURCE.key([1, 2], 1)) is None
        assert len(store) == 1
    assert back == COMPLETION
    assert vars(back) == vars(COMPLETION)


def test_a_line_has_the_fields_of_the_contract(tmp_path):
    """Others read these names: a contract with users (lm_power/README.md)."""
    fill(tmp_path, 0)
    (line,) = lines(tmp_path)
    record = json.loads(line)
    contract = {
        "key", "model", "prompt", "text", "token_ids", "sum_log_prob", "self_reward", "finish_reason", "repeat",
        "seed", "config", "stats", "steps",
    }  # fmt: skip
    assert contract <= set(record)
    assert tuple(record) == FIELDS
    assert record["sum_log_prob"] == pytest.approx(-1.7500001)
    assert record["self_reward"] == pytest.approx(-1.7500001 / 3)
    assert record["config"]["alpha"] == 4.0 and record["config"]["stop"] == ["\n\n", "end"]
    assert set(record["stats"]) == {field.name for field in dataclasses.fields(Stats)}
    assert set(record["stats"]) >= {"proposals", "accepted", "tokens_decoded", "tokens_reused", "seconds"}


def test_a_key_is_written_once(tmp_path):
    """Guards against doubled lines: in one process, in a later one, and beside one that is still open."""
    with CompletionStore(tmp_path, MODEL) as first, CompletionStore(tmp_path, MODEL) as second:
        for store in (first, first, second):
            store.add("p", [1, 2], 0, SOURCE, COMPLETION)
        second.add("p", [1, 2], 1, SOURCE, COMPLETION)
        first.add("p", [1, 2], 1, SOURCE, COMPLETION)
        assert first.get(SOURCE.key([1, 2], 1)) == COMPLETION
    fill(tmp_path, 0, 1, 2)
    assert sorted(json.loads(line)["repeat"] for line in lines(tmp_path)) == [0, 1, 2]


def test_a_run_with_nothing_to_add_leaves_no_file(tmp_path):
    """Guards against an empty file a start."""
    fill(tmp_path, 0)
    before = files(tmp_path)
    fill(tmp_path, 0)
    assert files(tmp_path) == before


CHANGES = {
    "method": "standard", "alpha": 3.0, "proposal_temperature": 0.5, "block_size": 191, "mcmc_steps": 9,
    "final_steps": 2, "cut": "entropy", "max_new_tokens": 3071, "seed": 1, "coupled_resume": False,
    "explore": 0.1,
}  # fmt: skip

EXACT = {"early_rejection", "prefetch"}  # which change no completion


def test_the_key_covers_what_decides(tmp_path):
    """Guards against taking one completion for another: every option, stop, EOS, model, prompt, repeat.

    That every option of every method has its place in `SamplerConfig.relevant_options` is shown where that is tested.
    """
    assert {*CHANGES, "cut_share", "cut_power"} - {"method", "max_new_tokens", "seed"} == {
        *METHODS["power"].relevant_options
    }
    others = [dataclasses.replace(SOURCE, config=SOURCE.config.replace(**{n: v})) for n, v in CHANGES.items()]
    others += [
        dataclasses.replace(SOURCE, stop=("\n\n",)),
        dataclasses.replace(SOURCE, stop=()),
        dataclasses.replace(SOURCE, eos_ids=(0,)),
        dataclasses.replace(SOURCE, engine={"cache_dtype": "bfloat16"}),
        dataclasses.replace(SOURCE, engine={"top_logprobs": 20}),
        dataclasses.replace(SOURCE, engine={"top_logprobs": 5}),
        dataclasses.replace(SOURCE, model="some/model@0123456789abcdee"),
    ]
    keys = [source.key([1, 2], 0) for source in (SOURCE, *others)]
    keys += [SOURCE.key([1, 3], 0), SOURCE.key([1, 2, 2], 0), SOURCE.key([1, 2], 1)]
    assert len(set(keys)) == len(keys)


def test_the_key_covers_nothing_else():
    """Guards against a store that is lost when the model is moved, or stop strings are listed in another order."""
    moved = dataclasses.replace(SOURCE, model="/other/place+x@0123456789abcdef", stop=("end", "\n\n", "end"))
    assert moved.key((1, 2), 0) == SOURCE.key([1, 2], 0)
    for same in ({"proposal_temperature": 0.25}, {"explore": 0}, *({name: False} for name in EXACT)):
        assert dataclasses.replace(SOURCE, config=SamplerConfig(**same)).key([1, 2], 0) == SOURCE.key([1, 2], 0)


def test_keys_of_earlier_versions_stand():
    """Guards stores on disk: an option that was added since, at its default, changes no key."""
    assert SOURCE.key([1, 2], 0) == "141eadfeb112d83535f1923c6299f980"


def test_what_changes_last_bits_only_is_not_in_the_key():
    """Guards resume on another machine: attention may differ; what the cache is kept in may not."""
    from models import make_model

    from lm_power.engine.backend import HFBackend

    prints, dtypes = set(), []
    for attention in ("eager", "sdpa", "lm_power"):
        backend = HFBackend(make_model("qwen2", attention))
        prints.add(fingerprint(backend.model))
        dtypes.append(backend.cache_dtype)
    dtypes.append(HFBackend(make_model("qwen2", dtype=torch.bfloat16)).cache_dtype)
    assert len(prints) == 1 and dtypes == [None] * 4
    model = make_model("qwen2")  # stored in bfloat16 where it begins, computed in float32
    model.model.embed_tokens.to(torch.bfloat16).register_forward_hook(lambda module, inputs, output: output.float())
    assert HFBackend(model).cache_dtype == "float32"


def test_a_torn_last_line_is_dropped_and_cut_off(tmp_path, caplog):
    """Guards resume after SIGKILL: half a line must neither stop the run nor stay for other readers."""
    fill(tmp_path, 0, 1)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    with CompletionStore(tmp_path, MODEL) as store:
        assert len(store) == 2
        assert "incomplete last line of 50 bytes" in caplog.text and str(path) in caplog.text
        store.add("p", [1, 2], 2, SOURCE, COMPLETION)
    assert path.read_bytes() == whole
    assert len([json.loads(line) for line in lines(tmp_path)]) == 3


def test_readers_change_nothing(tmp_path, caplog):
    """Guards reports that run beside a sampler: its unfinished line is left out, and left alone."""
    fill(tmp_path, 0)
    (path,) = files(tmp_path)
    torn = path.read_bytes() + b'{"format": 1, "ke'
    path.write_bytes(torn)
    assert [record["repeat"] for record in read_store(tmp_path)] == [0]
    assert path.read_bytes() == torn
    assert "an incomplete last line" in caplog.text


def test_the_line_of_a_live_writer_is_not_cut(tmp_path):
    """Guards two processes: one that starts while another is half-way through a line waits for the rest."""
    fill(tmp_path, 0)
    writer = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from filelock import FileLock
        line = Path({str(files(tmp_path)[0])!r}).read_bytes().replace(b'"key": "', b'"key": "x')
        with FileLock({str(tmp_path / ".lock")!r}), open({str(tmp_path / "z.jsonl")!r}, "wb", buffering=0) as file:
            file.write(line[:40])
            print("half", flush=True)
            sys.stdin.readline()
            time.sleep(0.3)
            file.write(line[40:])
    """)
    with subprocess.Popen(
        [sys.executable, "-c", writer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "half\n"
        process.stdin.write("go on\n")
        process.stdin.flush()
        with CompletionStore(tmp_path, MODEL) as store:
            assert len(store) == 2
    assert len(lines(tmp_path)) == 2


@pytest.mark.parametrize(
    "damage",
    [b"not json\n", b"\n", b"[1]\n", b'{"format": 1, "key": "k"}\n', b'{"format": "one", "key": "k"}\n', b"\xff\n"],
)
def test_a_damaged_line_is_named(tmp_path, damage):
    """Guards against skipping, or crashing without a place at, a line that is no completion."""
    fill(tmp_path, 0, 1)
    (path,) = files(tmp_path)
    first, second = lines(tmp_path)
    path.write_bytes(first + damage + second)
    for reader in (lambda: CompletionStore(tmp_path, MODEL), lambda: list(read_store(tmp_path))):
        with pytest.raises(StoreError, match=f"{path.name}:2: is not a completion"):
            reader()
    assert path.read_bytes() == first + damage + second


def test_a_line_damaged_while_running_is_named(tmp_path):
    """Guards the line numbers of files that are read on from the middle."""
    with CompletionStore(tmp_path, MODEL) as store:
        store.add("p", [1, 2], 0, SOURCE, COMPLETION)
        store.flush()
        with files(tmp_path)[0].open("ab") as file:
            file.write(b"rubbish\n")
        store.add("p", [1, 2], 1, SOURCE, COMPLETION)
        with pytest.raises(StoreError, match=r"jsonl:2: is not a completion"):
            store.flush()


def test_a_newer_format_is_refused(tmp_path):
    """Guards against misreading what a later version wrote, whatever fields it has."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"format": FORMAT + 1, "other": 1}) + "\n")
    with pytest.raises(StoreError, match=rf"a.jsonl:1: written in format {FORMAT + 1} by a newer lm-power"):
        CompletionStore(tmp_path, MODEL)


def test_another_models_store_is_refused_unchanged(tmp_path):
    """Guards against mixing models; even a torn line of the other's stays."""
    fill(tmp_path, 0)
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes() + b"torn")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"jsonl:1: holds completions of the model {MODEL}.*other@ffffffffffffffff"):
        CompletionStore(tmp_path, "other@ffffffffffffffff")
    assert files(tmp_path) == [path] and path.read_bytes() == before
    CompletionStore(tmp_path, "moved/elsewhere@0123456789abcdef").close()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    """Guards against finding out at the first completion."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"completions=.*file/store: cannot be written \(Not a directory\)"):
        CompletionStore(tmp_path / "file" / "store", MODEL)
    with pytest.raises(StoreError, match="cannot be written"):
        CompletionStore(tmp_path / "file", MODEL)


WRITER = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).with_name("support"))]!r}
from test_store import *
"""


def run_python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER + textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_full_disk(tmp_path):
    """Guards a run that fills the disk: the error says what is kept, lines stay whole, the next run goes on.

    A file size limit stands for the full disk: write() comes back short, then fails, at the same places.
    """
    process = run_python(
        """
        import resource
        with CompletionStore(sys.argv[1], MODEL) as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
            for repeat in range(9):
                try:
                    store.add("p", [1, 2], repeat, SOURCE, COMPLETION)
                    store.flush()
                except StoreError as error:
                    print(repeat, error)
                    break
            resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, resource.RLIM_INFINITY))
            store.add("p", [1, 2], 8, SOURCE, COMPLETION)
        """,
        tmp_path,
    )
    out, err = process.communicate()
    assert process.returncode == 0, err
    kept = int(out.split()[0])
    assert kept >= 2
    assert f"writing failed (File too large); the {kept} completions stored so far are complete: free some space" in out
    assert [json.loads(line)["repeat"] for line in lines(tmp_path)] == [*range(kept), 8]
    fill(tmp_path, *range(9))
    assert sorted(json.loads(line)["repeat"] for line in lines(tmp_path)) == list(range(9))


def test_processes_write_side_by_side(tmp_path):
    """Guards against lost, mixed or doubled lines when two processes add overlapping completions at once."""
    code = """
        with CompletionStore(sys.argv[1], MODEL) as store:
            print("ready", flush=True)
            sys.stdin.readline()
            for repeat in range(int(sys.argv[2]), int(sys.argv[2]) + 150):
                store.add("p", [1, 2], repeat, SOURCE, COMPLETION)
    """
    processes = [run_python(code, tmp_path, start) for start in (0, 100)]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert len(files(tmp_path)) == 2
    assert sorted(json.loads(line)["repeat"] for line in lines(tmp_path)) == list(range(250))


def test_datasets_can_load_a_store(tmp_path, monkeypatch):
    """Guards the contract that a store is training data for `datasets.load_dataset("json", …)`."""
    import datasets

    fill(tmp_path / "store", 0, 1)
    fill(tmp_path / "store", 2)
    data_files = str(tmp_path / "store" / "*.jsonl")
    loaded = datasets.load_dataset("json", data_files=data_files, split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded["repeat"]) == [0, 1, 2]
    assert loaded["text"][0] == COMPLETION and loaded["token_ids"][0] == [4, 5, 0]


def test_fingerprint_tells_models_apart():
    """Guards the fingerprint: whatever changes the distribution counts; where a model lies does not."""
    from models import make_model

    base = fingerprint(make_model("qwen2"))
    assert fingerprint(make_model("qwen2")) == base
    changed = [make_model("qwen2", seed=1), make_model("qwen2", dtype=torch.bfloat16), make_model("qwen2")]
    changed[2].config.rope_parameters["rope_theta"] *= 2
    nudged = make_model("qwen2")
    with torch.no_grad():
        nudged.model.norm.weight[3] += 1e-3
    prints = [fingerprint(model) for model in (*changed, nudged)]
    assert len({base, *prints}) == 5
    moved = make_model("qwen2")
    moved.config._name_or_path = "elsewhere"
    moved.config.eos_token_id = [0, 5]  # is part of the key itself
    assert fingerprint(moved) == base


@pytest.mark.parametrize("columns", [15, 16])
def test_fingerprint_knows_the_row_of_every_token(columns):
    """New tokens are often trained alone, and all other weights stay as they are."""
    table = torch.nn.Embedding(997, columns)
    table.config = PreTrainedConfig(vocab_size=997)
    base = fingerprint(table)
    for token in range(0, 997, 7):
        with torch.no_grad():
            table.weight[token] *= -1
            assert fingerprint(table) != base, token
            table.weight[token] *= -1
    assert fingerprint(table) == base


def test_opening_is_quiet(tmp_path, caplog):
    """Guards against warnings about a healthy store."""
    caplog.set_level(logging.INFO)
    fill(tmp_path, 0)
    CompletionStore(tmp_path, MODEL).close()
    assert not [r for r in caplog.records if r.name.startswith("lm_power")]


class Interrupted:
    """A file whose writes are broken off half-way."""

    def __init__(self, file, error):
        self.file, self.error, self.name = file, error, file.name

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise self.error

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_an_interrupted_write_leaves_no_part_of_a_line(tmp_path):
    """Guards a process that lives on after a write that broke off: its next line must begin a line."""
    with CompletionStore(tmp_path, MODEL) as store:
        store.add("p", [1, 2], 0, SOURCE, COMPLETION)
        store.flush()
        real = store._file
        for error in (KeyboardInterrupt(), OSError(28, "No space left on device")):
            store._file = Interrupted(real, error)
            store.add("p", [1, 2], 1, SOURCE, COMPLETION)
            with pytest.raises((KeyboardInterrupt, StoreError)):
                store.flush()
        store._file = real
        store.add("p", [1, 2], 1, SOURCE, COMPLETION)
    assert [record["repeat"] for record in read_store(tmp_path)] == [0, 1]


def test_decoding_does_not_wait_for_the_disk(tmp_path):
    """Guards the engine's time: adding is done at once while another holds the folder; closing writes it all."""
    store = CompletionStore(tmp_path, MODEL)
    with FileLock(tmp_path / ".lock"):
        started = time.perf_counter()
        for repeat in range(50):
            store.add("p", [1, 2], repeat, SOURCE, COMPLETION)
        assert time.perf_counter() - started < 2
        assert not files(tmp_path)
    store.close()
    assert [record["repeat"] for record in read_store(tmp_path)] == list(range(50))


def test_a_disk_that_cannot_follow_holds_sampling_up(tmp_path, monkeypatch):
    """Guards memory: a bounded number of completions waits to be written."""
    monkeypatch.setattr(store_module, "_MOST_WAITING", 3)
    write, waiting = CompletionStore._write, []

    def slow(store, *arguments):
        waiting.append(len(store._writes))
        time.sleep(0.01)
        write(store, *arguments)

    monkeypatch.setattr(CompletionStore, "_write", slow)
    fill(tmp_path, *range(20))
    assert max(waiting) <= 3
    assert len(lines(tmp_path)) == 20


def test_an_error_of_the_writer_reaches_the_run(tmp_path, caplog):
    """Guards against a run that goes on drawing what cannot be kept, or that ends as if all were written."""

    def full(store, record):
        time.sleep(0.1)
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompletionStore, "_append", full)
        for ask in (lambda s: s.flush(), lambda s: s.get("k"), lambda s: s.close(), lambda s: s.__exit__(*[None] * 3)):
            store = CompletionStore(tmp_path, MODEL)
            store.add("p", [1, 2], 0, SOURCE, COMPLETION)
            with pytest.raises(StoreError, match="No space left on device"):
                ask(store)
        with pytest.raises(StoreError, match="the 0 completions"), CompletionStore(tmp_path, MODEL) as store:
            for repeat in range(10**6):
                store.add("p", [1, 2], repeat, SOURCE, COMPLETION)
                time.sleep(0.01)
        with pytest.raises(ValueError, match="the run's own"), CompletionStore(tmp_path, MODEL) as store:
            store.add("p", [1, 2], 0, SOURCE, COMPLETION)
            store.add("p", [1, 2], 1, SOURCE, COMPLETION)
            raise ValueError("the run's own")
        assert "No space left" in caplog.text and "2 completions were not written" in caplog.text
    fill(tmp_path, 0)
    assert len(lines(tmp_path)) == 1


def test_killed_while_writing(tmp_path):
    """Guards resume after SIGKILL at any moment: what was written stays, and nothing comes out doubled or torn."""
    code = """
        with CompletionStore(sys.argv[1], MODEL) as store:
            for repeat in range(20):
                store.add("p", [1, 2], repeat, SOURCE, COMPLETION)
            store.flush()
            print("written", flush=True)
            for repeat in range(20, 100000):
                store.add("p", [1, 2], repeat, SOURCE, COMPLETION)
    """
    kept = 0
    for _ in range(3):
        process = run_python(code, tmp_path)
        assert process.stdout.readline() == "written\n", process.communicate()[1]
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.communicate()
        with CompletionStore(tmp_path, MODEL) as store:
            assert len(store) >= max(kept, 20)
            kept = len(store)
    with CompletionStore(tmp_path, MODEL) as store:
        assert all(store.get(SOURCE.key([1, 2], repeat)) == COMPLETION for repeat in range(kept))
    fill(tmp_path, *range(kept + 5))
    assert sorted(json.loads(line)["repeat"] for line in lines(tmp_path)) == list(range(kept + 5))


def test_completions_stay_on_disk(tmp_path):
    """Guards memory: a rank keeps a store's keys, not its completions, be they its own or other ranks'."""
    long = Completion("x" * 10**5, token_ids=[4, 0], log_probs=[-1.0, -1.0], finish_reason="eos")
    with CompletionStore(tmp_path, MODEL) as other, CompletionStore(tmp_path, MODEL) as store:
        tracemalloc.start()
        try:
            for repeat in range(50):
                (store, other)[repeat % 2].add("p", [1, 2], repeat, SOURCE, long)
            store.flush()
            other.flush()
            fresh = CompletionStore(tmp_path, MODEL)
            assert len(fresh) == 50
            assert tracemalloc.get_traced_memory()[0] < 10**6  # of 5 · 10^6 on disk
            tracemalloc.reset_peak()
            CompletionStore(tmp_path, MODEL).close()
            assert tracemalloc.get_traced_memory()[1] < 2 * 10**6
        finally:
            tracemalloc.stop()
        assert fresh.get(SOURCE.key([1, 2], 49)) == long


def test_a_line_that_is_gone_or_another_is_named(tmp_path):
    """Guards against handing out another completion after somebody edited a file of a run under way."""
    fill(tmp_path, 0, 1)
    store = CompletionStore(tmp_path, MODEL)
    (path,) = files(tmp_path)
    first, second = lines(tmp_path)
    path.write_bytes(second + first)
    with pytest.raises(StoreError, match=f"{path.name}:1: was changed while this run was using it"):
        store.get(SOURCE.key([1, 2], 0))
    path.unlink()
    with pytest.raises(StoreError, match=f"{path.name}:1: can no longer be read"):
        store.get(SOURCE.key([1, 2], 0))


def test_what_another_process_has_written_is_read_once(tmp_path, monkeypatch):
    """Guards against reading from byte 0 whenever another process has written: two writers would read n² lines."""
    read, parse = [], store_module._parse
    monkeypatch.setattr(store_module, "_parse", lambda line, where: (read.append(where), parse(line, where))[1])
    with CompletionStore(tmp_path, MODEL) as one, CompletionStore(tmp_path, MODEL) as two:
        for repeat in range(20):
            store = one if repeat % 2 else two
            store.add("p", [1, 2], repeat, SOURCE, COMPLETION)
            store.flush()
        assert len(one) + len(two) >= 39
    assert len(read) <= 20


def test_a_name_may_have_an_at_sign_of_its_own():
    """Guards a folder such as runs/m@v2, whose last part was once taken for a fingerprint."""
    ours = dataclasses.replace(SOURCE, model="runs/m@v2")
    assert ours.key([1], 0) != dataclasses.replace(SOURCE, model="other/m@v2").key([1], 0)
