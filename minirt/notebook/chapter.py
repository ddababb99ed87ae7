"""`begin("04")`: a chapter's own store, hub and words, and everything a page of the course shows.

A chapter works in `MINIRT_COURSE/NN` (default: the user's data folder, `minirt/course/NN`), never in the learner's own
store, with the embedded registry. Beginning empties that folder's images and containers, and nothing else.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from minirt import userns
from minirt.client import Client
from minirt.errors import InvalidInput
from minirt.notebook import exercise, flow
from minirt.notebook.catalogue import Strings
from minirt.notebook.choice import Questions, prediction, quiz
from minirt.notebook.markup import image
from minirt.notebook.panel import Panel
from minirt.notebook.status import Status
from minirt.notebook.transcript import Transcript

# chapter: its box on the map, and the boxes no chapter up to it has shown
_CHAPTERS: dict[str, tuple[str, frozenset[str]]] = {"04": ("cache", frozenset())}


def begin(number: str, lang: str = "en") -> Chapter:
    """Set the stage of chapter `number` and clear what it made before.

    From here on `minirt.run(…)` and the `minirt` command of this notebook use the chapter's store and the embedded hub.
    Raises InvalidInput for a chapter or language there is none of.
    """
    if number not in _CHAPTERS:
        raise InvalidInput(f"no chapter {number!r}: there is {', '.join(sorted(_CHAPTERS))}")
    chapter = Chapter(number, lang)
    os.environ["MINIRT_ROOT"], os.environ["MINIRT_HUB"] = str(chapter.root), "embedded"
    scripts = os.path.dirname(sys.executable)
    if os.path.exists(os.path.join(scripts, "minirt")):  # the command of a cell is this same minirt
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])
    chapter.empty()
    return chapter


def course() -> Path:
    """The folder with a store for each chapter: `MINIRT_COURSE`, else in the user's data folder."""
    if folder := os.environ.get("MINIRT_COURSE"):
        return Path(folder)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "minirt" / "course"


class Picture:
    """The flow map as it stands before anything happened: an image with words for those who do not see it."""

    def __init__(self, svg: str, alt: str) -> None:
        self._page, self._alt = image(svg, alt), alt

    def _repr_html_(self) -> str:
        return self._page

    def __repr__(self) -> str:
        return self._alt


class Chapter:
    """One chapter at work. `text` is its catalogue, `root` its store, `here` its box on the map."""

    SLOW = 250_000  # bytes a second of the throttled hub

    def __init__(self, number: str, lang: str) -> None:
        self.number, self.text, self.root = number, Strings(lang), course() / number
        self.here, self._later = _CHAPTERS[number]

    def client(self, slow: bool = False) -> Client:
        """A client of this chapter's store; `slow` pulls from the throttled hub."""
        return Client(self.root, hub="embedded", throttle=self.SLOW if slow else None)

    def images(self) -> list[str]:
        """The names in the chapter's local cache, sorted."""
        with self.client() as client:
            return sorted(exercise.tags(client))

    def empty(self) -> None:
        """Remove all containers and images of this chapter's store."""
        with self.client() as client:
            for container in client.containers(all=True):
                client.remove(str(container["Id"]), force=True)
            for known in client.images():
                client.remove_image(str(known["Id"]), force=True)

    # What a page shows

    def __repr__(self) -> str:
        return self.text("begin.title", number=self.number)

    def machine(self) -> Status:
        """Which of the objectives this machine can show, found out by trying."""
        text = self.text
        reason = "" if sys.platform == "linux" else "linux"
        reason = reason or ("" if userns.detect() else "namespaces")
        can = text("begin.pull", reason=text(f"begin.{reason}")) if reason else text("begin.all")
        return Status(f"{can} {text('begin.where', root=self.root)}", fallback=text("begin.fallback"))

    def map(self) -> Picture:
        """The lecture's picture, this chapter's box marked."""
        state = flow.fold((), None, self.text)
        alt = " ".join(self.text.table("flow.step")[str(number)].rstrip(":") + "." for number in range(1, 5))
        return Picture(flow.draw(state, self.text, self.here, self._later), f"{self.text('flow.title')} {alt}")

    def predict(self, name: str) -> Questions:
        return prediction(self.text, f"{self.number}.predict.{name}")

    def panel(self, *commands: str, fresh: bool = False, slow: bool = False) -> Panel:
        """Buttons for docker commands, given as the words after `docker`."""
        return Panel(self, *commands, fresh=fresh, slow=slow)

    def transcript(self, panel: Panel) -> Transcript:
        """What went over HTTP during the panel's last press."""
        return Transcript(self.text, panel)

    def exercise(self, name: str) -> exercise.Exercise:
        """Set the stage of an exercise and give the button of its check."""
        return exercise.Exercise(self, name)

    def check(self, name: str) -> str:
        """The exercise's check as a plain call."""
        return exercise.check(self, name)

    def quiz(self) -> Questions:
        return quiz(self.text, f"{self.number}.quiz")

    def clean_up(self) -> list[str]:
        """Remove what this chapter made; the names of the images left: none."""
        self.empty()
        return self.images()
