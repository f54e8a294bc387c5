"""A server of completions for tests: real HTTP on loopback, over a table or a model, with faults on demand.

It answers as `vllm serve` does, as far as power sampling looks at it. Draws depend on the query's seed and the
position alone, so that the same queries get the same answers. A server of a process of its own: `python fake_server.py
FOLDER PORT [SECONDS_PER_TOKEN]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
from aiohttp import web


@dataclasses.dataclass
class Ways:
    """How the server behaves; tests change these while it runs.

    Attributes:
        faults: by the running number of a completions request, counted from 0: "reset", "half", "slow", "hang up"
            (after a whole answer), or a status.
        retry_after: seconds to wait, said with every status.
        malformed: answered to every completions request.
        restarts: by the same number: entries of the card that differ from then on.
        raw: log-probs are the model's own, whatever the temperature.
        replicas: that a header may choose among.
        most: tokens on a list, at most; more are refused, as by vLLM's --max-logprobs. `lists`: capped in silence.
        ids: tokens come as ids; otherwise as texts.
        completions: whether there is /v1/completions.
        takes_ids: whether a prompt may be token ids.
        keeps_stop: the token at which the server stops is part of the answer.
        key: that requests must bring.
        cut: tokens in an answer, at most.
        pause: seconds a token takes.
        card: of the model in /v1/models.
        obeys_temperature: otherwise all draws are at temperature 1.
    """

    faults: dict[int, str | int] = dataclasses.field(default_factory=dict)
    retry_after: int = 0
    malformed: object = None
    restarts: dict[int, dict] = dataclasses.field(default_factory=dict)
    raw: bool = True
    replicas: int = 8
    most: int | None = None
    lists: int | None = None
    ids: bool = True
    completions: bool = True
    takes_ids: bool = True
    keeps_stop: bool = True
    key: str | None = None
    cut: int | None = None
    pause: float = 0.0
    obeys_temperature: bool = True
    answers_as: str | None = None
    card: dict = dataclasses.field(
        default_factory=lambda: {"id": "tiny", "object": "model", "root": "/nowhere/tiny", "max_model_len": 512}
    )


class FakeServer:
    """Serves a next-token law.

    Args:
        next_log_p: token ids of the context → [vocabulary] log p of the next token.
        spell: token ids → text.
    """

    def __init__(self, next_log_p: Callable[[tuple[int, ...]], np.ndarray], spell: Callable[[list[int]], str]) -> None:
        self.next_log_p, self.spell, self.ways = next_log_p, spell, Ways()
        self.adapters: dict[str, tuple[str, Callable[[tuple[int, ...]], np.ndarray]]] = {}  # name → folder and law
        self.bodies: list[dict] = []  # of all completions requests
        self.headers: list[dict] = []
        self.under_way = self.most_under_way = self.abandoned = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/completions", self.completions)
        return app

    async def models(self, request: web.Request) -> web.Response:
        self._authorise(request)
        adapters = [
            {"id": name, "object": "model", "root": folder, "parent": self.ways.card["id"], "max_model_len": None}
            for name, (folder, _) in self.adapters.items()
        ]
        return web.json_response({"object": "list", "data": [self.ways.card, *adapters]})

    def _authorise(self, request: web.Request) -> None:
        given = request.headers.get("Authorization")
        if self.ways.key is not None and given != f"Bearer {self.ways.key}":
            raise web.HTTPUnauthorized(text=json.dumps({"error": {"message": f"Incorrect API key: {given}"}}))

    async def completions(self, request: web.Request) -> web.StreamResponse:
        self._authorise(request)
        if not self.ways.completions:
            raise web.HTTPNotFound
        body, number = await request.json(), len(self.bodies)
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            fault = self.ways.faults.get(number)
            self.ways.card = self.ways.card | self.ways.restarts.get(number, {})
            if isinstance(fault, int):
                later = {"Retry-After": str(self.ways.retry_after)}
                return web.json_response({"error": {"message": "injected"}}, status=fault, headers=later)
            if self.ways.malformed is not None:
                return web.json_response(self.ways.malformed)
            if fault == "reset":
                request.transport.abort()
                return web.Response()
            if fault == "slow":
                await asyncio.sleep(3600)
            rank = request.headers.get("X-data-parallel-rank", "0")
            if int(rank) >= self.ways.replicas:
                raise _error(400, f"data_parallel_rank {rank} is out of range [0, {self.ways.replicas}).")
            whole = json.dumps(await self.answer(body)).encode()
            if fault == "half":
                response = web.StreamResponse(headers={"Content-Length": str(len(whole))})
                await response.prepare(request)
                await response.write(whole[: len(whole) // 2])
                request.transport.close()
                return response
            response = web.Response(body=whole, content_type="application/json")
            if fault == "hang up":
                response.force_close()
            return response
        except asyncio.CancelledError:
            self.abandoned += 1
            raise
        finally:
            self.under_way -= 1

    async def answer(self, body: dict) -> dict:
        ways, n = self.ways, body["max_tokens"]
        _, next_log_p = self.adapters.get(body["model"], (None, self.next_log_p))
        if body["model"] not in (ways.card["id"], *self.adapters):
            raise _error(404, f"The model `{body['model']}` does not exist.")
        if not ways.takes_ids and not isinstance(body["prompt"], str):
            raise _error(400, "prompt: Input should be a valid string")
        if ways.most is not None and body["logprobs"] > ways.most:
            raise _error(400, f"Requested sample logprobs of {body['logprobs']}, greater than max allowed: {ways.most}")
        if body.get("echo"):
            return {"choices": [self.echo(index, prompt) for index, prompt in enumerate(body["prompt"])]}
        context, drawn, own, tops, reason = tuple(body["prompt"]), [], [], [], "length"
        inverse = 1 / body["temperature"] if ways.obeys_temperature else 1.0
        for _ in range(min(n, ways.cut or n)):
            if ways.pause:
                await asyncio.sleep(ways.pause)
            log_p = next_log_p((*context, *drawn))
            weights = np.exp(inverse * (log_p - log_p.max()))
            token = draw_token(weights, body["seed"], len(context) + len(drawn))
            if token in body["stop_token_ids"]:
                reason = "stop"
                if not ways.keeps_stop:
                    break
            told = log_p if ways.raw else np.log(weights / weights.sum())
            best = {int(v): float(told[v]) for v in np.argsort(-told)[: ways.lists or body["logprobs"]]}
            drawn.append(token)
            own.append(float(told[token]))
            tops.append({token: float(told[token]), **best})
            if reason == "stop":
                break
        named = self.spelled if not ways.ids else "token_id:{}".format
        logprobs = {
            "tokens": [named(token) for token in drawn],
            "token_logprobs": own,
            "top_logprobs": [{named(token): log_p for token, log_p in top.items()} for top in tops],
        }
        choice = {"index": 0, "text": self.spell(drawn), "finish_reason": reason, "logprobs": logprobs}
        return {"object": "text_completion", "model": ways.answers_as or body["model"], "choices": [choice]}

    def echo(self, index: int, prompt: list[int]) -> dict:
        """A prompt's own log-probs, as lm-eval asks for them; and those of one token more."""
        laws = [self.next_log_p(tuple(prompt[:t])) for t in range(1, len(prompt) + 1)]
        own = [float(law[token]) for law, token in zip(laws, [*prompt[1:], int(laws[-1].argmax())], strict=True)]
        tops = [{"best": float(law.max())} for law in laws]
        return {"index": index, "logprobs": {"token_logprobs": [None, *own], "top_logprobs": [None, *tops]}}

    def spelled(self, token: int) -> str:
        return self.spell([token])

    @contextlib.contextmanager
    def running(self, port: int = 0) -> Iterator[str]:
        """Serve in a thread; the URL."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        runner = web.AppRunner(self.app(), shutdown_timeout=0.1, handler_cancellation=True)

        async def start() -> int:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True)
            await site.start()
            return site._server.sockets[0].getsockname()[1]

        found = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
        try:
            yield f"http://127.0.0.1:{found}/v1/completions"
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


def draw_token(weights: np.ndarray, seed: int, position: int) -> int:
    """A token by its weight, which depends on the query's seed and the position alone."""
    uniform = np.random.default_rng([seed, position]).random()
    return int(np.searchsorted(np.cumsum(weights)[:-1], uniform * weights.sum(), side="right"))


def _error(status: int, message: str) -> web.HTTPException:
    kind = {400: web.HTTPBadRequest, 404: web.HTTPNotFound}[status]
    return kind(text=json.dumps({"error": {"message": message}}), content_type="application/json")


def of_model(folder: str) -> FakeServer:
    """A server over a checkpoint in a folder, in float64: its numbers do not depend on what else is asked."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    spell = functools.partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    server = FakeServer(law_of_model(folder), spell)
    server.ways.card |= {"root": folder, "max_model_len": AutoConfig.from_pretrained(folder).max_position_embeddings}
    return server


def law_of_model(folder: str, adapter: str | None = None) -> Callable[[tuple[int, ...]], np.ndarray]:
    """The next-token law of a checkpoint, with a PEFT adapter on top if one is named."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    if adapter is not None:
        from lm_power.adapter import load_adapter

        model = load_adapter(model, adapter)

    @functools.cache
    def next_log_p(context: tuple[int, ...]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([context])).logits[0, -1].log_softmax(-1).numpy()

    return next_log_p


if __name__ == "__main__":
    served = of_model(sys.argv[1])
    served.ways.pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    with served.running(int(sys.argv[2])) as address:
        print(address, flush=True)
        threading.Event().wait()
