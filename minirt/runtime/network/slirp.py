"""A network for plain users: a program of the user's that is the container's router, in user space.

    container eth0 ──tap──▶ pasta (or slirp4netns) ──the user's own sockets──▶ the network

No right over the machine's network is needed: the program stands in the machine's network namespace and holds the
other end of a tap device in the container's. pasta gives the container the machine's own addresses, slirp4netns a
network of its own (10.0.2.0/24). Neither is let through to the machine's loopback. Both confine themselves (seccomp,
an empty root). The program is a child of the shim in the shim's pid namespace: it cannot outlive it.
It finds the network namespace at a path, not in /proc/PID/ns: until an init is its command nobody may look into it (it
is not dumpable, and its memory was made outside of our user namespace, ptrace(2)), and pasta gives up most capabilities
first. So the shim makes the namespace (`namespace`), and the container joins it.
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


def _place(folder: str) -> str:
    """Where network namespaces lie: the one place where Debian's AppArmor profile lets pasta read them, if we can."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return f"{runtime if os.path.isdir(runtime) else folder}/netns"


def namespace(folder: str) -> str:
    """Make a network namespace; its path, in our mount namespace. For a single-threaded process. Raises StartError."""
    place = _place(folder)
    os.makedirs(place, mode=0o700, exist_ok=True)
    linux.mount("none", place, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, "mode=0700")
    open(f"{place}/minirt", "w").close()
    pid = os.fork()
    if pid == 0:
        try:
            linux.unshare(linux.CLONE_NEWNET)
            linux.mount("/proc/self/ns/net", f"{place}/minirt", None, linux.MS_BIND)
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise StartError("this machine refuses network namespaces: see `minirt doctor`")
    return f"{place}/minirt"


def forget(folder: str) -> None:
    """Its processes keep the namespace from now on."""
    place = _place(folder)
    linux.umount(place, linux.MNT_DETACH)
    if place.startswith(folder):
        os.rmdir(place)


def pasta(folder: str, published: Sequence[Publish]) -> int:
    """Start pasta for the container's network namespace; its own pid, once all is set up. Raises StartError."""
    words = [_program("pasta"), "--quiet", "--config-net", "--no-map-gw", "--ns-ifname", "eth0"]
    words += ["--netns", f"{_place(folder)}/minirt", "--no-netns-quit", "--pid", "/proc/self/fd/1"]
    for flag, protocol in (("-t", "tcp"), ("-u", "udp")):
        specs = [_spec(one) for one in published if one.protocol == protocol]
        words += [word for spec in specs or ["none"] for word in (flag, spec)]
    words += ["-T", "none", "-U", "none", "--dns-forward", names.PASTA_DNS]
    code, number, errors = process.run(words)
    if code:
        raise StartError(f"pasta: {_told(errors)}")
    return int(number)


def _spec(one: Publish) -> str:
    return (f"{one.host_ip}/" if one.host_ip else "") + f"{one.host_port}:{one.container_port}"


def slirp4netns(folder: str, published: Sequence[Publish]) -> int:
    """Start slirp4netns for the container's network namespace; its own pid, once all is set up. Raises StartError."""
    if any(":" in one.host_ip for one in published):
        raise StartError("slirp4netns publishes on IPv4 addresses only: give one, or install pasta (apt: passt)")
    _unlink(f"{folder}/slirp.sock")
    ready, tell = os.pipe()
    api = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # a socket's path must be short, unix(7)
    words = [_program("slirp4netns"), "--configure", "--mtu=65520", "--disable-host-loopback"]
    words += ["--enable-sandbox", "--enable-seccomp", f"--ready-fd={tell}"]
    words += ["--api-socket", f"/proc/self/fd/{api}/slirp.sock", "--netns-type=path"]
    words += [f"{_place(folder)}/minirt", "eth0"]
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
