"""Who the command runs as: the image's USER, looked up in the image's own /etc/passwd and /etc/group.

`""`, `name`, `uid`, `name:group`, `uid:gid`. A name must be listed; a number need not be. Supplementary groups come
from /etc/group, only where no group is given. Rules and messages are docker's (moby/sys `user.GetExecUser`); ids end at
2^31-1 (CVE-2024-40635). The files are the image's: opened inside the rootfs, regular, bounded. Taught in chapter 07.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Any

from minirt.errors import StartError
from minirt.runtime.mounts import Root

MAX_ID = 2**31 - 1
_MAX_FILE = 4 << 20  # bytes
_MOST = 8  # colons that mean something, passwd(5), group(5)
_NUMBER = re.compile("[+-]?[0-9]+")


def resolve(root: Root, text: str, more: Iterable[str] = ()) -> dict[str, Any]:
    """The runtime-spec `user` object for `text`, in `more` groups besides. Raises StartError in docker's words."""
    name, _, group = text.partition(":")
    uid = gid = 0
    known = ""
    for row in _rows(root, "/etc/passwd", 4):
        if _means(name or "0", row):
            known, uid, gid = row[0], int(row[2]), int(row[3][:20]) if _NUMBER.fullmatch(row[3]) else 0
            break
    else:
        uid = _number(name, "user", "passwd") if name else 0
    groups: list[int] = []
    if group:
        listed = [int(row[2]) for row in _rows(root, "/etc/group", 3) if _means(group, row)]
        gid = listed[0] if listed else _number(group, "group", "group")
    elif known:
        groups = [int(row[2]) for row in _rows(root, "/etc/group", 3) if len(row) > 3 and known in row[3].split(",")]
    for name in more:
        listed = [int(row[2]) for row in _rows(root, "/etc/group", 3) if name in (row[0], row[2])]
        groups += listed or [_number(name, "group", "group")]
    for number in (uid, gid, *groups):
        _check(number)
    return {"uid": uid, "gid": gid, "additionalGids": list(dict.fromkeys([gid, *groups])), "umask": 0o022}


def home(root: Root, uid: int) -> str:
    """The home folder that the image's passwd file gives this uid, else `/`."""
    for row in _rows(root, "/etc/passwd", 6):
        if row[2] == str(uid):
            return row[5] or "/"
    return "/"


def _means(text: str, row: list[str]) -> bool:
    """A number is always an id: an image cannot make 1000 the name of its root."""
    return int(row[2]) == int(text[:20]) if _NUMBER.fullmatch(text) else row[0] == text


def _number(text: str, what: str, file: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise StartError(f"unable to find {what} {text}: no matching entries in {file} file")
    return _check(int(text[:20]))


def _check(number: int) -> int:
    if not 0 <= number <= MAX_ID:
        raise StartError(f"uids and gids must be in range 0-{MAX_ID}")
    return number


def _rows(root: Root, path: str, fields: int) -> Iterator[list[str]]:
    """The file's lines, cut at colons, with enough fields and an id third; none where the image has no such file.

    One at a time: as many short lines as there is room for, all cut, would take a hundred times that room.
    """
    try:
        fd = root.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StartError(f"{path} of the image is not a regular file")
        text = io.BytesIO(file.read(_MAX_FILE))
    for line in text:
        if line.count(b":") >= fields - 1:
            row = [field.strip() for field in line.decode("utf-8", "surrogateescape").split(":", _MOST)]
            if re.fullmatch("[0-9]{1,20}", row[2]):
                yield row
