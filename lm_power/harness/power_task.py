"""The task class of our tasks: N completions per problem by a stock flag, and one declaration of the metrics."""

from __future__ import annotations

import copy
import logging
from typing import Any

from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

from lm_power.config import OptionError
from lm_power.harness.metrics import metric_list, self_reward

logger = logging.getLogger(__name__)


class PowerTask(ConfigurableTask):
    """A YAML task (`class: !function lm_power.harness.power_task.PowerTask`) that can be repeated.

    N, the number of completions per problem, is 1 unless the YAML says `repeats: N` or the command line `--gen_kwargs
    n=N`, which wins. The model never sees `n`. The YAML needs neither a `metric_list`, which is `metrics.metric_list`,
    nor a `filter_list`, which is an empty pipeline that passes all completions on (lm-eval's default keeps only the
    first).

    Raises:
        OptionError: N is not a whole number of at least 1.
    """

    def __init__(
        self,
        data_dir: Any = None,
        cache_dir: Any = None,
        download_mode: Any = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        settings = {name: value for name, value in (config or {}).items() if name != "class"}
        repeats = completions_per_problem("repeats", settings.get("repeats", 1), "repeats: 8")
        settings |= {"repeats": repeats}
        settings["metric_list"] = settings.get("metric_list") or metric_list(repeats)
        settings.setdefault("filter_list", [{"name": "none", "filter": []}])
        super().__init__(data_dir, cache_dir, download_mode, settings)

    def set_config(self, key: str, value: Any, update: bool = False) -> None:
        """lm-eval's method, which passes `--gen_kwargs`; their `n` is checked here, before anything is decoded."""
        super().set_config(key, value, update)
        self._take_n()

    def build_all_requests(self, **options: Any) -> None:
        """lm-eval's method, for N completions per problem."""
        self._take_n()
        self._declare_metrics()
        super().build_all_requests(**options)
        for instance in self._instances:  # --cache_requests restores those of an earlier run, whose options may differ
            instance.repeats = self.config.repeats
            if self.OUTPUT_TYPE == "generate_until":
                instance.arguments = (instance.arguments[0], copy.deepcopy(self.config.generation_kwargs))

    def apply_filters(self) -> Any:
        """lm-eval's method, after a notice if all N completions of another model are copies."""
        n = self.config.repeats
        if n > 1 and self._instances and all(_are_copies(request.resps[:n]) for request in self._instances):
            logger.warning(
                "%s: the %d completions of every problem are the same text, so N > 1 adds nothing. Let the model "
                "sample (do_sample=true,temperature=0.6). API models send one seed with every request, except with "
                """--gen_kwargs '{"n": %d, "do_sample": true, "temperature": 0.6, "seed": null}'.""",
                self.config.task, n, n,
            )  # fmt: skip
        return super().apply_filters()

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        """lm-eval's method, without the completions beyond N.

        With several processes lm-eval fills up a rank that has fewer requests with clones of its last one. Their
        completions come after the document's own, and would give it more chances than the others.
        """
        n = self.config.repeats
        own = [result[:n] if isinstance(result, list) else result for result in results]
        metrics: dict[str, float] = super().process_results(doc, own)
        return metrics

    def _take_n(self) -> None:
        generation = self.config.generation_kwargs or {}
        if "n" in generation:
            self.config.repeats = completions_per_problem("n", generation.pop("n"), "--gen_kwargs n=8")

    def _declare_metrics(self) -> None:
        """Declare the metrics for N completions, unless --predict_only has replaced all metrics by "bypass"."""
        if "bypass" in self._metric_fn_list:
            return
        for entry in metric_list(self.config.repeats):
            name = entry["metric"]
            if name not in self._aggregation_list:
                self.config.metric_list.append(entry)
                self._metric_fn_list[name] = None
                self._aggregation_list[name] = mean
                self._higher_is_better[name] = entry["higher_is_better"]


def _are_copies(completions: list[str]) -> bool:
    """Whether a model without log-probabilities gave the same text each time; our samplers may do so by chance."""
    return len(set(completions)) == 1 and self_reward(completions[0]) is None


def completions_per_problem(name: str, value: Any, example: str) -> int:
    """`value` as the number of completions per problem; the messages call it `name`.

    Raises:
        OptionError: not a whole number of at least 1.
    """
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < 1:
        raise OptionError(
            f"{name}={value!r}: the number of completions per problem must be a whole number >= 1, such as {example}"
        )
    return int(value)
