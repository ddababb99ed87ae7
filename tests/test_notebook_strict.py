"""Chapters give what they store: strict nbval, twice in a row on one store, as root and as plain users."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from users import plain_user

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parent.parent / "notebooks"
WORDS = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env", "chapters"]


def lay(folder: Path, twice: bool = True) -> None:
    """Each chapter, and its copy, which runs right after it on the store it leaves."""
    for path in FOLDER.glob("[0-9][0-9]-*.ipynb"):
        for name in (path.name, f"{path.stem}-again.ipynb")[: 1 + twice]:
            (folder / "chapters").mkdir(exist_ok=True)
            shutil.copy(path, folder / "chapters" / name)


def test_as_this_user(tmp_path: Path) -> None:
    lay(tmp_path)
    environment = {**os.environ, "MINIRT_COURSE": str(tmp_path / "course")}
    result = subprocess.run(WORDS, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("subuids", [True, False], ids=["subuids", "single id"])
def test_as_a_plain_user(subuids: bool) -> None:
    with plain_user(subuids) as user:
        lay(user.home, twice=subuids)
        subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", user.home / "chapters"], check=True)
        result = user.run(WORDS, timeout=300, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        assert (user.home / ".local/share/minirt/course/04/oci").is_dir()
