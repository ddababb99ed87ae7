"""What the user says about registries, in `~/.config/minirt/config.toml`.

    registry-mirrors = ["https://mirror.example"]                     # tried before Docker Hub, for docker.io only
    insecure-registries = ["registry.example:5000", "10.1.0.0/16"]    # may speak plain http, or https nobody signed

The keys are those of dockerd's daemon.json. Invariant: plain http is possible only for loopback and for what the
second list names. An *authority* below is `host` or `host:port`, as it stands in a URL.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from minirt import config
from minirt.errors import InvalidInput


@dataclass(frozen=True)
class Settings:
    """`registry_mirrors` are base URLs without a trailing slash; `insecure_registries` authorities or CIDR blocks."""

    registry_mirrors: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for url in self.registry_mirrors:
            parts = _split(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise InvalidInput(f"registry-mirrors: {url!r} is not a URL like https://mirror.example")
            if "@" in parts.netloc:
                raise InvalidInput(
                    f"registry-mirrors: {parts.hostname}: no user or password in the URL; log in instead"
                )
            if parts.scheme == "http" and not self.insecure(parts.netloc):
                raise InvalidInput(f"registry-mirrors: {url}: plain http only to loopback or `insecure-registries`")
        for entry in self.insecure_registries:
            if not entry or "://" in entry or ("/" in entry and not _is_network(entry)):
                raise InvalidInput(
                    f"insecure-registries: {entry!r} is not host, host:port or a network like 10.0.0.0/8"
                )

    @classmethod
    def load(cls, path: Path | None = None) -> Settings:
        """Read the file; an absent one means the defaults. Raises InvalidInput that names the file and the fault."""
        path, table = config.read(path, "registry-mirrors", "insecure-registries")
        for key in ("registry-mirrors", "insecure-registries"):
            value = table.get(key, [])
            if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
                raise InvalidInput(f"{path}: {key} is not a list of strings")
        try:
            return cls(
                tuple(url.rstrip("/") for url in table.get("registry-mirrors", ())),
                tuple(table.get("insecure-registries", ())),
            )
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error}") from error

    def insecure(self, authority: str) -> bool:
        """May this authority speak plain http? Loopback always; a name is resolved only where networks are listed."""
        host = urlsplit(f"//{authority}").hostname or ""
        if locality(host) == "loopback" or authority.lower() in (entry.lower() for entry in self.insecure_registries):
            return True
        networks = [ip_network(entry, strict=False) for entry in self.insecure_registries if _is_network(entry)]
        return bool(networks) and any(address in network for address in _resolve(host) for network in networks)


def locality(host: str) -> str:
    """`loopback`, `link-local` or `` (anywhere else) for an address or `localhost`; other names are not resolved."""
    if host.lower().rstrip(".") == "localhost":
        return "loopback"
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    # A connection to 0.0.0.0 or :: goes to this machine (Linux ip(7), INADDR_ANY as a destination).
    if address.is_loopback or address.is_unspecified:
        return "loopback"
    return "link-local" if address.is_link_local else ""


def _split(url: str) -> SplitResult:
    """Its parts; none where it is no URL."""
    try:
        parts = urlsplit(url)
        return parts if parts.port != 0 else urlsplit("")
    except ValueError:  # a host or a port that is none
        return urlsplit("")


def _is_network(entry: str) -> bool:
    if "/" not in entry:
        return False
    try:
        ip_network(entry, strict=False)
    except ValueError:
        return False
    return True


def _resolve(host: str) -> list[IPv4Address | IPv6Address]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []  # the connection will say so
    return [ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
