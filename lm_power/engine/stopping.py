"""When a completion ends: EOS ids and stop strings."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lm_power.config import OptionError
from lm_power.detokenize import Detokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CUT = "\ufffd"
# The tables made for each tokenizer, by stop strings and number of tokens, kept as long as the tokenizer lives. A large
# vocabulary takes seconds to decode.
_tables: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[tuple[str, ...], int], NDArray[np.bool_]]] = (
    weakref.WeakKeyDictionary()
)


def eos_ids(listed: int | Sequence[int] | None, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """The EOS ids that a model's configuration lists (one, several or none), together with the tokenizer's own."""
    found = [listed] if isinstance(listed, int) else list(listed or [])
    own = None if tokenizer is None else tokenizer.eos_token_id
    return found if own is None else [*found, int(own)]


class StopStrings:
    """Tells whether the token just drawn completed a stop string in the decoded text.

    A table over the vocabulary says which tokens could complete a stop string at all. Text is decoded at those tokens
    only, and only as much of its end as a stop string can reach.

    Args:
        tokenizer: may be None if there are no stop strings.
        stop: stop strings, none of them empty.
        vocabulary: number of token ids the model can draw.

    Raises:
        OptionError: an empty stop string, or stop strings without a tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, stop: Sequence[str], vocabulary: int) -> None:
        for string in stop:
            if not isinstance(string, str) or not string:
                raise OptionError(f"stop={list(stop)!r}: every stop string must be a non-empty string")
        if stop and tokenizer is None:
            raise OptionError(f"stop={list(stop)!r}: stop strings need a tokenizer")
        self.strings = tuple(dict.fromkeys(stop))
        self._text = None if tokenizer is None else Detokenizer(tokenizer)
        self._reach = max(map(len, self.strings), default=0)
        self.candidates: NDArray[np.bool_] = np.zeros(vocabulary, dtype=bool)
        if self.strings and tokenizer is not None:
            known = min(vocabulary, len(tokenizer))
            tables = _tables.setdefault(tokenizer, {})
            if (self.strings, known) not in tables:
                tables[self.strings, known] = self._table(known)
            self.candidates[:known] = tables[self.strings, known]

    def completed(self, tokens: NDArray[np.int64]) -> bool:
        """Whether the text of `tokens`, which held no stop string before its last token, now holds one."""
        if not self.candidates[tokens[-1]]:
            return False
        back = 2
        while True:
            # The text of the tokens before the last one must go back by the length of a stop string. U+FFFD stands for
            # the bytes of a character that was cut in two: it does not count, and a text that begins with it began
            # inside a character.
            tail = tokens[-back:]
            head = self._decode(tail[:-1])
            whole = len(head) - head.count(_CUT) >= self._reach and not head.startswith(_CUT)
            if whole or back >= len(tokens):
                break
            back *= 2
        # A tail that begins inside a run of bytes can read otherwise than it does in the whole, which confirms it.
        return self._holds_one(tail) and (len(tail) == len(tokens) or self._holds_one(tokens))

    def cut(self, text: str) -> str:
        """`text` up to the first stop string."""
        ends = [at for string in self.strings if (at := text.find(string)) >= 0]
        return text[: min(ends)] if ends else text

    def _holds_one(self, tokens: NDArray[np.int64]) -> bool:
        text = self._decode(tokens)
        return any(string in text for string in self.strings)

    def _decode(self, tokens: NDArray[np.int64]) -> str:
        # Special tokens are kept, because a stop string such as <|im_end|> may be one.
        assert self._text is not None
        return self._text(tokens.tolist(), skip_special_tokens=False)

    def _table(self, known: int) -> NDArray[np.bool_]:
        """Whether each token can end in, hold, or reach past the end of a stop string.

        A piece of a multi-byte character shows as U+FFFD, and such a token always counts.
        """
        assert self._text is not None
        endings = tuple(string[at:] for string in self.strings for at in range(len(string)))
        held = (*self.strings, _CUT)
        texts = self._text.each(([token] for token in range(known)), skip_special_tokens=False)
        return np.array([text.startswith(endings) or any(string in text for string in held) for text in texts])
