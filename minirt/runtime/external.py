"""Another OCI runtime in our place: runc, crun or any other, as a command with the standard's verbs.

The shim drives it as it drives ours (`oci.Container`): the same bundle, streams, terminal, answers. The command runs in
the shim's pid namespace, so what it starts dies with the shim like ours; it gets a /proc of its own, in a mount
namespace of its own, so that its pids and its /proc agree. Sources: runc(8), crun(1). Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from typing import Any

from minirt import linux
from minirt.errors import InvalidInput, MinirtError, StartError
from minirt.runtime import cgroups, mounts, prepare
from minirt.runtime.control import Place

_HYBRID = "/sys/fs/cgroup/unified"


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

    def create(
        self,
        bundle: str,
        *,
        config: dict[str, Any],
        streams: tuple[int | None, int, int],
        console: int | None,
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
        with open(os.path.join(self._bundle, "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file)
        with contextlib.suppress(MinirtError):  # where there is none there is nothing to count
            path = config["linux"].get("cgroupsPath") or ""
            self.cgroup = cgroups.locate(path, self.id, systemd=False, rootless=not prepare.is_root())
        return self._begin(["create", "--bundle", self._bundle], [], streams, console)

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
        """`create` or `exec`: the process gets the streams; its terminal comes over a console socket, and goes on."""
        with tempfile.TemporaryDirectory(dir=self._root) as folder, Place(folder) as place:
            pid_file, listener = os.path.join(folder, "pid"), None
            if console is not None:
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                listener.bind(f"{place}/tty")
                listener.listen()
                words = ["--console-socket", os.path.join(folder, "tty"), *words]
            names = dict(zip(("stdin", "stdout", "stderr"), streams, strict=True))
            given = {key: subprocess.DEVNULL if fd is None else fd for key, fd in names.items()}
            self._run(*verb, "--pid-file", pid_file, *words, self.id, **given)
            if listener is not None and console is not None:
                line, _ = listener.accept()
                data, ancillary, _, _ = line.recvmsg(4096, socket.CMSG_SPACE(4))
                with socket.socket(fileno=os.dup(console)) as onward:
                    onward.sendmsg([data], ancillary)
                line.close()
                listener.close()
            with open(pid_file, encoding="ascii") as file:
                pid = int(file.read())
        return pid, os.pidfd_open(pid)

    def _run(self, *words: str, **options: Any) -> None:
        """Run one verb. Raises StartError with what it wrote to its log."""
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        for stream in ("stdout", "stderr"):
            options.setdefault(stream, subprocess.DEVNULL)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._log)
        state = os.path.join(self._root, "state")
        command = [self._program, "--root", state, "--log", self._log, "--log-format", "json", *words]
        code = subprocess.run(command, preexec_fn=self._surround, check=False, **options).returncode
        if code:
            raise _failure(os.path.basename(self._program), code, self._log)

    def _surround(self) -> None:
        """In the child, before the runtime runs: a /proc of its pid namespace."""
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_SLAVE)
        mounts.attach(mounts.detached("proc", "proc", []), os.open("/proc", os.O_PATH | os.O_DIRECTORY))
        if os.path.basename(self._program) == "crun" and os.path.isdir(_HYBRID):
            with contextlib.suppress(OSError):  # crun refuses a machine with both versions, so it sees one of them
                linux.umount(_HYBRID, linux.MNT_DETACH)


def _failure(name: str, code: int, log: str) -> StartError:
    """The last error in a runtime's log, with the exit status docker gives for its words."""
    text = f"{name} ended with status {code}"
    with contextlib.suppress(OSError, ValueError), open(log, encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
        text = [entry["msg"] for entry in entries if entry.get("level") == "error"][-1]
    missing = any(words in text.lower() for words in ("not found in $path", "no such file or directory"))
    return StartError(f"{name}: {text}", 127 if missing else 126 if "permission denied" in text.lower() else 125)
