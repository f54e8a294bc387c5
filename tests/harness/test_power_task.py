"""PowerTask inside lm-eval: N by flag and by YAML, the table's rows, and what a stock user relies on.

The pocket model answers, so that completions differ and some are right.
"""

import json
import logging
import sys
from pathlib import Path

import lm_eval
import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from lm_power.completion import Completion, Stats
from lm_power.harness import metrics
from lm_power.harness.metrics import metric_list
from lm_power.harness.power_hf import PowerHF
from lm_power.harness.power_task import PowerTask
from lm_power.stats.best_of_n import ks

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = REPOSITORY / "tasks"
POCKET = str(REPOSITORY / "examples" / "pocket" / "model")
BEST_OF_N = {"bon_acc", "bon_self_reward", "cov_acc_self_reward"}
FROM_TEXTS = {"oracle", "maj_acc"}


@pytest.fixture(autouse=True)
def quiet_and_fresh(monkeypatch):
    monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", True)
    metrics._notice_no_self_reward.cache_clear()


@pytest.fixture(scope="module")
def power_hf():
    return PowerHF(POCKET, method="temperature", proposal_temperature=0.5, device="cpu", batch_size=8, dtype="float32")


@pytest.fixture(scope="module")
def plain_hf():
    from lm_eval.models.huggingface import HFLM

    return HFLM(POCKET, device="cpu", batch_size=8, dtype="float32")


class Told(LM):
    """Completion number k of a request is right if k is even; remembers what it was asked."""

    def __init__(self, rank=0, world_size=1):
        super().__init__()
        self._rank, self._world_size, self.asked = rank, world_size, []

    def generate_until(self, requests, disable_tqdm=False):
        self.asked += [request.args[1] for request in requests]
        seen, answers = {}, []
        for request in requests:
            k = seen[id(request)] = seen.get(id(request), -1) + 1
            text = f" so {request.doc['answer']}" if k % 2 == 0 else " so ?"
            answers.append(Completion(text, (1, 2), (-0.5 - k, -0.5 - k), "eos", Stats(tokens_decoded=2)))
        return answers

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


def evaluate(model, tasks="pocket_sums", include=TASKS, limit=3, **options):
    manager = TaskManager(include_path=[str(TASKS), str(include)], include_defaults=False)
    return lm_eval.simple_evaluate(
        model, tasks=tasks if isinstance(tasks, list) else [tasks], task_manager=manager, limit=limit, **options
    )


def own_yaml(folder, name="own", **settings):
    """A user's YAML beside ours."""
    lines = [f"include: {TASKS / 'pocket_sums' / 'pocket_sums.yaml'}", f"task: {name}"]
    lines += [f"{key}: {json.dumps(value)}" for key, value in settings.items()]
    folder.joinpath(f"{name}.yaml").write_text("\n".join(lines))
    return folder


def rows(out, task="pocket_sums"):
    return {key.split(",")[0] for key in out["results"][task] if key.endswith(",none") and "_stderr" not in key}


def test_one_completion_by_default(power_hf, caplog):
    out = evaluate(power_hf)
    assert rows(out) == {"acc", "self_reward", "tokens", "tokens_decoded"}
    assert out["configs"]["pocket_sums"]["repeats"] == 1
    assert not [r for r in caplog.records if "aggregation" in r.getMessage()]


@pytest.mark.parametrize("way", ["gen_kwargs", "repeats", "generation_kwargs"])
def test_n_with_power_hf(power_hf, tmp_path, way, caplog):
    """The flag and the YAML give the same completions, and the same rows of the table."""
    if way == "gen_kwargs":
        out, task = evaluate(power_hf, gen_kwargs="n=3"), "pocket_sums"
    else:
        generation = {"generation_kwargs": {"until": [], "max_gen_toks": 40, "n": 3}}
        settings = {"repeats": 3} if way == "repeats" else generation
        out, task = evaluate(power_hf, "own", own_yaml(tmp_path, **settings)), "own"
    passes = {f"pass@{k}" for k in (1, 2, 3)}
    assert rows(out, task) == {"acc", "self_reward", "tokens", "tokens_decoded"} | BEST_OF_N | FROM_TEXTS | passes
    assert out["configs"][task]["repeats"] == 3 and "n" not in out["configs"][task]["generation_kwargs"]
    drawn = [sample["resps"][0] for sample in out["samples"][task]]
    assert [len(texts) for texts in drawn] == [3, 3, 3]
    assert drawn[0] == evaluate(power_hf, gen_kwargs={"n": 3}, limit=1)["samples"]["pocket_sums"][0]["resps"][0]
    assert not [r for r in caplog.records if "aggregation" in r.getMessage()]
    assert "bon_acc" in make_table(out)


def test_cached_requests_are_asked_with_the_options_of_this_run(tmp_path, monkeypatch):
    """Guards --cache_requests, which keeps the generation options of the run that filled the cache."""
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path))
    asked = []
    for gen_kwargs in ("method=standard,n=2", "method=power,max_gen_toks=5"):
        model = Told()
        evaluate(model, gen_kwargs=gen_kwargs, cache_requests=True)
        asked.append(model.asked)
    assert list(tmp_path.iterdir()), "the cache was used"
    assert [(len(runs), runs[0]["method"]) for runs in asked] == [(6, "standard"), (3, "power")]
    assert all(options["max_gen_toks"] == 5 for options in asked[1])


def test_n_with_plain_hf(plain_hf, caplog):
    """Plain texts: no row made from log-probabilities, one notice; `n` never reaches transformers."""
    out = evaluate(plain_hf, gen_kwargs="n=4,do_sample=true,temperature=1.0", limit=2)
    assert rows(out) == {"acc", "pass@1", "pass@2", "pass@4"} | FROM_TEXTS
    drawn = [sample["resps"][0] for sample in out["samples"]["pocket_sums"]]
    assert all(len(texts) == 4 and len(set(texts)) > 1 for texts in drawn)
    assert len([r for r in caplog.records if "no log-probabilities" in r.getMessage()]) == 1
    assert not [r for r in caplog.records if "the same text" in r.getMessage()]


def test_copies_are_noticed(plain_hf, power_hf, caplog):
    """Guards: N greedy texts, or N drawn with one seed by an API server, taken for N completions."""
    evaluate(plain_hf, gen_kwargs={"n": 2}, limit=2)
    assert len([r for r in caplog.records if "the 2 completions of every problem are the same" in r.getMessage()]) == 1
    caplog.clear()
    evaluate(power_hf, gen_kwargs={"n": 2, "max_gen_toks": 1, "method": "temperature", "proposal_temperature": 0.001})
    assert not [r for r in caplog.records if "the same text" in r.getMessage()]


def test_every_row_and_standard_error_by_hand(tmp_path):
    """Every other completion is right, the first is the surest: the same for all problems."""
    model = Told()
    out = evaluate(model, gen_kwargs="n=4", limit=5)["results"]["pocket_sums"]
    expected = {
        "acc": 0.5, "pass@1": 0.5, "pass@2": 1 - 1 / 6, "pass@4": 1.0, "oracle": 1.0, "maj_acc": 1.0,
        "self_reward": -2.0, "bon_acc": 1.0, "bon_self_reward": -0.5, "tokens": 2.0, "tokens_decoded": 2.0,
        "cov_acc_self_reward": 1 / 3,  # deviations ±1/2 and 3/2, 1/2, -1/2, -3/2: (3/4 - 1/4 - 1/4 + 3/4) / 3
    }  # fmt: skip
    assert {name: out[f"{name},none"] for name in expected} == pytest.approx(expected)
    assert all(out[f"{name}_stderr,none"] == pytest.approx(0) for name in expected)
    assert len(model.asked) == 20
    assert all(kwargs == {"until": [], "max_gen_toks": 40, "do_sample": False} for kwargs in model.asked)


@pytest.mark.parametrize("n", [0, -1, 1.5, "many", True])
def test_a_wrong_n_is_refused_before_decoding(n):
    model = Told()
    with pytest.raises(ValueError, match=rf"n={n!r}: the number of completions.*whole number >= 1.*n=8"):
        evaluate(model, gen_kwargs={"n": n})
    assert not model.asked


@pytest.mark.parametrize("repeats", [0, -2, "three"])
def test_wrong_repeats_are_refused(tmp_path, repeats):
    with pytest.raises(ValueError, match=r"repeats=.*whole number >= 1, such as repeats: 8"):
        evaluate(Told(), "own", own_yaml(tmp_path, repeats=repeats))


def test_padding_clones_are_left_out():
    """Guards best-of-N under several processes with models that do not mark padding."""
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    task = manager.load(["pocket_sums"])["tasks"]["pocket_sums"]
    task.set_config("generation_kwargs", {"n": 2}, update=True)
    task.build_all_requests(limit=1)
    answer = f" so {task.eval_docs[0]['answer']}"
    values = task.process_results(task.eval_docs[0], [["x", "y", answer, answer]])
    assert values["acc"] == 0.0 and values["pass@2"] == 0.0


def test_more_metrics_of_the_users_own_stay(tmp_path):
    own = [{"metric": "mine", "aggregation": "mean", "higher_is_better": True}]
    manager = TaskManager(include_path=[str(TASKS), str(own_yaml(tmp_path, metric_list=own))], include_defaults=False)
    task = manager.load(["own"])["tasks"]["own"]
    task.build_all_requests(limit=1)
    assert set(task.aggregation()) == {"mine", *(m["metric"] for m in metric_list(1))}


def test_predict_only(tmp_path):
    out = evaluate(Told(), gen_kwargs="n=2", predict_only=True)
    assert [len(sample["resps"][0]) for sample in out["samples"]["pocket_sums"]] == [2, 2, 2]
    assert not rows(out) & {"acc", "self_reward", "pass@2"}


def test_samples_and_several_tasks(tmp_path):
    model = Told()
    include = own_yaml(tmp_path, repeats=3)
    out = evaluate(model, ["pocket_sums", "own"], include, None, samples={"pocket_sums": [2, 7], "own": [1]})
    assert [sample["doc_id"] for sample in out["samples"]["pocket_sums"]] == [2, 7]
    assert out["n-samples"]["pocket_sums"]["effective"] == 2
    assert len(model.asked) == 2 + 3
    assert "bon_acc" in rows(out, "own") and "bon_acc" not in rows(out)


def test_the_suite(tmp_path):
    """The group holds the three tasks, each with its own data, and the plain mean of their accuracies."""
    choices = {"Correct Answer": "a", **{f"Incorrect Answer {i}": f"b{i}" for i in (1, 2, 3)}}
    (tmp_path / "gpqa_diamond.jsonl").write_text(json.dumps({"Question": "?", **choices}))
    (tmp_path / "math500.jsonl").write_text('{"problem": "1+1?", "answer": "2"}')
    metadata = {"gpqa_folder": str(tmp_path), "math500_file": str(tmp_path / "math500.jsonl")}
    loaded = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata).load(["power_suite"])
    assert set(loaded["tasks"]) == {"math500", "power_humaneval", "power_gpqa_diamond"}
    (aggregate,) = loaded["groups"]["power_suite"].aggregate_metric_list
    assert (aggregate.metric, aggregate.weight_by_size) == ("acc", False)


def test_every_task_of_ours_is_of_this_class():
    """Guards against a task that declares metrics of its own, or forgets to take n."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for file in TASKS.glob("*/*.yaml"):
        config = load_yaml(file)
        if "group" not in config:
            assert config["class"] is PowerTask, file
            assert not {"metric_list", "filter_list", "repeats"} & set(config), f"{file}: declared in one place only"


def test_the_command_line(tmp_path, monkeypatch, capsys, caplog):
    """The stock command: results JSON and samples JSONL on disk, as other tools read them."""
    from lm_eval.__main__ import cli_evaluate

    original = TaskManager.__init__  # lm-eval's own tasks take ten seconds to index
    monkeypatch.setattr(TaskManager, "__init__", lambda self, **o: original(self, **{**o, "include_defaults": False}))
    command = ["lm_eval", "run", "--model", "power-hf", "--tasks", "pocket_sums", "--include_path", str(TASKS)]
    command += ["--model_args", f"pretrained={POCKET},dtype=float32,method=standard", "--device", "cpu"]
    command += ["--gen_kwargs", "n=4", "--limit", "3", "--batch_size", "8", "--log_samples"]
    monkeypatch.setattr(sys, "argv", [*command, "--output_path", str(tmp_path / "out")])
    cli_evaluate()
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("bon_acc", "maj_acc", "pass@4", "cov_acc_self_reward"))
    assert not [r for r in caplog.records if "aggregation" in r.getMessage()]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    table = json.loads(results.read_text())
    assert table["configs"]["pocket_sums"]["repeats"] == 4 and table["config"]["gen_kwargs"] == {"n": 4}
    (samples,) = (tmp_path / "out").rglob("samples_pocket_sums_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [len(line["doc"]["lm_power"]["answer"]) for line in lines] == [4, 4, 4]
    for line in lines:
        assert line["acc"] == sum(line["doc"]["lm_power"]["correct"]) / 4
        assert line["bon_self_reward"] == max(line["doc"]["lm_power"]["self_reward"])
        assert [f"pass@{k}" in line for k in ks(4)] == [True] * 3
