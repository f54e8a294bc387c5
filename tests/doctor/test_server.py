"""`lm-power doctor --server` as a user runs it, on a fake server that lacks one thing or another."""

from __future__ import annotations

import json

import pytest
from harness.tiny_lm import save_model
from remote.fake_server import FakeServer, Ways, of_model

from lm_power import cli
from lm_power.doctor.server import PARTS

WORKS = dict.fromkeys(PARTS, "works")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    server = of_model(save_model(tmp_path_factory.mktemp("tiny")))
    with server.running() as url:
        server.url, server.card = url, server.ways.card
        yield server


@pytest.fixture
def served(running) -> FakeServer:
    running.ways = Ways(card=dict(running.card))
    return running


def doctor(capsys, url: str, *options: str) -> tuple[int, dict[str, dict]]:
    status = cli.main(["doctor", "--server", url, "--top-logprobs", "6", "--json", *options])
    found = json.loads(capsys.readouterr().out)
    assert found["missed"] == [each["part"] for each in found["findings"] if each["verdict"] != "works"]
    return status, {finding["part"]: finding for finding in found["findings"]}


def verdicts(found: dict[str, dict]) -> dict[str, str]:
    return {part: finding["verdict"] for part, finding in found.items()}


def test_a_server_that_can_be_used(capsys, served):
    """Guards a part that is listed and not tried, and what a user wants to know of a server that works."""
    status, found = doctor(capsys, served.url, "--max-new-tokens", "40")
    assert status == 0 and verdicts(found) == WORKS
    said = " ".join(finding["why"] for finding in found.values())
    told = (
        "serves tiny (root /",
        "96 tokens for prompt and completion: 56 for the prompt",
        "end with 0",
        "6 of 6 tokens",
    )
    assert all(part in said for part in told), said
    assert cli.main(["doctor", "--server", served.url, "--model", "tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model     works") and lines[-1] == "all that was asked for works"


AFTER_IDS = dict.fromkeys(("log-probs", "lists", "draws", "stop", "texts"), "absent")


@pytest.mark.parametrize(
    ("ways", "changed", "why", "remedy"),
    [
        ({"raw": False}, {"log-probs": "fails"}, "follow the temperature", "--logprobs-mode raw_logprobs"),
        ({"lists": 3}, {"lists": "fails"}, "lists 3 tokens of the 6", "top_logprobs=3"),
        ({"keeps_stop": False}, {"stop": "fails"}, "leaves out the token at which it stops", "another server"),
        ({"most": 5}, {"ids": "fails", **AFTER_IDS}, "refuses top_logprobs=6", "--max-logprobs 6"),
        ({"ids": False}, {"ids": "fails", **AFTER_IDS}, "spells tokens as texts", "vLLM has them"),
        ({"completions": False}, {"ids": "fails", **AFTER_IDS}, "serves no /completions", "one of completions"),
        ({"key": "sk-1"}, {"model": "fails"} | dict.fromkeys(PARTS[1:], "absent"), "wants a key", "OPENAI_API_KEY"),
        ({"card": {"id": "tiny", "root": "/nowhere"}}, {"tokenizer": "fails", "texts": "absent"}, "/nowhere", "set to"),
    ],
)
def test_what_a_server_lacks(capsys, served, ways, changed, why, remedy):
    """Guards: status 0 for a server that a run would refuse; a lack that hides others; a lack without its cure."""
    for name, value in ways.items():
        setattr(served.ways, name, value)
    status, found = doctor(capsys, served.url)
    assert status == 1 and verdicts(found) == WORKS | changed
    (lack,) = [finding for finding in found.values() if finding["verdict"] == "fails"]
    assert why in lack["why"] and remedy in lack["remedy"]
    assert all("not tried, as" in each["why"] for each in found.values() if each["verdict"] == "absent")


def test_a_context_that_is_too_small(capsys, served):
    status, found = doctor(capsys, served.url, "--max-new-tokens", "96")
    assert status == 1 and verdicts(found) == WORKS | {"context": "fails"}
    assert "leave no room" in found["context"]["why"] and "--max-model-len" in found["context"]["remedy"]


def test_nobody_there(capsys):
    status, found = doctor(capsys, "http://127.0.0.1:9/v1")
    assert status == 1 and found["model"]["verdict"] == "fails" and "is it running" in found["model"]["remedy"]
    assert set(verdicts(found)) == set(PARTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--server", "localhost:8000"], "--server='localhost:8000': must be the URL"),
        (["--server", "http://a:1/v1+http://b:2/v1"], "one server at a time"),
        (["--server", "http://a:1/v1", "--top-logprobs", "1"], "--top-logprobs=1: must be a whole number >= 2"),
        (["--server", "http://a:1/v1", "--device", "cpu"], "are for this machine"),
        (["--tokenizer", "x"], "--tokenizer: is for --server"),
    ],
)
def test_wrong_options(capsys, options, message):
    assert cli.main(["doctor", *options]) == 2
    assert message in capsys.readouterr().err
