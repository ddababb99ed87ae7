"""Terminals end to end, `run -it`, `attach`, `start -ai`, detach keys, sizes, what is given back."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import said
from test_cli_terminal import COMMAND, Terminal
from users import plain_user

from minirt.errors import InvalidInput
from minirt.keys import Keys, parse_keys

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pseudo-terminals and containers")

DETACH = b"\x10\x11"
# A prompt that is nowhere in what is typed, so that its echo is not taken for it.
SHELL = ["env", "PS1=ready> ", "sh"]


def minirt(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    settings = {"capture_output": True, "text": True, "check": False, "stdin": subprocess.DEVNULL, **settings}
    return said.run([*COMMAND, *words], **settings)


def good(*words: str, **settings: Any) -> str:
    result = minirt(*words, **settings)
    assert result.returncode == 0, result.stderr
    return str(result.stdout)


@pytest.fixture
def toolbox(root: Path) -> None:
    good("pull", "-q", "toolbox")


class Person(Terminal):
    """A terminal whose settings are kept, to see that they are given back."""

    def __init__(self, *command: str, rows: int = 24, columns: int = 80) -> None:
        super().__init__(*command, rows=rows, columns=columns)
        self.before = termios.tcgetattr(self._end)

    @property
    def raw(self) -> bool:
        return not termios.tcgetattr(self._end)[3] & termios.ICANON

    def ask(self, line: str, until: str) -> None:
        """Type a line, and read on until the answer."""
        self.press(line.encode() + b"\r", until)

    def press(self, keys: bytes, until: str) -> None:
        self.shown = b""
        self.type(keys)
        self.read(until)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def leave(self) -> tuple[int, str]:
        """The exit status, and what was shown; the terminal must be as it was."""
        self.read()
        after = termios.tcgetattr(self._end)
        assert after == self.before
        return self.end(), self.shown.decode()


def until_size(size: str) -> str:
    """A line that ends with "resi2ed" once the terminal has this size: we hear of it a moment after."""
    return f'until [ "$(stty size)" = "{size}" ]; do sleep 0.01; done; echo resi$((1+1))ed'


def shell(*options: str, rows: int = 24, columns: int = 80) -> Person:
    person = Person(*COMMAND, "run", *options, "toolbox", *SHELL, rows=rows, columns=columns)
    person.read("ready> ")
    return person


def test_a_shell_on_a_terminal(toolbox: None) -> None:
    """Its size from the first byte on and as it changes; its line ends are its own, its status is ours."""
    script = 'stty size; echo "$TERM"; tty; trap "stty size; exit 7" WINCH; echo now; while :; do read line; done'
    person = Person(*COMMAND, "run", "-it", "--rm", "toolbox", "sh", "-c", script, rows=31, columns=101)
    person.read("now\r\n")
    assert person.shown.decode().splitlines() == ["31 101", "xterm", "/dev/pts/0", "now"]
    assert person.raw
    person.resize(17, 53)
    status, shown = person.leave()
    assert (status, shown.splitlines()[-1]) == (7, "17 53")
    assert good("ps", "-aq") == ""


def test_keys_reach_the_container(toolbox: None) -> None:
    """Ctrl-C is a key: the command in front gets the signal, not the shell and not us. ctrl-p alone goes in, too."""
    person = shell("-it", "--rm")
    person.ask("echo slee$((1+1))p; sleep 1000", "slee2p")
    person.press(b"\x03", "ready> ")  # only then: a terminal forgets what was typed before a ctrl-C
    person.ask("echo sta$((1+1))", "sta2")
    person.ask("echo dat$((1))a; dd bs=1 count=2 2>/dev/null | od -An -tx1; echo e$((2+1))", "dat1a")
    person.type(b"\x10x\r")
    assert "10 78" in person.read("e3")
    person.type(b"exit 5\r")
    assert person.leave()[0] == 5


def test_detach_and_attach_again(toolbox: None) -> None:
    """Detaching leaves it running, and its log; who attaches later gets its terminal, in their size, and its end."""
    person = shell("-it", "--name", "one")
    person.type(b"X=kept\r" + DETACH)
    assert person.leave()[0] == 0
    assert good("ps", "--format", "{{.Names}} {{.State}}") == "one running\n"
    again = Person(*COMMAND, "attach", "--detach-keys=x,ctrl-a", "one", rows=12, columns=44)
    again.ask("", "ready> ")
    again.ask("stty size", r"12 44")
    again.type(b"x\x01")
    status, shown = again.leave()
    assert status == 1 and shown.endswith("read escape sequence\r\n")  # docker's
    last = Person(*COMMAND, "attach", "one")
    last.ask("echo $X; exit 9", "kept")
    assert last.leave()[0] == 9
    assert good("inspect", "-f", "{{.State.ExitCode}}", "one") == "9\n"
    assert "X=kept" in good("logs", "one") and "12 44" in good("logs", "one")
    back = Person(*COMMAND, "start", "-ai", "one")
    back.read("ready> ")
    back.type(DETACH)
    assert back.leave()[0] == 0
    there = Person(*COMMAND, "start", "-ai", "one")  # it runs: we join it
    there.ask("", "ready> ")
    there.type(b"exit 3\r")
    assert there.leave()[0] == 3


def test_several_are_attached_at_once(toolbox: None) -> None:
    good("run", "-dit", "--name", "one", "toolbox", *SHELL)
    people = [Person(*COMMAND, "attach", "one") for _ in range(2)]
    for person in people:
        person.ask("", "ready> ")
    people[0].type(b"echo both$((1+1))\r")
    for person in people:
        person.read("both2")
    people[0].type(DETACH)
    assert people[0].leave()[0] == 1
    people[1].ask("exit 4", r"exit 4")
    assert people[1].leave()[0] == 4


def test_a_terminal_without_keys(toolbox: None) -> None:
    """`-t` alone: one stream comes out as it is, wherever it goes; nobody needs a terminal, nor is ours made raw."""
    script = "echo out; echo err >&2; exit 6"
    result = subprocess.run([*COMMAND, "run", "-t", "toolbox", "sh", "-c", script], capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (6, b"out\r\nerr\r\n", b"")
    person = Person(
        *COMMAND, "run", "-t", "--rm", "toolbox", "sh", "-c", "trap 'exit 8' INT; echo on; sleep 1000 & wait"
    )
    person.read("on\r")
    assert not person.raw
    person.type(b"\x03")  # to us, who send it on
    assert person.leave()[0] == 8
    for words in ["run", "-it"], ["exec", "-it"]:
        result = minirt(*words, "toolbox", "true")
        assert (result.returncode, result.stdout) == (1, "")
        assert words[0] == "exec" or result.stderr == "minirt: the input device is not a TTY\n"
    assert good("ps", "-aq").count("\n") == 1, "a refused -it leaves a container"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_what_kills_us_gives_the_terminal_back(number: signal.Signals, toolbox: None) -> None:
    """With --sig-proxy=false the signal is ours; the container goes on."""
    person = shell("-it", "--name", "one", "--sig-proxy=false")
    assert person.raw
    os.kill(person.process, number)
    assert person.leave()[0] == -number
    assert good("inspect", "-f", "{{.State.Running}}", "one") == "true\n"


def test_signals_are_the_container_s(toolbox: None) -> None:
    script = "trap 'echo term; exit 3' TERM; echo on; sleep 1000 & wait"
    person = Person(*COMMAND, "run", "-it", "--rm", "toolbox", "sh", "-c", script)
    person.read("on\r")
    os.kill(person.process, signal.SIGTERM)
    status, shown = person.leave()
    assert (status, shown) == (3, "on\r\nterm\r\n")


def test_a_start_that_fails_gives_the_terminal_back(toolbox: None) -> None:
    person = Person(*COMMAND, "run", "-it", "--rm", "toolbox", "nosuch")
    status, shown = person.leave()
    assert status == 127 and shown.count("\n") == 1 and "executable file not found" in shown


def test_a_terminal_that_goes_away(toolbox: None) -> None:
    """Its window is closed: we end, and the container is told (SIGHUP), as a shell outside of one is."""
    script = "trap 'exit 4' HUP; echo on; while :; do sleep 0.05; done"
    person = Person(*COMMAND, "run", "-it", "--name", "one", "toolbox", "sh", "-c", script)
    person.read("on\r")
    os.close(person._end)
    status = os.waitstatus_to_exitcode(os.waitpid(person.process, 0)[1])
    assert status == 128 + signal.SIGHUP
    assert good("wait", "one") == "4\n"


def test_a_killed_client_leaves_the_container(toolbox: None) -> None:
    person = shell("-it", "--name", "one")
    os.kill(person.process, signal.SIGKILL)
    os.waitpid(person.process, 0)
    again = Person(*COMMAND, "attach", "one")
    again.ask("", "ready> ")
    again.ask("exit 2", "exit 2")
    assert again.leave()[0] == 2
    os.close(person._end)


def test_a_lot_comes_out_whole(toolbox: None) -> None:
    """Two megabytes through the terminal: no byte is lost at the end, and the log has the same."""
    script = "seq 1 300000; exit 3"
    result = subprocess.run(
        [*COMMAND, "run", "-t", "--name", "one", "toolbox", "sh", "-c", script], capture_output=True
    )
    wanted = b"".join(b"%d\r\n" % number for number in range(1, 300001))
    assert result.returncode == 3 and result.stdout == wanted
    assert subprocess.run([*COMMAND, "logs", "one"], capture_output=True, check=True).stdout == wanted


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.search(r"(?m)^SigCgt:\s*(\S+)$", status)[1], 16) >> (number - 1) & 1)


def joined(root: Path, count: int) -> None:
    """Wait until so many are attached to the one container: each has a line to its shim, which listens on one more."""
    (run,) = root.glob("containers/*/run.json")
    folder = Path("/proc", str(json.loads(run.read_text())["shim"]["pid"]), "fd")
    end = time.monotonic() + 20
    while sum(os.readlink(link).startswith("socket:") for link in list(folder.iterdir())) != count + 1:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_attach_without_a_terminal(toolbox: None, root: Path) -> None:
    """Its streams stay apart, its end is ours; input of one that is kept open for others does not end with us."""
    script = "while read line; do echo out $line; echo err $line >&2; [ $line = end ] && exit 5; done; exit 6"
    good("run", "-di", "--name", "one", "toolbox", "sh", "-c", script)
    words = [*COMMAND, "attach", "one"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes) as first, subprocess.Popen([*words, "--no-stdin"], **pipes) as watcher:
        joined(root, 2)
        first.stdin.write("one\n")
        first.stdin.flush()
        assert first.stdout.readline() == watcher.stdout.readline() == "out one\n"
        first.stdin.close()
        with subprocess.Popen(words, **pipes) as second:
            assert second.communicate("end\n") == ("out end\n", "err end\n")
            assert second.returncode == 5
        assert (first.stdout.read(), first.stderr.read(), first.wait()) == ("out end\n", "err one\nerr end\n", 5)
        assert watcher.wait() == 5
    good("start", "one")
    client = subprocess.Popen([*words, "--sig-proxy=false"], **pipes)
    client.stdin.write("two\n")
    client.stdin.flush()
    assert client.stdout.readline() == "out two\n"
    client.kill()
    client.communicate()
    assert good("inspect", "-f", "{{.State.Running}}", "one") == "true\n"
    last = subprocess.run(words, input="end\n", capture_output=True, text=True)
    assert (last.returncode, last.stdout) == (5, "out end\n")
    for words, told in (
        (["attach", "one"], "stopped container, start it"),
        (["attach", "none"], "No such container: none"),
    ):
        result = minirt(*words)
        assert result.returncode == 1 and told in result.stderr


def test_signals_through_attach(toolbox: None) -> None:
    good(
        "run", "-d", "--name", "one", "toolbox", "sh", "-c", "trap 'exit 3' USR1; echo on; while :; do sleep 0.05; done"
    )
    with subprocess.Popen([*COMMAND, "attach", "one"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        while not catches(client.pid, signal.SIGUSR1):
            assert client.poll() is None
        client.send_signal(signal.SIGUSR1)
        assert client.wait(20) == 3


@pytest.mark.parametrize(
    ("text", "keys"),
    [("ctrl-p,ctrl-q", b"\x10\x11"), ("a,b", b"ab"), ("ctrl-@", b"\0"), ("ctrl-[", b"\x1b"), ("ctrl-_,q", b"\x1fq")],
)
def test_detach_keys_are_read_as_docker_s(text: str, keys: bytes) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["bad", "ctrl-", "ctrl-1", "a,,b", "ctrl-P", "é"])
def test_what_are_no_keys(text: str) -> None:
    with pytest.raises(InvalidInput, match="Invalid detach keys"):
        parse_keys(text)


@pytest.mark.parametrize(
    ("typed", "goes_in", "detached"),
    [
        (b"abc", b"abc", False),
        (b"a\x10", b"a", False),
        (b"\x10b", b"\x10b", False),
        (b"\x10\x10\x11", b"\x10", True),
        (b"x\x10\x11more", b"x", True),
    ],
)
def test_keys_that_only_begin_like_them_go_in(typed: bytes, goes_in: bytes, detached: bool) -> None:
    assert Keys(b"\x10\x11").take(typed) == (goes_in, detached)
    keys, out, end = Keys(b"\x10\x11"), b"", False
    for byte in typed:
        if not end:
            data, end = keys.take(bytes([byte]))
            out += data
    assert (out, end) == (goes_in, detached)


@pytest.fixture(scope="module", params=[True, False], ids=["subuids", "one id"])
def user(request: pytest.FixtureRequest) -> Iterator[Any]:
    with plain_user(request.param) as made:
        yield made


def test_as_a_plain_user(user: Any) -> None:
    """A terminal, its size, detach, attach, exec and top, with no right of root's."""
    script = f"""
import os, sys
sys.path.insert(0, "tests")
os.environ |= {{"MINIRT_HUB": "embedded", "MINIRT_ROOT": {str(user.home / "root")!r}}}
import subprocess
import test_terminal as t
t.good("pull", "-q", "toolbox")
person = t.shell("-it", "--name", "one", rows=20, columns=70)
person.ask("stty size", "20 70")
person.resize(21, 71)
person.ask(t.until_size("21 71"), "resi2ed")
person.type(t.DETACH)
assert person.leave()[0] == 0
assert t.good("exec", "-e", "A=1", "one", "sh", "-c", "echo $A $$; id -u").split()[0::2] == ["1", "0"]
rows = t.good("top", "one", "-o", "pid,comm").splitlines()
assert [row.split()[1] for row in rows[1:]] == ["sh"], rows
again = t.Person(*t.COMMAND, "attach", "one")
again.ask("", "ready> ")
again.ask("exit 5", "exit")
assert again.leave()[0] == 5
t.good("rm", "one")
print("fine")
"""
    assert user.python(script).endswith("fine\n")
