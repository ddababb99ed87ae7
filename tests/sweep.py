"""Kill -9 of any process of ours, at any moment: one scenario (a command, and what must be there before it), over and
over, each time with the death one step later (sweep_hook.py), and after each a look at what is left.

Listed means: `system check` has a row, or `ps -a` has the container. Removed means: after `system prune` and `rm -f` no
process (but a daemon and its launcher), mount, control group, link, nft table (but of the bridge that this daemon
keeps, and that goes with it) or file is there that was not before. The look is our own: /proc, /sys, `ip`, `nft` and
the folder, not the package's word.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sweep_hook
import users

from minirt.runtime.network import bridge

sys.path.append(str(Path(__file__).with_name("oci")))
import ociruntime  # type: ignore[import-not-found,unused-ignore]

_HERE = Path(__file__).parent
_PATIENCE = 10.0  # seconds: what was killed is gone long before, but the machine may be busy
_SERVER = """
import json, os, sys
from minirt.client import Client
from minirt.errors import MinirtError
os.environ.update(json.loads(sys.argv[1]))  # for a daemon that we start
for line in sys.stdin:
    verb, root, *words = json.loads(line)
    client = Client(root)
    try:
        if verb == "ps":
            answer = [[row["Id"], row["State"]] for row in client.containers(all=True)]
        elif verb == "check":
            answer = [f"{row['what']}: {row['problem']}" for row in client.check()]
        elif verb == "prune":
            answer = client.prune()["ContainersDeleted"]
        elif verb == "run":
            host = {"AutoRemove": True, "NetworkMode": "none"}
            identity = client.create({"Image": "toolbox", "Cmd": words, "HostConfig": host})["Id"]
            with client.waiting(identity, "removed") as waiting:  # once it runs it may be gone at any moment
                client.start(identity)
                answer = waiting.result()
        else:
            answer = client.remove(words[0], force=True)
    except MinirtError as error:
        answer = f"error: {error}"
    client.close()
    print(json.dumps(answer), flush=True)
"""


def package(home: Path) -> None:
    """Put the hook into the copy of the package at `home`."""
    if not (home / "minirt").exists():  # a plain user has one
        shutil.copytree(_HERE.parent / "minirt", home / "minirt", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_HERE / "sweep_hook.py", home / "minirt" / "_sweep.py")
    with open(home / "minirt" / "linux.py", "a", encoding="utf-8") as file:
        file.write("\n\nfrom minirt import _sweep  # noqa: E402\n\n_sweep.watch(globals())\n")
    with open(home / "minirt" / "__init__.py", "a", encoding="utf-8") as file:
        file.write("\n\nfrom minirt import _sweep  # noqa: E402, F401\n")


# A machine with one link to somewhere, where everybody may open /dev/net/tun, as is usual.
_SET_UP = """ip link set lo up && ip link add lan0 type veth peer name lan1 && ip link set lan1 up &&
ip address add 198.51.100.1/24 dev lan0 && ip link set lan0 up && ip route add default via 198.51.100.2 &&
mkdir "$1" && mount -t tmpfs none "$1" && mknod -m 666 "$1/tun" c 10 200 && mount --bind "$1/tun" /dev/net/tun &&
umount -l "$1" && rmdir "$1" && echo ready && exec sleep infinity"""


@contextlib.contextmanager
def root_machine() -> Iterator[Machine]:
    """A machine whose root runs the scenarios."""
    home = Path(tempfile.mkdtemp(prefix="minirt-sweep-", dir="/dev/shm"))
    try:
        with _holder(home) as holder, contextlib.closing(Machine(home, holder)) as machine:
            yield machine
    finally:
        shutil.rmtree(home)


@contextlib.contextmanager
def user_machine() -> Iterator[Machine]:
    """A machine whose plain user, with subordinate ids, runs the scenarios."""
    with (
        users.plain_user(subuids=True) as user,
        _holder(user.home) as holder,
        contextlib.closing(Machine(user.home, holder, user)) as machine,
    ):
        yield machine


@contextlib.contextmanager
def _holder(home: Path) -> Iterator[int]:
    """A process that keeps the machine's network and mount namespaces."""
    package(home)
    words = ["unshare", "--net", "--mount", "setpriv", "--pdeathsig", "KILL", "sh", "-c", _SET_UP, "sh"]
    process = subprocess.Popen([*words, str(home / "devices")], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()


@dataclass
class Machine:
    """Where scenarios run: in the namespaces of process `holder`; `home` holds the copy of the package. `marker` is the
    root folder, which every process of ours names somewhere."""

    home: Path
    holder: int
    user: users.User | None = None

    def __post_init__(self) -> None:
        inside = ["nsenter", f"--net=/proc/{self.holder}/ns/net", f"--mount=/proc/{self.holder}/ns/mnt"]
        self._inside, self._python = inside, [*inside, "--", sys.executable]
        if self.user:
            who = ["--reuid", str(self.user.uid), "--regid", str(self.user.gid), "--clear-groups"]
            self._python = [*inside, "--", "setpriv", *who, "--inh-caps=-all", self.user.interpreter]
        self.marker = str(self.home / f"root{os.getpid()}")
        self.parent = f"minirt-sweep-{os.getpid()}"
        self.page_file = self.home / "page"
        self.page_file.write_bytes(bytes(sweep_hook.SIZE))
        self.page_file.chmod(0o666)
        with open(self.page_file, "r+b") as file:
            self.page = mmap.mmap(file.fileno(), sweep_hook.SIZE)
        (self.home / "run").mkdir()
        os.chown(self.home / "run", *((self.user.uid, self.user.gid) if self.user else (0, 0)))
        words = [*self._python, "-B", "-c", _SERVER, json.dumps(self._environment(True))]
        self._server = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=self.home, env=self._environment(False)
        )
        self._links: list[str] = []
        self._links = self._network()
        assert self.run("pull", "-q", "toolbox").returncode == 0

    def close(self) -> None:
        clean(self)
        self.run("daemon", "stop")
        assert [row for row in self._network() if row not in self._links] == []
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait(20)
        for path in self.groups():
            path.rmdir()

    def _environment(self, hooked: bool) -> dict[str, str]:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "PYTHONPATH": str(self.home)}
        env["XDG_RUNTIME_DIR"] = str(self.home / "run")
        hook = {sweep_hook.PAGE: str(self.page_file), "MINIRT_ROOT": self.marker, "MINIRT_HUB": "embedded"}
        return env | hook if hooked else env

    def words(self, text: str) -> list[str]:
        """A scenario's command; a plain user has no control groups to be told apart."""
        return text.format(group="" if self.user else f"--cgroup-parent=/{self.parent}").split()

    def run(self, *words: str, step: int = 0, at: str = "") -> subprocess.CompletedProcess[str]:
        """Run `minirt WORDS`; who takes the `step`-th step from now on dies (0: none), or the first with `at` in it."""
        struct.pack_into("=QQ", self.page, 0, 0, step)
        self.page[sweep_hook.WANTED :] = at.encode().ljust(sweep_hook.SIZE - sweep_hook.WANTED, b"\0")
        command = [*self._python, "-m", "minirt", *words]
        with tempfile.TemporaryFile("w+") as out:  # a pipe would be waited for as long as a container holds it
            status = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=60, check=False,
                env=self._environment(True), cwd=self.home,
            ).returncode  # fmt: skip
            out.seek(0)
            self.last = self.steps
            struct.pack_into("=QQ", self.page, 0, 0, 0)  # the daemon goes on, and nobody is to die any more
            self.page[sweep_hook.WANTED : sweep_hook.DIED] = bytes(sweep_hook.DIED - sweep_hook.WANTED)
            return subprocess.CompletedProcess(command, status, out.read(), "")

    @property
    def steps(self) -> int:
        return int(struct.unpack_from("=Q", self.page)[0])

    @property
    def died_at(self) -> str:
        """What the killed process was about to do; empty where none was killed."""
        return self.page[sweep_hook.DIED :].rstrip(b"\0").decode(errors="replace")

    def ask(self, *words: str) -> Any:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps([words[0], self.marker, *words[1:]]) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    # what is there

    def descriptors(self) -> int:
        """Open ones of the programs that live through it all."""
        pids = [self._server.pid, *(pid for pid, words in self.processes().items() if serves(pid, words))]
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)

    def look(self) -> list[str]:
        """Everything of ours outside of the folder, in words."""
        found = [f"process {pid}: {words}" for pid, words in self.processes().items() if not serves(pid, words)]
        for pid in ("self", self.holder):
            lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
            found += [f"mount {line}" for line in lines if self.marker in line]
        found += [f"group {path}" for path in self.groups() if path.name != self.parent]
        kept = bridge.name_of(self.marker) if self._kept() else ""
        usual = [*self._links, f"link {kept}", f"table ip {kept}"]
        return found + [row for row in self._network() if row not in usual]

    def _kept(self) -> bool:
        """Whether a daemon that lives keeps the bridge."""
        try:
            keeper = json.loads(Path(self.marker, "network-keeper.json").read_text())
        except FileNotFoundError:
            return False
        return keeper["pid"] in self.processes()

    def _network(self) -> list[str]:
        """The links and tables of nft in the machine's network namespace. Not: what the kernel is just taking away."""
        links = [row for row in json.loads(self._tool("ip", "-j", "-d", "link")) if not _unplugged(row)]
        return [f"link {row['ifname']}" for row in links] + self._tool("nft", "list", "tables").splitlines()

    def _tool(self, *words: str) -> str:
        return subprocess.run([*self._inside, *words], check=True, capture_output=True, text=True).stdout

    def groups(self) -> list[Path]:
        tops = [root / self.parent for root in set(ociruntime.hierarchies().values())]
        return [Path(path) for top in tops for path, _, _ in os.walk(top, topdown=False)]

    def processes(self) -> dict[int, str]:
        """All that name our folder in their command line or environment: no program of ours is started without."""
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) not in (os.getpid(), self._server.pid):
                with contextlib.suppress(OSError):
                    words = Path("/proc", entry, "cmdline").read_bytes()
                    if self.marker.encode() in words + Path("/proc", entry, "environ").read_bytes():
                        found[int(entry)] = words.replace(b"\0", b" ").decode(errors="replace")[-200:]
        return found

    def files(self) -> set[str]:
        """Every path in the folder, but for the insides of images."""
        root = Path(self.marker)
        return {
            str(path.relative_to(root)) for path in root.rglob("*") if "layers" not in path.relative_to(root).parts[:-3]
        }


@dataclass(frozen=True)
class Scenario:
    """`words` are run again and again, each time after `before`. `{group}` becomes a control group of ours."""

    words: str
    before: tuple[str, ...] = ()


def sweep(machine: Machine, scenario: Scenario, tries: int | None) -> Iterator[str]:
    """Every step (or `tries` of them, evenly spread); yields what was wrong after each, in words."""
    once(machine, scenario, 0)  # caches are filled, lock files made
    total = machine.last
    clean(machine)
    files = machine.files()
    stride = max(1.0, total / tries) if tries else 1.0
    place = 1.0
    while place <= total + (0 if tries else 5):  # how many there are may differ by a few from time to time
        step = int(place)
        once(machine, scenario, step)
        died = machine.died_at
        if died:
            for problem in problems(machine, files):
                yield f"killed at step {step} of {total}, {died}: {problem}"
        clean(machine)
        place += stride


def once(machine: Machine, scenario: Scenario, step: int) -> None:
    for words in scenario.before:
        done = machine.run(*machine.words(words))
        assert done.returncode == 0, done.stdout
    done = machine.run(*machine.words(scenario.words), step=step)
    assert step or done.returncode == 0, done.stdout


def problems(machine: Machine, files: set[str]) -> Iterator[str]:
    """What `check` does not list, and what `prune` and `rm` do not take away."""
    rows: list[str] = []

    def listed() -> bool:
        rows[:] = machine.ask("check")
        runs = any(state in ("running", "paused") for _, state in machine.ask("ps"))
        return bool(rows) or runs or not machine.look()

    if not soon(listed):
        yield f"not listed: {machine.look()}"
    _settle(machine)
    rows = machine.ask("check")
    if rows:
        machine.ask("prune")
        if left := machine.ask("check"):
            yield f"prune leaves {left} of {rows}"
    for identity, _ in machine.ask("ps"):
        if answer := machine.ask("rm", identity):
            yield f"rm -f: {answer}"
    if not soon(lambda: not machine.look()):
        yield f"left: {machine.look()} (listed: {rows})"
    if left := machine.ask("check"):
        yield f"listed at the end: {left}"
    if more := machine.files() - files:
        yield f"files: {sorted(more)} (listed: {rows})"


def _settle(machine: Machine) -> None:
    """Wait until those who were not killed have done what they were about to do: nothing changes for a while."""
    before: dict[int, str] = {-1: ""}
    end = time.monotonic() + _PATIENCE
    while (now := machine.processes()) != before and time.monotonic() < end:
        before = now
        time.sleep(0.05 if now else 0)


def clean(machine: Machine) -> None:
    """Whatever was wrong, the next step begins with nothing."""
    for identity, _ in machine.ask("ps"):
        machine.ask("rm", identity)
    machine.ask("prune")
    for pid, words in machine.processes().items():
        with contextlib.suppress(ProcessLookupError):
            if not serves(pid, words):
                os.kill(pid, signal.SIGKILL)
    for folder in Path(machine.marker, "containers").iterdir():
        shutil.rmtree(folder)
    for path in machine.groups():
        with contextlib.suppress(OSError):
            path.rmdir()


def serves(pid: int, words: str) -> bool:
    """Whether it is a daemon, the launcher of one that lives, or what that has forked ahead."""
    if " minirt.daemon " in words:
        return True
    try:
        if Path(f"/proc/{pid}/comm").read_text() == "minirt-ahead\n":
            return True
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        above = Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        return False
    return " minirt.runtime.launcher " in words and b"\0minirt.daemon\0" in above


def soon(done: Callable[[], bool]) -> bool:
    end = time.monotonic() + _PATIENCE
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _unplugged(link: dict[str, Any]) -> bool:
    """A bridge port that is off: the container's end goes with its namespace."""
    return bool((link.get("linkinfo", {}).get("info_slave_data") or {}).get("state") == "disabled")
