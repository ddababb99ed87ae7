"""The bridge's nft table: what is translated, what passes, and the two rules that other firewalls need to hear.

nft changes a table as one step or not at all. What is added is quick; what is taken away waits until no packet looks
at it any more (about 20 ms), so a start only adds. Sources: nft(8); netfilter hooks and priorities; CVE-2020-8558.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Iterable

from minirt.errors import StartError
from minirt.runtime.network import process
from minirt.runtime.network.ports import Publish

_TABLE = """
create table ip {name}
table ip {name} {{
 map anywhere {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
 map at {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
 chain loopback {{
  type filter hook prerouting priority raw;
  iifname "{name}" ip daddr 127.0.0.0/8 drop
 }}
 chain published {{
  dnat ip to ip daddr . meta l4proto . th dport map @at
  dnat ip to meta l4proto . th dport map @anywhere
 }}
 chain arriving {{
  type nat hook prerouting priority -100;
  fib daddr type local ip daddr != 127.0.0.0/8 jump published
 }}
 chain own {{
  type nat hook output priority -100;
  fib daddr type local jump published
 }}
 chain leaving {{
  type nat hook postrouting priority 100;
  ip saddr {subnet} oifname != "{name}" masquerade
  ip saddr 127.0.0.0/8 oifname "{name}" masquerade
  ip saddr {subnet} oifname "{name}" ct status dnat masquerade
 }}
 chain passing {{
  type filter hook forward priority 0;
  ct state established,related accept
  ct status dnat accept
  iifname != "{name}" oifname "{name}" drop
  iifname "{name}" oifname != {{ {ways_out} }} meta oifkind "bridge" drop
 }}
}}
"""
_LIST = "list chains ip\n"  # what every change ends with: shows our table, and those of iptables


def run(text: str) -> str:
    """Have nft do it all; what it prints. Raises StartError."""
    path = process.find("nft")
    if path is None:
        raise StartError("a bridge needs nft: sudo apt install nftables, or use --network none or host")
    code, out, error = process.run([path, "-a", "-f", "-"], text)
    if code:
        line = next(iter(error.strip().splitlines()), f"exit status {code}")
        raise StartError(f"nft refused the bridge's rules: {line[:200]}")
    return out


def generation() -> int | None:
    """A number that every change of nft's rules in this network namespace raises; None where the kernel does not say.

    Source: nfnetlink of the kernel, NFT_MSG_GETGEN (linux/netfilter/nf_tables.h).
    """
    netfilter, get, answer, request = 12, 10 << 8 | 16, 10 << 8 | 15, 1
    with contextlib.suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netfilter) as line:
        line.send(struct.pack("=IHHIIBBH", 20, get, request, 0, 0, 0, 0, 0))
        data = line.recv(4096)
        if len(data) >= 28 and struct.unpack_from("=H", data, 4) == (answer,):
            return int.from_bytes(data[24:28], "big")  # its first attribute, NFTA_GEN_ID
    return None


def exists(name: str) -> bool:
    """Whether the bridge has its table."""
    return f"table ip {name}\n" in run("list tables ip\n")


def make(name: str, subnet: str, way_out: str, rows: Iterable[tuple[str, Iterable[Publish]]]) -> None:
    """The table, in place of what there is of that name. `rows`: containers' addresses and ports."""
    ways = ", ".join(f'"{device}"' for device in (name, way_out) if device)
    text = _TABLE.format(name=name, subnet=subnet, ways_out=ways)
    text += "".join(_elements("add", name, address, published) for address, published in rows)
    try:
        listing = run(text + _LIST)
    except StartError:
        if not exists(name):
            raise
        listing = run(f"delete table ip {name}\n{text}{_LIST}")
    _join_others(name, listing)


def add(name: str, address: str, published: Iterable[Publish]) -> bool:
    """Translate a container's ports; False where the table is gone (somebody flushed all rules) or differs."""
    try:
        listing = run(_elements("add", name, address, published) + _LIST)
    except StartError:
        return False
    if f"table ip {name} {{" not in listing:
        return False
    _join_others(name, listing)
    return True


def remove(name: str, published: Iterable[Publish]) -> bool:
    """Translate these no longer; False where one was not there."""
    try:
        run(_elements("delete", name, "", published))
    except StartError:
        return False
    return True


def clear(name: str) -> None:
    """Take away the table, and our rules in the chains of others."""
    try:
        listing = run(f"delete table ip {name}\n{_LIST}")
    except StartError:
        listing = run(_LIST)  # it was not there
    for chain in _others(listing):
        for line in run(f"list chain ip filter {chain}\n").splitlines():
            if found := re.search(rf'[io]ifname "{name}" .*# handle (\d+)', line):
                run(f"delete rule ip filter {chain} handle {found[1]}\n")


def _elements(verb: str, name: str, address: str, published: Iterable[Publish]) -> str:
    lines = []
    for one in published:
        place = "" if one.host_ip in ("", "0.0.0.0") else one.host_ip
        key = (f"{place} . " if place else "") + f"{one.protocol} . {one.host_port}"
        value = f" : {address} . {one.container_port}" if verb == "add" else ""
        lines.append(f"{verb} element ip {name} {'at' if place else 'anywhere'} {{ {key}{value} }}\n")
    return "".join(lines)


def _others(listing: str) -> list[str]:
    """The chains of iptables that may drop what our bridge forwards: docker's place for such rules, and the first."""
    _, _, table = listing.partition("table ip filter {\n")
    names = re.findall(r"^\tchain (\S+) {", table.partition("\n}")[0], re.MULTILINE)
    return [name for name in ("DOCKER-USER", "FORWARD") if name in names]


def _join_others(name: str, listing: str) -> None:
    """Have iptables' forward chain let us through; what may pass, our own table decides."""
    for chain in _others(listing)[:1]:
        there = run(f"list chain ip filter {chain}\n")
        for way in (f'iifname "{name}"', f'oifname "{name}"'):
            if f"{way} counter" not in there:
                run(f"insert rule ip filter {chain} {way} counter accept\n")
