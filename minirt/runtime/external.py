"""Another OCI runtime in our place: runc, crun or any other, as a command with the standard's verbs.

The shim drives it as it drives ours (`oci.Container`): the same bundle, streams, terminal, answers. The command runs in
the shim's pid namespace, so what it starts dies with the shim like ours; it gets a /proc of its own, in a mount
namespace of its own, so that its pids and its /proc agree. Sources: runc(8), crun(1). Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

from minirt import linux
from minirt.errors import InvalidInput, MinirtError, StartError
from minirt.runtime import cgroups, mounts, prepare, state
from minirt.runtime.control import Place

_HYBRID = "/sys/fs/cgroup/unified"
_CONSOLE = "tty"


def find(name: str) -> str:
    """The program that `--runtime NAME` means. Raises InvalidInput in docker's words."""
    path = shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")
    if path is None:
        raise InvalidInput(f"unknown or invalid runtime name: {name[:80]}: no such program is installed")
    return os.path.abspath(path)


class Container:
    """The container `id`, with the runtime `program`; bundle and state go into `root`."""

    def __init__(self, program: str, root: str, id: str) -> None:
        self._program, self._root, self.id = program, root, id
        self._log, self._bundle = os.path.join(root, "log"), os.path.join(root, "bundle")
        self.cgroup: cgroups.Cgroup | None = None
        self._pids: set[int] = set()  # of the processes it has begun, in our numbers

    def create(
        self,
        bundle: str,
        *,
        config: dict[str, Any],
        streams: tuple[int | None, int, int],
        console: int | None,
        peers: dict[int, int] | None = None,
    ) -> tuple[int, int]:
        """Like ours. The other runtime's bundle is a copy with full paths, without the user namespace we are in."""
        os.makedirs(self._bundle, mode=0o700, exist_ok=True)
        config = json.loads(json.dumps(config))
        config["root"]["path"] = os.path.join(bundle, config["root"]["path"])
        for entry in config.get("mounts") or ():
            if mounts.is_bind(entry):
                entry["source"] = os.path.join(bundle, entry["source"])
        entered = [entry for entry in config["linux"]["namespaces"] if entry.get("path") == "/proc/self/ns/user"]
        if entered:
            config["linux"]["namespaces"].remove(entered[0])
            for key in ("uidMappings", "gidMappings"):
                config["linux"].pop(key, None)
        with contextlib.suppress(MinirtError):  # where there is none there is nothing to count
            path = config["linux"].get("cgroupsPath") or ""
            self.cgroup = cgroups.locate(path, self.id, systemd=False, rootless=not prepare.is_root())
        with self._brought(config, {**(peers or {}), **prepare.elsewhere(config)}):
            with open(os.path.join(self._bundle, "config.json"), "w", encoding="utf-8") as file:
                json.dump(config, file)
            begun = self._begin(["create", "--bundle", self._bundle], [], streams, console)
        if self.cgroup:  # crun has seen those of one version only
            there = {name: folder for name, folder in self.cgroup.groups.items() if os.path.isdir(folder)}
            self.cgroup = cgroups.Cgroup(there, self.cgroup.points, self.cgroup.rootless) if there else None
        return begun

    @contextlib.contextmanager
    def _brought(self, config: dict[str, Any], trees: dict[int, int]) -> Iterator[None]:
        """What no path leads to, mounted here meanwhile: another container's, and what stays the machine's peer."""
        places = []
        try:
            for number, tree in trees.items():
                places.append(tempfile.mkdtemp(dir=self._bundle))
                if not stat.S_ISDIR(os.fstat(tree).st_mode):
                    os.rmdir(places[-1])
                    open(places[-1], "x").close()
                mounts.attach(os.dup(tree), os.open(places[-1], os.O_PATH))
                config["mounts"][number]["source"] = places[-1]
            yield
        finally:
            for place in places:
                with contextlib.suppress(OSError):  # not mounted yet
                    linux.umount(place, linux.MNT_DETACH)
                (os.rmdir if os.path.isdir(place) else os.unlink)(place)

    def exec(
        self, process: dict[str, Any], *, streams: tuple[int | None, int, int], console: int | None
    ) -> tuple[int, int]:
        with tempfile.NamedTemporaryFile("w", dir=self._root, encoding="utf-8") as file:
            json.dump(process, file)
            file.flush()
            return self._begin(["exec", "--detach", "--process", file.name], [], streams, console)

    def start(self) -> None:
        self._run("start", self.id)

    def pause(self) -> None:
        self._run("pause", self.id)

    def resume(self) -> None:
        self._run("resume", self.id)

    def update(self, resources: dict[str, Any]) -> None:
        self._run("update", "--resources", "-", self.id, input=json.dumps(resources).encode())

    def delete(self, force: bool = False) -> None:
        self._run("delete", *(["--force"] if force else []), self.id)
        shutil.rmtree(self._root, ignore_errors=True)

    def _begin(
        self, verb: list[str], words: list[str], streams: tuple[int | None, int, int], console: int | None
    ) -> tuple[int, int]:
        """`create` or `exec`: the process gets the streams; its terminal comes over a console socket, and goes on.

        The runtime runs in the bundle's folder, where the socket has a name short enough for a socket's, unix(7).
        """
        with tempfile.TemporaryDirectory(dir=self._root) as folder, Place(self._bundle) as place:
            pid_file, listener = os.path.join(folder, "pid"), None
            if console is not None:
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                listener.bind(f"{place}/{_CONSOLE}")
                listener.listen()
                words = ["--console-socket", _CONSOLE, *words]
            names = dict(zip(("stdin", "stdout", "stderr"), streams, strict=True))
            given = {key: subprocess.DEVNULL if fd is None else fd for key, fd in names.items()}
            # In a shared pid namespace orphans go to its own init; what it starts, an orphan at its end, is to be ours.
            linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
            try:
                self._run(*verb, "--pid-file", pid_file, *words, self.id, cwd=self._bundle, **given)
                if listener is not None and console is not None:
                    self._hand_on(listener, console)
            except StartError:
                self._bury()
                raise
            finally:
                linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 0)
                if listener is not None:
                    listener.close()
                    os.unlink(f"{place}/{_CONSOLE}")
            with open(pid_file, encoding="ascii") as file:
                pid = int(file.read())
        self._pids.add(pid)
        return pid, os.pidfd_open(pid)

    def _hand_on(self, listener: socket.socket, console: int) -> None:
        """Its terminal's master, from its console socket to ours."""
        line, _ = listener.accept()
        data, ancillary, _, _ = line.recvmsg(4096, socket.CMSG_SPACE(4))
        with socket.socket(fileno=os.dup(console)) as onward:
            onward.sendmsg([data], ancillary)
        line.close()

    def _bury(self) -> None:
        """Reap what crun left of an `exec` that failed: it would keep the container's pid namespace from ending."""
        own = state.numbers("self")
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                numbers = state.numbers(entry)
                # Ours by its parent, in a pid namespace below, and none that we were told of.
                if state.parent(entry) == own[0] and len(numbers) > len(own):
                    pid = numbers[len(own) - 1]
                    if pid not in self._pids:
                        os.kill(pid, signal.SIGKILL)
                        os.waitpid(pid, 0)

    def _run(self, *words: str, **options: Any) -> None:
        """Run one verb. Raises StartError with what it wrote to its log."""
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        for stream in ("stdout", "stderr"):
            options.setdefault(stream, subprocess.DEVNULL)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._log)
        command = [self._program, "--root", os.path.join(self._root, "state")]
        command += ["--log", self._log, "--log-format", "json", *words]
        code = subprocess.run(command, preexec_fn=self._surround, check=False, **options).returncode
        if code:
            raise _failure(os.path.basename(self._program), code, self._log)

    def _surround(self) -> None:
        """In the child, before the runtime runs: a /proc of its pid namespace, where it is not the machine's."""
        linux.unshare(linux.CLONE_NEWNS)  # of the shim's, where nothing is shared but what is to be
        if os.readlink("/proc/self") != str(os.getpid()):
            mounts.attach(mounts.detached("proc", "proc", []), os.open("/proc", os.O_PATH | os.O_DIRECTORY))
        if os.path.basename(self._program) == "crun" and os.path.ismount(_HYBRID):
            # crun refuses a machine with both versions, so it sees one of them; a plain user may cover the other only
            mounts.attach(mounts.detached("tmpfs", "tmpfs", []), os.open(_HYBRID, os.O_PATH | os.O_DIRECTORY))


def _failure(name: str, code: int, log: str) -> StartError:
    """The last error in a runtime's log, with the exit status docker gives for its words."""
    text = f"{name} ended with status {code}"
    with contextlib.suppress(OSError, ValueError), open(log, encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
        text = [entry["msg"] for entry in entries if entry.get("level") == "error"][-1]
    for number in (errno.ENOENT, errno.EACCES):  # docker's commands read them as Go spells them, crun is in C
        text = text.replace(os.strerror(number), os.strerror(number).lower())
    missing = "not found in $PATH" in text or "no such file or directory" in text
    return StartError(f"{name}: {text}", 127 if missing else 126 if "permission denied" in text else 125)
