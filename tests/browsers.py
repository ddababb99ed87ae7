"""A learner's browser: Debian's Chromium on a JupyterLab started as a learner starts it.

For root both are in a network namespace of their own: other tests make and remove interfaces, and at each Chromium
gives up what it was loading (ERR_NETWORK_CHANGED).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from peers import require

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

SCREENSHOTS = Path(__file__).parent.parent / "screenshots"
TOKEN = "learner"
_CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
_CHROMIUM += ["--disable-sync", "--no-first-run"]


@functools.cache
def calm() -> list[str]:
    """What a command begins with to be in the namespace; nothing for who cannot make one. It lives as long as we do."""
    if os.geteuid() != 0:
        return []
    words = [require("setpriv"), "--pdeathsig", "KILL", require("unshare"), "--net", "sh", "-c"]
    holder = subprocess.Popen([*words, "ip link set lo up && echo up && exec sleep infinity"], stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"up\n"
    atexit.register(holder.kill)
    return ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]


def _listens(process: int, port: int) -> bool:
    """Whether anybody listens on 127.0.0.1:port where that process is. Source: proc_net_tcp of the kernel."""
    rows = [row.split() for row in Path(f"/proc/{process}/net/tcp").read_text().splitlines()[1:]]
    return any(int(row[1].rpartition(":")[2], 16) == port and row[3] == "0A" for row in rows)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: its address, the learner's copy of the course in `lang`, where chapters keep images."""

    url: str
    folder: Path
    course: Path
    lang: str

    def address(self, path: Path, kind: str = "lab/tree") -> str:
        """Of a file of the copy, alone in its window; `kind` is `notebooks` for Notebook 7."""
        return f"{self.url}/{kind}/{path.relative_to(self.folder).as_posix()}?token={TOKEN}&reset"

    def chapter(self, number: str) -> Path:
        return next((self.folder if self.lang == "en" else self.folder / self.lang).glob(f"{number}-*.ipynb"))


@contextlib.contextmanager
def server(home: Path, words: list[str], port: int, environment: dict[str, str] | None = None) -> Iterator[None]:
    """Run a Jupyter server until the block ends; what it said is shown when the test fails."""
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "server.log", "wb") as log:
        inside = [*calm(), *words]
        process = subprocess.Popen(inside, env=environment, cwd=home, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(600):
                if process.poll() is not None:
                    pytest.fail((home / "server.log").read_text())
                with contextlib.suppress(FileNotFoundError):  # it may just have ended
                    if _listens(process.pid, port):
                        break
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            print((home / "server.log").read_text())


@contextlib.contextmanager
def running_lab(home: Path, lang: str = "en", whole: bool = False, *words: str) -> Iterator[Lab]:
    """`minirt lab`. `whole`: JupyterLab keeps every cell in the page, not only those in sight."""
    port = free_port()
    course = home / "course"
    environment = {**os.environ, "HOME": str(home), "JUPYTER_TOKEN": TOKEN, "MINIRT_COURSE": str(course)}
    if whole:
        settings = home / ".jupyter" / "lab" / "user-settings" / "@jupyterlab" / "notebook-extension"
        settings.mkdir(parents=True)
        (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    command = [sys.executable, "-m", "minirt", "lab", "--no-browser", f"--port={port}", f"--lang={lang}", *words]
    with server(home, command, port, environment):
        yield Lab(f"http://127.0.0.1:{port}", home / "minirt-course", course, lang)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The browser."""
    with tempfile.TemporaryDirectory() as folder, sync_api.sync_playwright() as playwright:
        program = Path(folder, "chromium")
        program.write_text(f'#!/bin/sh\nexec {" ".join([*calm(), require("chromium")])} "$@"\n')
        program.chmod(0o755)
        browser = playwright.chromium.launch(executable_path=program, args=_CHROMIUM)
        try:
            yield browser
        finally:
            browser.close()


def new_page(browser: Any) -> Any:
    """A page with cookies of its own."""
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.set_default_timeout(30_000)
    return page


@pytest.fixture
def page(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A browser's page; when the test fails, a picture of it is kept in screenshots/."""
    with chromium() as browser:
        page = new_page(browser)
        failed = request.session.testsfailed
        try:
            yield page
        finally:
            if request.session.testsfailed > failed:
                picture(page, request.node.name)


def picture(page: Any, name: str, whole: bool = False) -> None:
    """Keep what the page shows, as screenshots/NAME.png; `whole`: the notebook from its first cell to its last."""
    SCREENSHOTS.mkdir(exist_ok=True)
    before = page.viewport_size
    if whole:
        panel = page.locator(".jp-WindowedPanel-outer:visible")
        high = panel.evaluate("e => e.scrollHeight")
        page.set_viewport_size({"width": before["width"], "height": min(high + 200, 16_000)})
        panel.evaluate("e => e.scrollTo(0, 0)")
        page.wait_for_timeout(500)  # it is drawn anew
    page.screenshot(path=SCREENSHOTS / f"{re.sub('[^0-9A-Za-z_-]+', '-', name)}.png")
    if whole:
        page.set_viewport_size(before)


def open_chapter(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector(".jp-Notebook-cell")
    expect(page.get_by_text(re.compile(r"\| Idle$"))).to_be_visible(timeout=60_000)  # the kernel answers


def menu(page: Any, *names: str) -> None:
    page.get_by_role("menuitem", name=names[0], exact=True).click()
    page.get_by_role("menuitem", name=re.compile(f"^{names[1]}")).first.click()  # a shortcut may follow


def run_all(page: Any) -> None:
    """Run All, until it does: before the page has its kernel it is nothing, and the page tells nobody."""
    for _ in range(5):
        menu(page, "Run", "Run All Cells")
        begun = re.compile(r"\[[0-9*]+\]")
        with contextlib.suppress(AssertionError):
            expect(page.locator(".jp-InputArea-prompt", has_text=begun).first).to_be_attached(timeout=10_000)
            return


def cell(page: Any, name: str) -> Any:
    """The output area of a code cell, found by its first words and scrolled into view (JupyterLab draws no others)."""
    found = page.locator(".jp-CodeCell", has=page.locator(".cm-content", has_text=name))
    found.first.scroll_into_view_if_needed()
    return found.first.locator(".jp-Cell-outputArea")


def saved(page: Any, path: Path) -> dict[str, Any]:
    """The notebook's file after Ctrl-S. Jupyter empties it and then writes: half a document is not yet it."""
    before = path.stat().st_mtime_ns
    page.keyboard.press("Control+s")
    content = None
    for _ in range(100):
        if path.stat().st_mtime_ns != before:
            with contextlib.suppress(json.JSONDecodeError):
                content = json.loads(path.read_text())
                break
        page.wait_for_timeout(100)
    assert isinstance(content, dict)
    return content


def press(page: Any, panel: Any, name: str, done: str | re.Pattern[str]) -> None:
    """Press a panel's button by its name, and wait until its status line says `done`."""
    button = panel.get_by_role("button", name=name, exact=True)
    expect(button).to_be_enabled(timeout=20_000)
    status = panel.get_by_role("status")
    before = status.inner_text()
    button.click()
    expect(status).not_to_have_text(before)
    expect(status).to_contain_text(done, timeout=40_000)


def violations(page: Any) -> list[str]:
    """What axe-core finds in the output areas: rule, and the element."""
    script = files("axe_playwright_python") / "axe.min.js"
    page.evaluate(script.read_text())
    result = page.evaluate(
        "axe.run({include: [['.jp-Cell-outputArea']]}, {resultTypes: ['violations']})"
        ".then(r => r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html.slice(0, 200)).join(' | ')))"
    )
    return [str(line) for line in result]
