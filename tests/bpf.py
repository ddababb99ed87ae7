"""The kernel's side of a seccomp filter, in Python: run a classic BPF program on a system call, or fetch one that runs.

`answer` is the machine of linux/filter.h as far as seccomp allows and libseccomp uses it; what it does not know fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator

X86_64, I386, AARCH64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
X32 = 1 << 30  # in the number of a call
ALLOW, KILL, ERRNO = 0x7FFF0000, 0, 0x00050000


def answer(program: bytes, architecture: int, number: int, args: tuple[int, ...] = (0,) * 6) -> int:
    """What the filter returns for this call: an action of seccomp(2), with its data."""
    data = struct.pack("=IIQ6Q", number, architecture, 0x1000, *args)
    rows = list(struct.iter_unpack("@HBBI", program))
    at = value = steps = 0
    while True:
        code, yes, no, k = rows[at]
        at, steps = at + 1, steps + 1
        assert steps <= 4096, "classic BPF only jumps forward"
        if code == 0x20:  # load a word
            assert k % 4 == 0
            (value,) = struct.unpack_from("=I", data, k)
        elif code == 0x54:
            value &= k
        elif code == 0x05:
            at += k
        elif code == 0x06:
            return int(k)
        else:
            test = {0x15: value == k, 0x25: value > k, 0x35: value >= k, 0x45: bool(value & k)}[code]
            at += yes if test else no


@contextlib.contextmanager
def _traced(pid: int) -> Iterator[ctypes.CDLL]:
    """Attached as a tracer, the process stopped. Needs root."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    seize, interrupt, detach, wall = 0x4206, 0x4207, 17, 0x40000000
    for request in (seize, interrupt):
        assert libc.ptrace(request, pid, None, None) == 0, os.strerror(ctypes.get_errno())
    os.waitpid(pid, wall)
    try:
        yield libc
    finally:
        libc.ptrace(detach, pid, None, None)


def loaded(pid: int) -> bytes:
    """The filter that the kernel holds for a process, ptrace(2) PTRACE_SECCOMP_GET_FILTER: the one loaded last."""
    get_filter = 0x420C
    with _traced(pid) as libc:
        count = libc.ptrace(get_filter, pid, 0, None)
        assert count > 0, os.strerror(ctypes.get_errno())
        program = ctypes.create_string_buffer(8 * count)
        assert libc.ptrace(get_filter, pid, 0, program) == count
        return program.raw
