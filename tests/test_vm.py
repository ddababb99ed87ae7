"""What takes another machine: pure cgroup v2 under systemd, AppArmor, every capability, refused user namespaces.

Everything here runs inside the virtual machine of vm.py, and slowly: few and small steps, each of which looks at much.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from vm import Machine

pytestmark = pytest.mark.slow

SECONDS = 240  # a call's; what takes five on an idle machine may take fifty on a busy one
USERS = ["root", "learner"]
HUNGRY = "sh -c 'x=x; while :; do x=$x$x; done'"
RUN = "export MINIRT_HUB=embedded; minirt run --rm --network none"
# A profile that allows all but one file, so that what stops a command is the profile.
PROFILE = b"""profile confined flags=(attach_disconnected) {
  capability, file, mount, umount, signal, network,
  deny /tmp/denied w,
}
"""
CONFINED = {
    "memory.max": str(64 << 20), "memory.swap.max": str(32 << 20), "pids.max": "8", "cpu.max": "50000 100000",
    "cpuset.cpus": "1", "cpu.weight": "20", "apparmor": "confined (enforce)", "oom": "-500", "files": "1048576",
    "capabilities": "0000018201231001", "null": "opens", "kmsg": "refused", "fuse": "opens", "denied": "refused",
    "processes": "few",
}  # fmt: skip


def no_groups(vm: Machine) -> None:
    """None of ours is left; what they were in may be."""
    left = vm.run("find /sys/fs/cgroup -type d -path '*minirt*'").stdout
    assert left in ("", "/sys/fs/cgroup/minirt\n")


@pytest.fixture
def profile(vm: Machine) -> None:
    if vm.run("grep -c '^confined ' /sys/kernel/security/apparmor/profiles", check=False).stdout.strip() == "1":
        return
    vm.run("cat > /tmp/profile; apparmor_parser --replace /tmp/profile", stdin=PROFILE, timeout=SECONDS)


def test_the_machine_is_what_it_should_be(vm: Machine) -> None:
    script = "stat -f -c %T /sys/fs/cgroup; cat /sys/module/apparmor/parameters/enabled; grep CapEff /proc/self/status"
    assert vm.run(script).stdout.split() == ["cgroup2fs", "Y", "CapEff:", "000001ffffffffff"]
    done = vm.run("id -u; cat /proc/self/cgroup; systemctl --user is-system-running", user="learner")
    user, group, manager = done.stdout.split()
    assert (user, manager) == ("1000", "running")
    assert group.startswith("0::/user.slice/user-1000.slice/session-")


def test_what_comes_back_is_what_the_script_did(vm: Machine) -> None:
    done = vm.run("cat; printf 'a\\0b' ; echo err >&2; exit 7", check=False, stdin=b"given\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "given\na\0b", "err\n")
    with pytest.raises(AssertionError, match="no such luck"):
        vm.run("echo no such luck; false; echo not reached")
    assert vm.run("sleep 60", timeout=1, check=False).returncode == 124


def test_a_plain_user_can_do_everything(vm: Machine) -> None:
    """Before the first image, too: nothing is there yet."""
    done = vm.run("minirt doctor --json; timeout 100 minirt system check", "learner", SECONDS)
    rows, _, after = done.stdout.rpartition("]")
    assert [row for row in json.loads(rows + "]") if not row["works"]] == []
    assert after.strip() == "Everything in the store verifies"


@pytest.mark.parametrize("user", USERS)
def test_limits_are_the_kernels(vm: Machine, user: str) -> None:
    """A plain user's by way of their systemd, which passes on memory, pids and cpu."""
    found = vm.run(
        f"{RUN} -m 64m --pids-limit 20 --cpus 0.5 toolbox "
        "sh -c 'cd /sys/fs/cgroup; cat memory.max pids.max cpu.max /proc/self/cgroup'",
        user, SECONDS,
    )  # fmt: skip
    assert found.stdout.splitlines() == [str(64 << 20), "20", "50000 100000", "0::/"]
    found = vm.run(f"{RUN} -m 16m toolbox {HUNGRY}", user, SECONDS, check=False)
    assert found.returncode == 137, found.stderr
    no_groups(vm)


@pytest.mark.parametrize("user", USERS)
def test_what_comes_later_is_in_the_group_too(vm: Machine, user: str) -> None:
    """What `exec` begins: by way of the user's systemd, which knows the machine's process numbers only."""
    run = RUN.replace("--rm", "-d --name later")
    script = "cat /proc/self/cgroup; minirt pause later; minirt unpause later; minirt update -m 96m later"
    script = f"{run} -m 64m toolbox sleep 600; minirt exec later {script}; minirt exec later cat"
    done = vm.run(f"{script} /sys/fs/cgroup/memory.max; minirt rm -f later", user, SECONDS)
    assert done.stdout.splitlines()[1:] == ["0::/", "later", "later", "later", str(96 << 20), "later"]
    no_groups(vm)


def test_roots_user_namespace(vm: Machine) -> None:
    """Its layers are shared, through a mount that maps ids; by an old kernel's overlay, twice."""
    vm.run("grep -q ^root: /etc/subuid || usermod --add-subuids 100000-165535 --add-subgids 100000-165535 root")
    run = RUN.replace("--rm", "--name mapped --userns private")
    script = "cat /proc/self/uid_map; echo >> /made; stat -c %u:%s /made /bin/sh"
    done = vm.run(f"{run} toolbox sh -c '{script}'; minirt start -a mapped; minirt rm mapped", timeout=SECONDS)
    words = done.stdout.split()
    assert (words[:4], words[5:8]) == (["0", "100000", "65536", "0:1"], ["0", "100000", "65536"])
    assert words[8] == "0:2" and words[4] == words[9] and words[4].startswith("0:")
    assert vm.run("find /var/lib/minirt/layers -maxdepth 2 -type l").stdout == ""


def test_what_the_users_systemd_does_not_pass_on_is_refused(vm: Machine) -> None:
    done = vm.run(f"{RUN} --cpuset-cpus 0 toolbox true", "learner", SECONDS, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1), done.stderr
    assert "cpuset" in done.stderr and "Delegate" in done.stderr


@pytest.mark.parametrize("user", USERS)
def test_privileged(vm: Machine, user: str) -> None:
    """All the capabilities there are, and for root all the devices."""
    script = "grep CapEff /proc/self/status; cat /proc/self/attr/current; test -e /dev/nvme0n1 && echo disk"
    done = vm.run(f"{RUN} --privileged toolbox sh -c '{script} || :'", user, SECONDS)
    assert done.stdout.split() == ["CapEff:", "000001ffffffffff", "unconfined", *(["disk"] if user == "root" else [])]


@pytest.mark.usefixtures("profile")
@pytest.mark.parametrize("runtime", ["runc", "crun", "minirt-oci"])
def test_confined_like_the_others(vm: Machine, runtime: str) -> None:
    """Control groups, device rules, AppArmor, a score below 0, a raised limit: each runtime gives the same."""
    for options in ("", "--systemd-cgroup"):
        done = vm.run(f"python3 /srv/minirt/tests/vm/confined.py {runtime} {options}", timeout=SECONDS)
        assert json.loads(done.stdout) == CONFINED, options


@pytest.mark.usefixtures("profile")
def test_a_profile_and_raised_limits_by_the_command_line(vm: Machine) -> None:
    done = vm.run(
        f"{RUN} --security-opt apparmor=confined --oom-score-adj -500 --ulimit nofile=1048576 toolbox "
        "sh -c 'cat /proc/self/attr/current /proc/self/oom_score_adj; ulimit -Hn; : > /tmp/denied'",
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and done.stdout == "confined (enforce)\n-500\n1048576\n"
    assert "denied: Permission denied" in done.stderr
    done = vm.run(f"{RUN} --security-opt apparmor=nosuch toolbox true", timeout=SECONDS, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1), done.stderr
    assert "AppArmor profile nosuch" in done.stderr


def test_a_plain_users_network(vm: Machine) -> None:
    """pasta, the default where /dev/net/tun is for all: the container has the addresses of the machine's interface.
    Under the AppArmor profile that comes with it."""
    up = "ip link add uplink type dummy; ip addr add 192.0.2.1/24 dev uplink; ip link set uplink up"
    vm.run(f"{up}; ip route add default via 192.0.2.2; apparmor_parser --replace /etc/apparmor.d/usr.bin.passt")
    run, look = RUN.replace("--network none", ""), "toolbox sh -c 'ip -4 -o addr show dev eth0; ip route'"
    try:
        done = vm.run(f"{run} {look}; export MINIRT_ROOT=/var/tmp/slirp; {run} --network slirp4netns {look}",
                      "learner", SECONDS)  # fmt: skip
        assert "192.0.2.1/24" in done.stdout and "default via 192.0.2.2" in done.stdout
        assert "10.0.2.100/24" in done.stdout and "default via 10.0.2.2" in done.stdout
        assert vm.run("pgrep -u learner 'pasta|slirp' || echo none").stdout == "none\n"
    finally:
        vm.run("ip link delete uplink; apparmor_parser --remove /etc/apparmor.d/usr.bin.passt; rm -rf /var/tmp/slirp")


@pytest.fixture(params=["user.max_user_namespaces=0", "kernel.unprivileged_userns_clone=0"])
def refused(vm: Machine, request: pytest.FixtureRequest) -> Iterator[str]:
    """User namespaces are refused to plain users; the setting that gives them back."""
    key = request.param.removesuffix("=0")
    before = vm.run(f"sysctl -n {key}; sysctl -q -w {request.param}").stdout.strip()
    yield key
    vm.run(f"sysctl -q -w {key}={before}; test -e /usr/bin/proot || mv /root/proot /usr/bin")


def test_refused_user_namespaces(vm: Machine, refused: str) -> None:
    """Where there is no proot either: one line that says what to do, nothing left behind, and images can be pulled."""
    vm.run("mv /usr/bin/proot /root")
    store = "export MINIRT_HUB=embedded MINIRT_ROOT=$(mktemp -d)"
    run = "minirt run --rm --network none toolbox true && exit 1 || minirt pull -q toolbox"
    done = vm.run(f"{store}; {run}; minirt images -q; minirt system check", "learner", SECONDS)
    assert len(done.stderr.splitlines()) == 1 and "user namespaces" in done.stderr and "minirt doctor" in done.stderr
    pulled, image, check = done.stdout.splitlines()
    assert pulled.endswith("toolbox:latest") and len(image) == 12 and check == "Everything in the store verifies"
    done = vm.run("minirt doctor --json", "learner", SECONDS, check=False)
    (row,) = [row for row in json.loads(done.stdout) if row["capability"] == "user namespace"]
    assert done.returncode == 1 and not row["works"] and f"sysctl -w {refused}=" in row["hint"]


@pytest.mark.parametrize("refused", ["user.max_user_namespaces=0"], indirect=True)
def test_refused_later(vm: Machine, refused: str) -> None:
    """A store from better times: its layers are for a user namespace."""
    done = vm.run(f"{RUN} toolbox true", "learner", SECONDS, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    last = done.stderr.splitlines()[-1]
    assert "user namespaces" in last and "minirt doctor" in last and "Traceback" not in done.stderr


@pytest.mark.parametrize("refused", ["kernel.unprivileged_userns_clone=0"], indirect=True)
def test_refused_but_for_proot(vm: Machine, refused: str) -> None:
    """A step down that is said: no walls."""
    store = "export MINIRT_HUB=embedded MINIRT_ROOT=$(mktemp -d)"
    done = vm.run(f"{store}; minirt run -q --rm toolbox sh -c 'id -u; ls /bin/sh'", "learner", SECONDS)
    assert done.stdout == "0\n/bin/sh\n"
    assert "proot" in done.stderr and "nothing is walled off" in done.stderr


@pytest.mark.parametrize("refused", ["user.max_user_namespaces=0"], indirect=True)
def test_refused_to_an_oci_caller(vm: Machine, refused: str) -> None:
    script = "d=$(mktemp -d); cd $d; mkdir -p rootfs; runc spec --rootless; minirt-oci run refused"
    done = vm.run(script, "learner", SECONDS, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "user namespaces" in done.stderr
    assert vm.run("minirt-oci list -q", "learner", SECONDS).stdout == ""


@pytest.fixture
def image(vm: Machine) -> str:
    """A root file system with busybox alone, made for podman and docker."""
    script = """mkdir -p /tmp/image/bin; cp /bin/busybox /tmp/image/bin
        for name in sh cat grep ls wc; do ln -sf busybox /tmp/image/bin/$name; done; chmod -R a+rX /tmp/image"""
    vm.run(script)
    return "/tmp/image"


LIMITS = "-m 64m --pids-limit 20"
LOOK = "cd /sys/fs/cgroup; cat memory.max pids.max; cd /proc/self; cat attr/current; grep -E 'CapEff|Seccomp:' status"


@pytest.mark.parametrize("user", USERS)
def test_podman(vm: Machine, image: str, user: str) -> None:
    """With systemd's cgroups, and for root the profile that podman loads."""
    looks = []
    for runtime in ("/usr/bin/runc", "/usr/bin/minirt-oci"):
        podman = f"podman --runtime {runtime} --cgroup-manager systemd run --rm --network none {LIMITS}"
        script = f'cp -r {image} ~/image; {podman} --rootfs ~/image sh -c "{LOOK}"; rm -r ~/image'
        looks.append(vm.run(script, user, SECONDS).stdout)
    assert looks[0] == looks[1] and looks[0].startswith(f"{64 << 20}\n20\n")
    assert user != "root" or "containers-default-" in looks[0]


def test_docker(vm: Machine, image: str) -> None:
    """The daemon with systemd's cgroups and its own profile: limits, its profile, --privileged."""
    words = (
        "--iptables=false --bridge=none --exec-opt native.cgroupdriver=systemd --add-runtime minirt=/usr/bin/minirt-oci"
    )
    vm.run(
        f"""systemd-run --quiet --unit=dockerd --property=Delegate=yes --property=KillMode=process dockerd {words}
            until docker version >/dev/null 2>&1; do sleep 0.2; done; tar c -C {image} . | docker import - image""",
        timeout=SECONDS,
    )
    try:
        run = "docker run --rm --network none --runtime minirt"
        everything = f'{run} --privileged image sh -c "cat /proc/self/attr/current; ls /dev/nvme0n1"'
        done = vm.run(f'{run} {LIMITS} image sh -c "{LOOK}"; {everything}', timeout=SECONDS)
        assert done.stdout.splitlines() == [
            *(str(64 << 20), "20", "docker-default (enforce)", "CapEff:\t00000000a80425fb", "Seccomp:\t2"),
            *("unconfined", "/dev/nvme0n1"),
        ]
    finally:
        vm.run("systemctl stop dockerd", timeout=SECONDS)
