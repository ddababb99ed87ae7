"""Chapter 00, the first run: its exercise asks for a container with a name."""

from __future__ import annotations

from minirt.client import Client
from minirt.notebook.chapters import Finding, Task, container, exit_code, made_from

HERE = ("client", "container")
LATER = ("daemon", "cache", "registry", "image")


def _without_first(client: Client) -> None:
    if found := container(client, "first"):
        client.remove(str(found["Id"]), force=True)


def _named(client: Client) -> Finding:
    found = container(client, "first")
    if found is None:
        return "none", {"count": str(len(client.containers(all=True)))}
    if not made_from(client, found, "hello-world"):
        return "other", {"image": str(found["Config"]["Image"])}
    if found["State"]["Status"] == "created":
        return "created"
    return "right" if exit_code(found) == 0 else ("failed", {"code": str(exit_code(found))})


EXERCISES = {"named": Task(_without_first, _named)}
