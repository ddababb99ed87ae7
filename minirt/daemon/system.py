"""Routes of the system, volumes and networks; under /minirt what only we have. Engine API 1.44, "System" and others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from minirt import trace
from minirt.daemon.exchange import Exchange
from minirt.daemon.routes import route
from minirt.errors import MinirtError, Unsupported

if TYPE_CHECKING:
    from minirt.engine import Engine
    from minirt.engine.answers.system import TraceEvent


@route("GET /_ping", "HEAD /_ping")
def ping(engine: Engine, exchange: Exchange) -> None:
    exchange.plain(
        b"OK",
        Content_Type="text/plain; charset=utf-8",
        Builder_Version="1",
        Docker_Experimental="false",
        Swarm="inactive",
        Cache_Control="no-cache, no-store, must-revalidate",
        Pragma="no-cache",
    )


@route("GET /version")
def version(engine: Engine, exchange: Exchange) -> None:
    exchange.reply(engine.version())


@route("GET /info")
def info(engine: Engine, exchange: Exchange) -> None:
    exchange.reply(engine.info())


@route("GET /system/df")
def df(engine: Engine, exchange: Exchange) -> None:
    exchange.reply(engine.df())


@route("GET /events")
def events(engine: Engine, exchange: Exchange) -> None:
    since, until = exchange.moment("since"), exchange.moment("until")
    found = engine.events.subscribe(since or None, until or None, exchange.filters() or None)
    exchange.stream("application/json")  # at once, however long the first takes
    exchange.lines(found)


@route("POST /auth")
def auth(engine: Engine, exchange: Exchange) -> None:
    exchange.reply(engine.login(exchange.json()))


# volumes and networks


@route("GET /volumes")
def volumes(engine: Engine, exchange: Exchange) -> None:
    exchange.reply(engine.volumes.list(exchange.filters()))


@route("POST /volumes/create")
def create_volume(engine: Engine, exchange: Exchange) -> None:
    exchange.reply(engine.volumes.create(exchange.json()), 201)


@route("POST /volumes/prune")
def prune_volumes(engine: Engine, exchange: Exchange) -> None:
    filters = exchange.filters()
    if exchange.version < (1, 42):  # named ones went too, before there was a word for it
        filters["all"] = ["true"]
    exchange.reply(engine.volumes.prune(filters))


@route("GET /volumes/{name}")
def inspect_volume(engine: Engine, exchange: Exchange, name: str) -> None:
    exchange.reply(engine.volumes.inspect(name))


@route("DELETE /volumes/{name}")
def remove_volume(engine: Engine, exchange: Exchange, name: str) -> None:
    engine.volumes.remove(name, exchange.flag("force"))
    exchange.nothing()


@route("GET /networks")
def networks(engine: Engine, exchange: Exchange) -> None:
    exchange.reply(engine.networks.list(exchange.filters()))


@route("GET /networks/{name}")
def inspect_network(engine: Engine, exchange: Exchange, name: str) -> None:
    exchange.reply(engine.networks.inspect(name))


@route("POST /networks/prune")
def prune_networks(engine: Engine, exchange: Exchange) -> None:
    exchange.reply({"NetworksDeleted": None})


@route("DELETE /networks/{name}")
def remove_network(engine: Engine, exchange: Exchange, name: str) -> None:
    error = MinirtError(f"{engine.networks.inspect(name)['Name']} is a pre-defined network and cannot be removed")
    error.status = 403
    raise error


@route("POST /networks/create", "POST /networks/{name}/connect", "POST /networks/{name}/disconnect")
def user_networks(engine: Engine, exchange: Exchange, name: str = "") -> None:
    raise Unsupported("networks of one's own are not possible yet: there are bridge, host and none")


@route(*(f"GET /{noun}" for noun in ("swarm", "nodes", "services", "tasks", "secrets", "configs")))
def swarm(engine: Engine, exchange: Exchange) -> None:
    error = MinirtError("This node is not a swarm manager: minirt has no swarm")
    error.status = 503
    raise error


@route("GET /plugins")
def plugins(engine: Engine, exchange: Exchange) -> None:
    exchange.reply([])


# ours


@route("GET /minirt/check")
def check(engine: Engine, exchange: Exchange) -> None:
    exchange.reply(engine.check())


@route("POST /minirt/prune")
def prune(engine: Engine, exchange: Exchange) -> None:
    exchange.reply(engine.prune())


@route("POST /minirt/share")
def share(engine: Engine, exchange: Exchange) -> None:
    exchange.reply(engine.share())


@route("GET /minirt/doctor")
def doctor(engine: Engine, exchange: Exchange) -> None:
    exchange.reply(engine.doctor())


@route("GET /minirt/trace")
def traced(engine: Engine, exchange: Exchange) -> None:
    """What the requests with this `tag` do here, an object each, until the client leaves: see `minirt.trace`."""
    with trace.Events(exchange.text("tag")) as found:
        exchange.lines(_told(found))


def _told(found: trace.Events) -> Iterator[TraceEvent | None]:
    yield {"box": "daemon", "action": "listening", "at": 0.0, "detail": {}}
    while True:
        event = found.next(1.0)
        if event is None:
            yield None
        else:
            yield {"at": event.at, "box": event.box, "action": event.action, "detail": event.detail}
