"""Chapter 03, images and containers: two environments that differ, and an exercise on two disks of one image."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from minirt.client import Client
from minirt.errors import MinirtError, NotFound
from minirt.notebook.chapters import Finding, Task, container, made_from, pull, text_of

if TYPE_CHECKING:
    from minirt.notebook.chapter import Chapter

HERE = ("image", "container")
LATER = ("daemon", "cache", "registry")


class Host:
    """An environment to work in: `settings` are its variables. Beside them there are only the search path, and what
    tells Python and the user's session where things lie.

    "development" has the chapter's store. One of any other name has a store and a daemon of its own, which lives in
    that environment, beside the chapter's.
    """

    def __init__(self, chapter: Chapter, name: str, **settings: str) -> None:
        self.name = name
        self.root = chapter.root if name == "development" else chapter.root.with_name(f"{chapter.number}-{name}")
        self._ours = self.root != chapter.root
        # Another order: what is found first here is found last there.
        path = os.environ.get("PATH", os.defpath).split(os.pathsep)
        settings |= {"PATH": os.pathsep.join(reversed(path) if self._ours else path)}
        kept = {key: os.environ[key] for key in ("PYTHONPATH", "XDG_RUNTIME_DIR") if key in os.environ}
        self._settings = settings | kept
        self._store = {"MINIRT_ROOT": str(self.root), "MINIRT_HUB": "embedded"}

    def shell(self, line: str) -> str:
        """What a shell prints for `line` there, outside of any container."""
        done = subprocess.run(["/bin/sh", "-c", line], env=self._settings, stdout=subprocess.PIPE, text=True)
        return done.stdout.strip()

    def minirt(self, *words: str, given: bytes = b"") -> bytes:
        """What the command `minirt` prints there, with `given` as its input. Raises MinirtError where it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "minirt", *words],
            env=self._settings | self._store, cwd="/", input=given, capture_output=True,
        )  # fmt: skip
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise MinirtError(f"{self.name}: {said.rpartition(chr(10))[2]}")
        return done.stdout

    def end(self) -> list[str]:
        """Remove all that is in its store and stop its daemon; the names of the images left: none. The chapter's own
        store is left to the chapter."""
        if not self._ours:
            return []
        with Client(self.root, hub="embedded") as client:
            for made in client.containers(all=True):
                client.remove(str(made["Id"]), force=True)
            for image in client.images():
                client.remove_image(str(image["Id"]), force=True)
            left = [str(tag) for image in client.images() for tag in image.get("RepoTags") or ()]
        self.minirt("daemon", "stop")
        return left


def _no_container(client: Client) -> None:
    pull(client, "toolbox:latest")
    for made in client.containers(all=True):
        client.remove(str(made["Id"]), force=True)


def _two_disks(client: Client) -> Finding:
    for name in ("mine", "other"):
        found = container(client, name)
        if found is None:
            return "none", {"name": name}
        if not made_from(client, found, "toolbox"):
            return "image", {"name": name, "image": str(found["Config"]["Image"])}
    text = _note(client, "mine")
    if text is None:
        return "missing"
    if text != "hello":
        return "text", {"text": text[:40]}
    return "right" if _note(client, "other") is None else "both"


def _note(client: Client, name: str) -> str | None:
    try:
        return text_of(client, name, "/note")
    except NotFound:
        return None


EXERCISES = {"note": Task(_no_container, _two_disks)}
