"""The mounted trees of control groups, and making a group in them.

A machine has one v2 tree for everything, or (hybrid) a v1 tree per controller and a v2 tree without the controllers.
In a v1 cpuset a new group is of no use until it has cpus and memory nodes: its parent's are copied. In v2 a group has
those controllers that every group above it passes on in cgroup.subtree_control, and one with processes of its own
passes on none ("no internal processes"). Sources: cgroups(7), cgroup-v2.rst, proc(5). Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from minirt.errors import InvalidInput, Unsupported

_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids")


class Hierarchy(NamedTuple):
    """`controllers`: v1 names, `name=…` for one without a controller, or "" for v2. `point`: where it is mounted;
    `root`: the group that shows there; `own`: our own group seen from it, None where it lies outside."""

    controllers: tuple[str, ...]
    point: str
    root: str
    own: str | None

    def place(self, group: str) -> str:
        """The folder of a group that is named from `point` on."""
        return os.path.normpath(f"{self.point}/{group}")

    def seen(self, group: str) -> str | None:
        """The group's name from `point` on; `group` is as in /proc/PID/cgroup."""
        if self.root != "/" and group != self.root and not group.startswith(self.root + "/"):
            return None
        return None if group.startswith("/..") else "/" + group.removeprefix(self.root).lstrip("/")


def mounted() -> list[Hierarchy]:
    """Every tree this process can see, the first mount of each."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.rstrip("\n").split(":", 2)[1:] for line in file]
    ours = [(names, set(names.split(",")), own) for names, own in lines]
    found: dict[str, Hierarchy] = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if " - cgroup" not in line:
                continue
            before, _, after = line.rstrip("\n").partition(" - ")
            kind, _, options = after.split(" ", 2)
            root, point = (_plain(word) for word in before.split(" ")[3:5])
            mounted_with = set(options.split(","))
            for names, controllers, own in ours:
                fits = kind == "cgroup2" if not names else controllers <= mounted_with
                if fits and names not in found:
                    hierarchy = Hierarchy(tuple(names.split(",")), point, root, None)
                    found[names] = Hierarchy(hierarchy.controllers, point, root, hierarchy.seen(own))
    return list(found.values())


def only_v2(trees: list[Hierarchy]) -> bool:
    return all(names.controllers[0].startswith("name=") or not names.controllers[0] for names in trees)


def places(trees: list[Hierarchy], path: str) -> tuple[dict[str, str], dict[str, str]]:
    if not set(path.split("/")) - {"", "."}:
        raise InvalidInput(f"cgroupsPath {path!r} names no group of the container's own")
    groups, points = dict[str, str](), dict[str, str]()
    for tree in trees:
        name = path
        if not path.startswith("/"):
            if tree.own is None:
                raise Unsupported(f"cgroupsPath {path!r} counts from our own group, and that lies outside {tree.point}")
            name = f"{os.path.dirname(tree.own) if only_v2(trees) else tree.own}/{path}"
        for controller in tree.controllers:
            groups[controller], points[controller] = tree.place(name), tree.point
    return groups, points


def _plain(word: str) -> str:
    """mountinfo writes blanks and backslashes as octal numbers."""
    return word.encode("utf-8", "surrogateescape").decode("unicode_escape") if "\\" in word else word


def read(folder: str, file: str) -> str | None:
    """A cgroup file's text; None where there is none (also: the group is gone, or cannot have it)."""
    try:
        with open(f"{folder}/{file}", "rb", buffering=0) as opened:
            return opened.read().decode()
    except OSError:
        return None


def write(folder: str, file: str, text: str) -> None:
    """One write(2), as cgroup files want it. Raises OSError."""
    fd = os.open(f"{folder}/{file}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def make(point: str, folder: str, made: list[str]) -> None:
    """Make the group and those above it, each noted in `made` at once; tell v2's to pass their controllers on."""
    here, v2 = point, os.path.exists(f"{point}/cgroup.controllers")
    cpuset = not v2 and os.path.exists(f"{point}/cpuset.memory_migrate")
    with contextlib.suppress(FileNotFoundError, FileExistsError):
        if not v2 and not cpuset:  # mostly those above are there, and have nothing to be told
            os.mkdir(folder, 0o755)
            made.append(folder)
            return
    for name in filter(None, os.path.relpath(folder, point).split("/")):
        if name == ".":
            continue
        if v2:
            _pass_on(here)
        here = f"{here}/{name}"
        try:
            os.mkdir(here, 0o755)
            made.append(here)
        except FileExistsError:
            pass  # it is checked for processes by whom it matters to
        for file in ("cpuset.cpus", "cpuset.mems") if cpuset else ():
            if not (read(here, file) or "").strip():
                write(here, file, read(os.path.dirname(here), file) or "")


def _pass_on(group: str) -> None:
    """Best effort: a limit that then cannot be set is refused with `why_absent`."""
    there, passed = ((read(group, f"cgroup.{name}") or "").split() for name in ("controllers", "subtree_control"))
    missing = [f"+{name}" for name in _CONTROLLERS if name in there and name not in passed]
    for words in ([" ".join(missing)], missing) if missing else ():
        refused = 0
        for word in words:
            try:
                write(group, "cgroup.subtree_control", word)
            except OSError:
                refused += 1
        if not refused:
            return


def why_absent(point: str, folder: str, controller: str) -> str:
    """Why a v2 group lacks a controller, and what to do about it, in one line."""
    here = os.path.dirname(folder)
    while here != point and controller not in (read(here, "cgroup.controllers") or "").split():
        here = os.path.dirname(here)
    name = here.removeprefix(point) or "/"
    if controller not in (read(here, "cgroup.controllers") or "").split():
        return f"this machine's cgroup v2 tree has no {controller} controller"
    # The machine's root group, which has no type, may have processes and still pass controllers on.
    if os.path.exists(f"{here}/cgroup.type") and (read(here, "cgroup.procs") or "").strip():
        return f"the group {name} has processes of its own, so it passes no {controller} on: move them to a sub-group"
    return (
        f"the group {name} does not pass {controller} on to this user; as root: `systemctl edit user@.service`, "
        "[Service] Delegate=cpu cpuset io memory pids, then log in anew"
    )
