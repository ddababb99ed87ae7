"""Routes of containers: their life, their files, what is known of them. Engine API 1.44, "Container"."""

from __future__ import annotations

import base64
import json
import re
import select
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from minirt import trace
from minirt.daemon.exchange import MULTIPLEXED, RAW, Exchange
from minirt.daemon.routes import route
from minirt.daemon.streams import NUMBERS, frame
from minirt.errors import InvalidInput

if TYPE_CHECKING:
    from minirt.engine import Engine
    from minirt.engine.answers.containers import ContainerPathStat


@route("GET /containers/json")
def listed(engine: Engine, exchange: Exchange) -> None:
    limit = exchange.number("limit")
    exchange.reply(
        engine.containers.summaries(
            all=exchange.flag("all"),
            limit=limit if (limit or 0) > 0 else None,
            size=exchange.flag("size"),
            filters=exchange.filters() or None,
        )
    )


@route("POST /containers/create")
def create(engine: Engine, exchange: Exchange) -> None:
    body = exchange.json()
    if not body:
        raise InvalidInput("config cannot be empty in order to create a container")
    if exchange.version < (1, 25) and isinstance(body.get("HostConfig"), dict):
        body["HostConfig"]["AutoRemove"] = False  # such clients remove it themselves
    name, platform = exchange.text("name") or None, exchange.text("platform") or None
    exchange.reply(engine.containers.create(body, name, platform), 201)


@route("POST /containers/prune")
def prune(engine: Engine, exchange: Exchange) -> None:
    exchange.reply(engine.containers.prune(exchange.filters()))


@route("GET /containers/{name}/json")
def inspect(engine: Engine, exchange: Exchange, name: str) -> None:
    exchange.reply(engine.containers.inspect(name, size=exchange.flag("size")))


@route("POST /containers/{name}/start")
def start(engine: Engine, exchange: Exchange, name: str) -> None:
    exchange.nothing(204 if engine.containers.start(name) else 304)


@route("POST /containers/{name}/stop")
def stop(engine: Engine, exchange: Exchange, name: str) -> None:
    stopped = engine.containers.stop(name, exchange.number("t"), exchange.text("signal") or None)
    exchange.nothing(204 if stopped else 304)


@route("POST /containers/{name}/restart")
def restart(engine: Engine, exchange: Exchange, name: str) -> None:
    engine.containers.restart(name, exchange.number("t"), exchange.text("signal") or None)
    exchange.nothing()


@route("POST /containers/{name}/kill")
def kill(engine: Engine, exchange: Exchange, name: str) -> None:
    engine.containers.kill(name, exchange.text("signal") or "KILL")
    exchange.nothing()


@route("POST /containers/{name}/pause")
def pause(engine: Engine, exchange: Exchange, name: str) -> None:
    engine.limits.pause(name)
    exchange.nothing()


@route("POST /containers/{name}/unpause")
def unpause(engine: Engine, exchange: Exchange, name: str) -> None:
    engine.limits.unpause(name)
    exchange.nothing()


@route("POST /containers/{name}/rename")
def rename(engine: Engine, exchange: Exchange, name: str) -> None:
    engine.containers.rename(name, exchange.text("name"))
    exchange.nothing()


@route("POST /containers/{name}/update")
def update(engine: Engine, exchange: Exchange, name: str) -> None:
    exchange.reply(engine.limits.update(name, exchange.json()))


@route("DELETE /containers/{name}")
def remove(engine: Engine, exchange: Exchange, name: str) -> None:
    if exchange.flag("link"):
        raise InvalidInput("links are a thing of the past: minirt has none to remove")
    engine.containers.remove(name, exchange.flag("force"), exchange.flag("v"))
    exchange.nothing()


@route("POST /containers/{name}/wait")
def wait(engine: Engine, exchange: Exchange, name: str) -> None:
    """The head goes out at once: a client waits for it before it starts the container."""
    record = engine.containers.find(name)
    waiter = engine.containers.waiter(record["Id"], exchange.text("condition") or "not-running")
    try:
        exchange.stream("application/json")
        poll = select.poll()
        poll.register(waiter.fileno(), select.POLLIN)
        poll.register(exchange.socket, 0)
        if waiter.fileno() not in dict(poll.poll()):
            exchange.check()
        found = waiter.result()
        trace.publish("container", "exit", id=record["Id"], name=record["Name"], exit_code=found["StatusCode"])
        exchange.write(json.dumps(found).encode() + b"\n")
        exchange.finish()
    finally:
        waiter.close()


@route("GET /containers/{name}/logs")
def logs(engine: Engine, exchange: Exchange, name: str) -> None:
    stdout, stderr = exchange.flag("stdout"), exchange.flag("stderr")
    if not stdout and not stderr:
        raise InvalidInput("Bad parameters: you must choose at least one stream")
    tail = exchange.text("tail", "all")
    follow = exchange.flag("follow")
    tty = bool(engine.containers.find(name)["Config"]["Tty"])
    chunks = engine.containers.logs(
        name,
        stdout=stdout,
        stderr=stderr,
        follow=follow,
        tail=int(tail) if re.fullmatch("[0-9]{1,9}", tail) else None,
        since=exchange.moment("since"),
        until=exchange.moment("until"),
        timestamps=exchange.flag("timestamps"),
    )
    try:
        exchange.stream(kind(exchange, tty))
        for stream, data in chunks:
            if data:
                exchange.write(data if tty else frame(NUMBERS[stream], data))
            else:
                exchange.check()
        exchange.finish()
    finally:
        close = getattr(chunks, "close", None)
        if close:
            close()


def kind(exchange: Exchange, tty: bool) -> str:
    """The content type of a container's streams."""
    return MULTIPLEXED if exchange.version >= (1, 42) and not tty else RAW


@route("GET /containers/{name}/stats")
def stats(engine: Engine, exchange: Exchange, name: str) -> None:
    stream = exchange.flag("stream", True)
    objects = engine.stats.stream(name, stream and not exchange.flag("one-shot"))
    if stream:
        exchange.lines(objects)
    else:
        exchange.reply(next(objects))


@route("GET /containers/{name}/changes")
def changes(engine: Engine, exchange: Exchange, name: str) -> None:
    exchange.reply(engine.files.changes(name) or None)


@route("GET /containers/{name}/export")
def export(engine: Engine, exchange: Exchange, name: str) -> None:
    send(exchange, engine.files.export(name))


@route("HEAD /containers/{name}/archive")
def stat_path(engine: Engine, exchange: Exchange, name: str) -> None:
    exchange.plain(b"", 200, **_stat(engine.files.stat(name, _path(exchange))))


@route("GET /containers/{name}/archive")
def get_archive(engine: Engine, exchange: Exchange, name: str) -> None:
    found, chunks = engine.files.get_archive(name, _path(exchange))
    send(exchange, chunks, **_stat(found))


@route("PUT /containers/{name}/archive")
def put_archive(engine: Engine, exchange: Exchange, name: str) -> None:
    engine.files.put_archive(
        name,
        _path(exchange),
        cast(BinaryIO, exchange.body),
        exchange.flag("noOverwriteDirNonDir"),
        exchange.flag("copyUIDGID"),
    )
    exchange.nothing(200)


def _path(exchange: Exchange) -> str:
    path = exchange.text("path")
    if not path or "\0" in path:
        raise InvalidInput("bad parameter: a path is needed, without NUL bytes")
    return path


def _stat(found: ContainerPathStat) -> dict[str, str]:
    text = base64.b64encode(json.dumps(found).encode()).decode()
    return {"Content_Type": "application/x-tar", "X_Docker_Container_Path_Stat": text}


def send(exchange: Exchange, chunks: Any, **headers: str) -> None:
    """A tar in pieces: an error before the first has a status, a later one cuts the stream."""
    try:
        first = next(chunks, b"")
        exchange.tar(headers)
        exchange.write(first)
        for chunk in chunks:
            exchange.write(chunk)
        exchange.finish()
    finally:
        chunks.close()


@route("POST /commit")
def commit(engine: Engine, exchange: Exchange) -> None:
    made = engine.files.commit(
        exchange.text("container"),
        exchange.text("repo"),
        exchange.text("tag"),
        exchange.text("author"),
        exchange.text("comment"),
        exchange.query.get("changes", []),
        exchange.json(),
        exchange.flag("pause", True),
    )
    exchange.reply(made, 201)
