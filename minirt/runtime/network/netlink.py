"""rtnetlink, the kernel's own language for links, addresses and routes: the few sentences a bridge needs.

A message is a header, a fixed body and attributes (length, type, value; padded to 4; may nest). A socket speaks to the
network namespace it was made in, wherever its process goes later. pyroute2 speaks all of it, but importing that takes
longer (90 ms) than starting a container. Sources: netlink(7), rtnetlink(7), veth(4). Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator

from minirt import linux

_REQUEST, _ACK, _DUMP, _EXCL, _CREATE = 1, 4, 0x300, 0x200, 0x400
_NEWLINK, _DELLINK, _GETLINK, _SETLINK, _NEWADDR, _NEWROUTE, _GETROUTE = 16, 17, 18, 19, 20, 24, 26
_IFF_UP, _VETH_INFO_PEER, _NESTED = 1, 1, 0x8000
# linux/if_link.h
_ADDRESS, _IFNAME, _MTU, _MASTER, _PROTINFO, _LINKINFO, _GROUP, _NET_NS_FD = 1, 3, 4, 10, 12, 18, 27, 28
_INFO_KIND, _INFO_DATA, _BRPORT_STATE, _BRPORT_MODE, _BRPORT_FLUSH = 1, 2, 1, 4, 24


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[4:size]
        data = data[(size + 3) & ~3 :]
    return found


def _link(index: int = 0, up: bool = False, family: int = 0) -> bytes:
    """struct ifinfomsg: with `up`, bring it up."""
    return struct.pack("=BxHiII", family, 0, index, _IFF_UP * up, _IFF_UP * up)


def _named(name: str, group: int, mtu: int) -> bytes:
    """The beginning of a new link, which is up at once."""
    attributes = _attribute(_IFNAME, _text(name)) + _attribute(_MTU, _int(mtu)) + _attribute(_GROUP, _int(group))
    return _link(up=True) + attributes


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _int(value: int) -> bytes:
    return struct.pack("=I", value)


class Netlink:
    """A conversation with the network namespace this process is in when it is opened. Errors are OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))

    def close(self) -> None:
        self._socket.close()

    def _ask(self, kind: int, body: bytes, flags: int = _ACK) -> Iterator[tuple[int, bytes]]:
        self._socket.send(struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | flags, 1, 0) + body)
        while True:
            data = self._socket.recv(1 << 18)
            while len(data) >= 16:
                size, what = struct.unpack_from("=IH", data)
                if what == 2:  # NLMSG_ERROR, and with 0 the acknowledgement
                    (code,) = struct.unpack_from("=i", data, 16)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                if what == 3:  # NLMSG_DONE
                    return
                yield what, data[16:size]
                data = data[(size + 3) & ~3 :]

    def _tell(self, kind: int, body: bytes, flags: int = 0) -> None:
        for _ in self._ask(kind, body, flags | _ACK):
            pass

    def may(self) -> bool:
        """Whether we may change this namespace: the right is looked at before the (missing) link."""
        try:
            self._tell(_DELLINK, _link() + _attribute(_IFNAME, _text("minirt-nosuch")))
        except OSError as error:
            return error.errno != errno.EPERM
        return True

    def links(self) -> dict[str, dict[str, int]]:
        """All links by name: `index`, `group`, `mtu`."""
        found = {}
        for kind, data in self._ask(_GETLINK, _link(), _DUMP):
            if kind == _NEWLINK:
                values = _attributes(data[16:])
                group, mtu = (int.from_bytes(values.get(key, b""), "little") for key in (_GROUP, _MTU))
                row = {"index": struct.unpack_from("=i", data, 4)[0], "group": group, "mtu": mtu}
                found[values[_IFNAME].rstrip(b"\0").decode()] = row
        return found

    def routes(self) -> list[tuple[int, int, int]]:
        """IPv4 routes of every table as (network, prefix length, link's index or 0)."""
        found = []
        for kind, data in self._ask(_GETROUTE, struct.pack("=8BI", socket.AF_INET, *bytes(7), 0), _DUMP):
            if kind == _NEWROUTE:
                values = _attributes(data[12:])
                network = int.from_bytes(values.get(1, b""), "big")  # RTA_DST
                found.append((network, data[1], int.from_bytes(values.get(4, b""), "little")))  # RTA_OIF
        return found

    def add_bridge(self, name: str, group: int, mtu: int) -> None:
        info = _attribute(_LINKINFO, _attribute(_INFO_KIND, b"bridge"))
        self._tell(_NEWLINK, _named(name, group, mtu) + info, _CREATE | _EXCL)

    def add_veth(self, name: str, group: int, master: int, peer: str, mac: bytes, namespace: int, mtu: int) -> None:
        """A pair: `name` here, a port of bridge `master`; `peer` with address `mac`, still down, in that namespace."""
        inner = _link() + _attribute(_IFNAME, _text(peer)) + _attribute(_ADDRESS, mac)
        inner += _attribute(_MTU, _int(mtu)) + _attribute(_NET_NS_FD, _int(namespace))
        data = _attribute(_INFO_DATA, _attribute(_VETH_INFO_PEER, inner))
        info = _attribute(_LINKINFO, _attribute(_INFO_KIND, b"veth") + data)
        self._tell(_NEWLINK, _named(name, group, mtu) + _attribute(_MASTER, _int(master)) + info, _CREATE | _EXCL)

    def up(self, index: int) -> None:
        self._tell(_SETLINK, _link(index, up=True))

    def hairpin(self, index: int) -> None:
        """Let a bridge port send back to where a frame came from: with br_netfilter a container asks itself so."""
        mode = _attribute(_PROTINFO | _NESTED, _attribute(_BRPORT_MODE, b"\1"))
        self._tell(_SETLINK, _link(index, family=socket.AF_BRIDGE) + mode)

    def unplug(self, index: int) -> None:
        """Nothing comes or goes through a bridge port any more, and the bridge forgets who was behind it."""
        words = _attribute(_BRPORT_STATE, b"\0") + _attribute(_BRPORT_FLUSH, b"")  # BR_STATE_DISABLED
        self._tell(_SETLINK, _link(index, family=socket.AF_BRIDGE) + _attribute(_PROTINFO | _NESTED, words))

    def delete(self, name: str = "", group: int = 0) -> None:
        """Delete a link, or all of a group, in one step (each takes the kernel 20 ms); none is fine too."""
        which = _attribute(_IFNAME, _text(name)) if name else _attribute(_GROUP, _int(group))
        try:
            self._tell(_DELLINK, _link() + which)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def add_address(self, index: int, address: bytes, prefix: int) -> None:
        local = _attribute(1, address) + _attribute(2, address)  # IFA_ADDRESS, IFA_LOCAL
        body = struct.pack("=4BI", socket.AF_INET, prefix, 0, 0, index) + local
        self._tell(_NEWADDR, body, _CREATE | _EXCL)

    def add_default_route(self, gateway: bytes) -> None:
        main, boot, universe, unicast = 254, 3, 0, 1
        header = struct.pack("=8BI", socket.AF_INET, 0, 0, 0, main, boot, universe, unicast, 0)
        self._tell(_NEWROUTE, header + _attribute(5, gateway), _CREATE | _EXCL)  # RTA_GATEWAY


@contextlib.contextmanager
def inside(pid: int) -> Iterator[int]:
    """Stand in the network namespace of `pid` for the block; gives its fd. For a single-threaded process."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.setns(there, linux.CLONE_NEWNET)
            try:
                yield there
            finally:
                linux.setns(home, linux.CLONE_NEWNET)
        finally:
            os.close(there)
    finally:
        os.close(home)
