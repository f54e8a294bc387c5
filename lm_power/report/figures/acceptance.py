"""How often Metropolis-Hastings proposals were accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.ticker import MaxNLocator

from lm_power.report.figure_data import Bin, acceptance_by_cut, acceptance_by_stage
from lm_power.report.figures.style import Drawing, Omitted, add_legend, left_out, look, new_canvas, share_axis
from lm_power.report.runs import Comparison, Run


def by_block(comparison: Comparison) -> Drawing | Omitted:
    """Acceptance rate in each block of the schedule."""
    return _acceptance(
        comparison,
        acceptance_by_stage,
        name="acceptance_by_block",
        title="Acceptance by block",
        axis="block k (horizon: k blocks of tokens)",
        caption="Share of the proposals in block k that were accepted. Completions that ended before it make none.",
    )


def by_cut(comparison: Comparison) -> Drawing | Omitted:
    """Acceptance rate by where the completion was cut."""
    return _acceptance(
        comparison,
        acceptance_by_cut,
        name="acceptance_by_cut",
        title="Acceptance by cut position",
        axis="cut position, share of the completion kept",
        caption="Share of the proposals that were accepted, by the share of the completion that they kept, in tenths.",
    )


def _acceptance(
    comparison: Comparison, bins_of: Callable[[Run], Sequence[Bin]], *, name: str, title: str, axis: str, caption: str
) -> Drawing | Omitted:
    bins = {i: found for i, run in enumerate(comparison.runs) if (found := bins_of(run))}
    if not bins:
        return Omitted(name, title, "no run logs Metropolis–Hastings steps.")
    canvas, labels = new_canvas(2.8, [comparison.runs[i].label for i in bins])
    axes = canvas.add_subplot()
    for i, found in bins.items():
        middles = [(b.low + b.high) / 2 for b in found]
        errors = [b.share.error or 0.0 for b in found]
        axes.errorbar(middles, [b.share.value for b in found], errors, capsize=2, elinewidth=0.9, **vars(look(i)))
    if bins_of is acceptance_by_cut:
        axes.set_xlim(0, 1)
    else:
        last = max(b.high for found in bins.values() for b in found)
        axes.set_xlim(0.5, last + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.set_xlabel(axis)
    axes.set_ylabel("acceptance rate")
    share_axis(axes)
    add_legend(canvas, list(bins), labels)
    seen = "; ".join(
        f"{comparison.runs[i].label}: {found[0].share.value:.0%} in the first, {found[-1].share.value:.0%} in the last "
        f"of {len(found)} bins"
        for i, found in bins.items()
    )
    caption += " Bars: one standard error over problems."
    return Drawing(name, title, caption + left_out(comparison, bins), f"Lines. {seen}.", canvas)
