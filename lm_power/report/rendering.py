"""HTML from templates. Every value is escaped and made visible, and no text can make a page run or fetch anything."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from lm_power.report.visible import one_line, parts, visible

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def write_html(path: Path, template: str, **values: Any) -> Path:
    """Fill in the template, write it to `path` as UTF-8, and return the path.

    Raises:
        jinja2.UndefinedError: for a value that the template needs and did not get.
    """
    path.write_text(_environment().get_template(template).render(**values), encoding="utf-8")
    return path


def policy(script: str | None = None) -> str:
    """The pages' Content-Security-Policy: nothing is fetched, and only this script runs, identified by its hash."""
    if script is None:
        return _POLICY
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"{_POLICY}; script-src 'sha256-{digest}'"


def template_text(name: str) -> str:
    """A style sheet or script of ours as it stands, to be put into pages whole."""
    source, _, _ = _loader().get_source(_environment(), name)
    return source


def slug(text: str) -> str:
    """A file name's part made of the text: letters, digits, `-` and `_` of ASCII, at most 60.

    >>> slug("../math500, strict"), slug("...")
    ('math500-strict', 'unnamed')
    """
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:60] or "unnamed"


def unique_slugs(names: Sequence[str]) -> list[str]:
    """A slug for each name, all numbered if two would be one file where upper and lower case are the same.

    >>> unique_slugs(["gsm8k", "math500"]), unique_slugs(["a/b", "A:b"])
    (['gsm8k', 'math500'], ['1-a-b', '2-A-b'])
    """
    slugs = [slug(name) for name in names]
    if len({name.lower() for name in slugs}) == len(slugs):
        return slugs
    return [f"{i}-{name}" for i, name in enumerate(slugs, start=1)]


def shown(text: str) -> Markup:
    """The text as HTML, with the signs that stand for hidden characters marked as such."""
    return Markup("").join(
        Markup('<span class="control">{}</span>').format(part) if is_sign else escape(part)
        for part, is_sign in parts(text)
    )


def number(value: float | None, digits: int) -> str:
    """The value to that many decimals, with a true minus sign; a dash where there is none.

    >>> number(-0.5, 2), number(None, 2)
    ('−0.50', '–')
    """
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def data_uri(path: Path, kind: str) -> str:
    """The file as a data URI of that media type."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _loader() -> jinja2.PackageLoader:
    return jinja2.PackageLoader("lm_power.report", encoding="utf-8")


@functools.cache  # it keeps the compiled templates
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=_loader(),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Before escaping, so that every value is treated; what is HTML already has been through `shown`.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {"one_line": one_line, "shown": shown, "number": number}
    # Ours, and the same in every page: the one thing that goes in unescaped.
    environment.globals["asset"] = lambda name: Markup(template_text(name))
    return environment
