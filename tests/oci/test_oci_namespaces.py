"""Namespaces, new and joined; host names; sysctl; user namespaces with mappings (runtime-spec config-linux.md)."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ociruntime import CLOSED, raised, until

# the spec's word: the name under /proc/self/ns
KINDS = {"pid": "pid", "network": "net", "mount": "mnt", "ipc": "ipc", "uts": "uts", "cgroup": "cgroup"}


def of(process: int | str, kind: str) -> str:
    return os.readlink(f"/proc/{process}/ns/{kind}")


@pytest.fixture
def holder() -> Iterator[int]:
    """A process in new network, ipc, uts, mount, cgroup and pid namespaces, with a file system of its own at /mnt."""
    words = ["unshare", "--net", "--ipc", "--uts", "--mount", "--cgroup", "--pid", "--fork", "--kill-child"]
    script = "hostname held; mount -t tmpfs held /mnt; ip link set lo up; echo ready; exec sleep 120"
    with subprocess.Popen([*words, "sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        (inner,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield int(inner)
        process.kill()
        process.wait()
        with contextlib.suppress(ChildProcessError):  # the inner one dies with it, and is ours then: we are subreaper
            os.waitpid(int(inner), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_one(box: Any, kind: str) -> None:
    one = box("readlink", f"/proc/self/ns/{KINDS[kind]}")
    one.namespace(kind)
    text = one.output()
    assert text.startswith(f"{KINDS[kind]}:")
    assert text != f"{of('self', KINDS[kind])}\n"


@pytest.mark.parametrize("kind", ["pid", "ipc", "uts", "cgroup", "network"])
def test_not_listed_is_the_callers(box: Any, kind: str) -> None:
    one = box("readlink", f"/proc/self/ns/{KINDS[kind]}")
    one.without(kind)
    if kind == "uts":
        del one.config["hostname"]
    assert one.output() == f"{of('self', KINDS[kind])}\n"


@pytest.mark.parametrize("kind", ["network", "ipc", "uts", "pid", "cgroup"])
def test_one_is_joined_by_its_path(box: Any, holder: int, kind: str) -> None:
    one = box("readlink", f"/proc/self/ns/{KINDS[kind]}")
    one.namespace(kind, f"/proc/{holder}/ns/{KINDS[kind]}")
    if kind == "uts":
        del one.config["hostname"]
    if kind == "cgroup" and one.runtime.name == "runc":
        pytest.skip("runc 1.1 makes a new one")
    assert one.output() == f"{of(holder, KINDS[kind])}\n"


def test_a_joined_network_has_its_devices(box: Any, holder: int) -> None:
    one = box("cat", "/sys/class/net/lo/operstate")
    one.namespace("network", f"/proc/{holder}/ns/net")
    assert one.output() == "unknown\n"  # a loopback that is up says so; one that is down says "down"


def test_a_joined_uts_has_its_name(box: Any, holder: int) -> None:
    one = box("hostname")
    one.namespace("uts", f"/proc/{holder}/ns/uts")
    del one.config["hostname"]
    assert one.output() == "held\n"


def test_a_joined_pid_namespace_shows_its_processes(box: Any, holder: int) -> None:
    one = box("sh", "-c", "echo $$; cat /proc/1/comm")
    one.namespace("pid", f"/proc/{holder}/ns/pid")
    number, name = one.output().split()
    assert int(number) > 1 and name == "sleep"


def test_joined_by_the_path_of_another_container(box: Any) -> None:
    one = box("sleep", "60").up()
    two = box("sh", "-c", "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; hostname")
    for kind in ("network", "ipc", "uts"):
        two.namespace(kind, f"/proc/{one.pid}/ns/{KINDS[kind]}")
    del two.config["hostname"]
    assert two.output().split() == [of(one.pid, "net"), of(one.pid, "ipc"), "box"]


def test_a_path_of_the_wrong_kind_is_refused(box: Any, holder: int) -> None:
    one = box("true")
    one.namespace("network", f"/proc/{holder}/ns/uts")
    assert raised(one.create(ok=False))


def test_a_path_that_is_missing_is_refused(box: Any) -> None:
    one = box("true")
    one.namespace("network", "/no/such/namespace")
    assert raised(one.create(ok=False), "no such file", "lstat /no/such", "not exist")


def test_a_path_that_is_no_namespace_is_refused(box: Any) -> None:
    one = box("true")
    one.namespace("network", "/etc/passwd")
    assert raised(one.create(ok=False))


def test_an_unknown_kind_is_refused(box: Any) -> None:
    one = box("true")
    one.namespace("nosuch")
    assert raised(one.create(ok=False), "nosuch", "namespace")


def test_the_same_kind_twice_is_refused(box: Any) -> None:
    """config-linux.md: the runtime MUST generate an error."""
    one = box("true")
    one.linux["namespaces"].append({"type": "ipc"})
    if one.runtime.name == "crun":
        pytest.skip("crun 1.8 does not look")
    assert raised(one.create(ok=False), "ipc", "duplicate")


def test_a_new_network_has_a_loopback_alone(box: Any) -> None:
    assert box("ls", "/sys/class/net").output() == "lo\n"


def test_the_loopback_is_up(box: Any) -> None:
    assert "127.0.0.1" in box("ifconfig", "lo").output()


def test_the_hostname(box: Any) -> None:
    one = box("hostname")
    one.config["hostname"] = "named.example"
    name = os.uname().nodename
    assert one.output() == "named.example\n"
    assert os.uname().nodename == name


def test_a_hostname_without_a_namespace_is_refused(box: Any) -> None:
    """It would rename the machine."""
    one = box("true")
    one.without("uts")
    if one.runtime.name == "crun":
        pytest.skip("crun 1.8 renames the machine")
    assert raised(one.create(ok=False), "uts")


def test_the_domainname(box: Any) -> None:
    one = box("cat", "/proc/sys/kernel/domainname")
    one.config["domainname"] = "example.org"
    if one.runtime.name == "runc":
        pytest.skip("runc 1.1 is of before domainname (runtime-spec 1.1)")
    assert one.output() == "example.org\n"


@pytest.mark.parametrize(
    ("name", "value", "path"),
    [
        ("net.ipv4.ip_forward", "1", "net/ipv4/ip_forward"),
        ("net.ipv4.ping_group_range", "0\t1000", "net/ipv4/ping_group_range"),
        ("kernel.shmmax", "123456", "kernel/shmmax"),
        ("fs.mqueue.msg_max", "20", "fs/mqueue/msg_max"),
    ],
)
def test_sysctl_of_its_own_namespaces(box: Any, name: str, value: str, path: str) -> None:
    if not Path("/proc/sys", path).exists():
        pytest.skip("this kernel has no such setting")
    one = box("cat", f"/proc/sys/{path}")
    one.linux["sysctl"] = {name: value}
    before = Path("/proc/sys", path).read_text()
    assert one.output() == f"{value}\n"
    assert Path("/proc/sys", path).read_text() == before


@pytest.mark.parametrize("name", ["vm.swappiness", "kernel.panic", "fs.file-max", "kernel.domainname.x", "net/../vm/x"])
def test_sysctl_of_the_machine_is_refused(box: Any, name: str) -> None:
    one = box("true")
    path = Path("/proc/sys", name.replace(".", "/"))  # what it is already: a runtime that takes it does no harm
    one.linux["sysctl"] = {name: path.read_text().strip() if path.is_file() else "1"}
    assert raised(one.create(ok=False))


@pytest.mark.parametrize(("kind", "name"), [("network", "net.ipv4.ip_forward"), ("ipc", "kernel.shmmax")])
def test_sysctl_of_a_namespace_shared_with_the_machine_is_refused(box: Any, kind: str, name: str) -> None:
    one = box("true")
    one.without(kind)
    one.linux["sysctl"] = {name: "1"}
    path = Path("/proc/sys", name.replace(".", "/"))
    before = path.read_text()
    assert raised(one.create(ok=False), "namespace", "sysctl")
    assert path.read_text() == before


def mapped(one: Any) -> Any:
    """Give the container a user namespace: its ids 0-65535 are the machine's 100000-165535."""
    one.namespace("user")
    row = {"containerID": 0, "hostID": 100000, "size": 65536}
    one.linux.update(uidMappings=[row], gidMappings=[row])
    for path in (one.runtime.home, one.bundle, one.rootfs):
        path.chmod(0o755)
    subprocess.run(["chown", "-hR", "100000:100000", one.rootfs], check=True)
    return one


def test_a_user_namespace_maps_ids(box: Any) -> None:
    one = mapped(box("sh", "-c", "id -u; cat /proc/self/uid_map; touch /made; readlink /proc/self/ns/user"))
    first, second, third = one.output().splitlines()
    assert (first, second.split()) == ("0", ["0", "100000", "65536"])
    assert third != of("self", "user")
    assert (one.rootfs / "made").stat().st_uid == 100000


def test_a_user_namespace_with_another_user(box: Any) -> None:
    one = mapped(box("sh", "-c", "id -u; id -g; touch /tmp/made"))
    (one.rootfs / "tmp").chmod(0o1777)
    one.process["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [2000]}
    assert one.output().split() == ["1000", "1000"]
    assert (one.rootfs / "tmp" / "made").stat().st_uid == 101000


def test_devices_in_a_user_namespace_are_the_hosts_bound(box: Any) -> None:
    one = mapped(box("sh", "-c", "echo x > /dev/null; stat -c '%t:%T' /dev/null; head -c 2 /dev/zero | wc -c"))
    assert one.output().split() == ["1:3", "2"]


def test_exec_joins_the_user_namespace(box: Any) -> None:
    one = mapped(box("sleep", "60")).up()
    assert one.sh("readlink /proc/self/ns/user; id -u").split() == [of(one.pid, "user"), "0"]


def test_a_user_namespace_cannot_reach_the_machine(box: Any) -> None:
    one = mapped(box("sh", "-c", "echo 1 > /proc/sys/vm/swappiness; mount -o remount,rw /sys; echo ended"))
    before = Path("/proc/sys/vm/swappiness").read_text()
    one.run()
    assert Path("/proc/sys/vm/swappiness").read_text() == before


def test_mappings_without_the_namespace_are_refused(box: Any) -> None:
    one = box("true")
    row = {"containerID": 0, "hostID": 100000, "size": 65536}
    one.linux.update(uidMappings=[row], gidMappings=[row])
    if one.runtime.name in ("runc", "crun"):
        pytest.skip("runc 1.1 and crun 1.8 do not look")
    assert raised(one.create(ok=False), "user namespace")


def test_a_cgroup_namespace_hides_where_it_is(box: Any) -> None:
    one = box("cat", "/proc/self/cgroup")
    one.namespace("cgroup")
    assert one.cgroup not in one.output()


def test_the_cgroup_mount_is_the_containers_own(box: Any) -> None:
    one = box("sh", "-c", "ls /sys/fs/cgroup; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null")
    one.namespace("cgroup")
    one.mount("/sys/fs/cgroup", "cgroup", "ro", *CLOSED, kind="cgroup")
    one.linux["resources"] = {"pids": {"limit": 77}}
    assert "77" in one.run().out.split()


def test_the_holder_is_left_alone(box: Any, holder: int) -> None:
    """Mounts, names and addresses of a joined namespace stay when the container goes."""
    one = box("true")
    for kind in ("network", "ipc"):
        one.namespace(kind, f"/proc/{holder}/ns/{KINDS[kind]}")
    one.output()
    until(lambda: Path(f"/proc/{holder}/exe").exists(), "the holder")
    assert " /mnt " in Path(f"/proc/{holder}/mountinfo").read_text()
