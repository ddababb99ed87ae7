"""The three files a runtime lays into a container's /etc: resolv.conf, hosts, hostname, as docker writes them.

Docker's default bridge knows no container's name, so all there is to say is which name servers answer. One on the
machine's loopback cannot be reached from another network namespace: docker leaves those out, and where none is left
takes two public ones. Sources: resolv.conf(5), hosts(5), moby libnetwork resolvconf and etchosts. Chapter 08.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

PASTA_DNS, SLIRP_DNS = "169.254.1.1", "10.0.2.3"  # where these two answer, and ask the machine's own name server
_PUBLIC = ("8.8.8.8", "8.8.4.4")
_RESOLVED = "/run/systemd/resolve/resolv.conf"  # whom systemd-resolved, at 127.0.0.53, asks
_HOSTS = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def write_files(
    folder: str | os.PathLike[str], mode: str, hostname: str, dns: Sequence[str] = (), dns_search: Sequence[str] = (),
    dns_option: Sequence[str] = (), extra_hosts: Sequence[str] = (), etc: str | os.PathLike[str] = "/etc",
) -> None:  # fmt: skip
    """Write them for network `mode` into the container's folder; `extra_hosts` are docker's `name:address`.

    On a bridge `attach` completes hosts, when the container has its address; `etc` is the machine's.
    """
    _write(f"{folder}/resolv.conf", _resolver(mode, dns, dns_search, dns_option, f"{etc}/resolv.conf"))
    _write(f"{folder}/hostname", f"{hostname}\n")
    write_hosts(folder, mode, hostname, extra_hosts, etc=etc)


def write_hosts(
    folder: str | os.PathLike[str], mode: str, hostname: str, extra: Sequence[str] = (), address: str = "",
    gateway: str = "", etc: str | os.PathLike[str] = "/etc",
) -> None:  # fmt: skip
    """hosts alone; `gateway` is what `host-gateway` stands for: lines that name it wait until it is known."""
    text = _read(f"{etc}/hosts") if mode == "host" and not extra else _HOSTS
    for entry in extra:
        name, _, place = entry.partition(":")
        place = gateway if place == "host-gateway" else place.strip("[]")
        text += f"{place}\t{name}\n" if place else ""
    if not address and mode in ("none", "pasta", "slirp4netns"):
        address = "127.0.1.1"  # docker gives a name without an address no line; then it does not resolve
    text += f"{address}\t{hostname}\n" if hostname and address else ""
    _write(f"{folder}/hosts", text)


def _resolver(mode: str, dns: Sequence[str], search: Sequence[str], options: Sequence[str], path: str) -> str:
    lines = _read(path).splitlines(keepends=True)
    given = bool(dns or search or options)
    if mode == "host" and not given:
        return "".join(lines)
    if mode != "host" and all(map(_on_loopback, _values(lines, "nameserver"))) and path == "/etc/resolv.conf":
        lines = _read(_RESOLVED).splitlines(keepends=True) or lines
    servers = [server for server in _values(lines, "nameserver") if mode == "host" or not _on_loopback(server)]
    if mode in ("bridge", "none"):
        servers = [server for server in servers if mode == "none" or ":" not in server] or list(_PUBLIC)
    elif mode == "pasta":
        servers = servers or [PASTA_DNS]
    elif mode == "slirp4netns":
        servers = [SLIRP_DNS]
    if not given:
        others = [line for line in lines if line.split()[:1] != ["nameserver"]]
        return "".join(others) + "".join(f"nameserver {server}\n" for server in servers)
    search = [*search] or [name for value in _values(lines, "search") for name in value.split()]
    options = [*options] or [name for value in _values(lines, "options") for name in value.split()]
    text = f"search {' '.join(search)}\n" if search and list(search) != ["."] else ""
    text += "".join(f"nameserver {server}\n" for server in dns or servers)
    return text + (f"options {' '.join(options)}\n" if options else "")


def _values(lines: Sequence[str], key: str) -> list[str]:
    split = [line.split(None, 1) for line in lines]
    return [words[1].strip() for words in split if len(words) == 2 and words[0] == key]


def _on_loopback(server: str) -> bool:
    return server.startswith("127.") or server == "::1"


def _read(path: str) -> str:
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
    return ""


def _write(path: str, text: str) -> None:
    """In place: the file may be mounted in the container already. Its users read it, whatever our umask."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.chmod(path, 0o644)
