"""How many processes there can be: the container by hand in a control group of its own, where we may make one.

A button runs a learner's function twice, without a limit and in a group with `pids.max`, and tells both counts. What
the machine allows differs, so only the live view says it. Invariant: the group is gone when the button comes back.
Taught in chapter 07.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from ipywidgets import HTML, Button, HBox, VBox

from minirt.errors import MinirtError, StartError, Unsupported
from minirt.notebook import markup
from minirt.notebook.byhand import ByHand, Function, Table, source
from minirt.notebook.markup import Shown, esc
from minirt.notebook.status import Status
from minirt.notebook.worker import Worker
from minirt.runtime import cgroups


class Limit(Shown, VBox):  # type: ignore[misc]
    """`function` makes processes behind the walls of `container` and returns how many; `count` is the limit."""

    def __init__(self, container: ByHand, function: Function, count: int = 16) -> None:
        self._container, self._count = container, count
        self._look = function.__name__, source(function)
        text = self._text = container.place.text
        self.ask = Button(
            description=text("byhand.limit.run", count=count), button_style="primary", layout={"width": "auto"}
        )
        self.ask.on_click(lambda _button: self.click())
        self.status = Status(text("byhand.limit.ready"))
        self._worker = Worker(text, self.status, self._enable, listens=False)
        super().__init__([HTML(markup.style(text("again"))), HBox([self.ask]), self.status])
        self.add_class("mrt-panel")
        self.plain = text("byhand.limit.fallback", button=self.ask.description)
        self.page = f"<p><em>{esc(self.plain)}</em></p>"

    def _enable(self, idle: bool) -> None:
        self.ask.disabled = not idle

    def click(self) -> None:
        """Run it twice, as the button does."""
        self._worker.begin(self._measure)

    def wait(self, timeout: float | None = None) -> None:
        """Until the press at work, if any, is done. Raises TimeoutError."""
        self._worker.wait(timeout)

    def _measure(self) -> str:
        free = self._made()
        try:
            held, folder = self._held()
        except Unsupported as error:
            return self._text("byhand.limit.refused", free=free, error=error)
        return self._text("byhand.limit.done", free=free, limit=self._count, held=held, folder=folder)

    def _held(self) -> tuple[int, str]:
        """How many it made in a group, and the group's folder. Raises Unsupported where there can be none."""
        group = cgroups.locate("", f"by-hand-{os.getpid()}", systemd=False, rootless=os.geteuid() != 0)
        limits = {"pids": {"limit": self._count}, "devices": [{"allow": True, "access": "rwm"}]}
        entered = False

        def admit(pid: int) -> None:
            nonlocal entered
            try:
                group.create(limits, pid)
            except MinirtError as error:
                raise Unsupported(str(error)) from error
            entered = True

        try:
            made = self._made(admit)
        finally:
            if entered:
                group.delete()
        folders = [folder for _mount, folder in group.folders()]
        return made, next((folder for folder in folders if "pids" in folder), folders[0])

    def _made(self, admit: Callable[[int], None] = lambda pid: None) -> int:
        trial = self._container.attempt(look=self._look, admit=admit)
        if trial.stopped:
            raise StartError(Table(self._container.place, trial).note())
        return int(trial.value)
