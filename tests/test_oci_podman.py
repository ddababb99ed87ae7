"""The real podman on our runtime, as root and as a plain user: what it does on runc it does on ours.

podman's storage and state are on tmpfs and its own; what this machine's containers may not raise is left at 1024 files
and 1000 processes, where podman would ask for more. Sources: podman-run(1), podman-update(1).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import busyboxes
import pytest
import users
from peers import require
from twins import SAME, Twins, quoted

pytestmark = pytest.mark.slow
OURS = Path(sys.executable).with_name("minirt-oci")
LIMITS = "--ulimit nofile=1024:1024 --ulimit nproc=1000:1000"
SETTINGS = """[containers]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
"""


class Podman(Twins):
    """In a script `p` is podman with the runtime, `run` its `run` with limits and no network."""

    same_ = (*SAME, (r"container_uuid=\w+", "container_uuid=ID", "drawn by lot"))

    def __init__(self, home: Path, ours: Path, user: users.User | None = None) -> None:
        super().__init__(home / "test")
        (home / "containers.conf").write_text(SETTINGS)
        (home / "x").mkdir(mode=0o700)
        self.home, self.user, self.paths = home, user, {"runc": require("runc"), "minirt": str(ours)}
        # A plain user's limits are what they are; root's containers get a cgroup that we can take away again.
        self.limits = "" if user else f"{LIMITS} --cgroup-parent /{home.name}"
        if user:
            subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", home], check=True)

    def prelude(self, runtime: str) -> str:
        driver = "vfs" if self.user else "overlay"
        return f"""export XDG_RUNTIME_DIR={self.home}/x CONTAINERS_CONF={self.home}/containers.conf
            p() {{ podman --root {self.home}/r --runroot {self.home}/x/r --tmpdir {self.home}/x/t \\
              --storage-driver {driver} --runtime {self.paths[runtime]} "$@"; }}
            run() {{ p run {self.limits} --network ${{NET:-none}} "$@"; }}; i() {{ p inspect -f "$@" $N; }}"""

    def clean(self, runtime: str) -> None:
        self.execute(f"{self.prelude(runtime)}\np rm --force --volumes --time 0 name-{runtime}")

    def execute(self, script: str) -> subprocess.CompletedProcess[str]:
        return self.user.run(["bash", "-c", script], check=False) if self.user else super().execute(script)

    def said(self, runtime: str, script: str) -> str:
        """The runtime's path and name begin its messages."""
        text = super().said(runtime, script)
        return text.replace(f"{self.paths[runtime]}: ", "").replace("minirt-oci: ", "")

    def end(self) -> None:
        """Stop what podman keeps for a plain user, and leave no mount."""
        self.execute(f"{self.prelude('runc')}\np rm --all --force --time 0; p rmi --all --force; p unmount --all")
        for pause in self.home.rglob("pause.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pause.read_text()), signal.SIGKILL)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if line.split()[4].startswith(f"{self.home}/"):
                subprocess.run(["umount", "--lazy", line.split()[4]], check=False)
        tops = [*Path("/sys/fs/cgroup").glob(f"*/{self.home.name}"), *Path("/sys/fs/cgroup").glob(self.home.name)]
        deadline = time.monotonic() + 10
        while any(map(Path.exists, tops)) and time.monotonic() < deadline:  # conmon stays for a moment
            for folder in [Path(folder) for top in tops for folder, _, _ in os.walk(top, topdown=False)]:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        assert not any(map(Path.exists, tops))


@contextlib.contextmanager
def _loaded(podman: Podman) -> Iterator[Podman]:
    try:
        (podman.home / "image.tar").write_bytes(busyboxes.image())
        done = podman.execute(f"{podman.prelude('runc')}\np import -q {podman.home}/image.tar busybox")
        assert done.returncode == 0, done.stderr
        yield podman
    finally:
        podman.end()


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    if os.geteuid():
        pytest.skip("root's podman needs root")
    for peer in ("podman", "conmon", "bash"):
        require(peer)
    home = Path(tempfile.mkdtemp(prefix="pod", dir="/dev/shm"))  # podman wants its runroot within 50 characters
    home.chmod(0o711)
    try:
        with _loaded(Podman(home, OURS)) as loaded:
            yield loaded
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def rootless() -> Iterator[Podman]:
    """A plain user with subordinate ids, and our command for them."""
    for peer in ("podman", "conmon", "bash"):
        require(peer)
    with users.plain_user(subuids=True) as user:
        ours = user.home / "minirt-oci"
        start = f"import sys; sys.path.insert(0, {str(user.home)!r}); from minirt import child; child.oci_runtime()"
        ours.write_text(f"#!{user.interpreter}\n{start}\n")
        ours.chmod(0o755)
        try:
            with _loaded(Podman(user.home, ours, user)) as loaded:
                yield loaded
        finally:
            # What its user namespace owned on disk goes with the home; its processes end with their namespace.
            for pid in subprocess.run(["pgrep", "-u", str(user.uid)], capture_output=True, text=True).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


VIEWS: dict[str, tuple[str, str]] = {
    "nothing": ("--hostname box", r"^CapEff:\s+00000000[0-9a-f]{5}5fb$"),
    "--user --group-add": ("--hostname box --user web --group-add 5", r"^uid=1000\(web\) .*2000\(extra\)"),
    "--read-only": ("--hostname box --read-only", r"^mount /tmp tmpfs rw"),
    "--tmpfs with what it hides": ("--hostname box --tmpfs /etc --tmpfs /x:size=1m", r"^mount /etc tmpfs"),
    "--cap-add --cap-drop": ("--hostname box --cap-add NET_ADMIN --cap-drop CHOWN", r"^CapEff:\s+0{8}[0-9a-f]{5}5fa$"),
    "--security-opt no-new-privileges": ("--hostname box --security-opt no-new-privileges", r"^NoNewPrivs:\s+1$"),
    "--security-opt seccomp=unconfined": ("--hostname box --security-opt seccomp=unconfined", r"^Seccomp:\s+0$"),
    "--security-opt mask, unmask": (
        "--hostname box --security-opt unmask=/proc/acpi --security-opt mask=/etc", r"^mount /etc tmpfs ro",
    ),
    "--device --shm-size": ("--hostname box --device /dev/zero:/dev/made --shm-size 1m", r"^dev /dev/made "),
    "--sysctl --umask --workdir --env": (
        "--hostname box --sysctl net.ipv4.ip_unprivileged_port_start=99 --umask 077 -w /tmp -e A=b", r"^Umask:\s+0077$",
    ),
    "--pid host --uts host": ("--pid host --uts host", r"^hostname"),
    "--network host": ("NET=host; --uts host", r"^hostname"),
    "--cgroupns host": ("--hostname box --cgroupns host", r"^cgroup"),
    "--uidmap": ("--hostname box --uidmap 0:1:60000", r"^uid_map 0 \d+ 60000$"),
    "-t": ("--hostname box -t", r"^dev /dev/console "),
    "--systemd=always": ("--hostname box --systemd always", r"^mount /run tmpfs"),
    "--privileged": ("--hostname box --privileged", r"^CapEff:"),
}  # fmt: skip
ROOTLESS = ["nothing", "--user --group-add", "--read-only", "--tmpfs with what it hides", "--network host", "-t",
            "--security-opt no-new-privileges", "--pid host --uts host", "--device --shm-size"]  # fmt: skip
LIVES: dict[str, tuple[str, ...]] = {
    "exit statuses": (
        """for words in true 'sh -c "exit 3"' nope /etc/passwd 'sh -c "exec 2>&-; sleep 9 & kill -9 \\$!; wait \\$!"'
        do eval "run --rm busybox $words"; echo $words: $?; done""",
        "nope: 127$", "passwd: 126$", 'exit 3": 3$', ": 137$", "executable file not found in",
    ),
    "logs, exec, stop, start, kill": (
        """C='echo out; trap "echo bye; exit 5" TERM; while :; do sleep 0.05; done'
        run -d --name $N busybox sh -c "$C" >/dev/null
        until p logs $N | grep out; do :; done
        p exec -u web -w /tmp -e A=b $N sh -c 'id; pwd; echo $A; grep -E "^(Cap|NoNew|Seccomp:)" /proc/self/status'
        for words in 'sh -c "exit 7"' nope /etc/passwd; do eval "p exec $N $words"; echo $words: $?; done
        p exec -w /nope $N true; echo $?; echo hi | p exec -i $N cat; p exec -d $N touch /f
        until p exec $N ls /f 2>/dev/null; do :; done; p exec -t $N sh -c '[ -t 0 ] && tty'; p top $N comm
        p stop -t 9 $N; i '{{.State.ExitCode}} {{.State.Status}}'; p logs $N | tail -1
        p start $N; p kill -s KILL $N; p wait $N""",
        "^uid=1000", 'exit 7": 7$', "nope: 127$", "passwd: 126$", "^hi$", "/dev/pts/", "^5 exited$", "^bye$", "^137$",
    ),
    "volumes, cp, diff, create and start": (
        """run --rm -v $V:/m -v $V:/ro:ro,rslave -v vol-$RT:/n busybox sh -c 'echo a > /m/a; echo > /ro/a; echo b > /n/b
          stat -c "%u:%g" /m/a; grep -E " /(m|ro|n) " /proc/mounts | cut -d" " -f2-4 | sort'; cat $V/a
        run --rm -v vol-$RT:/n:ro busybox sh -c 'cat /n/b; echo > /n/c'; p volume rm vol-$RT >/dev/null
        p create --name $N --network none LIMITS busybox sh -c 'echo hi; touch /new' >/dev/null
        p start -a $N; p cp $N:/etc/group - | tar xO; p diff $N | grep new""",
        "^a$", "Read-only file system", "^b$", "^hi$", "^A /new$",
    ),
    "standard input": (
        """printf 'a\\nb\\n' | run -i --rm busybox sh -c 'cat; echo done'; run --rm busybox seq 200000 | md5sum""",
        "^done$", "^0e10426a1d5bddffcef02f1345787128",
    ),
    "namespaces of another container": (
        """run -d --name $N --ipc shareable --hostname shown busybox sh -c 'echo s > /dev/shm/s; sleep 99' >/dev/null
        until p exec $N ls /dev/shm/s >/dev/null 2>&1; do :; done
        run --rm --ipc container:$N --pid container:$N --uts container:$N busybox sh -c 'cat /dev/shm/s; hostname
          ps -o args | grep -c "^sleep"'""",
        "^s$", "^shown$", "^1$",
    ),
}  # fmt: skip
AS_ROOT: dict[str, tuple[str, ...]] = {
    "pause": (
        """run -d --name $N busybox sh -c 'i=0; while :; do i=$((i+1)); echo $i > /i; sleep 0.02; done' >/dev/null
        until p exec $N cat /i >/dev/null 2>&1; do :; done; p pause $N; i '{{.State.Status}}'; p exec $N true
        f=/proc/$(i '{{.State.Pid}}')/root/i; a=$(cat $f); sleep 0.2; [ "$a" = "$(cat $f)" ] && echo stands
        p unpause $N; for _ in $(seq 100); do [ "$a" != "$(cat $f)" ] && break; sleep 0.05; done
        [ "$a" != "$(cat $f)" ] && echo moves""",
        "^paused$", "^stands$", "^moves$",
    ),
    "limits, update --resources": (
        """L="-m 64m --memory-swap 96m --cpus 0.5 --pids-limit 50 --cpuset-cpus 0"
        run -d --name $N $L busybox sleep 99 >/dev/null
        pid=$(i '{{.State.Pid}}'); show() { for f in memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes \\
          cpu/cpu.cfs_quota_us cpu/cpu.shares cpuset/cpuset.cpus pids/pids.max; do
          c=${f%%/*}; g=$(grep ":$c:" /proc/$pid/cgroup | cut -d: -f3); echo $f $(cat /sys/fs/cgroup/$c$g/${f#*/})
        done; }; show; p update --memory 50m --cpus 0.25 --cpu-shares 99 $N; show""",
        "limit_in_bytes 67108864", "limit_in_bytes 52428800", "cfs_quota_us 25000", "pids.max 50$", "shares 99$",
    ),
    "out of memory": (
        """run --rm -m 10m --memory-swap 10m busybox dd if=/dev/zero of=/dev/null bs=40M count=1; echo $?""", "^137$",
    ),
}  # fmt: skip


def _view(options: str) -> str:
    network, _, options = options.rpartition(";")
    return f"{network or ':'}; run --rm {options} busybox sh -c '{quoted(busyboxes.VIEW)}'; echo exit $?"


@pytest.mark.parametrize("what", VIEWS)
def test_a_container_sees_the_same(podman: Podman, what: str) -> None:
    options, expected = VIEWS[what]
    podman.same(_view(options), expected, "^exit 0")


@pytest.mark.parametrize("what", [*LIVES, *AS_ROOT])
def test_a_container_lives_the_same(podman: Podman, what: str) -> None:
    script, *expected = (LIVES | AS_ROOT)[what]
    podman.same(script.replace("LIMITS", podman.limits), *expected)


@pytest.mark.parametrize("what", ROOTLESS)
def test_a_plain_users_container_sees_the_same(rootless: Podman, what: str) -> None:
    options, expected = VIEWS[what]
    rootless.same(_view(options), expected, "^exit 0", r"^uid_map 0 \d{3,} 1$")


@pytest.mark.parametrize("what", LIVES)
def test_a_plain_users_container_lives_the_same(rootless: Podman, what: str) -> None:
    script, *expected = LIVES[what]
    rootless.same(script.replace("LIMITS", ""), *expected)
