"""The synthetic law of examples/synthetic against an enumeration of its sequences, and its pictures."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lm_power import theory

EXAMPLE = Path(__file__).parents[2] / "examples" / "synthetic"
sys.path.insert(0, str(EXAMPLE))
try:
    import drawing
    import figures
    import monte_carlo
    import paper
    import zipf
finally:
    sys.path.remove(str(EXAMPLE))

SMALL = zipf.ZipfLaw(9, 7)
EXACT = {"abs": 1e-12, "rel": 0}
both = pytest.mark.parametrize("alpha", [1.0, 1.5, 4.0])


def following(p: theory.SequenceDistribution) -> np.ndarray:
    """Probabilities of the first token, in the order of the ranks."""
    table = p.next_token().table()
    return np.array([table[k,] for k in range(SMALL.candidates)])


def test_the_law_is_as_described() -> None:
    """Guards the example's law: Zipf over ranks, suffixes of full support and equal number, γ wave plus trend."""
    table = SMALL.sequences().table()
    assert len(table) == 9 * 7
    for k in range(9):
        u = math.log(k + 1) / math.log(9)
        gamma = 0.75 + 0.2 * math.sin(2 * math.pi * 2.5 * u) + 0.3 * u
        first = (k + 1) ** -1.0 / sum(j**-1.0 for j in range(1, 10))
        for m in range(7):
            suffix = (m + 1) ** -gamma / sum(j**-gamma for j in range(1, 8))
            assert table[k, m] == pytest.approx(first * suffix, **EXACT)


@both
def test_exact_quantities_agree_with_brute_force(alpha: float) -> None:
    """Guards every number in the pictures but the Monte Carlo ones: arrays against all sequences, to 1e-12."""
    p = SMALL.sequences()
    power, tempered = p.power(alpha), p.tempered(1 / alpha)
    assert np.exp(SMALL.power(alpha)) == pytest.approx(following(power), **EXACT)
    assert np.exp(SMALL.tempered(1 / alpha)) == pytest.approx(following(tempered), **EXACT)
    for order in (1, alpha, math.inf):
        assert SMALL.entropies(order) == pytest.approx(p.suffix_entropies((), order), **EXACT)
    # The suffix is one step, so the two laws over whole sequences differ by what their first tokens do.
    pair = SMALL.power(alpha), SMALL.tempered(1 / alpha)
    assert theory.total_variation(*pair) == pytest.approx(power.total_variation(tempered), **EXACT)
    assert theory.kl_divergence(*pair) == pytest.approx(power.kl_divergence(tempered), **EXACT)
    for tau in (1.0, 0.4):
        moments, q = SMALL.moments(alpha, tau), following(p.tempered(tau))
        through = [math.fsum(x**alpha for (k, _), x in p.table().items() if k == token) for token in range(9)]
        w = np.array(through) / q
        assert moments.log_mean == pytest.approx(math.log(math.fsum(q * w)), **EXACT)
        assert 1 + moments.cv**2 == pytest.approx(math.fsum(following(power) ** 2 / q), **EXACT)
        assert moments.ess_fraction == pytest.approx(math.fsum(q * w) ** 2 / math.fsum(q * w**2), **EXACT)
    best = max(p.table(), key=p.table().__getitem__)
    assert theory.maximiser_mass(SMALL.joint, alpha) == pytest.approx(power.table()[best], **EXACT)
    assert np.exp(SMALL.log_tempered_maximum(alpha)) == pytest.approx(tempered.table()[best], **EXACT)


@both
def test_the_papers_figures_show_exact_values(alpha: float) -> None:
    """Guards S.6 to S.9: corrections, preferences, proposals and their quality, against sums over all sequences."""
    p = SMALL.sequences()
    power, tempered = following(p.power(alpha)), following(p.tempered(1 / alpha))
    predicted, computed = paper.corrections(SMALL, alpha)
    pairs = [(a, b) for a in range(9) for b in range(a + 1, 9)]
    assert list(zip(*SMALL.pairs(), strict=True)) == pairs
    by_hand = [math.log(power[a] / power[b]) - math.log(tempered[a] / tempered[b]) for a, b in pairs]
    assert computed == pytest.approx(by_hand, **EXACT)
    assert predicted == pytest.approx(by_hand, **EXACT)
    changed = {a: b for a, b in pairs if power[a] < power[b]}
    found = paper.heaviest_changes(SMALL, alpha)
    assert {pairs[place][0] for place in found} == set(changed)
    entropies = p.suffix_entropies((), alpha)
    for a, b in (pairs[place] for place in found):
        assert tempered[a] > tempered[b] and power[a] < power[b] and entropies[a] > entropies[b]
        assert power[b] == max(power[c] for c in range(a + 1, 9) if tempered[a] * power[c] > 0 and power[a] < power[c])
    proposals = {
        "base p": following(p),
        "token-wise, τ = 1/α": tempered,
        "uniform": np.full(9, 1 / 9),
        "optimal": power,
    }
    moments, weights = paper.exact_moments(SMALL, alpha), SMALL.proposal_weights(alpha)
    assert list(moments) == list(proposals)
    for name, q in proposals.items():
        through = [math.fsum(x**alpha for (k, _), x in p.table().items() if k == token) for token in range(9)]
        assert np.exp(SMALL.proposals(alpha)[name]) == pytest.approx(q, **EXACT)
        assert np.exp(weights[name]) == pytest.approx(np.array(through) / q, **EXACT)
        assert 1 + moments[name].cv ** 2 == pytest.approx(math.fsum(power**2 / q), **EXACT)
        assert 1 / moments[name].ess_fraction == pytest.approx(math.fsum(power**2 / q), **EXACT)
    constant = [name for name, w in weights.items() if np.ptp(w) < 1e-12]
    assert constant == (["optimal"] if alpha > 1 else ["base p", "token-wise, τ = 1/α", "optimal"])


def test_what_the_readme_says_of_the_papers_figures() -> None:
    """Guards the numbers in the README, and the order of S.10 that it states; draws are seeded."""
    law = zipf.ZipfLaw()
    for alpha in paper.TESTED:
        predicted, computed = paper.corrections(law, alpha)
        assert len(predicted) == 124_750 and np.abs(predicted - computed).max() < 1e-11
    predicted, _ = paper.corrections(law, 4.0)
    assert (predicted.min(), predicted.max()) == pytest.approx((-6.9, 4.6), abs=0.05)
    first, second = law.pairs()
    power, tempered = law.power(4.0), law.tempered(0.25)
    assert (tempered[first] > tempered[second]).all()
    assert (power[first] < power[second]).mean() == pytest.approx(0.12, abs=0.005)
    assert (first[paper.heaviest_changes(law, 4.0)[0]], second[paper.heaviest_changes(law, 4.0)[0]]) == (0, 1)
    exact = {name: float(m.ess_fraction) for name, m in paper.exact_moments(law, 4.0).items()}
    assert exact == pytest.approx(
        {"base p": 0.195, "token-wise, τ = 1/α": 0.193, "uniform": 0.004, "optimal": 1}, abs=1e-3
    )
    for alpha in (2.0, 4.0):
        exact = {name: float(m.ess_fraction) for name, m in paper.exact_moments(law, alpha).items()}
        sampled = paper.sampled_ess(law, alpha)
        assert {name: means[-1] for name, means in sampled.items()} == pytest.approx(exact, rel=0.1)
        order = sorted(exact, key=exact.__getitem__)
        for place, n in enumerate(paper.DRAWS):
            at = sorted(sampled, key=lambda name: sampled[name][place])
            assert at[-1] == "optimal"
            assert at == order if alpha == 2.0 else (at[0] == "uniform") == (n >= 30)


def test_the_estimates_are_of_the_exact_values() -> None:
    """Guards the Monte Carlo picture: mean weights within 5 standard errors of the exact mean.

    False-alarm probability below 1e-5 for new random numbers; the seed is fixed.
    """
    law, alpha, tau = zipf.ZipfLaw(100, 100), 4.0, 0.5
    exact = law.moments(alpha, tau)
    q = law.tempered(tau), law.log_weights(alpha, tau)
    estimates = monte_carlo.weight_estimates(*q, seed=1, sizes=(100, 1000))
    ratios = np.exp(estimates.log_mean - exact.log_mean)
    errors = exact.cv / np.sqrt(np.array([100, 1000]) * monte_carlo.REPEATS)
    assert (np.abs(ratios.mean(axis=1) - 1) < 5 * errors).all()
    assert ratios.std(axis=1) == pytest.approx(exact.cv / np.sqrt([100, 1000]), rel=0.25)
    assert estimates.ess_fraction[1].mean() == pytest.approx(exact.ess_fraction, rel=0.02)
    again = monte_carlo.weight_estimates(*q, seed=1, sizes=(100, 1000))
    np.testing.assert_array_equal(again.log_mean, estimates.log_mean)


def test_rollouts_find_the_power_distribution() -> None:
    """Guards the look ahead: more rollouts come nearer, and the ranks left out weigh nothing."""
    law = zipf.ZipfLaw()
    target = law.power(drawing.ALPHA)
    assert np.exp(target[50:]).sum() < 1e-3
    far, near = (
        monte_carlo.power_by_rollouts(law, drawing.ALPHA, rollouts, target, seed=0, repeats=20) for rollouts in (4, 400)
    )
    assert near.mean() < 0.1 < far.mean()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, dict[str, Figure]]:
    """What the command makes of a small law: its folder, and the figures by name."""
    folder = tmp_path_factory.mktemp("synthetic") / "new" / "pictures"
    made: dict[str, Figure] = {}

    def kept(name: str, make: Callable[[zipf.ZipfLaw], Figure], law: zipf.ZipfLaw) -> Figure:
        made[name] = make(law)
        return made[name]

    keeping = {name: functools.partial(kept, name, make) for name, make in figures.FIGURES.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["figures.py", "--output", str(folder), "--candidates", "100", "--suffixes", "100"])
        patch.setattr(figures, "FIGURES", keeping)
        figures.main()
    return folder, made


@pytest.mark.slow
def test_the_command_draws_all(drawn) -> None:
    """Guards the one command: SVG and PNG of S.5 to S.10 and of the six others, none of them empty."""
    folder, _ = drawn
    assert [name.split("_")[0] for name in paper.PAPER] == [f"s{number}" for number in range(5, 11)]
    assert len(figures.FIGURES) == 12
    for name in figures.FIGURES:
        assert (folder / f"{name}.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")
        assert (folder / f"{name}.png").stat().st_size > 10_000
    assert len(list(folder.iterdir())) == 24


@pytest.mark.slow
@pytest.mark.parametrize("name", figures.FIGURES)
def test_no_text_is_cut_off(name: str, drawn) -> None:
    """Guards the layout: every title, label and legend lies inside its picture, and none is missing."""
    figure = drawn[1][name]
    with figures.mpl.rc_context(drawing.STYLE):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    for axes in figure.axes:
        texts = [axes.title, axes.xaxis.label, axes.yaxis.label]
        assert all(text.get_text() for text in texts)
        for shown in (*texts, *filter(None, [axes.get_legend()])):
            box = shown.get_window_extent(canvas.get_renderer())
            assert min(box.x0, box.y0) >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1
    assert any(axes.get_legend() for axes in figure.axes)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--candidates", "20"], "--candidates 20: must be at least 100"),
        (["--output", __file__], "must be a folder, and this is a file"),
    ],
)
def test_bad_options(arguments: list[str], says: str, monkeypatch, capsys) -> None:
    """Guards the command line: a wrong option is named before anything is drawn."""
    monkeypatch.setattr(sys, "argv", ["figures.py", *arguments])
    with pytest.raises(SystemExit):
        figures.main()
    assert says in capsys.readouterr().err
