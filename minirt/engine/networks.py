"""Networks as the Engine API shows them: a container's, from what the shim wrote down when it connected the container,
and the list of those that can be had here. There are docker's three (a plain user's is a router in user space) and no
others yet. Sources: Engine API 1.44 reference (NetworkSettings, Network, Port). Taught in chapter 08.
"""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirt.engine.expression import matching
from minirt.engine.filters import Filters, label, matches, truth
from minirt.errors import NotFound
from minirt.runtime import state
from minirt.runtime.container import Status
from minirt.runtime.container import status as status_of
from minirt.userns import IdMapping

if TYPE_CHECKING:
    from minirt.engine.answers.containers import EndpointSettings, NetworkSettings, Port
    from minirt.engine.answers.system import IPAMConfig, Network
    from minirt.engine.containers import Containers

_STATE = "network-state.json"  # runtime.network writes it
DRIVERS = {"none": "null"}  # others are called as their network is


def network_id(root: Path, name: str) -> str:
    """The same for as long as the store is there."""
    return hashlib.sha256(f"{root}\0{name}".encode()).hexdigest()


def endpoints(folder: Path, host: dict[str, Any], status: Status) -> dict[str, EndpointSettings]:
    """`Networks` of a container, by name; addresses are empty while it does not run. One that shares has none."""
    mode = host.get("NetworkMode") or "none"
    if mode.startswith("container:"):
        return {}
    network = network_id(folder.parent.parent, mode) if status.started else ""
    endpoint = hashlib.sha256(f"{network}{folder.name}".encode()).hexdigest() if status.runs else ""
    found = (state.read_json(str(folder / _STATE)) or {}) if status.runs else {}
    return {mode: _endpoint(network, endpoint, found)}


def _endpoint(network: str, endpoint: str, found: dict[str, Any]) -> EndpointSettings:
    return {
        "IPAMConfig": None,
        "Links": None,
        "Aliases": None,
        "NetworkID": network,
        "EndpointID": endpoint,
        "Gateway": found.get("Gateway", ""),
        "IPAddress": found.get("IPAddress", ""),
        "IPPrefixLen": found.get("IPPrefixLen", 0),
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "MacAddress": found.get("MacAddress", ""),
        "DriverOpts": None,
    }


def shown(folder: Path, host: dict[str, Any], status: Status) -> NetworkSettings:
    """NetworkSettings of inspect."""
    networks = endpoints(folder, host, status)
    place = networks.get("bridge") or _endpoint("", "", {})
    found = state.read_json(str(folder / _STATE)) or {}
    return {
        "Bridge": "",
        "SandboxID": hashlib.sha256(f"{folder.name}{status.started}".encode()).hexdigest() if status.runs else "",
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "Ports": (found.get("Ports") or {}) if status.runs else {},
        "SandboxKey": f"/proc/{status.pid}/ns/net" if status.runs else "",
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": place["EndpointID"],
        "Gateway": place["Gateway"],
        "GlobalIPv6Address": place["GlobalIPv6Address"],
        "IPAddress": place["IPAddress"],
        "IPv6Gateway": place["IPv6Gateway"],
        "MacAddress": place["MacAddress"],
        "GlobalIPv6PrefixLen": place["GlobalIPv6PrefixLen"],
        "IPPrefixLen": place["IPPrefixLen"],
        "Networks": networks,
    }


def summary(folder: Path) -> list[Port]:
    """Ports of a container in a list: an entry for each place a port is published at, or one if it is only exposed."""
    rows: list[Port] = []
    for key, places in ((state.read_json(f"{folder}/{_STATE}") or {}).get("Ports") or {}).items():
        number, _, kind = key.partition("/")
        row: Port = {"PrivatePort": int(number), "Type": kind}
        rows += [row | {"IP": place["HostIp"], "PublicPort": int(place["HostPort"])} for place in places or ()] or [row]
    return rows


class Networks:
    """The verbs on networks. `ids` is the store's mapping: None where no containers run."""

    def __init__(self, containers: Containers, root: Path, ids: IdMapping | None) -> None:
        self._containers, self._root, self._ids = containers, root, ids

    def list(self, filters: Filters | None = None) -> list[Network]:
        """GET /networks, without who is connected. Raises InvalidInput."""
        dangling, networks = truth(filters, "dangling", False), list(map(self._network, self._names()))
        called = {"id": [network["Id"] for network in networks], "name": [network["Name"] for network in networks]}
        found = {
            (key, value): matching(value, names)
            for key, names in called.items()
            for value in (filters or {}).get(key) or ()
        }
        tests = {
            "id": lambda item, value: item["Id"] in found["id", value],
            "name": lambda item, value: item["Name"] in found["name", value],
            "driver": lambda item, value: item["Driver"] == value,
            "scope": lambda item, value: item["Scope"] == value,
            "type": lambda item, value: value == "builtin",
            "label": label,
            "dangling": lambda item, value: not dangling,  # what is built in is never that
        }
        return [network for network in networks if matches(network, filters, tests)]

    def inspect(self, name: str) -> Network:
        """GET /networks/{id}, by name, ID or its prefix. Raises NotFound."""
        found = self._find(name)
        for record in self._containers.records():
            folder = self._containers.folder(record)
            place = endpoints(folder, record["HostConfig"], status_of(folder)).get(found["Name"])
            if place and place["EndpointID"]:
                address = f"{place['IPAddress']}/{place['IPPrefixLen']}" if place["IPAddress"] else ""
                found["Containers"][record["Id"]] = {
                    "Name": record["Name"],
                    "EndpointID": place["EndpointID"],
                    "MacAddress": place["MacAddress"],
                    "IPv4Address": address,
                    "IPv6Address": "",
                }
        return found

    def _names(self) -> dict[str, None]:
        from minirt.runtime import network

        default = network.choose("", self._ids)[0] if self._ids and not self._ids.faked else "host"
        return dict.fromkeys((default, "host", "none"))

    def _find(self, name: str) -> Network:
        found = [network for network in map(self._network, self._names()) if name in (network["Name"], network["Id"])]
        if not found and re.fullmatch("[0-9a-f]{1,64}", name):
            found = [network for network in map(self._network, self._names()) if network["Id"].startswith(name)]
        if len(found) != 1:
            raise NotFound(f"network {name[:80]} not found" if not found else f"network {name} is ambiguous")
        return found[0]

    def _network(self, name: str) -> Network:
        config: list[IPAMConfig] = []
        options = {}
        if name == "bridge":
            from minirt.runtime.network import bridge

            known = state.read_json(str(self._root / "network.json")) or {}  # there is one while containers are in it
            config = [{"Subnet": known["subnet"], "Gateway": known["gateway"]}] if known.get("subnet") else []
            options = {
                "com.docker.network.bridge.default_bridge": "true",
                "com.docker.network.bridge.name": bridge.name_of(self._root),
            }
        made = (self._root / "version").stat().st_mtime
        return {
            "Name": name,
            "Id": network_id(self._root, name),
            "Created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made)),
            "Scope": "local",
            "Driver": DRIVERS.get(name, name),
            "EnableIPv6": False,
            "IPAM": {"Driver": "default", "Options": None, "Config": config},
            "Internal": False,
            "Attachable": False,
            "Ingress": False,
            "ConfigFrom": {"Network": ""},
            "ConfigOnly": False,
            "Containers": {},
            "Options": options,
            "Labels": {},
        }
