"""Keeps files out of a judged program's reach by Landlock (Linux 5.13), which works without privileges."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Sequence

from lm_power.sandbox.isolation import SYSTEM_PATHS

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL = 1, 2, 4, 8, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_O_PATH = 0x200000


def lock_files(readable: Sequence[str], scratch: str) -> bool:
    """Restrict this process for good to reading `readable` and the system's libraries, and to writing in `scratch`.

    Kernels that can also forbid TCP, and signals to processes outside, do so. /proc is not readable, and so no
    process's environment is. Returns False if the kernel has no Landlock; then nothing has changed. Open files
    stay open, and the existence of a file can still be found out. Needs no_new_privs.
    """
    if sys.platform != "linux":
        return False
    call = ctypes.CDLL(None, use_errno=True).syscall
    version = call(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    # Every right that this version knows is handled, so that what no rule grants is refused.
    files = (1 << 13) - 1
    for since, right in ((2, 1 << 13), (3, _TRUNCATE), (5, _IOCTL)):
        files |= right if version >= since else 0
    attributes = struct.pack("Q", files)
    attributes += struct.pack("Q", 3) if version >= 4 else b""
    attributes += struct.pack("Q", 3) if version >= 6 else b""
    rules = call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return False
    try:
        reading = _EXECUTE | _READ_FILE | _READ_DIR
        granted = dict.fromkeys([*SYSTEM_PATHS, *readable], reading)
        for path, rights in {**granted, "/dev/null": reading | _WRITE_FILE | _TRUNCATE, scratch: files}.items():
            _grant(call, rules, path, rights & files)
        return bool(call(_RESTRICT_SELF, rules, 0) == 0)
    except OSError:
        return False
    finally:
        os.close(rules)


def _grant(call: ctypes._NamedFuncPointer, rules: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, _O_PATH | os.O_CLOEXEC)
    except OSError:  # not on this system
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        if call(_ADD_RULE, rules, 1, struct.pack("=Qi", rights, place), 0) != 0:
            raise OSError(ctypes.get_errno(), f"Landlock refuses a rule for {path}")
    finally:
        os.close(place)
