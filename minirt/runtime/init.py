"""Container init: pid 1, from a fork of the shim to the image's command, driven by config.json alone.

`STEPS` is the whole way, in order. Each is all or nothing: the first that fails is reported on a close-on-exec pipe and
the command does not run; that pipe closing by itself is how the shim learns that the command runs. Until `pivot` the
machine's files are in sight (sources of bind mounts), afterwards only the container's.
Sources: runtime-spec runtime.md "Lifecycle", pivot_root(2), capabilities(7). Taught in chapter 07.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
from typing import Any, NoReturn

from minirt import linux
from minirt.errors import MinirtError, StartError
from minirt.runtime import capabilities, devices, mounts, user

_FLAGS = {
    "mount": linux.CLONE_NEWNS, "uts": linux.CLONE_NEWUTS, "ipc": linux.CLONE_NEWIPC, "network": linux.CLONE_NEWNET,
    "cgroup": linux.CLONE_NEWCGROUP,
}  # fmt: skip


class Init:
    """`streams` are the container's ends of stdin, stdout, stderr; stdin None means its own /dev/null."""

    STEPS = (
        "namespaces", "network", "mounts", "devices", "working_directory", "masks", "pivot", "streams", "privileges",
        "command",
    )  # fmt: skip

    def __init__(self, config: dict[str, Any], bundle: str, streams: tuple[int | None, int, int]) -> None:
        self.bundle, self._streams = bundle, streams
        self.config, self.process, self.linux = config, config["process"], config["linux"]
        self.kinds = {namespace["type"] for namespace in self.linux["namespaces"]}
        self.env = dict(entry.split("=", 1) for entry in self.process["env"] if "=" in entry)
        self.cwd = -1

    def run(self, report: int) -> NoReturn:
        """Do all steps; the last one becomes the command. What fails is written to `report`."""
        step = ""
        try:
            for step in self.STEPS:
                getattr(self, step)()
        except MinirtError as error:
            answer = {"error": str(error), "exit_code": error.exit_code}
        except Exception as error:  # the process boundary: whatever it is, one line, and the command does not run
            reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            path = f" {os.fsdecode(error.filename)}" if isinstance(error, OSError) and error.filename else ""
            answer = {
                "error": f"cannot set up the container: {step.replace('_', ' ')}:{path} {reason}",
                "exit_code": 125,
            }
        answer["error"] = str(answer["error"])[:1000]
        os.write(report, json.dumps(answer).encode())
        os._exit(125)

    def namespaces(self) -> None:
        """Leave the shim's namespaces (pid and user are entered already) and its session."""
        os.setsid()
        linux.unshare(sum(_FLAGS[kind] for kind in self.kinds if kind in _FLAGS))
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        if "uts" in self.kinds:
            linux.sethostname(self.config.get("hostname", ""))
        try:
            linux.join_new_session_keyring()
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):  # no keyrings here: none to share either
                raise

    def network(self) -> None:
        """A new network namespace has a loopback device that is down, netdevice(7)."""
        if "network" not in self.kinds:
            return
        import fcntl
        import socket

        get_flags, set_flags, up = 0x8913, 0x8914, 1
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = fcntl.ioctl(any_socket, get_flags, b"lo".ljust(40, b"\0"))
            flags = int.from_bytes(request[16:18], "little") | up
            fcntl.ioctl(any_socket, set_flags, request[:16] + flags.to_bytes(2, "little") + request[18:])

    def mounts(self) -> None:
        os.umask(0)
        self.root = mounts.Root(os.path.join(self.bundle, self.config["root"]["path"]))
        for entry in self.config["mounts"]:
            try:
                mounts.mount(self.root, entry, self.bundle)
            except OSError as error:
                raise StartError(f"mount {entry['destination']}: {error.strerror}") from error

    def devices(self) -> None:
        if any(entry["destination"] == "/dev" and entry.get("type") == "tmpfs" for entry in self.config["mounts"]):
            devices.make(self.root, "user" in self.kinds)

    def working_directory(self) -> None:
        """Made where it is missing, as docker does; held as a descriptor until we are inside."""
        path = self.process["cwd"]
        try:
            self.cwd = self.root.make(path)
        except OSError as error:
            raise StartError(f"working directory {path}: {error.strerror}") from error
        if not stat.S_ISDIR(os.fstat(self.cwd).st_mode):
            raise StartError(f"Cannot mkdir: {path} is not a directory")
        if not self.env.get("HOME"):
            self.env["HOME"] = user.home(self.root, self.process["user"]["uid"])

    def masks(self) -> None:
        for path in self.linux.get("readonlyPaths", ()):
            mounts.read_only(self.root, path)
        for path in self.linux.get("maskedPaths", ()):
            mounts.mask(self.root, path)
        if self.config["root"].get("readonly"):
            linux.mount_setattr(self.root.fd, "", linux.AT_EMPTY_PATH, linux.MOUNT_ATTR_RDONLY)

    def pivot(self) -> None:
        """Make the rootfs `/` and let go of the machine's file system; then see that we really stand inside."""
        os.fchdir(self.root.fd)
        linux.pivot_root(".", ".")
        linux.umount(".", linux.MNT_DETACH)
        os.chdir("/")

    def streams(self) -> None:
        """Pipes belong to the user, who may open /dev/stdout; a missing stdin is the container's own null device."""
        stdin, stdout, stderr = self._streams
        for number, fd in enumerate((os.open("/dev/null", os.O_RDWR) if stdin is None else stdin, stdout, stderr)):
            os.dup2(fd, number)
            if number or stdin is not None:
                os.fchown(number, self.process["user"]["uid"], -1)

    def privileges(self) -> None:
        """Give up, in the one order that works: bounding set, groups, user, the other sets, and ever gaining again."""
        who, sets = self.process["user"], self.process.get("capabilities", {})
        os.fchdir(self.cwd)
        capabilities.bound(sets)
        linux.prctl(linux.PR_SET_KEEPCAPS, 1)
        if sum(row["size"] for row in self.linux.get("gidMappings", ())) != 1:  # a single id has no setgroups(2)
            os.setgroups(who.get("additionalGids", []))
        os.setresgid(who["gid"], who["gid"], who["gid"])
        os.setresuid(who["uid"], who["uid"], who["uid"])
        linux.prctl(linux.PR_SET_KEEPCAPS, 0)
        capabilities.apply(sets)
        if self.process.get("noNewPrivileges"):
            linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        os.umask(who.get("umask", 0o022))

    def command(self) -> NoReturn:
        """Become the command."""
        try:
            inside = os.getcwd().startswith("/")
        except FileNotFoundError:
            inside = False
        if not inside:
            raise StartError("the working directory is outside of the container: refused (CVE-2024-21626)")
        args = self.process["args"]
        program = find(args[0], self.env.get("PATH", ""))
        if not os.access(program, os.X_OK):
            raise StartError(f"exec {program}: permission denied", 126)
        linux.close_range(3, cloexec=True)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            os.execve(program, args, self.env)
        except OSError as error:
            # The file is there and executable, but not a program: docker says so on stderr and exits with 1.
            os.write(2, f"exec {program}: {(error.strerror or '').lower()}\n".encode())
        os._exit(1)


def find(name: str, path: str) -> str:
    """The file that `name` means, by PATH where it has no slash. Raises StartError, docker's words and exit codes."""
    if "/" in name:
        try:
            mode = os.stat(name).st_mode
        except OSError as error:
            reason = (error.strerror or "").lower()
            code = {errno.ENOENT: 127, errno.EACCES: 126}.get(error.errno or 0, 125)
            raise StartError(f'exec: "{name}": stat {name}: {reason}', code) from error
        if stat.S_ISDIR(mode) or not mode & 0o111:
            raise StartError(f'exec: "{name}": permission denied', 126)
        return name
    for folder in path.split(":"):
        candidate = os.path.join(folder or ".", name)
        try:
            mode = os.stat(candidate).st_mode
        except OSError:
            continue
        if not stat.S_ISDIR(mode) and mode & 0o111:
            return candidate
    raise StartError(f'exec: "{name}": executable file not found in $PATH', 127)
