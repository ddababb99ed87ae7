"""The shim: one per container; outlives whoever started it, and the container does not outlive it.

    starter ──exec──▶ entry ──fork──▶ shim ──fork──▶ init ──exec──▶ the image's command
                      (exits)         pid 1 of an    pid 1 of the
                                      outer pid ns   container's pid ns

The entry becomes root over the user's ids (rootless), makes the pid namespace and exits, so no starter has to reap a
shim. The shim stands in a pid namespace of its own, around the container's: if it dies, also by kill -9, the kernel
kills the container with it, whatever user the command has become (PR_SET_PDEATHSIG would be lost by then), and the
mounts go with its mount namespace. It mounts the rootfs, copies the streams, keeps the log, records the exit.
fds: 0, 1, 2 are the given streams (/dev/null for none); 3 takes one line of JSON for the starter: `{"pid"}` once the
command runs, or `{"error", "exit_code"}`. Sources: pid_namespaces(7), pidfd_open(2). Taught in chapter 08.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any, NoReturn

from minirt import linux
from minirt.errors import MinirtError, StartError
from minirt.runtime import mounts, rootfs, state, user
from minirt.runtime.init import Init
from minirt.runtime.log import Log
from minirt.runtime.pump import Copy, flush, pump

_STATUS = 3


def main(folder: str) -> NoReturn:
    """Start the container in `folder` and stay until it has ended (`child.command` calls this)."""
    linux.close_range(_STATUS + 1)
    os.set_inheritable(_STATUS, False)
    try:
        os.setsid()
        os.chdir("/")
        config = state.read_json(os.path.join(folder, "config.json"))
        snapshot = state.read_json(os.path.join(folder, "rootfs.json"))
        if config is None or snapshot is None:
            raise StartError("config.json or rootfs.json of the container is missing or torn")
        _enter_user_namespace(config)
        linux.unshare(linux.CLONE_NEWPID)
        if os.fork() == 0:
            _shim(folder, config, snapshot)
    except Exception as error:  # the process boundary: the starter gets one line, whatever it was
        _tell_failure(error)
    os._exit(0)


def _enter_user_namespace(config: dict[str, Any]) -> None:
    """Rootless: become root over the ids that config.json maps, in the numbers of the machine."""
    if any(namespace["type"] == "user" for namespace in config["linux"]["namespaces"]):
        from minirt import userns

        rows = [
            tuple((row["containerID"], row["hostID"], row["size"]) for row in config["linux"][key])
            for key in ("uidMappings", "gidMappings")
        ]
        userns.become_root(userns.IdMapping(*rows))


def _tell(answer: dict[str, Any]) -> None:
    try:
        os.write(_STATUS, json.dumps(answer).encode() + b"\n")
    except BrokenPipeError:
        return  # the starter went away; run.json says what there is to know
    finally:
        os.close(_STATUS)


def _tell_failure(error: Exception) -> None:
    if isinstance(error, MinirtError):
        _tell({"error": str(error), "exit_code": error.exit_code if isinstance(error, StartError) else 125})
        return
    text = (
        f"{error.filename or ''} {error.strerror}" if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    )
    _tell({"error": f"cannot set up the container: {text.strip()}", "exit_code": 125})


def _shim(folder: str, config: dict[str, Any], snapshot: dict[str, Any]) -> NoReturn:
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # to pid 1 of a namespace, no signal by default: only SIGKILL
        run: dict[str, Any] = {"boot_id": state.boot_id(), "shim": state.identify("self")}
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_SLAVE)
        rootfs.mount(folder, snapshot)
        _resolve_user(folder, config)
        pid, copies = _fork_init(folder, config)
        pidfd = os.pidfd_open(pid)
        run["init"] = state.identify(_machine_pid(pidfd))
        log, exit_path = Log(os.path.join(folder, "log")), os.path.join(folder, "exit.json")
        state.reserve(exit_path)
        state.write_json(os.path.join(folder, "run.json"), {**run, "started": state.now()})
        _tell({"pid": run["init"]["pid"]})
    except Exception as error:  # the process boundary, as above; init dies with this namespace
        _tell_failure(error)
        os._exit(1)
    try:
        pump(copies, log, pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        log.close()
        exit_ = {"exit_code": code if code >= 0 else 128 - code, "finished": state.now(), "error": log.error}
        exit_["oom_killed"] = False
        state.write_json(exit_path, exit_)
        flush(copies)
        if lost := [copy.error for copy in copies if copy.error]:
            state.write_json(exit_path, {**exit_, "error": lost[0]})
    finally:
        os._exit(0)  # nobody is left to tell: what has no exit.json is dead


def _resolve_user(folder: str, config: dict[str, Any]) -> None:
    """Look USER up in the mounted rootfs and complete config.json with it."""
    path = os.path.join(folder, "user")
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as file:
        text = file.read()
    who = user.resolve(mounts.Root(os.path.join(folder, "rootfs")), text)
    for kind, key in (("uid", "uidMappings"), ("gid", "gidMappings")):
        rows = config["linux"].get(key)
        if rows and not any(row["containerID"] <= who[kind] < row["containerID"] + row["size"] for row in rows):
            count = sum(row["size"] for row in rows)
            raise StartError(
                f"{kind} {who[kind]} does not exist here: this user has {count} id(s); see `minirt doctor`"
            )
    config["process"]["user"] = who
    sets = config["process"]["capabilities"]  # only root has any from the start, as docker sets them
    sets["effective"] = sets["permitted"] = [] if who["uid"] else sets["bounding"]
    state.write_json(os.path.join(folder, "config.json"), config)


def _fork_init(folder: str, config: dict[str, Any]) -> tuple[int, list[Copy]]:
    """Fork init and wait until it is the command. Raises StartError with its reason if it never gets there."""
    outputs, errors, report = os.pipe(), os.pipe(), os.pipe()
    null = os.fstat(0).st_rdev == os.makedev(1, 3)
    inputs = None if null else os.pipe()
    init = Init(config, folder, (inputs and inputs[0], outputs[1], errors[1]))
    linux.unshare(linux.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        init.run(report[1])
    for fd in (report[1], outputs[1], errors[1], *(inputs[:1] if inputs else ())):
        os.close(fd)
    with os.fdopen(report[0], "rb") as pipe:
        failure = pipe.read()
    if failure:
        os.waitpid(pid, 0)
        answer = json.loads(failure)
        raise StartError(answer["error"], answer["exit_code"])
    copies = [Copy(outputs[0], 1, "stdout"), Copy(errors[0], 2, "stderr")]
    if inputs:
        os.set_blocking(inputs[1], False)
        copies.append(Copy(0, inputs[1]))
    return pid, copies


def _machine_pid(pidfd: int) -> str:
    """The pid in the machine's numbers: those of the /proc that is still mounted here."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        return next(line.split()[1] for line in file if line.startswith("Pid:"))
