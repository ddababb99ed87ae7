"""The shim: one per container; outlives whoever started it, and the container does not outlive it.

    starter ──exec──▶ entry ──fork──▶ shim ──▶ create, start: init ──exec──▶ the image's command
                      (exits)         pid 1 of an             pid 1 of the
                                      outer pid ns            container's pid ns

The entry (entry.py) makes the outer pid namespace and exits. The shim stands in it, around the container's: if it dies,
also by kill -9, the kernel kills the container with it, whatever user the command has become (PR_SET_PDEATHSIG would be
lost by then), and the mounts go with its mount namespace. (With `--pid host` or another's there can be none around it:
then `system prune` ends what a killed shim left.) It mounts the rootfs, drives an OCI runtime (ours, or another as a
command), copies the streams, keeps the log, answers on `shim.sock`, records the exit.
fds: 0, 1, 2 are the given streams (/dev/null for none); 3 takes one line of JSON for the starter: `{"pid"}` once the
command runs, or `{"error", "exit_code"}`; from 4 on are the streams and the line of each who is attached already, and
last an eventfd where somebody wants notice of the end.
Sources: pid_namespaces(7), pidfd_open(2). Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from minirt import linux
from minirt.errors import Conflict, MinirtError, StartError
from minirt.runtime import cgroups, control, mounts, namespaces, oci, prepare, rootfs, state, terminal, user
from minirt.runtime import config as config_json
from minirt.runtime.answer import STATUS, hush, tell, tell_failure
from minirt.runtime.log import Log
from minirt.runtime.pump import Pump, flush
from minirt.runtime.streams import Client, Make, Process

if TYPE_CHECKING:
    from minirt.runtime import external

_EXEC = re.compile("[0-9A-Za-z_-]{1,128}")
_NULL = os.makedev(1, 3) if hasattr(os, "makedev") else 0


class Shim:
    """`options` are of `container.start`: `open_stdin`, `stdin_once`, `size`, `runtime`; `attached` as fds have it.
    `inside`: the bundle's user namespace is ours; `checked`: all but the process' last words is known to be right."""

    def __init__(
        self, folder: str, config: dict[str, Any], snapshot: dict[str, Any], options: dict[str, Any], inside: bool,
        checked: bool = False,
    ) -> None:  # fmt: skip
        self._in_user_namespace, self._checked = inside, checked
        self._folder, self._config, self._snapshot, self._options = folder, config, snapshot, options
        self._pump = Pump()
        self._processes: dict[str, Process] = {}  # init is ""
        self._log: Log | None = None
        self._peers: dict[int, int] = {}
        self._notice = -1
        self._group: cgroups.Cgroup | None = None
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._disconnect: Callable[[], None] = lambda: None

    def run(self) -> NoReturn:
        exit_path = os.path.join(self._folder, "exit.json")
        try:
            # To pid 1 of a namespace no signal comes by default, but SIGKILL from outside.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            shim = os.getpid()
            os.register_at_fork(after_in_child=lambda: hush(shim))
            run: dict[str, Any] = {"boot_id": state.boot_id(), "shim": state.identify("self")}
            self._enter()
            self._complete()
            self._runtime = self._driver()
            with contextlib.suppress(MinirtError):
                self._runtime.delete(force=True)  # of a life that ended with its shim
            tty = bool(self._config["process"].get("terminal"))
            init = self._begin("", self._create, tty, bool(self._options.get("open_stdin")))
            while self._peers:
                os.close(self._peers.popitem()[1])
            run["init"] = state.identify(self._first(init))
            self._group = self._runtime.cgroup

            def settle() -> None:
                """What there is to do while the command begins, which ends with us; before it, where it would not."""
                run["cgroup"] = self._group.to_json() if self._group else None
                self._take_given(init)
                for output in init.outputs:
                    output.log = self._log
                state.write_json(os.path.join(self._folder, "run.json"), {**run, "started": state.now()})

            if isinstance(self._runtime, oci.Container) and prepare.own(self._config, "pid"):
                self._runtime.start(settle)
            else:
                if not isinstance(self._runtime, oci.Container):  # with ours that was done while init mounted
                    self._prepare()
                    self._connect(run["init"]["pid"])
                settle()
                self._runtime.start()
            tell({"pid": run["init"]["pid"]})
        except Exception as error:  # the process boundary, as above; init dies with this namespace
            with contextlib.suppress(Exception):
                self._disconnect()
            with contextlib.suppress(Exception):
                self._runtime.delete(force=True)
            tell_failure(error)
            os._exit(1)
        try:
            while init.code is None:
                self._pump.turn()
            self._end(exit_path, init)
        finally:
            os._exit(0)  # nobody is left to tell: what has no exit.json is dead

    def _enter(self) -> None:
        """Our own view of the file system, with the container's root file system in it."""
        linux.unshare(linux.CLONE_NEWNS)
        if not self._in_user_namespace:  # there nothing of ours can be the machine's peer, mount_namespaces(7)
            self._peers = prepare.peers(self._config)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_SLAVE)
        rootfs.mount(self._folder, self._snapshot, prepare.mapping(self._config))

    def _first(self, init: Process) -> int:
        """The machine's number of the container's first process: whom signals are for."""
        return state.machine_pid(init.pidfd)

    def _end(self, path: str, init: Process) -> None:
        """Init has ended, and with its pid namespace all the others: take their last words and write down how."""
        assert self._log is not None
        group = self._group
        end: dict[str, Any] = {"exit_code": init.code, "oom_killed": bool(group and group.oom_kills())}
        with contextlib.suppress(MinirtError):  # what cannot be taken away now, `system prune` finds
            self._disconnect()
        for name, process in self._processes.items():
            if process.code is None:  # it shares a pid namespace that goes on
                signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
                process.ended(os.waitpid(process.pid, 0)[1])
                self._note(name)
        if not (alone := prepare.own(self._config, "pid")):  # all have ended with init
            self._runtime.delete(force=True)
        self._log.close()
        end |= {"finished": state.now(), "error": self._log.error}
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._folder, control.NAME))
        state.write_json(path, end)
        for process in self._processes.values():
            sinks = [sink for client in process.clients for sink in client.sinks]
            flush(sinks)
            if process is init and (lost := [sink.error for sink in sinks if sink.error]):
                state.write_json(path, {**end, "error": lost[0]})
            process.close()
        if self._notice >= 0:  # sooner than by our own end, which unmounts
            os.eventfd_write(self._notice, 1)
        if alone:  # nothing of it lives any more: nobody has to wait for what is left to be taken away
            self._runtime.delete(force=True)

    def _network(self) -> dict[str, Any] | None:
        """Its network, as network.json says; None where nothing is to be done for it."""
        settings = state.read_json(os.path.join(self._folder, "network.json"))
        return settings if settings and settings["mode"] not in ("none", "host") else None

    def _prepare(self) -> None:
        """What there is to do while init goes on: its log, the room for its end, the door for requests."""
        state.write_json(os.path.join(self._folder, "config.json"), self._completed)
        self._log = Log(os.path.join(self._folder, "log"), **self._options.get("log") or {})
        state.reserve(os.path.join(self._folder, "exit.json"))
        listener = control.listen(self._folder)
        self._pump.watched[listener.fileno()] = lambda: self._accept(listener)

    def _connect(self, pid: int) -> None:
        if settings := self._network():
            from minirt.runtime import network

            root = os.path.dirname(os.path.dirname(self._folder))
            network.attach(root, self._folder, pid, settings)
            self._disconnect = lambda: network.detach(root, self._folder)

    def _driver(self) -> oci.Container | external.Container:
        """Our runtime, or another one with the same verbs."""
        root, name = os.path.join(self._folder, "oci"), os.path.basename(self._folder)
        if program := self._options.get("runtime"):
            from minirt.runtime import external

            namespaces.forget()  # it makes its own
            return external.Container(program, root, name)
        return oci.Container(root, name, self._options.get("cache"))

    def _create(self, streams: tuple[int | None, int, int], console: int | None) -> tuple[int, int]:
        more: dict[str, Any] = {"peers": self._peers} if self._peers else {}
        if isinstance(self._runtime, oci.Container):
            more |= {"connect": self._connect, "meanwhile": self._prepare}
        return self._runtime.create(self._folder, config=self._config, streams=streams, console=console, **more)

    def _take_given(self, init: Process) -> None:
        """The streams we were started with become those of who is attached; /dev/null stands for none."""
        init.attach([os.dup(fd) if os.fstat(fd).st_rdev != _NULL else None for fd in range(3)], None)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.close(null)
        numbers = itertools.count(STATUS + 1)
        for streams in self._options.get("attached") or ():
            fds = [next(numbers) if given else None for given in streams]
            init.attach(fds, self._admit(socket.socket(fileno=next(numbers))))
        if self._options.get("notice"):
            self._notice = next(numbers)

    def _complete(self) -> None:
        """What of config.json could not be known before: who USER is, which processes' namespaces are joined."""
        config, path = self._config, os.path.join(self._folder, "user")
        if os.path.exists(path):
            with open(path, "rb") as file:
                self._become(config["process"], os.fsdecode(file.read()))
        if (size := self._options.get("size")) and config["process"].get("terminal"):
            config["process"]["consoleSize"] = {"width": size[0], "height": size[1]}
        if self._checked:
            config_json.check_process(config["process"])
        else:
            config_json.check(config)
        self._completed = config
        if self._in_user_namespace:
            entries = [{**entry, **self._entered(entry)} for entry in config["linux"]["namespaces"]]
            self._config = {**config, "linux": {**config["linux"], "namespaces": entries}}

    def _entered(self, entry: dict[str, Any]) -> dict[str, str]:
        """The namespace that we are in already, or hold already, instead of a new one."""
        if entry["type"] == "user":
            return {"path": "/proc/self/ns/user"}
        if entry["type"] == "network" and not entry.get("path") and self._network():
            from minirt.runtime.network import slirp

            return {"path": slirp.namespace(self._folder)}
        return {}

    @property
    def _groups(self) -> list[str]:
        """Names and numbers of `--group-add`."""
        with contextlib.suppress(FileNotFoundError), open(f"{self._folder}/groups", "rb") as file:
            return os.fsdecode(file.read()).split()
        return []

    def _become(self, process: dict[str, Any], text: str) -> None:
        """Make `process` run as the user that `text` names in the mounted rootfs."""
        root = mounts.Root(os.path.join(self._folder, "rootfs"))
        try:
            who = user.resolve(root, text, self._groups)
        finally:
            os.close(root.fd)
        for kind, key in (("uid", "uidMappings"), ("gid", "gidMappings")):
            rows = self._config["linux"].get(key)
            if rows and not any(row["containerID"] <= who[kind] < row["containerID"] + row["size"] for row in rows):
                count = sum(row["size"] for row in rows)
                raise StartError(
                    f"{kind} {who[kind]} does not exist here: this user has {count} id(s); see `minirt doctor`"
                )
        process["user"] = who
        sets = process["capabilities"]  # only root has any from the start, as docker sets them
        sets["effective"] = sets["permitted"] = [] if who["uid"] else sets["bounding"]

    def _begin(self, name: str, make: Make, tty: bool, open_stdin: bool) -> Process:
        once = bool(name) or self._options.get("stdin_once", True)
        process = Process(self._pump, make, tty, open_stdin, once)
        self._processes[name] = process
        self._pump.watched[process.pidfd] = lambda: self._ended(name)
        return process

    def _ended(self, name: str) -> None:
        """A process of ours has ended; init's end is everything's, see `run`."""
        process = self._processes[name]
        del self._pump.watched[process.pidfd]
        process.ended(os.waitpid(process.pid, 0)[1])
        if name:
            self._note(name)
            process.then(lambda: self._leave(name))

    def _leave(self, name: str) -> None:
        """Its last output is with its readers: tell them how it ended, and forget it."""
        process = self._processes.pop(name)
        lines = [client.line for client in process.clients if client.line]
        process.close()
        for line in lines:
            self._hang_up(line)

    def _note(self, name: str) -> None:
        """Write down how an exec goes, beside its request, where there is one (engine/processes.py)."""
        process, path = self._processes[name], os.path.join(self._folder, "exec", name)
        if os.path.exists(f"{path}.json"):
            finished = state.now() if process.code is not None else ""
            with contextlib.suppress(OSError):  # a full disk: whoever is attached is told all the same
                pid = max(0, state.machine_pid(process.pidfd))  # -1: it is reaped
                known = {"pid": pid, "exit_code": process.code, "finished": finished}
                state.write_json(f"{path}.state", known)

    # requests

    def _accept(self, listener: socket.socket) -> None:
        try:
            line, _ = listener.accept()
        except OSError:  # no descriptor is left: turn one away, or it would stand before the door for ever
            os.close(self._spare)
            with contextlib.suppress(OSError):
                listener.accept()[0].close()
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            return
        self._admit(line)

    def _admit(self, line: socket.socket) -> control.Connection:
        line.setblocking(False)  # who asks and does not listen holds nobody up
        connection = control.Connection(line)
        self._pump.watched[connection.fileno()] = lambda: self._serve(connection)
        return connection

    def _serve(self, connection: control.Connection) -> None:
        """One more piece of what somebody says, or their going."""
        try:
            more = connection.read()
            while (request := connection.message()) is not None:
                if request.get("do") == "end_input":
                    for process, client in self._clients(connection):
                        process.end_input(client)
                else:
                    connection.send(self._answer(connection, request))
        except (OSError, ValueError):  # also where nobody takes the answer
            more = False
        if not more:
            self._hang_up(connection)

    def _answer(self, connection: control.Connection, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(getattr(self, f"_do_{request.get('do')}")(connection, request, connection.fds))
        except Exception as error:  # the process boundary: whoever asked gets one line, and the container goes on
            status = getattr(error, "status", 500)
            code = error.exit_code if isinstance(error, StartError) else 125
            return {"error": namespaces.describe(error), "exit_code": code, "conflict": status == 409}
        finally:
            connection.drop()

    def _hang_up(self, connection: control.Connection) -> None:
        if self._pump.watched.pop(connection.fileno(), None):
            for process, client in self._clients(connection):
                process.detach(client)
            connection.close()

    def _clients(self, connection: control.Connection) -> list[tuple[Process, Client]]:
        """Who is attached over this line, and to what."""
        processes = self._processes.values()
        return [(process, client) for process in processes for client in process.clients if client.line is connection]

    def _do_attach(self, connection: control.Connection, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """`streams`: which of stdin, stdout, stderr came along, in this order. `id` of an exec, or init."""
        if (process := self._processes.get(request.get("id", ""))) is None or process.code is not None:
            raise Conflict("it has ended")
        process.attach(_in_place(request["streams"], fds), connection)
        return {}

    def _do_exec(self, connection: control.Connection, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        name = request["id"]
        if not isinstance(name, str) or not _EXEC.fullmatch(name) or name in self._processes:
            raise StartError("exec: its id is no new one")
        process = json.loads(json.dumps(self._config["process"]))
        process = {**process, "oomScoreAdj": None, "consoleSize": None, **request["process"]}
        given = _in_place(request["streams"], fds)

        def make(streams: tuple[int | None, int, int], console: int | None) -> tuple[int, int]:
            return self._runtime.exec(process, streams=streams, console=console)

        try:
            if request.get("user"):
                self._become(process, request["user"])
            began = self._begin(name, make, bool(process.get("terminal")), given[0] is not None)
        except BaseException:
            fds += [fd for fd in given if fd is not None]
            raise
        began.attach(given, connection)
        self._note(name)
        return {"pid": state.machine_pid(began.pidfd)}

    def _do_resize(self, connection: control.Connection, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        process = self._processes.get(request.get("id", ""))
        if process is None or process.master < 0:
            raise StartError("it has no terminal to resize")
        terminal.resize(process.master, int(request["width"]), int(request["height"]))
        return {}

    def _do_pause(self, connection: control.Connection, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        getattr(self._runtime, request["do"])()
        return {}

    _do_resume = _do_pause

    def _do_update(self, connection: control.Connection, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._runtime.update(request["resources"])
        return {}


def _in_place(streams: list[bool], fds: list[int]) -> list[int | None]:
    """Take the descriptors that came, each to where it belongs; None where none was sent."""
    return [fds.pop(0) if given and fds else None for given in streams]
