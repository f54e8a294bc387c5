"""The task power_alpaca_eval, which judges nothing, and the command that converts its runs for the judge."""

import json
import subprocess
import sys
from pathlib import Path

import lm_eval
import pandas
import pytest
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from lm_power import alpaca_eval, cli
from lm_power.alpaca_eval import INSTRUCTIONS
from lm_power.completion import Completion, Stats
from lm_power.data.alpaca import load_alpaca_eval
from lm_power.harness.metrics import ungraded_results

TASKS = Path(__file__).resolve().parents[2] / "tasks"
ROWS = [
    {"instruction": "Say {{a}} {% if %} \\n.", "output": "theirs", "generator": "other", "dataset": "koala"},
    {
        "instruction": " Two spaces before, a line after \n",
        "output": "theirs",
        "generator": "other",
        "dataset": "oasst",
    },
]


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "alpaca_eval.json"
    file.write_text(json.dumps(ROWS))
    return file


def manager(file):
    metadata = {} if file is None else {"alpaca_eval_file": str(file)}
    return TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)


class Told(LM):
    """Completion k of every prompt is ` answer k `, of self-reward k/2 - 1."""

    asked = ()

    def generate_until(self, requests, disable_tqdm=False):
        self.asked = [request.args for request in requests]
        seen, answers = {}, []
        for request in requests:
            k = seen[id(request)] = seen.get(id(request), -1) + 1
            stats = Stats(proposals=4, accepted=3, changed=2, tokens_decoded=9)
            answers.append(Completion(f" answer {k} ", (1, 2), (-1.0 + k / 2, -1.0 + k / 2), "eos", stats))
        return answers

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


def evaluate(model, data, **options):
    return lm_eval.simple_evaluate(model, tasks=["power_alpaca_eval"], task_manager=manager(data), **options)


def test_the_prompt_is_the_bare_instruction(data):
    """Guards against templates: braces and spaces in an instruction stay, and another model's answer is not there."""
    model = Told()
    out = evaluate(model, data)
    assert [prompt for prompt, _ in model.asked] == [row["instruction"] for row in ROWS]
    assert all(kwargs == {"until": [], "max_gen_toks": 3072, "do_sample": False} for _, kwargs in model.asked)
    assert all(
        set(sample["doc"]) == {"instruction", "dataset", "lm_power"} for sample in out["samples"]["power_alpaca_eval"]
    )


def test_the_table_has_no_accuracy(data):
    out = evaluate(Told(), data, gen_kwargs="n=2")["results"]["power_alpaca_eval"]
    values = {key.split(",")[0]: value for key, value in out.items() if key.endswith(",none") and "stderr" not in key}
    assert values == {
        "self_reward": -0.75, "bon_self_reward": -0.5, "tokens": 2.0, "tokens_decoded": 9.0, "acceptance_rate": 0.75,
        "change_rate": 0.5,
    }  # fmt: skip


def test_nothing_is_known_of_plain_texts():
    doc = {}
    assert ungraded_results(doc, [["a", "b"]]) == {}
    assert "correct" not in doc["lm_power"] and doc["lm_power"]["finish_reason"] == [None, None]


def test_without_the_hub_the_error_says_what_to_do(monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(RuntimeError, match=r"no connection.*--metadata alpaca_eval_file=PATH/alpaca_eval\.json"):
        load_alpaca_eval()


def test_the_hubs_file_is_read_as_it_is(monkeypatch, data):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **o: asked.append((a, o)) or str(data))
    assert list(load_alpaca_eval()["dataset"]) == ["koala", "oasst"]
    assert asked == [(("tatsu-lab/alpaca_eval", "alpaca_eval.json"), {"repo_type": "dataset"})]


def test_a_file_without_the_columns_is_refused(data):
    data.write_text('[{"prompt": "Hello"}]')
    with pytest.raises(ValueError, match="row 1 lacks instruction, dataset; it has prompt"):
        load_alpaca_eval(str(data))


# The converter.


def sample(doc_id, texts=("a", "b"), rewards=(-2.0, -1.0), padding=(), **changes):
    """A line of a samples file, of the fields that matter."""
    known = {"self_reward": list(rewards), "finish_reason": ["eos", "length"][: len(texts)]}
    doc = {"instruction": f"Do {doc_id}.\u2028", "dataset": "koala", "lm_power": known, **changes}
    arguments = {"gen_args_0": {"arg_0": doc["instruction"], "arg_1": {"until": []}}}
    return {"doc_id": doc_id, "doc": doc, "arguments": arguments, "resps": [[*texts, *padding]]}


def write_run(folder, samples, time="2026"):
    """lm-eval's --output_path with one samples file."""
    file = folder / "their__model" / f"samples_power_alpaca_eval_{time}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in samples), encoding="utf-8")
    return file


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """The command on arguments: (exit status, what is in the file, printed)."""
    monkeypatch.setattr(cli, "COMMANDS", {"alpaca-eval": cli.COMMANDS["alpaca-eval"]})  # the others take long to import
    output = tmp_path / "made" / "out.json"

    def run(place, *options):
        status = cli.main(["alpaca-eval", str(place), "--output", str(output), *options])
        written = json.loads(output.read_text(encoding="utf-8")) if output.exists() else None
        printed = capsys.readouterr()
        return status, written, printed.out + printed.err

    return run


def test_a_complete_run_in_the_order_of_the_data(tmp_path, convert):
    """Guards against the order of several processes (rank by rank), and against clones that pad a short one."""
    ids = [*range(0, INSTRUCTIONS, 2), *range(1, INSTRUCTIONS, 2)]
    write_run(tmp_path / "run7", [sample(i, (f"<b>{i}\u2028</b> ", "other"), padding=("", "")) for i in ids])
    status, written, printed = convert(tmp_path / "run7")
    assert status == 0
    assert written == [
        {"instruction": f"Do {i}.\u2028", "output": f"<b>{i}\u2028</b> ", "generator": "run7", "dataset": "koala"}
        for i in range(INSTRUCTIONS)
    ]
    assert "805 outputs of 'run7', of 2 completions the first, 0 cut at the length limit, 0 empty" in printed


def test_the_judge_reads_it(tmp_path, convert):
    """`alpaca_eval` reads by pandas, whose guesses must not turn a text into anything else."""
    write_run(tmp_path, [sample(i, (text,), (-1.0,)) for i, text in enumerate(("007", "2024-01-01", "null", ""))])
    _, written, printed = convert(tmp_path, "--allow-incomplete", "--generator", "power 4")
    frame = pandas.read_json(tmp_path / "made" / "out.json")
    assert list(frame.columns) == ["instruction", "output", "generator", "dataset"]
    assert frame.to_dict("records") == written
    assert {entry["generator"] for entry in written} == {"power 4"} and "1 empty" in printed


def test_best_of_n(tmp_path, convert):
    lines = [sample(0), sample(1, ("a", "b"), (-1.0, -1.0)), sample(2, ("a", "b"), (-0.5, -1.0))]
    write_run(tmp_path, lines)
    _, written, printed = convert(tmp_path, "--allow-incomplete", "--choose", "best")
    assert [entry["output"] for entry in written] == ["b", "a", "a"]
    assert "of 2 completions the one with the largest self-reward, 1 cut at the length limit" in printed


def test_best_without_self_rewards_is_refused(tmp_path, convert):
    write_run(tmp_path, [sample(0, rewards=(None, -1.0))])
    status, written, printed = convert(tmp_path, "--allow-incomplete", "--choose", "best")
    assert (status, written) == (2, None) and "document 0 has completions without a self-reward" in printed


def test_incomplete_runs_are_refused(tmp_path, convert):
    """Guards the judge's length control, which takes an instruction's difficulty by its row."""
    file = write_run(tmp_path, [sample(i) for i in range(INSTRUCTIONS) if i != 3])
    status, written, printed = convert(tmp_path)
    assert (status, written) == (2, None)
    assert "has 804 instructions, AlpacaEval has 805; the first one missing is document 3" in printed
    write_run(tmp_path, [sample(i) for i in range(INSTRUCTIONS + 1)])
    assert "has 806 instructions" in convert(file)[2]
    status, written, _ = convert(file, "--allow-incomplete")
    assert status == 0 and len(written) == 806 and written[0]["generator"] == "their__model"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([sample(0), sample(1), sample(0)], "jsonl:3: document 0 appears twice"),
        ([sample(0), sample(1, instruction="Do 0.\u2028")], "documents 0 and 1 have the same instruction"),
        ([sample(0, dataset=None)], "jsonl:1: is not a sample of power_alpaca"),
        ([sample(0, lm_power=None) | {"filtered_resps": ["a"]}], "jsonl:1: is not a sample of power_alpaca"),
        ([["a list"]], "jsonl:1: is not a line of lm_eval --log_samples"),
        ([sample(0, texts=(), rewards=())], "0 completions are logged for 0 texts"),
        ([], "is empty"),
    ],
)
def test_other_files_are_refused(tmp_path, convert, lines, message):
    write_run(tmp_path, lines)
    status, written, printed = convert(tmp_path, "--allow-incomplete")
    assert (status, written) == (2, None) and message in printed


def test_torn_lines_are_refused(tmp_path, convert):
    file = write_run(tmp_path, [sample(0), sample(1)])
    file.write_text(file.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert "jsonl:2: is not JSON" in convert(tmp_path, "--allow-incomplete")[2]


def test_places_and_outputs_that_cannot_be(tmp_path, convert):
    assert "no such folder" in convert(tmp_path / "nowhere")[2]
    assert "holds no samples_power_alpaca_eval_" in convert(tmp_path)[2]
    file = write_run(tmp_path, [sample(0)])
    assert convert(tmp_path, "--allow-incomplete")[0] == 0
    status, written, printed = convert(tmp_path, "--allow-incomplete", "--generator", "again")
    assert status == 2 and "already exists" in printed and written[0]["generator"] != "again"
    (tmp_path / "a_file").touch()
    assert cli.main(["alpaca-eval", str(file), "--allow-incomplete", "--output", f"{tmp_path}/a_file/out.json"]) == 2
    write_run(tmp_path, [sample(0)], time="2027")
    assert "holds 2 runs; name one of its files" in convert(tmp_path)[2]
    assert cli.main(["alpaca-eval", str(file), "--output", str(tmp_path / "out.csv")]) == 2


def test_from_a_run_of_lm_eval(tmp_path, data, convert):
    """The samples as lm-eval makes them, with what it adds around ours."""
    tracker = EvaluationTracker(output_path=str(tmp_path))
    run = evaluate(Told(), data, gen_kwargs={"n": 2}, evaluation_tracker=tracker)
    samples = run.pop("samples")
    tracker.save_results_aggregated(results=run, samples=samples)
    tracker.save_results_samples(task_name="power_alpaca_eval", samples=samples["power_alpaca_eval"])
    _, written, _ = convert(tmp_path, "--allow-incomplete", "--choose", "best", "--generator", "told")
    assert written == [
        {"instruction": row["instruction"], "output": " answer 1 ", "generator": "told", "dataset": row["dataset"]}
        for row in ROWS
    ]


def test_the_command_needs_no_lm_eval():
    """Guards the rooms: the converter reads files only."""
    code = f"import sys, {alpaca_eval.__name__}; print([m for m in ('lm_eval', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
