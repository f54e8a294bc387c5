"""The text of tokens as it reads behind a prompt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Detokenizer:
    """Decodes tokens that follow a prompt: `decode(prompt + tokens)` without the `decode(prompt)` at its start.

    Decoded alone, tokens lose a leading space with tokenizers that take it for the one that they put before every text
    (Llama 2, Mistral 7B, Phi-3), and a program's first line is indented by three spaces instead of four. So tokens are
    decoded behind an ordinary letter, which stands for any prompt.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = list(tokenizer.encode("a", add_special_tokens=False))

    def __call__(self, tokens: Iterable[int], *, skip_special_tokens: bool) -> str:
        """The text that `tokens` add to a prompt."""
        return self.each([tokens], skip_special_tokens=skip_special_tokens)[0]

    def each(self, sequences: Iterable[Iterable[int]], *, skip_special_tokens: bool) -> list[str]:
        """The text that each of the sequences adds to a prompt."""
        behind = [self._before, *([*self._before, *map(int, tokens)] for tokens in sequences)]
        before, *texts = self._decoded(behind, skip_special_tokens)
        return [text[len(before) :] for text in texts]

    def _decoded(self, sequences: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return list(
            self._tokenizer.batch_decode(
                sequences, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )
