"""The pocket problem, its model and its lm-eval task; laws are those documented in examples/pocket."""

import importlib.util
import json
import math
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "pocket" / "model"
TASK = ROOT / "tasks" / "pocket_sums"


def load(name: str, path: Path) -> ModuleType:
    """Import a file that is in no package, as lm-eval does with a task's utils.py."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


problems = load("pocket_problems", ROOT / "examples" / "pocket" / "problems.py")
utils = load("pocket_sums_utils", TASK / "utils.py")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(MODEL, local_files_only=True)


@torch.no_grad()
def token_log_probs(model, tokenizer, prompt: str, completion: str) -> torch.Tensor:
    """Log p of each completion token, EOS included, by one plain forward pass: float32 [tokens]."""
    start = tokenizer(prompt)["input_ids"]
    ids = start + tokenizer(completion)["input_ids"] + [tokenizer.eos_token_id]
    log_p = torch.log_softmax(model(torch.tensor([ids])).logits[0, len(start) - 1 : -1], dim=-1)
    return log_p.gather(1, torch.tensor(ids[len(start) :])[:, None])[:, 0]


def careful_derivation(problem) -> str:
    """The right one, without a slip."""
    careless_never = problems.Habits(carefully=1.0, careful_slip=0.0)
    return problems.draw_completion(problem, random.Random(0), careless_never)


@torch.no_grad()
def first_word_probs(model, tokenizer) -> torch.Tensor:
    """p(carefully), p(quickly) as the first word of a completion, for 50 held-out problems: [50, 2]."""
    words = [tokenizer(word)["input_ids"] for word in (" carefully", " quickly")]
    assert [len(word) for word in words] == [1, 1]
    rows = []
    for problem in problems.held_out_problems()[:50]:
        logits = model(**tokenizer(problem.prompt, return_tensors="pt")).logits[0, -1]
        rows.append(torch.softmax(logits, dim=-1)[[words[0][0], words[1][0]]])
    return torch.stack(rows)


def test_problems_are_the_same_every_time() -> None:
    held_out = problems.held_out_problems()
    assert held_out == problems.held_out_problems()
    rows = [json.loads(line) for line in (TASK / "problems.jsonl").read_text().splitlines()]
    assert rows == [{"prompt": problem.prompt, "answer": problem.answer} for problem in held_out]
    distilled = problems.distillation_problems()
    assert len(distilled) == problems.DISTILLATION_COUNT and set(distilled).isdisjoint(held_out)
    rows = [json.loads(line) for line in (ROOT / "tasks/pocket_sums_train/problems.jsonl").read_text().splitlines()]
    assert rows == [{"prompt": problem.prompt, "answer": problem.answer} for problem in distilled]
    few = problems.training_texts(set(held_out), count=100)
    assert few == problems.training_texts(set(held_out), count=100)


def test_no_held_out_problem_is_trained_on() -> None:
    held_out = set(problems.held_out_problems())
    assert len(held_out) == problems.HELD_OUT_COUNT
    texts = problems.training_texts(held_out)
    assert len(texts) == problems.TRAINING_COUNT
    assert held_out.isdisjoint({problem for problem, _ in texts})


def test_training_texts_have_the_habits_they_state() -> None:
    """Shares within four standard errors: false alarm below 1 in 5,000; the seed is fixed anyway."""
    texts = problems.training_texts(set(), count=20_000)
    habits = problems.Habits()
    careful = [pair for pair in texts if pair[1].startswith(" carefully ")]
    share = len(careful) / len(texts)
    assert abs(share - habits.carefully) < 4 * math.sqrt(share * (1 - share) / len(texts))
    for problem, text in careful[:50]:
        letters = [word[0] for word in text.split()[1:-2]]
        assert "".join(letters) == problems.LETTERS[: len(problem.digits)]
    # A careful text is right if its last running sum is: no slips, or slips that cancel.
    right = sum(text[-1] == problem.answer for problem, text in careful) / len(careful)
    no_slip = sum((1 - habits.careful_slip) ** (k - 1) for k in range(4, 9)) / 5
    assert no_slip - 0.02 < right < no_slip + 0.03


def test_model_is_tiny_and_round_trips_any_text(model, tokenizer) -> None:
    assert model.num_parameters() < 1_000_000
    assert model.config.hidden_size // model.config.num_attention_heads == 64
    assert next(model.parameters()).dtype == torch.float32
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 4_000_000
    assert model.generation_config.do_sample in (None, False)
    for text in (problems.held_out_problems()[0].prompt, "Größe: 12, 345\n\t€ <tag>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_loaded_tokenizer_encodes_as_the_trained_one(tokenizer) -> None:
    """AutoTokenizer puts Qwen2's splitting in place of the saved one: texts must come out as in training."""
    saved = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    for problem, text in problems.training_texts(set(), count=200):
        assert tokenizer(problem.prompt + text)["input_ids"] == saved.encode(problem.prompt + text).ids


def test_first_word_is_the_pivot(model, tokenizer) -> None:
    """`quickly` is the likelier first word, by the margin of the training texts, whatever the problem."""
    pivot = first_word_probs(model, tokenizer)
    assert (pivot.sum(dim=1) > 0.999).all()
    assert (pivot[:, 0] < pivot[:, 1]).all()
    assert abs(pivot[:, 0].mean() - problems.Habits().carefully) < 0.02


def test_careful_derivation_is_sure_and_right(model, tokenizer) -> None:
    """After `carefully` every token of the right derivation has about its documented probability."""
    for problem in problems.held_out_problems()[:50]:
        log_p = token_log_probs(model, tokenizer, problem.prompt, careful_derivation(problem))
        assert log_p[1:].exp().min() > 0.8  # 0.96 at an addition, 1 elsewhere
        assert log_p[1:].sum() > len(problem.digits) * math.log(0.93)


@torch.no_grad()
def test_quick_continuation_is_uncertain(model, tokenizer) -> None:
    """After `quickly` the next letter is any of the problem's, about equally likely."""
    letters = [tokenizer(f" {letter}")["input_ids"][0] for letter in problems.LETTERS]
    for problem in problems.held_out_problems()[:50]:
        k = len(problem.digits)
        logits = model(**tokenizer(problem.prompt + " quickly", return_tensors="pt")).logits[0, -1]
        p = torch.softmax(logits, dim=-1)[letters]
        assert p[:k].sum() > 0.98
        assert p[:k].max() < 2 / k


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" carefully a3 b5=8 c2=0 d4=4 so 4", "4"),
        (" quickly c2 a3=5 d4=9 so 9\n", "9"),
        ("so 0", "0"),
        (" carefully a3 so 3 so 4", "4"),  # the last word counts
        ("", None),
        (" carefully a3 b5=8 c2=0 d4=4", None),  # cut by the length limit
        (" carefully a3 b5=8 so", None),
        (" so 57", None),
        (" also 5", None),
        (" so 5 and so on", None),
        (" so five", None),
        (" so \u0665", None),  # a digit of another script
    ],
)
def test_parse_answer(text: str, answer: str | None) -> None:
    assert utils.parse_answer(text) == answer


def test_process_results_takes_plain_strings_and_repeats() -> None:
    doc = {"prompt": "Add a1 b2 c3 d4 and give the last digit:", "answer": "0"}
    assert utils.process_results(dict(doc), [" so 0"])["acc"] == 1.0
    metrics = utils.process_results(dict(doc), [[" so 0", " so 1", "", " so 0"]])
    assert metrics["acc"] == 0.5
    assert "self_reward" not in metrics  # plain strings have none


def test_task_finds_its_problems_from_any_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = utils.load_documents(version=1.0)["test"]
    assert len(rows) == problems.HELD_OUT_COUNT
    assert set(rows.column_names) == {"prompt", "answer"}
