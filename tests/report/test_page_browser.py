"""The report in a real browser: what it runs, fetches, shows and hides. Skipped where there is no Chromium."""

import itertools

import pytest
from report_browser import needs_browser, visit
from report_pages import HOSTILE

from lm_power.report.visible import one_line, visible

pytestmark = needs_browser

PHONE, DESK = 360, 1280
BAD_PAGE = """<!DOCTYPE html><title>kept</title><body><div style="width: 700px">wide</div>
<img src="http://hostile.invalid/i.png" onerror="document.title='owned'"><script>console.error("heard")</script>"""


@pytest.fixture(scope="module")
def visits(plain, hostile, tmp_path_factory):
    """All in one run of the browser: what was seen of (report, page, width), or after a deed, and the whole visit."""
    asked = {}
    for kind, folder in {"plain": plain, "hostile": hostile}.items():
        (home,) = (folder / "problems").iterdir()
        pages = {"report": folder / "index.html", "problems": home / "index.html", "problem": home / "0001.html"}
        for (name, path), width in itertools.product(pages.items(), (PHONE, DESK)):
            asked[kind, name, width] = {"url": path.as_uri(), "width": width}
    problems = asked["plain", "problems", DESK]
    asked["filtered"] = {**problems, "choose": ["run0", "all"]}
    asked["sorted"] = {**problems, "click": "th:nth-child(2) button"}
    visited = visit(tmp_path_factory.mktemp("browser"), *asked.values())
    return dict(zip(asked, visited.pages, strict=True)), visited


@pytest.fixture(scope="module")
def seen(visits):
    return visits[0]


def test_the_browser_would_tell(tmp_path):
    """Guards these tests: a page that fetches, runs a script, complains and is too wide is found out."""
    (tmp_path / "bad.html").write_text(BAD_PAGE)
    visited = visit(tmp_path, {"url": (tmp_path / "bad.html").as_uri(), "width": PHONE})
    (page,) = visited.pages
    assert page["title"] == "owned" and page["overflow"] > 300 and page["scripts"] == 1 and page["handlers"] == 1
    assert visited.requests == ["http://hostile.invalid/i.png"]
    assert any("heard" in line for line in visited.console)


def test_nothing_is_fetched_refused_or_complained_of(visits):
    """Guards the offline promise as the browser sees it, our own script's hash included."""
    _, visited = visits
    assert visited.requests == []
    assert visited.console == []


@pytest.mark.parametrize("name", ["report", "problems", "problem"])
@pytest.mark.parametrize("kind", ["plain", "hostile"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_no_page_is_wider_than_the_screen(seen, kind, name, width):
    """Guards phones: only tables scroll sideways, within themselves, whatever the texts."""
    assert seen[kind, name, width]["overflow"] == 0


def test_hostile_text_is_text(seen):
    """Guards readers: nothing ran, nothing was added to the page, and the text is there to be read, word for word."""
    for name in ("report", "problems", "problem"):
        page = seen["hostile", name, DESK]
        assert page["title"] != "owned" and "<script>" in page["title"]
        assert page["handlers"] == 0
        assert page["scripts"] == (name == "problems")
        assert set(page["tags"]) <= set(seen["plain", name, DESK]["tags"]) | {"aside", "ul", "li", "span"}
        assert not [link for link in page["links"] if ":" in link]
    assert one_line(HOSTILE, 600) in seen["hostile", "report", DESK]["text"]
    # What is shown of a bidi control is its name, so the order of what is painted is the order of the text.
    assert " ".join(visible(HOSTILE).split()) in " ".join(seen["hostile", "problem", DESK]["text"].split())


def test_pictures_are_painted_and_described(seen):
    """Guards the data URIs: the policy lets them through and they are pictures."""
    images = seen["plain", "report", DESK]["images"]
    assert len(images) == 8
    assert all(source == "data:image/svg+xml" and width > 0 and alt for source, width, alt in images)


def test_the_index_filters_and_sorts(seen):
    """Guards the way to "this run right, that run wrong": the filter hides the others, a heading sorts."""
    rows = seen["plain", "problems", DESK]["rows"]
    kept = [row for row in rows if row[1] == "2/2"]
    assert 0 < len(kept) < len(rows)
    assert seen["filtered"]["rows"] == kept
    assert f"{len(kept)} of {len(rows)} problems" in seen["filtered"]["text"]
    assert seen["sorted"]["rows"] == sorted(rows, key=lambda row: -int(row[1][0]))
