"""The pocket problem: the last digit of a sum of four to eight terms, worked in one of two manners.

    Add a3 b5 c2 d4 and give the last digit: carefully a3 b5=8 c2=0 d4=4 so 4
    Add a3 b5 c2 d4 and give the last digit: quickly c2 a3=5 d4=9 so 9

Every term has a letter. Both manners write term after term and the last digit of the running sum.
`carefully` goes through the letters in order: apart from a rare slip it is one sure derivation. `quickly`
jumps about: the next letter is any one not yet added, so that k! orders share its probability, a slip is
likelier, and near the end it loses track and stops with terms left out (in the last line b is forgotten).

`quickly` is the likelier first word, `carefully` the better one. A token-wise temperature looks at the
first word only and prefers `quickly` even more; the power distribution p(x)^alpha looks at whole
completions and prefers `carefully`: the pivotal-token effect of Karan & Du (2025), put there on purpose.

Write the problems of the lm-eval tasks, the held-out ones and those for distillation (standard library only, less than
a second):

    python examples/pocket/problems.py > tasks/pocket_sums/problems.jsonl
    python examples/pocket/problems.py --distillation > tasks/pocket_sums_train/problems.jsonl
"""

import argparse
import json
import random
from collections.abc import Collection
from dataclasses import dataclass

LETTERS = "abcdefgh"

HELD_OUT_COUNT = 200
HELD_OUT_SEED = 1
DISTILLATION_COUNT = 1000
DISTILLATION_SEED = 3
TRAINING_COUNT = 60_000
TRAINING_SEED = 2


@dataclass(frozen=True)
class Habits:
    """How the imaginary author of the training texts works; the probabilities that the model has to learn.

    Attributes:
        carefully: probability that a completion starts with `carefully` (otherwise `quickly`).
        careful_slip: probability that one addition done carefully gives one of the nine wrong digits.
        quick_slip: the same for one addition done quickly.
        lose_track: element m − 1 is the probability that `quickly` stops when m terms are still to be added.
    """

    carefully: float = 0.48
    careful_slip: float = 0.04
    quick_slip: float = 0.08
    lose_track: tuple[float, ...] = (0.48, 0.30, 0.20)


@dataclass(frozen=True)
class Problem:
    """Terms to add.

    Attributes:
        digits: the terms, each 1 to 5; the first is called a, the second b, …
    """

    digits: tuple[int, ...]

    @property
    def prompt(self) -> str:
        """The text given to the model; a completion starts with the blank that follows."""
        terms = " ".join(f"{LETTERS[i]}{digit}" for i, digit in enumerate(self.digits))
        return f"Add {terms} and give the last digit:"

    @property
    def answer(self) -> str:
        """Σ digits mod 10, as text."""
        return str(sum(self.digits) % 10)


def draw_problem(rng: random.Random) -> Problem:
    """Draw a problem: the number of terms uniform in 4 … 8, each term uniform in 1 … 5."""
    return Problem(tuple(rng.randint(1, 5) for _ in range(rng.randint(4, 8))))


def draw_completion(problem: Problem, rng: random.Random, habits: Habits = Habits()) -> str:
    """Draw one completion in the manner of `habits`, without the end-of-text token."""
    careful = rng.random() < habits.carefully
    slip = habits.careful_slip if careful else habits.quick_slip
    # By the number of terms still to be added; 0 for all but the last few.
    stop = dict(enumerate(habits.lose_track, start=1)) if not careful else {}
    left = list(range(len(problem.digits)))
    words = ["carefully" if careful else "quickly"]
    total: int | None = None
    while left and rng.random() >= stop.get(len(left), 0.0):
        term = left.pop(0 if careful else rng.randrange(len(left)))
        digit = problem.digits[term]
        word = f"{LETTERS[term]}{digit}"
        if total is None:
            total = digit
        else:
            wrong_by = rng.randint(1, 9) if rng.random() < slip else 0
            total = (total + digit + wrong_by) % 10
            word += f"={total}"
        words.append(word)
    return " " + " ".join([*words, "so", str(total)])


def held_out_problems(count: int = HELD_OUT_COUNT, seed: int = HELD_OUT_SEED) -> list[Problem]:
    """Draw `count` different problems that no training text may show."""
    rng = random.Random(seed)
    problems: dict[Problem, None] = {}
    while len(problems) < count:
        problems[draw_problem(rng)] = None
    return list(problems)


def distillation_problems(count: int = DISTILLATION_COUNT, seed: int = DISTILLATION_SEED) -> list[Problem]:
    """Draw `count` different problems that are not held out; the pocket model's training texts may have them."""
    held_out = set(held_out_problems())
    rng = random.Random(seed)
    problems: dict[Problem, None] = {}
    while len(problems) < count:
        problem = draw_problem(rng)
        if problem not in held_out:
            problems[problem] = None
    return list(problems)


def training_texts(
    held_out: Collection[Problem],
    count: int = TRAINING_COUNT,
    seed: int = TRAINING_SEED,
    habits: Habits = Habits(),
) -> list[tuple[Problem, str]]:
    """Draw `count` pairs (problem, completion); a problem in `held_out` is drawn again."""
    rng = random.Random(seed)
    texts: list[tuple[Problem, str]] = []
    while len(texts) < count:
        problem = draw_problem(rng)
        if problem not in held_out:
            texts.append((problem, draw_completion(problem, rng, habits)))
    return texts


def main() -> None:
    """Print problems, one JSON object per line: `prompt`, `answer`."""
    parser = argparse.ArgumentParser(description="Print pocket problems as JSON lines.")
    parser.add_argument("--distillation", action="store_true", help="those for distillation, not the held-out ones")
    arguments = parser.parse_args()
    for problem in distillation_problems() if arguments.distillation else held_out_problems():
        print(json.dumps({"prompt": problem.prompt, "answer": problem.answer}))


if __name__ == "__main__":
    main()
