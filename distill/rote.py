"""Does a student learn its teacher's distribution, or its samples by heart?

No model has a smaller mean −log p on fresh samples of a distribution than the distribution's own −log π. On samples
that it has seen, a student may: it knows them by heart, and that part of its gain is worth nothing on other prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lm_power.chains import METHODS

COMPARED = 256
"""Training completions on which teacher and student are compared."""

_FAR_BELOW = 0.5  # of the teacher's loss, or of the validation loss
_RISE = 0.02  # of the smallest validation loss


@dataclasses.dataclass(frozen=True)
class Losses:
    """Losses on training completions, nats a token.

    Attributes:
        teacher: −log q of the teacher, before anything was learnt; None if its distribution is not known.
        unseen: −log p of the student on completions that it had not met before; None if there is no such record.
        student: −log p of the finished student on the tokens that `teacher` is about.
    """

    teacher: float | None
    unseen: float | None
    student: float


def teacher_beta(config: Mapping[str, Any] | None) -> float | None:
    """The inverse temperature whose token-wise distribution q is nearest to what the teacher drew from.

    Its −log q is the teacher's own −log π where completions were drawn token by token, and on average more than that
    where they were drawn from p^alpha: π differs from q by what it knows of the future.

    Returns:
        None where there is none: `power_inf`, whose completions have no distribution; unknown or mixed settings.

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
    """One sentence if a run learnt by heart, else None.

    Held-out prompts decide where there are some. Else the student must be far below its teacher, which it may be with
    reason where π knows more of the future than q, and also far below what the data cost before they had been seen.

    Args:
        losses: of teacher and student on training data.
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
                "set early_stopping=1, take fewer epochs or a lower learning rate, or draw more samples"
            )
        if student < _FAR_BELOW * kept:
            return (
                f"the student's loss is {student:.4f} on what it has seen and {kept:.4f} on held-out prompts: it has "
                "learnt its data by heart; take fewer epochs or a lower learning rate, or draw more samples"
            )
    elif teacher is not None and unseen is not None and student < _FAR_BELOW * min(teacher, unseen):
        return (
            f"the student's loss on its training data, {student:.4f}, lies far below the teacher's own, {teacher:.4f}, "
            f"and below {unseen:.4f}, which the data cost while they were new: it has learnt them by heart; take fewer "
            "epochs or a lower learning rate, draw more samples, or hold some out (validation_share=0.1)"
        )
    return None


def unseen_loss(log: Sequence[Mapping[str, Any]], epochs: float) -> float | None:
    """Mean training loss over the second half of the first epoch, when every completion is met for the first time.

    Args:
        log: a Trainer's.
        epochs: that were trained; None comes back for one or less, after which nothing has been met again.
    """
    first = [entry["loss"] for entry in log if "loss" in entry and 0.5 < entry["epoch"] <= 1]
    return sum(first) / len(first) if first and epochs > 1 else None
