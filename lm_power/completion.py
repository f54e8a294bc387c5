"""The result of sampling: a text that carries how it was drawn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Stats:
    """What one completion cost.

    Attributes:
        proposals: Metropolis-Hastings proposals made.
        accepted: proposals accepted; one that equals the current completion counts as accepted.
        changed: proposals that led to another completion.
        tokens_decoded: tokens decoded for its steps, rejected ones included.
        tokens_reused: tokens of earlier decodes that proposals kept (the prefixes before their cuts).
        seconds: wall-clock time from its start on the engine to its end; the rows beside it shared that time.
        rejected_early: proposals that were rejected before they were terminal; how many more tokens they would have
            decoded is not known.
        tokens_coupled: those of `tokens_reused` that coupled resume kept after the cuts.
        tokens_prefetched: those of `tokens_decoded` that idle rows decoded ahead of time.
        tokens_dropped: tokens decoded in vain, ahead of time or because memory ran out; not counted in
            `tokens_decoded`. This and `tokens_prefetched` depend on what else was in the batch.
        diagnostics: the method's own numbers by name: `log_z` (nats), `ess`, `swap_rate_1`, `tries` …
    """

    proposals: int = 0
    accepted: int = 0
    tokens_decoded: int = 0
    tokens_reused: int = 0
    seconds: float = 0.0
    rejected_early: int = 0
    tokens_coupled: int = 0
    tokens_prefetched: int = 0
    tokens_dropped: int = 0
    changed: int = 0
    diagnostics: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def acceptance_rate(self) -> float | None:
        """Share of the proposals that were accepted; None if there were no proposals."""
        return self.accepted / self.proposals if self.proposals else None

    @property
    def change_rate(self) -> float | None:
        """Share of the proposals that led to another completion; None if there were no proposals."""
        return self.changed / self.proposals if self.proposals else None


@dataclasses.dataclass(frozen=True)
class Steps:
    """The Metropolis-Hastings steps of one completion, in order; five columns of equal length.

    Attributes:
        stage: stage k = 1, 2, … of the schedule.
        cut: the cut i: how many tokens of the current completion were kept.
        length: the completion's length n before the step, tokens.
        accepted: 1 where the proposal was accepted, else 0.
        changed: 1 where the step led to another completion, else 0.
    """

    stage: tuple[int, ...] = ()
    cut: tuple[int, ...] = ()
    length: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    changed: tuple[int, ...] = ()

    def record(self) -> dict[str, list[int]]:
        """The columns as JSON."""
        return {name: list(column) for name, column in vars(self).items()}

    @classmethod
    def from_record(cls, record: dict[str, Sequence[int]]) -> Steps:
        """The steps that `record` was made from; raises TypeError for an unknown column."""
        return cls(**{name: tuple(column) for name, column in record.items()})


class Completion(str):
    """One completion of one prompt: a `str`, which every consumer of texts accepts.

    As a string it passes through lm-eval's caches, filters and gathers, and takes its record with it.

    Attributes:
        token_ids: the tokens drawn, EOS or the tokens that complete the stop string included.
        log_probs: raw log p(x_t | prompt, x_<t) under the model, nats, one per token.
        finish_reason: "eos", "stop" or "length"; None for padding.
        stats: what it cost.
        steps: its Metropolis-Hastings steps; empty columns if there were none.
        companions: completions of other distributions drawn along the way, such as those of tempering's lower rungs.
        is_padding: whether it is an empty stand-in that fills an uneven data-parallel batch, to be left out of metrics.

    >>> c = Completion("4", token_ids=[7, 1], log_probs=[-0.5, -0.1], finish_reason="eos")
    >>> c.text, c == "4", round(c.self_reward, 3)
    ('4', True, -0.3)
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: str | None
    stats: Stats
    steps: Steps
    companions: tuple[Completion, ...]
    is_padding: bool
    _drawn_text: str | None = None  # where it is another

    def __new__(
        cls,
        text: str,
        token_ids: Sequence[int] = (),
        log_probs: Sequence[float] = (),
        finish_reason: str | None = None,
        stats: Stats | None = None,
        steps: Steps | None = None,
        companions: Sequence[Completion] = (),
        is_padding: bool = False,
    ) -> Completion:
        """Make a completion; the arguments are the attributes."""
        self = super().__new__(cls, text)
        self.token_ids = tuple(token_ids)
        self.log_probs = tuple(log_probs)
        self.finish_reason = finish_reason
        self.stats = stats if stats is not None else Stats()
        self.steps = steps if steps is not None else Steps()
        self.companions = tuple(companions)
        self.is_padding = is_padding
        return self

    @property
    def text(self) -> str:
        """The text as a plain `str`: EOS left out, cut before the stop string."""
        return str.__str__(self)

    @property
    def sum_log_prob(self) -> float:
        """Log p(x | prompt), nats."""
        return math.fsum(self.log_probs)

    @property
    def self_reward(self) -> float:
        """`(1/|x|) Σ_t log p(x_t | x_<t)`, nats per token, EOS included (Tomihari & Sato 2026)."""
        return self.sum_log_prob / len(self.log_probs) if self.log_probs else math.nan

    @property
    def drawn_text(self) -> str:
        """The text as it was drawn, where `with_text` has put another in its place."""
        return self._drawn_text or self.text

    def with_text(self, text: str) -> Completion:
        """This completion with another text, such as a part of its own; `drawn_text` stays the same."""
        other = Completion(text)
        vars(other).update(vars(self))
        if text != self.drawn_text:
            other._drawn_text = self.drawn_text
        return other

    def record(self) -> dict[str, Any]:
        """The completion's own fields of a store line."""
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "log_probs": list(self.log_probs),
            "sum_log_prob": self.sum_log_prob,
            "self_reward": self.self_reward,
            "finish_reason": self.finish_reason,
            "stats": dataclasses.asdict(self.stats),
            "steps": self.steps.record(),
            **({"companions": [companion.record() for companion in self.companions]} if self.companions else {}),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Completion:
        """The completion that `record` was written from; raises KeyError for a missing field."""
        return cls(
            record["text"],
            token_ids=record["token_ids"],
            log_probs=record["log_probs"],
            finish_reason=record["finish_reason"],
            stats=Stats(**record["stats"]),
            steps=Steps.from_record(record["steps"]),
            companions=[cls.from_record(companion) for companion in record.get("companions", ())],
        )


def padding_completion() -> Completion:
    """The empty, marked completion handed back for a data-parallel padding request."""
    return Completion("", is_padding=True)
