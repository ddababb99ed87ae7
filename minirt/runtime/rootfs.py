"""The container's file system: the image's layers, read-only and shared, under a writable layer of its own.

rootfs.json says how: `overlay` (lowers top first, upper, work), the same by `fuse-overlayfs` where the kernel refuses
(fuse.py), or `directory`, a copy, where neither works.
A new kernel's overlay takes its layers one by one (fsconfig `lowerdir+`); for an older one (Debian 12's) all of them
stand in one option page of 4 KiB, so they go by short links in a folder of their own, which carries 127 of them and any
character in a path.
Where no device rules can be set, `nodev` makes device nodes in it open nothing.
Layers in another user's store (`held`) are locked for as long as this process lives, so that their owner leaves them.
Sources: kernel Documentation/filesystems/overlayfs.rst, fsopen(2). Taught in chapter 06.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Any

from minirt import linux
from minirt.errors import StartError
from minirt.runtime import mounts
from minirt.userns import IdMapping

_SAME = IdMapping()


def mount(folder: str, rootfs: dict[str, Any], ids: IdMapping = _SAME) -> None:
    """Mount what rootfs.json describes on `folder/rootfs`, in this process' mount namespace. Raises StartError.

    Where it says `idmap`, files belong to `ids`: to the root of that user namespace what is root's on disk.
    """
    for layer in rootfs.get("held", ()):
        _hold(layer)
    place = os.path.join(folder, "rootfs")
    target = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if rootfs["kind"] == "directory":
        if rootfs.get("idmap"):
            raise StartError("a user namespace for root needs overlay, which does not work here: see `minirt doctor`")
        flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE
        tree = linux.open_tree(-100, rootfs["path"], flags)
        linux.mount_setattr(tree, "", linux.AT_EMPTY_PATH, _attributes(rootfs))
        mounts.attach(tree, target)
        return
    if rootfs["kind"] == "fuse-overlayfs":
        from minirt.runtime import fuse

        if rootfs.get("idmap"):
            raise StartError("a user namespace for root needs overlay, which does not work here: see `minirt doctor`")
        fuse.mount(folder, rootfs, _attributes(rootfs))
        os.close(target)
        return
    if rootfs.get("idmap"):
        rootfs = _with_ids(folder, rootfs, ids)
    try:
        mounts.attach(_overlay(rootfs), target)
    except _NoSuchOption:
        _overlay_by_links(folder, place, rootfs)
        os.close(target)


def _hold(layer: str) -> None:
    """Lock the folder of a layer that its owner may remove. Raises StartError where that has happened."""
    gone = StartError(
        f"layer {os.path.basename(layer)[:12]} of its image was removed from the additional store it is in ({layer}): "
        "pull the image again and make a new container of it"
    )
    try:
        fd = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)  # to be closed by our end
    except (FileNotFoundError, NotADirectoryError) as error:
        raise gone from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:  # its owner is removing it
        raise gone from error
    except OSError:  # a file system without locks: nothing holds its owner back
        return
    if not os.path.exists(layer) or not os.path.samestat(os.fstat(fd), os.stat(layer)):
        raise gone


def _with_ids(folder: str, rootfs: dict[str, Any], ids: IdMapping) -> dict[str, Any]:
    """The same layers, seen through a mount that maps ids; what is written has the machine's numbers anyway.

    Nothing is copied: layers stay shared by all containers. Source: mount_setattr(2) MOUNT_ATTR_IDMAP.
    """
    from minirt.runtime import namespaces

    sources = list(dict.fromkeys(map(os.path.dirname, rootfs["lowers"])))  # of this store, and of additional ones
    places = {source: os.path.join(folder, f"mapped{number or ''}") for number, source in enumerate(sources)}
    top = os.stat(rootfs["upper"])
    if top.st_uid < ids.uids[0][1]:  # the first start: the top folder belongs to the container's root, too
        os.chown(rootfs["upper"], ids.uids[0][1] + top.st_uid, ids.gids[0][1] + top.st_gid)
    users = namespaces.user_namespace(ids)
    try:
        for source, place in places.items():
            os.makedirs(place, mode=0o700, exist_ok=True)
            tree = linux.open_tree(-100, source, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)
            linux.mount_setattr(tree, "", linux.AT_EMPTY_PATH, linux.MOUNT_ATTR_IDMAP, userns_fd=users)
            mounts.attach(tree, os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        raise StartError(f"this kernel or file system cannot map the ids of mounts: {error.strerror}") from error
    finally:
        os.close(users)
    lowers = [os.path.join(places[os.path.dirname(lower)], os.path.basename(lower)) for lower in rootfs["lowers"]]
    return {**rootfs, "lowers": lowers}


def _attributes(rootfs: dict[str, Any]) -> int:
    return linux.MOUNT_ATTR_NODEV if rootfs.get("nodev") else 0


class _NoSuchOption(Exception):
    """This kernel's overlay does not know `lowerdir+`."""


def _overlay(rootfs: dict[str, Any]) -> int:
    fd = linux.fsopen("overlay")
    try:
        _sees_options(fd)
        try:
            linux.fsconfig_string(fd, "lowerdir+", rootfs["lowers"][0])
        except OSError as error:
            if error.errno == errno.EINVAL and os.path.isdir(rootfs["lowers"][0]):
                raise _NoSuchOption from error
            raise
        for lower in rootfs["lowers"][1:]:
            linux.fsconfig_string(fd, "lowerdir+", lower)
        linux.fsconfig_string(fd, "source", "overlay")
        linux.fsconfig_string(fd, "upperdir", rootfs["upper"])
        linux.fsconfig_string(fd, "workdir", rootfs["work"])
        if rootfs["userxattr"]:
            linux.fsconfig_flag(fd, "userxattr")
        linux.fsconfig_create(fd)
        return linux.fsmount(fd, _attributes(rootfs))
    except OSError as error:
        raise StartError(f"cannot mount the overlay: {mounts.explain(fd) or error.strerror}") from error
    finally:
        os.close(fd)


def _sees_options(fd: int) -> None:
    """Raises _NoSuchOption before kernel 6.5: overlay has its options read when they are all there, so none is refused
    before that, also not one without its value; and then the refusal is written to the machine's log."""
    try:
        linux.fsconfig_flag(fd, "lowerdir+")
    except OSError:
        mounts.explain(fd)  # forget what it said about that
    else:
        raise _NoSuchOption


def _overlay_by_links(folder: str, place: str, rootfs: dict[str, Any]) -> None:
    links = os.path.join(folder, "lowers")
    os.makedirs(links, mode=0o700, exist_ok=True)
    for name, path in [
        ("u", rootfs["upper"]),
        ("w", rootfs["work"]),
        *((str(n), p) for n, p in enumerate(rootfs["lowers"])),
    ]:
        if not os.path.islink(os.path.join(links, name)):
            os.symlink(path, os.path.join(links, name))
    data = "lowerdir=" + ":".join(str(number) for number in range(len(rootfs["lowers"]))) + ",upperdir=u,workdir=w"
    os.chdir(links)
    try:
        flags = linux.MS_NODEV if _attributes(rootfs) else 0
        linux.mount("overlay", place, "overlay", flags, data + (",userxattr" if rootfs["userxattr"] else ""))
    except OSError as error:
        raise StartError(f"cannot mount the overlay: {error.strerror}") from error
    finally:
        os.chdir("/")
