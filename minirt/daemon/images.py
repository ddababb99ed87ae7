"""Routes of images. Engine API 1.44, "Image". Names have slashes."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from minirt.daemon.containers import send
from minirt.daemon.exchange import Exchange
from minirt.daemon.routes import route
from minirt.errors import InvalidInput, Unsupported

if TYPE_CHECKING:
    from minirt.engine import Engine


@route("GET /images/json")
def listed(engine: Engine, exchange: Exchange) -> None:
    found = engine.images.summaries(exchange.filters() or None)
    for image in found if exchange.version < (1, 43) else ():  # what has no name had one of its own
        image["RepoTags"] = image["RepoTags"] or ["<none>:<none>"]
        image["RepoDigests"] = image["RepoDigests"] or ["<none>@<none>"]
    exchange.reply(found)


@route("POST /images/create")
def create(engine: Engine, exchange: Exchange) -> None:
    """Pull `fromImage`, or import `fromSrc`."""
    name, tag, platform = exchange.text("fromImage"), exchange.text("tag"), exchange.text("platform") or None
    if source := exchange.text("fromSrc"):
        if source != "-":
            raise Unsupported("importing from a URL is not possible here: download it, and import the file")
        repo, message = exchange.text("repo"), exchange.text("message")
        changes = exchange.query.get("changes", [])
        exchange.lines(engine.files.import_image(cast(BinaryIO, exchange.body), repo, tag, message, changes, platform))
        return
    if not name:
        raise InvalidInput("fromImage or fromSrc is needed")
    last = name.rpartition("/")[2]
    if tag:
        name += f"@{tag}" if ":" in tag else f":{tag}"
    throttle = exchange.headers.get("X-Minirt-Throttle", "")
    lines = engine.pull(
        name,
        platform,
        all_tags=not tag and ":" not in last and "@" not in last,
        hub=exchange.headers.get("X-Minirt-Hub"),
        throttle=int(throttle) if re.fullmatch("[0-9]{1,12}", throttle) else None,
        auth=_auth(exchange),
    )
    exchange.lines(lines)


def _auth(exchange: Exchange) -> dict[str, Any] | None:
    """What `docker login` left at the client: `username`, `password`, `identitytoken`… Raises InvalidInput."""
    text = exchange.headers.get("X-Registry-Auth", "")
    if not text:
        return None
    try:
        found = json.loads(base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4)))
    except (ValueError, RecursionError) as error:
        raise InvalidInput("X-Registry-Auth is not base64url of a JSON object") from error
    return found if isinstance(found, dict) else None


@route("GET /images/get", "GET /images/{name+}/get")
def save(engine: Engine, exchange: Exchange, name: str = "") -> None:
    names = [name] if name else [each for text in exchange.query.get("names", []) for each in text.split(",") if each]
    send(exchange, engine.images.save(names))


@route("POST /images/load")
def load(engine: Engine, exchange: Exchange) -> None:
    exchange.lines(engine.images.load(cast(BinaryIO, exchange.body)))


@route("POST /images/prune")
def prune(engine: Engine, exchange: Exchange) -> None:
    exchange.reply(engine.prune_images(exchange.filters()))


@route("GET /images/search")
def search(engine: Engine, exchange: Exchange) -> None:
    raise Unsupported("searching Docker Hub is not possible here: look at hub.docker.com")


@route("GET /images/{name+}/json")
def inspect(engine: Engine, exchange: Exchange, name: str) -> None:
    exchange.reply(engine.images.inspect(name))


@route("GET /images/{name+}/history")
def history(engine: Engine, exchange: Exchange, name: str) -> None:
    exchange.reply(engine.images.history(name))


@route("POST /images/{name+}/tag")
def tag(engine: Engine, exchange: Exchange, name: str) -> None:
    repo, tag = exchange.text("repo"), exchange.text("tag")
    engine.images.tag(name, f"{repo}:{tag}" if tag else repo)
    exchange.nothing(201)


@route("POST /images/{name+}/push")
def push(engine: Engine, exchange: Exchange, name: str) -> None:
    exchange.lines(engine.push(name, exchange.text("tag"), _auth(exchange), exchange.headers.get("X-Minirt-Hub")))


@route("GET /distribution/{name+}/json")
def distribution(engine: Engine, exchange: Exchange, name: str) -> None:
    exchange.reply(engine.distribution(name, _auth(exchange)))


@route("GET /minirt/manifests/{name+}")
def manifests(engine: Engine, exchange: Exchange, name: str) -> None:
    hub = exchange.headers.get("X-Minirt-Hub")
    exchange.reply(engine.manifests(name, exchange.flag("verbose"), _auth(exchange), hub))


@route("DELETE /images/{name+}")
def remove(engine: Engine, exchange: Exchange, name: str) -> None:
    exchange.reply(engine.images.remove(name, exchange.flag("force")))


@route("POST /build/prune")
def prune_build(engine: Engine, exchange: Exchange) -> None:
    """`docker system prune` asks for it, too: there is no build cache."""
    exchange.reply({"CachesDeleted": None, "SpaceReclaimed": 0})


@route("POST /build", "POST /session")
def build(engine: Engine, exchange: Exchange) -> None:
    raise Unsupported("building images is not possible yet: build with docker or podman, and `minirt load` the image")
