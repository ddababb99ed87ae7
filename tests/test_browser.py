"""Chapter 04 as a learner meets it: `minirt lab` in a real browser, by the names of its buttons and by keyboard."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from peers import require

pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

_CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
_CHROMIUM += ["--disable-sync", "--no-first-run"]
_TOKEN = "learner"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of chapter 04 in a JupyterLab started as a learner starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path / "learner"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "JUPYTER_TOKEN": _TOKEN, "MINIRT_COURSE": str(tmp_path / "course")}
    words = [sys.executable, "-m", "minirt", "lab", "--no-browser", f"--port={port}"]
    log = open(tmp_path / "lab.log", "wb")  # noqa: SIM115 (closed below, when the server has ended)
    server = subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(300):
            if server.poll() is not None:
                pytest.fail((tmp_path / "lab.log").read_text())
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        name = next((home / "minirt-course").glob("04-*.ipynb")).name
        yield f"http://127.0.0.1:{port}/lab/tree/{name}?token={_TOKEN}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()
        print((tmp_path / "lab.log").read_text())  # pytest shows it when the test fails


@pytest.fixture
def page(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A browser's page; when the test fails, a picture of it is kept in screenshots/."""
    chromium = require("chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_CHROMIUM)
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.set_default_timeout(30_000)
        failed = request.session.testsfailed
        try:
            yield page
        finally:
            if request.session.testsfailed > failed:
                folder = Path(__file__).parent.parent / "screenshots"
                folder.mkdir(exist_ok=True)
                page.screenshot(path=folder / f"{request.node.name}.png")
            browser.close()


def open_chapter(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector(".jp-Notebook-cell")
    expect(page.get_by_text(re.compile(r"\| Idle$"))).to_be_visible(timeout=60_000)  # the kernel answers


def menu(page: Any, *names: str) -> None:
    page.get_by_role("menuitem", name=names[0], exact=True).click()
    page.get_by_role("menuitem", name=re.compile(f"^{names[1]}")).first.click()  # a shortcut may follow


def cell(page: Any, name: str) -> Any:
    """The output area of a code cell, found by its first words and scrolled into view (JupyterLab draws no others)."""
    found = page.locator(".jp-CodeCell", has=page.locator(".cm-content", has_text=name))
    found.first.scroll_into_view_if_needed()
    return found.first.locator(".jp-Cell-outputArea")


def saved(page: Any, path: Path) -> dict[str, Any]:
    before = path.stat().st_mtime_ns
    page.keyboard.press("Control+s")
    for _ in range(100):
        if path.stat().st_mtime_ns != before:
            break
        page.wait_for_timeout(100)
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content


def press(page: Any, panel: Any, name: str, done: str | re.Pattern[str]) -> None:
    button = panel.get_by_role("button", name=name, exact=True)
    expect(button).to_be_enabled(timeout=20_000)
    status = panel.get_by_role("status")
    before = status.inner_text()
    button.click()
    expect(status).not_to_have_text(before)
    expect(status).to_contain_text(done, timeout=40_000)


def test_chapter_04_in_jupyterlab(page: Any, lab: str, tmp_path: Path) -> None:
    mine = next((tmp_path / "learner" / "minirt-course").glob("04-*.ipynb"))
    open_chapter(page, lab)
    menu(page, "Run", "Run All Cells")
    expect(cell(page, "chapter.clean_up()")).to_contain_text("[]", timeout=60_000)

    # Questions, by keyboard alone: Space chooses and presses.
    question = cell(page, 'chapter.predict("first")')
    question.get_by_label("It fetches the image", exact=False).focus()
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(question.get_by_role("status")).to_contain_text("Noted: It fetches the image")
    for name in ("second", "shared"):
        question = cell(page, f'chapter.predict("{name}")')
        question.get_by_role("radio").first.check()
        question.get_by_role("button", name="Lock in my prediction").click()
        expect(question.get_by_role("status")).to_contain_text("Noted:")

    # Round 1: Space presses the button, the map lights up, the transcript follows.
    first = cell(page, 'first = chapter.panel("run hello-world"')
    first.get_by_role("button", name="Run hello-world", exact=True).focus()
    page.keyboard.press("Space")
    expect(first.get_by_role("status")).to_contain_text("Done: exit code 0", timeout=20_000)
    expect(first).to_contain_text("Unable to find image 'hello-world:latest' locally")
    expect(first.get_by_role("img")).to_have_attribute(
        "aria-label", re.compile("pulled from the registry and kept: done")
    )
    first.get_by_role("button", name="Replay slowly", exact=True).click()
    expect(first.get_by_role("status")).to_contain_text("Slow replay, step 2 of", timeout=10_000)
    press(page, first, "Stop", "Replay finished")
    transcript = cell(page, "chapter.transcript(first)")
    transcript.locator("summary").first.click()
    expect(transcript).to_contain_text("Docker-Content-Digest")

    # Round 2: the second press skips the pull.
    second = cell(page, 'second = chapter.panel("run hello-world"')
    press(page, second, "Run hello-world", "HTTP exchanges with the registry")
    press(page, second, "Run hello-world", "everything came from the local cache")
    expect(second.get_by_role("row")).to_have_count(3)
    press(page, second, "Start over", "Ready")

    # Round 3: layers, on the slow hub.
    third = cell(page, 'third = chapter.panel("run greeter:1.0"')
    press(page, third, "Run greeter:1.0", "Done: exit code 0")
    press(page, third, "Run greeter:2.0", "Done: exit code 0")
    expect(third).to_contain_text("Already exists")

    typo = cell(page, 'typo = chapter.panel("run hello-wrold")')
    press(page, typo, "Run hello-wrold", "hello-wrold not found")
    sleeper = cell(page, 'sleeper = chapter.panel("run toolbox sleep 60")')
    sleeper.get_by_role("button", name="Run toolbox sleep 60", exact=True).click()
    expect(sleeper).to_contain_text("running", timeout=20_000)
    press_stop = sleeper.get_by_role("button", name="Stop", exact=True)
    press_stop.click()
    expect(sleeper.get_by_role("status")).to_contain_text("exit code 137", timeout=20_000)
    expect(press_stop).to_be_disabled()

    exercise = cell(page, 'exercise = chapter.exercise("refresh")')
    exercise.get_by_role("button", name="Check my work").click()
    expect(exercise.get_by_role("status")).to_contain_text("Not yet.")
    quiz = cell(page, "chapter.quiz()")
    for number, right in ((1, 1), (2, 0), (3, 2)):
        asked = quiz.get_by_role("group").nth(number - 1)
        asked.get_by_role("radio").nth(right).check()
        asked.get_by_role("button", name=f"Check question {number}").click()
        expect(asked.get_by_role("status")).to_contain_text("Right.")

    assert violations(page) == []
    assert not [o for c in saved(page, mine)["cells"] for o in c.get("outputs", ()) if o["output_type"] == "error"]

    # Saved without live views; after a restart a panel says so; reopened, the fallback stands there.
    text = mine.read_text()
    assert "widget-view" not in text and "Run this cell in JupyterLab to get the buttons" in text
    menu(page, "Kernel", "Restart Kernel…")
    page.get_by_role("dialog").get_by_role("button", name="Confirm Kernel Restart").click()
    for name, part in (
        ("chapter.quiz()", ".mrt-choice"),
        ("chapter.transcript(first)", ".mrt-panel"),
        ("typo =", ".mrt-panel"),
    ):
        shown = cell(page, name).locator(part).first
        expect(cell(page, name).locator(".jupyter-widgets-disconnected").first).to_be_attached(timeout=30_000)
        again = shown.evaluate("e => getComputedStyle(e, '::before').content")
        assert again == '"The kernel was restarted: run this cell again."'
        assert shown.get_by_role("button").count() == 0, "a dead button is still offered"
    page.goto("about:blank")
    open_chapter(page, lab)
    expect(cell(page, 'first = chapter.panel("run hello-world"')).to_contain_text("to get the buttons: Run hello-world")
    expect(cell(page, "chapter.map()").get_by_role("img")).to_have_attribute("alt", re.compile("^Flow map"))
    assert page.locator("text=/model not found/i").count() == 0


def violations(page: Any) -> list[str]:
    """What axe-core finds in the output areas: rule, and the element."""
    script = files("axe_playwright_python") / "axe.min.js"
    page.evaluate(script.read_text())
    result = page.evaluate(
        "axe.run({include: [['.jp-Cell-outputArea']]}, {resultTypes: ['violations']})"
        ".then(r => r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html.slice(0, 200)).join(' | ')))"
    )
    return [str(line) for line in result]
