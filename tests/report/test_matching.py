"""Which runs are compared, what is refused and what the refusal says."""

import dataclasses
import hashlib

import pytest
from report_runs import make_run

from lm_power.errors import UserError
from lm_power.report.matching import match


def with_problems(run, change):
    return dataclasses.replace(run, problems=tuple(change(problem) for problem in run.problems))


def other_prompt(problem):
    prompt = problem.prompt + " Think."
    return dataclasses.replace(problem, prompt=prompt, prompt_hash=hashlib.sha256(prompt.encode()).hexdigest())


def as_store(run):
    """The run as a store would have it: prompts in another order, no documents, no verdicts."""
    problems = tuple(
        dataclasses.replace(
            p, doc_id=place, doc_hash=None, target=None,
            completions=tuple(dataclasses.replace(a, correct=None, answer=None) for a in p.completions),
        )
        for place, p in enumerate(reversed(run.problems))
    )  # fmt: skip
    return dataclasses.replace(run, problems=problems, task=None, filter=None, task_version=None, seconds=None)


def test_runs_of_the_same_documents_are_one_comparison():
    """Aligned by document, not by place: the second run's problems come in another order."""
    a, b = make_run("a", problems=5), make_run("b", problems=5)
    (comparison,) = match([a, dataclasses.replace(b, problems=b.problems[::-1])])
    assert (comparison.task, comparison.size, comparison.notes) == ("pocket_sums", 5, ())
    for first, second in zip(*(run.problems for run in comparison.runs), strict=True):
        assert first.doc_hash == second.doc_hash
    assert comparison.runs[0].seconds == a.seconds


def test_tasks_and_filters_are_comparisons_of_their_own():
    runs = [make_run("a", task="one"), make_run("b", task="two"), make_run("a", task="one", filter="strict")]
    assert [(c.task, c.filter, len(c.runs)) for c in match(runs)] == [
        ("one", "none", 1),
        ("two", "none", 1),
        ("one", "strict", 1),
    ]


DIFFERENCES = {
    "documents": (
        make_run("b", problems=8),
        r"documents: 5 in 'a', 8 in 'b', 5 shared; only in 'b': document 5 \('Problem 5: .*'\), 6 .*, 7",
        5,
    ),
    "prompts": (
        with_problems(make_run("b", problems=5), lambda p: other_prompt(p) if p.doc_id in (1, 4) else p),
        r"prompts: 2 of 5 shared documents differ between 'b' and 'a'; document 1 .*'Think.' and its end",
        5,
    ),
    "version": (make_run("b", problems=5, task_version="2.0"), r"task version: 1.0 in 'a'; 2.0 in 'b'", 5),
    "N": (make_run("b", problems=5, n=8), r"completions per problem: 4 in 'a'; 8 in 'b'", 5),
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_runs_that_differ_are_refused_unless_allowed(what):
    """The refusal counts and shows what differs; allowed, only what is shared remains, and the notes say so."""
    other, message, shared = DIFFERENCES[what]
    with pytest.raises(UserError, match=message) as caught:
        match([make_run("a", problems=5), other])
    assert "--allow-differences" in str(caught.value)
    (comparison,) = match([make_run("a", problems=5), other], allow_differences=True)
    assert comparison.size == shared
    assert any(what in note or "completions per problem" in note for note in comparison.notes)
    for first, second in zip(*(run.problems for run in comparison.runs), strict=True):
        assert first.doc_hash == second.doc_hash


def test_documents_with_other_prompts_are_left_out_where_equal_prompts_are_needed():
    """A forecast reweighs the completions of one prompt; those of another say nothing about it."""
    (comparison,) = match([make_run("a", problems=5), DIFFERENCES["prompts"][0]], True, same_prompts=True)
    assert [p.doc_id for p in comparison.runs[1].problems] == [0, 2, 3]
    chat = with_problems(make_run("b", problems=5), other_prompt)
    with pytest.raises(UserError, match="no document with the same prompt is shared by 'a', 'b'"):
        match([make_run("a", problems=5), chat], True, same_prompts=True)


def test_what_lm_eval_measured_on_all_documents_is_not_told_of_a_part():
    """Its wall-clock and its metrics are those of documents that are no longer there."""
    a, b = make_run("a", problems=5, metrics={"acc": 0.5}), make_run("b", problems=8, metrics={"acc": 0.5})
    (comparison,) = match([a, b], allow_differences=True)
    assert (comparison.runs[0].seconds, comparison.runs[0].metrics) == (12.5, {"acc": 0.5})
    assert (comparison.runs[1].seconds, comparison.runs[1].metrics) == (None, {})
    assert "5 of its 8 documents are compared" in comparison.runs[1].notes


def test_nothing_shared_is_refused_even_if_allowed():
    other = with_problems(make_run("b", problems=5), lambda p: dataclasses.replace(p, doc_hash=f"other {p.doc_id}"))
    with pytest.raises(UserError, match="no document is shared"):
        match([make_run("a", problems=5), other], allow_differences=True)


def test_a_document_that_is_there_twice_is_two():
    """Data sets hold duplicates: the k-th is matched with the k-th, and its number must be the same."""
    double = with_problems(
        make_run("a", problems=4), lambda p: dataclasses.replace(p, doc_hash="same", prompt_hash="same")
    )
    (comparison,) = match([double, dataclasses.replace(double, label="b")])
    assert [p.doc_id for p in comparison.runs[1].problems] == [0, 1, 2, 3]
    with pytest.raises(UserError, match="4 in 'a', 3 in 'b', 3 shared"):
        match([double, dataclasses.replace(double, label="b", problems=double.problems[:3])])


def test_a_store_joins_the_task_whose_prompts_it_has():
    """Looked up by prompt; what else it holds belongs to other tasks."""
    evaluated = make_run("a", problems=4)
    store = as_store(make_run("b", problems=6))
    (comparison,) = match([evaluated, store])
    assert comparison.size == 4
    joined = comparison.runs[1]
    assert [p.doc_hash for p in joined.problems] == [p.doc_hash for p in evaluated.problems]
    assert joined.problems[0].completions[0].text == store.problems[-1].completions[0].text
    assert not joined.has_correct
    with pytest.raises(UserError, match="none of the prompts of pocket_sums"):
        match([evaluated, with_problems(store, other_prompt)])
    with pytest.raises(UserError, match="documents: 4 in 'a', 2 in 'b', 2 shared"):
        match([evaluated, as_store(make_run("b", problems=2))])


def test_a_store_joins_a_task_by_the_prompts_of_any_run_of_it():
    """A base as it is beside one with a chat template, whose store is the one that is given."""
    plain, chat = make_run("a", problems=3), with_problems(make_run("b", problems=3), other_prompt)
    store = dataclasses.replace(as_store(chat), label="c")
    (comparison,) = match([plain, chat, store], allow_differences=True)
    assert comparison.size == 3
    assert [p.prompt for p in comparison.runs[2].problems] == [p.prompt for p in chat.problems]
    assert [p.doc_hash for p in comparison.runs[2].problems] == [p.doc_hash for p in plain.problems]


def test_stores_without_a_common_prompt_are_tasks_of_their_own():
    """A store keeps all that a command drew; each task in it has settings, and so a run, of its own."""
    a, b = (as_store(make_run(label, problems=4)) for label in "ab")
    c, d = (dataclasses.replace(with_problems(run, other_prompt), label=label) for run, label in ((a, "c"), (b, "d")))
    (both,) = match([a, b])
    assert both.task == "store"
    first, second = match([c, a, d, b])
    assert (first.task, second.task) == ("store, task 1", "store, task 2")
    assert [run.label for run in first.runs] == ["c", "d"] and [run.label for run in second.runs] == ["a", "b"]
    bridge = dataclasses.replace(a, label="e", problems=(*a.problems, *c.problems))
    with pytest.raises(UserError, match="documents: 4 in 'c', 8 in 'e', 4 shared"):
        match([c, a, bridge])


def test_a_store_gets_no_verdicts_of_the_run_it_joins():
    """Guards the accuracy of somebody else's completions: stock majority votes have one verdict per document."""
    voted = with_problems(make_run("a", problems=3), lambda problem: dataclasses.replace(problem, verdict=1.0))
    (comparison,) = match([voted, as_store(make_run("b", problems=3))])
    assert [[p.verdict for p in run.problems] for run in comparison.runs] == [[1.0] * 3, [None] * 3]


def test_stores_alone_are_compared_by_prompt():
    (comparison,) = match([as_store(make_run("a", problems=4)), as_store(make_run("b", problems=4))])
    assert (comparison.task, comparison.name, comparison.size) == ("store", "store", 4)


def labels(*runs):
    return [run.label for run in match(list(runs))[0].runs]


def named(seed, settings=None, **fields):
    run = make_run(f"run {seed}", problems=2, **fields)
    return dataclasses.replace(run, label=f"{run.model}, {run.sampling}", settings={**run.settings, **(settings or {})})


def test_equal_labels_are_told_apart_by_what_differs_and_by_nothing_else():
    assert labels(named(1), named(2, method="standard")) == ["pocket, power, alpha=4", "pocket, standard"]
    assert labels(named(1, {"mcmc_steps": 5, "seed": 0}), named(2, {"mcmc_steps": 10, "seed": 0})) == [
        "pocket, power, alpha=4, mcmc_steps=5",
        "pocket, power, alpha=4, mcmc_steps=10",
    ]
    assert labels(named(1), named(2), named(3)) == [f"pocket, power, alpha=4, #{k}" for k in (1, 2, 3)]


def test_a_label_that_the_user_gave_twice_is_refused():
    with pytest.raises(UserError, match=r"label 'mine': names 2 runs of pocket_sums"):
        match([make_run("mine", seed=1), make_run("mine", seed=2)])
