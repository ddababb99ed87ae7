"""From a click on chapter 04's button to the first line the container wrote, in a real browser on JupyterLab.

The tests' own browser and lab (tests/browsers.py). The image is here already and the kernel is warm: a second press.
"""

from __future__ import annotations

import contextlib
import io
import shutil

from benchmarks.case import OURS, Outcome
from benchmarks.engines import Bench
from benchmarks.measure import Sample

_FIRST = "Hello from a container!"


def click(bench: Bench, rounds: int) -> list[Outcome]:
    outcome = Outcome("notebook", "notebook: from the click on Run to the container's first line in the browser")
    try:
        import browsers
    except BaseException as reason:  # pytest's skip: playwright is not installed
        outcome.missing = [f"playwright ({reason})"]
        return [outcome]
    if not shutil.which("chromium"):
        outcome.missing = ["chromium"]
        return [outcome]
    quiet = contextlib.redirect_stdout(io.StringIO())  # else what the server said is shown at its end
    with quiet, browsers.running_lab(bench.folder / "learner") as lab, browsers.chromium() as browser:
        page = browsers.new_page(browser)
        browsers.open_chapter(page, lab.address(lab.chapter("04")))
        browsers.menu(page, "Run", "Run All Cells")
        panel = browsers.cell(page, 'second = chapter.panel("run hello-world"')
        seconds = []
        for _ in range(rounds + 1):
            button = panel.get_by_role("button", name="Run hello-world", exact=True)
            browsers.expect(button).to_be_enabled(timeout=60_000)
            page.evaluate(_WATCH, [panel.element_handle(), _FIRST])
            button.click()
            page.wait_for_function("window.minirtSeen !== null", timeout=60_000)
            seconds.append(page.evaluate("window.minirtSeen - window.minirtClicked") / 1000)
            browsers.expect(panel.get_by_role("status")).to_contain_text("Done", timeout=60_000)
    outcome.samples[OURS] = [Sample(value, 0.0) for value in seconds[1:]]
    outcome.note = "no peer: what a learner waits for"
    return [outcome]


# Notes, in the page itself, that the panel shows the line anew: as a press may replace what the last one showed by the
# same words within one change of the page, it is the piece of text (a node) that is looked at.
_WATCH = """([panel, text]) => {
    const shown = () => {
        const nodes = document.createTreeWalker(panel, NodeFilter.SHOW_TEXT);
        while (nodes.nextNode()) if (nodes.currentNode.data.includes(text)) return nodes.currentNode;
        return null;
    };
    let before = shown();
    window.minirtSeen = null;
    panel.addEventListener("click", () => { window.minirtClicked = performance.now(); }, {capture: true, once: true});
    const observer = new MutationObserver(() => {
        const now = shown();
        if (now === null) before = null;
        if (now !== before) {
            window.minirtSeen = performance.now();
            observer.disconnect();
        }
    });
    observer.observe(panel, {childList: true, subtree: true, characterData: true});
}"""
