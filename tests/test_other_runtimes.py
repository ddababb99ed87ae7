"""`minirt run --runtime runc|crun|PATH`: another OCI runtime in ours' place, driven by our shim through the same verbs.

Each script runs with the other runtime and with ours at the same time, and must say the same (twins.py); the third is
our own `minirt-oci`, called as a stranger's program. As root, and what can differ for a plain user as one.
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
from collections.abc import Iterator
from pathlib import Path

import pytest
import users
from peers import require
from twins import SAME, Twins, on_terminal

from minirt.client import Client
from minirt.runtime import state

pytestmark = pytest.mark.slow
RUNTIMES = {"runc": "runc", "crun": "crun", "minirt-oci": str(Path(sys.executable).with_name("minirt-oci"))}
OURS = "ours"


class Shim(Twins):
    """In a script `m` is minirt, `run` its `run` on the runtime without a network, `i` inspects the container $N."""

    same_ = (
        *SAME,
        (r"\b[0-9a-f]{64}\b|\b[0-9a-f]{12}\b", "ID", "ids are drawn by lot"),
        (r"minirt: (runc|crun|minirt-oci): ", "minirt: ", "whose words they are"),
        (r"(runc create failed: )?unable to start container process: ", "", "runc's own way of saying that"),
        (r"(?m)^core\n", "", "crun links /dev/core to a /proc/kcore that is not there"),
        (r"(?m)(/proc/\w+) (devtmpfs|tmpfs)$", r"\1 hidden", "crun hides files under the machine's null device"),
    )

    def __init__(self, folder: Path, words: list[str], user: users.User | None = None) -> None:
        super().__init__(folder / "test")
        self.store, self.words, self.user = folder / "store", words, user
        if user:
            subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", folder], check=True)
        done = self.execute(f"{self.prelude(OURS)}\nm pull -q toolbox")
        assert done.returncode == 0, done.stderr

    def prelude(self, runtime: str) -> str:
        option = f"--runtime={RUNTIMES[runtime]}" if runtime != OURS else ""
        return f"""export MINIRT_ROOT={self.store} MINIRT_HUB=embedded; m() {{ {" ".join(self.words)} "$@"; }}
            run() {{ m run --network ${{NET:-none}} {option} "$@"; }}; i() {{ m inspect -f "$@" $N; }}"""

    def clean(self, runtime: str) -> None:
        self.execute(f"{self.prelude(runtime)}\nm rm -f -v name-{runtime}; m volume rm -f vol-{runtime}")

    def execute(self, script: str) -> subprocess.CompletedProcess[str]:
        return self.user.run(["bash", "-c", script], check=False) if self.user else super().execute(script)

    def end(self) -> None:
        self.execute(f"{self.prelude(OURS)}\nm daemon stop")


@pytest.fixture(scope="module")
def shim() -> Iterator[Shim]:
    if os.geteuid():
        pytest.skip("a plain user has fewer of them, below")
    folder = Path(tempfile.mkdtemp(prefix="minirt-others-", dir="/dev/shm"))
    with contextlib.closing(_Closing(Shim(folder, [sys.executable, "-m", "minirt"]))) as made:
        yield made.shim
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=["subuids", "single"])
def plain(request: pytest.FixtureRequest) -> Iterator[Shim]:
    with users.plain_user(request.param == "subuids") as user:
        (user.home / "others").mkdir()
        with contextlib.closing(_Closing(Shim(user.home / "others", [user.interpreter, "-m", "minirt"], user))) as made:
            yield made.shim


class _Closing:
    def __init__(self, shim: Shim) -> None:
        self.shim = shim

    def close(self) -> None:
        self.shim.end()


def _same(shim: Shim, runtime: str, script: str, *expected: str) -> None:
    if runtime != "minirt-oci":
        require(runtime)
    shim.names = (runtime, OURS)
    shim.same(script, *expected)


LOOK = """id; hostname; pwd; env | sort; grep -E "^(Cap|NoNew|Seccomp:|Groups)" /proc/self/status; cat /proc/keys
ls /dev; grep -E " /(proc|sys|dev|etc|tmp)" /proc/mounts | cut -d" " -f2-3 | sort
ls -l /proc/self/fd | grep -c " [0-9] ->"; ulimit -n; cat /proc/self/oom_score_adj; ls /proc/self/ns
(echo > /proc/sys/kernel/panic); cat /etc/hostname"""

# name: (script, what must be seen …)
LIVES: dict[str, tuple[str, ...]] = {
    "nothing asked for": (f"run --rm --hostname box toolbox sh -c '{LOOK}'; echo $?", "00000000a80425fb", "^0$"),
    "much asked for": (
        f"""run --rm --hostname box -w /a/b -e A=b --read-only --tmpfs /t --ulimit nofile=99 --cap-drop ALL \\
          --cap-add NET_RAW --shm-size 1m --init --security-opt seccomp=unconfined toolbox \\
          sh -c '{LOOK}; touch /x; touch /t/x && echo made'; echo $?""",
        "^uid=", "^/a/b$", "^99$", "Read-only", "^made$",
    ),
    "exit statuses": (
        """for words in true 'sh -c "exit 3"' 'sh -c "exec 2>&-; sleep 9 & kill -9 \\$!; wait \\$!"' /etc/passwd nope \\
          /nope/x; do eval "run --rm toolbox $words" 2>/dev/null; echo $words: $?; done""",
        'exit 3": 3$', "nope: 127$", "/etc/passwd: 126$",
    ),
    "in the background: logs, exec, stop, start": (
        """run -d --name $N toolbox sh -c 'trap "echo bye; exit 5" TERM; echo up; echo err >&2
          while :; do sleep 0.05; done' >/dev/null
        until m logs $N 2>&1 | grep -q err; do sleep 0.1; done; m logs $N
        m exec -w /tmp -e A=b $N sh -c 'id; pwd; echo $A; grep -E "^(Cap|Seccomp:)" /proc/self/status'
        echo hi | m exec -i $N cat; m exec $N sh -c "exit 7"; echo $?; m exec $N nope >/dev/null 2>&1; echo $?
        m exec -d $N touch /made; until m exec $N ls /made 2>/dev/null; do sleep 0.1; done
        m top $N -o pid,comm | grep -c sh; m exec -t $N tty; m stop $N; m logs $N
        i '{{.State.Status}} {{.State.ExitCode}}'
        m start $N; m kill -s KILL $N; m wait $N; i '{{.State.Status}} {{.State.OOMKilled}}'""",
        "^uid=0", "^hi$", "^7$", "^127$", "^/made", "/dev/pts/0", "^bye$", "^exited 5$", "^137$", "^exited false$",
    ),
    "volumes": (
        """echo a > $V/f; run --rm -v $V:/m -v $V:/ro:ro -v vol-$RT:/named toolbox sh -c 'cat /m/f; echo b > /m/g
          echo c > /ro/g; echo e > /named/e'; cat $V/g; run --rm -v vol-$RT:/named:ro toolbox sh -c 'cat /named/e
          echo > /named/f'""",
        "^a$", "^b$", "^e$", "Read-only",
    ),
    "standard input": ("printf 'a\\nb\\n' | run -i --rm toolbox sh -c 'cat; echo done'", "^done$"),
    "cp, diff, commit": (
        """run -d --name $N toolbox sleep 99 >/dev/null; echo hello > $V/x; m cp $V/x $N:/tmp/x; m exec $N cat /tmp/x
        m exec $N touch /new; m diff $N | grep new; m commit $N image-$RT >/dev/null
        run --rm image-$RT ls /new; m rmi image-$RT >/dev/null""",
        "^hello$", "^A /new$", "^/new$",
    ),
    "the machine's namespaces": (
        """run --rm --pid host --ipc host --uts host toolbox sh -c '[ $$ -gt 1 ] && echo many; exit 4'; echo $?
        run -d --name $N --pid host toolbox sh -c '(sleep 0.01 &); exec sleep 99' >/dev/null
        m exec $N sh -c 'exit 6'; echo $?; m stop -t 9 $N; i '{{.State.Status}} {{.State.ExitCode}}'""",
        "^many$", "^4$", "^6$", "^exited 143$",
    ),
    "another container's namespaces": (
        """m run -d --name $N --network none --ipc shareable --hostname shown toolbox \\
          sh -c 'echo s > /dev/shm/s; exec sleep 99' >/dev/null
        until m exec $N ls /dev/shm/s >/dev/null 2>&1; do sleep 0.1; done
        run --rm --ipc container:$N --pid container:$N --uts container:$N toolbox \\
          sh -c 'cat /dev/shm/s; hostname; set -- /proc/[0-9]*; echo $#; exit 8'; echo $?""",
        "^s$", "^shown$", "^8$",
    ),
}  # fmt: skip
AS_ROOT: dict[str, tuple[str, ...]] = {
    "limits, update, pause": (
        """L="-m 64m --memory-swap 96m --cpus 0.5 --cpu-shares 512 --cpuset-cpus 0 --pids-limit 50"
        run -d --name $N $L toolbox sh -c 'i=0; while :; do i=$((i+1)); echo $i > /i; sleep 0.02; done' >/dev/null
        show() { for f in memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares cpuset/cpuset.cpus \\
          pids/pids.max; do m exec $N cat /sys/fs/cgroup/$f; done; }
        show; m update -m 80m --memory-swap 160m --cpus 0.25 --cpu-shares 256 --pids-limit 20 $N; show
        m stats --no-stream --format '{{.MemUsage}}' $N | sed 's/.* //'; m pause $N; i '{{.State.Status}}'
        f=/proc/$(i '{{.State.Pid}}')/root/i; a=$(cat $f); sleep 0.2; [ "$a" = "$(cat $f)" ] && echo stands
        m unpause $N; for _ in $(seq 100); do [ "$a" != "$(cat $f)" ] && break; sleep 0.05; done
        [ "$a" != "$(cat $f)" ] && echo moves; m pause $N; m rm -f $N""",
        "^67108864$", "^50000$", "^83886080$", "^25000$", "^80MiB$", "^paused$", "^stands$", "^moves$",
    ),
    "a user and groups": (
        "run --rm --user 1000:5 --group-add 77 toolbox sh -c 'id; echo mine > /dev/stdout'; echo $?",
        "^uid=1000.* gid=5.*groups=5.*,77$", "^mine$", "^0$",
    ),
    "out of memory": (
        """run --name $N -m 16m --memory-swap 16m toolbox sh -c 'x=x; while :; do x=$x$x; done'; echo $?
        i '{{.State.ExitCode}} {{.State.OOMKilled}}'""",
        "^137 true$",
    ),
    "devices": (
        """run --rm --device /dev/zero:/dev/made toolbox sh -c 'head -c 3 /dev/made | wc -c; mknod /tmp/k c 1 11
          head -c 1 /tmp/k'""",
        "^3$", "not permitted",
    ),
    "a bridge": (
        """NET=bridge; run -d --name $N toolbox sleep 99 >/dev/null; m exec $N ls /sys/class/net
        m exec $N sh -c 'ping -c 1 -w 5 $(ip route | awk "/default/ {print \\$3}") >/dev/null' && echo reached""",
        "^eth0$",
    ),
}  # fmt: skip


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("what", [*LIVES, *AS_ROOT])
def test_a_container_lives_the_same(shim: Shim, runtime: str, what: str) -> None:
    _same(shim, runtime, *(LIVES | AS_ROOT)[what])


@pytest.mark.parametrize("runtime", ["runc", "crun"])
@pytest.mark.parametrize("what", LIVES)
def test_a_plain_users_container_lives_the_same(plain: Shim, runtime: str, what: str) -> None:
    _same(plain, runtime, *LIVES[what])


@pytest.mark.parametrize("runtime", [*RUNTIMES, OURS])
def test_a_terminal(shim: Shim, runtime: str) -> None:
    """Its size, ctrl-c, a size that changes, and the status."""
    script = """until [ -n "$(stty size 2>/dev/null)" ]; do :; done; trap 'echo caught' INT; echo ready
        sleep 9; echo again; read x; until [ "$(stty size)" = "44 99" ]; do sleep 0.1; done; stty size; exit 9"""
    words = ["bash", "-c", f'{shim.prelude(runtime)}\nrun -it --rm toolbox sh -c "$1"', "bash", script]
    seen, code = on_terminal(words, [("ready", b"\x03"), ("again", b"\n")], (44, 99))
    assert "caught" in seen and "44 99" in seen and code == 9, seen


@pytest.mark.parametrize("options", ["", "--pid=host"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_a_killed_shim_leaves_is_taken_away(shim: Shim, runtime: str, options: str) -> None:
    identity = shim.execute(
        f"{shim.prelude(runtime)}\nrun -d -m 64m {options} --name name-{runtime} toolbox sleep 99"
    ).stdout.strip()
    folder = shim.store / "containers" / identity
    run = json.loads((folder / "run.json").read_text())
    fd = state.open_process(run, "shim")
    assert fd is not None and run["cgroup"]
    os.kill(run["shim"]["pid"], signal.SIGKILL)
    assert state.ended(fd, 10)
    os.close(fd)
    client = Client(shim.store)
    assert client.check() != []
    shim.clean(runtime)
    assert client.check() == [] and state.open_process(run, "init") is None
    assert not any(os.path.exists(place) for place in run["cgroup"]["groups"].values())


PROPAGATION = """mount --make-rshared /; mount -t tmpfs -o mode=755 here $V; mkdir $V/in $V/out
mount --make-shared $V; points() { cut -d" " -f5 /proc/self/mountinfo | grep -F $V; }; before=$(points)
export MINIRT_ROOT=$V-store; m pull -q toolbox >/dev/null
run -d --name $N --cap-add SYS_ADMIN --security-opt seccomp=unconfined -v $V:/m:$KIND toolbox sleep 99 >/dev/null
m exec $N mount -t tmpfs theirs /m/in; grep -c "$V/in " /proc/self/mountinfo
mount -t tmpfs ours $V/out; m exec $N grep -c ' /m/out ' /proc/mounts
umount $V/out; umount $V/in 2>/dev/null; m rm -f $N >/dev/null; m daemon stop; rm -rf $V-store
diff <(echo "$before") <(points) && echo as before; umount $V"""


@pytest.mark.parametrize("kind", ["rshared", "slave", "private"])
@pytest.mark.parametrize("runtime", [*RUNTIMES, OURS])
def test_propagation(shim: Shim, runtime: str, kind: str) -> None:
    """What a container mounts in a volume is the machine's, or not, and the other way round: a machine of our own."""
    if runtime in ("runc", "crun"):
        require(runtime)
    script = f"V=$(mktemp -d); KIND={kind}; N=one; {shim.prelude(runtime)}\n{PROPAGATION}; rmdir $V"
    words = ["unshare", "--mount", "--propagation=private", "bash", "-c", script]
    seen = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False)
    wanted = {"rshared": "1\n1\n", "slave": "0\n1\n", "private": "0\n0\n"}[kind]
    assert seen.stdout == f"{wanted}as before\n", seen.stderr
