"""A container's control group: what it may use (resources), what it has used, and which processes it is.

`locate` names the group, `Cgroup.create` makes it in every mounted tree or nowhere, `fork` has a process born in its v2
group and tells what puts it into the others, `delete` removes it. Nothing is kept but names, so any later process goes
on from `to_json`; write that down before `create`, and a crash in between leaves nothing that `delete` would not find.
Modules: group (the verbs), hierarchy (the mounted trees), resources (the spec's words as file contents), devices
(rules, eBPF), systemd (groups as scopes), stats. Sources: cgroups(7), cgroup-v2.rst. Taught in chapter 08.
"""

from __future__ import annotations

import os

from minirt.errors import InvalidInput, Unsupported
from minirt.runtime.cgroups.group import Cgroup
from minirt.runtime.cgroups.hierarchy import mounted, only_v2, places
from minirt.runtime.cgroups.resources import check

__all__ = ["Cgroup", "check", "locate", "mounted"]


def locate(cgroups_path: str, container_id: str, *, systemd: bool, rootless: bool) -> Cgroup:
    """The group that runtime-spec `cgroupsPath` means; nothing is made.

    An absolute path counts from the trees' roots, a relative one from our own group (v2: from the one above, since
    ours has us in it), with `systemd` it is `slice:prefix:name`. Empty: `/minirt/ID` for root; for a plain user beside
    our own group where that was delegated, else a scope of the user's systemd. Raises Unsupported where we may not
    write, InvalidInput.
    """
    trees = mounted()
    if not trees:
        raise Unsupported("no cgroups are mounted (/sys/fs/cgroup): no limits, no pause, no figures")
    if systemd:
        words = cgroups_path.split(":") if cgroups_path else ["", "minirt", container_id]
        if len(words) != 3 or not words[2] or "/" in cgroups_path:
            raise InvalidInput(f"cgroupsPath {cgroups_path!r} is not slice:prefix:name, as systemd wants it")
        return _scope(words[0], words[1], words[2], rootless)
    if ".." in cgroups_path.split("/") or "\0" in cgroups_path:
        raise InvalidInput(f"cgroupsPath {cgroups_path!r} leads out of the tree of groups")
    if not cgroups_path and rootless and only_v2(trees):
        tree = next(tree for tree in trees if "" in tree.controllers)
        beside = tree.place(os.path.dirname(tree.own or "/"))
        from minirt.runtime.cgroups import systemd as manager

        # What the user may write in is the user's, but for slices: those the user's systemd keeps for itself.
        if beside.endswith(".slice") or not _writable(beside):
            try:
                manager.address(rootless)
            except Unsupported as error:
                if not _writable(beside):
                    raise Unsupported(f"no group of this user's to make groups in, and {error}") from error
            else:
                return _scope("", "minirt", container_id, rootless)
        cgroups_path = f"minirt-{container_id}"
    path = cgroups_path or f"/minirt/{container_id}"
    group = Cgroup(*places(trees, path), rootless=rootless)
    for point, folder in group.folders():
        if not (os.geteuid() == 0 and os.access(point, os.W_OK)) and not _writable(_nearest(folder, point)):
            reason = "it is mounted read-only" if _read_only(point) else "only root may write there"
            raise Unsupported(f"no limits, no pause, no figures: cannot make {folder}: {reason}")
    return group


def _scope(slice: str, prefix: str, name: str, rootless: bool) -> Cgroup:
    from minirt.runtime.cgroups import systemd as manager

    unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    home = slice or ("user.slice" if rootless else "system.slice")
    return Cgroup({}, {}, rootless, unit, home, manager.address(rootless))


def _nearest(folder: str, point: str) -> str:
    while folder != point and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _writable(folder: str) -> bool:
    return os.access(folder, os.W_OK) and os.access(f"{folder}/cgroup.procs", os.W_OK)


def _read_only(folder: str) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
