"""Containers where the machine gives less: namespaces refused (proot), overlay refused (fuse-overlayfs, copies).

Refused namespaces are docker's own: a process with its system call filter and its capabilities, and, slow, a default
container of a real dockerd. A refused overlay is a real one too: a store that lies on another overlay, as in docker.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import users
from dockerd import Dockerd
from peers import require
from tars import CHAR, DIR, FILE, archive, chunks, entry

from minirt.engine import faked
from minirt.errors import Unsupported
from minirt.runtime import starter
from minirt.runtime.proot import WALLS
from minirt.store.applier import Applier, Owner
from minirt.store.limits import Limits
from minirt.store.merge import merge
from minirt.store.tar import Reader
from minirt.userns import IdMapping

CONFINE = """
import os, sys
from minirt import linux
from minirt.runtime import capabilities, seccomp
program = seccomp.Filter(seccomp.compile(seccomp.default(capabilities.DEFAULT), None))
if os.geteuid() == 0:
    capabilities.bound({"bounding": list(capabilities.DEFAULT)})
linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
program.load()
os.execvp(sys.argv[1], sys.argv[1:])
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def _script(*lines: str) -> str:
    """A shell script that shows each command's status."""
    return "\n".join(f'{line}; echo "= $?"' for line in lines)


@pytest.fixture(scope="module")
def who() -> Iterator[users.User]:
    require("proot")
    with users.plain_user(False) as user:
        yield user


@pytest.fixture(scope="module", params=["plain user", "root"])
def refused(request: pytest.FixtureRequest, who: users.User) -> Iterator[Run]:
    """Runs a shell script where namespaces are refused; `$m` is minirt. Everything it left is removed."""
    folder = Path(tempfile.mkdtemp(prefix="minirt-refused-"))
    os.chown(folder, who.uid, who.gid) if request.param == "plain user" else None
    env = {"MINIRT_ROOT": str(folder / "store"), "MINIRT_HUB": "embedded", "HOME": str(folder), "LANG": "C.UTF-8"}
    env |= {"PATH": os.environ["PATH"], "PYTHONPATH": str(who.home), "m": f"{who.interpreter} -m minirt"}
    ids = {"user": who.uid, "group": who.gid, "extra_groups": []} if request.param == "plain user" else {}

    def run(script: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [who.interpreter, "-c", CONFINE, "sh", "-c", script], env=env | more, cwd=folder, check=False,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, **ids,
        )  # type: ignore[call-overload,no-any-return]  # fmt: skip

    yield run
    run("for id in $($m ps -aq); do $m rm -f $id; done")
    shutil.rmtree(folder)


def _living(mark: str) -> list[int]:
    """Processes with this word on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _wait(until: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


# Both forms of the same file, on both processors


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_starter(machine: str, tmp_path: Path) -> None:
    """It tells who the command is, waits for the byte, and tells how it ended; a failed execve as a negative number."""
    emulator = [] if machine == os.uname().machine else [require(f"qemu-{machine}-static")]
    (tmp_path / "start").write_bytes(starter.program(machine))
    (tmp_path / "start").chmod(0o755)

    def run(*words: str, gate: bytes = b"1") -> tuple[int, list[int], bytes]:
        (gate_out, gate_in), (report_out, report_in), (out, out_end) = (os.pipe() for _ in range(3))
        wanted = {1: out_end, starter.GATE: gate_out, starter.REPORT: report_in}
        moved = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 50) for number, fd in wanted.items()}
        argv = [*emulator, str(tmp_path / "start"), *words]
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in moved.items()]
        child = os.posix_spawn(argv[0], argv, {"ONE": "1", "TWO": "2", "THREE": "3"}, file_actions=actions)
        for fd in (*wanted.values(), *moved.values()):
            os.close(fd)
        with os.fdopen(report_out, "rb", buffering=0) as report, os.fdopen(out, "rb") as output:
            first = struct.unpack("=i", report.read(4))[0]
            assert first > 0 and os.waitpid(child, os.WNOHANG) == (0, 0)
            os.write(gate_in, gate)
            os.close(gate_in)
            numbers, said = report.readall(), output.read()
        assert os.waitpid(child, 0)[1] == 0
        return first, [number for (number,) in struct.iter_unpack("=i", numbers)], said

    pid, numbers, output = run(
        "/bin/sh",
        "zero",
        "-c",
        "echo $$ $0 $ONE$TWO$THREE; for fd in 3 4; do test -e /proc/$$/fd/$fd || echo no $fd; done; exit 7",
    )
    if machine == os.uname().machine:  # an emulator keeps descriptors and variables of its own
        assert output == f"{pid} zero 3\nno 3\nno 4\n".encode()
    assert numbers == [7 << 8]
    assert run("/bin/sh", "sh", "-c", "kill -9 $$")[1] == [9]
    assert run("/no/such", "x")[1] == [-2, 1 << 8]
    assert run("/bin/sh", "sh", "-c", "echo ran", gate=b"")[1:] == ([125 << 8], b"")
    with pytest.raises(Unsupported, match="riscv64"):
        starter.program("riscv64")


def _reader(content: bytes) -> Reader:
    pieces = iter(chunks(content, 512))
    return Reader(lambda: next(pieces, b""))


LAYERS = (
    (("a/one", b"1"), ("a/two", b"2"), ("b/x", b"x"), ("c", b"c"), ("-d", b"d"), ("e", None), ("e/in", b"e")),
    (
        ("a/.wh.one", b""), ("b/.wh..wh..opq", b""), ("b/y", b"y"), (".wh.c", b""), ("c", b"new"), (".wh.-d", b""),
        ("-d", b"newd"), (".wh.e", b""), ("e", None), ("e/out", b"o"), ("f", b"f"), (".wh.f", b""),
    ),
)  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel's form has trusted xattrs")
def test_plain_whiteouts_mean_what_the_kernels_do(tmp_path: Path) -> None:
    trees = {}
    for form in ("plain", "trusted"):
        folders = []
        for number, files in enumerate(LAYERS):
            folder = tmp_path / form / str(number)
            folder.mkdir(parents=True)
            content = archive(*(entry(name, FILE if data is not None else DIR, data or b"") for name, data in files))
            Applier(folder, Owner(xattr=form), Limits()).run(_reader(content))
            folders.append(folder)
        kinds = {path.name for path in folders[1].rglob("*") if path.is_char_device()}
        assert not kinds if form == "plain" else kinds  # nothing that a foreign file system would refuse
        assert not (folders[1] / ".wh.c").exists()  # what the layer itself holds is hidden from nobody
        target = tmp_path / form / "merged"
        target.mkdir()
        merge(folders, target, "user" if form == "plain" else form)
        trees[form] = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert trees["plain"] == trees["trusted"]
    assert trees["plain"] == {
        "a/two": b"2", "b/y": b"y", "c": b"new", "-d": b"newd", "e/out": b"o", "f": b"f",
    }  # fmt: skip


def test_without_rights_nothing_is_shut_to_its_owner(tmp_path: Path) -> None:
    content = archive(
        entry("shut", DIR, mode=0), entry("shut/file", FILE, b"x", mode=0), entry("dev", CHAR, devmajor=1)
    )
    owner = Owner(chown=False, mknod=False, xattr="plain", closed=False)
    applier = Applier(tmp_path, owner, Limits())
    applier.run(_reader(content))
    assert (tmp_path / "shut").stat().st_mode & 0o7777 == 0o700
    assert (tmp_path / "shut/file").stat().st_mode & 0o7777 == 0o600
    assert not (tmp_path / "dev").exists() and applier.notes


def test_ids_that_only_proot_plays() -> None:
    ids = IdMapping(((0, 1000, 1),), ((0, 1000, 1),), faked=True)
    assert IdMapping.from_json(ids.to_json()) == ids and ids.single
    assert ids.form != IdMapping(ids.uids, ids.gids).form


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ({"Memory": 1 << 20}, "Memory cannot be limited"),
        ({"ReadonlyRootfs": True}, "--read-only needs namespaces"),
        ({"Privileged": True}, "--privileged needs namespaces"),
        ({"NetworkMode": "none"}, "--network none needs namespaces"),
        ({"PidMode": "container:x"}, "--pid container:x needs namespaces"),
        ({"Binds": ["/a:/b:ro"]}, "a mount cannot be read-only"),
        ({"Mounts": [{"ReadOnly": True}]}, "a mount cannot be read-only"),
    ],
)
def test_what_proot_cannot_hold_is_refused(host: dict[str, object], text: str) -> None:
    with pytest.raises(Unsupported, match=text):
        faked.adapt({"HostConfig": host})


def test_what_proot_leaves_out_is_told() -> None:
    body, warnings = faked.adapt(
        {"Hostname": "box", "HostConfig": {"PortBindings": {"80/tcp": []}, "Binds": ["/a:/b"]}}
    )
    assert warnings[0] == WALLS and "ports are discarded" in warnings[1] and "box is discarded" in warnings[2]
    assert body["HostConfig"]["NetworkMode"] == "host" and "PortBindings" not in body["HostConfig"]


# Namespaces refused


def test_a_container_by_proot(refused: Run) -> None:
    refused("$m images")  # a daemon is there, and that is told
    hello = refused("$m pull -q hello-world && $m run --rm hello-world")
    assert "Hello from a container!" in hello.stdout, hello.stderr
    assert hello.stderr == f"WARNING: {WALLS}\n"
    run = "$m run --rm --name made"
    result = refused(
        _script(
            f"{run} toolbox sh -c 'id -u; echo $HOME; pwd; ls /bin/sh; exit 7'",
            f"{run} -u 5:6 -w /job/dir toolbox sh -c 'echo $(id -u):$(id -g) $(pwd)'",
            f"{run} toolbox nope",
            f"{run} toolbox /etc",
            f"{run} toolbox sh -c 'kill -TERM $$'",
            f"echo in | {run} -i toolbox cat",
            f"mkdir -p vol; {run} -v $PWD/vol:/data -e A=b toolbox sh -c 'echo $A > /data/x'; cat vol/x; ls -n vol",
            f"printf '\\0' > vol/bad; chmod +x vol/bad; {run} -v $PWD/vol:/data toolbox /data/bad",
            f"{run} toolbox grep -E '^(NoNewPrivs|Seccomp_filters):' /proc/self/status",
            f"{run} -m 10m toolbox true",
            "$m ps -aq",
            "$m system check",
        )
    )
    ours = refused("id -u").stdout.strip()
    shown = [line for line in result.stdout.splitlines() if not line.startswith("total")]
    listed = shown.pop(shown.index("b") + 1).split()
    assert listed[2:4] == [ours, refused("id -g").stdout.strip()]  # what it made is ours
    assert shown == [
        "0", "/root", "/", "/bin/sh", "= 7", "5:6 /job/dir", "= 0", "= 127", "= 126", "= 143", "in", "= 0", "b", "= 0",
        "= 1", "NoNewPrivs:\t1", "Seccomp_filters:\t2", "= 0",  # one is CONFINE's
        "= 125", "= 0", "Everything in the store verifies", "= 0",
    ]  # fmt: skip
    for text in ('exec: "nope": executable file not found', 'exec: "/etc": permission denied', "exec format error"):
        assert text in result.stderr
    assert "Memory cannot be limited" in result.stderr and "Traceback" not in result.stderr


def test_exec_terminal_stop_and_info(refused: Run) -> None:
    result = refused(
        _script(
            "$m run -d --name runs toolbox sh -c 'setsid sleep 98765 & sleep 98764; exit 3' > /dev/null",
            "$m exec runs sh -c 'id -u; exit 5'",
            "$m exec -u 33:44 runs sh -c 'echo $(id -u):$(id -g)'",
            "$m pause runs",
            "$m stop -t 1 runs",
            "$m ps -a --format '{{.Status}}' | cut -c1-12",
            "$m rm runs",
            "$m run --rm -t toolbox sh -c 'test -t 0 && test -t 1 && echo tty'",
            "$m info -f '{{.Driver}}'",
        )
    )
    assert result.stdout.replace("\r", "").split("\n") == [
        "= 0", "0", "= 5", "33:44", "= 0", "= 1", "runs", "= 0", "Exited (143)", "= 0", "runs", "= 0", "tty", "= 0",
        "copy", "= 0", "",
    ], result.stderr  # fmt: skip
    assert not _living("98765")
    assert WALLS in refused("$m info").stderr


@pytest.mark.parametrize("victim", ["command", "starter", "proot", "keeper", "shim"])
def test_nothing_outlives_any_of_us(victim: str, refused: Run) -> None:
    """Kill -9 of any process of the chain ends the container, what left its session too, and leaves no file."""
    seconds = f"9{time.monotonic_ns() % 10**9}"
    started = refused(f"$m run -d --name falls toolbox sh -c 'setsid sleep {seconds} & sleep {seconds}; exit 1'")
    assert started.returncode == 0, started.stderr
    _wait(lambda: len([pid for pid in _living(seconds) if _comm(pid) == "sleep"]) == 2)
    chain = [next(pid for pid in _living(seconds) if _comm(pid) == "sh")]
    for _ in range(4):
        chain.append(_parent(chain[-1]))
    assert "proot" in _comm(chain[2])
    os.kill(chain[("command", "starter", "proot", "keeper", "shim").index(victim)], signal.SIGKILL)
    _wait(lambda: not [pid for pid in _living(seconds) if _comm(pid) != "minirt"])
    _wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in chain))
    shown = refused("$m ps -a --format '{{.Status}}'; $m rm falls; $m system check").stdout.splitlines()
    assert shown[0] == "Dead" if victim == "shim" else shown[0].startswith("Exited (137)")
    assert shown[1:] == ["falls", "Everything in the store verifies"]
    assert not [path for pid in chain for path in Path("/tmp").glob(f"proot*-{pid}-*")]


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_doctor_where_namespaces_are_refused(refused: Run, who: users.User) -> None:
    """It says how containers run, what is not there, what that costs; where nothing works it exits with 1."""
    answer = refused("$m doctor --json")
    rows = {row["capability"]: row for row in json.loads(answer.stdout)}
    assert answer.returncode == 0 and rows["containers"]["works"] and rows["containers"]["cost"] == WALLS
    for name in ("user namespace", "mount namespace", "overlay", "fuse-overlayfs", "network"):
        assert not rows[name]["works"], name
    assert rows["proot"]["works"] and rows["seccomp"]["works"] and rows["libseccomp"]["works"]
    for row in rows.values():
        assert row["works"] or (row["cost"] and row["hint"] and row["tried"] and row["detail"])
    assert "seccomp=unconfined" in rows["user namespace"]["hint"]
    folder = who.home / "only-sh"
    folder.mkdir(exist_ok=True)
    if not (folder / "sh").exists():
        (folder / "sh").symlink_to("/bin/sh")
    poor = refused("$m daemon stop; $m doctor; echo $?; $m run hello-world; echo $?", PATH=str(folder))
    refused("$m daemon stop")  # the next has the usual PATH
    lines = poor.stdout.splitlines()
    assert lines[1].split()[:2] == ["containers", "no"] and "1" in lines and lines[-1] == "125"
    assert poor.stderr.count("\n") >= 1 and "install proot" in poor.stderr.splitlines()[-1]


LOOK = """
import json
from minirt.runtime import doctor
print(json.dumps({row["capability"]: row for row in doctor.probe() if "fuse" in row["capability"]}))
"""
CLOSED = """mount -t tmpfs none "$1" && mknod -m 600 "$1/fuse" c 10 229 && mount --bind "$1/fuse" /dev/fuse
again() { PYTHONPATH=$2 setpriv --reuid "$3" --clear-groups "$4" -c "$5"; }; again "$@"
sudo() { "$@"; }; eval "$6"; again "$@" """


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can close a device to somebody else")
def test_what_doctor_says_opens_a_closed_device(who: users.User, tmp_path: Path) -> None:
    """Installed, and there, but not for everybody: neither apt nor modprobe would help."""
    for peer in ("fuse-overlayfs", "unshare", "setpriv"):
        require(peer)
    words = ["unshare", "--mount", "sh", "-c", CLOSED, "sh", str(tmp_path), str(who.home), str(who.uid)]
    words += [who.interpreter, LOOK]

    def rows(hint: str) -> list[dict[str, dict[str, Any]]]:
        done = subprocess.run([*words, hint], cwd=who.home, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    before = rows("true")[0]
    assert not before["/dev/fuse"]["works"] and not before["fuse-overlayfs"]["works"]
    for row in before.values():
        after = rows(row["hint"])[1]
        assert after["/dev/fuse"]["works"] and after["fuse-overlayfs"]["works"], row["hint"]


# Overlay refused


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount the overlay that the store lies on")
@pytest.mark.parametrize("driver", ["fuse-overlayfs", "copy"])
def test_a_store_on_another_overlay(driver: str, tmp_path: Path) -> None:
    """The kernel lays no overlay over an overlay: fuse-overlayfs does it, else files are copied; both say so."""
    require("fuse-overlayfs")
    for name in ("lower", "upper", "work", "place", "bin"):
        (tmp_path / name).mkdir()
    path = os.environ["PATH"]
    if driver == "copy":
        path = str(tmp_path / "bin")
        for name in ("sh", "mount", "rm", "busybox", "nft"):
            (tmp_path / "bin" / name).symlink_to(require(name))
    script = f"""
cd {tmp_path} && mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none place || exit
m="{sys.executable} -m minirt --root place/store"
$m run --network none --name first toolbox sh -c 'echo kept > /made; cat /proc/mounts' | while read a b c; do
  test $b = / && echo $c
done
$m start -a first > /dev/null; $m run --rm --network none toolbox sh -c 'test -e /made; echo $?'
$m info -f '{{{{.Driver}}}}'
$m rm -f first; $m system check
PYTHONPATH={Path(__file__).parent}:{Path(__file__).parent.parent} {sys.executable} -B -c '
import os, pathlib
import test_applier
from tars import entry
folder = pathlib.Path("place/lab").absolute()
folder.mkdir()
print(os.listdir(test_applier.Lab(folder).unpack(entry(".wh.gone"))))'
$m daemon stop
"""
    env = {**os.environ, "PATH": path, "MINIRT_HUB": "embedded"}
    words = [require("unshare"), "--mount", "--propagation", "private", "sh", "-c", script]
    result = subprocess.run(words, env=env, cwd=tmp_path.parent, capture_output=True, text=True, check=False)
    lines = result.stdout.split("\n")
    kind = "fuse.fuse-overlayfs" if driver == "fuse-overlayfs" else "overlay"
    assert lines[0].startswith(kind), result.stdout + result.stderr
    assert lines[1:] == ["1", driver, "first", "Everything in the store verifies", "['.wh.gone']", ""]
    how = "fuse-overlayfs does its work, slower" if driver == "fuse-overlayfs" else "the image's files were copied"
    assert "WARNING: overlay does not work here (" in result.stderr and how in result.stderr
    assert not _living(str(tmp_path))


# In docker


@pytest.mark.slow
@pytest.mark.parametrize("uid", [1000, 0], ids=["uid 1000, as Binder", "root, as Colab"])
def test_in_a_default_docker_container(uid: int, dockerd: Dockerd, who: users.User) -> None:
    """This machine's programs in an image of nothing: docker's own walls refuse namespaces, and proot does it."""
    who.home.chmod(0o755)
    if not dockerd.docker("images", "-q", "outer").stdout:
        folder = dockerd.folder / "outer"
        for name in ("etc", "tmp", "proc", "sys", "dev", "usr", "home/u"):
            (folder / name).mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        os.chown(folder / "home/u", 1000, 1000)
        (folder / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nu:x:1000:1000::/home/u:/bin/sh\n")
        for name in ("bin", "sbin", "lib", "lib64"):
            (folder / name).symlink_to(f"usr/{name}")
        tar = subprocess.run(["tar", "-C", folder, "-c", "."], capture_output=True, check=True).stdout
        dockerd.docker("import", "-", "outer", stdin=tar)
    script = _script(
        "$m pull -q hello-world",
        "$m run --rm hello-world | head -n 1 | cut -c1-23",
        "$m run --rm toolbox sh -c 'id -u; touch /made && ls /made; exit 7'",
        "$m run -d --name runs toolbox sleep 1000 > /dev/null",
        "$m exec runs sh -c 'id -u; exit 5'",
        "$m rm -f runs",
        "$m doctor > /dev/null",
        "$m doctor --json | grep -c 'by proot, without walls'",
        "$m system check",
        "ps -e | grep -c [p]root",
    )
    places = {str(Path(path).resolve()) for path in (sys.prefix, sys.base_prefix, who.home)}
    volumes = [f"--volume={place}:{place}:ro" for place in sorted({"/usr", *places})]
    settings = {
        "m": f"{who.interpreter} -m minirt", "PYTHONPATH": str(who.home), "HOME": "/home/u" if uid else "/tmp",
        "MINIRT_HUB": "embedded", "PATH": "/usr/bin:/usr/sbin", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    options = [f"--env={name}={value}" for name, value in settings.items()]
    words = ["run", "--rm", "--network=none", f"--user={uid}:{uid}", *volumes, *options, "outer", "sh", "-c", script]
    result = dockerd.docker(*words, check=False)
    assert result.stdout.decode().splitlines() == [
        "docker.io/library/hello-world:latest", "= 0", "Hello from a container!", "= 0",
        "0", "/made", "= 7", "= 0", "0", "= 5", "runs", "= 0", "= 0", "1", "= 0", "Everything in the store verifies",
        "= 0", "0", "= 1",
    ], result.stderr.decode()  # fmt: skip
    assert f"WARNING: {WALLS}" in result.stderr.decode()
