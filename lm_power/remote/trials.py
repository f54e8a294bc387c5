"""What an engine must do for power sampling, tried out by a few short queries: each lack is told with its cure."""

from __future__ import annotations

import abc
import functools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lm_power.config import OptionError
from lm_power.remote.queries import Answer, ServerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PROBE = "The capital of France is a city that"
PROBE_IDS = (5, 6, 7, 8)  # where there is no tokenizer: any ids that a model has
_SHARPER = 4.0  # inverse temperature of the second probe
_RARELY = 1e-4  # draws off a list that are less likely than this are taken for a fault
_ROUND_TRIP = 12  # tokens whose text is compared
_OTHER = "use another server; examples/servers/README.md says which have been tried"
RAW = (
    "power sampling needs the model's own: start vLLM with --logprobs-mode raw_logprobs (its default), SGLang with "
    "SGLANG_RETURN_ORIGINAL_LOGPROB=1 in its environment"
)


class Unsuitable(OptionError, ServerError):
    """An engine lacks what power sampling needs.

    Args:
        name: of the engine, as "option=value".
        lack: what it lacks, or does.
        cure: what to set, or how to start it.
    """

    def __init__(self, name: str, lack: str, cure: str) -> None:
        super().__init__(f"{name}: {lack}; {cure}")
        self.lack, self.cure = lack, cure


class Trial(abc.ABC):
    """An engine that is tried out.

    Args:
        name: what its user named it by, as "option=value".
        top: K, tokens that are to be on a list.
        probe: a prompt, token ids.
        tokenizer: the model's, whose texts are compared with the engine's; None where there is nothing to compare.
    """

    def __init__(
        self, name: str, top: int, probe: Sequence[int], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        self.name, self.top, self.probe, self.tokenizer = name, top, probe, tokenizer

    @abc.abstractmethod
    def draw(
        self, tokens: Sequence[int], n: int, temperature: float, stop_token_ids: Sequence[int] = ()
    ) -> tuple[Answer, str]:
        """At most `n` tokens, and their text as the engine has it. Raises `Unsuitable`."""

    def unsuitable(self, lack: str, cure: str) -> Unsuitable:
        """The error that says what is wrong with this engine."""
        return Unsuitable(self.name, lack, cure)

    @functools.cached_property
    def flat(self) -> Answer:
        """One token at temperature 1."""
        return self._one(1.0)

    @functools.cached_property
    def sharp(self) -> Answer:
        """One token at a low temperature."""
        return self._one(1 / _SHARPER)

    def _one(self, temperature: float) -> Answer:
        answer, _ = self.draw(self.probe, 1, temperature)
        if len(answer.tokens) != 1:
            raise self.unsuitable(f"draws {len(answer.tokens)} tokens where max_tokens=1 asks for one", _OTHER)
        return answer


def probe_of(tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """A prompt to try an engine with, token ids."""
    return list(PROBE_IDS) if tokenizer is None else list(tokenizer.encode(PROBE))


def try_engine(trial: Trial) -> None:
    """Try everything that the decoder relies on. Raises `Unsuitable`."""
    for check in CHECKS.values():
        check(trial)


def _ids(trial: Trial) -> str:
    """Tokens go in and come out as ids, with log-probs of the likeliest."""
    return f"prompts are taken as token ids; token {int(trial.flat.tokens[0])} came back as one"


def _raw(trial: Trial) -> str:
    """Log-probs must not depend on the temperature; other requests in a batch may move them a little."""
    answers = (trial.flat, trial.sharp)
    before, after = (dict(zip(a.lists.ids[0].tolist(), a.lists.log_p[0].tolist(), strict=True)) for a in answers)
    common = [token for token in before if token >= 0 and token in after]
    if len(common) < 2:
        raise trial.unsuitable("lists other tokens when it is asked again, so that its log-probs mean nothing", _OTHER)
    raw, seen = (np.array([listed[token] for token in common]) for listed in (before, after))
    processed = _SHARPER * raw - np.logaddexp.reduce(_SHARPER * raw)
    off, off_if_processed = (float(np.abs(seen - expected).max()) for expected in (raw, processed))
    if off > max(0.02, off_if_processed):
        raise trial.unsuitable("returns log-probs that follow the temperature (processed_logprobs)", RAW)
    if off > 0.5:
        raise trial.unsuitable(
            f"returns log-probs that differ by {off:.2g} nats when it is asked again, so that they mean nothing", _OTHER
        )
    return f"the model's own, whatever the temperature: asked again, they differ by {off:.1g} nats"


def _lists(trial: Trial) -> str:
    """K tokens are listed, unless the model has fewer."""
    count = max(map(_length, (trial.flat, trial.sharp)))
    mass = float(np.exp(trial.flat.lists.log_p[0]).sum())
    if count < trial.top and mass < 0.999:
        raise trial.unsuitable(
            f"lists {count} tokens of the {trial.top} that were asked for", f"set top_logprobs={count}"
        )
    if mass > 1.001:
        raise trial.unsuitable(f"lists probabilities that sum to {mass:.4f}: no log-probs of tokens do", _OTHER)
    return f"{min(count, trial.top)} of {trial.top} tokens, which have {mass:.3g} of the next token's probability"


def _length(answer: Answer) -> int:
    """Tokens on an answer's first list; the drawn one, which comes along where it is on no list, is last then."""
    listed = answer.lists.ids[0][answer.lists.ids[0] >= 0]
    return len(listed) - int(listed[-1] == answer.tokens[0])


def _draws(trial: Trial) -> str:
    """At a low temperature a draw is on its list, unless much lies off it; its own log-prob is the list's."""
    token, lists = int(trial.sharp.tokens[0]), trial.sharp.lists
    place = np.flatnonzero(lists.ids[0] == token)
    if len(place):
        listed, own = float(lists.log_p[0, place[0]]), float(trial.sharp.log_p[0])
        if abs(listed - own) > 1e-3:
            raise trial.unsuitable(f"returns two log-probs for the token it drew, {own:.4f} and {listed:.4f}", RAW)
        return f"at temperature {1 / _SHARPER:g} it drew a token of its list, with the list's log-prob"
    # All that is off the list has probability `rest`, and no token there has more than the list's last.
    p = np.exp(lists.log_p[0][lists.ids[0] >= 0])
    rest = max(0.0, 1 - float(p.sum()))
    if rest * p[-1] ** (_SHARPER - 1) > _RARELY * (p**_SHARPER).sum():
        return "it drew a token off its list, where much of the probability lies"
    raise trial.unsuitable(
        f"drew token {token} at temperature {1 / _SHARPER:g}, which is not among the {trial.top} likeliest: it does "
        "not draw from the log-probs that it returns",
        "see whether something else sets its temperature",
    )


def _stop(trial: Trial) -> str:
    """The token at which it stops must be in the answer: EOS is part of a completion."""
    likely = [token for token in trial.flat.lists.ids[0].tolist() if token >= 0]
    answer, _ = trial.draw(trial.probe, 3, 1 / _SHARPER, stop_token_ids=likely)
    if not len(answer.tokens):
        raise trial.unsuitable(
            "leaves out the token at which it stops (stop_token_ids), so that EOS has no log-prob", _OTHER
        )
    if len(answer.tokens) == 1 or int(answer.tokens[0]) not in likely:
        return "the token at which it stops is part of the answer"
    logger.warning(
        "%s: takes no notice of stop_token_ids, so that it goes on after EOS; what it draws there is dropped, at the "
        "price of decoding it", trial.name,
    )  # fmt: skip
    return "it goes on after EOS, and decodes what is dropped then"


def _texts(trial: Trial) -> str:
    """Both sides must spell the same tokens alike; blanks at the ends and halves of characters do not count."""
    if trial.tokenizer is None:
        return "not compared: no tokenizer is given"
    answer, theirs = trial.draw(trial.probe, _ROUND_TRIP, 1.0)
    ours = str(trial.tokenizer.decode(answer.tokens.tolist(), clean_up_tokenization_spaces=False))
    name = trial.tokenizer.name_or_path or "…"
    if _plain(ours) != _plain(theirs):
        raise trial.unsuitable(
            f"spells the tokens it drew {theirs[:40]!r}, and tokenizer={name} {ours[:40]!r}",
            "set tokenizer= to that of the model that is served",
        )
    return f"{len(answer.tokens)} tokens are spelt as tokenizer={name} spells them"


def _plain(text: str) -> str:
    return "".join(text.replace("\ufffd", "").split())


CHECKS: dict[str, Callable[[Trial], str]] = {
    "ids": _ids, "log-probs": _raw, "lists": _lists, "draws": _draws, "stop": _stop, "texts": _texts,
}  # fmt: skip
"""What is tried, in order → its trial, which says what it saw or raises `Unsuitable`. Five queries in all."""
