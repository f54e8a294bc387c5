"""`lm-power alpaca-eval`: a run of the task power_alpaca_eval as the file that the `alpaca_eval` package judges.

    lm-power alpaca-eval RUN --output FILE.json
    alpaca_eval --model_outputs FILE.json

The file is a JSON list, one object an instruction, in the order of the data set: `instruction`, `output`,
`generator` (the model's name on the leaderboard) and `dataset` (the collection that the instruction is from).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from lm_power.errors import UserError

HELP = "convert a run of power_alpaca_eval to the JSON file that the alpaca_eval package judges"
TASK = "power_alpaca_eval"
INSTRUCTIONS = 805
CHOICES = ("first", "best")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One instruction with its completions.

    Attributes:
        doc_id: its place in the data set.
        instruction: what was asked, without any chat template.
        dataset: the collection that it comes from.
        completions: the texts, in the order of their repeats; at least one.
        self_rewards: nats per token, one a completion; None from a model that gives no log-probabilities.
        finish_reasons: "eos", "stop" or "length", one a completion; None if the model does not tell.
    """

    doc_id: int
    instruction: str
    dataset: str
    completions: tuple[str, ...]
    self_rewards: tuple[float | None, ...]
    finish_reasons: tuple[str | None, ...]

    def chosen(self, choose: str) -> int:
        """The place of the completion to be judged: the first, or the first of those with the largest self-reward.

        Raises:
            UserError: `choose` is "best" and a self-reward is missing.
        """
        if choose == "first":
            return 0
        rewards = [reward for reward in self.self_rewards if reward is not None]
        if len(rewards) < len(self.completions):
            raise UserError(
                f"--choose best: document {self.doc_id} has completions without a self-reward; sample with "
                "--model power-hf, or use --choose first"
            )
        return rewards.index(max(rewards))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "folder", metavar="RUN", type=Path, help="lm-eval's --output_path, or one samples_*.jsonl in it"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.json", help="file to write; must be new")
    parser.add_argument("--generator", help="name on the leaderboard, a new one for each run; default: RUN's folder")
    parser.add_argument(
        "--choose",
        choices=CHOICES,
        default="first",
        help="of N completions, judge the first (default) or the one with the largest self-reward",
    )
    parser.add_argument(
        "--allow-incomplete",
        action="store_true",
        help=f"convert a run of fewer than {INSTRUCTIONS} instructions; its length-controlled win rate means nothing",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the file, and say what is in it. Raises `UserError`; nothing has been written then."""
    output: Path = arguments.output
    if output.suffix != ".json":
        raise UserError(f"--output {output}: must end in .json, by which alpaca_eval knows what to read")
    file = find_samples(arguments.folder)
    samples = read_samples(file)
    if not arguments.allow_incomplete:
        check_complete(samples, file)
    generator = arguments.generator or default_generator(arguments.folder)
    places = [sample.chosen(arguments.choose) for sample in samples]
    outputs = [
        {
            "instruction": sample.instruction,
            "output": sample.completions[place],
            "generator": generator,
            "dataset": sample.dataset,
        }
        for sample, place in zip(samples, places, strict=True)
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with output.open("x", encoding="utf-8") as out:
            json.dump(outputs, out, ensure_ascii=False, indent=2)
    except FileExistsError:
        raise UserError(f"--output {output}: is there already; remove it or choose another name") from None
    print(f"{output}: {_summary(samples, places, arguments.choose, generator)}")
    print(f"Judge it:  alpaca_eval --model_outputs {output}")


def _summary(samples: Sequence[Sample], places: Sequence[int], choose: str, generator: str) -> str:
    picked = list(zip(samples, places, strict=True))
    n = max(len(sample.completions) for sample in samples)
    facts = [f"{len(samples)} outputs of {generator!r}"]
    if n > 1:
        facts.append(f"of {n} completions the {'first' if choose == 'first' else 'one with the largest self-reward'}")
    reasons = [sample.finish_reasons[place] for sample, place in picked]
    if None not in reasons:
        facts.append(f"{reasons.count('length')} cut at the length limit")
    empty = sum(not sample.completions[place].strip() for sample, place in picked)
    return ", ".join([*facts, f"{empty} empty"])


def find_samples(place: Path) -> Path:
    """The one samples file of the task in an output folder, or the file that `place` is.

    Raises:
        UserError: there is none, or more than one.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; RUN is what lm-eval was given as --output_path")
    files = sorted(place.rglob(f"samples_{TASK}_*.jsonl"))
    if not files:
        raise UserError(
            f"{place}: holds no samples_{TASK}_*.jsonl; run lm_eval --tasks {TASK} --output_path {place} --log_samples "
            "to its end, or name the samples file of a task of your own"
        )
    if len(files) > 1:
        names = "".join(f"\n  {file}" for file in files)
        raise UserError(f"{place}: holds {len(files)} runs; name one of its files:{names}")
    return files[0]


def read_samples(file: Path) -> list[Sample]:
    """The samples of one file, in the order of the data set, each instruction once.

    Raises:
        UserError: a line is torn, belongs to another task, or repeats an instruction; or there are none.
    """
    samples: dict[int, Sample] = {}
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            sample = _sample(line, f"{file}, line {number}")
            if sample.doc_id in samples:
                raise UserError(f"{file}, line {number}: document {sample.doc_id} for the second time")
            samples[sample.doc_id] = sample
    if not samples:
        raise UserError(f"{file}: is empty; has the run ended?")
    by_instruction: dict[str, int] = {}
    for sample in samples.values():
        other = by_instruction.setdefault(sample.instruction, sample.doc_id)
        if other != sample.doc_id:
            raise UserError(
                f"{file}: documents {other} and {sample.doc_id} have the same instruction, by which alpaca_eval finds "
                "the reference's output: remove one from the task's data"
            )
    return [samples[doc_id] for doc_id in sorted(samples)]


def check_complete(samples: Sequence[Sample], file: Path) -> None:
    """Raise `UserError` unless the samples are the 805 instructions.

    The length-controlled win rate takes an instruction's difficulty by its row among the judged ones
    (alpaca_eval 0.6.6, metrics/glm_winrate.py): with a part of them it takes the wrong ones.
    """
    missing = sorted(set(range(INSTRUCTIONS)) - {sample.doc_id for sample in samples})
    if missing or len(samples) != INSTRUCTIONS:
        what = f"; the first one missing is document {missing[0]}" if missing else ""
        raise UserError(
            f"{file}: has {len(samples)} instructions, AlpacaEval has {INSTRUCTIONS}{what}. The length-controlled win "
            "rate is wrong for a part. Run without --limit; to look at the outputs all the same: --allow-incomplete"
        )


def default_generator(place: Path) -> str:
    """The name of the run's folder."""
    path = place.resolve()
    return path.parent.name if path.is_file() else path.name


def _sample(line: str, where: str) -> Sample:
    try:
        logged = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: is not JSON ({error.msg}): is the run still being written?") from None
    try:
        doc = logged["doc"]
        known = doc["lm_power"]
        # Under several processes lm-eval fills a short one up with clones of its last request: their completions
        # come after the document's own, and `lm_power` does not have them.
        completions = tuple(logged["resps"][0][: len(known["finish_reason"])])
        sample = Sample(
            doc_id=logged["doc_id"],
            instruction=doc["instruction"],
            dataset=doc["dataset"],
            completions=completions,
            self_rewards=tuple(known["self_reward"]),
            finish_reasons=tuple(known["finish_reason"]),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{where}: is no sample of {TASK} ({type(error).__name__}: {error}); with --predict_only lm-eval logs none"
        ) from None
    if not 0 < len(completions) == len(sample.finish_reasons):
        raise UserError(f"{where}: has {len(completions)} texts where {len(sample.finish_reasons)} were drawn")
    return sample
