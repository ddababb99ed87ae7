"""The verbs that are the course's own boxes: `hub` (the embedded registry) and `lab` (the notebooks)."""

from __future__ import annotations

import signal
import sys
import threading

from minirt import units
from minirt.cli.console import Console
from minirt.cli.flags import Values, command
from minirt.errors import InvalidInput


@command(
    "",
    """
        --host string       Address to listen on (127.0.0.1 when not given)
        --port int          Port to listen on (5000 when not given; 0: any free one)
        --throttle string   Send no more than this many bytes a second: 500k, 2MB
    """,
)
def hub(console: Console, values: Values, arguments: list[str]) -> None:
    from minirt.hub.names import REPOSITORIES
    from minirt.hub.server import Hub

    host, port = values["host"] or "127.0.0.1", 5000 if values["port"] is None else values["port"]
    if not 0 <= port <= 65535:
        raise InvalidInput(f"--port {port} is not a port: 0 to 65535")
    throttle = None if values["throttle"] is None else units.parse_size(values["throttle"])
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Hub(console.client.hub_folder, host=host, port=port, throttle=throttle) as server:
        place = server.url.partition("://")[2]
        name, tags = next(iter(REPOSITORIES.items()))
        console.print(f"The embedded registry listens on {server.url}; Ctrl-C ends it. For example:")
        console.print(f"  docker pull {place}/{name}:{tags[-1]}")
        sys.stdout.flush()
        stop.wait()


@command(
    "",
    """
        --folder string   Your copy of the course (~/minirt-course when not given)
        --lang string     Language of the course: ko or en
        --lay             Make your copy, open nothing: another program does
        --no-browser      Print the address, open nothing
        --port int        Port of JupyterLab
        --reset list      Put your copy of a chapter (04) aside and begin with a new one
    """,
)
def lab(console: Console, values: Values, arguments: list[str]) -> int:
    from minirt.notebook.lab import main

    if values["lang"] not in (None, "ko", "en"):
        raise InvalidInput(f"--lang {values['lang']}: the course is in ko and en")
    words = [f"--{name}={values[name]}" for name in ("folder", "lang", "port") if values[name] is not None]
    words += [f"--reset={chapter}" for chapter in values["reset"]]
    return main(words + [f"--{name}" for name in ("lay", "no-browser") if values[name]])
