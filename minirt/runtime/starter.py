"""The first program under proot: 237 bytes of machine code that start the command, and say who it is and how it ended.

proot tells neither: its own exit status is 255 for any signal, and it waits for every process before it ends. So this
stands between; it needs no library, whatever the image holds. As C, called with PROGRAM ARG0 ARG1…:

    prctl(PR_SET_PDEATHSIG, SIGKILL);                 // not without proot: untraced, the machine's files would show
    pid = fork();
    if (pid) { write(4, &pid, 4); wait4(-1, &pid, 0, 0); write(4, &pid, 4); exit(0); }
    setsid(); ioctl(0, TIOCSCTTY, 0);                 // its terminal, if it has one
    if (read(3, &pid, 1) != 1) exit(125);             // the container is created; a byte starts it
    fcntl(4, F_SETFD, FD_CLOEXEC); close(3);
    pid = execve(argv[1], argv + 2, envp + 2); write(4, &pid, 4); exit(1);  // minus the error's number

The first two variables of the environment are proot's own, and end here.

Sources: elf(5), syscall(2). Taught in chapter 07.
"""

from __future__ import annotations

import platform
import struct

from minirt.errors import Unsupported

GATE, REPORT = 3, 4  # descriptors: where the byte comes, where the numbers go
_BASE, _CODE, _PAGE = 0x400000, 64 + 56, 0x10000
_AMD64 = """
4889e3 b89d000000 bf01000000 be09000000 0f05                                                prctl
b839000000 0f05 50 4889e6 85c0 7441                                                         fork, the child below
bf04000000 ba04000000 b801000000 0f05                                                       write
bfffffffff 31d2 4531d2 b83d000000 0f05 83f8fc 74ea                                          wait4, again if interrupted
bf04000000 ba04000000 b801000000 0f05 31ff b8e7000000 0f05                                  write, exit_group
b870000000 0f05 31ff be0e540000 31d2 b810000000 0f05                                        setsid, ioctl
bf03000000 4889e6 ba01000000 31c0 0f05 ffc8 bf7d000000 75c8                                 read, or to exit_group
bf04000000 be02000000 ba01000000 b848000000 0f05 bf03000000 b803000000 0f05                 fcntl, close
488b0b 488b7b10 488d7318 488d54cb20 b83b000000 0f05                                         execve
50 4889e6 bf04000000 ba04000000 b801000000 0f05 bf01000000 e970ffffff                       write, to exit_group
"""
_ARM64 = """
910003f3 d2800020 d2800121 d28014e8 d4000001                                                prctl
d2800220 d2800001 d2800002 d2800003 d2800004 d2801b88 d4000001                              clone
f81f0fe0 910003e1 b4000260                                                                  the child goes on below
d2800080 d2800082 d2800808 d4000001                                                         write
92800000 d2800002 d2800003 d2802088 d4000001 b100101f 54ffff40                              wait4, again if interrupted
d2800080 d2800082 d2800808 d4000001 d2800000 d2800bc8 d4000001                              write, exit_group
d28013a8 d4000001 d2800000 d28a81c1 d2800002 d28003a8 d4000001                              setsid, ioctl
d2800060 910003e1 d2800022 d28007e8 d4000001 f100041f d2800fa0 54fffe01                     read, or to exit_group
d2800080 d2800041 d2800022 d2800328 d4000001 d2800060 d2800728 d4000001                     fcntl, close
f9400263 f9400a60 91006261 8b030e62 91008042 d2801ba8 d4000001                              execve
f90003e0 d2800080 910003e1 d2800082 d2800808 d4000001 d2800020 17ffffd9                     write, to exit_group
"""


def program(machine: str = "") -> bytes:
    """The executable for this machine (or x86_64, aarch64). Raises Unsupported for another."""
    machine = machine or platform.machine()
    if machine == "x86_64":
        number, code = 62, b"".join(bytes.fromhex(word) for word in _words(_AMD64))
    elif machine == "aarch64":
        number, code = 183, b"".join(struct.pack("<I", int(word, 16)) for word in _words(_ARM64))
    else:
        raise Unsupported(f"containers by proot run on x86_64 and aarch64, not on {machine}")
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, number, 1, _BASE + _CODE, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = _CODE + len(code)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, _PAGE) + code


def _words(listing: str) -> list[str]:
    """The code of a listing; what comes after two spaces is for the reader."""
    return [word for line in listing.strip().splitlines() for word in line.partition("  ")[0].split()]
