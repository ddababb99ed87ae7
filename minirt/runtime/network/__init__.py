"""A container's network: what it is connected to, and what is published of it.

    none           a loopback, nothing else
    host           the machine's own
    bridge         for root: a switch of ours, addresses, translation by nft      bridge, rules, netlink
    pasta          for plain users: a router in user space; else slirp4netns      slirp
    container:ID   another container's

`choose` decides when a container is created; `attach` and `detach` are the shim's, before its command starts and after
it has ended; what a crash leaves is found by `leftovers` and taken away by `clean`, by whoever comes. Loaded by a start
only when a network is wanted. ports: what `-p` means; names: resolv.conf and hosts. Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from minirt.errors import InvalidInput, Unsupported
from minirt.runtime import state
from minirt.runtime.network import process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from socket import socket

    from minirt.userns import IdMapping

StrPath = str | os.PathLike[str]
STATE = "network-state.json"
_PLAIN = (("pasta", "passt"), ("slirp4netns", "slirp4netns"))
_TUN = "/dev/net/tun"
# What lives as long as this process, by the container's folder: sockets that hold ports, and the pid of a router.
_held: dict[str, list[socket]] = {}
_routers: dict[str, int] = {}


def choose(asked: str, ids: IdMapping, published: bool = False) -> tuple[str, str]:
    """What HostConfig.NetworkMode comes to here, and a warning or "". `published`: are ports to be published?

    Raises InvalidInput, and Unsupported for what this machine or this user cannot have.
    """
    if asked in ("", "default"):
        mode, missing = _default()
        if missing and published:
            raise Unsupported(f"ports cannot be published here: {missing}")
        return mode, missing and f"the container has no network but its own loopback: {missing}"
    if asked == "host":
        return asked, "Published ports are discarded when using host network mode" if published else ""
    if asked == "none" or asked.startswith("container:"):
        if asked == "container:":
            raise InvalidInput("invalid container format container:<name|id>")
        if published and asked == "none":
            raise InvalidInput("conflicting options: port publishing and network none")
        if published:
            raise InvalidInput("conflicting options: port publishing and the container type network mode")
        return asked, ""
    if asked == "bridge":
        if missing := _no_bridge():
            raise Unsupported(missing)
        return asked, ""
    if asked in dict(_PLAIN):
        if os.geteuid() == 0:
            raise Unsupported(f"network {asked} is for plain users: root has bridge")
        if missing := _no_router(asked):
            raise Unsupported(missing)
        return asked, ""
    raise InvalidInput(
        f"network {asked[:80]} not found: networks other than bridge, host, none, pasta, slirp4netns and "
        "container:<name|id> are not supported"
    )


def _default() -> tuple[str, str]:
    if os.geteuid() == 0:
        missing = _no_bridge()
        return ("none", missing) if missing else ("bridge", "")
    found = next((program for program, _ in _PLAIN if process.find(program)), "")
    missing = _no_router(found or "pasta")
    return ("none", missing) if missing else (found, "")


def _no_router(program: str) -> str:
    """Why a plain user cannot have this router in user space, or ""."""
    if not process.find(program):
        return f"{program} is not installed: sudo apt install {dict(_PLAIN)[program]}"
    if not os.access(_TUN, os.R_OK | os.W_OK):
        there = f"you may not open it: sudo chmod 0666 {_TUN}" if os.path.exists(_TUN) else "it does not exist here"
        return f"{program} needs {_TUN}, and {there}"
    return ""


def _no_bridge() -> str:
    """Why this process cannot have a bridge, or ""."""
    if os.geteuid() != 0:
        return "a bridge is for root: use --network pasta, slirp4netns, host or none"
    from minirt.runtime.network.netlink import Netlink

    with contextlib.closing(Netlink()) as links:
        if not links.may():
            return "a bridge needs the right to change this machine's network (in a container: --cap-add NET_ADMIN)"
    return "" if process.find("nft") else "a bridge needs nft: sudo apt install nftables"


def attach(root: StrPath, folder: StrPath, pid: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Connect the created container to its network; what inspect shows, which is also kept in network-state.json.

    `pid` is init's in the numbers of the mounted /proc (a plain user's has joined `slirp.namespace`); `settings`:
    `mode`, and perhaps `publish` (Publish as JSON), `exposed` ("80/tcp"), `hostname`, `extra_hosts`. Ports stay
    reserved until `detach` or the end of this process.
    All or nothing. Raises StartError.
    """
    from minirt.runtime.network import names, ports

    root, folder, mode = os.fspath(root), os.fspath(folder), settings["mode"]
    published = [ports.Publish.from_json(row) for row in settings.get("publish") or ()]
    found: dict[str, Any] = {"IPAddress": "", "IPPrefixLen": 0, "Gateway": "", "MacAddress": "", "warnings": []}
    if mode == "bridge":
        from minirt.runtime.network import bridge

        given, _held[folder] = bridge.attach(root, folder, pid, published)
        published = [ports.Publish.from_json(row) for row in given.pop("published")]
        found |= given
        hosts: tuple[str, Sequence[str]] = (settings.get("hostname", ""), settings.get("extra_hosts") or ())
        names.write_hosts(folder, mode, *hosts, found["IPAddress"], found["Gateway"])
    elif mode in dict(_PLAIN):
        from minirt.runtime.network import slirp

        try:
            published, sockets = ports.reserve(published)
            ports.close(sockets)  # asked for the words about a port that cannot be had; now the program takes it
            _routers[folder] = getattr(slirp, mode)(folder, published)
        finally:
            slirp.forget(folder)
    else:
        published = []
    found |= {"mode": mode, "Ports": ports.inspect(published, settings.get("exposed") or ())}
    state.write_json(f"{folder}/{STATE}", found)
    return found


def detach(root: StrPath, folder: StrPath) -> None:
    """Take the container off its network, once it has ended. Idempotent, and for any process to call."""
    root, folder = os.fspath(root), os.fspath(folder)
    if (router := _routers.pop(folder, None)) is not None:
        from minirt.runtime.network import slirp

        slirp.stop(router)
    found = state.read_json(f"{folder}/{STATE}") or {}
    if os.geteuid() == 0 and found.get("mode", "bridge") == "bridge":
        from minirt.runtime.network import bridge

        bridge.detach(root, folder)
    for held in _held.pop(folder, ()):
        held.close()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{folder}/{STATE}")


def leftovers(root: StrPath) -> list[str]:
    """What of this root's bridge no running container uses, a line each. For `system check`. Raises StartError."""
    from minirt.runtime.network import bridge

    return bridge.leftovers(os.fspath(root))


def keep(root: StrPath) -> None:
    """This process is a daemon, and keeps root's bridge between two containers. `let_go` is the end of it."""
    if os.geteuid() == 0:
        from minirt.runtime.network import bridge

        bridge.keep(os.fspath(root))


def let_go(root: StrPath) -> None:
    """Raises StartError."""
    if os.geteuid() == 0:
        from minirt.runtime.network import bridge

        bridge.let_go(os.fspath(root))


def clean(root: StrPath) -> list[str]:
    """Take the leftovers away; what they were. For `system prune`. Raises StartError."""
    from minirt.runtime.network import bridge

    return bridge.leftovers(os.fspath(root), remove=True)
