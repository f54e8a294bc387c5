"""The child side of `runner`: one small process tree that runs one program and its tests.

    evaluation ── keeper ── judge ── program
                  │         │        └ the model's code; plain data in, plain data out; killed with everything else
                  │         └ the tests; the only one that can write the verdict
                  └ waits, kills, sweeps up

The tests run in the judge, and the model's code in a process of its own, which is forked before the judge has read the
tests. What the tests call is a proxy that sends the arguments and receives the result as plain data (`wire`). So the
program's process contains nothing that could be patched, read or written to obtain a verdict: no assertion, no expected
value, no token, no open file.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lm_power.sandbox import isolation
from lm_power.sandbox.judge import Proxy, run_tests
from lm_power.sandbox.landlock import lock_files
from lm_power.sandbox.seccomp import filter_system_calls
from lm_power.sandbox.wire import decode, encode, encode_error

KEEPER_GRACE = 1.0
"""Seconds that the keeper allows beyond the program's own time, including its start."""


def main() -> None:
    """Be the keeper: fork the judge, wait for it, and leave nothing running."""
    settings = json.loads(sys.argv[2])
    sys.path[:] = [p for p in sys.path if p and p != sys.argv[1]] + settings["packages"]
    settings["keeper"] = os.getpid()
    isolation.die_with_parent()
    isolation.adopt_orphans()
    deadline = time.monotonic() + settings["timeout"] + KEEPER_GRACE
    others = _other_tasks()
    spaces = "namespaces" in settings["layers"] and isolation.enter_namespaces()
    isolation.hide_memory()  # and the open files: a verdict could be written there
    alive, held_by_judge = os.pipe()
    judge = os.fork()
    if judge == 0:
        os.close(alive)
        try:
            _judge(settings, spaces, others)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}"[:500].encode())
        finally:
            os._exit(0)
    os.close(held_by_judge)
    in_time = select.select([alive], [], [], max(0.0, deadline - time.monotonic()))[0]
    isolation.kill(judge)
    os.waitpid(judge, 0)
    _kill_descendants(deadline + 0.5)
    if not in_time:
        _write(1, {"status": "timed out", "detail": ""})


def _other_tasks() -> int:
    """Tasks that the process limit counts besides the program's own; 0 if it has its own user or user namespace."""
    release = os.uname().release.split(".")
    recent = release[0].isdigit() and release[1].isdigit() and (int(release[0]), int(release[1])) >= (5, 14)
    return 0 if os.getuid() == 0 or (recent and sys.platform == "linux") else isolation.tasks_of_user()


def _judge(settings: dict[str, Any], spaces: bool, others: int) -> None:
    """Isolate this process, fork the program's, run the tests, write the verdict."""
    verdict_file = os.dup(1)
    home, readable = settings["scratch"], settings["readable"]
    own_root = spaces and isolation.build_root(home, readable)
    home = isolation.SCRATCH if own_root else home
    alone = isolation.drop_privileges(home, readable, own_root, settings["keeper"])
    if not spaces and not alone and others == 0 and os.getuid() != 0:
        others = isolation.tasks_of_user()
    cpu_seconds = int(settings["timeout"]) + 1
    isolation.limit_resources(cpu_seconds, settings["memory_bytes"], others)
    isolation.hide_memory()
    isolation.die_with_parent()  # again: a change of user clears it
    os.environ.update(HOME=home, TMPDIR=home)
    os.chdir(home)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)

    requests_in, requests_out = os.pipe()
    replies_in, replies_out = os.pipe()
    program = os.fork()
    if program == 0:
        try:
            for target, source in enumerate((null, null, null, requests_in, replies_out)):
                os.dup2(source, target + 40)  # out of the way of what is still to be moved
            for target in range(5):
                os.dup2(target + 40, target)
            os.closerange(5, 256)
            os.setsid()  # a signal to its group, which crosses namespaces, then reaches only itself
            _be_program(settings["layers"], readable, home)
        finally:
            os._exit(1)
    os.close(requests_in)
    os.close(replies_out)
    # Only now the judge reads its job: the program's process has never held the tests.
    job = json.loads(sys.stdin.buffer.read())
    proxy = Proxy(program, os.fdopen(requests_out, "wb"), os.fdopen(replies_in, "rb"))
    locked, filtered = proxy.greeting()
    covered = {
        "network": spaces or filtered,
        "processes": spaces or filtered,
        "environment": own_root or alone or locked,
        "files": own_root or locked,
        "system calls": filtered,
    }
    missing = [name for name, there in covered.items() if not there]
    _write(verdict_file, {"started": True, "missing": missing})
    _write(verdict_file, run_tests(job, proxy, settings["timeout"]))


def _be_program(layers: list[str], readable: list[str], home: str) -> None:
    """Serve as the model's program: load the code, answer calls. Files 3 and 4 are the judge's."""
    isolation.die_with_parent()
    locked = "landlock" in layers and lock_files(readable, home)
    filtered = "filter" in layers and filter_system_calls()
    requests, replies = os.fdopen(3, "rb"), os.fdopen(4, "wb")

    def reply(message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        replies.write(line)
        replies.flush()

    def answer(work: Callable[[], Any]) -> None:
        try:
            message = {"value": encode(work())}
        except BaseException as error:
            message = {"error": encode_error(error)}
        reply(message)

    reply({"locked": locked, "filtered": filtered})
    module = sys.modules["solution"] = type(sys)("solution")
    first = json.loads(requests.readline())
    answer(lambda: exec(compile(first["code"], "<solution>", "exec", dont_inherit=True), module.__dict__))
    function = first["entry_point"]

    def call(request: dict[str, Any]) -> Any:
        return vars(module)[function](*decode(request["arguments"]), **decode(request["named"]))

    for line in requests:
        answer(partial(call, json.loads(line)))


def _write(file: int, message: dict[str, Any]) -> None:
    """Write one line in one call, so that the keeper's lines cannot get in between."""
    os.write(file, json.dumps(message).encode()[:4000] + b"\n")


def _kill_descendants(deadline: float) -> None:
    """Kill and reap children until there are none: orphans become ours as their parents die."""
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for task in Path("/proc/self/task").glob("*/children"):
            for child in task.read_text().split():
                isolation.kill(int(child))
        time.sleep(0.002)
