"""Processes in running containers: exec, attach, resize, top.

An exec is two files under the container's `exec/`: what was asked (`ID.json`, ours) and how it goes (`ID.state`, the
shim's), so that whoever asks later is answered, whoever started it. Streams are descriptors, handed to the shim.
Sources: Engine API 1.44 reference "Exec", "ContainerAttach", "ContainerTop"; moby daemon/exec.go, daemon/top_unix.go.
Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirt import trace
from minirt.engine import request, states
from minirt.engine.attachments import close, copied
from minirt.engine.containers import Containers
from minirt.engine.images import epoch
from minirt.errors import Conflict, InvalidInput, MinirtError, NotFound, StartError
from minirt.runtime import container as runtime
from minirt.runtime import state as records
from minirt.runtime.capabilities import NAMES
from minirt.runtime.container import Streams
from minirt.runtime.control import Connection
from minirt.runtime.spec import environment
from minirt.store.files import write_atomic

if TYPE_CHECKING:
    from minirt.engine.answers.containers import ContainerTopResponse, ExecInspectResponse
    from minirt.engine.answers.system import IDResponse

_KEPT = 300  # seconds an ended exec can still be inspected, as docker's
_KILLED = 128 + 9


class Processes:
    """The verbs on processes, over the containers."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers
        self._starting: set[str] = set()  # execs
        self._lock = threading.Lock()

    def _running(self, name: str) -> tuple[dict[str, Any], Path, runtime.Status]:
        """A running (perhaps paused) container. Raises NotFound, Conflict."""
        record = self._containers.find(name)
        folder = self._containers.folder(record)
        status = runtime.status(folder)
        states.must_run(record["Id"], status)
        return record, folder, status

    # exec

    def create_exec(self, name: str, body: dict[str, Any]) -> IDResponse:
        """POST /containers/{id}/exec. Raises NotFound, Conflict, InvalidInput."""
        record, folder, status = self._running(name)
        if status.state == "paused":
            raise Conflict(f"Container {name} is paused, unpause the container before exec")
        body = request.spelled(body, request.EXEC | request.COMMAND)
        request.shaped(body, request.EXEC)
        command = request.command(body.get("Cmd"), "Cmd")
        if not command:
            raise InvalidInput("No exec command specified")
        place = folder / "exec"
        place.mkdir(exist_ok=True)
        for path in place.glob("*.json"):
            asked, known = records.read_json(str(path)), records.read_json(str(path.with_suffix(".state")))
            over = known and known["finished"] and time.time() - epoch(known["finished"]) > _KEPT
            if over or not asked or asked["started"] != status.started:
                path.with_suffix(".state").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        identity = secrets.token_hex(32)
        asked = body | {"Cmd": command, "Id": identity, "started": status.started}
        write_atomic(place / f"{identity}.json", json.dumps(asked).encode())
        self._containers.tell(record, _action("exec_create", command), execID=identity)
        return {"Id": identity}

    def start_exec(
        self, identity: str, streams: Streams = (None, None, None), size: tuple[int, int] | None = None
    ) -> Connection:
        """POST /exec/{id}/start; `size` (width, height) of its terminal.

        The connection tells `{"exit_code"}` at the end; closing it detaches. Raises StartError, Conflict, NotFound.
        """
        with self._lock:
            folder, asked, known = self._exec(identity)
            if known is not None or identity in self._starting:
                raise Conflict(f"Error: Exec command {identity} has already run")
            self._starting.add(identity)
        try:
            return self._start_exec(identity, folder, asked, streams, size)
        finally:
            self._starting.discard(identity)

    def _start_exec(
        self, identity: str, folder: Path, asked: dict[str, Any], streams: Streams, size: tuple[int, int] | None
    ) -> Connection:
        record, _, status = self._running(folder.name)
        if status.state == "paused":
            raise Conflict(f"Container {record['Id']} is paused, unpause the container before exec")
        process = self._process(record, folder, asked)
        height, width = asked.get("ConsoleSize") or (0, 0)
        size = size or ((width, height) if width and height else None)
        if process["terminal"] and size:
            process["consoleSize"] = {"width": size[0], "height": size[1]}
        self._containers.tell(
            record, _action("exec_start", asked["Cmd"]), execID=identity
        )  # as docker, if it fails too
        try:
            connection, pid = runtime.exec(folder, identity, process, asked.get("User") or "", streams)
        except StartError as error:
            error.exit_code = 127 if error.exit_code == 127 else 126
            end = {"pid": 0, "exit_code": error.exit_code, "finished": records.now()}
            records.write_json(str(folder / "exec" / f"{identity}.state"), end)
            raise
        trace.publish("container", "exec", id=record["Id"], name=record["Name"], pid=pid, command=asked["Cmd"])
        if monitor := self._containers.monitor:
            monitor.watch_exec(record["Id"], identity)
        return connection

    def _process(self, record: dict[str, Any], folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
        """What is laid over the container's own process: docker's environment, and no terminal but its own."""
        bundle = records.read_json(str(folder / "config.json")) or {}
        own = bundle["process"]
        config, terminal = record["Config"], bool(asked.get("Tty"))
        process: dict[str, Any] = {"args": asked["Cmd"], "terminal": terminal}
        name = bundle.get("hostname") or config["Hostname"]  # of whose network it shares
        process["env"] = _replaced(environment(name, (), config["Env"], terminal), asked.get("Env") or ())
        if asked.get("WorkingDir"):
            process["cwd"] = asked["WorkingDir"]
        if asked.get("Privileged"):
            process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), list(NAMES))
            if own.get("apparmorProfile"):
                process["apparmorProfile"] = "unconfined"
        return process

    def _exec(self, identity: str) -> tuple[Path, dict[str, Any], dict[str, Any] | None]:
        """The container's folder, what was asked, and how it goes (None: not started). Raises NotFound."""
        if found := self._find_exec(identity):
            return found
        raise NotFound(f"No such exec instance: {identity[:64]}")

    def _find_exec(self, identity: str) -> tuple[Path, dict[str, Any], dict[str, Any] | None] | None:
        if re.fullmatch("[0-9a-f]{64}", identity):
            for folder in self._containers.folders():
                asked = records.read_json(str(folder / "exec" / f"{identity}.json"))
                # An exec is of one life of its container.
                if asked and asked["started"] == runtime.status(folder).started:
                    return folder, asked, records.read_json(str(folder / "exec" / f"{identity}.state"))
        return None

    def inspect_exec(self, identity: str) -> ExecInspectResponse:
        """GET /exec/{id}/json."""
        folder, asked, known = self._exec(identity)
        code = known["exit_code"] if known else None
        if known and code is None and not runtime.status(folder).runs:
            code = _KILLED  # it went down with its container
        return {
            "ID": identity,
            "Running": known is not None and code is None,
            "ExitCode": code,
            "ProcessConfig": {
                "tty": bool(asked.get("Tty")),
                "entrypoint": asked["Cmd"][0],
                "arguments": asked["Cmd"][1:],
                "privileged": bool(asked.get("Privileged")),
                "user": asked.get("User") or "",
            },
            "OpenStdin": bool(asked.get("AttachStdin")),
            "OpenStdout": bool(asked.get("AttachStdout")),
            "OpenStderr": bool(asked.get("AttachStderr")),
            "CanRemove": False,
            "ContainerID": folder.name,
            "DetachKeys": asked.get("DetachKeys") or "",
            "Pid": known["pid"] if known else 0,
        }

    def resize_exec(self, identity: str, width: int, height: int) -> None:
        """POST /exec/{id}/resize."""
        folder, _, known = self._exec(identity)
        if known is None or known["exit_code"] is not None:
            raise Conflict(f"exec {identity} is not running")
        runtime.ask(folder, "resize", id=identity, width=width, height=height)

    # the container's own process

    def attach(self, name: str, streams: Streams, take: bool = True) -> Connection:
        """POST /containers/{id}/attach, also before a start. Takes the descriptors over, unless told not to.

        The connection tells `{"exit_code"}` at the end; closing it detaches.
        """
        try:
            record = self._containers.find(name)
            folder, wanted = self._containers.folder(record), streams
            if not record["Config"].get("OpenStdin"):
                wanted = (None, *streams[1:])
            with runtime.hold(folder):  # no start, and no removal, meanwhile
                state = runtime.status(folder).state
                if state == "paused":
                    raise Conflict(f"Container {name} is paused, unpause the container before attach.")
                if state == "running" or not take:
                    connection = runtime.attach(folder, wanted)
                else:
                    connection = self._containers.attachments.add(record["Id"], copied(wanted))
        except FileNotFoundError as error:  # it has just been removed
            raise NotFound(f"No such container: {name}") from error
        finally:
            if take:
                close(streams)
        trace.publish("container", "attach", id=record["Id"], name=record["Name"])
        self._containers.tell(record, "attach")
        return connection

    def detached(self, name: str) -> None:
        """Somebody's keys have detached them from a container, or from an exec: tell."""
        if found := self._find_exec(name):
            self._containers.tell(self._containers.find(found[0].name), "exec_detach", execID=name)
        else:
            self._containers.tell(self._containers.find(name), "detach")

    def resize(self, name: str, width: int, height: int) -> None:
        """POST /containers/{id}/resize."""
        record, folder, _ = self._running(name)
        runtime.ask(folder, "resize", width=width, height=height)
        self._containers.tell(record, "resize", height=str(height), width=str(width))

    def top(self, name: str, options: str = "-ef") -> ContainerTopResponse:
        """GET /containers/{id}/top: `Titles` and `Processes` of this machine's own ps, for the container's processes.

        Raises NotFound, Conflict, InvalidInput (what ps says of its options).
        """
        if found := re.search(r"\s+([^\s]*)=\s*(pid[^\s]*)", f" {options}", re.IGNORECASE):
            raise InvalidInput(f'specifying "{found[1]}={found[2]}" is not allowed')
        record, folder, status = self._running(name)
        group = runtime.cgroup(folder)
        pids = set(group.pids() if group else _descendants([status.pid, *_execs(folder)]))
        table = _table(_ps(options.split() or ["-ef"], pids), pids)
        self._containers.tell(record, "top")
        return table


def _replaced(entries: list[str], more: Any) -> list[str]:
    """`more` over `entries`, by name; one without `=` takes the variable away."""
    found = {entry.partition("=")[0]: entry for entry in entries}
    for entry in map(str, more):
        name, equals, _ = entry.partition("=")
        if equals:
            found[name] = entry
        else:
            found.pop(name, None)
    return list(found.values())


def _action(verb: str, command: list[str]) -> str:
    """As docker writes it: a program without arguments has a space behind it."""
    return f"{verb}: {command[0]} {' '.join(command[1:])}"


def _execs(folder: Path) -> list[int]:
    """The pids of the execs that run."""
    known = [records.read_json(str(path)) or {} for path in (folder / "exec").glob("*.state")]
    return [each["pid"] for each in known if each.get("pid") and each["exit_code"] is None]


def _descendants(pids: list[int]) -> list[int]:
    """These processes and all below them, as /proc tells. In a pid namespace an orphan falls to its init."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:  # it has just ended
                parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found, waiting = list(pids), list(pids)
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _ps(options: list[str], pids: set[int]) -> list[str]:
    """What this machine's ps says of these processes; some of its options go with no list of pids: then of all."""
    import subprocess

    program = shutil.which("ps")
    if program is None:
        raise MinirtError("ps is not installed on this machine: apt install procps")
    for words in ([*options, f"-q{','.join(map(str, sorted(pids)))}"], options):
        # Its own environment: a variable of ours (COLUMNS, PS_FORMAT) must not cut or change the table.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        result = subprocess.run(
            [program, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            env=environment,
        )  # fmt: skip
        if result.returncode == 0:
            return result.stdout.splitlines()
    raise InvalidInput(f"ps: {result.stderr.strip()}")


def _table(lines: list[str], pids: set[int]) -> ContainerTopResponse:
    """Rows of the container's processes (and of their threads, where ps has lines of them without a pid)."""
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise InvalidInput("Couldn't find PID field in ps output")
    column, rows, inside = titles.index("PID"), [], False
    for line in lines[1:]:
        cells = line.split(None, len(titles) - 1)
        if len(cells) <= column:
            continue
        if cells[column] != "-":
            inside = cells[column].isdecimal() and int(cells[column]) in pids
        if inside:
            last = " ".join("".join(cells[len(titles) - 1 :]).split())
            rows.append([*cells[: len(titles) - 1], last])
    return {"Titles": titles, "Processes": rows}
