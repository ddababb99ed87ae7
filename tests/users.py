"""Plain users for tests that root runs: made, with or without subordinate ids, and removed again whatever happens."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from peers import require

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class User:
    """`home` belongs to the user and has a copy of package, course and tests. `interpreter` runs for the user."""

    name: str
    uid: int
    gid: int
    home: Path
    interpreter: str = sys.executable

    def run(self, argv: list[str], timeout: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program as this user, at home, with nothing of our environment but PATH and CI."""
        env = {"HOME": str(self.home), "PATH": os.environ["PATH"], "PYTHONPATH": str(self.home), "USER": self.name}
        env |= {"CI": os.environ["CI"]} if "CI" in os.environ else {}
        env["PYTEST_DEBUG_TEMPROOT"] = str(self.home)  # in /tmp lies that of an earlier user of this name
        words = [self.interpreter if word == sys.executable else word for word in argv]
        result = subprocess.run(
            words, user=self.uid, group=self.gid, extra_groups=[], env=env, cwd=self.home,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    def python(self, script: str) -> str:
        """What this Python prints for `script` as this user."""
        return self.run([sys.executable, "-B", "-c", script]).stdout


@contextlib.contextmanager
def plain_user(subuids: bool, number: int = 0, equipped: User | None = None) -> Iterator[User]:
    """A new user; of several at once each has a `number`. Needs root, useradd, an interpreter that others may read.

    With `equipped`, another user, that one's interpreter runs and nothing is copied.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can make users")
    if subuids:
        require("newuidmap")
    name = f"mrt{os.getpid() % 10**6}{'s' if subuids else 'n'}{number or ''}"
    home = Path(tempfile.mkdtemp(prefix="minirt-user-"))
    # --system: no subordinate ids of its own accord
    subprocess.run([require("useradd"), "--system", "--home-dir", home, "--shell", "/bin/sh", name], check=True)
    try:
        if subuids:
            first = 3000000 + (number << 16)
            ids = f"{first}-{first + 65535}"
            words = ["--add-subuids", ids, "--add-subgids", ids, name]
            subprocess.run([require("usermod"), *words], check=True)
        entry = pwd.getpwnam(name)
        for part in ("minirt", "notebooks", "tests") if equipped is None else ():
            shutil.copytree(_HERE.parent / part, home / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("pyproject.toml", "tests/bundles.py") if equipped is None else ():
            shutil.copy(_HERE.parent / part, home)
        subprocess.run(["chown", "-R", f"{entry.pw_uid}:{entry.pw_gid}", home], check=True)
        user = User(name, entry.pw_uid, entry.pw_gid, home)
        if equipped:
            yield replace(user, interpreter=equipped.interpreter)
            return
        yield user if _runs(user) else _with_own_interpreter(user)
    finally:
        subprocess.run([require("userdel"), "--force", name], check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


def _runs(user: User) -> bool:
    return user.run([sys.executable, "-c", "import pytest"], check=False).returncode == 0


def _with_own_interpreter(user: User) -> User:
    """This virtual environment lies where only we may look: the user gets a copy."""
    copy = user.home / "venv"
    shutil.copytree(sys.prefix, copy, symlinks=True)
    subprocess.run(["chmod", "-R", "a+rX", copy], check=True)
    own = replace(user, interpreter=str(copy / "bin" / "python3"))
    if not _runs(own):
        if os.environ.get("CI") == "true":
            pytest.fail(f"other users cannot run {sys.executable}, nor a copy of it")
        pytest.skip(f"other users cannot run {sys.executable}")
    return own
