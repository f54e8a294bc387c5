"""The report's pages as files: nothing in them runs or is fetched, no text escapes, and the numbers are the tables'."""

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from report_pages import HOSTILE, WIDE, build_report, with_answers
from report_runs import make_run

from lm_power.chains import METHODS
from lm_power.report.page import Section, write_page
from lm_power.report.problems import HEAD, TAIL, write_problems
from lm_power.report.runs import Comparison
from lm_power.report.tables import make_tables
from lm_power.report.visible import one_line, visible

VOID = {"meta", "img", "br", "input", "link", "hr"}


class Page(HTMLParser):
    """A page read back: elements with their attributes, text, tables, and whether every tag is closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements, self.texts, self.rows, self.scripts, self._open = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open, f"{path}: left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif "style" not in self._open:
            self.texts.append(data)
            if {"td", "th"} & set(self._open):
                self.rows[-1][-1] += data

    @property
    def text(self):
        return "".join(self.texts)

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]


@pytest.fixture(params=["plain", "hostile"])
def report(request):
    return request.getfixturevalue(request.param)


def pages(folder):
    found = sorted(folder.rglob("*.html"))
    assert len(found) > 3
    return [(path, Page(path)) for path in found]


def test_no_page_fetches_or_runs_anything(report):
    """Guards the offline promise: pictures inside, links to files that are there, a policy that forbids the rest."""
    for path, page in pages(report):
        assert all(source.startswith("data:image/svg+xml;base64,") for source in page.attributes("src"))
        for address in page.attributes("href"):
            parts = urlsplit(address)
            assert not parts.scheme and not parts.netloc
            assert not parts.path or (path.parent / parts.path).is_file(), f"{path}: {address} leads nowhere"
        policy = page.elements[3][1]["content"]
        assert [tag for tag, _ in page.elements[:4]] == ["html", "head", "meta", "meta"], (
            "the policy comes before all else"
        )
        allowed = {
            "default-src 'none'",
            "img-src data:",
            "style-src 'unsafe-inline'",
            "base-uri 'none'",
            "form-action 'none'",
        }
        hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in page.scripts]
        scripts = {f"script-src {known}" for known in hashes}
        assert set(policy.split("; ")) == allowed | scripts
        assert len(page.scripts) == (path.name == "index.html" and path.parent != report)


def test_hostile_text_makes_no_element(hostile):
    """Guards the escaping, in text, attributes, titles, file names: the same elements as with harmless text."""
    ours = {
        "a", "aside", "b", "bdi", "body", "dd", "details", "div", "dl", "dt", "figcaption", "figure", "footer", "form",
        "h1", "h2", "h3", "h4", "head", "header", "html", "img", "label", "li", "main", "meta", "nav", "option", "p",
        "script", "section", "select", "span", "style", "summary", "table", "tbody", "td", "th", "thead", "title", "tr",
        "ul",
    }  # fmt: skip
    for path, page in pages(hostile):
        assert {tag for tag, _ in page.elements} <= ours, path
        names = {name for _, attributes in page.elements for name in attributes}
        assert not [name for name in names if name.startswith("on") or name == "style"], path
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", page.text), path
    problem = next(hostile.glob("problems/*/0001.html"))
    assert Page(problem).text.count(visible(HOSTILE)) >= 2 + 3, "prompt, target and completions, word for word"
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,60}", problem.parent.name)


def test_a_long_text_is_cut_and_says_so(hostile):
    """Guards against pages of megabytes, and against a cut that nobody notices."""
    path = next(hostile.glob("problems/*/0001.html"))
    assert path.stat().st_size < 150_000
    length = len(WIDE + HOSTILE)
    cut = f"{length - HEAD - TAIL:,} of {length:,} characters left out"
    assert Page(path).text.count(f"[{cut}; the whole text is in runs/<b>, document 0, completion 2]") == 3


def test_a_program_keeps_its_lines_and_prose_does_not(tmp_path):
    """Guards the indentation of code on a phone, where the text scrolls; long lines are broken, not scrolled."""
    program, prose = "    for x in y:\n        yield x\n", f"{'One long sentence. ' * 20}\nAnother."
    runs = [with_answers(make_run(name, problems=1, n=1), text=text) for name, text in (("a", program), ("b", prose))]
    build_report(Comparison("code", None, tuple(runs)), tmp_path)
    divisions = [
        attributes for tag, attributes in Page(next(tmp_path.glob("problems/*/0001.html"))).elements if tag == "div"
    ]
    texts = [attributes for attributes in divisions if attributes.get("class", "").startswith("text")]
    assert [attributes["class"] for attributes in texts] == ["text", "text", "text lines", "text"]
    assert [attributes.get("tabindex") for attributes in texts] == [None, None, "0", None]


def test_tables_on_the_page_are_the_tables(plain, plain_comparison):
    """Guards against a page that rounds, drops or reorders what the CSV says."""
    rows = Page(plain / "index.html").rows
    for table in make_tables(plain_comparison):
        wanted = [table.header, *table.texts()]
        start = rows.index(wanted[0])
        assert rows[start : start + len(wanted)] == wanted
        rows = rows[start + len(wanted) :]


def test_figures_notes_and_provenance_are_told(plain, hostile):
    """Guards what a reader needs beside the numbers: alt texts, captions, gaps, options, folders, versions."""
    page = Page(plain / "index.html")
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == 8 and all(len(picture["alt"]) > 30 for picture in pictures)
    exact = METHODS["power"].exact
    for words in (
        "runs/power",
        exact,
        "mcmc_steps=5",
        "task version",
        "lm-power",
        "Bars: one standard error over problems.",
    ):
        assert words in page.text
    assert one_line(HOSTILE, 600) in Page(hostile / "index.html").text, "the comparison's note"


def test_a_figure_left_out_is_explained(tmp_path):
    """Guards against a report of another model that silently lacks half its figures."""
    bare = with_answers(make_run(n=1, problems=2), self_reward=None, tokens=None, tokens_decoded=None, steps=None)
    page = Page(build_report(Comparison("pocket_sums", "none", (bare,)), tmp_path / "report"))
    assert "Acceptance by block: no run logs Metropolis–Hastings steps." in page.text
    assert not [tag for tag, _ in page.elements if tag in ("img", "figure")]


def test_problem_pages_lead_to_their_neighbours(plain):
    """Guards the way through the problems: first to last and back."""
    home = plain / "problems" / "pocket_sums"
    steps = {}
    for path in sorted(home.glob("0*.html")):
        steps[path.name] = {a["rel"]: a["href"] for tag, a in Page(path).elements if tag == "a" and "rel" in a}
    assert steps == {
        "0001.html": {"next": "0002.html"},
        "0002.html": {"prev": "0001.html", "next": "0003.html"},
        "0003.html": {"prev": "0002.html", "next": "0004.html"},
        "0004.html": {"prev": "0003.html"},
    }


def test_every_completion_is_there_once(tmp_path):
    """Guards the side by side: a text that comes back is named by its first, not dropped and not printed again."""
    run = make_run(problems=1, n=3)
    first, second, third = run.problems[0].completions
    completions = (first, second, dataclasses.replace(third, text=first.text))
    run = dataclasses.replace(run, problems=(dataclasses.replace(run.problems[0], completions=completions),))
    write_problems(
        Comparison("pocket_sums", "none", (run, make_run("other", problems=1, n=3))), tmp_path, "pocket_sums"
    )
    page = Page(tmp_path / "problems" / "pocket_sums" / "0001.html")
    assert len([tag for tag, _ in page.elements if tag == "details"]) == 2 + 3
    assert page.text.count("same text as completion 1") == 1
    assert page.text.count(second.text) == 1


def test_prompts_that_differ_are_all_shown(tmp_path):
    """Guards comparisons of unlike prompts, which the user may allow: each run's is shown with its name."""
    other = make_run("other", problems=1)
    other = dataclasses.replace(other, problems=(dataclasses.replace(other.problems[0], prompt="Quite another"),))
    write_problems(Comparison("pocket_sums", "none", (make_run("one", problems=1), other)), tmp_path, "pocket_sums")
    text = Page(tmp_path / "problems" / "pocket_sums" / "0001.html").text
    assert "Prompt of one" in text and "Prompt of other" in text and "Quite another" in text


def test_runs_without_verdicts_are_not_called_wrong(tmp_path):
    """Guards stores and partial credit: no verdict is neither right nor wrong, half a point is a score."""
    ungraded = with_answers(make_run("store", problems=1, n=2), correct=None)
    half = with_answers(make_run("half", problems=1, n=2), correct=0.5)
    write_problems(Comparison("pocket_sums", "none", (ungraded, half)), tmp_path, "pocket_sums")
    home = tmp_path / "problems" / "pocket_sums"
    text = Page(home / "0001.html").text
    assert text.count("not graded") == 1 + 2 and text.count("score 0.5") == 2
    assert "✓" not in text and "✗" not in text
    index = Page(home / "index.html")
    assert index.rows[1][:4] == ["1", "–", "1/2", "–"]
    assert [a["id"] for tag, a in index.elements if tag == "select"] == ["run1"]


def test_comparisons_do_not_overwrite_each_other(tmp_path):
    """Guards two tasks whose names would be one file name."""
    sections = [Section(Comparison(task, None, (make_run(task, problems=1, n=1),)), [], []) for task in ("a/b", "a:b")]
    page = Page(write_page(sections, tmp_path))
    homes = [tmp_path / address for address in page.attributes("href") if address.startswith("problems/")]
    assert ["a/b" in Page(home).text for home in homes] == [True, False]
    with pytest.raises(ValueError, match="at least one"):
        write_page([], tmp_path)
