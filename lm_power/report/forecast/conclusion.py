"""The answer to "will sharpening help, and which alpha?", in a sentence with its confidence."""

from __future__ import annotations

import dataclasses

import scipy.stats

from lm_power.report.forecast.estimates import MIN_EFFECTIVE, MIN_SHARE, Forecast
from lm_power.stats.means import Estimate

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """What the forecast says.

    Attributes:
        outcome: "helps", "hurts", "no clear effect" or "too small to tell".
        alpha: the alpha that the sentence names. Where sharpening helps, it is the smallest resolved alpha that helps
            and whose gain is within one standard error of the largest (the rule of Breiman et al. 1984 for choosing a
            simple model). Otherwise it is the best resolved alpha above 1; None if none is resolved.
        low: lower end of the interval of the gain at alpha; None without one. The interval has level `LEVEL` for all
            resolved alphas together (Bonferroni), since the best is chosen among them.
        high: upper end.
        sentence: all of this for readers.
    """

    outcome: str
    alpha: float | None
    low: float | None
    high: float | None
    sentence: str


def conclude(forecast: Forecast) -> Conclusion:
    """What a forecast comes to."""
    problems = len(forecast.values)
    resolved = [point for point in forecast.points if point.resolved and point.alpha > 1]
    if not resolved:
        return Conclusion("too small to tell", None, None, None, _too_small(forecast))
    intervals = {point.alpha: interval(point.gain, len(resolved)) for point in resolved}
    best = max(resolved, key=lambda point: point.accuracy.value)
    helping = [point for point in resolved if intervals[point.alpha][0] > 0]
    chosen = best
    if helping:
        nearly = best.gain.value - (best.gain.error or 0.0)
        good = [point for point in helping if point.gain.value >= nearly]
        chosen = good[0] if good else max(helping, key=lambda point: point.gain.value)
    low, high = intervals[chosen.alpha]
    outcome = "helps" if helping else "hurts" if high < 0 else "no clear effect"
    said = {
        "helps": f"Sharpening should help: at alpha = {chosen.alpha:g}",
        "hurts": f"Sharpening should hurt: even at alpha = {chosen.alpha:g}, the best of those tried,",
        "no clear effect": f"No clear effect of sharpening: at alpha = {chosen.alpha:g}, the best of those tried,",
    }[outcome]
    among = f", for all {len(resolved)} alphas at once" if len(resolved) > 1 else ""
    sentence = (
        f"{said} the forecast accuracy is {chosen.accuracy.value:.3f}, against "
        f"{forecast.points[0].accuracy.value:.3f} by plain sampling: a gain of {chosen.gain.value:+.3f} "
        f"({LEVEL:.0%} interval {low:+.3f} to {high:+.3f} over {problems} problems{among})."
    )
    if best.accuracy.value - chosen.accuracy.value >= 0.0005:  # else the same to three decimals
        sentence += f" The highest is {best.accuracy.value:.3f} at alpha = {best.alpha:g}."
    return Conclusion(outcome, chosen.alpha, low, high, _typographic(sentence + _not_resolved(forecast)))


def interval(gain: Estimate, comparisons: int = 1) -> tuple[float, float]:
    """The t interval over problems that holds at `LEVEL` for so many gains at once (Bonferroni)."""
    assert gain.error is not None  # two problems or more
    quantile = float(scipy.stats.t.ppf(1 - (1 - LEVEL) / 2 / comparisons, gain.problems - 1))
    return gain.value - quantile * gain.error, gain.value + quantile * gain.error


def _too_small(forecast: Forecast) -> str:
    first = forecast.points[1]
    low, high = interval(forecast.slope)
    direction = "raises accuracy" if low > 0 else "lowers accuracy" if high < 0 else "has no clear effect"
    return _typographic(
        f"The effective sample size is too small to tell: at alpha = {first.alpha:g} already, it reaches "
        f"{MIN_EFFECTIVE:g} in {first.share:.0%} of the {len(first.effective)} problems, and {MIN_SHARE:.0%} are "
        f"needed; draw more completions per problem, or try smaller alphas. Sharpening by very little {direction}: "
        f"the slope at alpha = 1 is {forecast.slope.value:+.3f} per unit of alpha ({LEVEL:.0%} interval {low:+.3f} to "
        f"{high:+.3f})."
    )


def _not_resolved(forecast: Forecast) -> str:
    missing = [f"{point.alpha:g}" for point in forecast.points if not point.resolved]
    if not missing:
        return ""
    return f" The effective sample size is too small to tell what alpha = {', '.join(missing)} would do."


def _typographic(text: str) -> str:
    """Numbers with a minus sign, as the tables have them."""
    return text.replace(" -", " −").replace("(-", "(−")
