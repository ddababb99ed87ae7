"""A process of a container on its way to its command: what `init` and `exec` have in common.

`STEPS` of a subclass is the whole way, in order. Each is all or nothing: the first that fails is told to the parent and
the command does not run. Two traps on the way. Once we see the container's files, no module may be loaded any more, or
an image could hand us its own: `seal` empties the import system. And until the command runs we are not dumpable, so
that nobody in the container can look into us or follow our descriptors (CVE-2016-9962).
Sources: runtime-spec config.md "process", capabilities(7), prctl(2). Taught in chapter 07.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from typing import Any, NoReturn

from minirt import linux
from minirt.errors import StartError
from minirt.runtime import capabilities, mounts, terminal, user
from minirt.runtime.namespaces import Sync
from minirt.runtime.seccomp import Filter

_APPARMOR = ("self/attr/apparmor/exec", "self/attr/exec")
_NULL = os.makedev(1, 3) if hasattr(os, "makedev") else 0


class Process:
    """`spec` is the runtime-spec's process object; `streams` become 0, 1, 2, unless it wants a terminal.

    `console` is a socket that takes the master of that terminal; `stdin` None is the container's own /dev/null.
    `preserve` descriptors after 2 stay open for the command.
    """

    STEPS: tuple[str, ...] = ()

    def __init__(
        self,
        spec: dict[str, Any],
        streams: tuple[int | None, int, int] = (0, 1, 2),
        console: int | None = None,
        filter: Filter | None = None,
        preserve: int = 0,
        keyring: bool = True,
    ) -> None:
        self.process, self.console_socket, self.preserve = spec, console, preserve
        self.filter, self._streams, self._keyring = filter, streams, keyring
        self.who = spec.get("user") or {}
        self.env = dict(entry.split("=", 1) for entry in spec.get("env") or () if "=" in entry)
        self.cwd = self.proc = -1
        self.program = ""
        self._ignored: list[int] = []

    def keep(self) -> None:
        """Before we see anything of the container's: the machine's /proc, for what must be read or written there."""
        self.proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def run(self, line: Sync) -> NoReturn:
        """Do all steps; the last one becomes the command. What fails is told on `line`."""
        self.line = line
        step = ""
        try:
            self.confirm()  # that the parent knows our pid
            linux.prctl(linux.PR_SET_DUMPABLE, 0)
            for step in self.STEPS:
                getattr(self, step)()
        except Exception as error:  # the process boundary: whatever it is, one line, and the command does not run
            self.line.tell(error, step)
        finally:
            os._exit(125)

    def confirm(self, **message: Any) -> None:
        """Tell the parent, if there is something to tell, and go on when it agrees; without a parent, end here."""
        if message:
            self.line.send(message)
        if self.line.receive() is None:
            os._exit(0)

    def session(self) -> None:
        os.setsid()
        if not self._keyring:
            return
        try:
            linux.join_new_session_keyring()
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):  # no keyrings here: none to share either
                raise

    def resolve(self, root: mounts.Root) -> None:
        """What only the container's files can tell: HOME."""
        if not self.env.get("HOME"):
            self.env["HOME"] = user.home(root, self.who.get("uid", 0))

    def label(self) -> None:
        """The AppArmor profile the command will run under, apparmor(7); docker's is `docker-default`."""
        profile = self.process.get("apparmorProfile")
        if not profile:
            return
        try:
            path = next(path for path in _APPARMOR if _is_there(path, self.proc))
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.proc)
            os.write(fd, f"exec {profile}".encode())
        except StopIteration:
            raise StartError(f"AppArmor profile {profile}: this machine has no AppArmor") from None
        except OSError as error:
            raise StartError(f"AppArmor profile {profile}: {error.strerror}") from error
        os.close(fd)

    def streams(self) -> None:
        """A terminal of the container's own, or the given descriptors, which then belong to the user: docker's do."""
        if self.process.get("terminal"):
            assert self.console_socket is not None
            terminal.open_inside(self.console_socket, self.process.get("consoleSize"), self.who.get("uid", 0))
            return
        own = _own_null()
        given = [own if fd is None or _is_null(fd) else fd for fd in self._streams]
        if None in given:
            raise StartError("/dev/null of the container is not the null device: refused")
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10 + self.preserve) for fd in given if fd is not None]
        for number, fd in enumerate(moved):
            os.dup2(fd, number)
            os.close(fd)
            if not _is_null(number):
                try:
                    os.fchown(number, self.who.get("uid", 0), -1)
                except OSError as error:  # somebody else's terminal or file, a read-only one, an id we do not have
                    if error.errno not in (errno.EPERM, errno.EINVAL, errno.EROFS):
                        raise

    def limits(self) -> None:
        """Only from outside may they be raised; and the parent may set ours while we are not yet another user's."""
        if self.process.get("rlimits"):
            self.confirm(limits=True)

    def privileges(self) -> None:
        """Give up, in the one order that works: bounding set, groups, user, the other sets, and ever gaining again.

        A filter goes last; without no_new_privs only the powerful may set one, so there it goes before.
        """
        who, sets = self.who, self.process.get("capabilities") or {}
        os.fchdir(self.cwd)
        os.close(self.cwd)
        strict = self.process.get("noNewPrivileges")
        capabilities.bound(sets)
        if self.filter and not strict:
            self.filter.load()
            self.filter = None
        linux.prctl(linux.PR_SET_KEEPCAPS, 1)
        uid, gid, groups = who.get("uid", 0), who.get("gid", 0), who.get("additionalGids") or []
        if self._may_set_groups():
            os.setgroups(groups)
        elif set(groups) - {gid}:
            raise StartError("supplementary groups cannot be set here: this user namespace denies it")
        self._ignored = _ignored(self.proc)
        os.close(self.proc)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        linux.prctl(linux.PR_SET_KEEPCAPS, 0)
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        capabilities.apply(sets)
        if (os.getresuid(), os.getresgid()) != ((uid,) * 3, (gid,) * 3):  # a filter may turn a call into nothing
            raise StartError(f"the process did not become user {uid}:{gid}: the seccomp policy does not let it")
        if strict:
            linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        os.umask(who.get("umask", 0o022))
        try:
            inside = linux.getcwd().startswith(b"/")
        except FileNotFoundError:
            inside = False
        if not inside:
            raise StartError("the working directory is outside of the container: refused (CVE-2024-21626)")
        self.program = find(self.process["args"][0], self.env.get("PATH", ""))
        if not os.access(self.program, os.X_OK):
            raise StartError(f"exec {self.program}: permission denied", 126)

    def _may_set_groups(self) -> bool:
        """A user namespace that a plain user mapped alone denies it, user_namespaces(7)."""
        fd = os.open("self/setgroups", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        try:
            return os.read(fd, 16).strip() != b"deny"
        finally:
            os.close(fd)

    def command(self) -> NoReturn:
        """Become the command."""
        linux.close_range(3 + self.preserve, cloexec=True)
        for number in self._ignored:
            linux.default_action(number)  # execve(2) itself takes away only what is handled
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            if self.filter:
                self.filter.load()
            os.execve(self.program, self.process["args"], self.env)
        except OSError as error:
            # The file is there and executable, but not a program: docker says so on stderr and exits with 1.
            os.write(2, f"exec {self.program}: {(error.strerror or '').lower()}\n".encode())
        os._exit(1)


def _ignored(proc: int) -> list[int]:
    """The signals that whoever started us ignores, proc(5) SigIgn."""
    with open(os.open("self/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc), "rb", buffering=0) as file:
        mask = next(int(line.split()[1], 16) for line in file.read().splitlines() if line.startswith(b"SigIgn:"))
    return [number for number in range(1, signal.NSIG) if mask >> number - 1 & 1]


def _own_null() -> int | None:
    """The container's /dev/null, if it is one. Through the machine's, root of a container could change its mode."""
    try:
        own = os.open("/dev/null", os.O_RDWR | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    return own if _is_null(own) else None


def _is_null(fd: int) -> bool:
    entry = os.fstat(fd)
    return stat.S_ISCHR(entry.st_mode) and entry.st_rdev == _NULL


def _is_there(path: str, folder: int) -> bool:
    try:
        os.stat(path, dir_fd=folder)
    except OSError:
        return False
    return True


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
