"""Both ends of a test's connections, run as a program so that they can stand in any network namespace.

networks.py shim ROOT FOLDER SETTINGS [STEP]   a shim in small: makes init, attaches it, prints what was given; a
                                               line on stdin ends init and detaches. STEP: die before the n-th one
networks.py serve PORT…                        answers tcp and udp with the address that asks
networks.py ask PROTOCOL HOST PORT             prints the answer, or why there is none
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from minirt import linux, userns
from minirt.errors import MinirtError
from minirt.runtime import network, state
from minirt.runtime.network import bridge, netlink, process, slirp

PATIENCE = 2.0  # seconds until an answer that does not come is none


def serve(numbers: list[int]) -> None:
    """Answer until killed."""
    poll, sockets = select.poll(), {}
    for number in numbers:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            one = socket.socket(socket.AF_INET, kind)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("0.0.0.0", number))
            if kind == socket.SOCK_STREAM:
                one.listen()
            poll.register(one, select.POLLIN)
            sockets[one.fileno()] = one
    print("ready", flush=True)
    while True:
        for fd, _ in poll.poll():
            if sockets[fd].type == socket.SOCK_STREAM:
                connection, (address, _) = sockets[fd].accept()
                with connection:
                    connection.settimeout(PATIENCE)
                    with contextlib.suppress(OSError):  # who asks has gone away
                        connection.recv(1)
                        connection.sendall(address.encode())
            else:
                _, peer = sockets[fd].recvfrom(100)
                sockets[fd].sendto(peer[0].encode(), peer)


def within(process: int, call: Callable[[], str]) -> str:
    """What `call` gives in a child of ours that stands in the network namespace of that process; empty if it fails."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            linux.setns(os.open(f"/proc/{process}/ns/net", os.O_RDONLY), linux.CLONE_NEWNET)
            os.write(write, call().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


def ask(process: int, host: str, port: int, protocol: str = "tcp", patience: float = PATIENCE) -> str:
    """The answer from there, or the kind of error."""
    return within(process, lambda: _ask(host, port, protocol, patience))


def _ask(host: str, port: int, protocol: str, patience: float) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    try:
        with socket.socket(family, kind) as one:
            one.settimeout(patience)
            one.connect((host, port))
            one.send(b"?")  # Debian 12's pasta gets stuck where a server speaks first
            return one.recv(100).decode() or "closed"
    except OSError as error:
        return type(error).__name__


def init(numbers: list[int], place: str) -> tuple[int, int]:
    """A process in network and pid namespaces of its own that serves; its pid here, and in the numbers of /proc.

    The network namespace at `place` is for it, if there is one. As the real one it may not be looked into.
    """
    ready, tell = os.pipe()
    linux.unshare(linux.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        if place:
            linux.setns(os.open(place, os.O_RDONLY), linux.CLONE_NEWNET)
        else:
            linux.unshare(linux.CLONE_NEWNET)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        os.dup2(tell, 1)
        os.close(tell)  # the test's own streams stay with the shim
        serve(numbers)
    os.close(tell)
    assert os.read(ready, 5), "init failed"
    pidfd = os.pidfd_open(pid)
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    return pid, next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))


def dying(step: int) -> None:
    """Die before the n-th change of anything outside of us, as by SIGKILL: nothing of ours runs any more."""
    left = [step]

    def watched(function):  # type: ignore[no-untyped-def]
        def call(*arguments, **options):  # type: ignore[no-untyped-def]
            left[0] -= 1
            if left[0] == 0:
                os._exit(137)
            return function(*arguments, **options)

        return call

    netlink.Netlink._tell = watched(netlink.Netlink._tell)  # type: ignore[method-assign]
    process.run = watched(process.run)
    state.write_json = watched(state.write_json)
    bridge._sysctl = watched(bridge._sysctl)


def shim(root: str, folder: str, settings: str, step: str = "0") -> None:
    """Stand as the real one does: root of a user namespace (plain user), pid 1 of a pid namespace, own mounts."""
    userns.become_root(userns.mapping())
    linux.unshare(linux.CLONE_NEWPID)
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_SLAVE)
    given = json.loads(settings)
    place = slirp.namespace(folder) if given["mode"] in ("pasta", "slirp4netns") else ""
    pid, machine_pid = init(given.pop("serve", [80]), place)
    if int(step):
        dying(int(step))
    begin = time.perf_counter()
    try:
        answer = network.attach(Path(root), Path(folder), machine_pid, given)
    except MinirtError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        os._exit(1)
    milliseconds = (time.perf_counter() - begin) * 1000
    own = os.readlink("/proc/self")
    print(json.dumps({**answer, "pid": machine_pid, "shim": int(own), "ms": milliseconds}), flush=True)
    sys.stdin.readline()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    begin = time.perf_counter()
    network.detach(Path(root), Path(folder))
    left = [entry for entry in os.listdir("/proc") if entry.isdigit() and _parent(entry) == own]
    print(json.dumps({"ms": (time.perf_counter() - begin) * 1000, "children": left}), flush=True)
    os._exit(0)


def _parent(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    except OSError:
        return ""


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "shim":
        shim(*rest)
    else:
        serve([int(word) for word in rest])
