"""The kernel calls Python 3.11 has no function for: all of them, in one place, through the C library's `syscall(2)`.

Each function is its man page's call with Python's manners: bytes or str paths, OSError with errno and path. Nothing is
loaded before the first call, so this imports on any system. Numbers are those of `<linux/*.h>`, the same on every
architecture; call numbers come from asm-generic and x86-64 tables. Taught in chapter 07.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
from ctypes import (
    CDLL,
    addressof,
    c_char_p,
    c_int,
    c_long,
    c_size_t,
    c_uint,
    c_ulong,
    c_void_p,
    create_string_buffer,
    get_errno,
    pythonapi,
)
from typing import Any

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x20000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_REMOUNT = 1, 2, 4, 8, 16, 32
MS_DIRSYNC, MS_NOSYMFOLLOW, MS_NOATIME, MS_NODIRATIME = 128, 256, 1024, 2048
MS_BIND, MS_MOVE, MS_REC = 4096, 8192, 16384
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MS_RELATIME, MS_STRICTATIME, MS_LAZYTIME = 1 << 21, 1 << 24, 1 << 25
MNT_DETACH = 2

AT_EMPTY_PATH, AT_RECURSIVE = 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC if hasattr(os, "O_CLOEXEC") else 0o2000000
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_NOATIME, MOUNT_ATTR_STRICTATIME, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOSYMFOLLOW = 0x10, 0x20, 0x80, 0x200000
MOUNT_ATTR__ATIME, MOUNT_ATTR_IDMAP = 0x70, 0x100000

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 1, 2, 4, 8, 16

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_NAME = 1, 4, 8, 15
PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 24, 36, 38, 47
PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 2, 4

SECCOMP_SET_MODE_FILTER = 1
_PATH_MAX = 4096
_TRIES = 256  # as many renames and mounts may spoil a look-up before it fails

# name: (x86-64, asm-generic: arm64, riscv64, loongarch64)
_NUMBERS = {
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "unshare": (272, 97), "setns": (308, 268),
    "sethostname": (170, 161), "setdomainname": (171, 162), "capset": (126, 91), "capget": (125, 90),
    "prctl": (157, 167), "keyctl": (250, 219), "syncfs": (306, 267), "openat2": (437, 437),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "close_range": (436, 436), "fstatfs": (138, 44),
    "mount_setattr": (442, 442), "utimensat": (280, 88), "bpf": (321, 280), "clone3": (435, 435),
    "seccomp": (317, 277), "getcwd": (79, 17), "rt_sigaction": (13, 134),
}  # fmt: skip


@functools.cache
def _syscall() -> Any:
    function = CDLL(None, use_errno=True).syscall
    function.restype = c_long
    return function


@functools.cache
def _number(name: str) -> int:
    return _NUMBERS[name][0 if os.uname().machine == "x86_64" else 1]


def _call(name: str, *arguments: Any, path: Any = None) -> int:
    result = int(_syscall()(c_long(_number(name)), *arguments))
    if result < 0:
        number = get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def _path(path: str | bytes | None) -> c_char_p:
    return c_char_p(None if path is None else os.fsencode(path))


def unshare(flags: int) -> None:
    """Move this process into new namespaces, unshare(2). A new pid namespace holds for children only."""
    _call("unshare", c_int(flags))


def setns(fd: int, kind: int = 0) -> None:
    """Join the namespace behind `fd`, setns(2)."""
    _call("setns", c_int(fd), c_int(kind))


def mount(
    source: str | bytes | None, target: str | bytes, kind: str | None, flags: int = 0, data: str | bytes | None = None
) -> None:
    """mount(2). `data` must stay under one page (4 KiB)."""
    _call("mount", _path(source), _path(target), _path(kind), c_ulong(flags), _path(data), path=target)


def umount(target: str | bytes, flags: int = 0) -> None:
    """umount2(2)."""
    _call("umount2", _path(target), c_int(flags), path=target)


def pivot_root(new_root: str | bytes, put_old: str | bytes) -> None:
    """pivot_root(2). With both `.`, the old root lies on top of the new one, ready to be detached."""
    _call("pivot_root", _path(new_root), _path(put_old), path=new_root)


def sethostname(name: str) -> None:
    raw = name.encode()
    _call("sethostname", c_char_p(raw), c_size_t(len(raw)))


def setdomainname(name: str) -> None:
    raw = name.encode()
    _call("setdomainname", c_char_p(raw), c_size_t(len(raw)))


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    return _call("prctl", c_int(option), *(c_ulong(arg) for arg in (arg2, arg3, arg4, arg5)))


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set this thread's capability sets, as 64-bit masks, capset(2)."""
    header = struct.pack("=Ii", 0x20080522, 0)
    low = [value & 0xFFFFFFFF for value in (effective, permitted, inheritable)]
    high = [value >> 32 for value in (effective, permitted, inheritable)]
    _call("capset", c_char_p(header), c_char_p(struct.pack("=6I", *low, *high)))


def capget() -> tuple[int, int, int]:
    """This thread's effective, permitted and inheritable sets as 64-bit masks, capget(2)."""
    header, data = create_string_buffer(struct.pack("=Ii", 0x20080522, 0)), create_string_buffer(24)
    _call("capget", header, data)
    words = struct.unpack("=6I", data.raw[:24])
    return words[0] | words[3] << 32, words[1] | words[4] << 32, words[2] | words[5] << 32


def seccomp(operation: int, flags: int, argument: Any) -> int:
    """seccomp(2) with a prepared C structure; what it returns depends on the flags."""
    return _call("seccomp", c_uint(operation), c_uint(flags), argument)


def default_action(signal: int) -> None:
    """Let a signal do again what it does by default, rt_sigaction(2).

    Also 32 and 33, which the C library keeps for itself: its posix_spawn(3) has the child ignore them.
    """
    _call("rt_sigaction", c_int(signal), c_char_p(bytes(32)), c_void_p(None), c_size_t(8))


def join_new_session_keyring() -> None:
    """Give this process an empty session keyring of its own, keyctl(2) KEYCTL_JOIN_SESSION_KEYRING."""
    _call("keyctl", c_int(1), c_char_p(None))


def syncfs(fd: int) -> None:
    """Write out the file system that holds `fd`, syncfs(2)."""
    _call("syncfs", c_int(fd))


def file_system(fd: int) -> int:
    """The magic number of the file system that holds `fd`, fstatfs(2)."""
    data = create_string_buffer(256)
    _call("fstatfs", c_int(fd), data)
    return int(struct.unpack_from("=q", data.raw)[0])


def openat2(dir_fd: int, path: str | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """Open `path` under `dir_fd` with kernel-enforced limits on how it resolves, openat2(2)."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):  # EAGAIN: any rename or mount meanwhile may spoil a `..`
            return _call("openat2", c_int(dir_fd), _path(path), c_char_p(how), c_size_t(24), path=path)
    return _call("openat2", c_int(dir_fd), _path(path), c_char_p(how), c_size_t(24), path=path)


def getcwd() -> bytes:
    """The working directory, getcwd(2): the kernel's own word, which begins with `(unreachable)` outside of our root.

    os.getcwd has the C library look for another answer then: one that a root with the same inode makes look right.
    """
    room = create_string_buffer(_PATH_MAX)
    length = _call("getcwd", room, c_size_t(_PATH_MAX))
    return room.raw[: length - 1]


def open_tree(dir_fd: int, path: str | bytes, flags: int) -> int:
    """A descriptor for the mount at `path`, or with OPEN_TREE_CLONE a detached copy of it, open_tree(2)."""
    return _call("open_tree", c_int(dir_fd), _path(path), c_uint(flags), path=path)


def move_mount(from_fd: int, to_fd: int, to_path: str | bytes = "", flags: int = MOVE_MOUNT_F_EMPTY_PATH) -> None:
    """Attach the mount behind `from_fd` at `to_path` under `to_fd`, move_mount(2)."""
    if not to_path:
        flags |= MOVE_MOUNT_T_EMPTY_PATH
    _call("move_mount", c_int(from_fd), _path(""), c_int(to_fd), _path(to_path), c_uint(flags), path=to_path)


def fsopen(kind: str) -> int:
    """Begin a new file system configuration, fsopen(2)."""
    return _call("fsopen", _path(kind), c_uint(1))


def fsconfig_string(fd: int, key: str, value: str | bytes) -> None:
    _call("fsconfig", c_int(fd), c_uint(1), _path(key), _path(value), c_int(0), path=key)


def fsconfig_flag(fd: int, key: str) -> None:
    _call("fsconfig", c_int(fd), c_uint(0), _path(key), c_void_p(None), c_int(0), path=key)


def fsconfig_create(fd: int) -> None:
    _call("fsconfig", c_int(fd), c_uint(6), c_void_p(None), c_void_p(None), c_int(0))


def fsmount(fd: int, attributes: int = 0) -> int:
    """A detached mount of the configured file system, fsmount(2)."""
    return _call("fsmount", c_int(fd), c_uint(1), c_uint(attributes))


def mount_setattr(
    dir_fd: int, path: str | bytes, flags: int, set_: int = 0, clear: int = 0, propagation: int = 0, userns_fd: int = 0
) -> None:
    """Change a mount's (with AT_RECURSIVE: a mount tree's) attributes, mount_setattr(2)."""
    attributes = struct.pack("=QQQQ", set_, clear, propagation, userns_fd)
    _call("mount_setattr", c_int(dir_fd), _path(path), c_uint(flags), c_char_p(attributes), c_size_t(32), path=path)


def close_range(first: int, cloexec: bool = False) -> None:
    """Close (or mark close-on-exec) every descriptor from `first` up, close_range(2)."""
    _call("close_range", c_uint(first), c_uint(0xFFFFFFFF), c_uint(4 if cloexec else 0))


_BPF_CGROUP_DEVICE, _BPF_F_ALLOW_MULTI, _BPF_F_REPLACE = 6, 2, 4


def _bpf(command: int, attributes: bytes) -> int:
    return _call("bpf", c_int(command), c_char_p(attributes), c_uint(len(attributes)))


def bpf_load_device_program(instructions: bytes) -> int:
    """A descriptor for a verified program that answers "may this group use that device?", bpf(2) BPF_PROG_LOAD."""
    code, license = create_string_buffer(instructions, len(instructions)), create_string_buffer(b"Apache-2.0")
    return _bpf(5, struct.pack("=IIQQ40x", 15, len(instructions) // 8, addressof(code), addressof(license)))


def bpf_attach_device(group: int, program: int, replaced: int | None = None) -> None:
    """Ask `program` about the cgroup behind `group` from now on, as one step in place of `replaced` if given."""
    flags = _BPF_F_ALLOW_MULTI | (0 if replaced is None else _BPF_F_REPLACE)
    _bpf(8, struct.pack("=5I", group, program, _BPF_CGROUP_DEVICE, flags, replaced or 0))


def bpf_detach_device(group: int, program: int) -> None:
    _bpf(9, struct.pack("=5I", group, program, _BPF_CGROUP_DEVICE, 0, 0))


def bpf_device_programs(group: int) -> list[int]:
    """Descriptors of the programs attached to the cgroup itself (not to those above it), BPF_PROG_QUERY."""
    room = 64  # the kernel attaches no more
    ids = create_string_buffer(4 * room)
    query = struct.pack("=IIIIQII", group, _BPF_CGROUP_DEVICE, 0, 0, addressof(ids), room, 0)
    answer = create_string_buffer(query, len(query))
    _call("bpf", c_int(16), answer, c_uint(len(query)))
    count = struct.unpack_from("=I", answer, 24)[0]
    return [_bpf(13, struct.pack("=III", number, 0, 0)) for number in struct.unpack_from(f"={count}I", ids)]


def fork(flags: int = 0, group: int = -1) -> int:
    """os.fork(2) of a single-threaded process, with the child in new namespaces (CLONE_NEW…, of which a time and a user
    namespace are not meant), and in the v2 cgroup behind `group`, clone3(2)."""
    if not flags and group < 0:
        return os.fork()
    into = 0x200000000 if group >= 0 else 0  # CLONE_INTO_CGROUP
    # flags; exit_signal SIGCHLD; the eleventh word is the group
    how = struct.pack("=11Q", flags | into, 0, 0, 0, 17, 0, 0, 0, 0, 0, max(0, group))
    pythonapi.PyOS_BeforeFork()
    pid = -1
    try:
        pid = _call("clone3", c_char_p(how), c_size_t(len(how)))
    finally:
        pythonapi.PyOS_AfterFork_Child() if pid == 0 else pythonapi.PyOS_AfterFork_Parent()
    return pid
