"""What this machine can do, found out by trying it: each row is one attempt, made in a process that then goes away.

Nothing is concluded from a version or a file where an attempt can answer. Taught in chapter 07.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

from minirt import child, linux
from minirt.errors import MinirtError
from minirt.runtime import mounts, rootfs
from minirt.userns import IdMapping, become_root, mapping

_NAMESPACES = {
    "pid namespace": linux.CLONE_NEWPID, "mount namespace": linux.CLONE_NEWNS, "network namespace": linux.CLONE_NEWNET,
    "uts namespace": linux.CLONE_NEWUTS, "ipc namespace": linux.CLONE_NEWIPC, "cgroup namespace": linux.CLONE_NEWCGROUP,
}  # fmt: skip


def probe() -> list[dict[str, Any]]:
    """Rows `{"capability", "works", "detail", "hint"}` in plain words; `hint` says how to get what does not work."""
    if not hasattr(os, "uname") or os.uname().sysname != "Linux":
        hint = "use a Linux machine, or Linux in a virtual machine (on Windows: WSL 2)"
        return [_row("Linux", "this is not Linux: it can pull and inspect, not run", "not Linux", hint)]
    best, uid = mapping(), os.getuid()
    who = IdMapping() if uid == 0 else best
    single = IdMapping(((0, uid, 1),), ((0, os.getgid(), 1),))
    rows = [_row("kernel", os.uname().release, _attempt("kernel", IdMapping()), "Linux 5.12 or newer is needed")]
    rows.append(_row("user", "you are root" if uid == 0 else f"you are uid {uid}: containers are rootless", "", ""))
    userns = _attempt("uts namespace", single)
    rows.append(_row("user namespace", "a plain user can be root over their own ids", userns, _userns_hint()))
    if uid:
        refused = "no range in /etc/subuid, or no newuidmap" if best.single else _attempt("uts namespace", best)
        detail = f"{sum(row[2] for row in best.uids)} ids"
        hint = "sudo apt install uidmap && sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER"
        rows.append(_row("subuids", detail, refused, f"{hint}; without, images run with one id"))
        if refused:
            who = single
    nothing = "needs root, or user namespaces" if not userns else _userns_hint()
    for name in _NAMESPACES:
        rows.append(_row(name, "", _attempt(name, who), nothing))
    hint = "layers are copied instead: slower, more disk"
    rows.append(_row("overlay", "as root" if uid == 0 else "in a user namespace", _attempt("overlay", who), hint))
    rows.append(
        _row("/proc mount", "", _attempt("/proc mount", who), "inside another container: start that with --privileged")
    )
    rows.append(_row("cgroups", *_cgroups(), "limits on memory and processes need them"))
    rows.append(_row("seccomp", "", _attempt("seccomp", IdMapping()), "a kernel with CONFIG_SECCOMP_FILTER"))
    for tool in ("fuse-overlayfs", "proot"):
        rows.append(
            _row(tool, *_found(tool), f"sudo apt install {tool}; only needed where the kernel refuses the above")
        )
    return rows


def _row(capability: str, detail: str, failure: str, hint: str) -> dict[str, Any]:
    return {
        "capability": capability, "works": not failure, "detail": failure or detail, "hint": hint if failure else "",
    }  # fmt: skip


def _attempt(what: str, ids: IdMapping) -> str:
    """Try it in a process of its own; empty, or why it does not work."""
    import subprocess

    words = child.command("minirt.runtime.doctor", what, json.dumps(ids.to_json()))
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    return "" if result.returncode == 0 else (result.stdout.strip() or result.stderr.strip() or "it crashed")


def main(what: str, ids: str) -> int:
    """The child of `_attempt`."""
    mapped = IdMapping.from_json(json.loads(ids))
    try:
        become_root(mapped)
        if what in _NAMESPACES:
            linux.unshare(_NAMESPACES[what])
        else:
            _ATTEMPTS[what](mapped)
    except (OSError, MinirtError) as error:
        print(error.strerror if isinstance(error, OSError) else error, flush=True)
        return 1
    return 0


def _kernel(ids: IdMapping) -> None:
    """mount_setattr(2) is the newest call a container needs: with a bad descriptor it only says whether it is there."""
    _expect(lambda: linux.mount_setattr(-1, "", linux.AT_EMPTY_PATH, linux.MOUNT_ATTR_RDONLY), errno.EBADF, errno.EPERM)


def _seccomp(ids: IdMapping) -> None:
    """A filter at address 0 is refused with EFAULT where there are filters, prctl(2) PR_SET_SECCOMP."""
    _expect(lambda: linux.prctl(22, 2, 0), errno.EFAULT)


def _expect(call: Callable[[], Any], *numbers: int) -> None:
    try:
        call()
    except OSError as error:
        if error.errno not in numbers:
            raise


def _overlay(ids: IdMapping) -> None:
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: os.path.join(folder, name) for name in ("lower", "upper", "work", "rootfs")}
        for path in paths.values():
            os.mkdir(path)
        rootfs.mount(folder, {"kind": "overlay", "lowers": [paths["lower"]], "userxattr": ids.rootless, **paths})
        linux.umount(paths["rootfs"])


def _proc(ids: IdMapping) -> None:
    """A /proc belongs to a pid namespace, so it takes a process that was born in the new one."""
    linux.unshare(linux.CLONE_NEWPID | linux.CLONE_NEWNS)
    if pid := os.fork():
        if os.waitpid(pid, 0)[1]:
            raise MinirtError("refused: this machine hides parts of its own /proc")
        return
    try:
        mounts.detached("proc", "proc", [])
    except (OSError, MinirtError):
        os._exit(1)
    os._exit(0)


_ATTEMPTS: dict[str, Callable[[IdMapping], None]] = {
    "kernel": _kernel, "seccomp": _seccomp, "overlay": _overlay, "/proc mount": _proc,
}  # fmt: skip


def _userns_hint() -> str:
    """Which of the machine's switches refuses user namespaces, and the command that changes it."""
    for name, refusing, value in (
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),  # Ubuntu 23.10 and later
        ("kernel/unprivileged_userns_clone", "0", "1"),  # older Debian
        ("user/max_user_namespaces", "0", "15000"),  # Red Hat and others
    ):
        try:
            with open(f"/proc/sys/{name}", encoding="ascii") as file:
                if file.read().strip() == refusing:
                    return f"sudo sysctl -w {name.replace('/', '.')}={value}"
        except OSError:
            continue
    return (
        "run as root, or ask the machine's owner (a container needs --privileged, or --security-opt seccomp=unconfined)"
    )


def _cgroups() -> tuple[str, str]:
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return "version 2", ""
    if os.path.exists("/sys/fs/cgroup/unified/cgroup.procs"):
        return "hybrid: version 1 limits, version 2 beside it", ""
    return ("version 1", "") if os.path.isdir("/sys/fs/cgroup/memory") else ("", "not mounted")


def _found(tool: str) -> tuple[str, str]:
    import shutil

    path = shutil.which(tool)
    return (path, "") if path else ("", "not installed")
