"""Loads PEFT adapters on a base as they were trained: never on fewer token embeddings than the base has."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_power.config import OptionError
from lm_power.errors import one_line

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel

# What peft appends to a layer's name where it saves the weights that lie below the trained ones.
_BELOW = {"base_layer.weight", "original_module.weight", "token_adapter.base_layer.weight"}
_WHOLE = {"weight", "modules_to_save.weight", *_BELOW}


def with_adapters(
    base: Any, peft: str | None, proposal_peft: str | None, *, merge: bool = False, revision: str | None = None
) -> tuple[Any, Any | None]:
    """(the base with the adapter `peft`, a twin of the base with `proposal_peft`); None where none is named.

    Args:
        base: transformers model; is changed by `peft`, and part of the result.
        peft: hub id or folder of an adapter.
        proposal_peft: of another.
        merge: merge `peft` into the base, see `merged`; what `check_merging` refuses must not come here.
        revision: of both on the hub.

    Raises:
        OptionError: as `load_adapter`, `merged` and `twin`.
    """
    proposer = None
    if proposal_peft is not None:  # first: the twin is to be without `peft`
        proposer = load_adapter(twin(base), proposal_peft, revision=revision, option="proposal_peft")
    if peft is not None:
        base = load_adapter(base, peft, revision=revision)
        base = merged(base, option=f"merge_adapter=True, peft={peft}") if merge else base
    return base, proposer


def check_merging(merge: bool, peft: object, proposal_peft: object) -> None:
    """Raise `OptionError` where an adapter is to be merged that is not there, or into weights that a twin shares."""
    if merge and not peft:
        raise OptionError("merge_adapter=True: there is no adapter to merge; name one by peft=, or leave it out")
    if merge and proposal_peft:
        raise OptionError(
            "merge_adapter=True with proposal_peft: proposals need the weights without peft; leave one of them out"
        )


def twin(base: Any) -> Any:
    """A second model of the same weights, which takes no memory for them: an adapter on one is not on the other.

    Raises:
        OptionError: weights that lie on no device, but are brought to one when they are needed.
    """
    weights = list(itertools.chain(base.parameters(), base.buffers()))
    if any(weight.device.type == "meta" for weight in weights):
        raise OptionError(
            f"proposal_peft: {base.name_or_path} is partly offloaded, and a second model would bring it in again; use "
            "a smaller dtype or more GPUs, so that all of it fits"
        )
    return copy.deepcopy(base, {id(weight): weight for weight in weights})


def load_adapter(
    base: Any, adapter: str, *, revision: str | None = None, trainable: bool = False, option: str = "peft"
) -> PeftModel:
    """The base with an adapter on top, as the adapter was trained.

    A checkpoint may have more rows of token embeddings than its tokenizer has tokens (Qwen2.5: 151,936 for 151,665).
    They stay: without them probabilities are normalised over fewer tokens, and the model is another one. Rows are added
    only for an adapter that was trained with more and brings their weights.

    Args:
        base: transformers model; is changed, and part of the result.
        adapter: hub id or folder.
        revision: of the adapter on the hub.
        trainable: go on training it; else it is frozen, and the model in evaluation mode.
        option: how the caller's user named the adapter, for messages.

    Raises:
        OptionError: there is no adapter, it does not fit the base, or weights that it was trained with are missing.
    """
    from peft import PeftConfig, PeftModel
    from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict

    hub: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of a name in transformers that goes
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # concerns merging
            warnings.filterwarnings("error", "Found missing adapter keys")
            settings = PeftConfig.from_pretrained(adapter, **hub)
            weights = load_peft_weights(adapter, device="cpu", **hub)
            embeddings = _embeddings(base)
            _fit_rows(base, embeddings, settings, weights, f"{option}={adapter}")
            model = PeftModel.from_pretrained(base, adapter, is_trainable=trainable, **hub)
            loaded: Any = set_peft_model_state_dict(model, weights)  # again, for what peft passes over
    except OptionError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, IndexError, UserWarning) as error:
        reason = one_line(error, 300) or type(error).__name__
        raise OptionError(f"{option}={adapter}: cannot be loaded on {base.name_or_path}: {reason}") from error
    # Where embeddings were resized, peft saves them as they are inside of its wrappers, beside what it reads back.
    copies = {key for path in embeddings for key in loaded.unexpected_keys if f".{path}." in f".{key}"}
    if strays := [key for key in loaded.unexpected_keys if key not in copies]:
        raise OptionError(
            f"{option}={adapter}: is not for {base.name_or_path}: {len(strays)} of its weights have no place there, "
            f"such as {strays[0]}"
        )
    return model if trainable else model.eval()


def merged(model: PeftModel, *, option: str = "merge_adapter") -> Any:
    """The base with its adapter merged into its weights, without the adapter's own products in every decode step.

    Each layer is merged in float32 and rounded to the dtype that it had, so that in bfloat16 the merged model is not
    the unmerged one to the last bit.

    Args:
        model: as `load_adapter` made it; is used up.
        option: how the user asked for it, for messages.

    Raises:
        OptionError: the base is quantised, or this kind of adapter cannot be merged into the same model.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base: Any = model.get_base_model()
    if getattr(base, "is_quantized", False):
        raise OptionError(f"{option}: the base is quantised, and merging would round its weights anew; leave it out")
    tuner: Any = model.base_model
    if not hasattr(tuner, "merge_and_unload"):
        kind = type(model.active_peft_config).__name__.removesuffix("Config")
        raise OptionError(f"{option}: an adapter of kind {kind} changes no weights that it could be merged into")
    refuse_adapted_ties(model, option, "leave merge_adapter out")
    try:
        for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
            dtype = next(layer.get_base_layer().parameters()).dtype
            layer.float()
            layer.merge()
            layer.to(dtype)
        return tuner.merge_and_unload().eval()
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise OptionError(f"{option}: peft cannot merge it: {one_line(error, 300)}") from error


def refuse_adapted_ties(model: PeftModel, option: str, remedy: str) -> None:
    """Raise `OptionError` for low-rank updates of embeddings that are one weight with the output layer.

    An update of one side leaves the other as it is, until merging adds it to both. With peft's `ensure_weight_tying`
    both sides share the update, and merging adds it twice (peft 0.21). Either way the merged model is another one.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    sides = (model.get_input_embeddings(), model.get_output_embeddings())
    if tied_embeddings(model) and any(isinstance(side, BaseTunerLayer) for side in sides):
        raise OptionError(
            f"{option}: adapts the embeddings, which this model shares with its output layer: merging the adapter "
            f"would give another model (peft #2018); {remedy}"
        )


def tied_embeddings(model: Any) -> bool:
    """Whether input and output embeddings of a model, or of a PEFT model's base, are one parameter."""
    sides = [_bottom(side) for side in (model.get_input_embeddings(), model.get_output_embeddings())]
    weights = [getattr(side, "weight", None) for side in sides]
    return weights[0] is not None and weights[0] is weights[1]


def _bottom(layer: Any) -> Any:
    """The layer of the base below peft's wrappers."""
    while (below := getattr(layer, "base_layer", None) or getattr(layer, "original_module", None)) is not None:
        layer = below
    return layer


def _embeddings(base: Any) -> list[str]:
    """Where in the base the input and output embeddings are."""
    sides = (base.get_input_embeddings(), base.get_output_embeddings())
    return [path for path, module in base.named_modules() if any(module is side for side in sides)]


def _fit_rows(
    base: Any, embeddings: Sequence[str], settings: PeftConfig, weights: Mapping[str, torch.Tensor], name: str
) -> None:
    """Give the base as many token embeddings as the adapter was trained with, if it tells them."""
    have = base.get_input_embeddings().weight.shape[0]
    trained = {rows for path in embeddings for rows in _rows(path, weights)}
    if not trained <= {have}:
        wanted = max(trained)
        if wanted <= have or len(trained) > 1:
            raise OptionError(
                f"{name}: was trained on a model of {min(trained)} token embeddings, {base.name_or_path} has {have}, "
                "and none may be dropped: probabilities would be another model's; resize that base, save it, and name "
                "its folder as the base"
            )
        if not _brings_rows(base, embeddings, settings, weights):
            raise OptionError(
                f"{name}: was trained on a model of {wanted} token embeddings, {base.name_or_path} has {have}, and the "
                "adapter does not hold the others; save the base that it was trained on, and name its folder as the "
                "base"
            )
        base.resize_token_embeddings(wanted, mean_resizing=False)  # the adapter's weights overwrite them all
    indices = getattr(settings, "trainable_token_indices", None) or getattr(settings, "token_indices", None) or []
    lists: Iterable[list[int]] = indices.values() if isinstance(indices, Mapping) else [indices]
    beyond = max((token for listed in lists for token in listed), default=-1)
    if beyond >= (rows := base.get_input_embeddings().weight.shape[0]):
        raise OptionError(
            f"{name}: trains token {beyond}, {base.name_or_path} has {rows} token embeddings, and the adapter does not "
            "hold the others; save the base that it was trained on, and name its folder as the base"
        )


def _parts(path: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapter's weights for the layer at a path of the base, by what follows the path in their names."""
    found = {key: f".{key}".rpartition(f".{path}.") for key in weights}
    return {part: weights[key] for key, (_, at, part) in found.items() if at}


def _rows(path: str, weights: Mapping[str, torch.Tensor]) -> set[int]:
    """Rows of an embedding, as the adapter's weights for it have them."""
    parts = _parts(path, weights)
    found = {weight.shape[0] for part, weight in parts.items() if part in {*_WHOLE, "lora_B.weight"}}
    return found | {weight.shape[1] for part, weight in parts.items() if part == "lora_embedding_A"}


def _brings_rows(
    base: Any, embeddings: Iterable[str], settings: PeftConfig, weights: Mapping[str, torch.Tensor]
) -> bool:
    """Whether the adapter holds the embeddings themselves, of both sides."""
    copies = set(getattr(settings, "modules_to_save", None) or ())
    held = {path: set(_parts(path, weights)) & _WHOLE for path in embeddings}
    if all(held.values()):
        return True
    # Of tied embeddings one side is enough, if it is the base's and not a copy that was trained.
    return tied_embeddings(base) and any(
        parts & _BELOW or ("weight" in parts and not {path, path.rpartition(".")[2]} & copies)
        for path, parts in held.items()
    )
