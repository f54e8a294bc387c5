"""`lm-power alpaca-eval`: a run of the task power_alpaca_eval as the file that the `alpaca_eval` package judges.

    lm-power alpaca-eval RUN --output FILE.json
    alpaca_eval --model_outputs FILE.json

The file is a JSON list with one object per instruction, in the order of the data set. An object has `instruction`,
`output`, `generator` (the model's name on the leaderboard) and `dataset` (the collection that the instruction is from).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from lm_power.errors import UserError
from lm_power.logs.samples import Document, LoggedCompletion, read_samples

HELP = "convert a run of power_alpaca_eval to the JSON file that the alpaca_eval package judges"
TASK = "power_alpaca_eval"
INSTRUCTIONS = 805
CHOICES = ("first", "best")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "folder", metavar="RUN", type=Path, help="lm-eval's --output_path, or one samples_*.jsonl in it"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.json", help="a new file")
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
        help=f"convert a run of fewer than {INSTRUCTIONS} instructions; its length-controlled win rate is meaningless",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the file and say what is in it. Raises `UserError` before anything is written."""
    output: Path = arguments.output
    if output.suffix != ".json":
        raise UserError(f"--output {output}: must end in .json, from which alpaca_eval recognises the format")
    file = find_samples(arguments.folder)
    documents = read_documents(file)
    if not arguments.allow_incomplete:
        check_complete(documents, file)
    generator = arguments.generator or default_generator(arguments.folder)
    chosen = [choice(document, arguments.choose) for document in documents]
    outputs = [
        {
            "instruction": document.doc["instruction"],
            "output": completion.text,
            "generator": generator,
            "dataset": document.doc["dataset"],
        }
        for document, completion in zip(documents, chosen, strict=True)
    ]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("x", encoding="utf-8") as out:
            json.dump(outputs, out, ensure_ascii=False, indent=2)
    except OSError as error:
        if isinstance(error, FileExistsError) and output.exists():
            raise UserError(f"--output {output}: already exists; remove it or choose another name") from None
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); choose another name") from error
    n = max(len(document.completions) for document in documents)
    print(f"{output}: {_summary(chosen, n, arguments.choose, generator)}")
    print(f"Judge it:  alpaca_eval --model_outputs {output}")


def _summary(chosen: Sequence[LoggedCompletion], n: int, choose: str, generator: str) -> str:
    facts = [f"{len(chosen)} outputs of {generator!r}"]
    if n > 1:
        facts.append(f"of {n} completions the {'first' if choose == 'first' else 'one with the largest self-reward'}")
    reasons = [completion.finish_reason for completion in chosen]
    if None not in reasons:
        facts.append(f"{reasons.count('length')} cut at the length limit")
    return ", ".join([*facts, f"{sum(not completion.text.strip() for completion in chosen)} empty"])


def find_samples(place: Path) -> Path:
    """The one samples file of the task in an output folder, or the file that `place` is.

    Raises:
        UserError: there is none, or more than one.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; RUN must be lm-eval's --output_path")
    files = sorted(place.rglob(f"samples_{TASK}_*.jsonl"))
    if not files:
        raise UserError(
            f"{place}: holds no samples_{TASK}_*.jsonl; let lm_eval --tasks {TASK} --output_path {place} --log_samples "
            "finish, or name the samples file of a task of your own"
        )
    if len(files) > 1:
        names = "".join(f"\n  {file}" for file in files)
        raise UserError(f"{place}: holds {len(files)} runs; name one of its files:{names}")
    return files[0]


def read_documents(file: Path) -> list[Document]:
    """The documents of one file, in the order of the data set, each instruction once.

    Raises:
        LogError: a line is torn, or is no sample.
        UserError: a line belongs to another task, or repeats an instruction; or there are none.
    """
    documents: dict[int, Document] = {}
    for document in read_samples(file):
        doc = document.doc
        if not document.is_ours or not all(isinstance(doc.get(name), str) for name in ("instruction", "dataset")):
            raise UserError(f"{document.where}: is not a sample of {TASK}; lm-eval logs none with --predict_only")
        if document.doc_id in documents:
            raise UserError(f"{document.where}: document {document.doc_id} appears twice")
        documents[document.doc_id] = document
    if not documents:
        raise UserError(f"{file}: is empty; has the run ended?")
    by_instruction: dict[str, int] = {}
    for document in documents.values():
        other = by_instruction.setdefault(document.doc["instruction"], document.doc_id)
        if other != document.doc_id:
            raise UserError(
                f"{file}: documents {other} and {document.doc_id} have the same instruction, and alpaca_eval finds the "
                "reference's output by the instruction; remove one of them from the task's data"
            )
    return [documents[doc_id] for doc_id in sorted(documents)]


def choice(document: Document, choose: str) -> LoggedCompletion:
    """The completion to be judged: the first, or the first of those with the largest self-reward.

    Raises:
        UserError: `choose` is "best" and a self-reward is missing.
    """
    if choose == "first":
        return document.completions[0]
    rewards = [c.self_reward for c in document.completions if c.self_reward is not None]
    if len(rewards) < len(document.completions):
        raise UserError(
            f"--choose best: document {document.doc_id} has completions without a self-reward; sample with "
            "--model power-hf, or use --choose first"
        )
    return document.completions[rewards.index(max(rewards))]


def check_complete(samples: Sequence[Document], file: Path) -> None:
    """Raise `UserError` unless the samples are the 805 instructions.

    The length-controlled win rate looks up an instruction's difficulty by its row among the judged ones (alpaca_eval
    0.6.6, metrics/glm_winrate.py). If some are missing, it takes the difficulties of others.
    """
    missing = sorted(set(range(INSTRUCTIONS)) - {sample.doc_id for sample in samples})
    if missing or len(samples) != INSTRUCTIONS:
        what = f"; the first one missing is document {missing[0]}" if missing else ""
        raise UserError(
            f"{file}: has {len(samples)} instructions, AlpacaEval has {INSTRUCTIONS}{what}. The length-controlled win "
            "rate of a part is wrong. Run without --limit, or convert it all the same with --allow-incomplete"
        )


def default_generator(place: Path) -> str:
    """The name of the run's folder."""
    path = place.resolve()
    return path.parent.name if path.is_file() else path.name
