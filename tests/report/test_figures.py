"""The report's figures: they show what was computed, and nothing in them is hidden, clipped or on top of another."""

import dataclasses
import itertools
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text
from report_pages import HOSTILE, with_answers
from report_runs import make_comparison, make_run

from lm_power.report.figure_data import acceptance_by_stage
from lm_power.report.figures import DRAWERS, Figure, Omitted, write_figures
from lm_power.report.figures.acceptance import by_block
from lm_power.report.figures.accuracy import cost, reliability_by_decile
from lm_power.report.figures.histograms import length, self_reward
from lm_power.report.figures.style import look, plain, settings
from lm_power.report.runs import Comparison
from lm_power.report.summary import summarise

LONG = (
    "Qwen/Qwen2.5-Math-7B-Instruct-of-a-long-name + runs/distil/round_{}, power, alpha=4, mcmc_steps=10, block_size=192"
)


def comparison_of(*runs):
    return Comparison(task="pocket_sums", filter="none", runs=runs)


def twelve_runs():
    return comparison_of(*(make_run(LONG.format(i), skill=0.1 + 0.08 * i, problems=3, n=3) for i in range(12)))


def hostile_labels(endings="ab"):
    return comparison_of(*(dataclasses.replace(make_run(n=2, problems=3), label=HOSTILE + end) for end in endings))


EXTREMES = {
    "three runs": lambda: make_comparison(problems=8),
    "twelve runs, long labels": twelve_runs,
    "one problem, one completion": lambda: comparison_of(make_run(problems=1, n=1)),
    "all right": lambda: comparison_of(make_run("a", skill=99, problems=5)),
    "all wrong": lambda: comparison_of(make_run("a", skill=0, problems=5), make_run("b", skill=0, problems=5)),
    "hostile labels": hostile_labels,
    "many completions": lambda: comparison_of(make_run(n=17, problems=5)),
}


@pytest.fixture(autouse=True)
def house_style():
    with settings():
        yield


def painted(canvas):
    """The texts that are painted: not those of ticks beyond the ends of their axis."""
    beyond = set()
    for axes in canvas.axes:
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            beyond |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    return [t for t in canvas.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in beyond]


@pytest.mark.parametrize("name", EXTREMES)
def test_nothing_is_clipped_or_covered(name):
    """Guards the layout: text inside the picture and not on other text, the legend clear of the data."""
    comparison = EXTREMES[name]()
    for draw in DRAWERS:
        drawing = draw(comparison)
        if isinstance(drawing, Omitted):
            continue
        canvas = drawing.canvas
        canvas.draw_without_rendering()
        boxes = [(text.get_text(), text.get_window_extent()) for text in painted(canvas)]
        for words, box in boxes:
            inside = (
                canvas.bbox.x0 <= box.x0
                and box.x1 <= canvas.bbox.x1
                and canvas.bbox.y0 <= box.y0
                and box.y1 <= canvas.bbox.y1
            )
            assert inside, f"{drawing.name}: {words!r} is cut off"
        for (words, box), (others, other) in itertools.combinations(boxes, 2):
            assert not box.padded(-1).overlaps(other), f"{drawing.name}: {words!r} and {others!r} overlap"
        for axes, legend in itertools.product(canvas.axes, canvas.legends):
            assert not axes.get_window_extent().overlaps(legend.get_window_extent()), (
                f"{drawing.name}: legend over data"
            )


def test_twelve_runs_are_told_apart_without_colour():
    """Guards grey print and colour-blind readers: no two runs share marker and line style."""
    looks = [look(i) for i in range(12)]
    assert len({one.marker for one in looks}) == 12
    assert all(one.linestyle != other.linestyle for one, other in itertools.pairwise(looks))


def test_labels_are_told_apart_however_long():
    """Guards against twelve long names that are the same once shortened."""
    canvas = cost(twelve_runs()).canvas
    names = [text.get_text() for text in canvas.legends[0].get_texts()]
    assert len(set(names)) == len(names)


def test_labels_are_never_read_as_mathematics():
    """Guards against matplotlib setting a $…$ in a name as a formula, or failing on one that is none."""
    canvas = cost(comparison_of(dataclasses.replace(make_run(n=1), label=r"$\frac{1}$ of $x$"))).canvas
    assert canvas.legends[0].get_texts()[0].get_text() == r"\$\frac{1}\$ of \$x\$"
    canvas.draw_without_rendering()
    assert plain("a\x1b\n漢") == "a⟨U+27E8⟩".replace("⟨U+27E8⟩", "⟨ESC⟩ ⟨U+6F22⟩")


def test_cost_shows_the_numbers_of_table_1():
    """Guards against swapped axes, a wrong run's colour, and a best of N at the cost of one."""
    comparison = make_comparison(problems=8)
    axes = cost(comparison).canvas.axes[0]
    points = [c.lines[0] for c in axes.containers if isinstance(c, ErrorbarContainer)]
    expected = []
    for i, summary in enumerate(map(summarise, comparison.runs)):
        expected.append((look(i).color, summary.tokens_decoded.value, summary.accuracy.value))
        expected.append((look(i).color, summary.problem_tokens_decoded.value, summary.bon_accuracy.value))
    assert [(p.get_color(), *map(float, p.get_xydata()[0])) for p in points] == expected


@pytest.mark.parametrize("decoded", [(900, 5000), (3000, 5000), (0, 9000)], ids=["log", "linear", "from zero"])
def test_error_bars_of_costs_end_inside_the_axes(decoded):
    """Guards the limits of the cost axis, which once covered the points alone and cut a wide bar at the edge."""
    few, many = (
        with_answers(make_run(label, problems=2, n=1, skill=skill), tokens_decoded=tokens)
        for label, skill, tokens in zip("ab", (0, 99), decoded, strict=True)
    )
    spread = tuple(
        dataclasses.replace(p, completions=(dataclasses.replace(p.completions[0], tokens_decoded=cost),))
        for p, cost in zip(many.problems, (decoded[1] // 4, decoded[1] * 2), strict=True)
    )
    axes = cost(comparison_of(few, dataclasses.replace(many, problems=spread))).canvas.axes[0]
    low, high = axes.get_xlim()
    bars = [bar for c in axes.containers for collection in c.lines[2] for bar in collection.get_segments()]
    assert len(bars) == 4 and max(x for bar in bars for x, _ in bar) > decoded[1] * 1.9
    assert all(low <= x <= high for bar in bars for x, _ in bar)


@pytest.mark.parametrize("draw, quantity", [(self_reward, "self_reward"), (length, "tokens")])
def test_histograms_count_every_completion_once(draw, quantity):
    """Guards the bins: a value at an edge must not fall out, and right and wrong must not be swapped."""
    run = make_run(problems=10, n=5)
    axes = draw(comparison_of(run)).canvas.axes[0]
    right, wrong = (patch.get_data().values.sum() for patch in axes.patches)
    completions = [completion for problem in run.problems for completion in problem.completions]
    assert right == sum(a.correct == 1 for a in completions)
    assert -wrong == sum(a.correct == 0 for a in completions)


def test_a_hopeless_completion_does_not_flatten_the_others():
    """Guards the axis of a real run: one self-reward of −7.5 among hundreds above −2 took three quarters of it."""
    run = make_run(problems=60, n=5)
    far = dataclasses.replace(run.problems[0].completions[0], self_reward=-50.0)
    first = dataclasses.replace(run.problems[0], completions=(far, *run.problems[0].completions[1:]))
    drawing = self_reward(comparison_of(dataclasses.replace(run, problems=(first, *run.problems[1:]))))
    axes = drawing.canvas.axes[0]
    assert axes.get_xlim()[0] > -5 and "down to −50." in drawing.caption
    assert sum(abs(patch.get_data().values).sum() for patch in axes.patches) == 300


@pytest.mark.filterwarnings("error")
def test_a_model_that_is_sure_of_everything_has_a_histogram():
    """Guards an axis without width where all self-rewards are 0."""
    run = make_run(problems=2, n=2)
    sure = [
        dataclasses.replace(
            problem, completions=tuple(dataclasses.replace(c, self_reward=0.0) for c in problem.completions)
        )
        for problem in run.problems
    ]
    drawing = self_reward(comparison_of(dataclasses.replace(run, problems=tuple(sure))))
    low, high = drawing.canvas.axes[0].get_xlim()
    assert low < 0 < high


def test_acceptance_shows_every_block():
    """Guards against blocks shifted by half a bin."""
    run = make_run(problems=8)
    axes = by_block(comparison_of(run)).canvas.axes[0]
    shown = axes.containers[0].lines[0].get_xydata()
    assert shown.tolist() == [[b.low, b.share.value] for b in acceptance_by_stage(run)]


@pytest.mark.parametrize("runs", [3, 6])
def test_reliability_shows_every_run(runs):
    """Guards the change from one panel to a panel a run."""
    canvas = reliability_by_decile(comparison_of(*(make_run(f"run {i}", problems=8) for i in range(runs)))).canvas
    assert sum(len(axes.containers) for axes in canvas.axes) == runs
    assert len(canvas.axes) == (1 if runs == 3 else runs)


def test_what_is_missing_is_left_out_with_its_reason(tmp_path):
    """Guards against empty axes: no self-rewards, no steps, one completion."""
    bare = with_answers(make_run(n=1), self_reward=None, tokens=None, tokens_decoded=None, steps=None)
    found = write_figures(comparison_of(bare), tmp_path)
    assert [type(figure) for figure in found] == [Omitted] * len(DRAWERS)
    assert all(figure.reason for figure in found)
    assert not list(tmp_path.iterdir())


def test_a_run_that_a_figure_lacks_is_named():
    """Guards against a comparison of two that silently shows one."""
    bare = with_answers(make_run("plain hf", method="sampled"), self_reward=None, tokens_decoded=None, steps=None)
    drawings = [draw(comparison_of(make_run("ours"), bare)) for draw in DRAWERS]
    lacking = {drawing.name for drawing in drawings if "Not shown, for lack of data: plain hf." in drawing.caption}
    assert lacking == {
        "accuracy_by_cost", "reliability", "self_reward_histogram", "acceptance_by_block", "acceptance_by_cut",
    }  # fmt: skip


def test_files_are_complete_inert_and_repeatable(tmp_path):
    """Guards the SVGs: well-formed, without scripts or addresses to fetch, the same bytes from the same runs."""
    before = dict(matplotlib.rcParams)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (write_figures(hostile_labels("a"), tmp_path / name) for name in ("one", "two"))
    for figure, again in zip(one, two, strict=True):
        assert isinstance(figure, Figure) and isinstance(again, Figure)
        assert figure.png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert figure.svg.read_bytes() == again.svg.read_bytes()
        assert figure.title and figure.caption and figure.alt
        elements = list(ElementTree.parse(figure.svg).iter())
        assert not [e for e in elements if e.tag.rpartition("}")[2] in ("script", "foreignObject", "image", "a")]
        targets = [v for e in elements for k, v in e.attrib.items() if k.rpartition("}")[2] == "href"]
        assert all(target.startswith("#") for target in targets)
    assert dict(matplotlib.rcParams) == before, "matplotlib's settings were changed for the caller"
