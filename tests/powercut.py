"""What a disk holds after a power cut, at any moment: a virtual machine's disk whose writes qemu logs.

The log (qemu's blklogwrites, in the format of the kernel's dm-log-writes) has every write in order, and every flush.
A disk may forget what was written after the last flush, so the states to look at are those at the flushes: what is on
the disk there, and nothing later. What the machine had only in its memory is in none. Source: the kernel's
Documentation/admin-guide/device-mapper/log-writes.rst.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peers import require

_MAGIC, _SECTOR = 0x6A736677736872, 512
_FLUSH, _FUA, _DISCARD = 1, 2, 4
_HEAD, _ENTRY = struct.Struct("<QQQI"), struct.Struct("<QQQQ")


@dataclass(frozen=True)
class Disk:
    """`image` is as it was at the beginning, with an empty ext4; the machine has a copy of it."""

    folder: Path
    size: int = 96 << 20

    @classmethod
    def make(cls, folder: Path) -> Disk:
        disk = cls(folder)
        folder.mkdir()
        options = ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"]
        with open(folder / "image", "wb") as file:
            file.truncate(disk.size)
        subprocess.run([require("mkfs.ext4"), *options, folder / "image"], check=True, capture_output=True)
        shutil.copy(folder / "image", folder / "live")
        (folder / "log").touch()
        return disk

    def devices(self, name: str) -> list[str]:
        """Words for qemu's command line."""
        nodes = [
            f"driver=file,node-name={name}-file,filename={self.folder}/live",
            f"driver=raw,node-name={name}-raw,file={name}-file",
            f"driver=file,node-name={name}-log-file,filename={self.folder}/log",
            f"driver=raw,node-name={name}-log,file={name}-log-file",
            f"driver=blklogwrites,node-name={name},file={name}-raw,log={name}-log",
        ]
        words = [word for node in nodes for word in ("-blockdev", node)]
        return [*words, "-device", f"nvme,serial={name},drive={name}"]

    @property
    def written(self) -> int:
        """Bytes of the log so far."""
        return (self.folder / "log").stat().st_size

    def states(self) -> Iterator[tuple[int, Path]]:
        """The disk at each flush that came after a write, as (bytes of the log until then, image); the last one is
        how the machine left it. An image may be changed, and is gone when the next one is asked for."""
        base, state = self.folder / "base", self.folder / "state"
        shutil.copy(self.folder / "image", base)
        with open(self.folder / "log", "rb") as log, open(base, "r+b") as disk:
            head = log.read(_HEAD.size)
            magic, version, _, sector = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0, 0, 0)
            assert (magic, version) == (_MAGIC, 1), "qemu wrote no log"
            log.seek(sector)
            new = False
            while len(entry := log.read(sector)) == sector:
                at, count, flags, length = _ENTRY.unpack_from(entry)
                if not count and not flags:
                    break
                if flags & _FLUSH and new:
                    disk.flush()
                    yield log.tell(), _copy(base, state)
                    new = False
                if flags & _DISCARD:
                    continue
                if count:
                    data = log.read(-(-count * sector // sector) * sector)
                    disk.seek(at * sector)
                    disk.write(data)
                    new = True
                    if flags & _FUA:
                        disk.flush()
                        yield log.tell(), _copy(base, state)
                        new = False
        yield self.written, _copy(self.folder / "live", state)


def _copy(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "--sparse=always", source, target], check=True)
    return target


@contextlib.contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    """Its files, after the repair that the next boot would do."""
    done = subprocess.run([require("e2fsck"), "-fy", image], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop,noatime", image, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        os.rmdir(folder)
