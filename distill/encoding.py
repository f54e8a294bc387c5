"""Turns what a file says about a completion into the token ids that the student learns from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_power.detokenize import Detokenizer
from lm_power.distill.sources import Drawn, TeacherDataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 30  # characters of a text in a message


@dataclasses.dataclass(frozen=True)
class Sample:
    """One (prompt, completion) to learn from.

    Attributes:
        prompt: the text that the model was asked to continue.
        prompt_ids: its tokens, at least one.
        token_ids: the completion's tokens, at least one; the last one is EOS if the completion ended by it.
        finish_reason: "eos", "stop" or "length"; None if the file does not say.
        self_reward: nats per token; None if the file does not say.
        repeat: which completion of its prompt it is.
        where: "file:line".
        tokens_decoded: tokens that the teacher decoded for it, rejected work included; None if the file does not say.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    finish_reason: str | None
    self_reward: float | None
    repeat: int
    where: str
    tokens_decoded: int | None = None


class Encoder:
    """Makes samples: stored token ids are checked against the student's tokenizer, texts are encoded by it.

    Args:
        tokenizer: the student's.
        eos_ids: the student's EOS tokens, at least one.
        vocabulary: number of the student's token ids.
        assume_eos: whether a completion ended by EOS if the file does not say how it ended.

    Raises:
        TeacherDataError: no EOS token is given.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int], vocabulary: int, assume_eos: bool
    ) -> None:
        if not eos_ids:
            raise TeacherDataError("eos_ids=[]: must name the student's EOS token; set the tokenizer's eos_token")
        self.tokenizer, self.eos_ids, self.vocabulary, self.assume_eos = tokenizer, eos_ids, vocabulary, assume_eos
        self._behind = Detokenizer(tokenizer)

    def sample(self, drawn: Drawn) -> Sample | None:
        """The sample; None for a text that encoding and decoding would change.

        Such a text spells out a special token, or the tokenizer's normaliser changes it.

        Raises:
            TeacherDataError: the tokenizer is not the teacher's, or a prompt cannot be encoded.
        """
        if drawn.prompt_ids is not None and drawn.token_ids is not None:
            self._check(drawn, drawn.prompt_ids, drawn.token_ids)
            return _sample(drawn, drawn.prompt, drawn.prompt_ids, drawn.token_ids, drawn.finish_reason)
        prompt = drawn.prompt if drawn.messages is None else self._rendered(drawn.messages, drawn.where)
        # Encoded as by the sampler and lm-eval: with special tokens, unless the text already has them.
        doubled = bool(self.tokenizer.bos_token) and prompt.startswith(str(self.tokenizer.bos_token))
        prompt_ids = self.tokenizer.encode(prompt, add_special_tokens=not doubled)
        if not prompt_ids:
            raise TeacherDataError(f"{drawn.where}: the prompt has no token; a completion needs one to follow")
        # Encoded alone, as lm-eval's models decode it; together with the prompt, tokens could merge across the border.
        token_ids = self.tokenizer.encode(drawn.text, add_special_tokens=False)
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if text != drawn.text:
            return None
        ended = drawn.finish_reason or ("eos" if self.assume_eos else None)
        if ended == "eos":
            own = self.tokenizer.eos_token_id
            token_ids = [*token_ids, own if own in self.eos_ids else self.eos_ids[0]]
        return _sample(drawn, prompt, tuple(prompt_ids), tuple(token_ids), ended)

    def _check(self, drawn: Drawn, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> None:
        outside = next((token for token in (*prompt_ids, *token_ids) if token >= self.vocabulary), None)
        if outside is not None:
            raise _foreign(drawn.where, f"token {outside} lies outside its vocabulary of {self.vocabulary}")
        ended = drawn.finish_reason == "eos"
        if ended and token_ids and token_ids[-1] not in self.eos_ids:
            ids = ", ".join(map(str, self.eos_ids))
            raise _foreign(drawn.where, f"the completion ended by token {token_ids[-1]}, the student's EOS is {ids}")
        # The text is made as the sampler made it; others, stock lm-eval among them, lose a space that it begins with.
        text = self._behind(token_ids[:-1] if ended else token_ids, skip_special_tokens=True)
        if not drawn.text.startswith(" "):
            text = text.removeprefix(" ")
        if drawn.finish_reason == "stop":
            text = text[: min((at for stop in drawn.config["stop"] if (at := text.find(stop)) >= 0), default=len(text))]
        if text != drawn.text:
            shorter = min(len(text), len(drawn.text))
            at = next((i for i in range(shorter) if text[i] != drawn.text[i]), shorter)
            ours, theirs = text[at : at + _SHOWN], drawn.text[at : at + _SHOWN]
            raise _foreign(
                drawn.where, f"from character {at} on it makes {ours!r} of the tokens, the file says {theirs!r}"
            )

    def _rendered(self, messages: list[dict[str, Any]], where: str) -> str:
        if not self.tokenizer.chat_template:
            raise TeacherDataError(
                f"{where}: was drawn by a chat API, and the student's tokenizer has no chat template; give one that has"
            )
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(text)


def _sample(
    drawn: Drawn, prompt: str, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...], ended: str | None
) -> Sample:
    return Sample(
        prompt=prompt,
        prompt_ids=prompt_ids,
        token_ids=token_ids,
        finish_reason=ended,
        self_reward=drawn.self_reward,
        repeat=drawn.repeat,
        where=drawn.where,
        tokens_decoded=drawn.tokens_decoded,
    )


def _foreign(where: str, what: str) -> TeacherDataError:
    return TeacherDataError(
        f"{where}: the student's tokenizer is not the teacher's: {what}. The student must be a copy of the teacher, "
        "or share its tokenizer"
    )
