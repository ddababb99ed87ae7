"""Published ports: docker's `-p` grammar, the Engine API's form of it, and their reservation on the machine.

A port is the machine's only while a socket holds it. The shim keeps that socket as long as the container lives, so
another program that asks for the port is refused, and we are refused where another has it. Packets never reach the
socket: they are translated before (bridge), or the tool that forwards them binds the port itself (pasta, slirp4netns).
Sources: docker/go-connections nat/nat.go and parse.go, Engine API PortBindings. Taught in chapter 08.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from typing import Any, NamedTuple

from minirt.errors import InvalidInput, StartError, Unsupported

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class Publish(NamedTuple):  # a dataclass brings inspect, ast and more: 2 MB of each launcher, to be copied in forks
    """A container's port and where it is to be found: `host_port` empty is any free one, `8000-8010` a free one of
    these; `host_ip` empty is every address of the machine."""

    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""
    host_port: str = ""

    @property
    def key(self) -> str:
        return f"{self.container_port}/{self.protocol}"

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Publish:
        return cls(**value)


def parse_publish(words: Iterable[str]) -> list[Publish]:
    """`[[ip:][hostPort[-range]]:]containerPort[-range][/protocol]`, each. Raises InvalidInput in docker's words."""
    return [publish for word in words for publish in _parse(word)]


def _parse(word: str) -> list[Publish]:
    if not word.isprintable():
        raise InvalidInput(f"Invalid port specification: {word!r}")
    *place, container = word.split(":")
    host = place.pop() if place else ""
    host_ip = _address(":".join(place)) if any(place) else ""
    container, _, protocol = container.partition("/")
    if not container:
        raise InvalidInput(f"No port specified: {word}<empty>")
    try:
        start, end = _range(container)
    except ValueError:
        raise InvalidInput(f"Invalid containerPort: {container}") from None
    try:
        host_start, host_end = _range(host) if host else (0, 0)
    except ValueError:
        raise InvalidInput(f"Invalid hostPort: {host}") from None
    if host and start != end and end - start != host_end - host_start:
        raise InvalidInput(f"Invalid ranges specified for container and host Ports: {container} and {host}")
    protocol = _protocol(protocol.partition("/")[0] or "tcp")
    if start == end:
        return [Publish(start, protocol, host_ip, host if host_end > host_start else str(host_start or ""))]
    offsets = range(end - start + 1)
    return [Publish(start + n, protocol, host_ip, str(host_start + n) if host else "") for n in offsets]


def _address(text: str) -> str:
    """An IPv4 address, or an IPv6 one in brackets, in its usual spelling."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            if family == socket.AF_INET or inner != text:
                return socket.inet_ntop(family, socket.inet_pton(family, inner))
        except (OSError, ValueError):
            continue
    raise InvalidInput(
        f"Invalid ip address: {inner}" + (" (IPv6 stands in brackets)" if ":" in text and text == inner else "")
    )


def _range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    start, end = _number(first), _number(last if dash else first)
    if end < start:
        raise ValueError(text)
    return start, end


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 16):
        raise ValueError(text)
    return int(text)


def _protocol(text: str) -> str:
    if text.lower() == "sctp":
        raise Unsupported("publishing sctp ports is not supported: use tcp or udp")
    if text.lower() not in _KINDS:
        raise InvalidInput(f"Invalid proto: {text}")
    return text.lower()


def to_bindings(published: Iterable[Publish]) -> dict[str, list[dict[str, str]]]:
    """The Engine API's HostConfig.PortBindings."""
    found: dict[str, list[dict[str, str]]] = {}
    for one in published:
        found.setdefault(one.key, []).append({"HostIp": one.host_ip, "HostPort": one.host_port})
    return found


def from_bindings(
    bindings: dict[str, Any] | None, exposed: Iterable[str] = (), publish_all: bool = False
) -> list[Publish]:
    """PortBindings as a client sends them; with `publish_all` (-P) also every exposed port, on any free one."""
    found: list[Publish] = []
    for key, places in (bindings or {}).items():
        for place in places or [{}]:
            (one, *more) = _parse(key)
            if more or one.host_ip or one.host_port:
                raise InvalidInput(f"invalid port specification: {key!r}")
            ip, port = place.get("HostIp") or "", place.get("HostPort") or ""
            try:
                found.append(
                    one._replace(
                        host_ip=ip and _address(f"[{ip}]" if ":" in ip else ip),
                        host_port=port if port and _range(port) else "",
                    )
                )
            except ValueError:
                raise InvalidInput(f"invalid port specification: {port!r}") from None
    if publish_all:
        taken = {one.key for one in found}
        found += [one for key in exposed for one in _parse(key) if one.key not in taken]
    return found


def inspect(taken: Iterable[Publish], exposed: Iterable[str] = ()) -> dict[str, Any]:
    """NetworkSettings.Ports: where each port really is; null for one that is exposed and not published."""
    found: dict[str, Any] = {one.key: None for key in exposed for one in _parse(key)}
    for one in taken:
        found[one.key] = [*(found.get(one.key) or []), {"HostIp": one.host_ip or "0.0.0.0", "HostPort": one.host_port}]
    return found


def reserve(published: Iterable[Publish], ours: Iterable[Publish] = ()) -> tuple[list[Publish], list[socket.socket]]:
    """Bind each port: what was taken (`host_port` a number now), and the sockets that hold it until closed.

    `ours` are the ports of other containers, for docker's words about them. All or nothing: raises StartError.
    """
    taken: list[Publish] = []
    sockets: list[socket.socket] = []
    others = {(one.protocol, one.host_port) for one in ours}
    try:
        for one in published:
            first, last = _range(one.host_port) if one.host_port else (0, 0)
            for port in range(first, last + 1):
                try:
                    sockets.append(_bind(one, port))
                    break
                except OSError as error:
                    if port == last:
                        raise StartError(_refusal(one, port, error, (one.protocol, str(port)) in others)) from error
            taken.append(one._replace(host_port=str(sockets[-1].getsockname()[1])))
    except BaseException:
        close(sockets)
        raise
    return taken, sockets


def _bind(one: Publish, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in one.host_ip else socket.AF_INET
    made = socket.socket(family, _KINDS[one.protocol])
    try:
        if one.protocol == "tcp":  # a connection in TIME_WAIT does not keep the port; only a listener does, so listen
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((one.host_ip or ("::" if family == socket.AF_INET6 else "0.0.0.0"), port))
        if one.protocol == "tcp":
            made.listen(0)
        return made
    except BaseException:
        made.close()
        raise


def _refusal(one: Publish, port: int, error: OSError, ours: bool) -> str:
    host = f"[{one.host_ip}]" if ":" in one.host_ip else one.host_ip or "0.0.0.0"
    if error.errno == errno.EADDRINUSE and ours:
        return f"Bind for {host}:{port} failed: port is already allocated"
    reason = {
        errno.EADDRINUSE: "address already in use",
        errno.EACCES: "permission denied: a port below 1024 takes root, choose a larger one",
        errno.EADDRNOTAVAIL: "cannot assign requested address",
    }.get(error.errno or 0, os.strerror(error.errno or 0))
    return f"listen {one.protocol} {host}:{port}: bind: {reason}"


def close(sockets: Iterable[socket.socket]) -> None:
    for one in sockets:
        one.close()
