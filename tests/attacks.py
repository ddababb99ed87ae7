"""Layers made to get out of their folder, and what must become of each: refused whole, or contained.

Entries are made when asked for, as some point at the canary. The ideas are those of containerd's `pkg/archive`
(TestBreakouts), umoci's `oci/layer`, moby's `go-archive` and of the CVEs that README names; the archives are our own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tars import BLOCK, CHAR, DIR, FIFO, HARDLINK, SYMLINK, entry, pax

Entries = Callable[[Path], list[bytes]]


def numbers(raw: bytes, **fields: int) -> bytes:
    """The entry with base-256 numbers in its header, which may be negative or too large for any octal field."""
    places = {"uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136, 12)}
    places |= {"major": (329, 8), "minor": (337, 8)}
    head = bytearray(raw)
    for name, value in fields.items():
        at, width = places[name]
        head[at : at + width] = bytes([0xFF if value < 0 else 0x80]) + value.to_bytes(width - 1, "big", signed=True)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head[:512])
    return bytes(head)


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    """GNU's header before an entry whose name (K: whose link) does not fit."""
    return entry("././@LongLink", kind, content=name + b"\0")


def prefixed(prefix: bytes, name: str) -> bytes:
    """An entry whose ustar prefix says where it lies."""
    head = bytearray(entry(name, content=b"dead"))
    head[345 : 345 + len(prefix)] = prefix
    return numbers(bytes(head))


# Each is preceded by an honest entry. `where` is the folder of the canary.
REFUSED: dict[str, Entries] = {
    "dotdot": lambda where: [entry("../canary", content=b"dead")],
    "dotdot-inside": lambda where: [entry("a/../../canary", content=b"dead")],
    "dotdot-alone": lambda where: [entry("..", SYMLINK, linkname=str(where))],
    "dotdot-folder": lambda where: [entry("d/../..", DIR, mode=0o777)],
    "dotdot-by-pax": lambda where: [pax({"path": b"../canary"}) + entry("x", content=b"dead")],
    "dotdot-by-long-name": lambda where: [long_name(b"../canary") + entry("x", content=b"dead")],
    "dotdot-by-prefix": lambda where: [prefixed(b"..", "canary")],
    "dotdot-by-sparse-name": lambda where: [
        pax({"GNU.sparse.map": b"0,4", "GNU.sparse.size": b"4", "GNU.sparse.name": b"../canary"})
        + entry("x", content=b"dead")
    ],
    "link-relative": lambda where: [entry("l", SYMLINK, linkname="../../../.."), entry("l/canary", content=b"dead")],
    "link-absolute": lambda where: [
        entry("l", SYMLINK, linkname=f"{where}/canary"), entry("l"), entry("l/x", content=b"dead"),
    ],
    "link-to-folder": lambda where: [
        entry("l", SYMLINK, linkname=str(where)), entry("l/canary", content=b"dead"),
    ],
    "link-chain": lambda where: [
        entry("a", SYMLINK, linkname="b"), entry("b", SYMLINK, linkname=str(where)), entry("a/canary", content=b"d"),
    ],
    "link-chain-of-folders": lambda where: [
        entry("dummy", DIR), entry("dummy/etc", SYMLINK, linkname=str(where)),
        entry("etc", SYMLINK, linkname="./dummy/etc"), entry("etc/canary", content=b"dead"),
    ],
    "link-up-and-out": lambda where: [
        entry("d", DIR), entry("d/up", SYMLINK, linkname=".."), entry("d/up/up", SYMLINK, linkname=".."),
        entry("d/up/up/canary", content=b"dead"),
    ],
    "link-down-and-out": lambda where: [
        entry("d", DIR), entry("l", SYMLINK, linkname="d/../../.."), entry("l/canary", content=b"dead"),
    ],
    "link-to-sibling-layer": lambda where: [
        entry("l", SYMLINK, linkname="../other"), entry("l/x", content=b"dead"),
    ],
    "link-to-the-store": lambda where: [
        entry("l", SYMLINK, linkname=f"{where}/store/oci"), entry("l/index.json", content=b"dead"),
    ],
    "link-into-proc": lambda where: [
        entry("l", SYMLINK, linkname="/proc/self/fd"), entry("l/1", content=b"dead"),
    ],
    "link-to-the-root-by-proc": lambda where: [
        entry("l", SYMLINK, linkname="/proc/self/root"), entry(f"l{where}/canary", content=b"dead"),
    ],
    "link-to-the-cwd-by-proc": lambda where: [
        entry("l", SYMLINK, linkname="/proc/self/cwd"), entry("l/canary", content=b"dead"),
    ],
    "link-inside": lambda where: [  # containerd follows it inside of the layer; nobody needs that
        entry("etc", DIR), entry("l", SYMLINK, linkname="/etc"), entry("l/x", content=b"1"),
    ],
    "link-inside-relative": lambda where: [
        entry("etc", DIR), entry("l", SYMLINK, linkname="etc"), entry("l/x", content=b"1"),
    ],
    "link-of-long-target": lambda where: [
        long_name(str(where).encode() + b"/./" * 30, b"K") + entry("l", SYMLINK, linkname="x"),
        entry("l/canary", content=b"dead"),
    ],
    "folder-through-link": lambda where: [entry("l", SYMLINK, linkname=str(where)), entry("l/canary", DIR)],
    "fifo-through-link": lambda where: [entry("l", SYMLINK, linkname=str(where)), entry("l/fifo", FIFO)],
    "device-through-link": lambda where: [
        entry("l", SYMLINK, linkname=str(where)), entry("l/null", CHAR, devmajor=1, devminor=3),
    ],
    "link-through-link": lambda where: [
        entry("l", SYMLINK, linkname=str(where)), entry("l/canary", SYMLINK, linkname="/dev/null"),
    ],
    "whiteout-through-link": lambda where: [entry("l", SYMLINK, linkname=str(where)), entry("l/.wh.canary")],
    "opaque-through-link": lambda where: [entry("l", SYMLINK, linkname=str(where)), entry("l/.wh..wh..opq")],
    "open-folder-becomes-link": lambda where: [
        entry("d/f", content=b"1"), entry("d", SYMLINK, linkname=str(where)), entry("d/canary", content=b"dead"),
    ],
    "open-folder-far-above-becomes-link": lambda where: [
        entry("a/b/c/f", content=b"1"), entry("a", SYMLINK, linkname=f"{where}/.."),
        entry("a/b/c/canary", content=b"dead"), entry(f"a/{where.name}/canary", content=b"dead"),
    ],
    "open-folder-becomes-hardlink-of-link": lambda where: [
        entry("d/f", content=b"1"), entry("l", SYMLINK, linkname=str(where)), entry("d", HARDLINK, linkname="l"),
        entry("d/canary", content=b"dead"),
    ],
    "open-folder-becomes-file": lambda where: [
        entry("d/f", content=b"1"), entry("d", content=b"2"), entry("d/canary", content=b"dead"),
    ],
    "open-folder-comes-and-goes": lambda where: [
        *(entry("d/f", content=b"1"), entry("d", SYMLINK, linkname=str(where))) * 3, entry("d/canary", content=b"dead"),
    ],
    "hardlink-out": lambda where: [entry("h", HARDLINK, linkname="../../../../canary")],
    "hardlink-absolute": lambda where: [
        entry("h", HARDLINK, linkname=f"{where}/canary"), entry("h", content=b"dead"),
    ],
    "hardlink-through-link": lambda where: [
        entry("l", SYMLINK, linkname=str(where)), entry("h", HARDLINK, linkname="l/canary"),
    ],
    "hardlink-by-pax": lambda where: [
        pax({"linkpath": f"{where}/canary".encode()}) + entry("h", HARDLINK, linkname="x"),
    ],
    "hardlink-to-lower": lambda where: [entry("h", HARDLINK, linkname="bin/sh")],
    "hardlink-to-folder": lambda where: [entry("d", DIR), entry("h", HARDLINK, linkname="d")],
    "hardlink-to-root": lambda where: [entry("h", HARDLINK, linkname="/")],
    "hardlink-to-nothing": lambda where: [entry("h", HARDLINK, linkname="")],
    "hardlink-to-itself": lambda where: [entry("h", HARDLINK, linkname="h")],
    "whiteout-of-nothing": lambda where: [entry("d/.wh.")],
    "whiteout-of-dot": lambda where: [entry("d/.wh..")],
    "whiteout-of-dotdot": lambda where: [entry("d/.wh...")],
    "whiteout-of-dot-at-root": lambda where: [entry(".wh..")],
    "whiteout-of-dotdot-at-root": lambda where: [entry(".wh...")],
    "inside-whiteout": lambda where: [entry(".wh.d/x", content=b"1")],
    "folder-inside-whiteout": lambda where: [entry("a/.wh.d/b/x", DIR)],
    "whiteout-inside-whiteout": lambda where: [entry(".wh.d/.wh.x")],
    "whiteout-out": lambda where: [entry("../.wh.canary")],
    "opaque-out": lambda where: [entry("../.wh..wh..opq")],
    "root-replaced": lambda where: [entry(".", SYMLINK, linkname="/")],
    "root-as-file": lambda where: [entry("./", content=b"1")],
    "root-as-hardlink": lambda where: [entry("before", content=b"1"), entry("/", HARDLINK, linkname="before")],
    "parent-is-a-file": lambda where: [entry("f", content=b"1"), entry("f/x", content=b"2")],
    "parent-is-a-whiteout": lambda where: [entry(".wh.f"), entry("f", CHAR), entry("f/x", content=b"2")],
    "long-name": lambda where: [entry("x" * 300, content=b"1")],
    "long-path": lambda where: [entry("/".join(["d" * 200] * 21), content=b"1")],
    "long-link": lambda where: [entry("l", SYMLINK, linkname="x" * 5000)],
    "deep-path": lambda where: [entry("/".join("d" * 300), content=b"1")],
    "empty-name": lambda where: [entry("", content=b"1")],
    "empty-link": lambda where: [entry("l", SYMLINK, linkname="")],
    "nul-in-name": lambda where: [pax({"path": b"a\0b"}) + entry("x")],
    "nul-in-link": lambda where: [pax({"linkpath": b"a\0b"}) + entry("x", SYMLINK, linkname="y")],
    "nul-in-xattr": lambda where: [pax({"SCHILY.xattr.user.a\0b": b"1"}) + entry("x")],
    "device-range": lambda where: [entry("n", CHAR, devmajor=4096, devminor=0)],
    "device-minor": lambda where: [entry("n", BLOCK, devmajor=0, devminor=1 << 20)],
    "device-negative": lambda where: [numbers(entry("n", CHAR), major=-1, minor=3)],
    "device-whiteout": lambda where: [entry("n", CHAR, devmajor=0, devminor=0)],
    "unknown-type": lambda where: [entry("v", b"V")],
    "owner-negative": lambda where: [numbers(entry("n"), uid=-1)],
    "owner-nobody-can-be": lambda where: [numbers(entry("n"), gid=2**32 - 1)],
    "size-negative": lambda where: [numbers(entry("n"), size=-512)],
    "size-beyond-all": lambda where: [numbers(entry("n"), size=1 << 80)],
    "time-beyond-all": lambda where: [numbers(entry("n"), mtime=1 << 80)],
    "time-before-all": lambda where: [numbers(entry("n"), mtime=-(1 << 80))],
    "sparse-beyond-all": lambda where: [
        pax({"GNU.sparse.map": b"0,1", "GNU.sparse.size": b"4611686018427387904"}) + entry("f", content=b"x")
    ],
    "sparse-out-of-order": lambda where: [
        pax({"GNU.sparse.map": b"512,1,0,1", "GNU.sparse.size": b"600"}) + entry("f", content=b"xy")
    ],
    "record-without-end": lambda where: [pax({"path": b"x" * (1 << 20)}) + entry("f")],
}  # fmt: skip


# What stands in the layer afterwards is honest, whatever the archive meant: name → the paths that are there.
CONTAINED: dict[str, tuple[Entries, set[str]]] = {
    "absolute": (lambda where: [entry(f"{where}/canary", content=b"dead")], set()),
    "root-dotdot": (lambda where: [entry("/../../canary", content=b"dead")], {"canary"}),
    "dots-and-slashes": (lambda where: [entry("/.//./a/../b//c/.", content=b"1")], {"b", "b/c"}),
    "link-to-canary": (lambda where: [entry("l", SYMLINK, linkname=f"{where}/canary")], {"l"}),
    "file-over-link": (
        lambda where: [entry("l", SYMLINK, linkname=f"{where}/canary"), entry("l", content=b"dead")], {"l"},
    ),
    "folder-over-link": (
        lambda where: [entry("l", SYMLINK, linkname=str(where)), entry("l", DIR, mode=0o777), entry("l/canary")],
        {"l", "l/canary"},
    ),
    "mode-through-link": (
        lambda where: [
            entry("l", SYMLINK, linkname=str(where)), entry("l/.", DIR, mode=0o777), entry("l/x/../canary", FIFO),
        ],
        {"l", "l/canary"},
    ),
    "hardlink-over-link": (
        lambda where: [entry("f"), entry("l", SYMLINK, linkname=f"{where}/canary"), entry("l", HARDLINK, linkname="f")],
        {"f", "l"},
    ),
    "hardlink-of-link-then-mode-and-time": (
        lambda where: [
            entry("l", SYMLINK, linkname=f"{where}/canary"),
            entry("h", HARDLINK, linkname="l", mode=0o777, mtime=1, uid=77),
        ],
        {"l", "h"},
    ),
    "file-over-hardlink-of-link": (
        lambda where: [
            entry("l", SYMLINK, linkname=f"{where}/canary"), entry("h", HARDLINK, linkname="l"),
            entry("h", content=b"dead"),
        ],
        {"l", "h"},
    ),
    "mode-of-link": (lambda where: [entry("l", SYMLINK, linkname=f"{where}/canary", mode=0o777, mtime=3)], {"l"}),
    "xattr-of-link": (
        lambda where: [
            pax({"SCHILY.xattr.user.x": b"1", "SCHILY.xattr.security.capability": bytes(20)})
            + entry("l", SYMLINK, linkname=f"{where}/canary")
        ],
        {"l"},
    ),
    "global-header": (
        lambda where: [_global({"path": b"../canary"}) + entry("x", content=b"1")], {"x"},
    ),
    "whiteout-of-canary": (lambda where: [entry(f"{where}/.wh.canary")], set()),
    "whiteout-with-content": (lambda where: [entry(".wh.x", content=b"dead" * 200)], {"x"}),
    "whiteout-that-is-a-link": (lambda where: [entry(".wh.x", SYMLINK, linkname=f"{where}/canary")], {"x"}),
    "opaque-that-is-a-link": (lambda where: [entry("d/.wh..wh..opq", SYMLINK, linkname=f"{where}")], {"d"}),
    "duplicates": (lambda where: [entry("a", content=b"%d" % n) for n in range(50)], {"a"}),
    "time-long-ago": (
        lambda where: [numbers(entry("n"), mtime=-(1 << 40)), numbers(entry("m"), mtime=1 << 40)], {"n", "m"},
    ),
}  # fmt: skip


def _global(records: dict[str, bytes]) -> bytes:
    raw = bytearray(pax(records))
    raw[156:157] = b"g"
    return numbers(bytes(raw))
