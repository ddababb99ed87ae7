"""Chapter 06, from image to container: its exercise finds a file in one container's write layer and carries it on."""

from __future__ import annotations

from minirt.client import Client
from minirt.errors import NotFound
from minirt.notebook.chapters import Finding, Task, container, made_from, pull, text_of

HERE = ("container",)
LATER = ()

_PATH = "/var/tmp/answer"
_WORK = f"echo forty-two > {_PATH}; echo busy >> /etc/os-release; rm /etc/group"


def _busy(client: Client) -> None:
    pull(client, "toolbox:latest")
    for made in client.containers(all=True):
        client.remove(str(made["Id"]), force=True)
    client.create({"Image": "toolbox", "Cmd": ["sh", "-c", _WORK]}, "busy")
    client.start("busy")
    client.wait("busy")


def _carried(client: Client) -> Finding:
    try:
        wrote = text_of(client, "busy", _PATH)
    except NotFound:
        return "gone"
    found = container(client, "next")
    if found is None:
        return "none"
    if not made_from(client, found, "toolbox"):
        return "image", {"image": str(found["Config"]["Image"])}
    try:
        text = text_of(client, "next", _PATH)
    except NotFound:
        return "missing"
    return ("right", {"path": _PATH}) if text == wrote else ("text", {"text": text[:40]})


EXERCISES = {"carry": Task(_busy, _carried)}
