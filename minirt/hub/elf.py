"""A Linux program, assembled byte by byte: it prints a message and exits. And a look into programs of others.

The file is the ELF header, two program headers, the machine code and the message, in that order, mapped as one segment.
    offset   0  ELF header: "this is a 64-bit program for this CPU; start at ENTRY"
    offset  64  LOAD: "map the whole file at BASE, readable and executable";  GNU_STACK: "the stack is data"
    offset 176  code: write(1, message, length); exit(0)
    then        the message
A program that needs a library has two more program headers and, before the code, what they point to: the loader's name
and the dynamic section, which names the library.
Sources: elf(5), syscall(2); Intel SDM volume 2; Arm Architecture Reference Manual, section C6.
Taught in chapters 01 and 02.
"""

from __future__ import annotations

import struct

_HEADER, _SEGMENT = 64, 56  # bytes: one ELF header, one program header
_BASE = 0x400000
_PAGE = 0x10000  # 64 KiB: a multiple of every page size these CPUs are run with
_LOAD, _DYNAMIC, _INTERP, _GNU_STACK = 1, 2, 3, 0x6474E551
_NEEDED, _STRTAB, _SYMTAB, _STRSZ, _SYMENT = 1, 5, 6, 10, 11
_READ, _WRITE, _EXECUTE = 4, 2, 1
_STDOUT = 1

_EAX, _EDX, _EDI = 0, 2, 7  # x86-64 register numbers


def program(architecture: str, message: bytes, needs: tuple[str, str] | None = None) -> bytes:
    """The executable for `amd64` or `arm64` that writes `message` (under 64 KiB) to its standard output.

    `needs` is a dynamic loader's path and the name of a library, which that loader has to find before the program runs.
    """
    number, assemble = {"amd64": (62, _amd64), "arm64": (183, _arm64)}[architecture]
    code, extra, segments = assemble(message), b"", []
    start = _HEADER + (4 if needs else 2) * _SEGMENT
    if needs:
        loader, library = (name.encode() + b"\0" for name in needs)
        strings = b"\0" + library
        at = start + len(loader)
        symbols = at + len(strings) + -(at + len(strings)) % 8  # one symbol, the empty one every table begins with
        dynamic = symbols + 24
        facts = [(_NEEDED, 1), (_STRTAB, _BASE + at), (_SYMTAB, _BASE + symbols)]
        facts += [(_STRSZ, len(strings)), (_SYMENT, 24), (0, 0)]
        section = b"".join(struct.pack("<QQ", *fact) for fact in facts)
        extra = (loader + strings).ljust(symbols - start, b"\0") + bytes(24) + section
        segments = [_segment(_INTERP, _READ, start, len(loader), 1)]
        segments.append(_segment(_DYNAMIC, _READ, dynamic, len(section), 8))
    entry = start + len(extra)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little endian, version 1, System V
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(ident, 2, number, 1, _BASE + entry, _HEADER, 0, 0),  # 2: executable at a fixed address; no section headers
        *(_HEADER, _SEGMENT, len(segments) + 2, 0, 0, 0),
    )
    segments.append(_segment(_LOAD, _READ | _EXECUTE, 0, entry + len(code) + len(message), _PAGE))
    stack = struct.pack("<IIQQQQQQ", _GNU_STACK, _READ | _WRITE, 0, 0, 0, 0, 0, 16)
    return b"".join([header, *segments, stack, extra, code, message])


def _segment(kind: int, flags: int, offset: int, size: int, align: int) -> bytes:
    """One program header: `size` bytes of the file from `offset` on, mapped at the same distance from _BASE."""
    return struct.pack("<IIQQQQQQ", kind, flags, offset, _BASE + offset, _BASE + offset, size, size, align)


def _amd64(message: bytes) -> bytes:
    """System call number in eax, arguments in edi, rsi, edx."""

    def mov(register: int, value: int) -> bytes:
        return bytes([0xB8 + register]) + struct.pack("<I", value)

    def lea_rsi(distance: int) -> bytes:  # rsi = address of the next instruction + distance
        return b"\x48\x8d\x35" + struct.pack("<i", distance)

    syscall = b"\x0f\x05"
    after = mov(_EDX, len(message)) + syscall + mov(_EAX, 60) + mov(_EDI, 0) + syscall  # 60: exit
    return mov(_EAX, 1) + mov(_EDI, _STDOUT) + lea_rsi(len(after)) + after  # 1: write


def _arm64(message: bytes) -> bytes:
    """System call number in x8, arguments in x0, x1, x2. Every instruction is one 32-bit word."""

    def mov(register: int, value: int) -> int:  # MOVZ Xd, #imm16
        return 0xD2800000 | value << 5 | register

    def adr_x1(words: int) -> int:  # ADR X1: the address of the instruction so many words further on
        return 0x10000001 | words << 5

    svc = 0xD4000001
    after = [mov(2, len(message)), mov(8, 64), svc, mov(0, 0), mov(8, 93), svc]  # 64: write, 93: exit
    words = [mov(0, _STDOUT), adr_x1(1 + len(after)), *after]
    return struct.pack(f"<{len(words)}I", *words)


def interpreter(binary: bytes) -> str | None:
    """The dynamic loader this program asks the kernel for (`/lib64/ld-linux-x86-64.so.2`); None: it is static.

    Raises ValueError for what is not an ELF file.
    """
    if binary[:4] != b"\x7fELF" or len(binary) < _HEADER:
        raise ValueError("not an ELF file")
    order = "<" if binary[5] == 1 else ">"
    wide = binary[4] == 2
    (table,) = struct.unpack_from(order + ("Q" if wide else "I"), binary, 32 if wide else 28)
    entry, count = struct.unpack_from(order + "HH", binary, 54 if wide else 42)
    if entry < (_SEGMENT if wide else 32) or table + entry * count > len(binary):
        raise ValueError("damaged ELF file: its program headers are not in it")
    for at in range(table, table + entry * count, entry):
        if struct.unpack_from(order + "I", binary, at) == (_INTERP,):
            offset, size = struct.unpack_from(order + ("8xQ16xQ" if wide else "4xI8xI"), binary, at)
            return binary[offset : offset + size].rstrip(b"\0").decode()
    return None
