"""lm-eval's `--log_samples` files, of any model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lm_power.config import LENGTH_NAMES, OptionError, SamplerConfig, option_names
from lm_power.distill.sources import FINISH_REASONS, Drawn, TeacherDataError, is_int, parse_line, read_rows, require

PROBLEM_FIELDS = ("problem", "question", "Question", "prompt", "instruction")
"""Where a document keeps its problem, before any template: the first of these that holds a text."""

_VERDICTS = ("acc", "exact_match")  # of a stock task's line: its metric, where it is one completion's


def read_samples(path: Path) -> list[Drawn]:
    """The completions of an lm-eval samples file, by document and repeat.

    A task with several filters logs its completions once for each: they are taken once, and count as correct
    if one of the filters' metrics says so.

    Raises:
        TeacherDataError: a line is damaged, or is of a task that generates no text.
    """
    model, sampler = _run_facts(path)
    documents: dict[str, tuple[int, list[Drawn]]] = {}
    for where, row in read_rows(path):
        drawn = _from_sample(row, where, model, sampler)
        name = json.dumps([row["doc_id"], row["arguments"], row["resps"]])
        if name in documents:
            earlier = documents[name][1]
            drawn = [
                dataclasses.replace(first, correct=_either(first.correct, second.correct))
                for first, second in zip(earlier, drawn, strict=True)
            ]
        documents[name] = (row["doc_id"], drawn)
    # Several processes log their documents one after another, not in the order of the data set.
    in_order = sorted(documents.values(), key=lambda document: document[0])
    return [one for _, drawn in in_order for one in drawn]


def problem_of(doc: Any) -> str | None:
    """The problem that a document holds, before any template (`PROBLEM_FIELDS`)."""
    texts = [doc.get(name) for name in PROBLEM_FIELDS] if isinstance(doc, dict) else []
    return next((text for text in texts if isinstance(text, str) and text.strip()), None)


def prompts_of(row: dict[str, Any]) -> list[str]:
    """What a samples line's model was asked, each request's prompt once."""
    requests = row["arguments"].values() if isinstance(row["arguments"], dict) else []
    prompts = [_prompt(request.get("arg_0"))[0] for request in requests if isinstance(request, dict)]
    return list(dict.fromkeys(filter(None, prompts)))


def _from_sample(row: Any, where: str, model: str | None, sampler: dict[str, Any] | None) -> list[Drawn]:
    """The completions of one document, padding among them."""
    if not isinstance(row, dict) or not {"doc_id", "doc", "arguments", "resps"} <= set(row):
        raise TeacherDataError(f"{where}: is not a line of lm_eval --log_samples, as the file's first is")
    require(where, "doc_id", is_int(row["doc_id"]), row["doc_id"], "a whole number")
    argument, options, texts = _generation(row, where)
    prompt, messages = _prompt(argument)
    if prompt is None:
        raise TeacherDataError(f"{where}: arg_0={argument!r:.80}: must be a prompt, or a chat API's messages")
    facts = _completion_facts(row, len(texts), where)
    settings = _settings(sampler, options, where)
    drawn = []
    for repeat, text in enumerate(texts):
        # lm-eval evens out its processes by copies of a request, whose completions come after the document's own.
        is_padding = facts is not None and repeat >= len(facts)
        fact = {} if facts is None or is_padding else facts[repeat]
        verdict, cost = fact.get("correct"), fact.get("cost")
        drawn.append(
            Drawn(
                key=json.dumps([model, settings, row["arguments"], repeat, text]),
                where=where,
                prompt=prompt,
                messages=messages,
                text=text,
                repeat=repeat,
                config=settings,
                model=model,
                finish_reason=fact.get("finish_reason"),
                self_reward=fact.get("self_reward"),
                tokens_decoded=cost["tokens_decoded"] if cost else None,
                correct=None if verdict is None else verdict == 1,
                problem=problem_of(row["doc"]),
                is_padding=is_padding,
            )
        )
    return drawn


def _generation(row: dict[str, Any], where: str) -> tuple[Any, dict[str, Any], list[str]]:
    """(prompt as logged, generation options, texts) of a line that must hold one generation request."""
    try:
        ((_, request),) = row["arguments"].items()
        (texts,) = row["resps"]
        argument, options = request["arg_0"], request["arg_1"]
    except (AttributeError, KeyError, TypeError, ValueError):
        argument, options, texts = None, None, None
    if not isinstance(options, dict) or not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise TeacherDataError(
            f"{where}: holds no generated texts, but the answers of another kind of task (log-likelihoods, say); "
            "leave this file out"
        )
    return argument, options, texts


def _completion_facts(row: dict[str, Any], texts: int, where: str) -> list[dict[str, Any]] | None:
    """What the line tells of each completion that is no padding; None if it does not tell them apart."""
    told = row["doc"].get("lm_power") if isinstance(row["doc"], dict) else None
    if told is None:
        verdict = next((row[name] for name in _VERDICTS if isinstance(row.get(name), int | float)), None)
        return [{"correct": verdict}] if texts == 1 else None
    names = ["self_reward", "finish_reason", "cost"]
    if isinstance(told, dict) and "correct" in told:  # not where a task is judged elsewhere
        names.append("correct")
    try:
        facts = [dict(zip(names, entry, strict=True)) for entry in zip(*(told[name] for name in names), strict=True)]
        good = 0 < len(facts) <= texts and all(map(_is_fact, facts))
    except (KeyError, TypeError, ValueError, AttributeError):
        good = False
    require(where, "doc.lm_power", good, told, f"{', '.join(names)}, lists with one entry a completion")
    return facts


def _is_fact(fact: dict[str, Any]) -> bool:
    reward, cost = fact["self_reward"], fact["cost"]
    return (
        fact.get("correct", 0) in (0, 1)
        and (reward is None or isinstance(reward, int | float))
        and (fact["finish_reason"] is None or fact["finish_reason"] in FINISH_REASONS)
        and (cost is None or is_int(cost.get("tokens_decoded")))
    )


def _settings(sampler: dict[str, Any] | None, options: dict[str, Any], where: str) -> dict[str, Any]:
    """How a line's completions were drawn; of `power-hf` in the words of a store, EOS tokens left out.

    Args:
        sampler: options of the model; None for another than `power-hf`.
        options: of the request, which overrule them.
        where: the line.
    """
    if sampler is None:
        return options
    names = set(option_names())
    lengths = [options[name] for name in LENGTH_NAMES if options.get(name) is not None]
    chosen = {**sampler, **{name: value for name, value in options.items() if name in names}}
    try:
        config = SamplerConfig(**{**chosen, **({"max_new_tokens": lengths[0]} if lengths else {})}).deciding()
    except (OptionError, TypeError) as error:
        raise TeacherDataError(f"{where}: its settings are not this lm-power's ({error})") from error
    if not lengths:  # lm-eval's default for the model, which no file tells
        del config["max_new_tokens"]
    until = options.get("until") or []
    return {**config, "stop": sorted({until} if isinstance(until, str) else set(until))}


def _run_facts(path: Path) -> tuple[str | None, dict[str, Any] | None]:
    """(model, options of `power-hf`) of the results file beside a samples file; None for what is not told."""
    results = path.parent / f"results_{path.stem.rpartition('_')[2]}.json"
    if not results.is_file():
        return None, None
    whole = parse_line(results.read_bytes(), str(results))
    config = whole.get("config") if isinstance(whole, dict) else None
    if not isinstance(config, dict):
        raise TeacherDataError(f"{results}: is not the results file that its name says; remove it, or restore it")
    sampler = config.get("power_sampler")
    if isinstance(sampler, dict):
        return sampler.get("model"), {name: value for name, value in sampler.items() if name != "model"}
    arguments = config.get("model_args")
    peft = arguments.get("peft") if isinstance(arguments, dict) else None
    name = whole.get("model_name")
    return (f"{name}+peft={peft}" if peft else name) or None, None


def _prompt(argument: Any) -> tuple[str | None, list[dict[str, str]] | None]:
    """(text, chat messages or None) of a request's first argument.

    lm-eval logs a chat API's messages as a list that holds one JSON text.
    """
    if isinstance(argument, str):
        return argument, None
    if isinstance(argument, list) and len(argument) == 1 and isinstance(argument[0], str):
        try:
            messages = json.loads(argument[0])
            return "\n".join(message["content"] for message in messages), messages
        except (ValueError, TypeError, KeyError):
            return None, None
    return None, None


def _either(first: bool | None, second: bool | None) -> bool | None:
    known = [verdict for verdict in (first, second) if verdict is not None]
    return any(known) if known else None
