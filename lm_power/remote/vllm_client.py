"""Queries to a vLLM engine in this process. vLLM is imported when the first one is made, not before."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Container, Iterator, Sequence
from typing import Any

import numpy as np

from lm_power.engine.out_of_memory import out_of_memory
from lm_power.errors import one_line
from lm_power.remote.client import NEUTRAL
from lm_power.remote.queries import Answer, Query, ServerError
from lm_power.remote.topk import TopLists


class EngineClient:
    """A `Client` on the engine of a vLLM `LLM`.

    Keys and values are found by its prefix cache: a query names all of its tokens.

    Args:
        llm: the `LLM`.
        top: K, tokens on a list.
        lora_request: adapter that all queries use; None for none.
    """

    def __init__(self, llm: Any, top: int = 20, lora_request: Any = None) -> None:
        self.top, self.eos_ids = top, list[int]()
        self._engine, self._lora = llm.llm_engine, lora_request
        self._names = itertools.count()  # a name is used once, so that nothing given up is taken for its successor
        self._numbers: dict[str, int] = {}  # name of a request → number of the query
        self._kept: dict[int, Any] = {}  # by number, what has come and nobody has polled for yet

    def add(self, number: int, query: Query) -> None:
        """Hand a query to the engine, which begins with it at the next `poll`. Raises `ServerError` if it refuses."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            temperature=query.temperature,
            seed=query.seed,
            max_tokens=query.max_tokens,
            logprobs=self.top,
            flat_logprobs=True,
            # EOS ends a completion by its id alone, and its token stays in the answer.
            stop_token_ids=self.eos_ids,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **NEUTRAL,
        )
        name = f"lm-power-{next(self._names)}"
        with _told():
            self._engine.add_request(name, tokens_input(list(query.tokens)), parameters, lora_request=self._lora)
        self._numbers[name] = number

    def poll(self, wanted: Container[int]) -> list[tuple[int, Answer]]:
        """Let the engine work until a wanted query has been answered.

        Raises:
            ServerError: the engine has died, or has given a wanted query up.
        """
        while not (ready := [number for number in self._kept if number in wanted]):
            if not self._engine.has_unfinished_requests():
                raise ServerError("vLLM has lost requests: its engine is idle, and answers are missing")
            with _told():
                outputs = self._engine.step()
            for output in outputs:
                number = self._numbers.get(output.request_id)
                if number is not None and output.finished:
                    del self._numbers[output.request_id]
                    self._kept[number] = output.outputs[0]
        return [(number, answer_of(self._kept.pop(number), self.top)) for number in ready]

    def abort(self, numbers: Sequence[int]) -> None:
        """Have the engine drop queries."""
        unwanted = set(numbers)
        for number in unwanted:
            self._kept.pop(number, None)
        names = [name for name, number in self._numbers.items() if number in unwanted]
        for name in names:
            del self._numbers[name]
        if names:
            self._engine.abort_request(names)

    def close(self) -> None:
        """Drop all queries. The engine lives on: it belongs to whoever made it."""
        self.abort([*self._numbers.values(), *self._kept])


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Raise `ServerError` for what vLLM raises, which has no base class of its own; its log tells more."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error) is not None:
            raise  # the sampler goes on with fewer rows
        raise ServerError(
            f"vLLM's engine has failed ({type(error).__name__}: {one_line(error, 200)}); what is stored stays: "
            "start the same command again"
        ) from error


def answer_of(completion: Any, top: int) -> Answer:
    """The tokens, log-probs and lists of one of vLLM's `CompletionOutput`s with `flat_logprobs`.

    For each token there are 1 + K entries: its own, then those of the K likeliest, whether it is among them or not. So
    a list does not depend on what was drawn.

    Raises:
        ServerError: the engine gave the query up, or its numbers are not finite.
    """
    if completion.finish_reason not in ("stop", "length"):
        raise ServerError(f"vLLM has given a query up (finish_reason {completion.finish_reason!r}); its log says why")
    drawn, flat = len(completion.token_ids), completion.logprobs
    ids = np.array(flat.token_ids, np.int64).reshape(drawn, -1)
    log_p = np.array(flat.logprobs, np.float64).reshape(drawn, -1)
    if ids.shape[1:] != (1 + top,) and drawn:
        raise ServerError(f"vLLM lists {ids.shape[1] - 1} tokens with each, and {top} were asked for")
    if not np.isfinite(log_p).all():
        raise ServerError(
            "the model has log-probs that are not finite (NaN or inf): set dtype= to one of larger range, such as "
            "bfloat16"
        )
    return Answer(ids[:, 0], log_p[:, 0], TopLists.ordered(ids[:, 1:], log_p[:, 1:]))
