"""Chapter 05, what an image contains: its exercise makes an image with a layer and a command of its own."""

from __future__ import annotations

import shlex

from minirt.client import Client
from minirt.errors import NotFound
from minirt.notebook.chapters import Finding, Task, pull, tags

HERE = ("image",)
LATER = ()


def _untried(client: Client) -> None:
    pull(client, "greeter:1.0")
    for container in client.containers(all=True):
        client.remove(str(container["Id"]), force=True)
    for name in sorted(tags(client) - {"greeter:1.0"}):
        client.remove_image(name, force=True)


def _both_halves(client: Client) -> Finding:
    try:
        image = client.inspect_image("mine")
    except NotFound:
        return "none"
    base = list(client.inspect_image("greeter:1.0")["RootFS"]["Layers"])
    layers = list(image["RootFS"]["Layers"])
    if layers[: len(base)] != base:
        return "base"
    if len(layers) != len(base) + 1:
        return "layers", {"count": str(len(layers)), "wanted": str(len(base) + 1)}
    if not _has(client, "mine", "/etc/motd"):
        return "file"
    config = image["Config"]
    command = [*(config["Entrypoint"] or ()), *(config["Cmd"] or ())]
    # What was given as one line, a shell runs.
    words = command[-1].split() if command[-2:-1] == ["-c"] else command
    if words not in ([cat, "/etc/motd"] for cat in ("cat", "/bin/cat", "/usr/bin/cat")):
        return "command", {"command": shlex.join(command)}
    return "right", {"layer": str(len(layers))}


def _has(client: Client, image: str, path: str) -> bool:
    """Whether a container of `image` sees a file at `path`: one is made, asked, and removed."""
    made = str(client.create({"Image": image, "Cmd": ["nothing"]})["Id"])
    try:
        client.stat_path(made, path)
    except NotFound:
        return False
    else:
        return True
    finally:
        client.remove(made, force=True)


EXERCISES = {"mine": Task(_untried, _both_halves)}
