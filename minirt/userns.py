"""User namespaces: how a plain user becomes "root" over ids of their own, and which ids those are.

Four mappings, best first: *root* (we are root: no namespace, ids as they are), *subuids* (id 0 is the user, 1… are
the user's range in /etc/subuid, set by newuidmap), *single* (id 0 is the user and there is no other), *faked* (no
namespace: we stay who we are, and proot plays root; runtime/proot.py). `None` means that the machine refuses user
namespaces and proot does not work either. The mapping, not the namespace, decides who owns a file, so every process
that needs to be root over those files (unpack worker, shim) makes a namespace of its own with the same rows; none has
to be kept alive, and no file is left that its owner cannot remove. Source: user_namespaces(7), newuidmap(1), subuid(5).
Taught in chapter 07.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from minirt import child, linux
from minirt.errors import Unsupported

_SHARED_COUNT = 65536


class IdMapping(NamedTuple):
    """Rows are (inside, outside, count). No rows: the ids are the host's own (root). `faked`: only proot plays them."""

    uids: tuple[tuple[int, int, int], ...] = ()
    gids: tuple[tuple[int, int, int], ...] = ()
    faked: bool = False

    @property
    def rootless(self) -> bool:
        return bool(self.uids)

    @property
    def single(self) -> bool:
        """Only one id exists inside: files of other owners cannot be represented."""
        return self.rootless and sum(row[2] for row in self.uids) == 1

    @property
    def form(self) -> str:
        """The name of the unpacked form of layers: overlay's xattr namespace and the mapping."""
        if not self.rootless:
            return "trusted"
        import hashlib  # loads OpenSSL, which whoever only joins namespaces does without

        kind = "faked" if self.faked else "user"
        return f"{kind}-" + hashlib.sha256(repr((self.uids, self.gids)).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        rows = {"uids": [list(row) for row in self.uids], "gids": [list(row) for row in self.gids]}
        return rows | ({"faked": True} if self.faked else {})

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> IdMapping:
        uids, gids = (tuple((int(a), int(b), int(c)) for a, b, c in value[key]) for key in ("uids", "gids"))
        return cls(uids, gids, bool(value.get("faked")))


def mapping(uid: int | None = None) -> IdMapping:
    """The best mapping this user has a right to by /etc/subuid and newuidmap; says nothing about the kernel's leave."""
    uid = os.getuid() if uid is None else uid
    if uid == 0:
        ids = IdMapping(_here("/proc/self/uid_map"), _here("/proc/self/gid_map"))
        return IdMapping() if ids.uids == ((0, 0, 2**32 - 1),) else ids
    import shutil

    gid = os.getgid()
    sub_uids, sub_gids = _ranges("/etc/subuid", uid), _ranges("/etc/subgid", uid)
    if sub_uids and sub_gids and shutil.which("newuidmap") and shutil.which("newgidmap"):
        return IdMapping(((0, uid, 1), *_stack(sub_uids)), ((0, gid, 1), *_stack(sub_gids)))
    return IdMapping(((0, uid, 1),), ((0, gid, 1),))


def delegated() -> IdMapping:
    """Ids for a container that root gives a user namespace: those of `minirt`, else of root, in /etc/subuid.

    Unlike a user's own mapping it does not hold who asks: the container's root is nobody outside. Raises Unsupported.
    """
    import pwd

    owners = [entry.pw_uid for entry in pwd.getpwall() if entry.pw_name == "minirt"]
    for uid in (*owners, 0):
        rows = [_ranges(path, uid)[:1] for path in ("/etc/subuid", "/etc/subgid")]
        if all(rows):
            uids, gids = (((0, start, count),) for [(start, count)] in rows)
            return IdMapping(uids, gids)
    raise Unsupported(
        "no ids for a user namespace: run `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 root`"
    )


def _here(path: str) -> tuple[tuple[int, int, int], ...]:
    """The ids that exist in our own user namespace, as rows that map each to itself."""
    with open(path, encoding="ascii") as file:
        rows = [line.split() for line in file]
    return tuple((int(inside), int(inside), int(count)) for inside, _, count in rows)


def _ranges(path: str, uid: int) -> list[tuple[int, int]]:
    """This user's (start, count) rows, subuid(5); by name or number."""
    import pwd

    try:
        names = {pwd.getpwuid(uid).pw_name, str(uid)}
    except KeyError:
        names = {str(uid)}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            rows = [line.strip().split(":") for line in file]
    except OSError:
        return []
    return [(int(r[1]), int(r[2])) for r in rows if len(r) == 3 and r[0] in names and r[1].isdigit() and r[2].isdigit()]


def _stack(ranges: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    rows, inside = [], 1
    for start, count in ranges:
        count = min(count, _SHARED_COUNT - inside + 1)
        if count > 0:
            rows.append((inside, start, count))
            inside += count
    return rows


def become_root(ids: IdMapping) -> None:
    """Move this process into a new user namespace with this mapping, as its root. For a single-threaded process.

    The maps are written from outside, by a child forked beforehand. Raises Unsupported, with what the machine
    answered, where it refuses.
    """
    if not ids.rootless or ids.faked:
        return
    go_read, go_write = os.pipe()
    told_read, told_write = os.pipe()
    helper = os.fork()
    if helper == 0:
        try:
            os.close(go_write)
            if os.read(go_read, 1):
                write_maps(os.getppid(), ids)
        except (Unsupported, OSError) as error:
            os.write(told_write, str(error).encode()[:4000])
        finally:
            os._exit(0)
    os.close(go_read)
    os.close(told_write)
    refused = ""
    try:
        enter_new()
        os.write(go_write, b"1")
    except Unsupported as error:
        refused = str(error)
    os.close(go_write)
    with os.fdopen(told_read, "rb") as pipe:
        refused = refused or pipe.read().decode(errors="replace")
    os.waitpid(helper, 0)
    if refused:
        raise Unsupported(refused)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def enter_new() -> None:
    """Move this process into a new user namespace, which maps no ids yet. Raises Unsupported."""
    try:
        linux.unshare(linux.CLONE_NEWUSER)
    except OSError as error:
        raise Unsupported(f"this machine refuses user namespaces ({error.strerror}): see `minirt doctor`") from error


def write_maps(pid: int, ids: IdMapping) -> None:
    """Map `pid`'s new namespace: ourselves for one id or as root, by the set-uid tools of uidmap for a range.

    Raises Unsupported where that is refused.
    """
    if ids.single or os.geteuid() == 0:
        uid, gid = ("\n".join(" ".join(map(str, row)) for row in rows) for rows in (ids.uids, ids.gids))
        deny = [("setgroups", "deny")] if os.geteuid() else []
        for name, text in (*deny, ("uid_map", uid), ("gid_map", gid)):
            try:
                with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
                    file.write(text)
            except OSError as error:
                raise Unsupported(
                    f"this machine refuses user namespaces ({name}: {error.strerror}): see `minirt doctor`"
                ) from error
        return
    import subprocess

    for tool, rows in (("newuidmap", ids.uids), ("newgidmap", ids.gids)):
        words = [tool, str(pid), *(str(number) for row in rows for number in row)]
        result = subprocess.run(words, capture_output=True, text=True, check=False)
        if result.returncode:
            raise Unsupported(f"{tool} refused the mapping: {result.stderr.strip()[:200]}")


def detect() -> IdMapping | None:
    """The mapping that really works here, found by trying in a child; None where containers cannot run at all."""
    import subprocess

    best = mapping()
    for ids in dict.fromkeys((best, IdMapping(best.uids[:1], best.gids[:1]))):
        if (
            subprocess.run(child.command("minirt.userns", json.dumps([ids.uids, ids.gids])), check=False).returncode
            == 0
        ):
            return ids
    ids = IdMapping(((0, os.getuid(), 1),), ((0, os.getgid(), 1),), faked=True)
    return None if proot_refused() else ids


def proot_refused() -> str:
    """Why proot does not work here, found by trying it; empty where it does."""
    import shutil
    import subprocess
    import sys

    if sys.platform != "linux":
        return "it is for Linux"
    program = shutil.which("proot")
    if not program:
        return "not installed"
    words = [program, "-v", "-1", "-0", "-r", "/", sys.executable, "-I", "-S", "-c", "import os; os._exit(os.getuid())"]
    try:
        trial = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)[:200]
    return trial.stderr.strip()[-200:] or f"it ended with status {trial.returncode}" if trial.returncode else ""


def main(argument: str) -> int:
    """The child of `detect`: try one mapping."""
    uids, gids = json.loads(argument)
    try:
        become_root(IdMapping.from_json({"uids": uids, "gids": gids}))
        linux.unshare(linux.CLONE_NEWNS)  # with a user namespace or the name root alone nothing is won
    except (Unsupported, OSError):
        return 1
    return 0
