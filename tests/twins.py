"""The same shell script on two runtimes at once: what it says must be the same, or have a reason.

`SAME` lists what is taken for the same, and why. A script is also held against what must be in its output, so that two
failures of one kind are no success.
"""

from __future__ import annotations

import difflib
import fcntl
import os
import re
import select
import shutil
import struct
import subprocess
import tempfile
import termios
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SECONDS = 90

# Pattern, replacement, reason.
SAME = [
    (r"\b[0-9a-f]{64}\b", "ID", "ids are drawn by lot"),
    (r"HOSTNAME=[0-9a-f]{12}\b", "HOSTNAME=ID", "the same"),
    (r"runc create failed: unable to start container process: ", "", "runc's own way of saying that it was runc"),
    (r"exec failed: unable to start container process: ", "", "the same for exec"),
    (r'time="[^"]*" level=error msg="error waiting for container: [^"]*"\n?', "", "docker says it or not by chance"),
    (r"(tmpfs ro,relatime),size=4k,nr_inodes=1", r"\1", "our masks hold nothing, and have a size that says so"),
    (r"(/sys/fs/cgroup tmpfs) r[ow]", r"\1 r?", "read-only is asked for; runc leaves the tmpfs of v1 writable"),
    (r"writable /sys/fs/cgroup/x\n", "", "so there a container of runc's can make files"),
    (r"(dev /dev/mqueue \S+ 0):65534", r"\1:0", "runc mounts it before it has a group, ours after"),
]


class Twins:
    """`folder` is where each script gets a folder of its own; `shell` runs it."""

    names: tuple[str, str] = ("runc", "minirt")
    same_: Sequence[tuple[str, str, str]] = SAME
    shell: Sequence[str] = ("bash", "-c")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def prelude(self, runtime: str) -> str:
        """Shell functions for this runtime."""
        raise NotImplementedError

    def clean(self, runtime: str) -> None:
        """Take away what a script left."""

    def execute(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a whole script."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        return subprocess.run(
            [*self.shell, script], stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=SECONDS,
            check=False, text=True,
        )  # fmt: skip

    def said(self, runtime: str, script: str) -> str:
        """What a script says on stdout and then on stderr; $N is a name for it, $V a folder, $RT the runtime."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        folder.chmod(0o777)
        start = f"N=name-{runtime}; V={folder}; RT={runtime}\n{self.prelude(runtime)}\n"
        try:
            result = self.execute(start + script)
        finally:
            self.clean(runtime)
            shutil.rmtree(folder)
        text = (result.stdout + result.stderr).replace(f"name-{runtime}", "NAME").replace(str(folder), "FOLDER")
        for pattern, replacement, _ in self.same_:
            text = re.sub(pattern, replacement, text)
        return text

    def same(self, script: str, *expected: str, together: bool = True) -> None:
        """Fail with what differs; then with what is `expected` (patterns) and not there."""
        with ThreadPoolExecutor(2 if together else 1) as pool:
            theirs, ours = pool.map(lambda runtime: self.said(runtime, script), self.names)
        different = list(difflib.unified_diff(theirs.splitlines(), ours.splitlines(), *self.names, n=1, lineterm=""))
        if different:
            pytest.fail("\n".join(different))
        for text in expected:
            assert re.search(text, ours, re.MULTILINE), f"{text!r} is not in:\n{ours}"


def quoted(text: str) -> str:
    """For single quotes of the shell."""
    return text.replace("'", "'\\''")


def on_terminal(
    argv: list[str], typed: list[tuple[str, bytes]], size: tuple[int, int] | None = None
) -> tuple[str, int]:
    """What a program on a terminal of 33 lines of 77 says when we type, each time once we read what it waits for.

    `size` is the window's at the end, set before the last keys.
    """
    master, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    with subprocess.Popen(argv, stdin=end, stdout=end, stderr=end, start_new_session=True) as process:
        os.close(end)
        seen, keys, deadline = b"", list(typed), time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            if keys and keys[0][0].encode() in seen:
                if size and len(keys) == 1:
                    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
                    process.send_signal(28)  # SIGWINCH: it is not the terminal's foreground group
                    time.sleep(0.3)
                os.write(master, keys.pop(0)[1])
            if select.select([master], [], [], 0.2)[0]:
                try:
                    data = os.read(master, 65536)
                except OSError:  # EIO: it has ended
                    break
                seen += data
            elif size and not keys and process.poll() is None:
                process.send_signal(28)  # again: it may not have listened yet
        else:
            process.kill()
        code = process.wait(10)
    os.close(master)
    return seen.decode(), code
