"""PowerSampler: draws many completions on one engine."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from lm_power.adapter import check_merging, with_adapters
from lm_power.chains import Algorithm, Path, make_algorithm
from lm_power.completion import Completion, Stats, Steps
from lm_power.config import OptionError, SamplerConfig
from lm_power.decoding import FinishedBy
from lm_power.detokenize import Detokenizer
from lm_power.engine import BatchShape, StopStrings
from lm_power.engine.attention import prefer_spans
from lm_power.engine.device import default_device
from lm_power.engine.out_of_memory import retry_with_fewer_rows
from lm_power.host import Host, LocalHost
from lm_power.jobs import ActiveJob, Job
from lm_power.progress import Progress, progress_bar
from lm_power.remote.server import Server, rows_unknown
from lm_power.scheduler import Scheduler

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PowerSampler:
    """Draws completions of a causal LM from p(x)^alpha and related distributions.

    Args:
        model: transformers causal LM (or a PEFT model around one), or another `Host` (see `from_server`).
        tokenizer: its tokenizer; None if prompts are token ids and texts are not needed.
        max_rows: completions decoded side by side, or "auto" for as many as fit.
        eos_token_ids: tokens that end a completion; default: those of the model's generation config (or
            config) and of the tokenizer.
        cuda_graphs: on a GPU, record a decode step once and replay it; see `lm_power.engine.decode_step`. None: if that
            works. True: fail if it does not. False: never.
        torch_compile: compile the model for decode steps, which takes a few minutes.
        batch_shape: "shrinking": a step runs on as many rows as there is work for. "fixed": it runs on all rows, so
            that below float64 the last bits of a completion do not depend on which others are decoded beside it or were
            stored before.
        proposer: another model of the same tokens that proposals are drawn from, such as the base with a distilled
            adapter (see `lm_power.engine.paired`), for `method=power` and `method=smc`. None: the model itself.

    Attributes:
        counters: what has been decoded so far, by all calls.

    Raises:
        UnsupportedModelError: the engine cannot serve this architecture.
        OptionError: no EOS token is known, `max_rows` is neither a whole number ≥ 1 nor "auto", or `batch_shape` is
            neither "shrinking" nor "fixed".
    """

    def __init__(
        self,
        model: PreTrainedModel | Host,
        tokenizer: PreTrainedTokenizerBase | None,
        max_rows: int | Literal["auto"] = 64,
        eos_token_ids: Sequence[int] | None = None,
        cuda_graphs: bool | None = None,
        torch_compile: bool = False,
        batch_shape: BatchShape = "shrinking",
        proposer: PreTrainedModel | None = None,
    ) -> None:
        if max_rows != "auto" and (isinstance(max_rows, bool) or not isinstance(max_rows, int) or max_rows < 1):
            raise OptionError(f"max_rows={max_rows!r}: must be a whole number >= 1, or 'auto'")
        self.host: Host
        if isinstance(model, torch.nn.Module):
            self.host = LocalHost(
                model,
                tokenizer,
                eos_token_ids=eos_token_ids,
                cuda_graphs=cuda_graphs,
                torch_compile=torch_compile,
                batch_shape=batch_shape,
                proposer=proposer,
            )
        else:
            given = {
                "eos_token_ids": eos_token_ids is not None,
                "cuda_graphs": cuda_graphs is not None,
                "torch_compile": torch_compile,
                "batch_shape": batch_shape != "shrinking",
                "proposer": proposer is not None,
            }
            if wrong := [name for name, is_given in given.items() if is_given]:
                raise OptionError(
                    f"{', '.join(wrong)}: for a model in this process, and this one runs elsewhere; leave it out"
                )
            self.host = model
        self.batch_shape, self.max_rows = batch_shape, max_rows
        self.tokenizer, self.eos_ids = tokenizer, self.host.eos_ids
        self._text = None if tokenizer is None else Detokenizer(tokenizer)
        self.counters = self.host.counters()
        self._fitted: int | None = None  # rows · positions that still fitted when memory last ran out

    @classmethod
    def from_pretrained(
        cls,
        pretrained: str,
        *,
        device: str | None = None,
        dtype: str = "auto",
        max_rows: int | Literal["auto"] = 64,
        peft: str | None = None,
        proposal_peft: str | None = None,
        merge_adapter: bool = False,
        cuda_graphs: bool | None = None,
        torch_compile: bool = False,
        batch_shape: BatchShape = "shrinking",
        **model_options: Any,
    ) -> PowerSampler:
        """A sampler for a checkpoint.

        Args:
            pretrained: hub id or folder.
            device: where to put the model; default: the GPU if there is one, else the CPU.
            dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
            max_rows: see the class.
            peft: hub id or folder of a PEFT adapter to load on top (see `lm_power.adapter`).
            proposal_peft: hub id or folder of another adapter of the same base that proposals are drawn from.
            merge_adapter: merge `peft` into the base (see `lm_power.adapter.merged`).
            cuda_graphs: see the class.
            torch_compile: see the class.
            batch_shape: see the class.
            model_options: for `AutoModelForCausalLM.from_pretrained`. Without `attn_implementation`, a model on NVIDIA
                GPUs gets `"lm_power"` (see `lm_power.engine.attention`) if it supports it; any other model gets what
                transformers chooses.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        check_merging(merge_adapter, peft, proposal_peft)
        if device is not None and "device_map" in model_options:
            raise OptionError(f"device={device} and device_map: both say where the model goes; give one of them")
        if "device_map" not in model_options:
            model_options["device_map"] = device or default_device()
        model: Any = AutoModelForCausalLM.from_pretrained(pretrained, dtype=dtype, **model_options)
        if model_options.get("attn_implementation") is None:
            prefer_spans(model)
        model, proposer = with_adapters(model, peft, proposal_peft, merge=merge_adapter)
        revision = {k: v for k, v in model_options.items() if k in ("revision", "trust_remote_code", "token")}
        tokenizer = AutoTokenizer.from_pretrained(pretrained, **revision)
        return cls(
            model,
            tokenizer,
            max_rows=max_rows,
            cuda_graphs=cuda_graphs,
            torch_compile=torch_compile,
            batch_shape=batch_shape,
            proposer=proposer,
        )

    @classmethod
    def from_server(
        cls,
        base_url: str | Sequence[str],
        model: str | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        *,
        max_rows: int = 64,
        top_logprobs: int = 20,
        **options: Any,
    ) -> PowerSampler:
        """A sampler for a model that an OpenAI-compatible server of completions serves, such as `vllm serve MODEL`.

        Args:
            base_url: such as http://HOST:PORT/v1/completions, or a list of them for several servers of one model.
            model: the name under which the model is served; default: the only one.
            tokenizer: hub id, folder or tokenizer of the same model; default: that of the checkpoint that the server
                names.
            max_rows: largest number of queries under way at a time.
            top_logprobs: number of tokens that the server lists; proposals are confined to them.
            options: those of `lm_power.remote.server.Server.connect`. The key is read from the environment variable
                OPENAI_API_KEY.

        Raises:
            OptionError: a wrong option, or a server that cannot be used; the message says how to start it.
        """
        if isinstance(max_rows, str):
            raise rows_unknown(max_rows)
        server = Server.connect(base_url, model, tokenizer, top_logprobs=top_logprobs, **options)
        return cls(server, server.tokenizer, max_rows=max_rows)

    @classmethod
    def from_vllm(cls, model: str, *, max_rows: int = 64, **options: Any) -> PowerSampler:
        """A sampler for a model that vLLM loads into this process.

        Args:
            model: hub id or folder.
            max_rows: largest number of completions drawn side by side.
            options: those of `lm_power.remote.vllm_engine.load`, such as `top_logprobs` and `lora_local_path`, and
                those of vLLM's `LLM`, such as `tensor_parallel_size` and `quantization`.

        Raises:
            OptionError: a wrong option, or vLLM is not installed.
        """
        from lm_power.remote.vllm_engine import load

        if isinstance(max_rows, str):  # refused before the model loads, which takes minutes
            raise rows_unknown(max_rows, "vLLM's")
        server = load(model, **options)
        return cls(server, server.tokenizer, max_rows=max_rows)

    def resolved(self, config: SamplerConfig) -> SamplerConfig:
        """The options with everything filled in that depends on the engine.

        Raises:
            OptionError: the engine cannot honour them.
        """
        return self.host.resolved(config)

    @property
    def engine_options(self) -> dict[str, Any]:
        """The engine's options that decide a completion, for keys."""
        return dict(self.host.relevant_options)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        n: int = 1,
        *,
        stop: str | Sequence[str] | None = (),
        progress: bool = False,
        **options: Any,
    ) -> list[list[Completion]]:
        """`n` completions of each prompt: `out[i][j]` is the j-th of prompt i.

        The same seed, prompt and j give the same completion, whatever the other prompts.

        Args:
            prompts: texts, or token ids.
            n: completions per prompt, ≥ 1.
            stop: strings that end a completion; the text is cut before them, the tokens are kept.
            progress: show a progress bar on stderr.
            options: those of `SamplerConfig`: method, alpha, block_size, seed …

        Raises:
            OptionError: a wrong or unknown option, or a prompt that is empty, has ids outside the vocabulary, or leaves
                no room for a completion. It is raised before anything is decoded.
        """
        if isinstance(prompts, str):
            raise OptionError("prompts: must be a list of prompts; for one prompt write [prompt]")
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise OptionError(f"n={n!r}: must be a whole number >= 1")
        config = SamplerConfig().replace(**options)
        encoded = [self.encode(prompt) for prompt in prompts]
        jobs = [Job(ids, repeat) for ids in encoded for repeat in range(n)]
        drawn: list[Completion | None] = [None] * len(jobs)
        for index, completion in self.sample(jobs, config, stop, progress=progress):
            drawn[index] = completion
        finished = iter(completion for completion in drawn if completion is not None)
        return [list(itertools.islice(finished, n)) for _ in prompts]

    def encode(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """Token ids of a prompt: texts by the tokenizer, with its special tokens unless already there.

        Raises:
            OptionError: a text without a tokenizer, or what is neither text nor token ids.
        """
        if not isinstance(prompt, str):
            try:
                return tuple(operator.index(token) for token in prompt)
            except TypeError:
                raise OptionError(f"prompt={prompt!r:.60}: must be a text, or token ids, which are integers") from None
        if self.tokenizer is None:
            raise OptionError(f"prompt={prompt[:40]!r}: without a tokenizer prompts must be token ids")
        bos = self.tokenizer.bos_token
        doubled = bool(bos) and prompt.startswith(bos)
        return tuple(self.tokenizer.encode(prompt, add_special_tokens=not doubled))

    def sample(
        self,
        jobs: Sequence[Job],
        config: SamplerConfig,
        stop: str | Sequence[str] | None = (),
        *,
        rows: int | None = None,
        progress: bool | Progress = False,
        algorithm: Algorithm[Any] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """Draw the jobs' completions, and yield (index of the job, completion) as they finish.

        All checks run when this is called, before anything is decoded.

        Args:
            jobs: what to draw.
            config: how.
            stop: stop strings.
            rows: rows of the batch; default `max_rows`, but at most one per lane of every job.
            progress: whether to show a bar on stderr, or the `Progress` to report to.
            algorithm: draws the completions in place of the one for `config.method`; seed, length and cost options
                remain those of `config`. If another model proposes, it has to allow for token weights > 0.

        Raises:
            OptionError: as `generate`.
        """
        config = self.resolved(config)
        vocabulary = self.host.vocabulary or 0
        stops = StopStrings(self.tokenizer, [stop] if isinstance(stop, str) else list(stop or ()), vocabulary)
        for job in jobs:
            self.check_prompt(job.prompt_ids, config.max_new_tokens)
        if algorithm is None:
            algorithm = make_algorithm(config, foreign=self.host.foreign)
        return self._run(jobs, config, algorithm, stops, rows, progress)

    def check_prompt(self, prompt_ids: Sequence[int], max_new_tokens: int) -> None:
        """Raise `OptionError` for a prompt that cannot be completed."""
        shown = f"prompt of {len(prompt_ids)} tokens"
        if not prompt_ids:
            raise OptionError("empty prompt: must have at least one token; begin with the BOS token")
        size = self.host.vocabulary
        if size is not None and not (min(prompt_ids) >= 0 and max(prompt_ids) < size):
            wrong = next(token for token in prompt_ids if not 0 <= token < size)
            raise OptionError(f"{shown}: id {wrong} lies outside the vocabulary of {size}; is it this model's?")
        limit = self.host.max_positions
        if limit is not None and len(prompt_ids) + max_new_tokens > limit:
            raise OptionError(
                f"{shown}: with max_new_tokens={max_new_tokens} it exceeds the model's {limit} positions; "
                f"shorten it, or set max_new_tokens (max_gen_toks) <= {limit - len(prompt_ids)}"
            )

    def rows_for(
        self, jobs: int, positions: int, config: SamplerConfig, algorithm: Algorithm[Any] | None = None
    ) -> int:
        """Rows of the batch for so many jobs of at most so many positions (prompt and completion).

        That is one row per lane of every job, if memory allows. If memory ran out in an earlier call, it is at most as
        many positions as then still fitted.
        """
        algorithm = algorithm or make_algorithm(config)
        if self.max_rows == "auto":
            most = self.host.rows_that_fit(positions, config.max_new_tokens if algorithm.rewinds else 0)
        else:
            most = self.max_rows
        if self._fitted is not None:
            most = min(most, self._fitted // positions)
        return max(1, min(most, jobs * algorithm.lanes))

    def _run(
        self,
        jobs: Sequence[Job],
        config: SamplerConfig,
        algorithm: Algorithm[Any],
        stops: StopStrings,
        rows: int | None,
        progress: bool | Progress,
    ) -> Iterator[tuple[int, Completion]]:
        if not jobs:
            return
        longest = max(len(job.prompt_ids) for job in jobs)
        positions = longest + config.max_new_tokens
        if rows is None:
            rows = self.rows_for(len(jobs), positions, config, algorithm)
        with progress_bar(len(jobs), progress) as counters:
            counters.follow(self.counters)
            scheduler = Scheduler(algorithm, jobs, config.seed, config.prefetch, counters)

            def attempt(rows_left: int) -> Iterator[ActiveJob]:
                if rows_left < rows:
                    self._fitted = rows_left * positions
                with self.host.decoder(config, rows_left, longest, stops, self.counters, algorithm.measures) as decoder:
                    yield from scheduler.finished(decoder)

            for job in retry_with_fewer_rows(attempt, rows):
                result = algorithm.result(job.state)
                assert result is not None
                stats = job.stats(dict(result.diagnostics))
                companions = [self._completion(path, stops) for path in result.companions]
                completion = self._completion(result.path, stops, stats, job.all_steps(), companions)
                yield job.index, completion

    def _completion(
        self,
        path: Path,
        stops: StopStrings,
        stats: Stats | None = None,
        steps: Steps | None = None,
        companions: Sequence[Completion] = (),
    ) -> Completion:
        assert path.finished_by is not None
        tokens = path.tokens.tolist()
        spoken = tokens[:-1] if path.finished_by is FinishedBy.EOS else tokens
        text = "" if self._text is None else self._text(spoken, skip_special_tokens=True)
        return Completion(
            stops.cut(text) if path.finished_by is FinishedBy.STOP else text,
            token_ids=tokens,
            log_probs=path.log_p.tolist(),
            finish_reason=path.finished_by.value,
            stats=stats,
            steps=steps,
            companions=companions,
        )
