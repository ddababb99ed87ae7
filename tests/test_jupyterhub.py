"""A class on one machine: a real JupyterHub by docs/jupyterhub_config.py, three learners in chapter 04 at once."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import require
from users import User, plain_user

pytest.importorskip("playwright.sync_api")
from browsers import cell, chromium, expect, free_port, new_page, picture, press, run_all, server

pytestmark = pytest.mark.slow
TOP = Path(__file__).parent.parent
CHAPTER = next((TOP / "notebooks").glob("04-*.ipynb"))
PASSWORD = "correct horse"


@pytest.fixture
def learners() -> Iterator[list[User]]:
    """Three accounts with a password: two with subordinate ids, one without. All they leave running ends."""
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(plain_user(subuids, number)) for number, subuids in enumerate((True, True, False))]
        accounts = "".join(f"{user.name}:{PASSWORD}\n" for user in users)
        subprocess.run([require("chpasswd")], input=accounts, text=True, check=True)
        try:
            yield users
        finally:
            for user in users:
                subprocess.run(["pkill", "-KILL", "-U", str(user.uid)], check=False)


@pytest.fixture
def hub(tmp_path: Path, learners: list[User]) -> Iterator[str]:
    """The address of a running JupyterHub, whose course and package everybody may read."""
    require("configurable-http-proxy")
    shared = Path(tempfile.mkdtemp(prefix="minirt-class-"))
    try:
        for part in ("minirt", "notebooks"):
            shutil.copytree(TOP / part, shared / part, ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(["chmod", "-R", "a+rX", shared], check=True)
        port, hub = free_port(), free_port()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MINIRT_")},
            "PYTHONPATH": str(shared),
            "MINIRT_CLASS_URL": f"http://127.0.0.1:{port}",
            "MINIRT_CLASS_HUB_URL": f"http://127.0.0.1:{hub}",
            "CONFIGPROXY_AUTH_TOKEN": os.urandom(16).hex(),
        }
        interpreter = next(user.interpreter for user in learners)
        words = [interpreter, "-m", "jupyterhub", "-f", str(TOP / "docs" / "jupyterhub_config.py")]
        words += [f"--ConfigurableHTTPProxy.api_url=http://127.0.0.1:{free_port()}"]
        with server(tmp_path / "hub", words, port, environment):
            yield environment["MINIRT_CLASS_URL"]
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def log_in(page: Any, hub: str, user: User) -> None:
    """Log in, on the way to chapter 04: the learner's server starts for it."""
    page.goto(f"{hub}/hub/login?next=/hub/user-redirect/lab/tree/minirt-course/{CHAPTER.name}")
    page.get_by_label("Username:").fill(user.name)
    page.get_by_label("Password:").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()


def test_three_learners_run_chapter_04_each_with_a_minirt_of_their_own(hub: str, learners: list[User]) -> None:
    with chromium() as browser:
        pages = [new_page(browser) for _ in learners]
        try:
            for page, user in zip(pages, learners, strict=True):
                log_in(page, hub, user)
            for page, user in zip(pages, learners, strict=True):
                page.wait_for_url(re.compile(f"/user/{user.name}/lab"), timeout=120_000)
                expect(page.get_by_text(re.compile(r"\| Idle$"))).to_be_visible(timeout=120_000)
                run_all(page)
            for page in pages:
                expect(cell(page, "chapter.clean_up()")).to_contain_text("[]", timeout=120_000)
            for page in pages:  # one after the other, while the others' daemons stand
                first = cell(page, 'first = chapter.panel("run hello-world"')
                press(page, first, "Run hello-world", "Done: exit code 0")
                expect(first).to_contain_text("Unable to find image 'hello-world:latest' locally")
        except BaseException:
            for page, user in zip(pages, learners, strict=True):
                picture(page, f"hub-{user.name}")
            raise
    for user in learners:
        store = user.home / ".local/share/minirt/course/04"
        assert (store / "oci" / "index.json").is_file() and store.stat().st_uid == user.uid
        assert "hello-world" in (store / "oci" / "index.json").read_text()
        daemons = subprocess.run(["pgrep", "-U", str(user.uid), "-f", str(store)], capture_output=True, text=True)
        assert daemons.stdout.split(), "no daemon of this learner's own"
        other = next(one for one in learners if one is not user)
        seen = subprocess.run(["ls", store], user=other.uid, group=other.gid, extra_groups=[], capture_output=True)
        assert seen.returncode != 0, "another learner sees the store"
