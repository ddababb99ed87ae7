"""An OCI runtime driven as docker and podman drive it: by its command line only.

`Runtime` is the command and its `--root`; a `Box` is one container: a bundle of its own, made from `config()`, and the
verbs. The caller of the verbs is a subreaper (conftest.py), as containerd's shim and conmon are: a container's first
process becomes our child when the runtime exits, so its exit status is ours to read. Nothing here knows which runtime
it is; where one has to be handled specially, `command` says how it is called.
Sources: runtime-spec runtime.md and config.md; the command line is runc's.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import functools
import importlib.util
import itertools
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from peers import require

NAMES = ["runc", "crun", *(["ours"] if importlib.util.find_spec("minirt.runtime.command") else [])]
SECONDS = 20  # no call may take longer, however busy the machine

# crun 1.8 refuses hybrid cgroups: it sees none when the v2 side is unmounted in a mount namespace of its own.
_V2 = "/sys/fs/cgroup/unified"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE", "CAP_KILL"]
NAMESPACES = ["mount", "pid", "ipc", "uts", "network"]
CLOSED = ["nosuid", "noexec", "nodev"]
_numbers = itertools.count()


class Result(NamedTuple):
    status: int
    out: str
    err: str


def config(*args: str) -> dict[str, Any]:
    """A small config.json; tests change it in place."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": [PATH],
            "cwd": "/",
            "capabilities": {name: list(CAPABILITIES) for name in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": list(CLOSED)},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*CLOSED, "ro"]},
        ],
        "linux": {"namespaces": [{"type": name} for name in NAMESPACES]},
    }


def fill(folder: Path) -> None:
    """A root file system from this machine's static busybox."""
    for name in ("bin", "etc", "tmp", "root", "dev", "proc", "sys"):
        (folder / name).mkdir(parents=True)
    shutil.copy(require("busybox"), folder / "bin" / "busybox")
    names = subprocess.run([folder / "bin" / "busybox", "--list"], capture_output=True, text=True, check=True).stdout
    for name in set(names.split()) - {"busybox"}:
        os.symlink("busybox", folder / "bin" / name)
    (folder / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n")
    (folder / "etc" / "group").write_text("root:x:0:\nweb:x:1000:\nextra:x:2000:web\n")
    (folder / "etc" / "plain").write_text("not a program\n")
    (folder / "bin" / "orphan").write_text("#!/no/such/interpreter\n")
    (folder / "bin" / "orphan").chmod(0o755)


def twin(image: Path | str, folder: Path | str) -> None:
    """The same tree in `folder`: folders of its own, all else linked in, symbolic links too: a link costs no inode."""
    os.mkdir(folder)
    for entry in os.scandir(image):
        if entry.is_dir(follow_symlinks=False):
            twin(entry.path, f"{folder}/{entry.name}")
        else:
            os.link(entry.path, f"{folder}/{entry.name}", follow_symlinks=False)


def command(name: str) -> tuple[str, ...]:
    """The words that start this runtime."""
    if name == "runc":
        return (require("runc"),)
    if name == "crun" and any(row.split()[4] == _V2 for row in Path("/proc/self/mountinfo").read_text().splitlines()):
        # slave: mounts made outside are seen, and the machine's own v2 mount stays
        wrap = [require("unshare"), "--mount", "--propagation", "slave", "sh", "-c", f'umount {_V2}; exec "$@"', "crun"]
        return (*wrap, require("crun"))
    if name == "crun":
        return (require("crun"),)
    script = Path(sys.executable).with_name("minirt-oci")
    return (str(script),) if script.exists() else (sys.executable, "-m", "minirt.runtime.command")


@dataclass(frozen=True)
class Runtime:
    """One runtime with a state folder of its own. `home` is the test's folder: state, bundles, sockets, outputs."""

    name: str
    home: Path
    image: Path
    boxes: list[Box] = field(default_factory=list)

    def call(self, *words: str | Path, options: tuple[str, ...] = (), **more: Any) -> Result:
        """Run `RUNTIME --root … OPTIONS WORDS` and wait. Its standard files are files: a container keeps them."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as given:
            text = more.pop("stdin", "")
            given.write(text.encode())
            given.seek(0)
            argv = [*command(self.name), "--root", str(self.home / "root"), *options, *map(str, words)]
            files: dict[str, Any] = {"stdin": given, "stdout": out, "stderr": err, "timeout": SECONDS}
            status = subprocess.run(argv, check=False, **(files | more)).returncode
            return Result(status, *(_text(file) for file in (out, err)))

    def begin(self, *words: str | Path, **more: Any) -> subprocess.Popen[bytes]:
        """The same, not waited for."""
        argv = [*command(self.name), "--root", str(self.home / "root"), *map(str, words)]
        return subprocess.Popen(argv, **more)

    def box(self, *args: str) -> Box:
        """A new container, not yet created, that is to run `args`."""
        name = f"minirt-test-{os.getpid()}-{next(_numbers)}"
        bundle = self.home / f"b{len(self.boxes)}"
        bundle.mkdir()
        twin(self.image, bundle / "rootfs")
        whole = config(*args)
        whole["linux"]["cgroupsPath"] = f"/{name}"
        self.boxes.append(Box(self, name, name, bundle, whole))
        return self.boxes[-1]


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode(errors="replace"))


@dataclass
class Box:
    """One container by its verbs. Each gives the command's Result, or (`ok=True`) fails the test when it fails."""

    runtime: Runtime
    id: str
    cgroup: str  # by a name of its own: tests give ids that are no names
    bundle: Path
    config: dict[str, Any]

    @property
    def rootfs(self) -> Path:
        return self.bundle / "rootfs"

    @property
    def process(self) -> Any:
        """`process` of the config, to be changed in place."""
        return self.config["process"]

    @property
    def linux(self) -> Any:
        """`linux` of the config, to be changed in place."""
        return self.config["linux"]

    def write(self) -> None:
        (self.bundle / "config.json").write_text(json.dumps(self.config))

    def mount(self, destination: str, source: str | Path, *options: str, kind: str = "bind") -> None:
        self.config["mounts"].append(
            {"destination": destination, "type": kind, "source": str(source), "options": list(options)}
        )

    def namespace(self, kind: str, path: str | Path | None = None) -> None:
        """Give the container a namespace of this kind: a new one, or the one at `path`."""
        rest = [row for row in self.linux["namespaces"] if row["type"] != kind]
        self.linux["namespaces"] = [*rest, {"type": kind} | ({"path": str(path)} if path else {})]

    def without(self, kind: str) -> None:
        self.linux["namespaces"] = [row for row in self.linux["namespaces"] if row["type"] != kind]

    def run(self, *options: str, ok: bool = False, **more: Any) -> Result:
        """`run` in the foreground: the result is the container's."""
        self.write()
        return _checked(ok, self.runtime.call("run", "--bundle", self.bundle, *options, self.id, **more))

    def output(self, *options: str, **more: Any) -> str:
        """What the container's command prints; it must end well."""
        return self.run(*options, ok=True, **more).out

    def create(self, *options: str, ok: bool = True, **more: Any) -> Result:
        """`create`. What the container writes later is in `printed` and `complaints`."""
        self.write()
        self.bundle.joinpath("out").touch()
        words = ["--bundle", str(self.bundle), "--pid-file", str(self.pid_file), *options, self.id]
        with open(self.bundle / "out", "wb") as out, open(self.bundle / "err", "wb") as err:
            files: dict[str, Any] = {"stdout": out, "stderr": err} | more
            status = self.runtime.call("create", *words, **files).status
        return _checked(ok, Result(status, self.printed, self.complaints))

    @property
    def pid_file(self) -> Path:
        return self.bundle / "pid"

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())

    @property
    def printed(self) -> str:
        return (self.bundle / "out").read_text()

    @property
    def complaints(self) -> str:
        return (self.bundle / "err").read_text()

    def verb(self, verb: str, *words: str | Path, ok: bool = True, **more: Any) -> Result:
        return _checked(ok, self.runtime.call(verb, *words, **more))

    def start(self, ok: bool = True) -> Result:
        return self.verb("start", self.id, ok=ok)

    def up(self, *options: str) -> Box:
        """create and start."""
        self.create(*options)
        self.start()
        return self

    def state(self) -> dict[str, Any]:
        return dict(json.loads(self.verb("state", self.id).out))

    @property
    def status(self) -> str:
        return str(self.state()["status"])

    def kill(self, *words: str, ok: bool = True) -> Result:
        return self.verb("kill", self.id, *words, ok=ok)

    def delete(self, *options: str, ok: bool = True) -> Result:
        return self.verb("delete", *options, self.id, ok=ok)

    def exec(self, *words: str | Path, ok: bool = False, **more: Any) -> Result:
        """`exec OPTIONS ID ARGS`: an option is a word that starts with a dash; `--` never stands for the id's place."""
        return self.verb("exec", *words, ok=ok, **more)

    def sh(self, script: str, *options: str | Path) -> str:
        """What a shell script prints in the running container."""
        return self.exec(*options, self.id, "sh", "-c", script, ok=True).out

    def wait(self) -> int:
        """The exit status of the container's command, as its parent sees it (128 + the signal that killed it)."""
        return reap(self.pid)


def _checked(ok: bool, result: Result) -> Result:
    assert not ok or result.status == 0, result
    return result


def reap(pid: int) -> int:
    """Wait for our child `pid`, also one that became ours when its parent died."""
    until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None, f"process {pid} to end")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status


def until(done: Callable[[], Any], what: str, seconds: float = SECONDS) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.003)


def children() -> dict[int, str]:
    """Our children and their states (`Z`: has ended, nobody asked how)."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state, parent = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[:2]
                if int(parent) == os.getpid():
                    found[int(entry)] = state
    return found


def gather(but: set[int]) -> bool:
    """Take the exit statuses of our children that have ended, except those; True when none of them is left."""
    for pid, state in children().items():
        if pid not in but and state == "Z":
            os.waitpid(pid, 0)
    return not children().keys() - but


def mounts(below: Path) -> list[str]:
    """The mount points at or under a folder, deepest last."""
    points = [row.split()[4] for row in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point == str(below) or point.startswith(f"{below}/")]


@functools.cache
def hierarchies() -> dict[str, Path]:
    """Where each cgroup controller's tree is mounted; the v2 tree is ``."""
    found = {}
    for row in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = row.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            found[""] = Path(before.split()[4])
        elif kind == "cgroup":
            names = {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "pids", "blkio", "name=systemd"}
            found |= {name: Path(before.split()[4]) for name in options.split(",") if name in names}
    return found


def cgroups(box: Box) -> list[Path]:
    """The cgroups made for this container, in all hierarchies."""
    return [folder for root in dict.fromkeys(hierarchies().values()) if (folder := root / box.cgroup).is_dir()]


def raised(result: Result, *texts: str) -> bool:
    """A refusal: not 0, one of the texts is in the words said, and they are not a traceback or a crash."""
    assert result.status != 0, result
    assert "Traceback" not in result.err and "panic:" not in result.err, result.err
    said = (result.err + result.out).lower()
    assert not texts or any(text.lower() in said for text in texts), result
    return True


class Console:
    """Receives a terminal's master end over --console-socket, as containerd's shim and conmon do (SCM_RIGHTS)."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"console{next(_numbers)}"
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self.path))
        self._server.listen()
        self._server.settimeout(SECONDS)
        self.master = -1
        self.seen = b""

    def receive(self) -> Console:
        connection, _ = self._server.accept()
        with connection:
            connection.settimeout(SECONDS)
            _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4))
        ((level, kind, data),) = ancillary
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        (self.master,) = array.array("i", data[:4])
        assert os.isatty(self.master)
        return self

    def write(self, text: str) -> None:
        os.write(self.master, text.encode())

    def read(self, wanted: str = "") -> str:
        """All that was printed, up to `wanted`, or to the end."""
        end = time.monotonic() + SECONDS
        while not wanted or wanted.encode() not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {wanted!r} in {self.seen!r}"
            try:
                chunk = os.read(self.master, 4096)
            except OSError:  # EIO: the other end was closed
                chunk = b""
            if not chunk:
                assert not wanted, f"no {wanted!r} in {self.seen!r}"
                break
            self.seen += chunk
        return self.seen.decode()

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def close(self) -> None:
        self._server.close()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1


@contextlib.contextmanager
def console(folder: Path) -> Iterator[Console]:
    socket_ = Console(folder)
    try:
        yield socket_
    finally:
        socket_.close()


def states(runtime: Runtime) -> list[Path]:
    """What is in the runtime's state folder, but for a cache that is no container's (its name begins with a dot)."""
    root = runtime.home / "root"
    return [path for path in root.iterdir() if path.name[0] != "."] if root.is_dir() else []


def cleaned(runtime: Runtime) -> list[str]:
    """Delete every container by force; what is still there afterwards, in words (and taken away)."""
    left: list[str] = []
    for box in runtime.boxes:
        if states(runtime) and runtime.call("state", box.id).status == 0:
            result = runtime.call("delete", "--force", box.id)
            if result.status and runtime.call("state", box.id).status == 0:  # a `run` of its own may be quicker
                left.append(f"delete --force: {result}")
        if runtime.name != "crun":  # crun 1.8 leaves those of a create that failed
            left += [f"cgroup {folder}" for folder in cgroups(box)]
        for folder in cgroups(box):
            _remove(folder)
    left += [f"state {path}" for path in states(runtime)]
    for point in reversed(mounts(runtime.home)):
        left.append(f"mount {point}")
        subprocess.run(["umount", "-l", point], check=False)
    return left


def _remove(folder: Path) -> None:
    """Remove an empty cgroup and those below; one that still has processes stays."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)
