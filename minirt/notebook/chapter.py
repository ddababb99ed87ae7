"""`begin("04")`: a chapter's own store, hub and words, and everything a page of the course shows.

A chapter works in `MINIRT_COURSE/NN` (default: the user's data folder, `minirt/course/NN`), never in the learner's own
store, with the embedded registry. Beginning empties that folder's images and containers, and nothing else. Beside it
lie `NN-files`, where the commands of its panels leave files, and `NN-server`, another server where one is needed.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from minirt.notebook import attempt, chapters, exercise, flow, record
from minirt.notebook.card import ContainerCard
from minirt.notebook.choice import Questions, prediction, quiz
from minirt.notebook.doctor import Doctor
from minirt.notebook.explorer import ImageExplorer
from minirt.notebook.markup import image
from minirt.notebook.panel import Panel
from minirt.notebook.place import Place
from minirt.notebook.snapshot import File, files
from minirt.notebook.stack import LayerStack
from minirt.notebook.status import Status
from minirt.notebook.steps import Steps
from minirt.notebook.transcript import Transcript


def begin(number: str, lang: str = "en") -> Chapter:
    """Set the stage of chapter `number` and clear what it made before.

    From here on `minirt.run(…)` and the `minirt` command of this notebook use the chapter's store and the embedded hub,
    and no additional stores.
    Raises InvalidInput for a chapter or language there is none of.
    """
    chapter = Chapter(number, lang)
    os.environ["MINIRT_ROOT"], os.environ["MINIRT_HUB"] = str(chapter.root), "embedded"
    os.environ["MINIRT_ADDITIONAL_STORES"] = ""  # a chapter begins with no image at all, also on a class's machine
    scripts = os.path.dirname(sys.executable)
    if os.path.exists(os.path.join(scripts, "minirt")):  # the command of a cell is this same minirt
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])
    chapter.empty()
    if chapter.way() in ("refused", "proot"):
        chapter.replay()
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


class Stage(Place):
    """A store of the course's own with the embedded hub; `folder` is where its panels' commands work."""

    ours = True

    def __init__(self, root: Path, folder: Path, lang: str) -> None:
        super().__init__(root, "embedded", lang)
        self.folder: Path = folder

    def empty(self) -> None:
        """Remove all containers and images of this store."""
        with self.client() as client:
            for container in client.containers(all=True):
                client.remove(str(container["Id"]), force=True)
            for known in client.images():
                client.remove_image(str(known["Id"]), force=True)

    def panel(self, *commands: str, fresh: bool = False, slow: bool = False) -> Panel:
        """Buttons for docker commands, given as the words after `docker`."""
        return Panel(self, *commands, fresh=fresh, slow=slow)


class Chapter(Stage):
    """One chapter at work, in a store of its own with the embedded hub. `tasks` are its exercises by name."""

    def __init__(self, number: str, lang: str = "en") -> None:
        self.module = chapters.chapter(number)
        super().__init__(course() / number, course() / f"{number}-files", lang)
        self.number, self.here, self.later = number, self.module.HERE, self.module.LATER
        self.tasks: dict[str, chapters.Task] = self.module.EXERCISES
        self.others: list[Stage] = []

    def empty(self) -> None:
        """Remove all containers and images of this chapter, and what its commands left in its folder."""
        super().empty()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def server(self) -> Stage:
        """Another server, empty: a store and a daemon of its own, which knows nothing of this chapter's. Files a panel
        leaves are within reach of both."""
        other = Stage(course() / f"{self.number}-server", self.folder, self.text.lang)
        other.here, other.later = self.here, self.later
        other.empty()
        self.others.append(other)
        return other

    # What a page shows

    def __repr__(self) -> str:
        return self.text("begin.title", number=self.number)

    def replay(self) -> None:
        """In a notebook, have what this machine cannot carry out shown as it was elsewhere."""
        from IPython.core.getipython import get_ipython

        from minirt.notebook import lab
        from minirt.notebook.replay import Replay

        folder = lab.within(lab.TOP, self.text.lang)
        shell, found = get_ipython(), sorted(folder.glob(f"{self.number}-*.ipynb"))
        if shell and found:
            Replay(self.text, found[0]).install(shell)

    def machine(self) -> Status:
        """Which of the objectives this machine can show, found out by trying."""
        text, way = self.text, self.way()
        reason = text("begin.namespaces" if sys.platform == "linux" else "begin.linux")
        can = text({"refused": "begin.pull", "proot": "begin.proot"}.get(way, "begin.all"), reason=reason)
        return Status(f"{can} {text('begin.where', root=self.root)}", fallback=text("begin.fallback"))

    def map(self) -> Picture:
        """The lecture's picture, this chapter's box marked."""
        state = flow.fold((), None, self.text)
        alt = " ".join(self.text.table("flow.step")[str(number)].rstrip(":") + "." for number in range(1, 5))
        return Picture(flow.draw(state, self.text, self.here, self.later), f"{self.text('flow.title')} {alt}")

    def predict(self, name: str) -> Questions:
        return prediction(self.text, f"{self.number}.predict.{name}")

    def attempt(self, name: str) -> attempt.Attempt:
        """An installation by hand, really tried: the module's `ATTEMPTS`."""
        return attempt.Attempt(self.text, f"{self.number}.attempt.{name}", self.module.ATTEMPTS[name], self.folder)

    def transcript(self, panel: Panel) -> Transcript:
        """What went over HTTP during the panel's last press."""
        return Transcript(self.text, panel)

    def explorer(self, image: str) -> ImageExplorer:
        """Step into an image: index, manifest, config, layers, files, five kinds."""
        return ImageExplorer(image, place=self)

    def files(self, image: str) -> list[File]:
        """The files of an image in the local cache, by path, each with its layer (1 = lowest) and its kind."""
        return files(self.root, image)

    def layers(self, *containers: str) -> LayerStack:
        """Containers' read-only layers and their write layers, side by side."""
        return LayerStack(*containers, place=self)

    def card(self, *containers: str) -> ContainerCard:
        """Containers by name as this machine sees them: process, walls, resource group, files, users."""
        return ContainerCard(*containers, place=self)

    def steps(self, command: str, fresh: bool = False) -> Steps:
        """The same run (`run IMAGE [COMMAND…]`), one stage a press."""
        return Steps(command, place=self, fresh=fresh)

    def doctor(self) -> Doctor:
        """What this machine can do, found by trying, behind a button."""
        return Doctor(self)

    def exercise(self, name: str) -> exercise.Exercise:
        """Set the stage of an exercise and give the button of its check."""
        return exercise.Exercise(self, name)

    def check(self, name: str) -> str:
        """The exercise's check as a plain call."""
        return exercise.check(self, name)

    def quiz(self) -> Questions:
        return quiz(self.text, f"{self.number}.quiz", self.solved)

    def solved(self, name: str, answer: str) -> str:
        """Keep on this disk that `name` (`exercise.NAME`, `quiz.N`) is solved; the answer that says so, with the reason
        where the disk does not take it."""
        try:
            record.solve(course(), self.number, name)
        except OSError as error:
            return self.text("lab.progress.unsaved", answer=answer, error=error.strerror or error)
        return answer

    def clean_up(self) -> list[str]:
        """Remove what this chapter made, here and on its other server; the names of the images left: none."""
        for stage in (*self.others, self):
            stage.empty()
        return sorted(name for stage in (*self.others, self) for name in stage.images())
