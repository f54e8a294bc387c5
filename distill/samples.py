"""Teacher data from lm-eval's `--log_samples` files, of any model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lm_power.distill.sources import Drawn, TeacherDataError
from lm_power.logs.results import results_beside
from lm_power.logs.samples import Document, LoggedCompletion, problem_of, read_samples


def read_logged(path: Path) -> list[Drawn]:
    """The completions of an lm-eval samples file, by document and repeat, as they were drawn.

    A task with several filters logs its completions once per filter. They are taken once, and count as correct if the
    metrics of one filter say so.

    Raises:
        LogError: a line is damaged, or is of a task that generates no text.
        TeacherDataError: its settings are those of another version.
    """
    results = results_beside(path)
    identity = None if results is None else results.identity
    model = None if identity is None else str(identity)
    documents: dict[str, tuple[int, list[Drawn]]] = {}
    for document in read_samples(path):
        settings = document.generation
        if results is not None:
            drawing = results.drawing(document.generation)
            if drawing.complaint is not None:
                raise TeacherDataError(f"{document.where}: its settings are not this lm-power's ({drawing.complaint})")
            settings = drawing.options if drawing.method is None else {"method": drawing.method, **drawing.options}
        padding = [LoggedCompletion(text) for text in document.padding]
        rows = enumerate([*document.completions, *padding])
        own = len(document.completions)
        drawn = [_drawn(document, one, repeat, model, settings, repeat >= own) for repeat, one in rows]
        name = json.dumps([document.doc_id, document.request, [one.text for one in drawn]])
        if name in documents:
            earlier = documents[name][1]
            drawn = [
                dataclasses.replace(first, correct=_either(first.correct, second.correct))
                for first, second in zip(earlier, drawn, strict=True)
            ]
        documents[name] = (document.doc_id, drawn)
    # With several processes, lm-eval logs one process's documents after another's, not in the order of the data set.
    in_order = sorted(documents.values(), key=lambda document: document[0])
    return [one for _, drawn in in_order for one in drawn]


def _drawn(
    document: Document,
    one: LoggedCompletion,
    repeat: int,
    model: str | None,
    settings: dict[str, Any],
    is_padding: bool,
) -> Drawn:
    text = one.text if one.drawn_text is None else one.drawn_text
    return Drawn(
        key=json.dumps([model, settings, document.request, repeat, text]),
        where=document.where,
        prompt=document.prompt,
        messages=document.messages,
        text=text,
        repeat=repeat,
        config=settings,
        model=model,
        finish_reason=one.finish_reason,
        self_reward=one.self_reward,
        tokens_decoded=one.tokens_decoded,
        correct=None if one.correct is None else one.correct == 1,
        problem=problem_of(document.doc),
        is_padding=is_padding,
    )


def _either(first: bool | None, second: bool | None) -> bool | None:
    known = [verdict for verdict in (first, second) if verdict is not None]
    return any(known) if known else None
