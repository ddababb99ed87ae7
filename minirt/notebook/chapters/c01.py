"""Chapter 01, why Docker: installations by hand that really fail, and a fair count of what one has to do.

The programs are the hub's own: two greeters whose wheels `pip` cannot bring together, `hello-world` for another CPU,
and a greeter that needs a library no machine has. Nothing is acted: pip, the kernel and the loader say what they say.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from minirt.client import Client
from minirt.errors import Unsupported
from minirt.hub import elf, greeter, hello
from minirt.image.platform import Platform
from minirt.notebook.attempt import Recipe, Step
from minirt.notebook.catalogue import Strings
from minirt.notebook.chapters import Finding, Task, container, exit_code, made_from, pull
from minirt.notebook.markup import esc

HERE = ("image",)
LATER = ("daemon", "cache", "registry")


# What one downloads from


def machines() -> tuple[str, str]:
    """This machine's CPU and the other one of the two that hello-world is made for. Raises Unsupported."""
    own = Platform.host().architecture
    if own not in hello.ARCHITECTURES:
        raise Unsupported(f"the hub has no program for this CPU ({own}): it has {' and '.join(hello.ARCHITECTURES)}")
    return own, next(name for name in hello.ARCHITECTURES if name != own)


def _other_cpu(shop: Path) -> None:
    _program(shop / "hello", elf.program(machines()[1], hello.MESSAGE.encode()))


def _needy(shop: Path) -> None:
    loader = elf.interpreter(Path(sys.executable).resolve().read_bytes())
    loader = loader or elf.interpreter(Path("/bin/sh").resolve().read_bytes())
    if loader is None:
        raise Unsupported("programs of this machine load no libraries: there is nothing that can be missing")
    _program(shop / "greeter", elf.program(machines()[0], b"Hello, world\n", (loader, "libgreet.so.1")))


def _program(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    path.chmod(0o755)


# By hand


def _conflict(output: str) -> list[str]:
    """The lines in which pip names what does not go together. It writes a name with - or _, by its version."""
    return [line.strip().replace("_", "-") for line in output.splitlines() if " depends on " in line]


def _pip(target: str, *names: str) -> Step:
    return Step("install", ("pip", "install", "--no-index", "--find-links", ".", "--target", target, *names))


def _start(target: str) -> Step:
    return Step("start", (f"{target}/bin/greeter",), (("PYTHONPATH", target),))


_WHEELS = Step("get", ("cp", "shop/*.whl", "."))
ATTEMPTS = {
    "alone": Recipe(greeter.wheels, (_WHEELS, _pip("app", "greeter-one"), _start("app"))),
    "package": Recipe(greeter.wheels, (_WHEELS, _pip("app", "greeter-one", "greeter-two"), _start("app")), _conflict),
    "cpu": Recipe(_other_cpu, (Step("get", ("cp", "shop/hello", ".")), Step("start", ("./hello",))), foreign=True),
    "library": Recipe(_needy, (Step("get", ("cp", "shop/greeter", ".")), Step("start", ("./greeter",)))),
    "apart": Recipe(
        greeter.wheels,
        (_WHEELS, _pip("one", "greeter-one"), _start("one"), _pip("two", "greeter-two"), _start("two")),
    ),
}


# The count


class Tally:
    """Commands side by side, those by hand and those with Docker, each after the runtime it cannot do without."""

    def __init__(self, text: Strings, by_hand: Sequence[str], docker: Sequence[str]) -> None:
        self._text = text
        self.by_hand = [text("01.tally.python"), *by_hand]
        self.docker = [text("01.tally.engine"), *docker]

    def __repr__(self) -> str:
        return f"{self._text('01.tally.hand')}: {len(self.by_hand)}, Docker: {len(self.docker)}"

    def _repr_html_(self) -> str:
        head = "".join(
            f'<th scope="col" style="text-align:left">{esc(word)}</th>'
            for word in (self._text("01.tally.step"), self._text("01.tally.hand"), "Docker")
        )
        rows = "".join(
            f'<tr><td>{number}</td><td style="text-align:left">{_cell(hand)}</td>'
            f'<td style="text-align:left;white-space:nowrap">{_cell(docker)}</td></tr>'
            for number, (hand, docker) in enumerate(zip_longest(self.by_hand, self.docker, fillvalue=""), 1)
        )
        return f"<table><tr>{head}</tr>{rows}</table>"


def _cell(words: str) -> str:
    return f"<code>{esc(words)}</code>" if words else "\N{EN DASH}"


def tally(text: Strings, by_hand: Sequence[str], docker: Sequence[str]) -> Tally:
    """Count the commands of both ways; installing the runtime counts on both sides."""
    return Tally(text, by_hand, docker)


# The exercise

_WANTED = {"one": "greeter:1.0", "two": "greeter:2.0"}


def _clear(client: Client) -> None:
    pull(client, *_WANTED.values())
    for name in _WANTED:
        if found := container(client, name):
            client.remove(str(found["Id"]), force=True)


def _side_by_side(client: Client) -> Finding:
    found = {name: container(client, name) for name in _WANTED}
    missing = [name for name, this in found.items() if this is None]
    if missing:
        return "none" if len(missing) == 2 else "missing", {"name": missing[0]}
    for (name, image), this in zip(_WANTED.items(), found.values(), strict=True):
        assert this is not None
        if not made_from(client, this, image):
            return "other", {"name": name, "image": str(this["Config"]["Image"]), "wanted": image}
        if exit_code(this) != 0:
            return "failed", {
                "name": name,
                "state": str(this["State"]["Status"]),
                "code": str(this["State"]["ExitCode"]),
            }
    return "right"


EXERCISES = {"side": Task(_clear, _side_by_side)}
