"""What this machine can do, found out by trying it: each row is one attempt, made in a process that then goes away.

Nothing is concluded from a version or a file where an attempt can answer. Taught in chapter 07.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any, TypedDict

from minirt import child, linux
from minirt.errors import MinirtError
from minirt.userns import IdMapping, become_root, detect, mapping, proot_refused

_NAMESPACES = {
    "pid namespace": linux.CLONE_NEWPID, "mount namespace": linux.CLONE_NEWNS, "network namespace": linux.CLONE_NEWNET,
    "uts namespace": linux.CLONE_NEWUTS, "ipc namespace": linux.CLONE_NEWIPC, "cgroup namespace": linux.CLONE_NEWCGROUP,
}  # fmt: skip


class Row(TypedDict):
    """In plain words. `cost` says what there is not without it, `hint` how to get it; both are empty where it works
    (but for containers by proot: those work, and have no walls)."""

    capability: str
    works: bool
    tried: str
    detail: str
    cost: str
    hint: str


def probe() -> list[Row]:
    """What this machine can do, the outcome of all first."""
    if not hasattr(os, "uname") or os.uname().sysname != "Linux":
        hint = "use a Linux machine, or Linux in a virtual machine (on Windows: WSL 2)"
        cost = "no container runs; images can be pulled and inspected"
        return [_row("containers", "to find Linux", "", "this is not Linux", cost, hint)]
    uid, best, ids = os.getuid(), mapping(), detect()
    who = best if ids is None or ids.faked else ids
    rows = [_outcome(ids, uid)]
    release = os.uname().release
    rows.append(_row("kernel", "mount_setattr(2), the newest call", release, _attempt("kernel"), *_ADVICE["kernel"]))
    userns = _attempt("uts namespace", IdMapping(((0, uid, 1),), ((0, os.getgid(), 1),)))
    detail = "a plain user can be root over their own ids"
    cost = "a plain user has no containers but by proot"
    rows.append(_row("user namespace", "to be root in one", detail, userns, cost, _userns_hint()))
    if uid:
        refused = "no range in /etc/subuid, or no newuidmap" if best.single else _attempt("uts namespace", best)
        count = sum(row[2] for row in best.uids)
        rows.append(_row("subuids", "newuidmap over /etc/subuid", f"{count} ids", refused, *_ADVICE["subuids"]))
        if refused:
            who = IdMapping(best.uids[:1], best.gids[:1])
    lost = "an outer wall is missing: nothing runs but by proot"
    for name in _NAMESPACES:
        rows.append(_row(name, "unshare(2)", "", _attempt(name, who), lost, _userns_hint()))
    where = "as root" if not who.rootless else "in a user namespace"
    for name, tried in (("overlay", "to mount one"), ("/proc mount", "to mount one in a new pid namespace")):
        rows.append(_row(name, tried, where, _attempt(name, who), *_ADVICE[name]))
    rows.append(_cgroups())
    rows.append(_row("seccomp", "to load a filter at address 0", "", _attempt("seccomp"), *_ADVICE["seccomp"]))
    rows.append(_row("libseccomp", "to compile docker's policy", "", _libseccomp(), *_ADVICE["libseccomp"]))
    rows.append(_network(ids or who))
    closed, (cost, hint) = _openable("/dev/fuse"), _ADVICE["/dev/fuse"]
    hint = "sudo chmod 0666 /dev/fuse" if closed == "permission denied" else hint
    rows.append(_row("/dev/fuse", "to open it", "", closed, cost, hint))
    failure, (cost, get) = _attempt("fuse-overlayfs", who), _ADVICE["fuse-overlayfs"]
    hint = hint if closed and failure != "not installed" else get
    rows.append(_row("fuse-overlayfs", "to mount two layers with it", where, failure, cost, hint))
    rows.append(
        _row("proot", "to run a program by it", shutil.which("proot") or "", proot_refused(), *_ADVICE["proot"])
    )
    for tool in ("runc", "crun"):
        cost, hint = f"`--runtime {tool}` is refused", f"sudo apt install {tool}"
        path = shutil.which(tool) or shutil.which(tool, path="/usr/local/sbin:/usr/sbin:/sbin")
        rows.append(_row(tool, "to find it", path or "", "" if path else "not installed", cost, hint))
    return rows


_REFUSED = "this machine refuses user namespaces"
# What there is not without it, and how to get it.
_ADVICE = {
    "kernel": ("no container runs but by proot", "install Linux 5.12 or newer"),
    "subuids": (
        "images run with one id: all their files are yours, and no USER but root works",
        "sudo apt install uidmap && sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER",
    ),
    "overlay": (
        "fuse-overlayfs lays the layers over one another, slower; else they are copied for each container",
        "Linux 5.11 or newer for plain users; a MINIRT_ROOT on ext4, xfs or btrfs, not on another overlay or on NFS",
    ),
    "/proc mount": (
        "no container runs but by proot",
        "inside docker: start that container with --security-opt systempaths=unconfined, or with --privileged",
    ),
    "seccomp": ("no system call is refused to a container", "a kernel with CONFIG_SECCOMP_FILTER"),
    "libseccomp": ("docker's system call policy cannot be kept", "sudo apt install libseccomp2"),
    "/dev/fuse": ("fuse-overlayfs does not work", "sudo modprobe fuse (inside docker: --device /dev/fuse)"),
    "fuse-overlayfs": (
        "where overlay is refused layers are copied: slower, more disk",
        "sudo apt install fuse-overlayfs",
    ),
    "proot": ("where namespaces are refused no container runs at all", "sudo apt install proot"),
}


def _outcome(ids: IdMapping | None, uid: int) -> Row:
    """Whether and how containers run here."""
    if ids is None:
        failure = "this machine refuses namespaces, and proot does not work"
        cost = "no container runs; images can be pulled and inspected"
        return _row("containers", "to find a way", "", failure, cost, f"{_userns_hint()}; or: sudo apt install proot")
    detail = "as root" if not ids.rootless else f"for a plain user, with {sum(row[2] for row in ids.uids)} id(s)"
    row = _row("containers", "to find a way", detail, "", "", "")
    if ids.faked:
        from minirt.runtime.proot import WALLS

        row |= {"detail": "by proot, without walls", "cost": WALLS, "hint": _userns_hint()}
    return row


def _row(capability: str, tried: str, detail: str, failure: str, cost: str, hint: str) -> Row:
    if failure.startswith(_REFUSED):
        hint = _userns_hint()
    return {
        "capability": capability, "works": not failure, "tried": tried, "detail": failure or detail,
        "cost": cost if failure else "", "hint": hint if failure else "",
    }  # fmt: skip


def _cgroups() -> Row:
    """Where this user's containers would be counted and limited."""
    from minirt.runtime import cgroups
    from minirt.runtime.cgroups import hierarchy

    tried, failure, detail, root = "to find a group to write in", "", "", os.geteuid() == 0
    try:
        group = cgroups.locate("", "doctor", systemd=False, rootless=not root)
        names = set() if group.v2 else {name for name in group.groups if name and not name.startswith("name=")}
        for tree in hierarchy.mounted() if group.v2 else ():
            names |= set((hierarchy.read(tree.point, "cgroup.controllers") or "").split())
        version = "2" if group.v2 else "1"
        detail = f"version {version}{', a scope of systemd' if group.unit else ''}: {' '.join(sorted(names))}"
    except MinirtError as error:
        failure = str(error)
    cost = "--memory, --cpus, --pids-limit, pause and stats are refused"
    hint = "sudo mount -t cgroup2 none /sys/fs/cgroup, or inside docker: --privileged"
    if not root:
        hint = "cgroups version 2 and a login session of systemd (sudo loginctl enable-linger $USER), or run as root"
    return _row("cgroups", tried, detail, failure, cost, hint)


def _network(ids: IdMapping) -> Row:
    from minirt.runtime import network

    if ids.faked:
        mode, warning = "", "by proot a container is in the machine's own network"
        cost, hint = "its ports are open on the machine, and --network none is refused", _userns_hint()
    else:
        mode, warning = network.choose("", ids)
        cost = "a container has its own loopback only (or --network host), and no port can be published"
        hint = "sudo " + warning.partition("sudo ")[2] if "sudo " in warning else "root needs CAP_NET_ADMIN and nft"
    return _row("network", "what a container gets by default", mode, warning, cost, hint)


def _libseccomp() -> str:
    from minirt.runtime import capabilities, seccomp

    try:
        seccomp.compile(seccomp.default(capabilities.DEFAULT), None)
    except MinirtError as error:
        return str(error)
    return ""


def _openable(path: str) -> str:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return (error.strerror or "").lower()
    return ""


def _attempt(what: str, ids: IdMapping = IdMapping()) -> str:  # noqa: B008 (frozen)
    """Try it in a process of its own; empty, or why it does not work."""
    import subprocess

    words = child.command("minirt.runtime.doctor", what, json.dumps(ids.to_json()))
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    why = result.stdout.strip() or result.stderr.strip() or "it crashed"
    return "" if result.returncode == 0 else why.splitlines()[-1].removesuffix(": see `minirt doctor`")


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


def _overlay(ids: IdMapping, kind: str = "overlay") -> None:
    from minirt.runtime import rootfs  # loads on Linux alone, and this file anywhere: it tells what is missing

    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: os.path.join(folder, name) for name in ("lower", "upper", "work", "rootfs")}
        for path in paths.values():
            os.mkdir(path)
        rootfs.mount(folder, {"kind": kind, "lowers": [paths["lower"]], "userxattr": ids.rootless, **paths})
        with open(os.path.join(paths["rootfs"], "file"), "w", encoding="ascii"):
            linux.umount(paths["rootfs"], linux.MNT_DETACH)


def _fuse_overlayfs(ids: IdMapping) -> None:
    if not shutil.which("fuse-overlayfs"):
        raise MinirtError("not installed")
    _overlay(ids, "fuse-overlayfs")


def _proc(ids: IdMapping) -> None:
    """A /proc belongs to a pid namespace, so it takes a process that was born in the new one."""
    from minirt.runtime import mounts

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
    "fuse-overlayfs": _fuse_overlayfs,
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
                    command = f"sudo sysctl -w {name.replace('/', '.')}={value}"
                    return command + (f"; or for this Python alone: {_profile()}" if "apparmor" in name else "")
        except OSError:
            continue
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        if "\nSeccomp:\t2" in file.read():
            return (
                "a system call filter refuses it, as docker's does: start that container with "
                "--security-opt seccomp=unconfined (for root: --privileged), or else use proot"
            )
    return "run as root, or ask the machine's owner"


def _profile() -> str:
    """The command that lets one program make user namespaces where AppArmor restricts them, apparmor.d(5)."""
    text = r"abi <abi/4.0>,\ninclude <tunables/global>\nprofile minirt %s flags=(unconfined) {\n  userns,\n}\n"
    return (
        f"printf '{text}' {os.path.realpath(sys.executable)} | sudo tee /etc/apparmor.d/minirt && "
        "sudo apparmor_parser -r /etc/apparmor.d/minirt"
    )
