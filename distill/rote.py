"""Whether a student learns its teacher's distribution, or its samples by heart.

On fresh samples of a distribution π, no model has a smaller mean −log p than −log π itself. On samples that it has
seen, a student may have one, because it knows them by heart; that part of its gain is worth nothing on other prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lm_power.chains import METHODS

COMPARED = 64
"""Training completions on which teacher and student are compared."""

_FAR_BELOW = 0.5  # share of the teacher's loss, or of the validation loss
_RISE = 0.02  # share of the smallest validation loss


@dataclasses.dataclass(frozen=True)
class Losses:
    """Losses on training completions, nats per token.

    Attributes:
        teacher: −log q of the teacher, before anything was learnt; None if its distribution is not known.
        unseen: −log p of the student on completions that it had not seen before; None if it was not recorded.
        student: −log p of the finished student on the same tokens as for `teacher`.
    """

    teacher: float | None
    unseen: float | None
    student: float


def teacher_beta(config: Mapping[str, Any] | None) -> float | None:
    """The inverse temperature whose token-wise distribution q is closest to what the teacher drew from.

    If completions were drawn token by token, −log q is the teacher's own −log π. If they were drawn from p^alpha, it is
    larger on average, since π takes the future into account and q does not.

    Returns:
        The inverse temperature; None for `power_inf`, whose completions have no distribution, and for unknown or mixed
        settings.

    >>> teacher_beta({"method": "power", "alpha": 4.0}), teacher_beta({"method": "standard"})
    (4.0, 1.0)
    >>> teacher_beta({"method": "temperature", "proposal_temperature": 0.25}), teacher_beta({"method": "power_inf"})
    (4.0, None)
    """
    settings = config or {}
    method = settings.get("method")
    if method == "standard":
        return 1.0
    if method == "temperature" and settings.get("proposal_temperature"):
        return 1 / float(settings["proposal_temperature"])
    sharpens = method in METHODS and "alpha" in METHODS[method].relevant_options
    return float(settings["alpha"]) if sharpens and "alpha" in settings else None


def warning(losses: Losses, validation: Sequence[tuple[int, float]], kept_step: int) -> str | None:
    """One sentence if a run has learnt its data by heart, else None.

    If prompts were held out, they decide. Otherwise the student's loss must be far below its teacher's, which has a
    good reason if π takes more of the future into account than q, and also far below what the data cost before they
    were seen.

    Args:
        losses: losses of teacher and student on training data.
        validation: (step, loss on held-out prompts), in order.
        kept_step: the step whose weights are kept.
    """
    teacher, unseen, student = losses.teacher, losses.unseen, losses.student
    if validation:
        lowest = min(loss for _, loss in validation)
        kept = dict(validation).get(kept_step, validation[-1][1])
        if kept > (1 + _RISE) * lowest:
            return (
                f"the validation loss has risen from {lowest:.4f} to {kept:.4f}: the student learns its data by heart; "
                "set early_stopping=1, train for fewer epochs or at a lower learning rate, or draw more samples"
            )
        if student < _FAR_BELOW * kept:
            return (
                f"the student's loss is {student:.4f} on what it has seen and {kept:.4f} on held-out prompts: it has "
                "learnt its data by heart; train for fewer epochs or at a lower learning rate, or draw more samples"
            )
    elif teacher is not None and unseen is not None and student < _FAR_BELOW * min(teacher, unseen):
        return (
            f"the student's loss on its training data, {student:.4f}, lies far below the teacher's own, {teacher:.4f}, "
            f"and below {unseen:.4f}, its loss while they were new: it has learnt them by heart; train for fewer "
            "epochs or at a lower learning rate, draw more samples, or hold some out (validation_share=0.1)"
        )
    return None


def unseen_loss(log: Sequence[Mapping[str, Any]], epochs: float) -> float | None:
    """Mean training loss over the second half of the first epoch, when every completion is seen for the first time.

    Args:
        log: a Trainer's log.
        epochs: epochs that were trained.

    Returns:
        The mean, nats per token; None for one epoch or less, since nothing was seen twice then.
    """
    first = [entry["loss"] for entry in log if "loss" in entry and 0.5 < entry["epoch"] <= 1]
    return sum(first) / len(first) if first and epochs > 1 else None
