"""The image explorer: a step a button, from the name to the files: index, manifest, config, layers, files, five kinds.

`ImageExplorer("greeter:1.0")` works where the `minirt` command does. It looks into the local cache and changes nothing
there, but for its Pull button, which is shown as long as the image is not here. Each press reads anew: what was pulled
or removed meanwhile shows. Taught in chapter 05.
"""

from __future__ import annotations

from typing import Any

from ipywidgets import HTML, Dropdown, HBox, Text, VBox

from minirt.errors import NotFound
from minirt.image.digest import Digest
from minirt.notebook import inside, kinds
from minirt.notebook.looking import Looking, show
from minirt.notebook.markup import esc
from minirt.notebook.place import Place
from minirt.notebook.snapshot import Content, Files, Snapshot, content, merge

STEPS = ("index", "manifest", "config", "layers", "files", "kinds")


class ImageExplorer(Looking):
    """`image` is a name in the local cache; `step` and `panel` are its buttons and what they show, by step's name."""

    def __init__(self, image: str, place: Place | None = None) -> None:
        self._place = place or Place()
        text = self._place.text
        super().__init__(text)
        self._name = image
        self._image: Snapshot | None = None
        self._contents: dict[Digest, Content] = {}
        self._files: Files | None = None
        names = {step: f"{number} {text(f'explorer.step.{step}')}" for number, step in enumerate(STEPS, 1)}
        self.step = {step: self.button(names[step], self._presser(step), "primary") for step in STEPS}
        self.pull = self.button(text("panel.pull", what=image), self._pull)
        self.panel = {step: HTML() for step in STEPS}
        self._make_filter()
        title = f"<p><strong>{esc(text('explorer.title', name=image))}</strong></p>"
        head = self.head(title)
        places = [
            VBox([self._above, self._filter, self.panel[step]]) if step == "files" else self.panel[step]
            for step in STEPS
        ]
        steps = HBox([*self.step.values()], layout={"flex_flow": "row wrap"})
        self.children = [head, steps, HBox([self.pull, self.stop]), self.status, *places]

        self.plain = text("explorer.fallback", name=image, steps=", ".join(names.values()))
        self.page = f"<p><em>{esc(self.plain)}</em></p>"
        self.status.value = self.attempt(self._first)

    def _make_filter(self) -> None:
        text, self._above = self.text, HTML()
        options = [(text("explorer.files.all"), ""), *((text(f"explorer.kind.{k}"), k) for k in kinds.KINDS)]
        wide = {"style": {"description_width": "initial"}, "layout": {"width": "auto"}}
        self.words = Text(
            description=text("explorer.files.filter"),
            placeholder=text("explorer.files.enter"),
            continuous_update=False,
            **wide,
        )
        self.kind = Dropdown(description=text("explorer.files.kind"), options=options, **wide)
        self.layer = Dropdown(
            description=text("explorer.files.layer"), options=[(text("explorer.files.all"), 0)], **wide
        )
        self._filter = HBox([self.words, self.kind, self.layer], layout={"flex_flow": "row wrap", "display": "none"})
        for control in (self.words, self.kind, self.layer):
            control.observe(self._on_filter, "value")

    def _first(self) -> str:
        """On a page just run: is the image here?"""
        if self._read() is None:
            return self.text("explorer.absent", name=self._name, pull=self.pull.description)
        return self.text("explorer.ready")

    def _read(self) -> Snapshot | None:
        """The image as it is in the cache now; None where it is not. What is another image now is shown anew."""
        try:
            image = Snapshot.read(self._place.root, self._name)
        except NotFound:
            image = None
        if image is None or self._image is None or image.named.manifest != self._image.named.manifest:
            self._files = None
            for shown in (self._above, *self.panel.values()):
                shown.value = ""
            self._filter.layout.display = "none"
        self._image = image
        self.pull.layout.display = "none" if image else ""
        return image

    def _presser(self, step: str) -> Any:
        return lambda: self._show(step)

    def _show(self, step: str) -> str:
        image = self._read()
        if image is None:
            label = self.step[step].description
            return self.text("explorer.missing", step=label, name=self._name, pull=self.pull.description)
        heading = f'<p style="margin-top:14px"><strong>{esc(self.step[step].description)}</strong></p>'
        found = self._inside(step, image)
        if step == "files":  # between its heading and what it finds is the filter
            show(self._above, f"{heading}<p>{esc(self.text('explorer.files.what'))}</p>")
            self._filter.layout.display, heading = "", ""
        show(self.panel[step], heading + found)
        return self.text("explorer.shown", step=self.step[step].description)

    def _inside(self, step: str, image: Snapshot) -> str:
        text = self.text
        if step == "index":
            return inside.index(image, text)
        if step == "manifest":
            return inside.manifest(image, text)
        if step == "config":
            return inside.config(image, text)
        contents = self._read_layers(image)
        if step == "layers":
            return inside.layers(image, contents, text)
        if self._files is None:
            self._files = merge(contents, image.config)
        if step == "kinds":
            return inside.five(self._files, text)
        numbers = [(text("explorer.files.all"), 0), *((str(layer.number), layer.number) for layer in image.layers)]
        if list(self.layer.options) != numbers:
            self.layer.options = numbers
        return self._matching()

    def _matching(self) -> str:
        assert self._files
        return inside.files(self._files, self.text, self.words.value.strip(), self.kind.value, self.layer.value)

    def _on_filter(self, _change: Any) -> None:
        if self._files is not None and self.panel["files"].value:
            show(self.panel["files"], self._matching())

    def _read_layers(self, image: Snapshot) -> list[Content]:
        """Each layer once, as its digest says that it stays what it is."""
        for layer in image.layers:
            if layer.blob.digest not in self._contents:
                self.status.value = self.text("explorer.reading", number=layer.number, count=len(image.layers))
                self._contents[layer.blob.digest] = content(image.layout, layer, lambda _number: self.halted())
        return [self._contents[layer.blob.digest] for layer in image.layers]

    def _pull(self) -> str:
        with self._place.client() as client:
            for message in client.pull(self._name):
                self.halted()
                self.status.value = self.text("explorer.pulling", name=self._name, status=message.get("status", ""))
        self._read()
        return self.text("explorer.pulled", name=self._name)
