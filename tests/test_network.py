"""Networks of containers, in a machine of the tests' own: a network namespace, with another beside it as "the LAN".

`networks.py` plays the shim (standing where the real one stands) and its container's command; packets are real.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import networks
import pytest
import users
from dockerd import Dockerd
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import require

from minirt.errors import InvalidInput, MinirtError, Unsupported
from minirt.runtime import network
from minirt.runtime.network import bridge, names, ports
from minirt.runtime.network.ports import Publish
from minirt.userns import IdMapping

PROGRAM = str(Path(__file__).with_name("networks.py"))
MACHINE, LAN = "198.51.100.1", "198.51.100.2"  # RFC 5737


class Shim:
    """A running `networks.py shim`; `answer` is what attach gave."""

    def __init__(self, words: list[str]) -> None:
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": _TOP}
        )

    def ready(self) -> Shim:
        """Once it has attached."""
        assert "error" not in self.answer, self.answer
        return self

    @property
    def answer(self) -> dict[str, Any]:
        if not hasattr(self, "_answer"):
            assert self.process.stdout
            self._answer = json.loads(self.process.stdout.readline() or '{"died": true}')
        return dict(self._answer)

    def end(self) -> dict[str, Any]:
        """End the container; what its shim says after detach. Fails where that left a child."""
        out, _ = self.process.communicate("\n", timeout=20)
        return dict(json.loads(out.splitlines()[-1])) if out else {}

    def kill(self) -> None:
        """SIGKILL for the shim, as a crash would."""
        os.kill(self.answer["shim"], signal.SIGKILL)
        self.process.wait(10)


_TOP = str(Path(__file__).parent.parent)


@dataclass
class Lab:
    """`machine` and `lan` are pids in whose network namespaces things happen."""

    machine: int
    lan: int
    root: Path
    shims: list[Shim] = field(default_factory=list)
    before: tuple[str, ...] = ()
    program: tuple[str, ...] = (sys.executable, "-B", PROGRAM)

    def at(self, pid: int, *words: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{pid}/ns/net", *words]

    def run(self, pid: int, *words: str) -> str:
        result = subprocess.run(self.at(pid, *words), capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{words}: {result.stderr}"
        return result.stdout

    def start(self, name: str, publish: str = "", step: int = 0, mode: str = "bridge", **more: Any) -> Shim:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        rows = [one.to_json() for one in ports.parse_publish(publish.split())]
        text = json.dumps({"mode": mode, "publish": rows, "hostname": name, **more})
        words = [*self.before, *self.program, "shim", str(self.root), str(folder), text, str(step)]
        self.shims.append(Shim(self.at(self.machine, *words)))
        return self.shims[-1]

    def silent(self, pid: int, host: str, port: int) -> bool:
        """Whether no answer comes, not even a refusal."""
        return networks.ask(pid, host, port, patience=0.3) == "TimeoutError"

    def ask(self, pid: int, host: str, port: str | int, protocol: str = "tcp") -> str:
        return networks.ask(pid, host, int(port), protocol)

    @contextlib.contextmanager
    def serving(self, pid: int, port: int) -> Iterator[None]:
        words = self.at(pid, sys.executable, "-B", PROGRAM, "serve", str(port))
        server = subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": _TOP})
        try:
            assert server.stdout and server.stdout.readline() == b"ready\n"
            yield
        finally:
            server.kill()
            server.communicate()

    def python(self, script: str) -> Any:
        """What `script` assigns to `out`, run in the machine."""

        def call() -> str:
            names: dict[str, Any] = {"network": network, "root": self.root}
            exec(script, names)
            return json.dumps(names["out"])

        return json.loads(networks.within(self.machine, call))

    def left(self) -> tuple[list[str], str]:
        """Links beside the lab's own, and nft's tables, once the kernel has taken unplugged cables away."""

        def links() -> list[dict[str, Any]]:
            return list(json.loads(self.run(self.machine, "ip", "-j", "-d", "link")))

        def unplugged(link: dict[str, Any]) -> bool:
            port = link.get("linkinfo", {}).get("info_slave_data") or {}
            return port.get("state") == "disabled"

        until(lambda: not any(map(unplugged, links())))
        return [link["ifname"] for link in links() if link["ifname"] not in ("lo", "eth0", "docker0")], self.run(
            self.machine, "nft", "list", "tables"
        )


@contextlib.contextmanager
def namespace() -> Iterator[int]:
    words = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--net",
        "sh",
        "-c",
        "ip link set lo up; echo; exec sleep 600",
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        assert process.stdout and process.stdout.readline() == b"\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def laboratory(machine: int, root: Path) -> Iterator[Lab]:
    """Connect the machine to a LAN of one other host."""
    for tool in ("ip", "nft", "nsenter", "unshare", "setpriv"):
        require(tool)
    with namespace() as lan:
        lab = Lab(machine, lan, root)
        lab.run(machine, *f"ip link add eth0 mtu 1400 type veth peer name eth0 netns {lan}".split())
        for pid, address in (machine, MACHINE), (lan, LAN):
            lab.run(pid, *f"ip addr add {address}/24 dev eth0".split())
            lab.run(pid, *["ip", "link", "set", "eth0", "up"])
        lab.run(machine, *f"ip route add default via {LAN}".split())
        try:
            yield lab
        finally:
            for shim in lab.shims:
                shim.process.kill()
                shim.process.communicate()
            lab.run(machine, *["ip", "link", "del", "eth0"])


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("a bridge needs root")
    with namespace() as machine, laboratory(machine, tmp_path / "root") as made:
        yield made


def until(ready: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_containers_on_the_bridge_reach_each_other_and_the_lan(lab: Lab) -> None:
    first = lab.start("first", exposed=["80/tcp"], extra_hosts=["db:10.1.1.1", "gate:host-gateway"]).answer
    second = lab.start("second").answer
    subnet = first["IPAddress"].rpartition(".")[0]
    assert (first["IPAddress"], second["IPAddress"]) == (f"{subnet}.2", f"{subnet}.3")
    assert (first["Gateway"], first["IPPrefixLen"]) == (f"{subnet}.1", 16)
    assert first["MacAddress"] == "02:42:" + bytes(map(int, first["IPAddress"].split("."))).hex(":")
    assert first["Ports"] == {"80/tcp": None}
    assert lab.ask(first["pid"], second["IPAddress"], 80) == first["IPAddress"]
    with lab.serving(lab.lan, 7000), lab.serving(lab.machine, 7001):
        for protocol in ("tcp", "udp"):
            assert lab.ask(second["pid"], LAN, 7000, protocol) == MACHINE  # masqueraded
            assert lab.ask(second["pid"], second["Gateway"], 7001, protocol) == second["IPAddress"]
    inside = json.loads(lab.run(first["pid"], "ip", "-j", "addr"))
    assert {link["ifname"]: link["mtu"] for link in inside} == {"lo": 65536, "eth0": 1400}
    assert [one["family"] for link in inside for one in link["addr_info"]] == ["inet", "inet"]  # docker's has no IPv6
    lines = (lab.root / "first" / "hosts").read_text().splitlines()[-3:]
    assert lines == ["10.1.1.1\tdb", f"{subnet}.1\tgate", f"{subnet}.2\tfirst"]
    assert json.loads((lab.root / "first" / network.STATE).read_text())["IPAddress"] == first["IPAddress"]
    # A neighbour that routes to the container's network gets nowhere.
    lab.run(lab.lan, *f"ip route add {subnet}.0/16 via {MACHINE}".split())
    assert lab.silent(lab.lan, first["IPAddress"], 80)
    assert lab.ask(lab.machine, first["IPAddress"], 80) == first["Gateway"]
    for shim in lab.shims:
        assert lab.left()[0] != []
        assert shim.end()["children"] == []
    assert lab.left() == ([], "") and not (lab.root / "network.json").exists()


def test_roots_that_begin_at_once_take_different_subnets(lab: Lab) -> None:
    labs = [replace(lab, root=lab.root / str(number), shims=lab.shims) for number in range(8)]
    shims = [each.start("one") for each in labs]
    assert len({shim.ready().answer["Gateway"] for shim in shims}) == len(labs)
    for shim in shims:
        shim.end()
    assert lab.left() == ([], "")


@pytest.mark.parametrize("bridged", ["0", "1"], ids=["routed", "br_netfilter"])
def test_published_ports_answer_everywhere_they_should(lab: Lab, bridged: str) -> None:
    with contextlib.suppress(AssertionError):  # without br_netfilter both are the same test
        lab.run(lab.machine, "sysctl", "-qw", f"net.bridge.bridge-nf-call-iptables={bridged}")
    web = lab.start("web", "8080:80 8080:80/udp 127.0.0.1:8081:80 80").answer
    other = lab.start("other").answer
    assert web["Ports"]["80/udp"] == [{"HostIp": "0.0.0.0", "HostPort": "8080"}]
    *_, chosen = web["Ports"]["80/tcp"]
    assert web["Ports"]["80/tcp"][:2] == [
        {"HostIp": "0.0.0.0", "HostPort": "8080"},
        {"HostIp": "127.0.0.1", "HostPort": "8081"},
    ]
    assert lab.ask(lab.lan, MACHINE, chosen["HostPort"]) == LAN
    for protocol in ("tcp", "udp"):
        assert lab.ask(lab.lan, MACHINE, 8080, protocol) == LAN  # the container sees who asks
        assert lab.ask(lab.machine, "127.0.0.1", 8080, protocol) == web["Gateway"]
        assert lab.ask(lab.machine, MACHINE, 8080, protocol) == MACHINE
        assert lab.ask(other["pid"], MACHINE, 8080, protocol) == web["Gateway"]
        assert lab.ask(web["pid"], MACHINE, 8080, protocol) == web["Gateway"]  # hairpin
    assert lab.ask(lab.machine, "127.0.0.1", 8081) == web["Gateway"]
    assert lab.ask(lab.lan, MACHINE, 8081) == "ConnectionRefusedError"
    assert lab.ask(other["pid"], MACHINE, 8081) == "ConnectionRefusedError"


def test_the_machines_loopback_is_closed_to_others(lab: Lab) -> None:
    """CVE-2020-8558: neither a container nor a neighbour that sends packets to 127.0.0.1 over the wire gets there."""
    web = lab.start("web", "127.0.0.1:8081:80").answer
    for pid, gateway in (web["pid"], web["Gateway"]), (lab.lan, MACHINE):
        lab.run(pid, *["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"])
        lab.run(pid, *["ip", "addr", "del", "127.0.0.1/8", "dev", "lo"])
        lab.run(pid, *f"ip route add 127.0.0.1/32 via {gateway}".split())
    with lab.serving(lab.machine, 7001):
        for port in (7001, 8081):
            assert lab.ask(lab.machine, "127.0.0.1", port) in ("127.0.0.1", web["Gateway"])
            for pid in (web["pid"], lab.lan):
                assert lab.silent(pid, "127.0.0.1", port)


def test_a_published_port_is_taken(lab: Lab) -> None:
    lab.start("first", "8080:80 9000-9001:80/udp").ready()
    assert lab.start("second", "8080:80").answer == {"error": "Bind for 0.0.0.0:8080 failed: port is already allocated"}
    assert lab.start("third", "9000-9001:80/udp").answer["Ports"] == {
        "80/udp": [{"HostIp": "0.0.0.0", "HostPort": "9001"}]
    }
    # others are refused it too
    code = "import socket; socket.create_server(('0.0.0.0', 8080))"
    words = lab.at(lab.machine, sys.executable, "-c", code)
    assert "Address already in use" in subprocess.run(words, capture_output=True, text=True).stderr
    with lab.serving(lab.machine, 8090):
        for protocol in ("tcp", "udp"):
            answer = lab.start("fourth", f"9010:80 8090:80/{protocol}").answer
            assert answer == {"error": f"listen {protocol} 0.0.0.0:8090: bind: address already in use"}
    wrong = lab.start("fourth", "203.0.113.7:80:80").answer["error"]
    assert wrong == "listen tcp 203.0.113.7:80: bind: cannot assign requested address"
    assert "IPv4" in lab.start("fourth", "[::1]:80:80").answer["error"]
    # all or nothing: the port before the refused one is free again, and nothing of the refused ones stays
    assert "error" not in lab.start("fourth", "9010:80").answer
    assert len(lab.left()[0]) == 1 + 3 and lab.python("out = network.leftovers(root)") == []


def test_a_restarted_container_has_its_ports_again(lab: Lab) -> None:
    for _ in range(2):
        shim = lab.start("web", "8080:80").ready()
        assert lab.ask(lab.lan, MACHINE, 8080) == LAN and shim.answer["IPAddress"].endswith(".2")
        shim.end()


@pytest.mark.slow
def test_twenty_at_once(lab: Lab) -> None:
    answers = [shim.answer for shim in [lab.start(f"c{number}", "80") for number in range(20)]]
    assert len({answer["IPAddress"] for answer in answers}) == 20
    assert len({answer["Ports"]["80/tcp"][0]["HostPort"] for answer in answers}) == 20
    assert len(lab.left()[0]) == 21
    for shim in lab.shims:
        shim.process.communicate("\n", timeout=60)
    assert lab.left() == ([], "")


@pytest.mark.slow
def test_a_crash_at_any_step_leaves_what_clean_takes_away(lab: Lab) -> None:
    """The shim dies before its first, second, … change; a neighbour starts over the remains, or clean removes them."""
    found, step = set(), 0
    while True:
        step += 1
        shim = lab.start("victim", "8080:80", step=step)
        if "IPAddress" in shim.answer:
            break
        assert shim.process.wait(10) == 137
        assert not step % 2 or lab.start("next", "8080:80").end()["children"] == []
        found |= set(lab.python("out = network.clean(root)"))
        assert lab.python("out = network.leftovers(root)") == [] and lab.left() == ([], "")
    assert step > 10 and {row.split()[1] for row in found} >= {"address", "bridge", "subnet", "nft"}
    shim.kill()
    until(lambda: len(lab.python("out = network.leftovers(root)")) >= 4)
    assert lab.python("out = network.clean(root)") and lab.left() == ([], "")


def test_a_killed_shims_ports_are_free_for_the_next(lab: Lab) -> None:
    keeper = lab.start("keeper", "8070:80").answer
    lab.start("killed", "8080:80").kill()
    again = lab.start("again", "8080:80").answer
    assert again["IPAddress"].endswith(".3") and lab.ask(lab.lan, MACHINE, 8080) == LAN
    assert lab.ask(lab.lan, MACHINE, 8070) == LAN and lab.ask(keeper["pid"], again["IPAddress"], 80)
    assert len(lab.left()[0]) == 3


def test_flushed_rules_come_back_with_the_next_start(lab: Lab) -> None:
    lab.start("first", "8080:80").ready()
    lab.run(lab.machine, "nft", "flush", "ruleset")
    lab.start("second", "8090:80").ready()
    assert lab.ask(lab.lan, MACHINE, 8080) == lab.ask(lab.lan, MACHINE, 8090) == LAN


def test_a_keeper_has_the_bridge_between_two_containers(lab: Lab) -> None:
    lab.root.mkdir(parents=True)
    bridge.keep(str(lab.root))  # this very process, as a daemon does
    lab.start("first", "8080:80").ready()
    lab.shims.pop().end()
    links, tables = lab.left()
    assert len(links) == 1 and lab.python("out = network.leftovers(root)") == []
    first = lab.start("second", "8080:80").ready()
    assert lab.ask(lab.lan, MACHINE, 8080) == LAN and set(links) < set(lab.left()[0])
    lab.shims.pop().end()
    assert first.answer["IPAddress"].endswith(".0.2") and lab.left() == (links, tables)
    lab.run(lab.machine, "nft", "flush", "ruleset")  # nobody tells us
    lab.start("third").ready()
    assert lab.left()[1] == tables
    lab.shims.pop().end()
    assert lab.python("network.let_go(root); out = network.leftovers(root)") == [] and lab.left() == ([], "")


def test_a_cable_whose_namespace_goes_on_is_dead_at_once_and_gone_later(lab: Lab) -> None:
    """Another container has joined it, say. Its address may be the next one's, and nothing of that reaches it."""
    lab.root.mkdir(parents=True)
    bridge.keep(str(lab.root))
    lab.start("stays")
    first = lab.start("first").ready().answer
    stays = subprocess.Popen(lab.at(first["pid"], "sleep", "60"))
    until(lambda: os.readlink(f"/proc/{stays.pid}/ns/net") == os.readlink(f"/proc/{first['pid']}/ns/net"))
    with lab.serving(stays.pid, 7000), lab.serving(lab.machine, 7001):
        assert lab.ask(lab.machine, first["IPAddress"], 7000) == first["Gateway"]
        lab.shims.pop().end()
        assert lab.silent(stays.pid, first["Gateway"], 7001)
        second = lab.start("second").ready().answer
        assert second["IPAddress"] == first["IPAddress"] and second["MacAddress"] == first["MacAddress"]
        # It has sent nothing yet, and is found: who had its address before is forgotten.
        assert lab.ask(lab.machine, second["IPAddress"], 80) == first["Gateway"]
        assert lab.ask(second["pid"], first["Gateway"], 7001) == second["IPAddress"]
        time.sleep(1.0)
        assert "eth0" in lab.run(stays.pid, "ip", "link")
        lab.start("third").ready()
        assert "eth0" not in lab.run(stays.pid, "ip", "link")
    stays.kill()
    stays.wait()
    while lab.shims:
        lab.shims.pop().end()
    lab.python("network.let_go(root); out = 0")


@pytest.mark.parametrize("gone", [False, True])
def test_the_bridge_of_a_keeper_that_was_killed(lab: Lab, gone: bool) -> None:
    """It is a leftover, unless another keeps it; where the root folder is gone, who ends takes the bridge away."""
    lab.root.mkdir(parents=True)
    bridge.keep(str(lab.root))
    lab.start("first").ready()
    lab.shims.pop().end()
    if gone:
        shutil.rmtree(lab.root)
        lab.python("network.let_go(root); out = 0")
    else:
        keeper = json.loads((lab.root / "network-keeper.json").read_text())
        (lab.root / "network-keeper.json").write_text(json.dumps(keeper | {"start_time": 1}))
        found = lab.python("out = network.leftovers(root)")
        assert any("bridge" in line for line in found) and any("nft table" in line for line in found)
        lab.python("out = network.clean(root)")
    assert lab.left() == ([], "")


def test_the_subnet_collides_with_no_route(lab: Lab) -> None:
    subnet = lab.start("first").answer["IPAddress"].rpartition(".")[0] + ".0"
    lab.shims.pop().end()
    lab.run(lab.machine, *f"ip route add {subnet.replace('.0.0', '.9.0')}/24 via {LAN}".split())
    assert lab.start("first").answer["IPAddress"].rpartition(".")[0] + ".0" != subnet
    lab.shims.pop().end()
    for wide in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"):
        lab.run(lab.machine, *f"ip route add {wide} via {LAN}".split())
    assert "no private network is free" in lab.start("first").answer["error"]
    assert lab.left() == ([], "")


def test_forwarding_that_was_off_is_told(lab: Lab) -> None:
    lab.run(lab.machine, "sysctl", "-qw", "net.ipv4.ip_forward=0")
    assert "net.ipv4.ip_forward" in lab.start("first").answer["warnings"][0]
    assert lab.start("second").answer["warnings"] == []


@pytest.mark.slow
def test_beside_docker(dockerd: Dockerd, tmp_path: Path) -> None:
    """dockerd has iptables drop what it does not know: we get through, and its rules are again as they were."""
    machine = dockerd.process.pid
    with laboratory(machine, tmp_path / "root") as lab:
        # dockerd sets this itself where it turns forwarding on; in a new namespace here it is on already
        lab.run(machine, "iptables", "-P", "FORWARD", "DROP")
        before = lab.run(machine, "iptables-save", "-t", "filter")
        web, other = lab.start("web", "8080:80").answer, lab.start("other").answer
        with lab.serving(lab.lan, 7000):
            assert lab.ask(web["pid"], LAN, 7000) == MACHINE
        assert lab.ask(lab.lan, MACHINE, 8080) == LAN
        assert lab.ask(other["pid"], MACHINE, 8080) == web["Gateway"]
        assert lab.run(machine, "iptables-save", "-t", "filter").count("minirt") == 2
        # A container of docker's network and ours do not see each other.
        with namespace() as theirs:
            lab.run(machine, *f"ip link add v0 master docker0 type veth peer name eth0 netns {theirs}".split())
            lab.run(machine, *["ip", "link", "set", "v0", "up"])
            gateway = json.loads(lab.run(machine, "ip", "-j", "addr", "show", "docker0"))[0]["addr_info"][0]["local"]
            address = gateway.rpartition(".")[0] + ".99"
            for words in (f"addr add {address}/16 dev eth0", "link set eth0 up", f"route add default via {gateway}"):
                lab.run(theirs, "ip", *words.split())
            with lab.serving(theirs, 80):
                until(lambda: lab.ask(machine, address, 80) == gateway)
                assert lab.silent(web["pid"], address, 80)
                assert lab.silent(theirs, web["IPAddress"], 80)
                assert lab.ask(theirs, MACHINE, 8080) == web["Gateway"]  # docker masquerades it
        for shim in lab.shims:
            shim.end()
        assert lab.left()[0] == [] and "minirt" not in lab.left()[1]
        rules = [line for line in before.splitlines() if line[:1] not in "#:"]
        after = lab.run(machine, "iptables-save", "-t", "filter").splitlines()
        assert [line for line in after if line[:1] not in "#:"] == rules
        lab.run(machine, "iptables", "-P", "FORWARD", "ACCEPT")


@pytest.fixture(scope="module")
def plain() -> Iterator[users.User]:
    with users.plain_user(subuids=False) as user:
        yield user


@pytest.fixture
def plain_lab(lab: Lab, plain: users.User) -> Iterator[Lab]:
    """A lab whose shims are a plain user's, on a machine where everybody may open /dev/net/tun, as is usual."""
    devices = Path(tempfile.mkdtemp(dir="/tmp"))
    script = f"mount -t tmpfs none {devices} && mknod -m 666 {devices}/tun c 10 200 && "
    script += f"mount --bind {devices}/tun /dev/net/tun && echo nameserver 127.0.0.1 > {devices}/resolv.conf && "
    script += (
        f"mount --bind {devices}/resolv.conf /etc/resolv.conf && exec setpriv --reuid {plain.uid} --regid {plain.gid} "
    )
    script += f'--clear-groups env PYTHONPATH={plain.home} HOME={plain.home} "$@"'
    lab.before = ("unshare", "--mount", "sh", "-c", script, "sh")
    lab.program = (plain.interpreter, "-B", str(plain.home / "tests" / "networks.py"))
    lab.root = plain.home / "root"
    lab.root.mkdir(mode=0o777)
    os.chown(lab.root, plain.uid, plain.gid)
    for name in ("web", "other"):
        (lab.root / name).mkdir()
        os.chown(lab.root / name, plain.uid, plain.gid)
    try:
        yield lab
    finally:
        devices.rmdir()
        shutil.rmtree(lab.root)


@pytest.mark.parametrize("mode", ["pasta", "slirp4netns"])
def test_plain_users_network(plain_lab: Lab, mode: str) -> None:
    require(mode)
    lab = plain_lab
    shim = lab.start("web", "8080:8080 8080:8080/udp 127.0.0.1:8081:8080", mode=mode, serve=[8080])
    web = shim.answer
    assert web["Ports"]["8080/udp"] == [{"HostIp": "0.0.0.0", "HostPort": "8080"}]
    for protocol in ("tcp", "udp"):
        assert lab.ask(lab.lan, MACHINE, 8080, protocol) == LAN
    assert lab.ask(lab.machine, "127.0.0.1", 8080) in ("127.0.0.1", "10.0.2.2")
    assert lab.ask(lab.machine, "127.0.0.1", 8081) in ("127.0.0.1", "10.0.2.2")
    assert lab.ask(lab.lan, MACHINE, 8081) == "ConnectionRefusedError"
    links = json.loads(lab.run(web["pid"], "ip", "-j", "link"))
    assert [link["ifname"] for link in links] == ["lo", "eth0"]
    with lab.serving(lab.lan, 7000), lab.serving(lab.machine, 7001):
        for protocol in ("tcp", "udp"):
            assert lab.ask(web["pid"], LAN, 7000, protocol) == MACHINE
        for host in ("127.0.0.1", "10.0.2.2", LAN):  # the gateways, by which loopback could be reached
            assert "Error" in networks.ask(web["pid"], host, 7001, patience=0.5)
    with lab.serving(lab.machine, 53):  # the name server on its loopback
        server = names.PASTA_DNS if mode == "pasta" else names.SLIRP_DNS
        assert lab.ask(web["pid"], server, 53, "udp").startswith("127.0.0.")
    assert lab.start("other", "8080:80", mode=mode).answer == {
        "error": "listen tcp 0.0.0.0:8080: bind: address already in use"
    }
    assert "bind: permission denied" in lab.start("other", "80:80", mode=mode).answer["error"]
    assert shim.end()["children"] == []  # reaped, no zombie
    assert sorted(path.name for path in lab.root.rglob("*")) == ["other", "web"]


@pytest.mark.parametrize("mode", ["pasta", "slirp4netns"])
def test_a_router_ends_with_its_shim(plain_lab: Lab, mode: str) -> None:
    require(mode)
    shim = plain_lab.start("web", "8080:8080", mode=mode).ready()

    def routers() -> list[str]:
        words = ["pgrep", "-f", f"bin/{mode} ", "--ns", str(plain_lab.machine), "--nslist", "net"]
        found = subprocess.run(words, capture_output=True, text=True).stdout.split()
        lines = [Path(f"/proc/{pid}/status") for pid in found]
        return [line.parent.name for line in lines if line.exists()]

    assert len(routers()) >= 1
    shim.kill()
    until(lambda: routers() == [])


def test_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = IdMapping()
    assert network.choose("host", ids) == ("host", "")
    assert "discarded" in network.choose("host", ids, published=True)[1]
    assert network.choose("none", ids) == ("none", "") and network.choose("container:x", ids) == ("container:x", "")
    for asked, kind in {"none": InvalidInput, "container:x": InvalidInput, "mynet": InvalidInput}.items():
        with pytest.raises(kind):
            network.choose(asked, ids, published=True)
    with pytest.raises(InvalidInput, match="networks other than .* are not supported"):
        network.choose("mynet", ids)
    if os.geteuid() != 0:
        pytest.skip("the rest is root's")
    require("nft")
    assert network.choose("default", ids) == network.choose("bridge", ids) == ("bridge", "")
    with pytest.raises(Unsupported, match="root has bridge"):
        network.choose("pasta", ids)
    code = f"""
import sys; sys.path.insert(0, {_TOP!r})
from minirt.runtime import network
from minirt.userns import IdMapping
print(*network.choose("default", IdMapping()))
try: network.choose("default", IdMapping(), published=True)
except Exception as error: print(error)"""
    words = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", sys.executable, "-B", "-c", code]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert out.startswith("none the container has no network but its own loopback: a bridge needs the right")
    assert "ports cannot be published here" in out
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("minirt.runtime.network.process._SBIN", "/nowhere")
    assert network.choose("default", ids)[0] == "none" and "apt install nftables" in network.choose("default", ids)[1]


def test_a_plain_users_choice(plain: users.User) -> None:
    code = """
from minirt.runtime import network
from minirt.userns import IdMapping
network._TUN = DEVICE
for asked in ("default", "pasta", "slirp4netns", "bridge"):
    try: print(*network.choose(asked, IdMapping()))
    except Exception as error: print(error)"""
    for tool in ("pasta", "slirp4netns"):
        require(tool)
    default, pasta, slirp, switch = plain.python(code.replace("DEVICE", "'/dev/null'")).splitlines()
    assert (default.strip(), pasta.strip(), slirp.strip()) == ("pasta", "pasta", "slirp4netns")
    assert switch.startswith("a bridge is for root")
    default, pasta, *_ = plain.python(code.replace("DEVICE", "'/dev/nosuch'")).splitlines()
    assert default.startswith("none ") and pasta == "pasta needs /dev/nosuch, and it does not exist here"


PUBLISH = {
    "80": [Publish(80)],
    "8080:80": [Publish(80, host_port="8080")],
    "08080:080/UDP": [Publish(80, "udp", host_port="8080")],
    "127.0.0.1::80": [Publish(80, host_ip="127.0.0.1")],
    "127.0.0.1:8080:80/udp": [Publish(80, "udp", "127.0.0.1", "8080")],
    "[::1]:80:80": [Publish(80, host_ip="::1", host_port="80")],
    "8000-8001:9000-9001": [Publish(9000, host_port="8000"), Publish(9001, host_port="8001")],
    "8000-8010:80": [Publish(80, host_port="8000-8010")],
    "80-81": [Publish(80), Publish(81)],
    ":80": [Publish(80)],
    "80/": [Publish(80)],
}
REFUSED = {
    "": "No port specified: <empty>",
    "8080:": "No port specified: 8080:<empty>",
    "/tcp": "No port specified: /tcp<empty>",
    "abc": "Invalid containerPort: abc",
    "80-70": "Invalid containerPort: 80-70",
    "65536": "Invalid containerPort: 65536",
    "x:80": "Invalid hostPort: x",
    "80:80/icmp": "Invalid proto: icmp",
    "300.0.0.1:80:80": "Invalid ip address: 300.0.0.1",
    "8000-8003:80-81": "Invalid ranges specified for container and host Ports: 80-81 and 8000-8003",
}


@pytest.mark.parametrize("word", PUBLISH)
def test_publish_grammar(word: str) -> None:
    found = ports.parse_publish([word])
    assert found == PUBLISH[word]
    assert ports.from_bindings(ports.to_bindings(found)) == found
    assert [Publish.from_json(one.to_json()) for one in found] == found


@pytest.mark.parametrize("word", REFUSED)
def test_publish_grammar_refuses_in_dockers_words(word: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        ports.parse_publish([word])
    assert str(refused.value) == REFUSED[word]


def test_publish_all_and_sctp() -> None:
    found = ports.from_bindings({"80/tcp": [{"HostPort": "8080"}]}, ["80/tcp", "53/udp"], publish_all=True)
    assert found == [Publish(80, host_port="8080"), Publish(53, "udp")]
    assert ports.from_bindings({"80/tcp": None}) == [Publish(80)] and ports.from_bindings(None) == []
    with pytest.raises(Unsupported, match="sctp"):
        ports.parse_publish(["80/sctp"])
    for bad in ({"80:80/tcp": []}, {"80/tcp": [{"HostPort": "x"}]}, {"80/tcp": [{"HostIp": "x"}]}):
        with pytest.raises(InvalidInput):
            ports.from_bindings(bad)


@given(
    st.text(st.sampled_from("0123456789:-/.[]tcpud "), max_size=24)
    | st.from_regex(r"(\[?[0-9.:]*\]?:)?[0-9-]*:[0-9-]+(/(tcp|udp))?", fullmatch=True)
)
@settings(max_examples=100, deadline=None)
def test_any_word_parses_or_is_refused_in_one_line(word: str) -> None:
    try:
        found = ports.parse_publish([word])
    except MinirtError as error:
        assert str(error) and "\n" not in str(error).replace(word, "")
        return
    assert found and all(0 <= one.container_port < 1 << 16 for one in found)
    assert ports.from_bindings(ports.to_bindings(found)) == found


def test_publish_as_the_docker_command_reads_it(dockerd: Dockerd) -> None:
    """docker refuses before it looks for the image; what it takes, it then does not find an image for."""
    for word, text in {**REFUSED, **dict.fromkeys(PUBLISH, "")}.items():
        said = dockerd.docker("create", "-p", word, "nosuch:image", check=False).stderr.decode()
        assert (text or "nosuch:image") in said, word


def test_resolver_and_hosts(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "hosts").write_text("127.0.0.1 machine\n")
    resolver = etc / "resolv.conf"

    def written(text: str, mode: str, **options: Any) -> str:
        resolver.write_text(text)
        names.write_files(tmp_path, mode, "box", etc=etc, **options)
        return (tmp_path / "resolv.conf").read_text()

    local, usual = "nameserver 127.0.0.53\n", "search a b\nnameserver 192.0.2.53\noptions ndots:2\n"
    assert written(usual, "host") == usual and (tmp_path / "hosts").read_text() == "127.0.0.1 machine\n"
    assert sorted(written(usual, "bridge").splitlines()) == sorted(usual.splitlines())
    assert written(local, "bridge") == "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"
    assert written(local, "pasta") == f"nameserver {names.PASTA_DNS}\n"
    assert written(usual, "slirp4netns").endswith(f"nameserver {names.SLIRP_DNS}\n")
    assert written(usual, "bridge", dns=["1.1.1.1"]) == "search a b\nnameserver 1.1.1.1\noptions ndots:2\n"
    given = {"dns_search": ["."], "dns_option": ["rotate"]}
    assert written(usual, "bridge", **given) == "nameserver 192.0.2.53\noptions rotate\n"
    written(usual, "none", extra_hosts=["six:[::9]"])
    assert (tmp_path / "hosts").read_text().endswith("::9\tsix\n127.0.1.1\tbox\n")
    assert (tmp_path / "hostname").read_text() == "box\n"
    assert (tmp_path / "hosts").stat().st_mode & 0o777 == 0o644


def test_a_bridges_name_fits_and_is_its_roots() -> None:
    assert bridge.name_of(Path("/var/lib/minirt")) == "minirt0"
    one, two = bridge.name_of(Path("/a")), bridge.name_of(Path("/b"))
    assert one != two and max(len(one), len(two)) <= 15
