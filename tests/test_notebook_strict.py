"""Chapters give what they store, in both languages: strict nbval, twice in a row on one store, as root and as plain
users."""

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
# -n0: the chapters share one store, in turn.
WORDS = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
WORDS += ["--reruns=0", "chapters"]  # a cell again would have to begin at the first one


def lay(folder: Path, twice: bool = True) -> None:
    """Each notebook, and its copy, which runs right after it on the store it leaves; Korean ones in a folder below."""
    paths = [path for path in FOLDER.glob("**/*.ipynb") if ".ipynb_checkpoints" not in path.parts]
    assert {path.parent.name for path in paths} == {"notebooks", "ko"}
    for path in paths:
        target = folder / "chapters" / path.relative_to(FOLDER).parent
        target.mkdir(parents=True, exist_ok=True)
        for name in (path.name, f"{path.stem}-again.ipynb")[: 1 + twice]:
            shutil.copy(path, target / name)


def test_as_this_user(tmp_path: Path) -> None:
    lay(tmp_path)
    environment = {**os.environ, "MINIRT_COURSE": str(tmp_path / "course")}
    result = subprocess.run(WORDS, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("subuids", [True, False], ids=["subuids", "single id"])
def test_as_a_plain_user(subuids: bool) -> None:
    with plain_user(subuids) as user:
        lay(user.home, twice=subuids)
        subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", user.home / "chapters"], check=True)
        result = user.run(WORDS, timeout=800, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        found = user.python("from minirt.notebook import ability; print(ability.kind())")
        assert found.strip() == ("subuids" if subuids else "single")
        assert (user.home / ".local/share/minirt/course/04/oci").is_dir()
