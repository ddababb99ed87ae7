"""Container init: pid 1, from its birth in the namespaces to the image's command, driven by config.json alone.

`STEPS` is the whole way, in order. Until `pivot` the machine's files are in sight (sources of bind mounts), afterwards
only the container's. When all is set up it stands still: the container is *created*. It waits on a socket in the
runtime's folder for *start*, and becomes the command; that socket closing by itself says that it has.
Sources: runtime-spec runtime.md "Lifecycle", pivot_root(2). Taught in chapter 07.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from typing import Any

from minirt import linux
from minirt.errors import InvalidInput, StartError
from minirt.runtime import devices, mounts, terminal
from minirt.runtime.namespaces import Sync, seal
from minirt.runtime.process import Process

START = b"start"
_PROPAGATION = {
    "shared": linux.MS_SHARED, "slave": linux.MS_SLAVE, "private": linux.MS_PRIVATE, "unbindable": linux.MS_UNBINDABLE,
}  # fmt: skip


class Init(Process):
    """`gate` is the listening socket that `start` connects to; `sources` are bind mounts that the parent opened where
    we may not reach them ourselves: detached, by their place in `mounts`, -1 for the root file system."""

    STEPS = (
        "session", "names", "root_file_system", "mounts", "devices", "runtime_hooks", "settings", "container_hooks",
        "working_directory", "masks", "pivot", "streams", "console", "label", "limits", "privileges", "wait", "command",
    )  # fmt: skip

    def __init__(
        self, config: dict[str, Any], bundle: str, gate: socket.socket, sources: dict[int, int], **options: Any
    ) -> None:
        self.pivots = options.pop("pivots", True)
        super().__init__(config["process"], **options)
        self.config, self.linux, self.bundle = config, config["linux"], bundle
        self.gate, self.sources = gate, sources
        self.kinds = {entry["type"] for entry in self.linux["namespaces"]}
        self.made = {entry["type"] for entry in self.linux["namespaces"] if not entry.get("path")}
        self.state: dict[str, Any] = {}
        self.join: Callable[[], None] | None = None  # its control groups, where we are not in them yet
        if config.get("hooks"):
            from minirt.runtime import hooks  # now: later nothing can be loaded any more

            self.hooks = hooks

    def names(self) -> None:
        """The names and the loopback device of the namespaces."""
        if "uts" in self.made or self.config.get("hostname"):
            linux.sethostname(self.config.get("hostname") or "")
        if self.config.get("domainname"):
            linux.setdomainname(self.config["domainname"])
        if "network" in self.made:
            _raise_loopback()

    def settings(self) -> None:
        """The kernel's, of the namespaces; after the parent has connected the network: what is asked for counts."""
        for key, value in (self.linux.get("sysctl") or {}).items():
            path = "/proc/sys/" + (key if "/" in key else key.replace(".", "/"))
            try:
                if ".." in path.split("/"):
                    raise FileNotFoundError(2, "no such setting")
                with open(path, "w", encoding="utf-8") as file:
                    file.write(value)
            except OSError as error:
                raise StartError(f"sysctl {key}={value}: {error.strerror}") from error

    def root_file_system(self) -> None:
        """A mount of its own for the root, which is what pivot_root(2) takes; nothing of ours reaches the machine's.

        A volume that is to show the machine what is mounted in it is opened before our copies of the machine's mounts
        only follow: it alone stays the machine's peer. As peers, all would leave the machine with us at the end.
        """
        wish = self.linux.get("rootfsPropagation") or ""
        try:
            self.propagation = _PROPAGATION[wish.removeprefix("r")] if wish else 0
        except KeyError:
            raise InvalidInput(f"rootfsPropagation {wish!r} is not one of {', '.join(_PROPAGATION)}") from None
        entries = self.config.get("mounts") or () if self.propagation == linux.MS_SHARED else ()
        for number, entry in enumerate(entries):
            if mounts.is_bind(entry) and mounts.is_shared(entry) and number not in self.sources:
                self.sources[number] = bind_source(entry, self.bundle, peers=True)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_SLAVE)
        tree = self.sources.get(-1)
        if tree is None:
            tree = open_source(os.path.join(self.bundle, self.config["root"]["path"]))
        top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        linux.move_mount(tree, top)  # on top of what is "/" now: no path leads there, only its descriptor
        linux.mount_setattr(tree, "", linux.AT_EMPTY_PATH, propagation=linux.MS_PRIVATE)
        os.close(top)
        self.root = mounts.Root(tree)

    def mounts(self) -> None:
        os.umask(0)
        for number, entry in enumerate(self.config.get("mounts") or ()):
            if entry.get("type") in ("cgroup", "cgroup2") or "tmpcopyup" in (entry.get("options") or ()):
                self.groups()
            try:
                mounts.mount(self.root, entry, self.bundle, self.sources.get(number), "cgroup" in self.kinds)
            except OSError as error:
                raise StartError(f"mount {entry['destination']}: {error.strerror}") from error
        self.groups()

    def groups(self) -> None:
        """Enter them, as late as that is possible: before they are shown, and before memory is filled in their name.

        The parent makes them meanwhile.
        """
        if self.join is None:
            return
        self.confirm()
        self.join()
        self.join = None
        if "cgroup" in self.made:  # it shows the groups of its maker
            linux.unshare(linux.CLONE_NEWCGROUP)

    def devices(self) -> None:
        """What every container has on its own /dev, and what this one is given besides."""
        wanted = self.linux.get("devices") or []
        borrowed = "user" in self.kinds or not _may_make_nodes()
        if any(mounts.is_own_dev(entry) for entry in self.config.get("mounts") or ()):
            devices.fill(self.root, borrowed)
        devices.add(self.root, wanted, borrowed)

    def runtime_hooks(self) -> None:
        """The parent runs those that act on us from outside, and says what our state is."""
        self.line.send({"set_up": True})
        self.state = self.line.receive() or {}
        if not self.state:
            os._exit(0)

    def container_hooks(self) -> None:
        if self.config.get("hooks"):
            self.hooks.run(self.config, "createContainer", self.state)

    def working_directory(self) -> None:
        """Made where it is missing, as docker does; held as a descriptor until we are inside."""
        path = self.process["cwd"]
        try:
            self.cwd = self.root.make(path)
        except OSError as error:
            raise StartError(f"working directory {path}: {error.strerror}") from error
        if not stat.S_ISDIR(os.fstat(self.cwd).st_mode):
            raise StartError(f"Cannot mkdir: {path} is not a directory")
        self.resolve(self.root)

    def masks(self) -> None:
        for path in self.linux.get("readonlyPaths") or ():
            mounts.read_only(self.root, path)
        for path in self.linux.get("maskedPaths") or ():
            mounts.mask(self.root, path)
        if self.config["root"].get("readonly"):
            linux.mount_setattr(self.root.fd, "", linux.AT_EMPTY_PATH, linux.MOUNT_ATTR_RDONLY)

    def pivot(self) -> None:
        """Make the rootfs `/` and let go of the machine's file system; then see that we really stand inside."""
        seal()
        os.fchdir(self.root.fd)
        if self.pivots:
            linux.pivot_root(".", ".")
            linux.umount(".", linux.MNT_DETACH)
        else:  # a ramdisk cannot be pivoted away: it stays below, where no path leads
            os.chroot(".")
        os.chdir("/")
        if self.propagation:
            linux.mount(None, "/", None, self.propagation)
        os.close(self.root.fd)

    def console(self) -> None:
        if self.process.get("terminal"):
            terminal.show_console()

    def wait(self) -> None:
        """Stand still until `start` comes through the gate. Without the parent's word that we exist, end."""
        self.confirm(ready=True)
        self.line.close()
        while True:
            connection, _ = self.gate.accept()
            if connection.recv(len(START)) == START:
                break
            connection.close()
        self.gate.close()
        self.line = Sync(connection)
        if self.config.get("hooks"):
            # They are the container's own programs: under its filter, which we load last of all.
            self.hooks.run(self.config, "startContainer", self.state, self.filter.load if self.filter else None)


def open_source(path: str, recursive: bool = True, peers: bool = False) -> int:
    """A detached copy of what is mounted at `path`, which follows the machine's or (`peers`) is one with it."""
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | (linux.AT_RECURSIVE if recursive else 0)
    tree = linux.open_tree(-100, path, flags)
    if not peers:
        linux.mount_setattr(tree, "", linux.AT_EMPTY_PATH | linux.AT_RECURSIVE, propagation=linux.MS_SLAVE)
    return tree


def bind_source(entry: dict[str, Any], bundle: str, peers: bool = False) -> int:
    """The source of a bind mount, opened. Raises StartError."""
    place = os.path.join(bundle, entry.get("source") or "")
    try:
        return open_source(place, "bind" not in (entry.get("options") or ()), peers)
    except OSError as error:
        raise StartError(f"mount {entry['destination']}: {place}: {error.strerror}") from error


def _may_make_nodes() -> bool:
    """Root in somebody else's user namespace may not, mknod(2)."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def _raise_loopback() -> None:
    """A new network namespace has a loopback device that is down, netdevice(7)."""
    import fcntl

    get_flags, set_flags, up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, get_flags, b"lo".ljust(40, b"\0"))
        flags = int.from_bytes(request[16:18], "little") | up
        fcntl.ioctl(any_socket, set_flags, request[:16] + flags.to_bytes(2, "little") + request[18:])
