"""Stop strings: found at the very token that completes them, on every kind of tokenizer."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_fallback, byte_level, words
from transformers import PreTrainedTokenizerFast

from lm_power.config import OptionError
from lm_power.engine import StopStrings

BYTES = byte_level(("\n\n", "ab", "b\nc", " stop", "stop", "好。", "xa", "。x"))
FALLBACK = byte_fallback(("▁", "a", "b", "c", "▁a", "▁b", "ab", "\n", "▁stop", "stop", "。", "好"))
WORDS = words()
TOKENIZERS = {"byte-level": BYTES, "byte-fallback": FALLBACK, "words": WORDS}


def ids(tokenizer: PreTrainedTokenizerFast, *pieces: str | bytes) -> list[int]:
    """Token ids: a text piece is one token, of bytes each is a token."""
    by_text = {tokenizer.decode([i]): i for i in reversed(range(len(tokenizer)))} | tokenizer.get_vocab()
    found = [[by_text[p]] if isinstance(p, str) else [2 + byte for byte in p] for p in pieces]
    return [token for piece in found for token in piece]


def behind_a_prompt(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> str:
    """What tokens add to the text of a prompt: the ordinary token last in the vocabulary, whichever that is."""
    prompt = [len(tokenizer) - 1]
    texts = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (prompt, prompt + tokens)]
    assert texts[1].startswith(texts[0])
    return texts[1][len(texts[0]) :]


def first_stop(tokenizer: PreTrainedTokenizerFast, stop: list[str], tokens: list[int]) -> int | None:
    """By definition: the least t at which the text of tokens[:t] holds a stop string."""
    texts = (behind_a_prompt(tokenizer, tokens[:t]) for t in range(1, len(tokens) + 1))
    return next((t for t, text in enumerate(texts, 1) if any(s in text for s in stop)), None)


def found_stop(tokenizer: PreTrainedTokenizerFast, stop: list[str], tokens: list[int]) -> int | None:
    """As the engine asks: token by token, on arrays of its history."""
    stops = StopStrings(tokenizer, stop, len(tokenizer) + 3)
    history = np.array(tokens)
    return next((t for t in range(1, len(tokens) + 1) if stops.completed(history[:t])), None)


@pytest.mark.parametrize(
    ("kind", "stop", "pieces", "at"),
    [
        ("byte-level", "\n\n", ["a", "\n", "\n", "b"], 3),  # two tokens
        ("byte-level", "a\nc", ["x", "a", "\n", "c", "b"], 4),  # three tokens
        ("byte-level", "a\n", ["x", "a", "b\nc", "ab"], None),
        ("byte-level", "ab\n", ["xa", "b\nc", "ab"], 2),  # ends in the middle of a token
        ("byte-level", "b\n", ["x", "b\nc"], 2),  # wholly inside a token
        ("byte-level", "<|end|>", ["a", "<|end|>", "b"], 2),  # a special token
        ("byte-level", "a<|end|>", ["b", "<|end|>", "a", "<|end|>"], 4),
        ("byte-level", "。", ["a", "。".encode(), "b"], 4),  # one character, three tokens
        ("byte-level", "好。", ["a", "好".encode(), b"\xe3\x80", b"\x82"], 7),
        ("byte-level", "好。", ["a", "好。"], 2),
        ("byte-level", "é。", [("é" * 9).encode(), "。".encode()], 21),  # the tail begins inside a character
        ("byte-fallback", "a b", ["c", "▁a", "▁b"], 3),  # a space only inside a text
        ("byte-fallback", " stop", ["▁a", "▁stop"], 2),
        ("byte-fallback", " stop", ["▁stop", "▁stop"], 1),  # the first token follows a prompt
        ("byte-fallback", "。", ["a", "。".encode(), "b"], 4),
        ("byte-fallback", "é。", [("é" * 9).encode(), "。".encode()], 21),  # a run of byte tokens, cut
        # The byte b"\n" reads as a new line only if it is cut off from the one before it.
        ("byte-fallback", "\n\n", [b"\x80\n", "\n", b"\x80", "c", b"\x98\x98", "a", "\n"], None),
        ("byte-fallback", "ab好é", ["▁a", "b", "好".encode(), "é".encode()], 7),
        ("words", "w3 w4", ["w2", "w3", "w4"], 3),
        ("words", "2 w3", ["w2", "w3", "w4"], 2),  # from inside one word into the next
    ],
)
def test_stop_is_found_at_the_token_that_completes_it(kind, stop, pieces, at):
    """Guards: a stop string missed, or seen late, where it does not fall on token borders."""
    tokenizer = TOKENIZERS[kind]
    tokens = ids(tokenizer, *pieces)
    assert first_stop(tokenizer, [stop], tokens) == at, "the case itself"
    assert found_stop(tokenizer, [stop], tokens) == at


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data(), kind=st.sampled_from(sorted(TOKENIZERS)))
def test_any_sequence_stops_where_the_definition_says(data, kind):
    """Guards: tail-only decoding that sees something else than the whole text would show.

    The stop strings are substrings of the sequence's own text, so nearly every example has one to find.
    """
    tokenizer = TOKENIZERS[kind]
    pieces = [[token] for token in [*range(len(tokenizer) - 12, len(tokenizer)), 0, 1]]
    if kind != "words":  # whole characters byte by byte, often side by side; and bytes that are none
        pieces += [ids(tokenizer, c.encode()) for c in "é。好"] * 8 + [[2 + 0xE3], [2 + 0x80], [2 + 0x20]]
    drawn = data.draw(st.lists(st.sampled_from(pieces), min_size=1, max_size=25))
    tokens = [token for piece in drawn for token in piece]
    text = behind_a_prompt(tokenizer, tokens).replace("\ufffd", "")
    stop = ["\n\n"]
    if text:
        start = data.draw(st.integers(0, len(text) - 1))
        stop.append(text[start : start + data.draw(st.integers(1, 8))])
    assert found_stop(tokenizer, stop, tokens) == first_stop(tokenizer, stop, tokens)


def test_most_tokens_are_told_apart_by_table():
    """Guards: decoding text at every token (a tenth of the time of a step)."""
    stops = StopStrings(BYTES, ["\n\n"], len(BYTES))
    whole = [i for i in range(len(BYTES)) if "\ufffd" not in BYTES.decode([i])]
    marked = {BYTES.decode([i]) for i in whole if stops.candidates[i]}
    assert marked == {"\n", "\n\n"}


def test_a_table_is_made_once_for_a_tokenizer_and_its_stop_strings(monkeypatch):
    """Guards: seconds of decoding a large vocabulary at every call; and a table that others can change."""
    tokenizer, decoded = words(), []
    decode = tokenizer.batch_decode
    monkeypatch.setattr(
        tokenizer, "batch_decode", lambda ids, **kwargs: decoded.append(len(ids)) or decode(ids, **kwargs)
    )
    first = StopStrings(tokenizer, ["w3"], 61).candidates
    assert StopStrings(tokenizer, ["w3"], 70).candidates.nonzero()[0].tolist() == first.nonzero()[0].tolist()
    first[:] = True
    assert not StopStrings(tokenizer, ["w3"], 61).candidates.all()
    assert decoded == [62], "the vocabulary, and what stands for a prompt"
    assert StopStrings(tokenizer, ["w4"], 61).candidates[4]
    tokenizer.add_tokens(["xw3"])
    assert StopStrings(tokenizer, ["w3"], 70).candidates[61]
    assert decoded == [62, 62, 63]


def test_a_table_goes_with_its_tokenizer():
    """Guards: tokenizers, and what was made for them, kept for as long as the process lives."""
    tokenizer = words()
    StopStrings(tokenizer, ["w3"], 61)
    alive = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert alive() is None


def test_ids_beyond_the_tokenizer_never_complete_a_stop_string():
    """Guards: an index error for the padded rows of an embedding matrix."""
    stops = StopStrings(WORDS, ["w3"], len(WORDS) + 10)
    assert len(stops.candidates) == len(WORDS) + 10
    assert not stops.completed(np.array([len(WORDS) + 5]))


def test_text_is_cut_before_the_first_stop_string():
    """Guards: cutting at the first of the list instead of the first in the text."""
    stops = StopStrings(WORDS, ["b", "ab"], len(WORDS))
    assert stops.cut("xxab") == "xx"
    assert stops.cut("none") == "none"


@pytest.mark.parametrize("stop", [[""], ["a", ""], [3], [None]])
def test_a_stop_that_is_no_string_or_empty_is_refused(stop):
    """Guards: an empty stop string, which every text contains."""
    with pytest.raises(OptionError, match="non-empty"):
        StopStrings(WORDS, stop, len(WORDS))


def test_stop_strings_need_a_tokenizer():
    """Guards: stop strings silently without effect."""
    with pytest.raises(OptionError, match="need a tokenizer"):
        StopStrings(None, ["a"], 61)
