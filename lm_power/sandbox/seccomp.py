"""A filter of system calls (seccomp) for a judged program: no new processes, no sockets, no signals to others.

It needs no privileges, so it works in containers that refuse namespaces.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

from lm_power.sandbox.isolation import libc_call

# Refused to the program, by number on x86-64 and on AArch64: new processes, sockets, signals to others,
# others' memory and limits, namespaces and mounts, and kernel interfaces with a long list of past holes.
_REFUSED = {
    **{"fork": (57, None), "vfork": (58, None), "socket": (41, 198), "ptrace": (101, 117), "kill": (62, 129)},
    **{"tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240)},
    **{"pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438)},
    **{"process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "unshare": (272, 97), "setns": (308, 268)},
    **{"mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "bpf": (321, 280)},
    **{"open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "perf_event_open": (298, 241)},
    **{"io_uring_setup": (425, 425), "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217)},
    **{"request_key": (249, 218), "open_by_handle_at": (304, 265), "setpriority": (141, 140)},
    **{"sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "shmget": (29, 194), "msgget": (68, 186)},
    **{"mq_open": (240, 180), "ioprio_set": (251, 30)},
}
_CLONE, _CLONE3, _PRLIMIT = (56, 220), (435, 435), (302, 261)
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_CLONE_THREAD, _EPERM, _ENOSYS = 0x10000, 1, 38


def filter_system_calls() -> bool:
    """Refuse this process the calls of `_REFUSED` permanently; threads stay possible. False if not supported."""
    machine = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}.get(platform.machine())
    if sys.platform != "linux" or machine is None or sys.maxsize < 1 << 32:
        return False
    column, architecture = machine
    allow, kill = 0x7FFF0000, 0x80000000
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF opcodes

    def refuse(number: int, code: int = _EPERM) -> list[tuple[int, int, int, int]]:
        return [(equal, 0, 1, number), (give, 0, 0, 0x50000 | code)]

    program = [
        *[(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0)],
        *[(at_least, 0, 1, 0x40000000), (give, 0, 0, kill)],  # x32, with numbers of its own
        *refuse(_CLONE3[column], _ENOSYS),  # its flags are out of a filter's sight: libc then takes clone
        *[(equal, 0, 4, _CLONE[column]), (load, 0, 0, 16), (any_bit, 1, 0, _CLONE_THREAD)],
        *[(give, 0, 0, 0x50000 | _EPERM), (give, 0, 0, allow)],
        *[(equal, 0, 4, _PRLIMIT[column]), (load, 0, 0, 16), (equal, 1, 0, 0)],
        *[(give, 0, 0, 0x50000 | _EPERM), (give, 0, 0, allow)],  # 0 is the caller itself
    ]
    for numbers in _REFUSED.values():
        number = numbers[column]
        if number is not None:
            program += refuse(number)
    program.append((give, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    try:
        libc_call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc_call("prctl", _PR_SET_SECCOMP, 2, ctypes.cast(header, ctypes.c_void_p), 0, 0)
    except OSError:
        return False
    return True
