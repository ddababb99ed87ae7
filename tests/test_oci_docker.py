"""The real docker on our runtime: `docker run --runtime minirt …` does what it does on runc, command by command.

Each script runs twice at the same time, on runc and on ours, and must say the same. What may differ stands in
`SAME` (twins.py), with the reason. The daemon is one of our own (dockerd.py).
Sources: docker's own documentation of these commands.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import busyboxes
import dockerd
import pytest
import users
from dockerd import Dockerd
from peers import require
from twins import SAME, Twins, on_terminal, quoted

pytestmark = pytest.mark.slow
OURS = str(Path(sys.executable).with_name("minirt-oci"))


class Both(Twins):
    """A daemon that knows both runtimes. In a script `d` is docker, `run` its `run` on the runtime, `i` inspects."""

    same_ = (
        *SAME,
        (r"mount /dev/shm/\S+ .*\n", "", "--ipc=host shows the daemon's own folder, which lies in /dev/shm"),
        (r'time=".*" level=error msg="error waiting for container: .*\n', "", "the client races the daemon's refusal"),
        (r"mountinfo / shared", "mountinfo / private", "the spec's rootfsPropagation is the root's too; not runc's"),
        (r"mountinfo / slave", "mountinfo / private", "runc's root follows the machine's; nothing is mounted there"),
    )

    def __init__(self, daemon: Dockerd) -> None:
        super().__init__(daemon.folder / "test")
        self.daemon = daemon

    def prelude(self, runtime: str) -> str:
        return f"""d() {{ {" ".join(self.daemon.command())} "$@"; }}; i() {{ d inspect -f "$@" $N; }}
            run() {{ d run --runtime $RT --network ${{NET:-none}} "$@"; }}
            netns() {{ {" ".join(self.daemon.inside())} "$@"; }}"""

    def clean(self, runtime: str) -> None:
        self.daemon.docker("rm", "--force", "--volumes", f"name-{runtime}", check=False)


@contextlib.contextmanager
def _daemon(**options: object) -> Iterator[Both]:
    if os.geteuid():
        pytest.skip("dockerd needs root")
    for peer in ("dockerd", "docker", "runc", "bash", "unshare", "nsenter", "setpriv", "ip", "iptables"):
        require(peer)
    with dockerd.started({"minirt": OURS}, **options) as daemon:  # type: ignore[arg-type]
        daemon.docker("import", "-", "busybox", stdin=busyboxes.image())
        yield Both(daemon)


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    with _daemon() as found:
        yield found


@pytest.fixture(scope="module")
def remapped() -> Iterator[Both]:
    """A daemon whose containers have a user namespace, on a machine whose mounts are shared."""
    with users.plain_user(subuids=True) as user, _daemon(shared=True, userns_remap=user.name) as found:
        yield found


# name: (docker's options, what must be seen)
VIEWS: dict[str, tuple[str, str]] = {
    "nothing": ("--hostname=box", r"^CapEff:\s+00000000a80425fb$"),
    "--user": ("--hostname=box --user=web", r"^uid=1000\(web\) .*2000\(extra\)$"),
    "--user of numbers, --group-add": ("--hostname=box --user=77:88 --group-add=5 --group-add=extra", r"5,88,2000"),
    "--read-only --tmpfs": ("--hostname=box --read-only --tmpfs=/root --tmpfs=/x:mode=700", r"^mount / overlay ro"),
    "--cap-drop --cap-add": ("--hostname=box --cap-drop=ALL --cap-add=NET_ADMIN", r"^CapBnd:\s+0000000000001000$"),
    "--security-opt=seccomp=unconfined": ("--hostname=box --security-opt=seccomp=unconfined", r"^Seccomp:\s+0$"),
    "--security-opt=no-new-privileges": ("--hostname=box --security-opt=no-new-privileges", r"^NoNewPrivs:\s+1$"),
    "--device": ("--hostname=box --device=/dev/zero:/dev/made --device=/dev/null:/dev/a/b", r"^dev /dev/made crw-rw"),
    "--ulimit": ("--hostname=box --ulimit=nofile=100:200 --ulimit=core=0", r"Max open files 100 200"),
    "--shm-size": ("--hostname=box --shm-size=1m", r"^mount /dev/shm tmpfs .*size=1024k$"),
    "--sysctl": ("--hostname=box --sysctl=net.ipv4.ip_unprivileged_port_start=99", r"^sysctl port_start 99$"),
    "--domainname": ("--hostname=box --domainname=where", r"^hostname box$"),
    "--pid=host": ("--hostname=box --pid=host", r"^hostname box$"),
    "--ipc=host": ("--hostname=box --ipc=host", r"^mount /dev/shm tmpfs"),
    "--uts=host": ("--uts=host", r"^hostname"),
    "--network=host": ("NET=host; --uts=host", r"^net docker0$"),
    "--network=bridge": ("NET=bridge; --hostname=box", r"^net eth0$"),
    "--ipc=none": ("--hostname=box --ipc=none", r"^hostname box$"),
    "--cgroupns=private": ("--hostname=box --cgroupns=private", r"^cgroup memory:/"),
    "--init": ("--hostname=box --init", r"^mount /sbin/docker-init"),
    "--workdir --env": ("--hostname=box --workdir=/a/b --env=HOME=/x --env=A=b=c", r"^cwd /a/b$"),
    "--oom-score-adj": ("--hostname=box --oom-score-adj=500", r"^oom 500$"),
    "-t": ("--hostname=box -t", r"^dev /dev/console"),
}  # fmt: skip


@pytest.mark.parametrize("what", VIEWS)
def test_a_container_sees_the_same(both: Both, what: str) -> None:
    options, expected = VIEWS[what]
    network, _, options = options.rpartition(";")
    both.same(
        f"{network or ':'}; run --rm {options} busybox sh -c '{quoted(busyboxes.VIEW)}'; echo exit $?",
        expected,
        "^exit 0",
    )


# name: (script, what must be seen …)
LIVES: dict[str, tuple[str, ...]] = {
    "exit statuses": (
        """for words in true 'sh -c "exit 3"' nope /nope/x /etc/passwd /etc \\
          'sh -c "exec 2>&-; sleep 9 & kill -9 \\$!; wait \\$!"'
        do eval "run --rm busybox $words"; echo $words: $?; done""",
        "nope: 127$", r"/etc/passwd: 126$", 'exit 3": 3$', ": 137$",
        'exec: "nope": executable file not found in \\$PATH',
    ),
    "logs of one in the background": (
        "run -d --name $N busybox sh -c 'echo out; echo err >&2; sleep 0.2'; d wait $N; d logs $N", "^out$", "^err$",
    ),
    "exec": (
        """run -d --name $N busybox sleep 99 >/dev/null; d exec -u web -w /tmp -e A=b $N sh -c '
        id; pwd; env | sort; grep -E "^(Cap|NoNew|Seccomp:)" /proc/self/status; cat /proc/self/limits
        cut -d: -f3 /proc/self/cgroup | sort -u | wc -l'
        for words in 'sh -c "exit 7"' nope /etc/passwd 'sh -c "kill -9 \\$\\$"'; do
        eval "d exec $N $words"; echo $words: $?; done
        d exec -w /nope $N true; echo $?; d exec -u 77:99 $N id; d exec $N id; d exec -u nobody-there $N true; echo $?
        d exec -d $N touch /tmp/f; until d exec $N ls /tmp/f 2>/dev/null; do :; done; echo hi | d exec -i $N cat
        d exec -t $N sh -c 'tty; [ -t 0 ] && echo terminal'; d top $N -o pid,cmd | sed 's/^ *[0-9]* *//'""",
        "^uid=1000", "^A=b$", 'exit 7": 7$', "nope: 12[67]$", "passwd: 126$", "^hi$", "^terminal", "^sleep 99$",
    ),
    "a terminal in the background": (
        """run -dt --hostname box --name $N busybox sh -c "tty; id; mount | grep -E 'console|pts'; env | sort
        stat -c '%a %u:%g %t,%T' /dev/console; sleep 99" >/dev/null
        until d logs $N | grep 620; do :; done; d logs $N""",
        "/dev/pts/0", "TERM=xterm",
    ),
    "stop with a trap, start again, kill": (
        """run -d --name $N busybox \\
          sh -c "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done" >/dev/null
        until d logs $N | grep up; do :; done; d stop $N; d logs $N; i "{{.State.ExitCode}} {{.State.Status}}"
        d start $N; d kill -s KILL $N; d wait $N; i "{{.State.ExitCode}} {{.State.OOMKilled}}" """,
        "^bye$", "^5 exited$", "^137 false$",
    ),
    "stop without a hearing, by the image's signal": (
        """run -d --stop-signal USR1 --name $N busybox sleep 99 >/dev/null; d stop -t 1 $N; i '{{.State.ExitCode}}'""",
        "^137$",
    ),
    "kill with signals": (
        """run -d --name $N busybox sh -c "trap 'echo hup' HUP; echo up; while :; do sleep 0.05; done" >/dev/null
        until d logs $N | grep up; do :; done; d kill -s HUP $N; until d logs $N | grep hup; do :; done
        d kill $N; d wait $N; d kill $N""",
        "^137$", "is not running",
    ),
    "pause": (
        """run -d --name $N busybox sh -c 'i=0; while :; do i=$((i+1)); echo $i > /i; sleep 0.02; done' >/dev/null
        until d exec $N cat /i >/dev/null 2>&1; do :; done; d pause $N; i '{{.State.Status}}'; d exec $N true
        f=/proc/$(i '{{.State.Pid}}')/root/i; a=$(cat $f); sleep 0.2; [ "$a" = "$(cat $f)" ] && echo stands
        d unpause $N; for _ in $(seq 100); do [ "$a" != "$(cat $f)" ] && break; sleep 0.05; done
        [ "$a" != "$(cat $f)" ] && echo moves; d pause $N; d stop -t 1 $N; i '{{.State.Status}}'; d unpause $N""",
        "^paused$", "^stands$", "^moves$", "^exited$",
    ),
    "limits and update": (
        """run -d --name $N -m 64m --memory-swap 96m --memory-reservation 32m --cpus 0.5 --cpu-shares 512 \\
          --cpuset-cpus 0 --pids-limit 50 busybox sleep 99 >/dev/null; pid=$(i '{{.State.Pid}}')
        show() { for f in memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes \\
          memory/memory.soft_limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares \\
          cpuset/cpuset.cpus pids/pids.max; do
          c=${f%%/*}; g=$(grep ":$c:" /proc/$pid/cgroup | cut -d: -f3); echo $f $(cat /sys/fs/cgroup/$c$g/${f#*/})
        done; }
        show; d update -m 128m --memory-swap 256m --cpus 0.25 --cpu-shares 256 --cpuset-cpus 0-1 --pids-limit 20 $N
        show; d update -m 1k $N; d update --pids-limit -1 $N; show; d stats --no-stream --format '{{.PIDs}}' $N""",
        "memory.limit_in_bytes 67108864", "memory.limit_in_bytes 134217728", "cfs_quota_us 25000", "pids.max 20$",
        "pids.max max$", "memsw.limit_in_bytes 268435456", "cpuset.cpus 0$", "shares 256$",
    ),
    "out of memory": (
        """run --name $N -m 10m --memory-swap 10m busybox \\
          sh -c 'sleep 0.5; exec dd if=/dev/zero of=/dev/null bs=40M count=1'; echo $?
        i '{{.State.ExitCode}} {{.State.OOMKilled}}'""",
        "^137$", "^137 true$",
    ),
    "no more processes": (
        "run --rm --pids-limit 3 busybox sh -c 'sleep 1 & sleep 1 & sleep 1 & sleep 1 & wait'; echo $?",
        "Resource temporarily unavailable",
    ),
    "cp, diff, commit, restart, export": (
        """run -d --name $N busybox sleep 99 >/dev/null; echo hello > $V/x; d cp $V/x $N:/tmp/x; d exec $N cat /tmp/x
        d cp $N:/etc/passwd - | tar t; d exec $N touch /new; d diff $N | sort; d commit $N image-$RT >/dev/null
        run --rm image-$RT ls /new; d restart -t 0 $N; d exec $N cat /tmp/x; d export $N | tar t | grep new
        d rmi -f image-$RT >/dev/null""",
        "^hello$", "^passwd$", "^A /new$", "^/new$",
    ),
    "--restart=on-failure": (
        """run -d --name $N --restart on-failure:2 busybox sh -c 'echo once; exit 3' >/dev/null
        for _ in $(seq 200); do [ "$(i '{{.RestartCount}} {{.State.Status}}')" = '2 exited' ] && break; sleep 0.1; done
        i '{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}'; d logs $N""",
        "^2 exited 3$",
    ),
    "volumes": (
        """mkdir $V/sub; echo a > $V/f; run --rm -v $V:/m -v $V:/ro:ro -v $V/f:/etc/one:ro -v vol-$RT:/named \\
          --mount type=tmpfs,dst=/tt,tmpfs-size=1m,tmpfs-mode=700 busybox sh -c 'cat /m/f; echo b > /m/g; echo c > /ro/g
          cat /ro/g; echo d > /etc/one; echo e > /named/e; stat -c %a /tt
          cut -d" " -f2-4 /proc/mounts | grep -E "^/(m|ro|etc/one|named|tt) " | sort'; cat $V/g
        run --rm -v vol-$RT:/named:ro busybox sh -c 'cat /named/e; echo > /named/f'; d volume rm vol-$RT >/dev/null
        run --rm -v $V/missing:/m busybox ls -d /m; ls $V""",
        "^b$", "Read-only file system", "^e$", "^700$", "^missing$",
    ),
    "volumes and namespaces of another container": (
        """run -d --name $N -v /vv --ipc shareable busybox \\
          sh -c 'echo z > /vv/z; echo s > /dev/shm/s; sleep 99' >/dev/null
        until d exec $N ls /dev/shm/s >/dev/null 2>&1; do :; done; run --rm --volumes-from $N busybox cat /vv/z
        run --rm --pid container:$N busybox ps -o args; run --rm --ipc container:$N busybox cat /dev/shm/s
        d run --rm --runtime $RT --network container:$N busybox sh -c 'hostname | wc -c; ls /sys/class/net'""",
        "^z$", "sleep 99", "^s$", "^lo$",
    ),
    "seccomp profile of one's own": (
        """echo '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"],
          "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}' > $V/profile
        run --rm --security-opt seccomp=$V/profile busybox sh -c 'mkdir /z; grep Seccomp: /proc/self/status'
        run --rm busybox unshare -U true
        run --rm --security-opt seccomp=unconfined busybox unshare -U true; echo $?""",
        "Permission denied", "Operation not permitted", "^0$",
    ),
    "devices may be what the rules say": (
        """run --rm --device /dev/zero:/dev/made:r busybox sh -c 'head -c 3 /dev/made | wc -c; (echo > /dev/made)
          mknod /tmp/k c 1 11; cat /tmp/k; mknod /tmp/t c 1 5; head -c 1 /tmp/t | wc -c'
        for rule in 'c 1:11 m' 'c 10:229 rwm'; do
        run --rm --device-cgroup-rule "$rule" busybox sh -c 'mknod /tmp/fuse c 10 229; (: < /tmp/fuse); echo $?'
        done""",
        "^3$", "can't open '/tmp/k': Operation not permitted", "^1\n0$",
    ),
    "standard input": (
        """printf 'a\\nb\\n' | run -i --rm busybox sh -c 'cat; echo done'; seq 200000 | run -i --rm busybox md5sum
        run --rm busybox seq 200000 | md5sum""",
        "^done$", "^0e10426a1d5bddffcef02f1345787128",
    ),
    "attach, create and start, health": (
        """run -d --name $N --health-cmd true --health-interval 0.2s busybox \\
          sh -c 'sleep 1.5; echo late; exit 4' >/dev/null
        for _ in $(seq 50); do [ "$(i '{{.State.Health.Status}}')" = healthy ] && echo healthy && break; sleep 0.1; done
        d attach $N; echo $?; d rm $N; d create --runtime $RT --network none --name $N busybox echo hi >/dev/null
        d start -a $N; d start -a $N""",
        "^late$", "^4$", "^hi$", "^healthy$",
    ),
    "--init reaps and passes signals on": (
        """run -d --init --name $N busybox sleep 99 >/dev/null; d exec $N ps -o args | head -3
        d stop -t 9 $N; i '{{.State.ExitCode}}'""",
        "docker-init", "^143$",
    ),
    "-p on loopback": (
        """port=$([ $RT = runc ] && echo 8098 || echo 8099)
        d run -d --runtime $RT --name $N -p 127.0.0.1:$port:80 busybox \\
          sh -c 'mkdir /w; echo served > /w/index.html; httpd -f -p 80 -h /w' >/dev/null
        for _ in $(seq 50); do netns busybox wget -qO- http://127.0.0.1:$port/ 2>/dev/null && break; sleep 0.1
        done""",
        "^served$",
    ),
    "what is left running ends with pid 1": ("run --rm busybox sh -c 'sleep 30 & exit 6'; echo $?", "^6$"),
    "refusals": (
        """run --rm --user nobody-there busybox true; echo $?; run --rm -w /etc/passwd busybox true; echo $?
        run --rm --security-opt seccomp=/nope busybox true; echo $?""",
        "no matching entries in passwd file", "not a directory",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LIVES)
def test_a_container_lives_the_same(both: Both, what: str) -> None:
    both.same(*LIVES[what])


def test_a_sysctl_that_is_not_there(both: Both) -> None:
    """docker takes runc's "no such file" for a missing command (127). Ours says that it is the setting (125)."""
    script = "run --rm --sysctl net.ipv4.nope=1 busybox true; echo exit $?"
    assert re.search("exit 127.*no such file or directory", both.said("runc", script), re.DOTALL)
    assert re.search("exit 125.*sysctl net.ipv4.nope=1", both.said("minirt", script), re.DOTALL)


def test_a_terminal_in_the_foreground(both: Both) -> None:
    """Its size, ctrl-c, a size that changes, and the status; and the same of `exec -it`."""
    said: dict[str, list[tuple[str, int]]] = {}

    def play(runtime: str) -> None:
        name = f"tty-{runtime}"
        script = """until [ -n "$(stty size 2>/dev/null)" ]; do :; done; trap 'echo caught' INT; echo ready
            sleep 9; stty size; echo again; read x
            until [ "$(stty size)" = "44 99" ]; do sleep 0.1; done; stty size; exit 9"""
        words = ["run", "-it", "--rm", "--name", name, "--runtime", runtime, "--network=none", "busybox", "sh", "-c"]
        keys = [("ready", b"\x03"), ("again", b"\n")]
        said[runtime] = [on_terminal(both.daemon.command(*words, script), keys, (44, 99))]
        started = [
            "run",
            "-d",
            "--rm",
            "--name",
            name,
            "--runtime",
            runtime,
            "--network=none",
            "busybox",
            "sleep",
            "99",
        ]
        both.daemon.docker(*started)
        shell = both.daemon.command(
            "exec",
            "-it",
            name,
            "sh",
            "-c",
            """until [ -n "$(stty size 2>/dev/null)" ]; do :; done
            stty size; echo ready; read x; tty; exit 8""",
        )
        said[runtime].append(on_terminal(shell, [("ready", b"\n")]))
        both.daemon.docker("rm", "--force", name)

    threads = [threading.Thread(target=play, args=(runtime,)) for runtime in ("runc", "minirt")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (first, code), (second, last) = said["minirt"]
    assert "caught" in first and "44 99" in first and code == 9, first
    assert "33 77" in second and "/dev/pts/" in second and last == 8, second
    assert said["runc"] == said["minirt"]


def test_a_user_namespace_of_the_daemons(remapped: Both) -> None:
    remapped.same(f"run --rm --hostname=box busybox sh -c '{quoted(busyboxes.VIEW)}'", r"^uid_map 0 3000000 65536$")
    remapped.same(f"run --rm --hostname=box --user=web busybox sh -c '{quoted(busyboxes.VIEW)}'", r"^uid=1000\(web\)")
    remapped.same(
        """chmod 777 $V; run --rm -v $V:/m -v named-$RT:/n busybox sh -c 'id; ls -dln /m /n; touch /m/mine /n/x
          ls -ln /n; mknod /m/null c 1 3; mount -t tmpfs x /n' | sed 's/[A-Z].. .. ..:../DATE/'
        stat -c '%u:%g' $V/mine; run -d --name $N busybox sleep 99 >/dev/null; d exec $N cat /proc/self/uid_map
        d exec -u web $N id; cut -c1-11 /proc/$(i '{{.State.Pid}}')/uid_map; d volume rm named-$RT >/dev/null""",
        "^3000000:3000000$",
        "uid=1000",
    )


@pytest.mark.parametrize("kind", ["shared", "rshared", "slave", "rslave", "private", "rprivate"])
def test_propagation(remapped: Both, kind: str) -> None:
    """What a container mounts in a volume is the machine's, or not; and the other way round."""
    inside = f"nsenter --mount=/proc/{_daemon_pid(remapped.daemon)}/ns/mnt"
    remapped.same(
        f"""mounts() {{ {inside} grep -F " $V/" /proc/mounts; }}
        mkdir $V/in $V/out; before=$(mounts)
        run -d --name $N --userns=host --cap-add SYS_ADMIN -v $V:/m:{kind} busybox sleep 99 >/dev/null
        d exec $N awk '$5 == "/m" || $5 == "/" {{ k = $7; sub(/:.*/, "", k); sub(/-/, "private", k);
          sub(/master/, "slave", k); print "mountinfo", $5, k }}' /proc/self/mountinfo | sort
        d exec $N mount -t tmpfs theirs /m/in; {inside} grep -c "$V/in " /proc/mounts
        {inside} mount -t tmpfs ours $V/out; d exec $N grep -c ' /m/out ' /proc/mounts
        {inside} umount $V/out; {inside} umount $V/in 2>/dev/null; d rm -f $N >/dev/null
        [ "$(mounts)" = "$before" ] && echo as before""",
        "^as before$",
        rf"^mountinfo /m {kind.removeprefix('r')}",
        *(["^1\n1$"] if "shared" in kind else ["^0\n1$"] if "slave" in kind else ["^0\n0$"]),
        together=False,  # they count mounts
    )


def _daemon_pid(daemon: Dockerd) -> int:
    return int((daemon.folder / "docker.pid").read_text())


def test_the_daemon_asks_for_what_we_give(both: Both) -> None:
    """It knows our version by our name, and nothing of a container is left when it is gone."""
    runtimes = json.loads(both.daemon.docker("info", "--format", "{{json .Runtimes}}").stdout)
    assert runtimes["minirt"]["path"] == OURS
    both.daemon.docker("run", "--rm", "--runtime=minirt", "--network=none", "busybox", "true")
    folders = [path for path in (both.daemon.folder / "exec").rglob("state.json") if "minirt" in str(path)]
    assert folders == []
    cgroup = Path("/sys/fs/cgroup/pids", both.daemon.folder.name)
    until = time.monotonic() + 10
    while [path for path in cgroup.iterdir() if path.is_dir()] and time.monotonic() < until:
        time.sleep(0.1)
    assert [path.name for path in cgroup.iterdir() if path.is_dir()] == []
