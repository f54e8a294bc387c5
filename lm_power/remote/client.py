"""Queries to OpenAI-compatible servers of completions: one event loop in a thread, one connection a query."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import ssl
import threading
import weakref
from collections.abc import Container, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from lm_power.config import OptionError
from lm_power.remote.answers import Transient, answer_of, message_in
from lm_power.remote.places import Card, Place, cards, places
from lm_power.remote.queries import Answer, Query, ServerError

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger(__name__)
T = TypeVar("T")

API_KEY = "OPENAI_API_KEY"  # the environment variable that lm-eval reads, too
NEUTRAL = {
    "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}  # fmt: skip
"""Said aloud: what is left out, servers take from the checkpoint's generation config."""
RETRIED = (408, 425, 429, 500, 502, 503, 504, 529)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between two tries
_CONNECT = 30.0  # seconds that making a connection may take


class Refused(ServerError):
    """A server has answered that it will not do what was asked for: trying again is of no use.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class HTTPClient:
    """A `Client` over HTTP. Each row keeps to one server, and there to one replica, whose prefix cache knows it.

    A try that fails for want of a connection, by a time-out, with half an answer, or with a status in `RETRIED` is made
    again after a pause that doubles, until `patience` is at its end. It keeps its seed: nobody has seen what it drew,
    so it is still the same draw. A fresh seed would make a law of its own, since long answers fail more often; and
    completions would depend on what failed.

    A server that was started again may serve another model under the same name. No connection outlives its server, so a
    server to which a new one was made is asked for its model before an answer is taken.

    Args:
        base_url: see `places`.
        model: name of the model that is served.
        top: K, tokens on a list.
        eos_ids: tokens at which servers are to stop.
        ranks: replicas that each server has (vLLM's `-dp N`), chosen by a header of vLLM's.
        timeout: seconds that an answer may take.
        patience: seconds that a query is tried for, from its first failure.
        headers: sent with every request, beside the key's.
        verify: a certificate authority's file, or whether to verify certificates at all.

    Raises:
        OptionError: base_url is no URL, `verify` no file of certificates.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str = "",
        top: int = 20,
        eos_ids: Sequence[int] = (),
        *,
        ranks: int = 1,
        timeout: float = 1800.0,
        patience: float = 300.0,
        headers: Mapping[str, str] | None = None,
        verify: bool | str = True,
    ) -> None:
        self.places, self.model, self.top, self.eos_ids = places(base_url), model, top, list(eos_ids)
        self.ranks, self._timeout, self._patience = ranks, timeout, patience
        self._verify = verify if isinstance(verify, bool) else _authority(verify)
        self._api_key = os.environ.get(API_KEY, "")
        self._headers = {**({"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}), **(headers or {})}
        self._done: queue.SimpleQueue[tuple[int, Answer | Exception]] = queue.SimpleQueue()
        self._tasks: dict[int, Future[None]] = {}
        self._kept: dict[int, Answer | Exception] = {}  # what has come and nobody has polled for yet
        self._sessions: list[aiohttp.ClientSession] = []  # the one, once there is a need for it
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lm-power queries", daemon=True)
        self._thread.start()
        # Also where nobody calls `close`: when nothing refers to the client any more, or at the end of the process.
        self._end = weakref.finalize(self, _end, self._loop, self._thread, self._sessions)

    def add(self, number: int, query: Query) -> None:
        """Send a query, and try again as long as there is hope.

        Raises:
            ServerError: the client has been closed.
        """
        if not self._end.alive:
            raise ServerError("the connections to the server have been closed: make another sampler")
        self._tasks[number] = asyncio.run_coroutine_threadsafe(self._carry(number, query), self._loop)

    def poll(self, wanted: Container[int]) -> list[tuple[int, Answer]]:
        """Wait for a wanted answer, and take what else is wanted and has come.

        Raises:
            ServerError: a server stays away, refuses a wanted query, or serves another model now.
        """
        answers = self._take(wanted)
        while not answers or not self._done.empty():
            number, answer = self._done.get()
            if self._tasks.pop(number, None) is not None:  # else given up in the meantime
                self._kept[number] = answer
            answers += self._take(wanted)
        return answers

    def abort(self, numbers: Sequence[int]) -> None:
        """Close the queries' connections, which tells a server to stop."""
        for number in numbers:
            self._kept.pop(number, None)
            task = self._tasks.pop(number, None)
            if task is not None:
                task.cancel()

    def close(self) -> None:
        """Give up what is under way, close all connections, and end the thread."""
        self.abort(list(self._tasks))
        self._end()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, run in the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def clean(self, text: str) -> str:
        """A server's text in one line of bounded length, without the key."""
        text = " ".join(text.split())
        return (text.replace(self._api_key, "***") if self._api_key else text)[:500]

    def body(self, tokens: Sequence[int] | str, max_tokens: int, temperature: float, seed: int) -> dict[str, Any]:
        """What is posted to draw some tokens."""
        return {
            "model": self.model,
            "prompt": tokens if isinstance(tokens, str) else list(tokens),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "logprobs": self.top,
            **NEUTRAL,
            # EOS ends a completion by its id alone: with ignore_eos the server keeps its token in the answer.
            "stop_token_ids": self.eos_ids,
            "ignore_eos": True,
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "return_tokens_as_token_ids": True,  # texts of different tokens may be the same
        }

    async def get(self, place: Place, path: str) -> Any:
        """The JSON at a path below the base. Raises `Transient` and `Refused`."""
        return await self._request(place, "GET", path, None, {})

    async def post(self, place: Place, path: str, body: Mapping[str, Any], rank: int | None = None) -> Any:
        """The JSON that answers a body. Raises `Transient` and `Refused`."""
        headers = {} if rank is None else {"X-data-parallel-rank": str(rank)}
        return await self._request(place, "POST", path, body, headers)

    async def card(self, place: Place) -> Card | None:
        """What the server tells of the model now; None where it does not serve it."""
        return cards(await self.get(place, "/models")).get(self.model)

    def _take(self, wanted: Container[int]) -> list[tuple[int, Answer]]:
        """The wanted answers among those that have come. Raises what has come in place of one."""
        answers: list[tuple[int, Answer]] = []
        for number in [number for number in self._kept if number in wanted]:
            answer = self._kept.pop(number)
            if isinstance(answer, Exception):
                raise answer
            answers.append((number, answer))
        return answers

    async def _carry(self, number: int, query: Query) -> None:
        try:
            answer: Answer | Exception = await self._answer(query)
        except Exception as error:  # for whoever waits in `poll`
            answer = error
        self._done.put((number, answer))

    async def _answer(self, query: Query) -> Answer:
        """Try until there is an answer, or no hope."""
        place = self.places[query.row % len(self.places)]
        rank = None if self.ranks == 1 else query.row // len(self.places) % self.ranks
        body = self.body(query.tokens, query.max_tokens, query.temperature, query.seed)
        clock, failed_at, pause = self._loop.time, None, _FIRST_PAUSE
        while True:
            try:
                if place.failed:  # here, too: what another model refuses would mislead
                    await self._look_again(place)
                response = await self.post(place, "/completions", body, rank)
                if place.vouched < place.connections:
                    await self._look_again(place)
                answer = answer_of(response, self.top, self.model)
                place.told = False
                return answer
            except Transient as error:
                failed_at = clock() if failed_at is None else failed_at
                left, wait = failed_at + self._patience - clock(), max(pause, error.pause or 0.0)
                if wait > left:
                    place.told = False  # another run is told of it again
                    why = f"no answer in {self._patience:g} s of trying"
                    if error.pause is not None and error.pause > self._patience:
                        why = f"asks to wait for {error.pause:g} s, and patience={self._patience:g}"
                    raise ServerError(
                        f"{place.shown}: {why} ({error}); what is stored stays: see to the server, and start the same "
                        "command again"
                    ) from error
                if not place.told:
                    logger.warning("%s: %s; trying again for up to %g s", place.shown, error, self._patience)
                place.failed = place.told = True
                await asyncio.sleep(wait)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _look_again(self, place: Place) -> None:
        """Make sure that a server still serves the model that it did."""
        connections = place.connections
        card = await self.card(place)
        if place.card is not None and card != place.card:
            raise ServerError(
                f"{place.shown}: serves {card or 'the model no longer'}, and served {place.card} when this run began; "
                "start the server with the model that the run began with, and the same command again"
            )
        place.failed = False
        place.vouched = max(place.vouched, connections)

    async def _request(
        self, place: Place, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> Any:
        import aiohttp

        if not self._sessions:
            timeout = aiohttp.ClientTimeout(total=self._timeout, sock_connect=_CONNECT)
            connector = aiohttp.TCPConnector(limit=0, ssl=self._verify)  # the rows are the limit
            tracing = aiohttp.TraceConfig()
            tracing.on_connection_create_end.append(_count_connection)
            self._sessions.append(
                aiohttp.ClientSession(
                    connector=connector, timeout=timeout, headers=self._headers, trace_configs=[tracing]
                )
            )
        (session,) = self._sessions
        asked = session.request(method, place.base + path, json=body, headers=headers, trace_request_ctx=place)
        try:
            async with asked as response:
                status, raw = response.status, await response.read()
                after = response.headers.get("Retry-After", "")
        except aiohttp.ConnectionTimeoutError as error:
            raise Transient(f"no connection within {_CONNECT:g} s") from error
        except asyncio.TimeoutError as error:
            raise Transient(f"no answer within timeout={self._timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Transient(self.clean(f"{type(error).__name__}: {error}")) from error
        text = raw.decode(errors="replace")
        if status in RETRIED:
            pause = float(after) if after.isdigit() else None
            raise Transient(f"status {status}: {self.clean(text)}", pause)
        if status != 200:
            raise Refused(f"{place.shown}{path}: status {status}: {self.clean(message_in(text))}", status)
        try:
            return json.loads(raw)
        except ValueError as error:
            raise Transient(f"an answer that is not JSON: {self.clean(text)[:80]!r}") from error


async def _count_connection(session: aiohttp.ClientSession, context: Any, details: Any) -> None:
    context.trace_request_ctx.connections += 1


def _authority(file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=file)
    except (OSError, ssl.SSLError) as error:
        raise OptionError(f"ca_cert_path={file}: is no file of certificates ({error})") from error


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread, sessions: Sequence[aiohttp.ClientSession]) -> None:
    """Cancel what is under way, close the connections, and end the loop and its thread."""

    async def close() -> None:
        pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for session in sessions:
            await session.close()
        loop.stop()

    closing = asyncio.run_coroutine_threadsafe(close(), loop)
    if threading.current_thread() is not thread:  # it is where the loop itself has dropped the last reference
        thread.join()
        closing.cancel()
        loop.close()
