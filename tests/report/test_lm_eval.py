"""Real evaluations of the pocket model: the report's numbers are lm-eval's, and its road to the Hub stays open."""

import os
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from lm_power.report.matching import match
from lm_power.report.reading import read_runs
from lm_power.report.summary import summarise

REPOSITORY = Path(__file__).resolve().parents[2]
POCKET = str(REPOSITORY / "examples" / "pocket" / "model")
N = 3
LIMIT = 6

SAME = {
    "acc": "accuracy",
    "self_reward": "self_reward",
    "bon_acc": "bon_accuracy",
    "bon_self_reward": "bon_self_reward",
    "maj_acc": "majority",
    "oracle": "any_correct",
    "cov_acc_self_reward": "covariance",
    "tokens": "tokens",
    "tokens_decoded": "tokens_decoded",
    "acceptance_rate": "acceptance_rate",
    "change_rate": "change_rate",
    "log_z": "log_z",
    "kl_from_proposal": "kl_from_proposal",
}
"""lm-eval's metric → the report's."""


def evaluate(folder, model, tracker=None, **arguments):
    """What `lm_eval --output_path FOLDER --log_samples` does."""
    tracker = tracker or EvaluationTracker(output_path=str(folder))
    tasks = TaskManager(include_path=str(REPOSITORY / "tasks" / "pocket_sums"), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model, arguments, ["pocket_sums"], task_manager=tasks, gen_kwargs={"n": N}, limit=LIMIT, batch_size=32,
        device="cpu", bootstrap_iters=1, log_samples=True, evaluation_tracker=tracker,
    )  # fmt: skip
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples(task_name="pocket_sums", samples=samples["pocket_sums"])
    return results["results"]["pocket_sums"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Three ways of sampling, and plain hf: folder and lm-eval's results of each."""
    home = tmp_path_factory.mktemp("evaluations")
    commands = {
        "standard": ("power-hf", {"method": "standard"}),
        "temperature": ("power-hf", {"method": "temperature", "proposal_temperature": 0.5}),
        "power": ("power-hf", {"method": "power", "alpha": 4, "mcmc_steps": 2, "block_size": 8}),
        "smc": ("power-hf", {"method": "smc", "alpha": 4, "particles": 4, "resample_every": 4}),
        "hf": ("hf", {}),
    }
    common = {"pretrained": POCKET, "dtype": "float32"}
    return home, {name: evaluate(home / name, model, **common, **own) for name, (model, own) in commands.items()}


def check(run, theirs):
    summary = summarise(run)
    for metric, name in SAME.items():
        estimate = getattr(summary, name)
        if f"{metric},none" in theirs:
            assert estimate.value == pytest.approx(theirs[f"{metric},none"], abs=1e-12), metric
            assert estimate.error == pytest.approx(theirs[f"{metric}_stderr,none"], abs=1e-12), metric
            assert run.metrics[metric] == theirs[f"{metric},none"]
        else:
            assert estimate is None, metric


def test_every_number_is_lm_evals(evaluated):
    """Value and standard error to 1e-12, and a gap exactly where lm-eval has no row.

    This task's answers are equal as strings; with others a majority may differ, as `majority_matrix` says.
    """
    home, results = evaluated
    (comparison,) = match(read_runs([f"{name}={home / name}" for name in results]))
    assert comparison.size == LIMIT
    for run in comparison.runs:
        check(run, results[run.label])
    assert comparison.runs[2].options["block_size"] == 8
    assert [run.seconds is not None for run in comparison.runs] == [True] * 5


def test_default_labels_of_real_runs(evaluated):
    home, results = evaluated
    (comparison,) = match(read_runs([str(home / name) for name in results]))
    assert [run.label for run in comparison.runs] == [
        "pocket/model, standard",
        "pocket/model, temperature=0.5",
        "pocket/model, power, alpha=4",
        "pocket/model, smc, alpha=4",
        "pocket/model, greedy",
    ]


def test_a_run_and_its_own_store_hold_the_same_completions(tmp_path):
    evaluate(tmp_path / "out", "power-hf", pretrained=POCKET, dtype="float32", method="standard",
             completions=str(tmp_path / "store"))  # fmt: skip
    (comparison,) = match(read_runs([f"run={tmp_path}/out", f"store={tmp_path}/store"]))
    run, store = comparison.runs
    assert [[a.text for a in p.completions] for p in run.problems] == [
        [a.text for a in p.completions] for p in store.problems
    ]
    for mine, theirs in zip(run.problems, store.problems, strict=True):
        for a, b in zip(mine.completions, theirs.completions, strict=True):
            assert a.sum_log_prob == pytest.approx(b.sum_log_prob)
            assert (a.tokens, a.tokens_decoded, a.steps) == (b.tokens, b.tokens_decoded, b.steps)


class Hub:
    """Remembers what is uploaded, in place of huggingface_hub's client."""

    def __init__(self, token=None):
        self.uploaded = []

    def create_repo(self, repo_id, **options):
        self.uploaded.append(("repository", repo_id))

    def upload_file(self, path_or_fileobj, path_in_repo, repo_id, **options):
        assert Path(path_or_fileobj).exists()
        self.uploaded.append(("file", Path(path_in_repo).name))

    def upload_folder(self, folder_path, path_in_repo, **options):
        self.uploaded.append(("folder", *sorted(path.name.split("_2")[0] for path in Path(folder_path).iterdir())))


def test_lm_evals_own_route_to_the_hub(tmp_path, monkeypatch):
    """--hf_hub_log_args makes this tracker: results and samples of power-hf go the way of any model's."""
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    tracker = EvaluationTracker(
        output_path=str(tmp_path), hub_results_org="user", push_results_to_hub=True, push_samples_to_hub=True, token="t"
    )
    evaluate(tmp_path, "power-hf", tracker, pretrained=POCKET, dtype="float32", method="standard")
    assert tracker.api.uploaded == [
        ("repository", "user/lm-eval-results-private"),
        ("file", next(tmp_path.rglob("results_*.json")).name),
        ("repository", "user/lm-eval-results-private"),
        ("folder", "results", "samples_pocket_sums"),
    ]


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Five documents for two ranks: lm-eval's padding stays out, and the numbers are lm-eval's."""
    subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m", "lm_eval",
            "--model", "power-hf", "--model_args", f"pretrained={POCKET},dtype=float32,mcmc_steps=2,block_size=8",
            "--tasks", "pocket_sums", "--device", "cpu", "--batch_size", "8", "--limit", "5", "--gen_kwargs", "n=3",
            "--output_path", str(tmp_path), "--log_samples",
        ],
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    (run,) = read_runs([str(tmp_path)])
    assert [p.doc_id for p in run.problems] == [0, 1, 2, 3, 4]
    assert {len(p.completions) for p in run.problems} == {3}
    check(run, {f"{name},none": value for name, value in run.metrics.items()})
