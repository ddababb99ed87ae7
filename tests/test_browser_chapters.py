"""Every chapter in both languages, in a real JupyterLab: Run All, then every button there is, by the keyboard alone.

A button must answer: its line says something else than before, what it started ends or can be stopped, and it can be
pressed again. No error output, nothing of ours on the browser's console, nothing that axe-core finds, in the light and
the dark theme. What the page looks like at its end is kept in screenshots/. After a restart of the kernel each
widget says that its cell is to be run again, and offers no dead button; opened again, the saved page has words instead.
The folded solution, put into the learner's cell, satisfies the exercise.
"""

from __future__ import annotations

import contextlib
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")
from browsers import (
    Lab,
    chromium,
    expect,
    menu,
    new_page,
    open_chapter,
    picture,
    run_all,
    running_lab,
    saved,
    violations,
)
from playwright.sync_api import TimeoutError

from minirt.notebook.catalogue import Strings

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = [
    (lang, path.name[:2])
    for lang, folder in (("en", FOLDER), ("ko", FOLDER / "ko"))
    for path in sorted(folder.glob("[0-9][0-9]-*.ipynb"))
]
PATIENCE = 4.0  # seconds after which what a button started is stopped, where it can be
ENDS = 60.0  # seconds that anything may take


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("learner"), request.param, True) as lab:
        yield lab


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    page = new_page(browser)
    failed = request.session.testsfailed
    yield page
    if request.session.testsfailed > failed:
        picture(page, f"failed-{request.node.name}")
    page.close()


def ready(page: Any, cells: int) -> None:
    """All cells have run."""
    for _ in range(600):
        counts = page.locator(".jp-CodeCell .jp-InputArea-prompt").all_inner_texts()
        if len(counts) == cells and all(re.fullmatch(r"\[\d+\]:?", count.strip()) for count in counts):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"the cells did not all run: {counts}")


def words(area: Any) -> str:
    """What the area's lines say that a screen reader announces."""
    return "\n".join(area.get_by_role("status").all_inner_texts())


def press_all(page: Any, area: Any) -> int:
    """Press each button of an output area once; how many there were. Stop is pressed where something does not end."""
    buttons = area.get_by_role("button").element_handles()
    done = 0
    for button in buttons:
        if not button.is_visible() or not button.is_enabled():  # one that is not wanted any more is not shown
            continue
        name = button.inner_text().strip()
        if radios := button.query_selector_all("xpath=ancestor::fieldset//input[@type='radio']"):
            radios[-1].focus()
            page.keyboard.press("Space")
        before = area.inner_text()
        button.focus()
        page.keyboard.press("Space")
        waited = 0.0
        while (area.inner_text() == before or not button.is_enabled()) and waited < ENDS:
            page.wait_for_timeout(100)
            waited += 0.1
            if waited > PATIENCE and not button.is_enabled():
                others = [other for other in buttons if other != button and other.is_visible() and other.is_enabled()]
                for other in others[:1]:  # while one works: its Stop
                    with contextlib.suppress(TimeoutError):  # it ended by itself just now
                        other.click(timeout=500)
        assert area.inner_text() != before, f"{name!r} was pressed and nothing was said: {before[:300]}"
        assert button.is_enabled(), f"{name!r} did not come back: {words(area)}"
        done += 1
    return done


def theme(page: Any, name: str) -> None:
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.locator(".lm-Menu-item", has_text="Theme").first.hover()
    page.locator(".lm-Menu-item", has_text=re.compile(f"^{name}$")).click()
    light = str(name.endswith("Light")).lower()
    expect(page.locator(f"body[data-jp-theme-light='{light}']")).to_be_attached(timeout=30_000)


def restarted(page: Any, areas: Any, notice: str) -> None:
    """Restart the kernel: where buttons were, a line says what to do, and none is left."""
    buttons = areas.get_by_role("button")
    with_buttons = [index for index in range(areas.count()) if areas.nth(index).get_by_role("button").count()]
    menu(page, "Kernel", "Restart Kernel…")
    page.get_by_role("dialog").get_by_role("button", name="Confirm Kernel Restart").click()
    expect(page.locator(".jupyter-widgets-disconnected").first).to_be_attached(timeout=30_000)
    expect(buttons).to_have_count(0)
    said = "e => [...e.querySelectorAll('*')].map(each => getComputedStyle(each, '::before').content)"
    for index in with_buttons:
        assert f'"{notice}"' in areas.nth(index).evaluate(said), areas.nth(index).inner_text()


def solution(path: Path) -> str:
    """What the chapter's folded solution says to put into the learner's own cell."""
    cells = {cell["id"]: "".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]}
    folded = cells["exercise-hints"].rpartition("<summary>")[2].partition("</code>. ")[0]
    if block := re.search("<pre>(.*?)</pre>", folded, re.DOTALL):
        return f"{html.unescape(block[1])}\n\n{cells['exercise-yours'].splitlines()[-1]}"
    lines = [line for line in re.findall("<code>(.*?)(?:</code>|$)", folded) if "minirt " in line]
    assert lines
    return "\n".join(["%%sh", *map(html.unescape, lines)])


def solved(page: Any, path: Path, answer: str, right: str) -> None:
    """Put the answer into the learner's cell, run all but the last cell, press the exercise's button: it is right."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    ids = [cell["id"] for cell in cells]
    code = page.locator(".jp-CodeCell")
    code.nth(ids.index("exercise-yours")).locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(answer)
    code.nth(len(ids) - 1).locator(".jp-InputArea-prompt").click()
    menu(page, "Run", "Run All Above Selected Cell")
    area = code.nth(ids.index("exercise")).locator(".jp-Cell-outputArea")
    expect(code.nth(ids.index("exercise-check")).locator(".jp-Cell-outputArea")).to_contain_text(right, timeout=90_000)
    button = area.get_by_role("button").first
    expect(button).to_be_enabled()
    button.focus()
    page.keyboard.press("Space")
    expect(area.get_by_role("status")).to_contain_text(right, timeout=30_000)


@pytest.mark.parametrize("lab, number", NOTEBOOKS, indirect=["lab"])
def test_every_button(page: Any, lab: Lab, number: str) -> None:
    console: list[str] = []
    page.on("pageerror", lambda error: console.append(str(error)))
    path = lab.chapter(number)
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    open_chapter(page, lab.address(path))
    run_all(page)
    ready(page, len(cells))
    areas = page.locator(".jp-CodeCell .jp-Cell-outputArea")
    # The last cell has emptied the store: panels that need what an earlier cell made say so, and that is an answer too.
    pressed = 0
    for index in range(areas.count()):
        area = areas.nth(index)
        if area.get_by_role("button").count():
            area.scroll_into_view_if_needed()
            pressed += press_all(page, area)
    assert pressed >= 3, "a chapter has a prediction, a panel and a quiz"
    assert violations(page) == []
    if lab.lang == "en" or number == "04":  # colours and buttons are the same in every language
        theme(page, "JupyterLab Dark")
        assert violations(page) == []
        picture(page, f"{path.stem}-{lab.lang}-dark")
        theme(page, "JupyterLab Light")
    assert [line for line in console if "minirt" in line or "mrt" in line] == []
    outputs = [output for c in saved(page, path)["cells"] for output in c.get("outputs", ())]
    assert [output for output in outputs if output["output_type"] == "error"] == []
    expect(
        page.locator(".jp-Notebook .jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']")
    ).to_have_count(0)
    picture(page, f"{path.stem}-{lab.lang}", whole=True)
    assert "widget-view" not in path.read_text()
    if lab.lang == "en" or number == "04":
        restarted(page, areas, Strings(lab.lang)("again"))
    if lab.lang == "en":
        solved(page, path, solution(path), Strings(lab.lang)("exercise.right", reason="").strip())
    page.goto("about:blank")
    open_chapter(page, lab.address(path))
    expect(areas.get_by_text(Strings(lab.lang)("choice.fallback")).first).to_be_visible()
    assert page.locator("text=/model not found/i").count() == 0
