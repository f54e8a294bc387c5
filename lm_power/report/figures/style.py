"""What all figures share: their record, one look per run, a canvas that fits its legend, and saving.

Colours are those of Okabe & Ito (2008), which colour-blind readers can distinguish. Runs also differ by marker and line
style, and right and wrong by position and hatch, so that nothing is lost in grey print. Labels are users' text, which
`plain` makes safe to print.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unicodedata import bidirectional

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from lm_power.report.runs import Comparison
from lm_power.report.visible import one_line, short_labels

WIDTH = 5.0
"""Of every figure, inches: small enough that its text can be read on a phone."""

RIGHT_COLOUR, WRONG_COLOUR = "#0072B2", "#D55E00"
WRONG_HATCH = "////"

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_MARKERS = "osD^vPX<>*hd"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (6, 1.5, 1.5, 1.5, 1.5, 1.5)))
_LABEL_LIMIT, _LABEL_WIDTH, _LINE = 88, 48, 0.21
_FONT = "DejaVu Sans"  # it comes with matplotlib, so every machine draws the same picture
_SETTINGS: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.facecolor": "white",
    "font.family": [_FONT],
    "figure.labelsize": 11,
    "font.size": 11,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "path.simplify": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "lm-power",  # the same run, the same file
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure on disk.

    Attributes:
        name: file name without ending.
        title: what it shows, short.
        caption: how to read it, and how it was computed.
        alt: what it shows, for readers who cannot see it.
        svg: the picture as SVG.
        png: the same as PNG.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: Path
    png: Path

    @property
    def markdown(self) -> str:
        """Picture and caption, for a page in the same folder."""
        return f"![{self.alt}]({self.png.name})\n\n{self.caption}\n"


@dataclasses.dataclass(frozen=True)
class Omitted:
    """A figure that the runs give no data for.

    Attributes:
        name, title: as a `Figure`'s.
        reason: why it is omitted.
    """

    name: str
    title: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure before it is saved: `Figure` with a canvas in the place of files."""

    name: str
    title: str
    caption: str
    alt: str
    canvas: Canvas


@dataclasses.dataclass(frozen=True)
class Look:
    """How a run is drawn in every figure: arguments of `Axes.plot` and `Axes.errorbar`."""

    color: str
    marker: str
    linestyle: Any


def look(index: int) -> Look:
    """The look of the run at this index of the comparison; the first twelve differ by shape alone."""
    return Look(_COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)], _DASHES[index % len(_DASHES)])


def plain(text: str, limit: int = _LABEL_LIMIT) -> str:
    """The text as a label: visible, on one line, cut to `limit` characters, and none of it read as mathematics.

    What the figures' font cannot show is given by its code, ⟨U+6F22⟩.
    """
    known = get_font(findfont(_FONT)).get_char_index
    label = "".join(c if known(ord(c)) else f"⟨U+{ord(c):04X}⟩" for c in one_line(text, limit))
    return label.replace("$", r"\$")


@contextmanager
def settings() -> Iterator[None]:
    """Draw and save in the house style, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_canvas(height: float, labels: Sequence[str] = (), extra_lines: int = 0) -> tuple[Canvas, list[str]]:
    """A canvas for panels of that height, inches, with room under them for a legend of these labels and more lines.

    Returns the canvas, and the labels wrapped as the legend needs them.
    """
    wrapped = wrap(labels)
    lines = sum(label.count("\n") + 1.25 for label in wrapped) + 1.25 * extra_lines
    canvas = Canvas(figsize=(WIDTH, height + lines * _LINE))
    canvas.set_layout_engine("constrained", w_pad=0.07, h_pad=0.07)
    FigureCanvasAgg(canvas)
    return canvas, wrapped


def new_panels(height: float, labels: Sequence[str]) -> tuple[Canvas, list[Axes]]:
    """A canvas with one panel of that height, inches, under another, with common axes, named after these labels."""
    titles = wrap(labels)
    titled = sum(title.count("\n") + 1 for title in titles)
    canvas, _ = new_canvas(height * len(labels) + titled * _LINE + 0.75)
    panels = list(canvas.subplots(len(labels), 1, sharex=True, squeeze=False)[:, 0])
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=10)
    return canvas, panels


def wrap(labels: Sequence[str]) -> list[str]:
    """The labels, told apart, each in a few lines that fit the canvas."""
    return [
        "\n".join(map(_left_to_right, textwrap.wrap(plain(x), _LABEL_WIDTH)))
        for x in short_labels(labels, _LABEL_LIMIT)
    ]


def add_legend(
    canvas: Canvas, indices: Sequence[int], labels: Sequence[str], extra: Sequence[Line2D] = (), *, line: bool = True
) -> None:
    """Put the legend under the panels, where it hides no data: first the runs at `indices`, then `extra`."""
    looks = [vars(look(i)) | ({} if line else {"linestyle": "none"}) for i in indices]
    handles = [Line2D([], [], label=label, **style) for style, label in zip(looks, labels, strict=True)]
    canvas.legend(
        handles=[*handles, *extra], loc="outside lower left", frameon=False, handlelength=3.6 if line else 1.5
    )


def left_out(comparison: Comparison, shown: Collection[int]) -> str:
    """The caption's last sentence, which names the runs that are not shown; empty if all are."""
    missing = [one_line(run.label, _LABEL_LIMIT) for i, run in enumerate(comparison.runs) if i not in shown]
    return f" Not shown, for lack of data: {'; '.join(missing)}." if missing else ""


def share_axis(axes: Axes) -> None:
    """The y axis as a share from 0 to 1, in per cent, with room for markers and bars at either end."""
    axes.set_ylim(-0.04, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def save(drawing: Drawing, folder: Path) -> Figure:
    """Write the drawing as SVG and PNG (200 dots per inch) into the folder."""
    svg, png = folder / f"{drawing.name}.svg", folder / f"{drawing.name}.png"
    drawing.canvas.savefig(svg, metadata={"Date": None, "Creator": "lm-power", "Title": drawing.title})
    drawing.canvas.savefig(png, dpi=200, metadata={"Software": "lm-power"})
    return Figure(drawing.name, drawing.title, drawing.caption, drawing.alt, svg, png)


def _left_to_right(line: str) -> str:
    """The line, with a mark that keeps it from being set from the right as a whole if it begins in Hebrew or Arabic."""
    return "\u200e" + line if any(bidirectional(c) in {"R", "AL"} for c in line) else line
