"""A container built by hand: walls and escapes are a learner's small functions, tried in a fresh process each time.

    container = ByHand(chapter)
    container.escape(read_file)     # is there a way out? asked with the walls so far
    container.wall(own_root)        # one wall more: all escapes again, before and after

The functions are never called here: their text goes to `captive`. What the escapes are after is made for them and gone
afterwards: a file, a process, a port on loopback, a piece of shared memory. Invariant: nothing outlives a call but the
scratch folder, `by-hand` in the chapter's store, which `clean_up` removes. Taught in chapter 07.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minirt.errors import InvalidInput, MinirtError, Unsupported
from minirt.notebook.markup import esc
from minirt.notebook.place import Place

Function = Callable[[Any], Any]
_SECONDS = 20  # for one trial, before it is ended
_LOWEST = 100  # a host process has a number that no process in a small pid namespace has
_ROOM = 16384  # bytes of output shown
_HERE = str(Path(__file__).resolve().parents[2])
_PYTHON = [sys.executable, "-I", "-S", "-u", "-c"]
_BOOT = "import sys; sys.path[:0] = [sys.argv[1]]; exec(compile(open(sys.argv[2]).read(), sys.argv[2], 'exec'))"
_VICTIM = "import sys; sys.path[:0] = [sys.argv[1]]; from minirt import linux; linux.capset(0, 0, 0); print(); input()"


@dataclass(frozen=True)
class Outcome:
    """Of one escape: whether it got `out`, and if not, the kernel's error, as a name ("" where there is none)."""

    out: bool
    error: str = ""


@dataclass
class Trial:
    """What came of one fresh process. `stopped` is what kept it from going on, as (key, fields) of the catalogue."""

    walls: list[str]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    value: Any = None
    printed: str = ""
    stopped: tuple[str, dict[str, Any]] | None = None

    def take(self, message: dict[str, Any]) -> None:
        """A line of `captive`'s."""
        if "escape" in message:
            self.outcomes[message["escape"]] = Outcome(message["out"], message["error"])
        elif "unfenced" in message:
            self.stopped = "unfenced", {"name": message["unfenced"]}
        elif "failed" in message:
            key = "refused" if message.get("refused") else "failed"
            self.stopped = key, {"name": message["failed"], "error": message["error"], "line": message["line"]}
        else:
            self.value = message["value"]


class Table:
    """Escapes and what came of them, with the walls so far and before the last: `before` is None or that trial."""

    def __init__(self, place: Place, trial: Trial, before: Trial | None = None) -> None:
        self._text, self.trial, self.before = place.text, trial, before

    def rows(self) -> list[list[str]]:
        """Words: the escape, what came of it before (if that is shown), now, and a mark where the last wall did it."""
        known = (self.before, self.trial) if self.before else (self.trial,)
        rows = []
        for name in self.trial.outcomes:
            found = [each.outcomes.get(name) for each in known]
            changed = len(found) == 2 and found[0] != found[1] and found[1] and not found[1].out
            mark = self._text("byhand.mark") if changed and found[0] and found[0].out else ""
            rows.append([name, *map(self._word, found), mark])
        return rows

    def heads(self) -> list[str]:
        text = self._text
        before = [text("byhand.before", wall=self.trial.walls[-1])] if self.before else []
        return [text("byhand.escape"), *before, text("byhand.now"), ""]

    def caption(self) -> str:
        names = ", ".join(self.trial.walls)
        return self._text("byhand.walls", names=names) if names else self._text("byhand.none")

    def note(self) -> str:
        """The line for a trial that could not go on, else ""."""
        return self._text(f"byhand.{self.trial.stopped[0]}", **self.trial.stopped[1]) if self.trial.stopped else ""

    def _word(self, outcome: Outcome | None) -> str:
        if outcome is None:
            return self._text("byhand.silent")
        if outcome.out:
            return self._text("byhand.out")
        return self._text("byhand.shut" if outcome.error else "byhand.shut_quietly", error=outcome.error)

    def __repr__(self) -> str:
        lines = [self.caption(), *([self.note()] if self.trial.stopped else [])]
        if self.trial.outcomes:
            rows = [self.heads(), *self.rows()]
            widths = [max(_width(row[column]) for row in rows) for column in range(len(rows[0]))]
            for row in rows:
                lines.append("  ".join(w + " " * (n - _width(w)) for w, n in zip(row, widths, strict=True)).rstrip())
        return "\n".join([*lines, *self.trial.printed.splitlines()])

    def _repr_html_(self) -> str:
        note = f"<p><strong>{esc(self.note())}</strong></p>" if self.trial.stopped else ""
        heads = "".join(f'<th scope="col" style="text-align:left">{esc(head)}</th>' for head in self.heads() if head)
        heads += "<td></td>" if self.before else ""
        body = ""
        for name, *words, mark in self.rows():
            cells = "".join(f'<td style="text-align:left">{esc(word)}</td>' for word in words)
            told = f"<td><strong>{esc(mark)}</strong></td>" if self.before else ""
            body += f'<tr><th scope="row" style="text-align:left"><code>{esc(name)}</code></th>{cells}{told}</tr>'
        caption = f'<caption style="text-align:left">{esc(self.caption())}</caption>'
        table = f"<table>{caption}<tr>{heads}</tr>{body}</table>" if body else f"<p>{esc(self.caption())}</p>"
        printed = f"<pre>{esc(self.trial.printed)}</pre>" if self.trial.printed else ""
        return note + table + printed


def _width(text: str) -> int:
    """Columns on a screen: a Korean letter takes two."""
    return len(text) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)


class ByHand:
    """The walls and escapes so far, by name in their order, and the folder they work in."""

    def __init__(self, place: Place, image: str = "toolbox") -> None:
        """Take an image's files, as `docker create`, `docker cp`, `docker rm` do. Raises MinirtError."""
        self._last: tuple[Any, Trial] | None = None
        self._image, self.place, self.folder = image, place, place.root / "by-hand"
        self.root, self.secret = self.folder / "root", self.folder / "secret.txt"
        self.walls: dict[str, str] = {}
        self.escapes: dict[str, str] = {}
        self.clean_up()
        self._prepare()

    def _prepare(self) -> None:
        """Have the scratch folder there; after `clean_up` a cell that is run again makes it anew."""
        if self.root.exists():
            return
        self.clean_up()
        self.folder.mkdir(parents=True)
        self.secret.write_text("secret\n")
        with self.place.client() as client:
            for _message in client.pull(self._image):
                pass
            donor = str(client.create({"Image": self._image})["Id"])
            try:
                words = [sys.executable, "-m", "minirt", "--root", str(client.root), "cp", f"{donor}:/", str(self.root)]
                copied = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            finally:
                client.remove(donor, force=True)
        if copied.returncode:
            self.clean_up()
            raise MinirtError(copied.stderr.strip()[-300:])

    def __repr__(self) -> str:
        return self.place.text("byhand.ready", image=self._image)

    # What a cell calls

    def escape(self, function: Function) -> Table:
        """One more way out, tried with all others against the walls so far. Raises InvalidInput."""
        self.escapes[function.__name__] = source(function)
        return self._table(self._tried(self.walls, self.escapes))

    def wall(self, function: Function) -> Table:
        """One more wall: all escapes before and after it. Raises InvalidInput."""
        name = function.__name__
        self.walls[name] = source(function)
        names = list(self.walls)
        lower = {each: self.walls[each] for each in names[: names.index(name)]}
        before = self._tried(lower, self.escapes)
        self.keep()
        return self._table(self._tried({**lower, name: self.walls[name]}, self.escapes), before)

    def trial(self, *walls: Function, escapes: Sequence[Function]) -> Table:
        """These walls against these escapes; nothing is remembered. Raises InvalidInput."""
        built, tried = ({each.__name__: source(each) for each in several} for several in (walls, escapes))
        return self._table(self._tried(built, tried))

    def look(self, function: Function) -> Any:
        """What `function` returns behind all walls so far, as plain data; where that cannot be, a table that says why.
        Raises InvalidInput."""
        trial = self.attempt(look=(function.__name__, source(function)))
        return self._table(trial) if trial.stopped else trial.value

    def run(self, *command: str) -> str:
        """What a program of the image prints behind all walls so far; where it cannot start, the line that says why."""
        trial = self.attempt(command=command)
        return self._table(trial).note() if trial.stopped else trial.printed

    def answer(self, function: Function) -> None:
        """Hand in a wall of your own: the exercise's check builds it. Raises InvalidInput."""
        self.keep(**{function.__name__: source(function)})

    def clean_up(self) -> None:
        """Remove the scratch folder, all that is ever left."""
        shutil.rmtree(self.folder, ignore_errors=not self.folder.exists())

    # How it is done

    def keep(self, **more: str) -> None:
        """Write the walls down where a check finds them (`kept`)."""
        self._prepare()
        (self.folder / "walls.json").write_text(json.dumps(kept(self.place.root) | self.walls | more))

    def _table(self, trial: Trial, before: Trial | None = None) -> Table:
        return Table(self.place, trial, before)

    def attempt(self, **options: Any) -> Trial:
        """A trial of all walls so far for something else than escapes, with options of `attempt`."""
        self._prepare()
        return attempt(self.folder, self.walls, {}, **options)

    def _tried(self, walls: dict[str, str], escapes: dict[str, str]) -> Trial:
        key = list(walls.items()), list(escapes.items())
        if self._last is None or self._last[0] != key:  # what was tried a moment ago is the "before" of the next
            self._prepare()
            self._last = key, attempt(self.folder, walls, escapes)
        return self._last[1]


def kept(root: Path) -> dict[str, str]:
    """The sources of the walls of the page that works in this store, by name; empty where there is none."""
    path = root / "by-hand" / "walls.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def source(function: Function) -> str:
    """The text of a function from a cell. Raises InvalidInput where there is none."""
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise InvalidInput("this has no text that could be sent: define it in a cell, with def") from error


def attempt(
    folder: Path,
    walls: dict[str, str],
    escapes: dict[str, str],
    *,
    look: tuple[str, str] | None = None,
    command: Sequence[str] = (),
    admit: Callable[[int], None] = lambda pid: None,
) -> Trial:
    """Start a fresh process in the scratch `folder`, let `admit` see its pid, and have it build and try all this.

    Never raises for what a learner wrote. Raises Unsupported where this is not Linux.
    """
    if sys.platform != "linux":
        raise Unsupported("walls are made by Linux: use a Linux machine, or Linux in a virtual machine")
    trial = Trial(list(walls))
    order: dict[str, Any] = {"walls": list(walls.items()), "escapes": list(escapes.items())}
    order |= {"look": look, "command": list(command)}
    report = os.memfd_create("report")
    try:
        words = [*_PYTHON, _BOOT, _HERE, str(Path(__file__).with_name("captive.py")), str(report)]
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=[report],
            start_new_session=True, cwd=folder,
        )  # fmt: skip
        try:
            with _stage(folder) as host:
                admit(process.pid)
                said = json.dumps(order | {"host": host}).encode() + b"\n"
                printed = process.communicate(said, timeout=_SECONDS)[0]
            trial.printed = printed[-_ROOM:].decode(errors="replace")
        except subprocess.TimeoutExpired:
            trial.stopped = "time", {"seconds": _SECONDS}
        finally:
            _end(process)
        for line in os.pread(report, os.fstat(report).st_size, 0).splitlines():
            trial.take(json.loads(line))
    finally:
        os.close(report)
    return trial


def _end(process: subprocess.Popen[bytes]) -> None:
    """End all that a trial may have left, whatever became of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


@contextlib.contextmanager
def _stage(folder: Path) -> Iterator[dict[str, Any]]:
    """What the escapes are after, made for one trial: `host` of their functions."""
    host: dict[str, Any] = {
        "file": str(folder / "secret.txt"),
        "root": str(folder / "root"),
        "name": os.uname().nodename,
    }
    host |= {"uid": os.getuid(), "gid": os.getgid()}
    host |= {name: os.readlink(f"/proc/self/ns/{name}") for name in ("user", "cgroup")}
    with contextlib.ExitStack() as stack:
        pid = stack.enter_context(_victim())
        port = stack.enter_context(_port())
        memory = stack.enter_context(_memory())
        yield host | {"pid": pid, "port": port, "memory": memory}


@contextlib.contextmanager
def _victim() -> Iterator[int]:
    """A process with a secret in its environment. It ends with its input, so also when this program is killed."""
    words = [*_PYTHON, _VICTIM, _HERE]
    for _ in range(_LOWEST):
        victim = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"SECRET": "secret"}
        )
        try:
            if victim.pid > _LOWEST:
                victim.stdout.readline()  # type: ignore[union-attr]
                yield victim.pid
                return
        finally:
            victim.kill()
            victim.communicate()
    raise Unsupported("the machine gives out no process number above those of a container")


@contextlib.contextmanager
def _port() -> Iterator[int]:
    """A port on loopback that says `secret` to whoever comes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # shut down
                while True:
                    with listener.accept()[0] as line:
                        line.sendall(b"secret")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextlib.contextmanager
def _memory() -> Iterator[int]:
    """A piece of shared memory, shmget(2), marked to go with its last user: this process, even if it is killed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    number = libc.shmget(0, 4096, 0o600)
    place = libc.shmat(number, None, 0) if number >= 0 else None
    if place is None or place == ctypes.c_void_p(-1).value:
        raise Unsupported(f"no shared memory here: {os.strerror(ctypes.get_errno())}")
    try:
        libc.shmctl(number, 0, None)  # IPC_RMID
        ctypes.memmove(place, b"secret", 6)
        yield number
    finally:
        libc.shmdt(ctypes.c_void_p(place))
