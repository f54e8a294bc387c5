"""Teacher data: completions on disk, checked and made ready to learn from.

    from lm_power.distill.teacher import read_teacher
    data = read_teacher(["runs/math7b"], tokenizer, eos_ids=find_eos_ids(model, tokenizer), vocabulary=vocab_size)
    print(data.summary())
    data.samples[0].prompt_ids, data.samples[0].token_ids

A store's token ids are taken as they are. lm-eval's `--log_samples` files of any model hold texts, which the student's
tokenizer encodes. From a folder with both kinds of files of one run, the tokens come from the store and the verdicts
from the samples. No labels are needed, and nothing is filtered by correctness unless the user asks for it.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_power.distill.agreement import attach_verdicts, one_model, shared_settings
from lm_power.distill.contamination import EvaluationSets
from lm_power.distill.encoding import Encoder, Sample
from lm_power.distill.options import Selection
from lm_power.distill.samples import read_logged
from lm_power.distill.sources import Drawn, TeacherDataError, find_files, kind_of, read_store_lines
from lm_power.distill.tally import Tally, repetition

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Sample", "Selection", "TeacherData", "TeacherDataError", "read_teacher"]

_SHOWN_HITS = 3

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TeacherData:
    """What `read_teacher` found.

    Attributes:
        samples: what to learn from, in an order that depends on the files' contents alone.
        counts: numbers of completions: "read", dropped by reason in the order of the checks, and "kept".
        first_dropped: reason → "file:line" of the first completion dropped for it.
        model: the teacher as the store names it, "name@fingerprint", or its name alone; None if no file says.
        config: the sampling options that all completions share (`seed` included if they share it); None if no file
            has any.
        files: the files that were read.
    """

    samples: tuple[Sample, ...]
    counts: dict[str, int]
    first_dropped: dict[str, str]
    model: str | None
    config: dict[str, Any] | None
    files: tuple[str, ...]

    def summary(self) -> str:
        """A few lines for the user: counts with reasons, teacher, settings, how completions ended, lengths, cost."""
        lines = [
            f"{count:>7} {reason}" + (f" (first: {self.first_dropped[reason]})" if reason in self.first_dropped else "")
            for reason, count in self.counts.items()
        ]
        settings = "not told by the files" if self.config is None else "settings that have nothing in common"
        if self.config:
            settings = ", ".join(f"{name}={value}" for name, value in self.config.items() if value is not None)
        prompts = len({sample.prompt_ids for sample in self.samples})
        lengths = [len(sample.token_ids) for sample in self.samples]
        ends = [sample.finish_reason for sample in self.samples]
        ways = {"eos": "by EOS", "stop": "by a stop string", "length": "cut by the length limit", None: "not told"}
        endings = ", ".join(f"{ends.count(end) / len(ends):.1%} {name}" for end, name in ways.items() if end in ends)
        known = [sample.tokens_decoded for sample in self.samples if sample.tokens_decoded is not None]
        cost = f"{sum(known)} tokens decoded for them" if len(known) == len(self.samples) else "cost not told"
        return "\n".join(
            [
                f"teacher data from {len(self.files)} file{'s' * (len(self.files) != 1)}, completions:",
                *lines,
                f"teacher: {self.model or 'not told by the files'}",
                f"drawn with: {settings}",
                f"{len(self.samples)} completions of {prompts} prompts; {cost}",
                f"tokens per completion: {min(lengths)} to {max(lengths)}, median {statistics.median(lengths):g}",
                f"ended: {endings}" + ("; EOS is learnt only where it is known to have ended one" * (None in ends)),
            ]
        )


def read_teacher(
    paths: Iterable[str | Path],
    tokenizer: PreTrainedTokenizerBase,
    selection: Selection | None = None,
    *,
    eos_ids: Sequence[int],
    vocabulary: int | None = None,
) -> TeacherData:
    """The (prompt, completion) pairs of stores and lm-eval samples files, which are recognised by their content.

    A samples file whose completions are all in the given stores belongs to the same run. It adds verdicts and the
    problems that prompts were made from, but no completions. Completions of stores come first, by repeat and key,
    whichever process wrote them when. Then come those of samples files, by file, document and repeat. A run should have
    ended before its store is read, because its short completions are stored first.

    Args:
        paths: store folders or files, samples files, folders with any of these in them or below.
        tokenizer: the student's; it must be the same as the teacher's.
        selection: which completions are kept; by default `Selection()`, the first repeat of each prompt.
        eos_ids: the student's EOS tokens. One is appended to each completion of a samples file that ended by EOS: the
            tokenizer's own if it is among them, else the first.
        vocabulary: number of the student's token ids; by default `len(tokenizer)`.

    Raises:
        LogError, StoreError: a file is damaged.
        TeacherDataError: files are missing, empty, of several models or settings; the tokenizer is not the
            teacher's; a prompt occurs in an evaluation set; nothing is left.
    """
    selection = Selection() if selection is None else selection
    files = find_files(paths)
    stored, logged = _read(files)
    everything = [*stored, *(one for drawn in logged.values() for one in drawn)]
    model = one_model(everything)
    drawn = attach_verdicts(stored, logged)
    config = shared_settings(drawn, selection.mixed_settings)
    _refuse_contaminated(drawn, selection.exclude_prompts_of)

    tally = Tally(drawn)
    drawn = tally.drop("data-parallel padding", drawn, lambda one: one.is_padding)
    copied = repetition()
    drawn = tally.drop("read before (copies of one draw)", drawn, lambda one: copied(one.key))
    if selection.correct_only:
        _require_verdicts(drawn)
        drawn = tally.drop("without a verdict in the samples files", drawn, lambda one: one.correct is None)
        drawn = tally.drop("graded wrong", drawn, lambda one: not one.correct)
    vocabulary = len(tokenizer) if vocabulary is None else vocabulary
    encoder = Encoder(tokenizer, eos_ids, vocabulary, selection.assume_eos)
    encoded = {one.key: encoder.sample(one) for one in drawn}
    drawn = tally.drop("whose text the tokenizer does not give back", drawn, lambda one: encoded[one.key] is None)
    samples = [sample for one in drawn if (sample := encoded[one.key]) is not None]
    samples = tally.drop("without a token", samples, lambda sample: not sample.token_ids)
    if selection.deduplicate:
        equal = repetition()
        samples = tally.drop(
            "equal to an earlier completion of the prompt", samples, lambda s: equal((s.prompt_ids, s.token_ids))
        )
    if selection.finished_only:
        _require_endings(samples)
        samples = tally.drop("unfinished (cut by the length limit)", samples, lambda s: s.finish_reason == "length")
    least = selection.min_tokens
    samples = tally.drop(f"shorter than {least} tokens", samples, lambda sample: len(sample.token_ids) < least)
    chosen = _choose(samples, selection)
    samples = tally.drop(f"not chosen (select={selection.select})", samples, lambda sample: sample not in chosen)
    return TeacherData(
        samples=tuple(samples),
        counts=tally.finished(len(samples)),
        first_dropped=tally.first,
        model=model,
        config=config,
        files=tuple(map(str, files)),
    )


def _read(files: Sequence[Path]) -> tuple[list[Drawn], dict[Path, list[Drawn]]]:
    """(completions of all stores, those of each samples file)."""
    stored: list[Drawn] = []
    logged: dict[Path, list[Drawn]] = {}
    for file in files:
        kind = kind_of(file)
        if kind == "store":
            stored += read_store_lines(file)
        elif kind == "samples":
            logged[file] = read_logged(file)
        elif kind is None:
            logger.warning("%s: holds no whole line; left out", file)
        else:
            raise TeacherDataError(
                f"{file}: is neither a store's file nor one of lm_eval --log_samples, by its first line; leave it out, "
                "or name the files to read"
            )
    if not stored and not logged:
        raise TeacherDataError(f"{', '.join(map(str, files))}: empty; nothing has been drawn yet")
    # Sorted by repeat, so that the first of equal completions is kept. If another were kept, select=one would take the
    # next repeat instead, and favour the rarer completions of a prompt.
    return sorted(stored, key=lambda one: (one.repeat, one.key)), logged


def _refuse_contaminated(drawn: Sequence[Drawn], exclude_prompts_of: Iterable[str | Path]) -> None:
    sets = EvaluationSets(exclude_prompts_of)
    prompts = {one.prompt: one for one in reversed(drawn)}
    hits = []
    for one in reversed(prompts.values()):
        found = sets.find(one.prompt) or (one.problem and sets.find(one.problem))
        if found:
            hits.append(f"{one.where} ({one.prompt[:60]!r}) is {found}")
    if hits:
        raise TeacherDataError(
            f"{len(hits)} of {len(prompts)} prompts occur in the evaluation sets of exclude_prompts_of: "
            f"{'; '.join(hits[:_SHOWN_HITS])}{'; …' if len(hits) > _SHOWN_HITS else ''}. A student taught on them "
            "cannot be judged by them: draw from other prompts"
        )


def _require_verdicts(drawn: Sequence[Drawn]) -> None:
    """Raise `TeacherDataError` if there are no verdicts at all; a store may hold more completions than were graded."""
    unknown = [one for one in drawn if one.correct is None]
    logged = [one for one in unknown if one.token_ids is None]
    if logged:
        raise TeacherDataError(
            f"{logged[0].where}: correct_only needs a verdict for each completion: doc.lm_power.correct, as our tasks "
            "log it, or acc or exact_match of a single completion; this line has none"
        )
    if len(unknown) == len(drawn):
        raise TeacherDataError(
            f"{drawn[0].where}: correct_only: a store holds no verdicts; give the samples files of the same run too "
            "(lm_eval --output_path DIR --log_samples)"
        )


def _require_endings(samples: Sequence[Sample]) -> None:
    unknown = next((sample for sample in samples if sample.finish_reason is None), None)
    if unknown is not None:
        raise TeacherDataError(
            f"{unknown.where}: finished_only: the file does not tell how its completions ended; only --model power-hf "
            "logs it. Leave finished_only out"
        )


def _choose(samples: Sequence[Sample], selection: Selection) -> set[Sample]:
    """Those of each prompt that `select` and `per_prompt` keep."""
    groups: dict[tuple[int, ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.prompt_ids].append(sample)
    most = selection.per_prompt if selection.select == "all" else selection.per_prompt or 1
    chosen: set[Sample] = set()
    for group in groups.values():
        ranked = sorted(group, key=_minus_self_reward) if selection.select == "best" else group
        chosen.update(ranked[:most])
    return chosen


def _minus_self_reward(sample: Sample) -> float:
    if sample.self_reward is None or not math.isfinite(sample.self_reward):
        raise TeacherDataError(
            f"{sample.where}: select=best: this completion has no self-reward; --model power-hf logs it for every "
            "method. Take select=one or all"
        )
    return -sample.self_reward
