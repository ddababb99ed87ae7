"""Containers where the machine refuses namespaces (inside docker, Binder, Colab, hardened hosts): proot, proot(1).

proot traces the command (ptrace(2)) and changes the paths in its system calls, so that it sees the image's files. That
is a view, not a wall: the command is a process of ours like any other. WALLS says what is missing; what can be kept
without namespaces is: no new privileges, limits, docker's capabilities (as root), docker's seccomp policy.

    shim ──fork──▶ keeper ──fork──▶ proot ──▶ starter ──▶ the image's command       (a keeper and a proot per process)

Nothing here has a pid namespace to die with it. So the keeper adopts what loses its parent (PR_SET_CHILD_SUBREAPER),
ends all its descendants when the command ends or the shim dies, and hands on the command's exit status; without the
keeper the shim adopts them. Sources: proot(1), prctl(2), runtime-spec config.md. Taught in chapter 07.
"""

from __future__ import annotations

import array
import contextlib
import glob
import os
import select
import shutil
import signal
import socket
import stat
import struct
import time
from typing import Any, NoReturn

from minirt import linux
from minirt.errors import InvalidInput, StartError, Unsupported
from minirt.runtime import capabilities, mounts, prepare, seccomp, shim, starter, terminal, user
from minirt.runtime.streams import Process

WALLS = (
    "this machine refuses namespaces, so containers run by proot: they see the image's files, but nothing is walled "
    "off (no pid, network, ipc or uts isolation, no cgroups; their processes and files are yours): run only images you "
    "trust"
)  # fmt: skip
_STARTER = "/.minirt-start"
_PATIENCE = 2  # seconds for proot to clean up after itself


class Container:
    """The verbs of `oci.Container`, in the process that is to be the parent of it all (the shim)."""

    cgroup = None

    def __init__(self, folder: str, rootfs: str, cache: str | None = None) -> None:
        self._folder, self._rootfs, self._cache = os.path.join(folder, "proot"), rootfs, cache
        self._gate = -1
        self.pid = 0  # of the command

    def create(
        self, bundle: str, *, config: dict[str, Any], streams: tuple[int | None, int, int], console: int | None
    ) -> tuple[int, int]:
        """Everything but the command's start: the keeper's pid, and a pidfd. Raises StartError, 126 or 127 where the
        command cannot be executed or found."""
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        os.makedirs(os.path.join(self._folder, "tmp"), mode=0o700, exist_ok=True)
        path = os.path.join(self._folder, "start")
        with open(path, "wb") as file:
            file.write(starter.program())
        os.chmod(path, 0o755)
        self._config, self._binds = config, self._bind(bundle, config)
        pid, pidfd, self._gate, self.pid = self._begin(config["process"], streams, console)
        return pid, pidfd

    def start(self) -> None:
        """Let the command run."""
        os.write(self._gate, b"1")
        os.close(self._gate)

    def exec(
        self, process: dict[str, Any], *, streams: tuple[int | None, int, int], console: int | None
    ) -> tuple[int, int]:
        pid, pidfd, gate, _ = self._begin(process, streams, console)
        os.write(gate, b"1")
        os.close(gate)
        return pid, pidfd

    def pause(self) -> None:
        raise Unsupported("a container by proot cannot be paused: there is no cgroup to freeze; see `minirt doctor`")

    resume = pause

    def update(self, resources: dict[str, Any]) -> None:
        raise Unsupported("a container by proot has no limits to update: there is no cgroup; see `minirt doctor`")

    def delete(self, force: bool = False) -> None:
        """End what lost its keeper and came to us; what proot kept on disk goes with the container's folder."""
        _end_children()
        shutil.rmtree(os.path.join(self._folder, "tmp"), ignore_errors=True)

    def _bind(self, bundle: str, config: dict[str, Any]) -> list[tuple[str, str]]:
        """(the machine's path, the container's) of what stands over the rootfs; /proc, /sys, /dev are the machine's."""
        out = []
        for number, entry in enumerate(config.get("mounts") or ()):
            target = os.path.normpath(entry["destination"])
            if mounts.is_bind(entry):
                source = os.path.join(bundle, entry["source"])
                if not os.path.exists(source):
                    raise StartError(f"mount {target}: {source}: no such file or directory")
                if target == "/dev/shm" and source == target:
                    continue
            elif target in ("/proc", "/sys", "/dev"):
                source = target
            elif target.startswith(("/dev/", "/sys/")):
                continue  # within the machine's
            elif entry.get("type") == "tmpfs":
                source = os.path.join(self._folder, f"tmpfs-{number}")
                shutil.rmtree(source, ignore_errors=True)
                os.mkdir(source)
                os.chmod(source, 0o1777)
            else:
                raise Unsupported(f"mount {target}: a container by proot cannot mount a {entry.get('type')}")
            if ":" in source + target:
                raise InvalidInput(f"mount {target}: proot takes no colon in a path")
            out.append((source, target))
        return out

    def _begin(
        self, spec: dict[str, Any], streams: tuple[int | None, int, int], console: int | None
    ) -> tuple[int, int, int, int]:
        """Keeper's pid and pidfd, the gate's descriptor, the command's pid. It stands still before the gate."""
        program = find()
        if program is None:
            raise Unsupported("proot is not installed any more: sudo apt install proot")
        env = dict(entry.split("=", 1) for entry in spec.get("env") or () if "=" in entry)
        root, who = mounts.Root(self._rootfs), spec.get("user") or {}
        try:
            env.setdefault("HOME", user.home(root, who.get("uid", 0)))
            command = self._program(root, spec["args"][0], env.get("PATH", ""), spec["cwd"])
            if not self._covered(spec["cwd"]):
                with contextlib.suppress(OSError):  # proot says so, and begins in /
                    os.close(root.make(spec["cwd"]))
        finally:
            os.close(root.fd)
        words = [program, "-v", "-1", "-i", f"{who.get('uid', 0)}:{who.get('gid', 0)}", "-r", self._rootfs]
        words += [word for source, target in self._binds for word in ("-b", f"{source}:{target}")]
        words += ["-b", f"{self._folder}/start:{_STARTER}", "-w", spec["cwd"], _STARTER, command, *spec["args"]]
        # The starter takes the first two off. The first is for newer ones than 5.1.0, which knows /tmp only.
        env = {"PROOT_TMP_DIR": os.path.join(self._folder, "tmp"), "PROOT_DONT_POLLUTE_ROOTFS": "1"} | env
        keeper = _Keeper(words, env, spec, self._filter())
        with contextlib.ExitStack() as ours:
            if console is not None:
                streams = _terminal(console, spec.get("consoleSize"), ours)
            return keeper.fork(streams)

    def _filter(self) -> seccomp.Filter | None:
        policy = self._config["linux"].get("seccomp")
        if not policy:
            return None
        try:
            return seccomp.Filter(seccomp.compile(policy, self._cache), policy.get("flags") or [])
        except Unsupported:  # no libseccomp here, where nobody may install it: `doctor` says so
            return None

    def _program(self, root: mounts.Root, name: str, path: str, cwd: str) -> str:
        """The file that `name` means in the container. Raises StartError in docker's words."""
        if "/" in name:
            place = os.path.join(cwd, name)
            try:
                mode = self._mode(root, place)
            except OSError as error:
                reason, code = (error.strerror or "").lower(), 126 if isinstance(error, PermissionError) else 127
                raise StartError(f'exec: "{name}": stat {name}: {reason}', code) from error
            if stat.S_ISDIR(mode) or not mode & 0o111:
                raise StartError(f'exec: "{name}": permission denied', 126)
            return name
        for folder in path.split(":"):
            candidate = os.path.join(folder or ".", name)
            with contextlib.suppress(OSError):
                mode = self._mode(root, os.path.join(cwd, candidate))
                if not stat.S_ISDIR(mode) and mode & 0o111:
                    return candidate
        raise StartError(f'exec: "{name}": executable file not found in $PATH', 127)

    def _mode(self, root: mounts.Root, path: str) -> int:
        place = self._covered(path)
        fd = os.open(place, os.O_PATH) if place else root.open(path)
        try:
            return os.fstat(fd).st_mode
        finally:
            os.close(fd)

    def _covered(self, path: str) -> str:
        """The machine's path of what a bind lays over `path`, or empty."""
        path = os.path.normpath(path)
        for source, target in reversed(self._binds):
            if path == target or path.startswith(target.rstrip("/") + "/"):
                return source + path[len(target.rstrip("/")) :]
        return ""


class _Keeper:
    """The process between the shim and proot."""

    def __init__(
        self, words: list[str], env: dict[str, str], spec: dict[str, Any], filter: seccomp.Filter | None
    ) -> None:
        self._words, self._env, self._spec, self._filter = words, env, spec, filter

    def fork(self, streams: tuple[int | None, int, int]) -> tuple[int, int, int, int]:
        gate_out, gate_in = os.pipe()
        report_out, report_in = os.pipe()
        told_out, told_in = os.pipe()
        null, parent = os.open(os.devnull, os.O_RDWR), os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                given = [null if fd is None else fd for fd in streams]
                _place(*given, gate_out, report_in, report_out, told_in)
                self._run(parent)
            finally:
                os._exit(125)
        for fd in (gate_out, report_in, report_out, told_in, null):
            os.close(fd)
        prepare.limit(pid, self._spec)
        answer = os.read(told_out, 4)
        os.close(told_out)
        pidfd = os.pidfd_open(pid)
        if len(answer) < 4:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(pidfd)
            os.close(gate_in)
            raise StartError("proot cannot start a program here: see `minirt doctor`")
        return pid, pidfd, gate_in, struct.unpack("=i", answer)[0]

    def _run(self, parent: int) -> NoReturn:
        """0, 1, 2 are the command's; 3 the gate, 4 the starter's report; 5 its other end, 6 what the shim is told."""
        signal.signal(signal.SIGTERM, lambda number, frame: _give_up())
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(125)
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        os.setsid()
        proot = os.fork()
        if proot == 0:
            try:
                self._become_proot()
            finally:
                os._exit(125)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, starter.GATE, starter.REPORT):
            os.dup2(null, number)
        report = _numbers(5)
        first = next(report, None)
        if first is None:
            _give_up()
        os.write(6, struct.pack("=i", first))
        os.close(6)
        with open(f"/proc/{first}/stat", "rb") as file:
            between = os.pidfd_open(int(file.read().rpartition(b")")[2].split()[1]))
        status = next(report, None) if _speaks(5, between) else None
        if status is not None and status < 0:  # the file is there and executable, but not a program: as docker says it
            name = self._words[self._words.index(_STARTER) + 1]
            os.write(2, f"exec {name}: {os.strerror(-status).lower()}\n".encode())
            status = next(report, None)
        _end_descendants(proot)
        if status is None:
            os._exit(128 + signal.SIGKILL)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)

    def _become_proot(self) -> NoReturn:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        linux.close_range(5)
        if os.geteuid() == 0:
            capabilities.bound(self._spec.get("capabilities") or {})
        if self._spec.get("noNewPrivileges"):
            linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
            if self._filter:
                self._filter.load()
        os.umask((self._spec.get("user") or {}).get("umask", 0o022))
        os.execve(self._words[0], self._words, self._env)


class Shim(shim.Shim):
    """The shim of such a container: it mounts nothing, and there is nobody to be but ourselves."""

    def _enter(self) -> None:
        os.chdir("/")

    def _driver(self) -> Container:  # type: ignore[override]
        return Container(self._folder, self._snapshot["path"], self._options.get("cache"))

    def _first(self, init: Process) -> int:
        assert isinstance(self._runtime, Container)
        return self._runtime.pid

    def _become(self, process: dict[str, Any], text: str) -> None:
        """proot plays any user; the kernel knows us alone."""
        root = mounts.Root(self._snapshot["path"])
        try:
            process["user"] = user.resolve(root, text, self._groups)
        finally:
            os.close(root.fd)


def find() -> str | None:
    return shutil.which("proot")


def _terminal(console: int, size: dict[str, int] | None, ours: contextlib.ExitStack) -> tuple[int, int, int]:
    """A terminal of the machine's; its master goes to the socket `console`, the starter makes it the command's."""
    master, end = os.openpty()
    ours.callback(os.close, end)
    if size:
        terminal.resize(master, size.get("width", 0), size.get("height", 0))
    with socket.socket(fileno=os.dup(console)) as line:
        line.sendmsg([b"/dev/ptmx"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]))])
    os.close(master)
    return end, end, end


def _place(*fds: int) -> None:
    """Make these descriptors 0, 1, 2…, and close all others."""
    import fcntl

    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in fds]
    for number, fd in enumerate(moved):
        os.dup2(fd, number)
    linux.close_range(len(fds))


def _numbers(fd: int) -> Any:
    """What the starter reports, until there is nobody left to."""
    while len(data := os.read(fd, 4)) == 4:
        yield struct.unpack("=i", data)[0]


def _speaks(report: int, starter: int) -> bool:
    """Wait for the starter's next word; False where it was killed before."""
    poll = select.poll()
    poll.register(report, select.POLLIN)
    poll.register(starter, select.POLLIN)
    return bool(dict(poll.poll()).get(report, 0) & select.POLLIN)


def _give_up() -> NoReturn:
    for pid in _children().get(os.getpid(), []):
        _end_descendants(pid)
    os._exit(128 + signal.SIGKILL)


def _end_descendants(proot: int) -> None:
    """End what proot traces, let it take away its files, and then whatever is left of us."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and not _reaped(proot):
        children = _children()
        traced = list(children.get(proot, []))
        for pid in traced:
            traced += children.get(pid, [])
        adopted = [pid for pid in children.get(os.getpid(), []) if pid != proot]
        for pid in (*traced, *adopted):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    _end_children()
    _sweep(proot)


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _end_children() -> None:
    """End all our children, and those that become ours thereby."""
    while children := _children().get(os.getpid()):
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            _sweep(os.waitpid(-1, 0)[0])


def _sweep(proot: int) -> None:
    """Remove what a killed proot leaves."""
    for path in glob.glob(f"/tmp/proot-{proot}-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in glob.glob(f"/tmp/prooted-{proot}-*"):
        with contextlib.suppress(OSError):  # another user's, by the same number
            os.unlink(path)


def _children() -> dict[int, list[int]]:
    """Who is whose child now, proc(5). Without /proc/PID/task/TID/children, which not every kernel has."""
    out: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                out.setdefault(int(file.read().rpartition(b")")[2].split()[1]), []).append(int(name))
    return out
