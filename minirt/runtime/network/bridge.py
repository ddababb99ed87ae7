"""The default bridge of a root folder: a switch in the machine, a cable (veth) to each container, translation by nft.

    container eth0 ──veth──▶ minirt0 (gateway, .0.1) ──masquerade──▶ the machine's other networks
                     published port ──▶ map in nft ──▶ container's address and port

network.json under the root is the truth: the subnet, and one lease per container with its address, veth, ports and
init process. It is written before what it names is made, and a lease whose init is gone is void; so after a crash
anybody can take away what is left, and the next attach does. All of it changes under one lock. The bridge goes with the
last container, or where a daemon keeps it (network-keeper.json names the process) with that one: making it and its
table anew costs a start 80 ms. A cable goes with the namespace it ends in, by the kernel and in its own time, for to
wait for that costs each end 20 ms: it is only unplugged, and looked after later (`unplugged`, with the time).
What must hold: nothing new comes in but to published ports, also where a neighbour routes to a container's address;
127.0.0.0/8 is the machine's own (CVE-2020-8558): frames from containers to it are dropped, and a port published there
is translated only for what the machine itself sends; new connections do not cross into another bridge of the machine.
Sources: rtnetlink(7), kernel Documentation/networking/ip-sysctl.rst (route_localnet). Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
import zlib
from collections.abc import Collection, Iterator
from typing import Any

from minirt.errors import StartError
from minirt.runtime import state
from minirt.runtime.network import ports, process, rules
from minirt.runtime.network.netlink import Netlink, inside
from minirt.runtime.network.ports import Publish

_DEFAULT_ROOT = "/var/lib/minirt"
_KEEPER = "network-keeper.json"
_GOING = 1.0  # seconds for the kernel to take an unplugged cable away
_MACHINE = "/run/minirt"  # what all roots of the machine have in common
# Private networks (RFC 1918), first those that cloud providers and other runtimes take last.
_SUBNETS = [(172 << 24 | n << 16, 16) for n in range(30, 17, -1)]
_SUBNETS += [(10 << 24 | n << 16, 16) for n in range(254, 199, -1)]
_SUBNETS += [(192 << 24 | 168 << 16 | n << 8, 24) for n in range(254, 199, -1)]


def name_of(root: str | os.PathLike[str]) -> str:
    """The bridge's and the table's name: at most 15 bytes, netdevice(7)."""
    path = os.path.realpath(root)
    return "minirt0" if path == _DEFAULT_ROOT else f"minirt-{zlib.crc32(os.fsencode(path)) >> 8:06x}"


def attach(root: str, folder: str, pid: int, published: list[Publish]) -> tuple[dict[str, Any], list[socket.socket]]:
    """Give the container an address on the bridge and its ports; what was given, and the sockets that hold the ports.

    `pid` is init's, in the numbers of the mounted /proc. All or nothing. Raises StartError.
    """
    if any(":" in one.host_ip for one in published):
        raise StartError("a bridge publishes on IPv4 addresses only: leave the address out, or give an IPv4 one")
    key = os.path.basename(folder)
    with _bridge(root) as bridge:
        fresh = bridge.ensure(key)
        held: list[socket.socket] = []
        try:
            taken, held = ports.reserve(published, bridge.ports)
            lease: dict[str, Any] = {
                "address": bridge.free_address(), "veth": f"veth{os.urandom(4).hex()}", "boot_id": state.boot_id(),
                "ports": [one.to_json() for one in taken], **state.identify(pid),
            }  # fmt: skip
            bridge.leases[key] = lease
            bridge.write()
            mac = bridge.connect(lease, pid)
            bridge.let_through(fresh, lease["address"], taken)
        except BaseException:
            ports.close(held)
            # The first error is the one to tell; what may stay is void once init is gone.
            with contextlib.suppress(OSError, StartError):
                bridge.release([key])
            raise
        return {
            "IPAddress": lease["address"], "IPPrefixLen": int(bridge.state["subnet"].rpartition("/")[2]),
            "Gateway": bridge.state["gateway"], "MacAddress": mac, "published": lease["ports"],
            "warnings": bridge.warnings,
        }, held  # fmt: skip


def detach(root: str, folder: str) -> None:
    """Take back what `attach` gave to this container; with the last one the bridge goes. Idempotent."""
    if os.path.exists(f"{root}/network.json"):
        with _bridge(root) as bridge:
            bridge.release([os.path.basename(folder), *bridge.void()])


def leftovers(root: str, remove: bool = False) -> list[str]:
    """What no running container uses, in words; with `remove`, it is taken away. Raises StartError."""
    if os.geteuid() != 0 or not os.path.isdir(root):
        return []
    with _bridge(root) as bridge:
        links, void = bridge.links.links(), bridge.void()
        found = [f"network: address {bridge.leases[key]['address']} of container {key[:12]}" for key in void]
        used = {lease["veth"] for key, lease in bridge.leases.items() if key not in void}
        mine = [name for name, link in links.items() if link["group"] == bridge.group and name != bridge.name]
        cables = [name for name in mine if name not in used and name not in bridge.unplugged]
        found += [f"network: link {name}" for name in cables]
        if not used and not bridge.kept:
            if bridge.name in links:
                found.append(f"network: bridge {bridge.name}")
            if bridge.state:
                found.append(f"network: subnet {bridge.state['subnet']}")
            if process.find("nft") and rules.exists(bridge.name):
                found.append(f"network: nft table ip {bridge.name}")
        if remove:
            bridge.sweep(links)
        if remove and found:
            bridge.release(void)
            for name in cables:
                bridge.links.delete(name)
        return found


def keep(root: str) -> None:
    """From now on this process keeps the bridge that has no container; also one that a killed keeper left."""
    state.write_json(f"{root}/{_KEEPER}", {"boot_id": state.boot_id(), **state.identify("self")})


def let_go(root: str) -> None:
    """The keeper ends, and with it a bridge that has no container. Also where the root folder is gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{root}/{_KEEPER}")
    if os.path.isdir(root):
        if os.path.exists(f"{root}/network.json"):
            with _bridge(root) as bridge:
                bridge.release(bridge.void())
        return
    with contextlib.closing(Netlink()) as links:
        if name_of(root) in links.links():
            rules.clear(name_of(root))
            links.delete(group=_group(name_of(root)))


def _group(name: str) -> int:
    """All links of a bridge carry one number: they go in one step, also those of which no lease knows."""
    return zlib.crc32(name.encode()) >> 1 | 1


@contextlib.contextmanager
def _bridge(root: str) -> Iterator[_Bridge]:
    """The bridge, for one process at a time."""
    with process.locked(root), contextlib.closing(Netlink()) as links:
        try:
            yield _Bridge(root, links)
        except OSError as error:
            what = f"{error.filename}: " if error.filename else ""
            raise StartError(f"the bridge's network: {what}{error.strerror}") from error


class _Bridge:
    """The bridge as network.json has it, under the lock."""

    def __init__(self, root: str, links: Netlink) -> None:
        self.name, self.links = name_of(root), links
        self.group = _group(self.name)
        keeper = state.read_json(f"{root}/{_KEEPER}")
        self.kept = bool(keeper and keeper["boot_id"] == state.boot_id() and _lives(keeper))
        self._path = f"{root}/network.json"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path + ".new")  # of one who was killed as he wrote
        self.state = state.read_json(self._path) or {}
        self.leases: dict[str, dict[str, Any]] = self.state.get("leases", {})
        self.unplugged: dict[str, float] = self.state.get("unplugged", {})
        self.warnings: list[str] = []

    @property
    def ports(self) -> list[Publish]:
        """All that is published now."""
        return [one for _, published in self._rows() for one in published]

    def _rows(self) -> list[tuple[str, list[Publish]]]:
        return [(row["address"], [Publish.from_json(one) for one in row["ports"]]) for row in self.leases.values()]

    def write(self) -> None:
        state.write_json(self._path, self.state | {"unplugged": self.unplugged})

    def void(self) -> list[str]:
        """The leases whose init is gone."""
        boot = state.boot_id()
        return [key for key, lease in self.leases.items() if lease["boot_id"] != boot or not _lives(lease)]

    def ensure(self, key: str) -> bool:
        """Have a bridge with a subnet; True where it was made now, without a table. Drops void leases, and `key`'s."""
        links = self.links.links()
        if self.name in links and self.state.get("ready"):
            self.sweep(links)
            self.forget([*self.void(), key])
            if self.leases or self.kept:
                return False
        self.links.delete(group=self.group)
        self.leases, self.unplugged = {}, {}
        os.makedirs(_MACHINE, 0o700, exist_ok=True)
        with process.locked(_MACHINE):  # of two roots that start at once, one sees what the other took
            routes = self.links.routes()
            outside = next((index for _, length, index in routes if length == 0 and index), 0)
            way_out = next((name for name, link in links.items() if link["index"] == outside), "")
            network, length = _free_subnet(routes)
            self.state = {
                "subnet": f"{_dotted(network)}/{length}", "gateway": _dotted(network + 1), "way_out": way_out,
                "mtu": links[way_out]["mtu"] if way_out else 1500, "leases": self.leases, "ready": False,
            }  # fmt: skip
            self.write()
            self.links.add_bridge(self.name, self.group, self.state["mtu"])
            self.links.add_address(socket.if_nametoindex(self.name), struct.pack("!I", network + 1), length)
        _sysctl(f"ipv4/conf/{self.name}/route_localnet", "1")  # published ports answer to the machine's 127.0.0.1 too
        _sysctl(f"ipv6/conf/{self.name}/disable_ipv6", "1")
        if _sysctl("ipv4/ip_forward", "1"):
            self.warnings.append("IPv4 forwarding was off on this machine; it is on now (net.ipv4.ip_forward)")
        self.state["ready"] = True
        return True

    def free_address(self) -> str:
        """The lowest that no container has."""
        network, _, length = self.state["subnet"].partition("/")
        taken = {lease["address"] for lease in self.leases.values()}
        first = int.from_bytes(socket.inet_aton(network), "big")
        for number in range(first + 2, first + (1 << 32 - int(length)) - 1):
            if (address := _dotted(number)) not in taken:
                return address
        raise StartError("no available IPv4 addresses on this network's address pool: bridge")

    def connect(self, lease: dict[str, Any], pid: int) -> str:
        """Lay the cable; the container's end is its eth0, with docker's kind of MAC address, which is returned."""
        address = socket.inet_aton(lease["address"])
        mac, length = b"\x02\x42" + address, int(self.state["subnet"].rpartition("/")[2])
        index = socket.if_nametoindex(self.name)
        with inside(pid) as namespace, contextlib.closing(Netlink()) as within:
            _sysctl("ipv6/conf/all/disable_ipv6", "1")  # as docker does where a network has no IPv6
            self.links.add_veth(lease["veth"], self.group, index, "eth0", mac, namespace, self.state["mtu"])
            eth0 = socket.if_nametoindex("eth0")
            within.add_address(eth0, address, length)
            within.up(eth0)
            within.add_default_route(socket.inet_aton(self.state["gateway"]))
        self.links.hairpin(socket.if_nametoindex(lease["veth"]))
        return mac.hex(":")

    def let_through(self, fresh: bool, address: str, published: list[Publish]) -> None:
        """Translate a container's ports, and see that the table still stands: somebody may flush all rules.

        Where no rule of the machine changed since we last looked, there is nothing to see, and no nft to run.
        """
        now = rules.generation()
        if fresh or published or now is None or now != self.state.get("rules"):
            if fresh or not rules.add(self.name, address, published):
                self.translate()
            self.state["rules"] = now  # as it was before: where we changed it ourselves, the next one looks once more
            self.write()

    def translate(self) -> None:
        """Make the table anew, for all containers."""
        rules.make(self.name, self.state["subnet"], self.state["way_out"], self._rows())

    def forget(self, keys: list[str]) -> None:
        """Drop leases: their cables and ports. Those of the last one go with the bridge."""
        gone = [self.leases.pop(key) for key in keys if key in self.leases]
        if not self.leases and not self.kept:
            return
        for lease in gone:
            with contextlib.suppress(OSError):  # it is gone already, with its container's namespace
                self.links.unplug(socket.if_nametoindex(lease["veth"]))
                self.unplugged[lease["veth"]] = time.monotonic()
        old = [Publish.from_json(row) for lease in gone for row in lease["ports"]]
        if old and not rules.remove(self.name, old):
            self.translate()

    def sweep(self, links: Collection[str]) -> None:
        """Take the unplugged cables away that stay, since somebody else is in the namespace they end in."""
        now = time.monotonic()
        for name, since in list(self.unplugged.items()):
            if name not in links or not 0 <= now - since < _GOING:
                del self.unplugged[name]
                if name in links:
                    self.links.delete(name)

    def release(self, keys: list[str]) -> None:
        """Drop leases, and with the last one everything of the bridge, unless it is kept."""
        self.forget(keys)
        if self.leases or (self.kept and self.state):
            self.write()
            return
        if process.find("nft"):
            rules.clear(self.name)
        self.links.delete(group=self.group)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


def _lives(process_: dict[str, Any]) -> bool:
    """Whether that very process is still there."""
    try:
        with open(f"/proc/{process_['pid']}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return bool(int(fields[19]) == process_["start_time"])


def _free_subnet(routes: list[tuple[int, int, int]]) -> tuple[int, int]:
    """The first network that no route of the machine touches."""
    for network, length in _SUBNETS:
        shifts = [(other, 32 - min(length, other_length)) for other, other_length, _ in routes if other_length]
        if not any(network >> shift == other >> shift for other, shift in shifts):
            return network, length
    raise StartError("no private network is free for the bridge: routes of this machine touch all of them")


def _dotted(number: int) -> str:
    return socket.inet_ntoa(struct.pack("!I", number))


def _sysctl(name: str, value: str) -> bool:
    """Set what is not set yet; whether it was changed. False also where the kernel has no such thing (no IPv6)."""
    path = f"/proc/sys/net/{name}"
    try:
        with open(path, encoding="ascii") as file:
            if file.read().strip() == value:
                return False
    except FileNotFoundError:
        return False
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
    return True
