"""The part "Running" of what must hold against a hostile image or container, line by line.

Where a line is held by another file, its name stands here; below is what no other file tries.

- the interpreter (CVE-2019-5736): test_runtime.py::test_the_hosts_interpreter_cannot_be_reached, and for a user's own
  test_runtime_rootless.py::test_the_users_own_python_is_sealed_too; here: minirt-oci's
- no descriptor comes along, no WORKDIR behind one (CVE-2024-21626, CVE-2016-9962): tests/oci/test_oci_descriptors.py,
  test_runtime.py::test_a_failed_step…; here: `exec`, where the container's root chose what is there
- mount targets and masks (CVE-2021-30465, -2019-19921, -2019-16884, -2025-31133, -2025-52565, -2025-52881):
  test_runtime.py (symlinked_kernel_tree, never_leave, led_into_proc), tests/oci/test_oci_mounts.py,
  test_runtime_hostile.py::test_what_stands_in_the_place_of_a_mount; here: races, links in a /dev of the image's
- users and groups (CVE-2024-40635, -2022-2989): test_runtime_parts.py, tests/oci/test_oci_process.py; here: under a
  /proc of the container's making, and in large files
- capabilities (CVE-2022-29162): test_runtime.py::test_inheritable_capabilities…; here: the bounding set
- a failed step runs no command: test_runtime.py, tests/oci/test_oci_leaks.py (also kill -9); here: limits and filters
- as docker's, inside: test_runtime.py::test_dockers_defaults, test_seccomp.py, test_options.py
- nothing is left: tests/oci/test_oci_leaks.py; here: the shim's socket, and many runs of all kinds
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import require
from test_runtime import Box, box, ids, image

from minirt import linux
from minirt.client.place import peer, told
from minirt.errors import StartError
from minirt.runtime import container, control, state

sys.path.append(str(Path(__file__).with_name("oci")))
import ociruntime
from ociruntime import Runtime, children, cleaned, gather, raised, until

__all__ = ["box", "ids", "image"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux")


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder = Path(tempfile.mkdtemp(prefix="minirt-security-"))
    ociruntime.fill(folder / "rootfs")
    yield folder / "rootfs"
    shutil.rmtree(folder)


@pytest.fixture
def oci(tree: Path) -> Iterator[Runtime]:
    """minirt-oci as docker calls it. What its containers leave behind fails the test."""
    runtime = Runtime("ours", Path(tempfile.mkdtemp(prefix="minirt-security-")), tree)
    before = set(children())
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield runtime
    finally:
        gather(before)
        left = cleaned(runtime)
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 0)
        until(lambda: gather(before), "all processes to end")
        shutil.rmtree(runtime.home, ignore_errors=True)
        assert left == []


def _powers(one: Any, *more: str) -> None:
    for names in one.process["capabilities"].values():
        names += more


# exec, where the container's root chose what is there

HOSTILE = """mkdir /p; mount -t proc proc /p; mount -t tmpfs none /proc
mkdir -p /proc/sys/kernel /proc/self; echo 0 > /proc/sys/kernel/cap_last_cap; echo deny > /proc/self/setgroups
rm /dev/null; echo mine > /dev/null; touch /tmp/ready; exec sleep 60"""


@pytest.fixture
def hostile(oci: Runtime) -> Any:
    """A container whose root, with leave to mount, put a /proc and a /dev/null of its own making in their places."""
    one = oci.box("sh", "-c", HOSTILE)
    _powers(one, "CAP_SYS_ADMIN")
    one.up()
    until((one.rootfs / "tmp" / "ready").exists, "the container to be ready")
    return one


def test_a_proc_of_the_containers_making_gives_no_capabilities(hostile: Any) -> None:
    """A root's program gains its whole bounding set: which capabilities there are is not the container's to say."""
    bounding = hostile.sh("grep CapBnd /p/1/status")
    assert bounding == hostile.sh("grep CapBnd /p/self/status")


def test_a_proc_of_the_containers_making_keeps_no_groups(hostile: Any) -> None:
    """CVE-2022-2989: our own groups go, whatever /proc/self/setgroups says."""
    result = hostile.exec(hostile.id, "id", "-G", preexec_fn=lambda: os.setgroups([0, 4242]))
    assert result == (0, "0\n", "")


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_the_machines_null_device_is_not_handed_out(hostile: Any, stream: str) -> None:
    """Who holds it may change its mode: it is the container's own, or there is no exec."""
    with open("/dev/null", "r+b") as null, tempfile.TemporaryFile() as file:
        streams = {name: null if name == stream else file for name in ("stdin", "stdout", "stderr")}
        words = [*ociruntime.command("ours"), "--root", str(hostile.runtime.home / "root"), "exec", hostile.id, "true"]
        assert subprocess.run(words, check=False, **streams).returncode == 125  # type: ignore[call-overload]


@pytest.mark.parametrize("above", ["etc", ".", "..", "../.."])
def test_exec_has_no_working_directory_behind_a_descriptor(oci: Runtime, above: str) -> None:
    """CVE-2024-21626. `etc` of the bundle's rootfs: by inode and device it looks as if it were inside."""
    one = oci.box("sleep", "60").up()
    given = os.open(one.rootfs / above, os.O_RDONLY)
    fds = given, fcntl.fcntl(given, fcntl.F_DUPFD, 77)
    try:
        for number in (3, *fds):
            result = one.exec("--cwd", f"/proc/self/fd/{number}", one.id, "ls", "../..", pass_fds=fds)
            assert raised(result, "chdir", "outside of the container"), result
    finally:
        for fd in fds:
            os.close(fd)


def test_a_working_directory_is_inside_by_the_kernels_word(tmp_path: Path) -> None:
    """The C library's getcwd believes in a folder outside whose ancestor is our root by inode and device."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    script = f"""if 1:
        import os
        from minirt import linux
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
        outside = os.open({str(root / "etc")!r}, os.O_PATH)
        linux.mount({str(root)!r}, {str(root)!r}, None, linux.MS_BIND)
        os.chroot({str(root)!r})
        os.fchdir(outside)
        print(os.getcwd(), linux.getcwd().decode())"""
    seen = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False
    )
    if "Operation not permitted" in seen.stderr:
        pytest.skip("no user namespaces here")
    assert seen.stdout.startswith("/etc (unreachable)"), seen


@pytest.mark.parametrize("uid", [0, 1000])
def test_minirt_oci_runs_from_a_sealed_interpreter(tmp_path: Path, uid: int) -> None:
    """CVE-2019-5736: also a plain user's Python may be the user's own, and the container's root is that user."""
    script = """if 1:
        import os
        from minirt import child
        os.execve = lambda place, words, env: print(place, os.readlink(f"/proc/self/fd/{place}"), words[0])
        child.oci_runtime()"""
    words = [sys.executable, "-c", f"import os; os.geteuid = lambda: {uid}\n" + script]
    seen = subprocess.run(words, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    assert "/memfd:python" in seen.stdout


@pytest.mark.slow
def test_daemon_launcher_and_shim_run_from_one_sealed_interpreter(tmp_path: Path) -> None:
    """They share its pages; and the shim was born as what it is: pid 1 of its namespace, with nobody between."""
    root = tmp_path / "root"
    environment = {**os.environ, "MINIRT_ROOT": str(root), "MINIRT_HUB": "embedded"}
    minirt = [sys.executable, "-m", "minirt"]
    try:
        words = [*minirt, "run", "--detach", "--network=none", "toolbox", "sleep", "1000"]
        subprocess.run(words, env=environment, check=True, capture_output=True)
        (record,) = root.glob("containers/*/run.json")
        shim, daemon = json.loads(record.read_text())["shim"]["pid"], peer(told(root))
        launcher = state.parent(shim)
        assert state.parent(launcher) == daemon and state.numbers(shim)[-1] == 1
        pids = (daemon, launcher, shim)
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(f"/proc/{pid}/exe", "rb")) for pid in pids]
            assert len({os.fstat(file.fileno()).st_ino for file in files}) == 1
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            assert fcntl.fcntl(files[0].fileno(), fcntl.F_GET_SEALS) & seals == seals
        assert {Path(f"/proc/{pid}/comm").read_text() for pid in pids} == {"minirt\n"}
    finally:
        subprocess.run([*minirt, "rm", "--force", *(path.parent.name for path in root.glob("containers/*/run.json"))],
                       env=environment, check=False)  # fmt: skip
        subprocess.run([*minirt, "daemon", "stop"], env=environment, check=False)


def test_a_kernel_without_clone3_takes_the_longer_way(oci: Runtime, tmp_path: Path) -> None:
    """Before 5.3, or where somebody's filter says so: a process in between makes the namespaces."""
    one = oci.box("sh", "-c", "echo $$; readlink /proc/self/ns/net")
    (one.bundle / "config.json").write_text(json.dumps(one.config))
    strace = [
        require("strace"),
        "--follow-forks",
        "--quiet=all",
        "--output",
        str(tmp_path / "trace"),
        "--trace=clone3,unshare",
    ]
    words = [
        *ociruntime.command(oci.name),
        "--root",
        str(tmp_path / "root"),
        "run",
        "--bundle",
        str(one.bundle),
        one.id,
    ]
    for inject, unshares in ([], False), (["--inject=clone3:error=ENOSYS"], True):
        done = subprocess.run([*strace, *inject, *words], capture_output=True, text=True, check=False)
        assert (done.stdout.splitlines()[:1], done.returncode) == (["1"], 0), done
        assert os.readlink("/proc/self/ns/net") not in done.stdout
        assert ("CLONE_NEWNET" in "".join(re.findall("unshare.*", (tmp_path / "trace").read_text()))) == unshares


LOOK = """while :; do for p in /proc/[0-9]*; do
    e=$(readlink $p/exe) && case $e in */busybox) ;; *) echo "SEEN $p $e"; ls -l $p/fd; exit;; esac
done; done"""


def test_nobody_inside_looks_into_who_comes_in(oci: Runtime) -> None:
    """CVE-2016-9962: with leave to trace in a user namespace, from the first moment on."""
    one = oci.box("sh", "-c", LOOK)
    one.namespace("user")
    # Ids as outside: another id would close the process by itself.
    same = [{"containerID": 0, "hostID": 0, "size": 65536}]
    one.linux.update(uidMappings=same, gidMappings=same)
    one.process["noNewPrivileges"] = False
    _powers(one, "CAP_SYS_PTRACE")
    one.up()
    for _ in range(10):
        assert one.exec(one.id, "true").status == 0
    assert one.printed == ""


RECYCLED = """if 1:
    import os, signal, sys
    from pathlib import Path
    from minirt.errors import MinirtError
    from minirt.runtime import oci, state

    # Both begin in one tick of the clock, 10 ms: by number and start time they are one.
    identify = state.identify
    state.identify = lambda pid: identify(pid) | {"start_time": 1}

    class Slow(oci.Container):
        # Between the look at init and the way into its namespaces it ends, and a process of the machine has its number.
        fired = False
        def _filter(self, policy):
            if running.get("pid") and not self.fired:
                self.fired = True
                os.kill(running["pid"], signal.SIGKILL)
                os.waitpid(running["pid"], 0)
                Path("/proc/sys/kernel/ns_last_pid").write_text(str(running["pid"] - 1))
                other = os.fork()
                if other == 0:
                    signal.pause()
                assert other == running["pid"], other
            return super()._filter(policy)

    running = {}
    one = Slow(sys.argv[1], "recycled")
    pid, _ = one.create(sys.argv[2])
    one.start()
    running["pid"] = pid
    try:
        command = one.config["process"] | {"args": ["/bin/sh", "-c", "echo RAN; ls -d /proc/*/"]}
        pid, _ = one.exec(command)
        os.waitpid(pid, 0)
    except MinirtError as error:
        print("refused:", error)
    os.kill(running["pid"], signal.SIGKILL)
    one.delete(force=True)"""


def test_exec_does_not_follow_a_number_that_is_another_process_now(oci: Runtime) -> None:
    """Its namespaces would be the machine's, and the command of the container would run there."""
    one = oci.box("sleep", "60")
    one.write()
    words = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", RECYCLED]
    done = subprocess.run(
        [*words, str(oci.home / "other"), str(one.bundle)], capture_output=True, text=True, timeout=60, check=False,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("refused: cannot exec in a stopped container\n", "")


PLANTED = ["encodings/ascii.py", "encodings/idna.py", "json.py", "codecs.py", "errno.py", "ctypes/__init__.py"]


def test_nothing_of_the_images_is_loaded(oci: Runtime) -> None:
    """Modules wherever our interpreter looks, when it has joined and when it fails: none is opened."""
    one = oci.box("sleep", "60")
    package = Path(linux.__file__).parent.parent
    for folder in {str(package), *(entry for entry in sys.path if entry)}:
        for name in PLANTED:
            place = one.rootfs / folder.lstrip("/") / name
            with contextlib.suppress(FileExistsError, NotADirectoryError):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text("open('/pwned', 'w')\n")
    one.up()
    trace = one.bundle / "trace"
    for words in (["true"], ["nosuch"], ["/etc/plain"]):
        call = [*ociruntime.command("ours"), "--root", str(oci.home / "root"), "exec", one.id, *words]
        strace = shutil.which("strace")
        if strace is None:
            pytest.skip("needs strace")
        subprocess.run([strace, "-f", "-qq", "-e", "trace=setns,file", "-o", trace, *call], check=False)
        lines = trace.read_text().splitlines()
        joined = next(number for number, line in enumerate(lines) if "setns(" in line and "NEWNS" in line)
        process = lines[joined].split()[0]
        opened = [line for line in lines[joined:] if ".py" in line or "/lib" in line or ".so" in line]
        assert process and opened == [], opened
    assert not (one.rootfs / "pwned").exists()


# the shim's socket


def _line(place: Path) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    with control.Place(str(place)) as short:
        line.connect(f"{short}/{control.NAME}")
    line.settimeout(20)
    return line


def _held(place: Path) -> int:
    shim = json.loads((place / "run.json").read_text())["shim"]["pid"]
    return len(os.listdir(f"/proc/{shim}/fd"))


@pytest.fixture
def asleep(box: Box) -> Path:
    place = box.create("sleep", "60")
    container.start(place, box.ids)
    return place


def _works(place: Path) -> bool:
    """The container still runs, and its shim answers."""
    out = os.pipe()
    try:
        connection, _ = container.exec(
            place, f"w{time.monotonic_ns()}", {"args": ["echo", "hi"]}, "", (None, out[1], None)
        )
        os.close(out[1])
        assert os.read(out[0], 10) == b"hi\n"
        assert (connection.wait() or {})["exit_code"] == 0
        connection.close()
    finally:
        os.close(out[0])
    return container.status(place).state == "running"


GARBAGE = [
    b"\n", b"{}\n", b"[]\n", b"null\n", b"\xff\xfe\n", b"nonsense\n", b'{"do": null}\n', b'{"do": "__init__"}\n',
    b"[" * 200_000 + b"\n", b'{"a":' * 100_000 + b"\n", b'{"do": "attach"}\n', b'{"do": "attach", "streams": []}\n',
    b'{"do": "attach", "streams": 7}\n', b'{"do": "exec"}\n', b'{"do": "exec", "id": "x"}\n',
    b'{"do": "exec", "id": "", "streams": [0,0,0], "process": {"args": ["true"]}, "user": ""}\n',
    b'{"do": "exec", "id": "../../x", "streams": [0,0,0], "process": {"args": ["true"]}, "user": ""}\n',
    b'{"do": "exec", "id": ["x"], "streams": [0,0,0], "process": {"args": ["true"]}, "user": ""}\n',
    b'{"do": "exec", "id": "x", "streams": [1,1,1], "process": [], "user": ""}\n',
    b'{"do": "exec", "id": "x", "streams": [1,1,1], "process": {"args": []}, "user": ""}\n',
    b'{"do": "exec", "id": "x", "streams": [1,1,1], "process": {"args": ["nosuch"]}, "user": ""}\n',
    b'{"do": "exec", "id": "x", "streams": [1,1,1], "process": {"args": ["true"]}, "user": "nobody"}\n',
    b'{"do": "resize", "id": "", "width": 1, "height": 1}\n', b'{"do": "resize", "id": []}\n',
    b'{"do": "update", "resources": {"nosuch": 1}}\n', b'{"do": "update"}\n', b'{"do": "begin"}\n',
]  # fmt: skip


def test_garbage_and_descriptors_with_it(asleep: Path) -> None:
    """Each is answered or hung up on; what came with it is closed; the container goes on."""
    assert _works(asleep)
    before = _held(asleep)
    null = os.open(os.devnull, os.O_RDWR)
    try:
        for text in GARBAGE:
            with _line(asleep) as line:
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 8))]
                sent = line.sendmsg([text[:65536]], ancillary)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    line.sendall(text[sent:])
                with contextlib.suppress(ConnectionResetError):
                    assert b"Traceback" not in line.recv(65536)
    finally:
        os.close(null)
    assert _works(asleep)
    until(lambda: _held(asleep) <= before, "the descriptors to be closed")


def test_descriptors_of_half_a_request_are_bounded(asleep: Path) -> None:
    before = _held(asleep)
    null = os.open(os.devnull, os.O_RDWR)
    with _line(asleep) as line:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(1000):
                line.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 8))])
        os.close(null)
        until(lambda: _held(asleep) <= before + 10, "the descriptors to be closed", 5)
    assert _works(asleep)


def test_ten_thousand_bad_requests_leak_nothing(asleep: Path) -> None:
    assert _works(asleep)
    before = _held(asleep)
    null = os.open(os.devnull, os.O_RDWR)
    with _line(asleep) as line:
        for number in range(10_000):
            verb = (b"attach", b"exec", b"resize", b"nosuch")[number % 4]
            line.sendmsg(
                [b'{"do": "%s", "streams": 1, "id": "x"}\n' % verb],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 8))],
            )
            assert b"error" in line.recv(4096)
    os.close(null)
    until(lambda: _held(asleep) <= before, "the descriptors to be closed")
    assert _works(asleep)


def test_who_asks_and_does_not_listen_holds_nobody_up(asleep: Path) -> None:
    with _line(asleep) as deaf:
        deaf.settimeout(0.5)
        with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
            for _ in range(20_000):
                deaf.send(b'{"do": "nosuch"}\n')
        assert _works(asleep)


def test_more_connections_than_descriptors(asleep: Path) -> None:
    """All it can hold and some more, half of a request on each: who is too many is turned away, nothing ends."""
    shim = json.loads((asleep / "run.json").read_text())["shim"]["pid"]
    resource.prlimit(shim, resource.RLIMIT_NOFILE, (100, 100))
    lines: list[socket.socket] = []
    try:
        for _ in range(200):
            lines.append(_line(asleep))
            with contextlib.suppress(BrokenPipeError):
                lines[-1].send(b"{")
        assert container.status(asleep).state == "running"
    finally:
        for line in lines:
            line.close()
    assert _works(asleep)


# a config.json that lies


@pytest.mark.parametrize(
    ("kind", "file", "more"),
    [
        ("network", "net", {"sysctl": {"net.ipv4.ip_default_ttl": "64"}}),
        ("ipc", "ipc", {"sysctl": {"kernel.shm_rmid_forced": "0"}}),
        ("uts", "uts", {}),
    ],
)
def test_a_namespace_by_path_that_is_the_machines_is_not_set_up(
    oci: Runtime, kind: str, file: str, more: dict[str, Any]
) -> None:
    """Its name and settings would be the machine's."""
    one = oci.box("true")
    one.namespace(kind, f"/proc/{os.getpid()}/ns/{file}")
    one.linux.update(more)
    if kind != "uts":
        del one.config["hostname"]
    else:
        one.config["hostname"] = socket.gethostname() or "vm"
    assert raised(one.run(), "would change the machine's", "hostname needs a uts namespace")


def test_a_mount_namespace_by_path_is_refused(oci: Runtime) -> None:
    """Its root would be pivoted away under whoever lives there; at worst that is the machine."""
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "60"]) as other:
        try:
            one = oci.box("true")
            one.namespace("mount", f"/proc/{other.pid}/ns/mnt")
            assert raised(one.run(), "without a new mount namespace is not supported")
        finally:
            other.kill()


# users and groups in large files


@pytest.mark.parametrize("text", [b"\n" * (4 << 20), b":" * (4 << 20), b"a:x:0:0::/:\n" * 349_000])
def test_large_user_files_cost_little(tmp_path: Path, text: bytes) -> None:
    """They are the image's, and who reads them is our shim, outside of its memory limit."""
    (tmp_path / "etc").mkdir()
    for name in ("passwd", "group"):
        (tmp_path / "etc" / name).write_bytes(text)
    script = f"""if 1:
        import resource
        from minirt.errors import StartError
        from minirt.runtime import user
        from minirt.runtime.mounts import Root
        root, before = Root({str(tmp_path)!r}), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for text in ("web", "7:web", "7"):
            try:
                user.resolve(root, text, ["more"])
            except StartError:
                pass
        user.home(root, 5)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"""
    words = [sys.executable, "-c", script]
    seen = subprocess.run(words, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    assert int(seen.stdout) < 40  # MiB


# a failed step means no command


@pytest.mark.parametrize("call", ["setresuid", "setresgid", "prctl"])
def test_a_policy_that_makes_calls_do_nothing_leaves_no_power(oci: Runtime, call: str) -> None:
    """Without no_new_privs the filter comes before the user changes: "no error" is not "done"."""
    one = oci.box("grep", "-E", "^(Uid|Gid|CapBnd)", "/proc/self/status")
    one.process.update(noNewPrivileges=False, user={"uid": 1000, "gid": 1000})
    rule = {"names": [call], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}
    one.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    result = one.run()
    if call == "prctl":  # the bounding set is cut before
        assert int(result.out.split()[-1], 16) < 1 << 11
    else:
        assert raised(result, "did not become user 1000:1000")


LIMITS = {
    "NOFILE": lambda one: one.process.update(rlimits=[{"type": "RLIMIT_NOFILE", "soft": 0, "hard": 0}]),
    "AS": lambda one: one.process.update(rlimits=[{"type": "RLIMIT_AS", "soft": 4096, "hard": 4096}]),
    "CPU": lambda one: one.process.update(rlimits=[{"type": "RLIMIT_CPU", "soft": 0, "hard": 0}]),
    "memory": lambda one: one.linux.update(resources={"memory": {"limit": 1 << 17}}),
    "less memory": lambda one: one.linux.update(resources={"memory": {"limit": 4096}}),
}


@pytest.mark.parametrize("what", LIMITS)
def test_too_tight_a_limit_runs_nothing_and_leaves_nothing(oci: Runtime, what: str) -> None:
    # Of processor time none is left from the next tick on: that comes before the end of this, on any machine.
    one = oci.box("sh", "-c", "i=0; while [ $i -lt 1000000 ]; do i=$((i + 1)); done; echo RAN")
    LIMITS[what](one)
    result = one.run()
    assert raised(result) and "RAN" not in result.out
    assert result.err.count("\n") <= 1 and ociruntime.cgroups(one) == []


def test_one_process_is_one_process(oci: Runtime) -> None:
    """With a limit of one there is room for the command, and for nothing it would start."""
    one = oci.box("sh", "-c", "echo RAN; (echo two); echo three")
    one.linux.update(resources={"pids": {"limit": 1}})
    result = one.run()
    assert result.out == "RAN\n" and result.status and ociruntime.cgroups(one) == []


# races on what is mounted where


SWAP = """while :; do
    mv /vol/a /vol/b 2>/dev/null; ln -s / /vol/a 2>/dev/null; rm -f /vol/a; ln -s /proc /vol/a; rm -f /vol/a
    mv /vol/b /vol/a
done"""


@pytest.mark.slow
def test_a_target_that_another_container_swaps_stays_inside(oci: Runtime, tmp_path: Path) -> None:
    """CVE-2021-30465: a folder of a shared volume becomes a link to `/` and to /proc, and back, for ever."""
    volume, outside = tmp_path / "vol", tmp_path / "outside"
    (volume / "a").mkdir(parents=True)
    outside.mkdir()
    attacker = oci.box("sh", "-c", SWAP)
    attacker.mount("/vol", volume, "rbind")
    attacker.up()
    for _ in range(25):
        one = oci.box("sh", "-c", "cat /proc/self/mountinfo; ls -d /outside /a /x 2>/dev/null; grep -c . /proc/1/comm")
        one.mount("/vol", volume, "rbind")
        one.mount("/vol/a/x", outside, "rbind")
        one.linux["maskedPaths"] = ["/proc/kcore"]
        result = one.run()
        if result.status == 0:
            points = [row.split()[4] for row in result.out.splitlines() if " - " in row]
            assert not any(point.startswith("/proc/") and point != "/proc/kcore" for point in points), result.out
        else:
            assert raised(result, "mount /vol/a/x")
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert os.listdir(outside) == []
    assert set(os.listdir("/")) >= {"proc", "etc"} and not os.path.exists("/x")


@pytest.mark.parametrize("target", ["/proc/self/attr/exec", "/proc/sys/kernel/core_pattern", "/etc/passwd"])
@pytest.mark.parametrize("name", ["console", "null"])
def test_links_in_a_dev_of_the_images_own(oci: Runtime, name: str, target: str) -> None:
    """CVE-2025-31133, -52565: without a fresh /dev, what stands there is the image's; nothing is masked by it."""
    one = oci.box("cat", "/proc/keys")
    one.config["mounts"] = [entry for entry in one.config["mounts"] if not entry["destination"].startswith("/dev")]
    (one.rootfs / "dev" / name).symlink_to(target)
    if name == "console":
        os.mknod(one.rootfs / "dev" / "null", 0o020666, os.makedev(1, 3))
    one.linux["maskedPaths"] = ["/proc/keys"]
    result = one.run()
    assert result.out == "" and (name == "console" or raised(result))


def test_a_device_that_is_there_stays_whose_it_is(oci: Runtime, tmp_path: Path) -> None:
    """Where the machine's /dev is the container's, making what is there already must not take it from its owner."""
    folder = tmp_path / "dev"
    folder.mkdir()
    os.mknod(folder / "given", 0o020640, os.makedev(1, 5))
    os.chown(folder / "given", 7, 8)
    one = oci.box("true")
    one.mount("/given", folder, "rbind")
    one.linux["devices"] = [{"path": "/given/given", "type": "c", "major": 1, "minor": 5}]
    assert one.run().status == 0
    entry = os.stat(folder / "given")
    assert (entry.st_uid, entry.st_gid, entry.st_mode & 0o777) == (7, 8, 0o640)


def test_state_is_closed_to_others_whatever_the_umask(oci: Runtime) -> None:
    """It says what a later verb, as root, will do."""
    one = oci.box("sleep", "60")
    one.create(umask=0)
    folder = oci.home / "root" / one.id
    assert {path.name: path.stat().st_mode & 0o77 for path in (folder, folder / "state.json")} == {
        folder.name: 0,
        "state.json": 0,
    }


# 500 runs of all kinds


def _machine(folder: Path) -> dict[str, Any]:
    """What a leak would make more of: ours only, other tests run beside."""
    return {
        "mounts": Path("/proc/self/mountinfo").read_text().count(str(folder)),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "children": len(children()),
    }


@pytest.mark.slow
def test_many_runs_of_all_kinds_leave_nothing(box: Box, tmp_path: Path) -> None:
    """Well, failing, killed, on a terminal, with an exec; by the shim, three at once. MINIRT_RUNS: how many."""
    assert box.run("true").exit_code == 0
    before = _machine(box.folder)
    groups = {
        str(path) for base in set(ociruntime.hierarchies().values()) for path in base.glob("minirt/*") if path.is_dir()
    }
    places: list[Path] = []
    failures: list[BaseException] = []

    def one(number: int) -> None:
        kind = number % 6
        try:
            place = box.create(
                *(["nosuch"] if kind == 1 else ["sleep", "60"] if kind in (2, 4) else ["true"]), terminal=kind == 3
            )
            places.append(place)
            if kind == 1:
                with pytest.raises(StartError):
                    container.start(place, box.ids)
                return
            container.start(place, box.ids)
            if kind == 4:
                connection, _ = container.exec(place, "x", {"args": ["true"]}, "", (None, None, None))
                assert (connection.wait() or {})["exit_code"] == 0
                connection.close()
                container.signal(place, signal.SIGKILL)
            if kind == 2:
                shim = json.loads((place / "run.json").read_text())["shim"]["pid"]
                os.kill(shim, signal.SIGKILL)
            container.wait(place, 30)
            if kind == 2:
                container.clean(place)
        except BaseException as error:
            failures.append(error)

    count = int(os.environ.get("MINIRT_RUNS", "120"))
    numbers = iter(range(count))

    def work() -> None:
        for number in numbers:
            one(number)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and len(places) == count
    until(lambda: _machine(box.folder) == before, f"{before} again")
    left = {
        str(path) for base in set(ociruntime.hierarchies().values()) for path in base.glob("minirt/*") if path.is_dir()
    }
    assert {path for path in left - groups if Path(path).name in {place.name for place in places}} == set()
    for place in places:
        run = state.read_json(str(place / "run.json"))
        assert run is None or {state.open_process(run, role) for role in ("shim", "init")} == {None}


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("full", [4096, 8192])
def test_both_outputs_in_one_place_that_nobody_reads(box: Box, kind: str, full: int) -> None:
    """`run … 2>&1 | less`: what the first fills must not hold the shim up at the second."""
    if kind == "pipe":
        reading, writing = os.pipe()
        os.write(writing, bytes(full))
    else:
        ours, theirs = socket.socketpair()
        reading, writing = ours.detach(), theirs.detach()
    place = box.create("sh", "-c", "cat /dev/zero & exec cat /dev/zero >&2")
    container.start(place, box.ids, None, writing, writing)
    os.close(writing)
    time.sleep(0.5)
    checker = threading.Thread(target=lambda: _works(place), daemon=True)
    try:
        checker.start()
        checker.join(10)
        assert not checker.is_alive()
        container.signal(place, signal.SIGKILL)
        until(lambda: container.status(place).state == "exited", "its end to be told")
    finally:
        os.close(reading)


def test_orphans_of_a_shared_pid_namespace_are_not_kept(box: Box) -> None:
    """They are its own init's to bury; as our children they would stay zombies for as long as the container runs."""
    script = "for i in 1 2 3 4 5 6 7 8; do (sleep 0.01 &); done; sleep 60"
    place = box.create("sh", "-c", script, shared=frozenset({"pid"}))
    try:
        container.start(place, box.ids)
    except StartError as error:
        pytest.skip(str(error))
    time.sleep(0.5)
    shim = json.loads((place / "run.json").read_text())["shim"]["pid"]
    words = ["ps", "--no-headers", "--ppid", str(shim), "-o", "stat,comm"]
    assert "Z" not in subprocess.run(words, capture_output=True, text=True, check=False).stdout
