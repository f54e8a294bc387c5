"""A headless Chromium for the tests of the report's pages: what a reader's browser makes of them."""

import dataclasses
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH to open the pages with")

# In frames of a given width, beside the pages' own policy, which lets no script of a test into them.
PROBE = """<!DOCTYPE html><title>probe</title><pre id="seen"></pre>
<script>
const pages = %s, seen = [];
function look(page, done) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `border: 0; height: 800px; width: ${page.width}px`;
  frame.src = page.url;
  frame.onload = () => {
    const own = frame.contentDocument, root = own.documentElement;
    if (page.choose) {
      const select = own.getElementById(page.choose[0]);
      select.value = page.choose[1];
      select.dispatchEvent(new Event("change", {bubbles: true}));
    }
    if (page.click) own.querySelector(page.click).click();
    seen.push({
      title: own.title, text: own.body.innerText, textContent: own.body.textContent,
      overflow: root.scrollWidth - root.clientWidth,
      scripts: own.scripts.length, handlers: own.querySelectorAll("[onerror], [onclick], [onload]").length,
      images: [...own.images].map((image) => [image.src.slice(0, 18), image.naturalWidth, image.alt]),
      links: [...own.links].map((link) => link.getAttribute("href")),
      tags: [...new Set([...own.querySelectorAll("*")].map((element) => element.localName))],
      rows: [...own.querySelectorAll("tbody tr")].filter((row) => row.offsetParent)
        .map((row) => [...row.cells].map((cell) => cell.textContent)),
    });
    frame.remove();
    done();
  };
  document.body.append(frame);
}
const next = () => pages.length ? look(pages.shift(), next)
  : (document.getElementById("seen").textContent = JSON.stringify(seen), document.title = "done");
next();
</script>"""


@dataclasses.dataclass(frozen=True)
class Visit:
    """What the browser made of the pages.

    Attributes:
        pages: for each what `PROBE` records.
        console: everything that the browser wrote to its console: errors, refusals of the policy.
        requests: every address on a network that a page asked for; what the browser fetches for itself left out.
    """

    pages: list[dict]
    console: list[str]
    requests: list[str]


def visit(folder: Path, *pages: dict) -> Visit:
    """Open the pages one after the other.

    Args:
        folder: empty, for the browser's files.
        pages: `url`, `width` in CSS pixels, and what to do there: `choose` [id of a select, value], `click` a selector.
    """
    probe, log = folder / "probe.html", folder / "net.json"
    probe.write_text(PROBE % json.dumps(pages), encoding="utf-8")
    result = chromium(
        folder, "--allow-file-access-from-files", "--enable-logging=stderr", f"--log-net-log={log}",
        "--virtual-time-budget=20000", "--dump-dom", probe.as_uri(),
    )  # fmt: skip
    dom = result.stdout
    assert "<title>done</title>" in dom, f"the probe did not finish:\n{dom[:2000]}\n{result.stderr[-2000:]}"
    asked = set()
    for line in log.read_text(errors="replace").splitlines():
        url = re.search(r'"url":"((?:https?|wss?|ftp)://[^"]*)"', line)
        # A request that a page makes names the page's origin; the browser's own (updates and the like) name none.
        initiator = re.search(r'"initiator":"([^"]*)"', line)
        if url and initiator and initiator[1] != "not an origin":
            asked.add(url[1])
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    return Visit(
        pages=json.loads(unescape(found[1])),
        console=[line for line in result.stderr.splitlines() if "CONSOLE" in line],
        requests=sorted(asked),
    )


def chromium(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Chromium with a profile of its own and nothing of its own going out; raises if it fails."""
    return subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}", *arguments,
        ],
        capture_output=True, encoding="utf-8", errors="replace", timeout=180, check=True,
    )  # fmt: skip
