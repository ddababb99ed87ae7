"""Chapters give what they store, in both languages: strict nbval, twice in a row on one store, as root and as plain
users. The languages run beside each other, each with a folder of its own, as two learners would."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from users import plain_user

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parent.parent / "notebooks"
LANGUAGES = {"en": FOLDER, "ko": FOLDER / "ko"}


def words(home: Path, lang: str) -> list[str]:
    """-n0: chapters of a language share one store, in turn. No reruns: a cell again would begin at the first one."""
    course = f"MINIRT_COURSE={home}/course-{lang}"
    strict = ["--nbval", "--nbval-current-env", "-q", "-n0", "-p", "no:cacheprovider", "--reruns=0"]
    return ["env", course, sys.executable, "-m", "pytest", *strict, f"chapters-{lang}"]


def lay(folder: Path, twice: bool = True) -> None:
    """Each notebook, and its copy, which runs right after it on the store it leaves."""
    for lang, source in LANGUAGES.items():
        paths = sorted(source.glob("*.ipynb"))
        assert len(paths) >= 8
        target = folder / f"chapters-{lang}"
        target.mkdir()
        for path in paths:
            for name in (path.name, f"{path.stem}-again.ipynb")[: 1 + twice]:
                shutil.copy(path, target / name)


def all_give_what_they_store(run: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    with ThreadPoolExecutor() as pool:
        for result in pool.map(run, LANGUAGES):
            assert result.returncode == 0, result.stdout + result.stderr


def test_as_this_user(tmp_path: Path) -> None:
    lay(tmp_path)
    all_give_what_they_store(
        lambda lang: subprocess.run(
            words(tmp_path, lang), cwd=tmp_path, capture_output=True, text=True, timeout=800, check=False
        )
    )


@pytest.mark.parametrize("subuids", [True, False], ids=["subuids", "single id"])
def test_as_a_plain_user(subuids: bool) -> None:
    with plain_user(subuids) as user:
        lay(user.home, twice=subuids)
        for lang in LANGUAGES:
            subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", user.home / f"chapters-{lang}"], check=True)
        all_give_what_they_store(lambda lang: user.run(words(user.home, lang), timeout=800, check=False))
        found = user.python("from minirt.notebook import ability; print(ability.kind())")
        assert found.strip() == ("subuids" if subuids else "single")
        assert all((user.home / f"course-{lang}/04/oci").is_dir() for lang in LANGUAGES)
