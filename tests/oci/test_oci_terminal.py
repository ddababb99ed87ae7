"""Terminals: --console-socket for create and exec, the foreground of run, sizes, ^C, /dev/console."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import termios
from pathlib import Path
from typing import Any

import pytest
from ociruntime import Console, command, raised, reap, until


def on_terminal(box: Any, script: str) -> Any:
    one = box("sh", "-c", script)
    one.process["terminal"] = True
    return one


def up(one: Any, terminal: Console) -> Console:
    one.create("--console-socket", str(terminal.path))
    terminal.receive()
    one.start()
    return terminal


def test_the_master_comes_over_the_socket(box: Any, terminal: Console) -> None:
    one = on_terminal(box, "tty; test -t 0 && test -t 1 && test -t 2 && echo all three")
    up(one, terminal)
    text = terminal.read("all three")
    assert text.splitlines()[0] in ("/dev/pts/0", "/dev/console")
    assert one.wait() == 0


def test_what_is_typed_arrives_and_is_echoed(box: Any, terminal: Console) -> None:
    one = on_terminal(box, "read line; echo got $line")
    up(one, terminal)
    terminal.write("words\n")
    assert terminal.read() == "words\r\ngot words\r\n"
    assert one.wait() == 0


def test_the_end_is_seen(box: Any, terminal: Console) -> None:
    one = on_terminal(box, "echo bye")
    up(one, terminal)
    assert terminal.read() == "bye\r\n"
    assert one.wait() == 0


def test_the_size_is_the_configs(box: Any, terminal: Console) -> None:
    one = on_terminal(box, "stty size")
    one.process["consoleSize"] = {"height": 33, "width": 77}
    up(one, terminal)
    assert terminal.read() == "33 77\r\n"
    one.wait()


def test_a_new_size_is_told(box: Any, terminal: Console) -> None:
    one = on_terminal(box, "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.01; done")
    up(one, terminal)
    terminal.read("ready")
    terminal.resize(44, 111)
    assert "44 111" in terminal.read("111")
    assert one.wait() == 0


def test_control_c_interrupts(box: Any, terminal: Console) -> None:
    """The command leads a session whose terminal this is, in the foreground."""
    one = on_terminal(box, "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.01; done")
    up(one, terminal)
    terminal.read("ready")
    terminal.write("\x03")
    terminal.read("caught")
    assert one.wait() == 5


def test_hanging_up_ends_it(box: Any, terminal: Console) -> None:
    one = on_terminal(box, "trap 'exit 6' HUP; echo ready; while :; do sleep 0.01; done")
    up(one, terminal)
    terminal.read("ready")
    terminal.close()
    assert one.wait() == 6


def test_dev_console_is_the_terminal(box: Any, terminal: Console) -> None:
    one = on_terminal(box, "echo through > /dev/console; stat -c %t:%T /dev/console")
    up(one, terminal)
    first, second = terminal.read().split()
    assert first == "through"
    assert second.startswith("88:")  # 136, a pseudo-terminal
    one.wait()


def test_without_a_terminal_there_is_no_dev_console(box: Any) -> None:
    assert box("sh", "-c", "ls /dev/console 2>/dev/null; echo end").output() == "end\n"


def test_dev_tty_is_the_terminal(box: Any, terminal: Console) -> None:
    one = on_terminal(box, "echo through > /dev/tty")
    up(one, terminal)
    assert terminal.read() == "through\r\n"
    one.wait()


def test_the_terminal_is_the_users(box: Any, terminal: Console) -> None:
    one = on_terminal(box, "stat -c %u $(tty); echo again > $(tty)")
    one.process["user"] = {"uid": 1000, "gid": 1000}
    one.process["capabilities"] = {}
    up(one, terminal)
    assert terminal.read().split() == ["1000", "again"]
    one.wait()


def test_create_with_a_terminal_needs_a_socket(box: Any) -> None:
    one = on_terminal(box, "true")
    if one.runtime.name == "crun":
        pytest.skip("crun 1.8 lets the terminal go")
    assert raised(one.create(ok=False), "console")


def test_a_socket_without_a_terminal_is_refused(box: Any, terminal: Console) -> None:
    one = box("true")
    if one.runtime.name == "crun":
        pytest.skip("crun 1.8 passes over it")
    assert raised(one.create("--console-socket", str(terminal.path), ok=False), "console")


def test_a_socket_where_nobody_listens_is_refused(box: Any) -> None:
    one = on_terminal(box, "true")
    assert raised(one.create("--console-socket", str(one.bundle / "nosuch"), ok=False), "no such file", "connect")


def test_exec_with_a_terminal(box: Any, terminal: Console) -> None:
    one = box("sleep", "60").up()
    words = ["--tty", "--detach", "--console-socket", terminal.path, "--pid-file", one.bundle / "exec", one.id]
    one.exec(*words, "sh", "-c", "test -t 0 && tty && read line && echo got $line", ok=True)
    terminal.receive()
    terminal.write("words\n")
    assert "/dev/pts/" in terminal.read("got words")
    assert reap(int((one.bundle / "exec").read_text())) == 0


def test_exec_from_a_process_file_has_a_size(box: Any, terminal: Console) -> None:
    """What containerd's shim sends for docker exec -t."""
    one = box("sleep", "60").up()
    process = one.process | {"terminal": True, "args": ["stty", "size"], "consoleSize": {"height": 12, "width": 34}}
    (one.bundle / "process.json").write_text(json.dumps(process))
    words = ["--process", one.bundle / "process.json", "--detach", "--console-socket", terminal.path]
    one.exec(*words, "--pid-file", one.bundle / "exec", one.id, ok=True)
    terminal.receive()
    assert terminal.read() == "12 34\r\n" or one.runtime.name == "crun"  # crun 1.8 leaves it at 0 0
    reap(int((one.bundle / "exec").read_text()))


class Foreground:
    """A verb on a terminal of ours, as a person at a keyboard has it."""

    def __init__(self, one: Any, *words: str | Path) -> None:
        one.write()
        self.one = one
        self.master, slave = pty.openpty()
        subprocess.run(["stty", "-F", os.ttyname(slave), "rows", "21", "cols", "65"], check=True)
        argv = [*command(one.runtime.name), "--root", str(one.runtime.home / "root"), *map(str, words)]
        self.process = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=_take_terminal
        )
        os.close(slave)
        self.console = Console(one.runtime.home)
        self.console.master = self.master

    def end(self) -> int:
        try:
            return self.process.wait(20)
        finally:
            self.console.close()


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def run(one: Any) -> Foreground:
    return Foreground(one, "run", "--bundle", one.bundle, one.id)


def test_run_in_the_foreground(box: Any) -> None:
    front = run(on_terminal(box, "tty; read line; echo got $line; exit 3"))
    front.console.read("pts")
    front.console.write("words\n")
    assert "got words" in front.console.read("got words")
    assert front.end() == 3


def test_run_in_the_foreground_passes_the_size_on(box: Any, runtime: Any) -> None:
    if runtime.name == "crun":
        pytest.skip("crun 1.8 lets the size be")
    until_size = 'until [ "$(stty size)" = "{}" ]; do sleep 0.01; done; echo {}; '
    front = run(on_terminal(box, until_size.format("21 65", "small") + until_size.format("31 75", "large")))
    front.console.read("small")
    front.console.resize(31, 75)
    front.console.read("large")
    assert front.end() == 0


def test_run_in_the_foreground_passes_control_c_to_the_command(box: Any) -> None:
    """Our own terminal is raw meanwhile: the byte travels, the runtime is not interrupted."""
    front = run(on_terminal(box, "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.01; done"))
    front.console.read("ready")
    front.console.write("\x03")
    front.console.read("caught")
    assert front.end() == 5


def test_run_puts_the_terminal_back(box: Any) -> None:
    front = run(on_terminal(box, "echo ready; read line"))
    front.console.read("ready")
    modes = termios.ICANON | termios.ECHO
    until(lambda: not termios.tcgetattr(front.master)[3] & modes, "raw mode")
    front.console.write("\n")
    front.process.wait(20)
    assert termios.tcgetattr(front.master)[3] & modes == modes
    front.end()


def test_exec_in_the_foreground(box: Any) -> None:
    one = box("sleep", "60").up()
    front = Foreground(one, "exec", "-t", one.id, "sh", "-c", "test -t 1 && echo on one; exit 4")
    assert "on one" in front.console.read("on one")
    assert front.end() == 4


def test_run_on_a_terminal_that_is_killed_does_not_hang(box: Any) -> None:
    one = on_terminal(box, "echo ready; sleep 60")
    front = run(one)
    front.console.read("ready")
    one.kill("KILL")
    assert front.end() == 128 + signal.SIGKILL
