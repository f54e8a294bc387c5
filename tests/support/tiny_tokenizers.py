"""Small tokenizers, each with a way of its own to make decoded text more than the sum of its tokens.

Token 0 is the EOS `</s>`, token 1 the special token `<|end|>`; of those with bytes, token 2 + b is the byte b.
"""

from __future__ import annotations

from models import VOCABULARY
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

SPECIAL = ["</s>", "<|end|>"]


# GPT-2 spells each byte as one visible character: itself if it is one, else one from 256 on.
_VISIBLE = {*range(33, 127), *range(161, 173), *range(174, 256)}
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
_SPELLING = [chr(byte if byte in _VISIBLE else 256 + _HIDDEN.index(byte)) for byte in range(256)]


def byte_level(pieces: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """GPT-2's kind: 256 bytes, so a character may be split over tokens; and a few longer pieces (as texts)."""
    longer = ["".join(_SPELLING[byte] for byte in piece.encode()) for piece in pieces]
    inner = Tokenizer(BPE({piece: i for i, piece in enumerate([*SPECIAL, *_SPELLING, *longer])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return _wrapped(inner)


def byte_fallback(pieces: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Llama 2's kind: ▁ for a space, which a text loses at its start; unknown characters as byte tokens."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *bytes_, *pieces])}
    inner = Tokenizer(BPE(vocabulary, [], byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrapped(inner)


def words(size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """One word a token, `w2 w3 …`, for the models of `models.py`."""
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *(f"w{i}" for i in range(2, size))])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="w2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrapped(inner)


def _wrapped(inner: Tokenizer) -> PreTrainedTokenizerFast:
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=SPECIAL[0])
