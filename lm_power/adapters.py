"""PEFT adapters on the model that they were trained on: its vocabulary as it is, its tied weights as they are."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lm_power.config import OptionError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# Weights whose rows are tokens, in what peft saves: whole layers, and the halves of LoRA that span the vocabulary.
_OF_TOKENS = re.compile(
    r"(?P<layer>embed_tokens|lm_head|wte|embed_out|embed_in|word_embeddings)"
    r"(?P<part>\.weight|\.base_layer\.weight|\.lora_embedding_A|\.lora_B\.weight)$"
)


def with_adapter(
    model: PreTrainedModel, peft: str, *, revision: str | None = None, trainable: bool = False, option: str = "peft"
) -> PeftModel:
    """A PEFT model of `model` and an adapter.

    The embedding keeps the rows that the checkpoint has, which for many models are more than the tokenizer has tokens;
    it grows where the adapter was trained with more.

    Args:
        model: the base; changed in place where it has to grow.
        peft: hub id or folder of the adapter.
        revision: of the adapter on the hub.
        trainable: load it to be trained further.
        option: that named the adapter, for messages.

    Raises:
        OptionError: the adapter cannot be read, or does not fit; the message says what does not.
    """
    from peft import PeftModel
    from peft.utils.save_and_load import load_peft_weights

    hub: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        with quiet():
            weights = load_peft_weights(peft, device="cpu", **hub)
            rows = [_rows(name, weight) for name, weight in weights.items()]
            _fit_vocabulary(model, f"{option}={peft}", [count for count in rows if count is not None])
            return PeftModel.from_pretrained(model, peft, is_trainable=trainable, **hub)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, OptionError):
            raise
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        raise OptionError(f"{option}={peft}: does not fit {name}: {reason(error)}") from error


def _rows(name: str, weight: Any) -> int | None:
    """Tokens that a saved weight is for; None if it is for none in particular."""
    found = _OF_TOKENS.search(name)
    if found is None:
        return None
    return int(weight.shape[1 if found["part"] == ".lora_embedding_A" else 0])


def _fit_vocabulary(model: PreTrainedModel, adapter: str, rows: list[int]) -> None:
    embedding: Any = model.get_input_embeddings()
    have = int(embedding.weight.shape[0])
    if not rows or set(rows) == {have}:
        return
    need = max(rows)
    if min(rows) != need or need < have:
        told = " and ".join(map(str, sorted(set(rows))))
        raise OptionError(
            f"{adapter}: is for {told} tokens, and the model has {have} rows of embeddings: it was trained on one cut "
            f"down to fewer. Save that (resize_token_embeddings({need}), save_pretrained) and name it as the base"
        )
    model.resize_token_embeddings(need)


def tied_targets(model: PreTrainedModel, targets: str | list[str] | tuple[str, ...]) -> list[str]:
    """Names of targeted layers that share their weight with another layer: input and output embedding of a tied model.

    An adapter on one of them, once merged, changes the other too, and is another model than was trained; peft's
    `ensure_weight_tying` adds it twice (seen with peft 0.21).

    Args:
        model: without an adapter.
        targets: as in peft: names, matched at the end of a layer's name, or one regular expression.
    """
    output: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    if output is None or output.weight is not embedding.weight:
        return []
    shared = [name for name, module in model.named_modules() if module is output or module is embedding]
    if isinstance(targets, str):
        return [name for name in shared if targets == "all-linear" or re.fullmatch(targets, name)]
    return [name for name in shared if any(name == target or name.endswith(f".{target}") for target in targets)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without peft's warnings of a name in transformers that goes, and of missing keys, which are checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        yield


def reason(error: Exception) -> str:
    """An error's first line; where that ends in a colon, with the first of the things that it announces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if not lines[0].endswith(":") or len(lines) == 1:
        return lines[0]
    more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
    return f"{lines[0]} {lines[1].rstrip('.')}{more}"
