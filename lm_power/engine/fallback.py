"""Tries, when a model is loaded, what may not work on this machine: the kernel, recorded steps, the compiled draw.

If something that lm-power chose by itself fails, or disagrees with the plain way, it is switched off with one warning.
Something that the user chose (`attn_implementation=lm_power`, `cuda_graphs=True`) is never replaced: it fails, and the
message says what else to set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lm_power.decoding import Request
from lm_power.engine.attention import chosen_instead_of
from lm_power.engine.backend import HFBackend
from lm_power.engine.engine import Engine
from lm_power.engine.out_of_memory import out_of_memory
from lm_power.engine.paired import AnyBackend, PairedBackend
from lm_power.engine.stopping import StopStrings
from lm_power.errors import LMPowerError, UnavailableError, one_line
from lm_power.target import Drawn, draw_next, draw_next_at_once

logger = logging.getLogger(__name__)

REPORT = "Please report this with the output of `lm-power doctor`"
_ROWS, _PROMPT, _DRAWN = 2, 3, 6  # size of the trial: a plain run, a recording and four replays per row


class DisagreementError(LMPowerError, RuntimeError):
    """A faster way of computing something gives other numbers than the plain one."""


def tried_backend(
    model: PreTrainedModel,
    cuda_graphs: bool | None = None,
    torch_compile: bool = False,
    proposer: PreTrainedModel | None = None,
) -> AnyBackend:
    """A backend that has tried everything it uses.

    Args:
        model: transformers causal LM, or a PEFT model around one. If `prefer_spans` chose its attention and that does
            not work, the model gets back the attention that it had.
        cuda_graphs: True: record decode steps on CUDA, and fail if that does not work. False: do not record them. None:
            record them if that works.
        torch_compile: as in `HFBackend`.
        proposer: another model, which proposes; see `PairedBackend`.

    Raises:
        UnsupportedModelError: the engine cannot serve this model, whatever its attention, or the two together.
        UnavailableError: `cuda_graphs=True`, and steps cannot be recorded here, or recorded ones fail or disagree with
            plain ones.
    """
    target = _with_an_attention_that_works(model, cuda_graphs, torch_compile)
    backend: AnyBackend = target
    if proposer is not None:
        backend = PairedBackend(target, _with_an_attention_that_works(proposer, cuda_graphs, torch_compile))
    if cuda_graphs and not backend.replays:  # on CUDA a warning has said why
        device = backend.input_device.type
        raise UnavailableError(
            f"cuda_graphs=True: this model's decode steps cannot be recorded on {device}; leave it out"
        )
    if backend.replays and (reason := failure(lambda: try_draw(backend.input_device, backend.vocabulary))):
        backend.compiles_draw = False
        _warn("the compiled draw", reason, "the plain one, which is slower", "")
    if backend.replays and (reason := failure(lambda: try_recorded_steps(backend))):
        if cuda_graphs:
            raise UnavailableError(
                f"cuda_graphs=True: recorded decode steps do not work here: {reason}; set cuda_graphs=False"
            )
        backend.replays = False
        _warn("recording decode steps as CUDA graphs", reason, "plain steps, which are slower", "cuda_graphs=False")
    return backend


def _with_an_attention_that_works(model: Any, cuda_graphs: bool | None, torch_compile: bool) -> HFBackend:
    options: dict[str, Any] = {"cuda_graphs": cuda_graphs is not False, "torch_compile": torch_compile}
    before = chosen_instead_of(model)
    if before is None:  # named by the user, or by transformers
        return HFBackend(model, **options)
    try:
        return HFBackend(model, **options)
    except Exception as error:
        if out_of_memory(error) is not None:
            raise
        base = getattr(model, "get_base_model", lambda: model)()
        base.set_attn_implementation(before)
        try:
            backend = HFBackend(model, **options)
        except Exception:
            # The kernel was not at fault, or it has broken the GPU as well. Either way the first error says what is
            # wrong.
            raise error from None
        _warn(
            "attn_implementation=lm_power", _line(error), f"{before}, which is slower", f"attn_implementation={before}"
        )
        return backend


def failure(trial: Callable[[], object]) -> str | None:
    """What went wrong in a trial, in one line; None if nothing did. Running out of memory does not count as a failure.

    Raises:
        Exception: out of memory.
    """
    try:
        trial()
    except Exception as error:
        if out_of_memory(error) is not None:
            raise
        return _line(error)
    return None


def try_recorded_steps(backend: AnyBackend) -> None:
    """Decode the same requests by recorded and by plain steps.

    Raises:
        DisagreementError: their tokens or log-probabilities differ.
        Exception: what recording or replaying raises.
    """
    replays = backend.replays
    try:
        backend.replays = True
        recorded = _decoded(backend)
        backend.replays = False
        plain = _decoded(backend)
    finally:
        backend.replays = replays
    rough = backend.shapes[0].dtype in (torch.bfloat16, torch.float16)
    _compare("recorded and plain steps", recorded, plain, 0.05 if rough else 1e-3)


def _decoded(backend: AnyBackend) -> np.ndarray:
    """[2, rows, tokens] the tokens of a few requests, and their log-probabilities."""
    engine = Engine(backend, _ROWS, _PROMPT, _DRAWN, (), StopStrings(None, [], backend.vocabulary))
    found = np.zeros((2, _ROWS, _DRAWN))
    for row in range(_ROWS):
        engine.load(row, [(7919 * place + 13 * row) % backend.vocabulary for place in range(_PROMPT - row)])
        uniforms = np.random.default_rng(row).random(_DRAWN)
        engine.submit(row, Request(0, _DRAWN, 1.0, uniforms))
    missing = _ROWS
    for _ in range(_DRAWN + 4):  # a few more steps, since results may be read late
        for row, segment in engine.step() if missing else ():
            found[:, row] = segment.tokens, segment.log_p
            missing -= 1
    if missing:
        raise DisagreementError("rows do not end at their horizon")
    return found


def try_draw(device: torch.device, vocabulary: int, rows: int = 2) -> None:
    """Draw from random logits by the compiled `draw_next` and by the plain one.

    Raises:
        DisagreementError: their tokens or log-probabilities differ.
        Exception: what the compiler raises.
    """
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn((rows, vocabulary), generator=generator)).to(device)
    beta = torch.linspace(1, 4, rows, dtype=torch.float64, device=device)
    uniforms = torch.linspace(0.2, 0.7, rows, dtype=torch.float64, device=device)
    excluded = torch.full((rows,), -1, device=device)
    excluded[0] = int(logits[0].argmax())
    compiled = torch.compile(draw_next, fullgraph=True)
    left, right = (_numbers(draw(logits, beta, uniforms, excluded)) for draw in (compiled, draw_next_at_once))
    _compare("the compiled draw and the plain one", left, right, 1e-3)


def _numbers(drawn: Drawn) -> np.ndarray:
    """[3, rows]: tokens, log p, log q."""
    return torch.stack([drawn.tokens.double(), drawn.log_p.double(), drawn.log_q.double()]).cpu().numpy()


def _compare(what: str, left: np.ndarray, right: np.ndarray, tolerance: float) -> None:
    if not np.array_equal(left[0], right[0]):
        raise DisagreementError(f"{what} draw different tokens")
    worst = float(np.abs(left[1:] - right[1:]).max())
    if not worst <= tolerance:
        raise DisagreementError(f"{what} differ by {worst:.3g} nats (tolerance {tolerance:g})")


def _line(error: BaseException) -> str:
    text = one_line(error, 300)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _warn(what: str, reason: str, instead: str, setting: str) -> None:
    quiet = f"; set {setting} to skip this trial" if setting else ""
    logger.warning("%s does not work here (%s): going on with %s%s. %s", what, reason, instead, quiet, REPORT)
