"""Isolate a judged program from the machine by layers of Linux, each used where the system allows it.

It runs in the sandbox's own small process, before the program is loaded. Every missing layer is returned by name, so
that the evaluation can report it once. See `runner` for what the layers cover.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PROCESSES = 16
"""Processes and threads of one program, and its judge."""

SCRATCH = "/scratch"
"""The program's folder, where it has a file system of its own."""

SCRATCH_BYTES = 64 << 20
FILE_BYTES = 16 << 20
SYSTEM_PATHS = (
    *("/usr", "/bin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store", "/etc/ld.so.cache", "/etc/localtime"),
    *("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"),
)

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = (
    *(1, 2, 4, 8, 32, 4096, 16384, 1 << 18),
)
_MOUNT_FLAGS = {
    **{"ro": _MS_RDONLY, "nosuid": _MS_NOSUID, "nodev": _MS_NODEV, "noexec": _MS_NOEXEC},
    **{"noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21},
}
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_SIGKILL = 9

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def libc_call(name: str, *arguments: object) -> None:
    """Call a libc function. Raises OSError if it fails or is not there."""
    if _libc is None:
        raise OSError(f"{name} exists on Linux only")
    values = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    if getattr(_libc, name)(*values) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def die_with_parent() -> None:
    """Make the kernel kill this process when the thread that started it ends."""
    if _libc is not None:
        libc_call("prctl", _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs, so that they can be found and killed."""
    if _libc is not None:
        libc_call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def hide_memory() -> None:
    """Deny other processes of this user access to the memory and the open files of this one."""
    if _libc is not None:
        libc_call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def enter_namespaces() -> bool:
    """Leave the machine's network, processes (from the next fork on), mounts and IPC. False if not allowed.

    A privileged process keeps its privileges. Any other first enters a user namespace of its own.
    """
    if _libc is None:
        return False
    spaces = _NEWNS | _NEWPID | _NEWNET | _NEWIPC
    uid, gid = os.geteuid(), os.getegid()
    for flags in (spaces, spaces | _NEWUSER):
        try:
            libc_call("unshare", flags)
            if flags & _NEWUSER:
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
                Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        except OSError:
            continue
        return True
    return False


def build_root(root: str, readable: Sequence[str]) -> bool:
    """Build a file system at `root` and enter it: `readable` paths, read-only, and a small scratch folder in memory.

    Neither /proc nor the user's home is in it. Needs `enter_namespaces`. Returns False if it is not allowed; then only
    mounts have changed that no other process sees.
    """
    try:
        # First of all: a mount must not reach the machine's own file system.
        libc_call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
        tmpfs = f"size={SCRATCH_BYTES},nr_inodes=20000,mode=755".encode()
        libc_call("mount", b"tmpfs", root.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV, tmpfs)
        done: list[str] = []
        for path in sorted({os.path.normpath(path) for path in (*SYSTEM_PATHS, *readable)}):
            if path != "/" and Path(path).exists() and not any(path.startswith(f"{other}/") for other in done):
                _show(path, root)
                done.append(path)
        scratch = root + SCRATCH
        Path(scratch).mkdir()
        if not Path(root, "tmp").exists():  # Python itself may live there: then it stays, read-only
            Path(root, "tmp").symlink_to(SCRATCH)
        _make_readonly(root)
        libc_call("mount", b"tmpfs", scratch.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV, tmpfs.replace(b"755", b"777"))
        os.chroot(root)  # no way back: that takes a capability, and user namespaces are refused to the chrooted
        os.chdir(SCRATCH)
    except OSError:
        return False
    return True


def _show(path: str, root: str) -> None:
    target = Path(root + path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if Path(path).is_symlink():  # /lib is usr/lib on most systems
        target.symlink_to(Path(path).readlink())
        return
    if Path(path).is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    libc_call("mount", path.encode(), str(target).encode(), None, _MS_BIND | _MS_REC, None)


def _make_readonly(root: str) -> None:
    """Mount by mount: a recursive call exists only since Linux 5.12. Flags already set may be locked, so they stay."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        mount_point = fields[4].encode().decode("unicode_escape")
        if mount_point == root or mount_point.startswith(f"{root}/"):
            flags = _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID
            for option in fields[5].split(","):
                flags |= _MOUNT_FLAGS.get(option, 0)
            libc_call("mount", None, mount_point.encode(), None, flags, None)


def drop_privileges(scratch: str, readable: Sequence[str], own_root: bool, number: int) -> bool:
    """Give up root and every capability for good; True if this process now has a user to itself.

    With its own user the process limit takes effect (root has none), and others' signals and files are out of reach.
    Root stays root, without capabilities, if another user could not read Python's own files. `number`, the keeper's
    process id, distinguishes this sandbox from others.
    """
    alone = False
    if os.geteuid() == 0 and _open_to_strangers(scratch, readable, own_root):
        # Ids that nobody has; the second where this root rules over 65,536 ids only (rootless containers).
        for stranger in ((1 << 30) + number, 40_000 + number % 20_000):
            try:
                os.chown(scratch, stranger, stranger)
                os.setgroups([])
                os.setresgid(stranger, stranger, stranger)
                os.setresuid(stranger, stranger, stranger)
                alone = True
                break
            except OSError:  # the map of a user namespace has the one id only
                continue
    if _libc is not None:
        for capability in range(64):
            _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
        header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
        libc_call("capset", header, nothing)
        libc_call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return alone


def _open_to_strangers(scratch: str, readable: Sequence[str], own_root: bool) -> bool:
    """Whether another user could import Python's modules, and get to the scratch folder."""
    for place in (Path(path) for path in (*readable, os.__file__, *([] if own_root else [str(Path(scratch).parent)]))):
        if place.exists():
            needed = 0o005 if place.is_dir() else 0o004
            folders = [] if own_root else list(place.parents)  # a root that we built has open folders above each path
            if place.stat().st_mode & needed != needed or not all(f.stat().st_mode & 0o001 for f in folders):
                return False
    return True


def limit_resources(cpu_seconds: int, memory_bytes: int, other_processes: int) -> None:
    """Limit CPU, memory, file size and open files of this process and each child, and the number of them all."""
    limits = {
        "RLIMIT_CPU": cpu_seconds,
        "RLIMIT_AS": memory_bytes,
        "RLIMIT_FSIZE": FILE_BYTES,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_NPROC": other_processes + PROCESSES,
    }
    for name, value in limits.items():
        which = getattr(resource, name, None)
        if which is None or (
            name == "RLIMIT_NPROC" and sys.platform != "linux"
        ):  # there, a user's others are not counted
            continue
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(which, (value, value))
        except (OSError, ValueError):  # RLIMIT_AS on macOS
            continue


def tasks_of_user() -> int:
    """Processes and threads of this user: the process limit counts them all, unless a namespace sets it apart."""
    count = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if entry.stat().st_uid == os.getuid():
                count += sum(1 for _ in (entry / "task").iterdir())
        except OSError:  # ended meanwhile
            continue
    return count


def kill(process: int) -> None:
    """End a process, which may have ended."""
    with suppress(OSError):
        os.kill(process, _SIGKILL)
