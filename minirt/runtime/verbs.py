"""The verbs of `minirt-oci`: each takes a parsed call, does one thing to one container, and gives the exit status.

Sources: runc(8) and its sub-pages. Taught in chapter 08.
"""

from __future__ import annotations

import json
import os
import signal as signals
import socket
import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any

from minirt.errors import InvalidInput, MinirtError, StartError
from minirt.runtime import oci, prepare
from minirt.runtime.config import load
from minirt.runtime.control import Place
from minirt.runtime.foreground import Foreground


class Call:
    """The options before the verb (`known`), those after it, and the words."""

    def __init__(self, known: dict[str, Any], options: dict[str, Any], words: list[str]) -> None:
        self.known, self.options, self.words = known, options, words

    @property
    def root(self) -> str:
        if "root" in self.known:
            return str(self.known["root"])
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        return f"{runtime}/minirt-oci" if runtime and not prepare.is_root() else "/run/minirt-oci"

    @cached_property
    def container(self) -> oci.Container:
        if not self.words:
            raise InvalidInput("the container's id is missing")
        return oci.Container(self.root, self.words[0], cache=os.path.join(self.root, ".seccomp"))

    @cached_property
    def console(self) -> socket.socket | None:
        """The console socket we were given."""
        path = self.options.get("console-socket")
        if path is None:
            return None
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with Place(os.path.dirname(path) or ".") as place:
                line.connect(f"{place}/{os.path.basename(path)}")
        except OSError as error:
            raise StartError(f"console socket {path}: {error.strerror or error}") from error
        return line

    @property
    def handed_on(self) -> int:
        """How many descriptors systemd gave us for the command, sd_listen_fds(3)."""
        ours = os.environ.get("LISTEN_PID", str(os.getpid())) == str(os.getpid())
        return int(os.environ.get("LISTEN_FDS", 0)) if ours else 0

    @property
    def preserve(self) -> int:
        """How many descriptors after stderr go on to the command: those asked for, and systemd's."""
        try:
            count = int(self.options.get("preserve-fds", 0))
        except ValueError:
            raise InvalidInput("--preserve-fds takes a number") from None
        for fd in range(3, 3 + count + self.handed_on):
            if not os.path.lexists(f"/proc/self/fd/{fd}"):
                raise InvalidInput(f"--preserve-fds: descriptor {fd} is not open")
        return count + self.handed_on

    def told(self, process: dict[str, Any]) -> None:
        """Tell the command, pid 1 there, of systemd's descriptors."""
        if self.handed_on:
            process["env"] = [*(process.get("env") or []), f"LISTEN_FDS={self.handed_on}", "LISTEN_PID=1"]

    def foreground(self, process: dict[str, Any]) -> Foreground:
        """Our streams for it; a terminal of its own where nobody else shows it."""
        tty = bool(process.get("terminal")) and self.console is None
        if tty and "detach" in self.options:
            raise InvalidInput("a terminal in the background needs --console-socket")
        return Foreground(tty)

    def place(self, shown: Foreground | None = None) -> dict[str, Any]:
        """What `create` and `exec` share: console, descriptors, pid file."""
        console = self.console.fileno() if self.console else shown.console if shown else None
        return {"console": console, "preserve": self.preserve, "announce": self._announce}

    def _announce(self, pid: int) -> None:
        """Write the pid file, as one step."""
        if path := self.options.get("pid-file"):
            temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}")
            with open(temporary, "w", encoding="ascii") as file:
                file.write(str(pid))
            os.rename(temporary, path)


def create(call: Call, shown: Foreground | None = None) -> int:
    config = load(call.options.get("bundle", "."), call.options.get("config"))
    call.told(config["process"])
    call.container.create(
        call.options.get("bundle", "."),
        config=config,
        pivots="no-pivot" not in call.options,
        keyring="no-new-keyring" not in call.options,
        systemd="systemd-cgroup" in call.known or call.known.get("cgroup-manager") == "systemd",
        **call.place(shown),
    )
    return 0


def run(call: Call) -> int:
    config = load(call.options.get("bundle", "."), call.options.get("config"))
    with call.foreground(config["process"]) as shown:
        create(call, shown)
        try:
            pid = call.container.pid
            call.container.start()
        except MinirtError:
            call.container.delete(force=True)
            raise
        if "detach" in call.options:
            return 0
        code = shown.wait(pid)
    if "keep" not in call.options:
        call.container.delete(force=True)
    return code


def start(call: Call) -> int:
    call.container.start()
    return 0


def state(call: Call) -> int:
    print(json.dumps(call.container.state(), indent=2))
    return 0


def kill(call: Call) -> int:
    call.container.kill(_signal(call.words[1] if len(call.words) > 1 else "TERM"), all="all" in call.options)
    return 0


def _signal(text: str) -> int:
    """From `9`, `KILL` or `SIGKILL`."""
    word = text.upper().removeprefix("SIG")
    if word.isdigit() and 0 < int(word) <= 64:
        return int(word)
    try:
        return int(signals.Signals[f"SIG{word}"])
    except KeyError:
        raise InvalidInput(f"unknown signal {text!r}") from None


def delete(call: Call) -> int:
    call.container.delete("force" in call.options)
    return 0


def pause(call: Call) -> int:
    call.container.pause()
    return 0


def resume(call: Call) -> int:
    call.container.resume()
    return 0


def exec(call: Call) -> int:
    if call.options.get("cgroup"):
        raise InvalidInput("exec: --cgroup is not supported")
    process = _process(call)
    with call.foreground(process) as shown:
        pid, _ = call.container.exec(process, even_paused="ignore-paused" in call.options, **call.place(shown))
        return 0 if "detach" in call.options else shown.wait(pid)


def _process(call: Call) -> dict[str, Any]:
    """The process to run: a file's, or the container's own with what the options say."""
    options = call.options
    if "process" in options:
        process = _read(options["process"])
    else:
        if len(call.words) < 2:
            raise InvalidInput("exec: a command is missing")
        process = call.container.config["process"] | {"args": call.words[1:], "terminal": False}
        for key in ("consoleSize", "oomScoreAdj"):
            process.pop(key, None)
    process["terminal"] = process.get("terminal", False) or "tty" in options
    process["env"] = [*(process.get("env") or []), *options.get("env", [])]
    process["cwd"] = options.get("cwd", process.get("cwd", "/"))
    if "user" in options:
        uid, _, gid = options["user"].partition(":")
        if not uid.isdigit() or (gid and not gid.isdigit()):
            raise InvalidInput(f"exec: user {options['user']!r} is not UID or UID:GID")
        process["user"] = {"uid": int(uid), "gid": int(gid or 0)}
    if groups := options.get("additional-gids"):
        process["user"] = {**process.get("user", {}), "additionalGids": [int(gid) for gid in groups]}
    if "apparmor" in options:
        process["apparmorProfile"] = options["apparmor"]
    if "process-label" in options:  # SELinux's, which is refused by its name
        process["selinuxLabel"] = options["process-label"]
    if "no-new-privs" in options:
        process["noNewPrivileges"] = True
    if names := options.get("cap"):
        sets = process.get("capabilities") or {}
        kinds = ("bounding", "effective", "permitted", "inheritable", "ambient")
        process["capabilities"] = {kind: [*(sets.get(kind) or []), *names] for kind in kinds}
    return process


def _read(path: str) -> dict[str, Any]:
    """The JSON object in a file, or on standard input (`-`)."""
    try:
        if path == "-":
            value = json.load(sys.stdin)
        else:
            with open(path, encoding="utf-8") as file:
                value = json.load(file)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{path}: an object is wanted")
    return value


def listing(call: Call) -> int:
    form = call.options.get("format", "table")
    if form not in ("table", "json"):
        raise InvalidInput("list: --format is table or json")
    rows = []
    for name in oci.containers(call.root):
        try:
            rows.append(oci.Container(call.root, name).state())
        except MinirtError:
            continue  # deleted meanwhile
    if "quiet" in call.options:
        print(*(row["id"] for row in rows), sep="\n", end="\n" if rows else "")
    elif form == "json":
        print(json.dumps(rows or None))
    else:
        columns = ("id", "pid", "status", "bundle", "created", "owner")
        table = [[name.upper() for name in columns], *([str(row[name]) for name in columns] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for line in table:
            print("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


def ps(call: Call) -> int:
    pids = call.container.processes()
    if call.options.get("format", "table") == "json":
        print(json.dumps(pids))
        return 0
    import subprocess

    result = subprocess.run(["ps", *(call.words[1:] or ["-ef"])], capture_output=True, text=True, check=False)
    head, *lines = result.stdout.splitlines() or [""]
    if result.returncode or "PID" not in head.split():
        raise InvalidInput(f"ps: {result.stderr.strip() or 'its table has no PID column'}")
    column = head.split().index("PID")
    print(head, *(line for line in lines if int(line.split()[column]) in pids), sep="\n")
    return 0


_LIMITS = {
    "memory": ("memory", "limit"), "memory-reservation": ("memory", "reservation"), "memory-swap": ("memory", "swap"),
    "cpu-share": ("cpu", "shares"), "cpu-shares": ("cpu", "shares"), "cpu-quota": ("cpu", "quota"),
    "cpu-period": ("cpu", "period"), "cpu-burst": ("cpu", "burst"), "cpu-idle": ("cpu", "idle"),
    "cpuset-cpus": ("cpu", "cpus"), "cpuset-mems": ("cpu", "mems"), "pids-limit": ("pids", "limit"),
}  # fmt: skip


def update(call: Call) -> int:
    resources = _read(call.options["resources"]) if "resources" in call.options else {}
    for name, (group, key) in _LIMITS.items():
        if name in call.options:
            try:
                value = call.options[name] if key in ("cpus", "mems") else int(call.options[name])
            except ValueError:
                raise InvalidInput(f"invalid value for {name}: {call.options[name]!r}") from None
            resources.setdefault(group, {})[key] = value
    call.container.update(resources)
    return 0


def features(call: Call) -> int:
    from minirt.runtime.features import features

    print(json.dumps(features(), indent=2))
    return 0


def spec(call: Call) -> int:
    from minirt.runtime.features import example

    path = os.path.join(call.options.get("bundle", "."), "config.json")
    try:
        with open(path, "x", encoding="utf-8") as file:
            json.dump(example("rootless" in call.options), file, indent=2)
    except FileExistsError:
        raise InvalidInput(f"{path} exists: remove it first") from None
    return 0


VERBS: dict[str, Callable[[Call], int]] = {
    "create": create, "run": run, "start": start, "state": state, "kill": kill, "delete": delete, "exec": exec,
    "list": listing, "ps": ps, "pause": pause, "resume": resume, "update": update, "features": features, "spec": spec,
}  # fmt: skip
