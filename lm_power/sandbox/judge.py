"""The tests' side of a sandbox: runs them on a proxy of the program's function, and reaches a verdict."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from typing import Any, BinaryIO, NoReturn

from lm_power.sandbox.isolation import kill
from lm_power.sandbox.wire import decode, decode_error, encode

LONGEST_MESSAGE = 16 << 20
"""Bytes of one result."""


class TimeLimit(BaseException):
    """The wall-clock limit has passed. As a BaseException it is not caught by a test's `except Exception`."""


def run_tests(job: dict[str, str], proxy: Proxy, timeout: float) -> dict[str, str]:
    """Load the program and run the tests on its proxy; returns the verdict's status and detail."""

    def expire(*_: object) -> None:
        if proxy.broken is None:  # once: the program may send this signal too, where it shares our user
            proxy.broken = ("timed out", "")
            raise TimeLimit

    signal.signal(signal.SIGALRM, expire)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    status, detail = "timed out", ""
    with suppress(TimeLimit):  # it may come at any moment, also while another exception is being described
        status, detail = _try_tests(job, proxy)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if proxy.broken:  # whatever a test may have caught
        status, detail = proxy.broken
    return {"status": status, "detail": detail}


def _try_tests(job: dict[str, str], proxy: Proxy) -> tuple[str, str]:
    tests: dict[str, Any] = {"__name__": "tests"}
    try:
        proxy.load(job["code"], job["entry_point"])
        if "random" in job["test"]:
            import random

            random.seed(0)  # the same verdict every time
        exec(compile(job["setup"], "<setup>", "exec", dont_inherit=True), tests)
        tests[job["entry_point"]] = proxy
        exec(compile(job["test"], "<tests>", "exec", dont_inherit=True), tests)
    except TimeLimit:
        raise
    except MemoryError:
        return "out of memory", ""
    except BaseException as error:
        return "failed", _describe(error, job["test"])
    return ("passed", "") if proxy.calls else ("failed", f"the tests never called {job['entry_point']}")


def _describe(error: BaseException, test: str) -> str:
    """The error and the last line of the tests that it passed through."""
    line, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<tests>":
            line = test.splitlines()[trace.tb_lineno - 1].strip()
        trace = trace.tb_next
    parts = [type(error).__name__, str(error)[:200], f"at: {line[:200]}" if line else ""]
    return " ".join(part for part in parts if part)


class Proxy:
    """The function under test, as its tests see it.

    Attributes:
        calls: how many were made.
        broken: the status and detail of a program that ended or broke the rules; None while it behaves.
    """

    def __init__(self, process: int, requests: BinaryIO, replies: BinaryIO) -> None:
        self.calls = 0
        self.broken: tuple[str, str] | None = None
        self._process, self._requests, self._replies = process, requests, replies

    def greeting(self) -> tuple[bool, bool]:
        """Whether the program's process has Landlock and the filter; it reports this before it has any code."""
        said = json.loads(self._replies.readline(100))
        return said["locked"], said["filtered"]

    def load(self, code: str, entry_point: str) -> None:
        """Run the program's text; calls will go to its `entry_point`."""
        self._ask({"code": code, "entry_point": entry_point})

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """The program's result. Raises what it raised."""
        self.calls += 1
        return self._ask({"arguments": encode(list(arguments)), "named": encode(named)})

    def _ask(self, request: dict[str, Any]) -> Any:
        if self.broken:
            raise RuntimeError(self.broken[1])
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
            line = self._replies.readline(LONGEST_MESSAGE)
            if not line:
                self._break(*self._how_it_ended())
            if not line.endswith(b"\n"):
                self._break("failed", "the result is too large")
            reply = json.loads(line)
            raised = decode_error(reply["error"]) if "error" in reply else None
            value = None if raised else decode(reply["value"])
        except OSError:  # a broken pipe
            self._break(*self._how_it_ended())
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            self._break("failed", f"the result is not plain data: {type(error).__name__}")
        if raised:
            raise raised
        return value

    def _break(self, status: str, detail: str) -> NoReturn:
        self.broken = self.broken or (status, detail)
        raise RuntimeError(detail)

    def _how_it_ended(self) -> tuple[str, str]:
        kill(self._process)  # it may have closed the pipe and live on
        _, status = os.waitpid(self._process, 0)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return ("timed out", "CPU") if number == signal.SIGXCPU else ("died", f"killed by signal {number}")
        return "died", f"exited with status {os.WEXITSTATUS(status)} before the tests were through"
