"""A model's results as the `model-index` block of its card on the Hugging Face Hub.

    lm-power report runs/math7b --output report --model-index

writes report/model-index/MODEL.yml for every model of the report. Put the block into the front matter of the model's
or adapter's README.md, or let huggingface_hub merge it in (this one opens a pull request):

    import yaml, huggingface_hub
    block = yaml.safe_load(open("report/model-index/MODEL.yml"))
    huggingface_hub.metadata_update("USER/MODEL", block, create_pr=True)

lm-eval's own route uploads the raw results and samples to a data set of yours, and works with `power-hf` as with
any model; it needs a token that may write:

    lm_eval --model power-hf … --output_path runs --log_samples \
        --hf_hub_log_args hub_results_org=USER,push_results_to_hub=True,push_samples_to_hub=True,token=TOKEN
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from lm_power.report.rendering import slug
from lm_power.report.runs import Comparison, Dataset, Run
from lm_power.report.summary import summarise
from lm_power.stats.means import Estimate

_CHECKPOINT = ("pretrained", "model", "revision", "peft", "randomize_weights")
"""Arguments that make a model another one, with a card of its own."""


def write_model_indexes(comparisons: Sequence[Comparison], folder: Path) -> list[Path]:
    """Write one YAML file for each model that has an accuracy into an existing folder; their paths."""
    results: dict[tuple[object, ...], list[EvalResult]] = {}
    names: dict[tuple[object, ...], str] = {}
    for comparison in comparisons:
        for run in comparison.runs:
            checkpoint = tuple(run.settings.get(name) for name in _CHECKPOINT)
            names.setdefault(checkpoint, run.model)
            results.setdefault(checkpoint, []).extend(eval_results(comparison, run))
    paths: list[Path] = []
    for checkpoint, found in results.items():
        if found:
            path = folder / f"{slug(names[checkpoint])}.yml"
            path = path if path not in paths else path.with_stem(f"{path.stem}-{len(paths) + 1}")
            path.write_text(model_index(names[checkpoint], found), encoding="utf-8")
            paths.append(path)
    return paths


def model_index(model: str, results: Sequence[EvalResult]) -> str:
    """The `model-index` block, YAML, of a model and its results."""
    return ModelCardData(model_name=model, eval_results=list(results)).to_yaml() + "\n"


def eval_results(comparison: Comparison, run: Run) -> list[EvalResult]:
    """A run's accuracies over all completions and for self-reward best of N, as far as it has them.

    Their `args` say how completions were drawn, on how many problems of how many, and the standard error.
    """
    summary = summarise(run)
    sampling = run.label.removeprefix(f"{run.model}, ")
    named = {
        f"accuracy ({sampling})": summary.accuracy,
        f"accuracy, self-reward best of {run.n} ({sampling})": summary.bon_accuracy,
    }
    return [_result(comparison, run, name, estimate) for name, estimate in named.items() if estimate is not None]


def _result(comparison: Comparison, run: Run, name: str, estimate: Estimate) -> EvalResult:
    dataset = run.dataset or Dataset()
    return EvalResult(
        task_type="text-generation",
        # The Hub wants an id of a data set; tasks that bring their data along have only their own name.
        dataset_type=dataset.path or comparison.task,
        dataset_name=comparison.name,
        dataset_config=dataset.config,
        dataset_split=dataset.split,
        metric_type="accuracy",
        metric_name=name,
        metric_value=estimate.value,
        metric_args={
            "method": run.method,
            **run.options,
            "completions": run.n,
            "problems": comparison.size,
            "problems_in_all": dataset.size,
            "stderr": estimate.error,
            "task_version": run.task_version,
        },
    )
