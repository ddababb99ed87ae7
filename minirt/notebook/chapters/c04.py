"""Chapter 04, what happens on `docker run`: its exercise asks for a tag to be fetched again."""

from __future__ import annotations

from minirt.client import Client
from minirt.notebook.chapters import Task, pull, tags

HERE = ("cache",)
LATER = ()


def _both_greeters(client: Client) -> None:
    pull(client, "greeter:1.0", "greeter:2.0")


def _refreshed(client: Client) -> str:
    found = tags(client)
    return "cached" if "greeter:1.0" in found else "right" if "greeter:2.0" in found else "gone"


EXERCISES = {"refresh": Task(_both_greeters, _refreshed)}
