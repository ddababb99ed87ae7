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
import time
from pathlib import Path
from typing import Any

from minirt import trace
from minirt.engine import states
from minirt.engine.containers import Containers, Streams
from minirt.engine.images import epoch
from minirt.errors import Conflict, InvalidInput, MinirtError, NotFound, StartError
from minirt.runtime import container as runtime
from minirt.runtime import state as records
from minirt.runtime.capabilities import NAMES
from minirt.runtime.control import Connection
from minirt.runtime.spec import environment
from minirt.store.files import write_atomic

_KEPT = 300  # seconds an ended exec can still be inspected, as docker's
_KILLED = 128 + 9


class Processes:
    """The verbs on processes, over the containers."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers

    def _running(self, name: str) -> tuple[dict[str, Any], Path, runtime.Status]:
        """A running (perhaps paused) container. Raises NotFound, Conflict."""
        record = self._containers.find(name)
        folder = self._containers.folder(record)
        status = runtime.status(folder)
        states.must_run(record["Id"], status)
        return record, folder, status

    # exec

    def create_exec(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST /containers/{id}/exec. Raises NotFound, Conflict, InvalidInput."""
        record, folder, status = self._running(name)
        if status.state == "paused":
            raise Conflict(f"Container {name} is paused, unpause the container before exec")
        command = [body["Cmd"]] if isinstance(body.get("Cmd"), str) else [str(word) for word in body.get("Cmd") or ()]
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
        return {"Id": identity}

    def start_exec(
        self, identity: str, streams: Streams = (None, None, None), size: tuple[int, int] | None = None
    ) -> Connection:
        """POST /exec/{id}/start; `size` (width, height) of its terminal.

        The connection tells `{"exit_code"}` at the end; closing it detaches. Raises StartError, Conflict, NotFound.
        """
        folder, asked, known = self._exec(identity)
        if known is not None:
            raise Conflict(f"Error: Exec command {identity} has already run")
        record, _, status = self._running(folder.name)
        if status.state == "paused":
            raise Conflict(f"Container {record['Id']} is paused, unpause the container before exec")
        process = self._process(record, folder, asked)
        height, width = asked.get("ConsoleSize") or (0, 0)
        size = size or ((width, height) if width and height else None)
        if process["terminal"] and size:
            process["consoleSize"] = {"width": size[0], "height": size[1]}
        try:
            connection, pid = runtime.exec(folder, identity, process, asked.get("User") or "", streams)
        except StartError as error:
            error.exit_code = 127 if error.exit_code == 127 else 126
            end = {"pid": 0, "exit_code": error.exit_code, "finished": records.now()}
            records.write_json(str(folder / "exec" / f"{identity}.state"), end)
            raise
        trace.publish("container", "exec", id=record["Id"], name=record["Name"], pid=pid, command=asked["Cmd"])
        return connection

    def _process(self, record: dict[str, Any], folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
        """What is laid over the container's own process: docker's environment, and no terminal but its own."""
        own = (records.read_json(str(folder / "config.json")) or {})["process"]
        config, terminal = record["Config"], bool(asked.get("Tty"))
        # The container's terminal is not this process'; with one of its own, TERM stands where docker has it.
        inherited = [entry for entry in config["Env"] if not (config["Tty"] and entry == "TERM=xterm")]
        process: dict[str, Any] = {"args": asked["Cmd"], "terminal": terminal}
        process["env"] = _replaced(environment(config["Hostname"], (), inherited, terminal), asked.get("Env") or ())
        if asked.get("WorkingDir"):
            process["cwd"] = asked["WorkingDir"]
        if asked.get("Privileged"):
            process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), list(NAMES))
            if own.get("apparmorProfile"):
                process["apparmorProfile"] = "unconfined"
        return process

    def _exec(self, identity: str) -> tuple[Path, dict[str, Any], dict[str, Any] | None]:
        """The container's folder, what was asked, and how it goes (None: not started). Raises NotFound."""
        if re.fullmatch("[0-9a-f]{64}", identity):
            for folder in self._containers.folders():
                asked = records.read_json(str(folder / "exec" / f"{identity}.json"))
                # An exec is of one life of its container.
                if asked and asked["started"] == runtime.status(folder).started:
                    return folder, asked, records.read_json(str(folder / "exec" / f"{identity}.state"))
        raise NotFound(f"No such exec instance: {identity[:64]}")

    def inspect_exec(self, identity: str) -> dict[str, Any]:
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

    def attach(self, name: str, streams: Streams) -> Connection:
        """POST /containers/{id}/attach. The connection tells `{"exit_code"}` at the end; closing it detaches."""
        record, folder, _ = self._running(name)
        if not record["Config"].get("OpenStdin"):
            streams = (None, *streams[1:])
        trace.publish("container", "attach", id=record["Id"], name=record["Name"])
        return runtime.attach(folder, streams)

    def resize(self, name: str, width: int, height: int) -> None:
        """POST /containers/{id}/resize."""
        _, folder, _ = self._running(name)
        runtime.ask(folder, "resize", width=width, height=height)

    def top(self, name: str, options: str = "-ef") -> dict[str, Any]:
        """GET /containers/{id}/top: `Titles` and `Processes` of this machine's own ps, for the container's processes.

        Raises NotFound, Conflict, InvalidInput (what ps says of its options).
        """
        if found := re.search(r"\s+([^\s]*)=\s*(pid[^\s]*)", f" {options}", re.IGNORECASE):
            raise InvalidInput(f'specifying "{found[1]}={found[2]}" is not allowed')
        _, folder, status = self._running(name)
        group = runtime.cgroup(folder)
        pids = set(group.pids() if group else _descendants([status.pid, *_execs(folder)]))
        return _table(_ps(options.split() or ["-ef"], pids), pids)


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
    raise InvalidInput(f"ps: {' '.join(result.stderr.split())}")


def _table(lines: list[str], pids: set[int]) -> dict[str, Any]:
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
