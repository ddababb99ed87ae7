"""A network for plain users: a program of the user's that is the container's router, in user space.

    container eth0 ──tap──▶ pasta (or slirp4netns) ──the user's own sockets──▶ the network

No right over the machine's network is needed: the program stands in the machine's network namespace and holds the
other end of a tap device in the container's. pasta gives the container the machine's own addresses, slirp4netns a
network of its own (10.0.2.0/24). Neither is let through to the machine's loopback. Both confine themselves (seccomp,
an empty root). The program is a child of the shim in the shim's pid namespace: it cannot outlive it.
Sources: pasta(1), slirp4netns(1). Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Sequence

from minirt import linux
from minirt.errors import StartError
from minirt.runtime.network import names, process
from minirt.runtime.network.ports import Publish

_ADDRESS = "10.0.2.100"  # what slirp4netns --configure gives


def pasta(folder: str, pid: int, published: Sequence[Publish]) -> int:
    """Start pasta for the network namespace of `pid`; its own pid, once all is set up. Raises StartError."""
    record, namespace = f"{folder}/pasta.pid", f"{folder}/netns"
    words = [_program("pasta"), "--quiet", "--config-net", "--no-map-gw", "--ns-ifname", "eth0", "--pid", record]
    for flag, protocol in (("-t", "tcp"), ("-u", "udp")):
        specs = [_spec(one) for one in published if one.protocol == protocol]
        words += [word for spec in specs or ["none"] for word in (flag, spec)]
    words += ["-T", "none", "-U", "none", "--dns-forward", names.PASTA_DNS]
    # pasta gives up most capabilities first, and may not look into /proc of one that has them: so by another path.
    open(namespace, "w").close()
    linux.mount(f"/proc/{pid}/ns/net", namespace, None, linux.MS_BIND)
    try:
        code, _, errors = process.run([*words, "--netns", namespace, "--no-netns-quit"])
    finally:
        linux.umount(namespace, linux.MNT_DETACH)
        os.unlink(namespace)
    if code:
        raise StartError(f"pasta: {_told(errors)}")
    with open(record, encoding="ascii") as file:
        started = int(file.read())
    os.unlink(record)
    return started


def _spec(one: Publish) -> str:
    return (f"{one.host_ip}/" if one.host_ip else "") + f"{one.host_port}:{one.container_port}"


def slirp4netns(folder: str, pid: int, published: Sequence[Publish]) -> int:
    """Start slirp4netns for the network namespace of `pid`; its own pid, once all is set up. Raises StartError."""
    if any(":" in one.host_ip for one in published):
        raise StartError("slirp4netns publishes on IPv4 addresses only: give one, or install pasta (apt: passt)")
    _unlink(f"{folder}/slirp.sock")
    ready, tell = os.pipe()
    api = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # a socket's path must be short, unix(7)
    words = [_program("slirp4netns"), "--configure", "--mtu=65520", "--disable-host-loopback"]
    words += ["--enable-sandbox", "--enable-seccomp", f"--ready-fd={tell}"]
    words += ["--api-socket", f"/proc/self/fd/{api}/slirp.sock", str(pid), "eth0"]
    started, out, errors = process.start(words, keep=(tell, api))
    os.close(tell)
    try:
        if not os.read(ready, 1):
            raise StartError(f"slirp4netns: {_told(os.pread(errors, 1 << 16, 0).decode(errors='replace'))}")
        for one in published:
            _forward(f"/proc/self/fd/{api}/slirp.sock", one)
    except BaseException:
        stop(started)
        raise
    finally:
        for fd in (ready, api, out, errors):
            os.close(fd)
        _unlink(f"{folder}/slirp.sock")
    return started


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _forward(path: str, one: Publish) -> None:
    arguments = {
        "proto": one.protocol, "host_addr": one.host_ip or "0.0.0.0", "host_port": int(one.host_port),
        "guest_addr": _ADDRESS, "guest_port": one.container_port,
    }  # fmt: skip
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(json.dumps({"execute": "add_hostfwd", "arguments": arguments}).encode())
        client.shutdown(socket.SHUT_WR)
        answer = json.loads(client.makefile("rb").read() or b"{}")
    if "return" not in answer:
        raise StartError(f"slirp4netns: {one.key}: {answer.get('error', {}).get('desc', 'no answer')}")


def stop(pid: int) -> None:
    """End a program that this process started, and reap it."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _program(name: str) -> str:
    path = process.find(name)
    if path is None:
        raise StartError(f"{name} is not installed: sudo apt install {'passt' if name == 'pasta' else name}")
    return path


def _told(errors: str) -> str:
    """What the program said, without its complaints about a missing syslog."""
    lines = [line.strip() for line in errors.splitlines() if line.strip() and "syslog" not in line]
    return "; ".join(lines)[-300:] or "it ended without a word"
