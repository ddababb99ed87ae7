"""The command on a terminal: a pseudo-terminal and a screen that holds what a person would see."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minirt.cli import progress

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pseudo-terminals and containers")

COMMAND = [sys.executable, "-m", "minirt"]


class Terminal:
    """A process on a pseudo-terminal of its own, which is its controlling terminal; `shown` is all it wrote."""

    def __init__(self, *command: str, rows: int = 24, columns: int = 80) -> None:
        import fcntl
        import pty
        import termios

        self.rows, self.columns, self.shown = rows, columns, b""
        self.process, self._end = pty.fork()
        if not self.process:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.execv(command[0], command)

    def read(self, until: str | None = None) -> str:
        """What was written, until a pattern or the end."""
        while until is None or not re.search(until, self.shown.decode(errors="replace")):
            try:
                chunk = os.read(self._end, 1 << 16)
            except OSError:  # EIO: nobody has the terminal any more
                chunk = b""
            if not chunk:
                assert until is None, f"{until!r} not in {self.shown!r}"
                break
            self.shown += chunk
        return self.shown.decode()

    def type(self, keys: bytes) -> None:
        os.write(self._end, keys)

    def end(self) -> int:
        """Read the rest; the exit status, as a shell has it."""
        self.read()
        os.close(self._end)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def screen(self, shown: str | None = None) -> list[str]:
        """The lines of `shown` after all movements; a movement above the screen's top fails."""
        lines: list[str] = [""]
        row = column = 0
        for up, end, letter in re.findall(r"\x1b\[(\d*)A|\x1b\[([KJ])|(.)", shown or self.shown.decode(), re.DOTALL):
            if up:
                row -= int(up)
                assert row >= max(0, len(lines) - self.rows), "moved above the screen"
            elif end:
                lines[row] = lines[row][:column]
                del lines[row + 1 if end == "J" else len(lines) :]
            elif letter == "\r":
                column = 0
            else:
                if letter == "\n" or column == self.columns:  # the terminal wraps
                    row, column = row + 1, 0 if letter != "\n" else column
                    lines += [""] * (row == len(lines))
                if letter != "\n":
                    lines[row] = lines[row][:column].ljust(column) + letter + lines[row][column + 1 :]
                    column += 1
        return lines


def test_bars_fit_every_screen() -> None:
    """More layers than rows, and few columns: no line wraps, nothing is lost at the end."""
    script = """
import sys, time
from minirt.cli import progress
def objects():
    yield {"status": "Pulling from library/x", "id": "latest"}
    names = ["%012x" % n for n in range(12)]
    for name in names:
        yield {"status": "Pulling fs layer", "id": name, "progressDetail": {}}
    for step in range(20):
        time.sleep(0.013)
        for n, name in enumerate(names):
            detail = {"current": min(step * (n + 1), 19) * 10**6, "total": 19 * 10**6}
            yield {"status": "Downloading", "id": name, "progressDetail": detail}
    for name in names:
        time.sleep(0.013)
        yield {"status": "Pull complete", "id": name, "progressDetail": {}}
    yield {"status": "Status: done"}
progress.show(objects(), sys.stdout)
"""
    for rows, columns in (8, 72), (24, 130), (6, 30):
        terminal = Terminal(sys.executable, "-c", script, rows=rows, columns=columns)
        assert terminal.end() == 0
        shown = terminal.shown.decode()
        frames = [frame.split("\x1b[J")[0] for frame in re.split(r"\x1b\[\d+A", shown)][1:]
        written = [line.strip("\r\n") for frame in frames for line in frame.split("\x1b[K")]
        assert max(map(len, written)) < columns
        assert terminal.screen() == [
            "latest: Pulling from library/x",
            *(f"{n:012x}: Pull complete" for n in range(12)),
            "Status: done",
            "",
        ]
        if columns > 30:
            assert re.search(r"Downloading \[=+>? *\]  *\d+MB/19MB  [\d.]+MB/s", shown)
        else:
            assert re.search(r"0{11}1 \d+%", shown)
        if rows < 12:
            assert "… " in shown and "more layers, " in shown


@pytest.fixture
def slow_hub(root: Path, tmp_path: Path) -> Iterator[str]:
    """A hub that sends half a megabyte a second: its address."""
    # Made beforehand: the pull then only waits for bytes.
    subprocess.run([*COMMAND, "pull", "-q", "toolbox"], check=True, capture_output=True)
    with subprocess.Popen([*COMMAND, "hub", "--port=0", "--throttle=500k"], stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout
        match = re.search(r"http://(\S+);", hub.stdout.readline())
        assert match
        yield match[1]
        hub.send_signal(signal.SIGTERM)


def test_a_pull_draws_bars_and_survives_ctrl_c(slow_hub: str, tmp_path: Path) -> None:
    name, root = f"{slow_hub}/library/toolbox", str(tmp_path / "other")
    terminal = Terminal(*COMMAND, "--root", root, "pull", name, columns=120)
    terminal.read(until="Pulling fs layer")
    time.sleep(0.3)  # some bytes come
    terminal.type(b"\x03")
    assert terminal.end() == 130
    assert "the next pull goes on from there" in terminal.screen()[-2]
    assert "Traceback" not in terminal.shown.decode()
    subprocess.run([*COMMAND, "--root", root, "system", "check"], check=True, capture_output=True)
    again = Terminal(*COMMAND, "--root", root, "pull", name, columns=120)
    assert again.end() == 0
    assert re.search(r"Downloading \[=+>? *\]  *[\d.]+MB/[\d.]+MB", again.shown.decode())
    layer, digest, status, full = again.screen()[-5:-1]
    assert re.fullmatch(r"[0-9a-f]{12}: Pull complete", layer) and digest.startswith("Digest: sha256:")
    assert (status, full) == (f"Status: Downloaded newer image for {name}:latest", f"{name}:latest")
    assert again.screen()[-7:-5] == ["Using default tag: latest", "latest: Pulling from library/toolbox"]


def test_ctrl_c_reaches_the_container(root: Path) -> None:
    script = "trap 'echo bye; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    terminal = Terminal(*COMMAND, "run", "-q", "--rm", "toolbox", "sh", "-c", script)
    terminal.read(until="ready")
    terminal.type(b"\x03")
    assert terminal.end() == 9
    assert terminal.screen()[-2].endswith("bye")


def test_a_terminal_is_no_archive(root: Path) -> None:
    for words in ["save", "x"], ["load"]:
        terminal = Terminal(*COMMAND, *words, columns=200)
        assert terminal.end() == 1
        (line, hint) = terminal.screen()[:2]
        assert line.startswith("minirt: ") and "terminal" in line and hint == f"See 'minirt {words[0]} --help'."


def test_prune_asks(root: Path) -> None:
    for answer, agreed in (b"\r", False), (b"y\r", True):
        terminal = Terminal(*COMMAND, "system", "prune")
        terminal.read(until=r"\[y/N\] ")
        terminal.type(answer)
        assert terminal.end() == 0
        assert ("Total reclaimed space: 0B" in terminal.screen()) == agreed


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    script = "import sys; from minirt.cli.progress import show; show([{'status': 'Done', 'id': 'a'}], sys.stdout)"
    terminal = Terminal(sys.executable, "-c", script)
    assert (terminal.end(), terminal.shown) == (0, b"a: Done\r\n")


def test_speed_is_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    layer = progress._Layer()
    for current in 0, 10**6, 2 * 10**6, 5 * 10**6:
        layer.update({"status": "Downloading", "progressDetail": {"current": current, "total": 10**7}})
    assert layer.line("a", 200).endswith("] " + "     5MB/10MB  3MB/s")
