"""Routes of what runs in containers: attach, resize, top, exec. Engine API 1.44, "Container" and "Exec"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minirt.daemon.containers import kind
from minirt.daemon.exchange import MULTIPLEXED, RAW, Exchange
from minirt.daemon.routes import route
from minirt.daemon.streams import NUMBERS, Ends, carry, frame
from minirt.engine import request
from minirt.errors import InvalidInput, StartError, Unsupported
from minirt.keys import Keys, parse_keys

if TYPE_CHECKING:
    from minirt.engine import Engine


@route("POST /containers/{name}/attach")
def attach(engine: Engine, exchange: Exchange, name: str) -> None:
    """Before a start, too: then it is joined before its first byte."""
    config = engine.containers.find(name)["Config"]
    tty, live = bool(config["Tty"]), exchange.flag("stream")
    keys = parse_keys(exchange.text("detachKeys")) if tty else b""
    wants = {stream: exchange.flag(stream) for stream in ("stdin", "stdout", "stderr")}
    past = engine.containers.logs(name, wants["stdout"], wants["stderr"]) if exchange.flag("logs") else None
    ends = Ends.make(live and wants["stdin"], live and wants["stdout"], live and wants["stderr"] and not tty)
    try:
        ends.line = engine.processes.attach(name, ends.give()) if live else None
        first = exchange.hijack(kind(exchange, tty))
        if past:
            exchange.socket.setblocking(True)
            for stream, data in past:
                exchange.send(data if tty else frame(NUMBERS[stream], data))
        how = carry(exchange.socket, first, ends, not tty, Keys(keys) if keys else None)
        if how == "detached":
            engine.processes.detached(name)
    finally:
        ends.hang_up()


@route("GET /containers/{name}/attach/ws")
def websocket(engine: Engine, exchange: Exchange, name: str) -> None:
    raise Unsupported("attaching over a websocket is not possible here: use POST /containers/{id}/attach")


@route("POST /containers/{name}/resize")
def resize(engine: Engine, exchange: Exchange, name: str) -> None:
    engine.processes.resize(name, *_size(exchange))
    exchange.nothing(200)


def _size(exchange: Exchange) -> tuple[int, int]:
    width, height = exchange.number("w"), exchange.number("h")
    if width is None or height is None or not (0 <= width < 1 << 16 and 0 <= height < 1 << 16):
        raise InvalidInput("a terminal's size is w and h, in characters")
    return width, height


@route("GET /containers/{name}/top")
def top(engine: Engine, exchange: Exchange, name: str) -> None:
    exchange.reply(engine.processes.top(name, exchange.text("ps_args") or "-ef"))


@route("POST /containers/{name}/exec")
def create_exec(engine: Engine, exchange: Exchange, name: str) -> None:
    exchange.reply(engine.processes.create_exec(name, exchange.json()), 201)


@route("POST /exec/{name}/start")
def start_exec(engine: Engine, exchange: Exchange, name: str) -> None:
    body = request.spelled(exchange.json(), request.EXEC_START)
    request.shaped(body, request.EXEC_START)
    asked = engine.processes.inspect_exec(name)
    tty, size = bool(asked["ProcessConfig"]["tty"]), body.get("ConsoleSize") or (0, 0)
    given = (size[1], size[0]) if all(size) else None
    if body.get("Detach"):
        engine.processes.start_exec(name, (None, None, None), given).close()
        exchange.nothing(200)
        return
    ends = Ends.make(asked["OpenStdin"], asked["OpenStdout"], asked["OpenStderr"] and not tty)
    keys = parse_keys(asked["DetachKeys"]) if tty else b""
    try:
        try:
            ends.line = engine.processes.start_exec(name, ends.triple, given)
        except StartError as error:  # as dockerd: the stream has begun, its exit status tells the rest
            exchange.hijack()
            text = f"{error}\r\n".encode()
            exchange.socket.setblocking(True)
            exchange.send(text if tty else frame(1, text))
            return
        finally:
            ends.close_theirs()
        kind = RAW if tty or exchange.version < (1, 42) else MULTIPLEXED
        first = exchange.hijack(kind)
        if carry(exchange.socket, first, ends, not tty, Keys(keys) if keys else None) == "detached":
            engine.processes.detached(name)
    finally:
        ends.hang_up()


@route("POST /exec/{name}/resize")
def resize_exec(engine: Engine, exchange: Exchange, name: str) -> None:
    engine.processes.resize_exec(name, *_size(exchange))
    exchange.nothing(200)


@route("GET /exec/{name}/json")
def inspect_exec(engine: Engine, exchange: Exchange, name: str) -> None:
    exchange.reply(engine.processes.inspect_exec(name))
