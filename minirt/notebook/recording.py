"""`python -m minirt.notebook.recording NN`: record what a chapter's panels do, for machines where nothing can run.

The chapter's cells are executed here, each button of each panel is pressed once, in order, and of each press that needs
a container a take (take.py) is kept: its events, output and exit code with their times, in `recordings/NN.json`. Step
mode is walked through, and each of its stages that needs a container is kept in `recordings/walks/NN.json` (walk.py);
what cards see, in `recordings/cards/NN.json`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from minirt.errors import MinirtError, NotFound
from minirt.notebook import container, take, walk
from minirt.notebook.card import ContainerCard
from minirt.notebook.container import Container
from minirt.notebook.panel import Panel
from minirt.notebook.place import Place
from minirt.notebook.press import Press
from minirt.notebook.steps import Steps
from minirt.notebook.take import REAL, Moment, Take
from minirt.notebook.walk import Done, Walk

_LONG = 2.0  # seconds after which the recorder presses Stop


@dataclass
class Recorded:
    """`seen` are the containers that cards looked at, by name."""

    takes: list[Take] = field(default_factory=list)
    walks: list[Walk] = field(default_factory=list)
    seen: dict[str, Container] = field(default_factory=dict)


def record(notebook: Path) -> Recorded:
    """What a chapter's panels, steps and cards do, in a store of its own. Raises MinirtError where a cell fails or
    nothing can run."""
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.reset(new_session=False)  # type: ignore[no-untyped-call]  # of a chapter before this one nothing stays
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    known: list[Panel | Steps | ContainerCard] = []
    found = Recorded()
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            result = shell.run_cell("".join(cell["source"]), store_history=False)  # type: ignore[no-untyped-call]
        if not result.success:
            raise MinirtError(f"{notebook.name}: cell {cell['id']}: {result.error_in_exec or result.error_before_exec}")
        for value in [*shell.user_ns.values(), result.result]:
            if not isinstance(value, Panel | Steps | ContainerCard) or any(value is each for each in known):
                continue
            known.append(value)
            if isinstance(value, Panel):
                found.takes += _pressed(value)
            elif isinstance(value, Steps):
                found.walks.append(_walked(value))
            else:
                found.seen |= _seen(shell.user_ns["chapter"], value)
    return found


def _seen(place: Place, card: ContainerCard) -> dict[str, Container]:
    """What the card shows of the containers that are here."""
    card.wait(20)
    found = {}
    with place.client() as client:
        for name in card.containers:
            with contextlib.suppress(NotFound):
                found[name] = walk.kept(container.look(client, name), files=())
    return found


def _walked(steps: Steps) -> Walk:
    """Go through its stages; then all is as before, but for the image."""
    staged, done = steps.staged, []
    while staged.next:
        steps.next.click()
        steps.wait(60)
        stage = next(each for each in reversed(staged.stages) if each.state in ("done", "failed"))
        if stage.state == "failed" or stage.recorded:
            raise MinirtError(f"this machine cannot run containers, so nothing can be recorded: {steps.status.value}")
        if stage.name in ("create", "start", "end", "remove"):
            seen = stage.seen and walk.kept(stage.seen)
            output = staged.output.decode()
            done.append(Done(
                stage.name, stage.came, round(stage.ms, 1), tuple(stage.exchanges), output, staged.code, seen
            ))  # fmt: skip
    made = staged["ask" if staged["ask"].came == "found" else "create"]
    done[0] = replace(done[0], came="created", ms=round(made.ms, 1), exchanges=tuple(made.exchanges[-1:]))
    steps.over.click()
    steps.wait(20)
    return Walk(tuple(staged.command.words), _today(), tuple(done))


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


def _pressed(panel: Panel) -> Iterator[Take]:
    """Press each button of a panel once."""
    for button in panel.run:
        stopped = 0.0
        button.click()
        count = len(panel.presses)
        while button.disabled:
            time.sleep(0.05)
            this = panel.presses[-1] if panel.presses else None
            if this and not stopped and _lasts(this):
                stopped = time.monotonic()
                panel.stop.click()
        if len(panel.presses) < max(count, 1) or panel.presses[-1].recorded:
            raise MinirtError(f"this machine cannot run containers, so nothing can be recorded: {panel.status.value}")
        this = panel.presses[-1]
        if this.command.verb not in REAL and (this.code is not None or _made(this)):
            yield _take(this, panel.commands, stopped)


def _lasts(this: Press) -> bool:
    """Whether its container, or its command, has run for long."""
    starts = [event.at for event in this.events if (event.box, event.action) == ("container", "start")]
    begun = starts[0] if starts else None if this.command.followed else this.started
    return begun is not None and this.ended is None and time.monotonic() - begun > _LONG


def _made(this: Press) -> bool:
    """Whether it came as far as a container."""
    return any((event.box, event.action) == ("container", "create") for event in this.events)


def _take(this: Press, panel: Sequence[str], stopped: float) -> Take:
    asked = [
        event.at
        for event in this.events
        if (event.box, event.action) == ("client", "request")
        and str(event.detail.get("path")).startswith("/containers/create")
    ]
    begun = asked[-1] if asked else this.started
    moments: list[Moment] = [
        (event.at, (event.box, event.action, event.detail), "") for event in this.events if event.at >= begun
    ]
    moments += [(at, None, base64.b64encode(data).decode()) for at, data in this.chunks if at >= begun]
    moments.sort(key=lambda moment: moment[0])
    after = next((index for index, moment in enumerate(moments) if stopped and moment[0] >= stopped), -1)
    return Take(
        panel=tuple(panel),
        command=" ".join(str(this.command).split()[1:]),
        made=_today(),
        code=this.code,
        error=this.error,
        stopped=after,
        moments=tuple((round(at - begun, 4), event, data) for at, event, data in moments),
    )


def main(argv: list[str] | None = None) -> int:
    from minirt.notebook import lab

    parser = argparse.ArgumentParser(prog="python -m minirt.notebook.recording", description=__doc__.split("\n")[0])
    parser.add_argument("--into", type=Path, default=take.FOLDER, help="where the files go")
    parser.add_argument("chapters", nargs="+", metavar="NN")
    options = parser.parse_args(argv)
    notebooks = lab.chapters()
    for number in options.chapters:
        if number not in notebooks:
            print(f"no chapter {number!r}: there is {', '.join(notebooks)}", file=sys.stderr)
            return 1
        with tempfile.TemporaryDirectory(prefix="minirt-course-", ignore_cleanup_errors=True) as folder:
            os.environ["MINIRT_COURSE"] = folder
            try:
                found = record(notebooks[number])
            except MinirtError as error:
                print(error, file=sys.stderr)
                return 1
        options.into.mkdir(exist_ok=True)
        lines = ",\n".join(json.dumps(asdict(each), ensure_ascii=False) for each in found.takes)
        name, root = f"{number}.json", Path(folder) / number
        (options.into / name).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        if found.walks:
            walk.write(options.into / walk.FOLDER.name / name, found.walks, root)
        if found.seen:
            walk.write_cards(options.into / walk.CARDS.name / name, _today(), found.seen, root)
        count = f"{len(found.takes)} takes, {len(found.walks)} walks, {len(found.seen)} containers of cards"
        print(f"{options.into / name}: {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
