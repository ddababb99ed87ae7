"""Chapter 04 as a learner meets it: `minirt lab` in a real browser, by the names of its buttons and by keyboard."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")
from browsers import Lab, cell, expect, menu, open_chapter, page, press, run_all, running_lab, saved, violations

from minirt.notebook import begin, flow, markup
from minirt.notebook.catalogue import Strings

__all__ = ["page"]
pytestmark = pytest.mark.slow


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with running_lab(tmp_path / "learner") as lab:
        yield lab


def test_chapter_04_in_jupyterlab(page: Any, lab: Lab) -> None:
    mine = lab.chapter("04")
    open_chapter(page, lab.address(mine))
    run_all(page)
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
    open_chapter(page, lab.address(mine))
    expect(cell(page, 'first = chapter.panel("run hello-world"')).to_contain_text("to get the buttons: Run hello-world")
    expect(cell(page, "chapter.map()").get_by_role("img")).to_have_attribute("alt", re.compile("^Flow map"))
    assert page.locator("text=/model not found/i").count() == 0


def test_chapter_04_in_notebook_7(page: Any, lab: Lab) -> None:
    page.goto(lab.address(lab.chapter("04"), "notebooks"))
    page.wait_for_selector(".jp-Notebook-cell")
    expect(page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']")).to_be_attached(timeout=60_000)
    run_all(page)
    expect(cell(page, "chapter.clean_up()")).to_contain_text("[]", timeout=60_000)
    first = cell(page, 'first = chapter.panel("run hello-world"')
    press(page, first, "Run hello-world", "Done: exit code 0")
    expect(first).to_contain_text("Unable to find image 'hello-world:latest' locally")
    quiz = cell(page, "chapter.quiz()").get_by_role("group").first
    quiz.get_by_role("radio").nth(1).check()
    quiz.get_by_role("button", name="Check question 1").click()
    expect(quiz.get_by_role("status")).to_contain_text("Right.")
    assert violations(page) == []


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_the_map_covers_none_of_its_words(page: Any, lang: str) -> None:
    """Whichever boxes are framed, and with all arrows walked (their words are bold then)."""
    for here in [("client", "container"), ("client", "daemon", "cache", "registry"), ("image", "container")]:
        walked = flow.Flow(walked={"request", "look-up", "ask", "keep", "yes", "files", "create"})
        walked.note.update(registry=Strings(lang)("flow.note.exchanges", count=12), container="exit code 137")
        page.set_content(flow.draw(walked, Strings(lang), here))
        covered = page.evaluate("""() => {
            const box = (e, grow = 0) => { const b = e.getBoundingClientRect()
                return [b.left - grow, b.top - grow, b.right + grow, b.bottom + grow] }
            const meet = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
            const within = (a, b) => a[0] >= b[0] && a[1] >= b[1] && a[2] <= b[2] && a[3] <= b[3]
            const frames = [...document.querySelectorAll('rect[stroke]')].map(e => box(e, 1))
            const heads = [...document.querySelectorAll('path[transform]')].map(e => box(e))
            return [...document.querySelectorAll('text')].filter(e => {
                const words = box(e)
                return frames.some(f => meet(words, f) && !within(words, f)) || heads.some(h => meet(words, h))
            }).map(e => e.textContent)
        }""")
        assert covered == [], here


def test_step_mode_stays_as_wide_as_the_page(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's folder has a long name, which has to break."""
    for name in ("MINIRT_ROOT", "MINIRT_HUB", "PATH"):  # begin() sets them: have them put back
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("MINIRT_COURSE", str(tmp_path / "course"))
    chapter = begin("06")
    steps = chapter.steps("run greeter:1.0", fresh=True)
    for _stage in range(3):
        steps.next.click()
        steps.wait(60)
    assert "Stage 3 done" in steps.status.value
    page.set_content(f'<div style="width:800px">{markup.style("again")}{steps._page.value}</div>')
    assert page.evaluate("document.querySelector('div').scrollWidth") <= 800
    chapter.empty()
