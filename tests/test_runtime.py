"""Real containers over a busybox tree, as whoever runs the tests; and the same bundle under runc."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import bundles
import pytest
from peers import require

from minirt import userns
from minirt.errors import Conflict, InvalidInput, NotFound, StartError
from minirt.runtime import container, doctor, log, spec, state

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def ids() -> userns.IdMapping:
    found = userns.detect()
    if found is None:
        pytest.skip("this machine has neither root nor user namespaces")
    return found


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    folder.parent.chmod(0o755)
    return bundles.tree(folder, require("busybox"))


class Box:
    """Makes containers and leaves none behind."""

    def __init__(self, folder: Path, image: Path, ids: userns.IdMapping) -> None:
        self.folder, self.image, self.ids, self.made = folder, image, ids, []

    def create(self, *args: str, **options: Any) -> Path:
        image = options.pop("image", self.image)
        self.made.append(bundles.create(self.folder, image, list(args), self.ids, **options))
        return self.made[-1]

    def run(self, *args: str, stdin: bytes | None = None, **options: Any) -> bundles.Result:
        return bundles.run(self.create(*args, **options), self.ids, stdin)

    def sh(self, script: str, **options: Any) -> str:
        result = self.run("sh", "-c", script, **options)
        assert (result.exit_code, result.stderr) == (0, ""), result
        return result.stdout


@pytest.fixture
def box(tmp_path: Path, image: Path, ids: userns.IdMapping) -> Any:
    box = Box(tmp_path, image, ids)
    yield box
    for place in box.made:
        if container.status(place).state == "running":
            container.signal(place, signal.SIGKILL)
            container.wait(place, 10)
        container.clean(place)  # of one whose shim was killed
        if (place / "work" / "work").exists():
            (place / "work" / "work").chmod(0o700)  # overlay makes it 0000


# Our default devices are mounts of their own (see devices.py), runc's are nodes guarded by a device cgroup.
INSIDE = """id; env | sort; pwd; hostname; umask; cat /etc/hostname /etc/resolv.conf; cat /proc/1/comm
grep -E '^(Cap|NoNewPrivs|Groups|Uid|Gid|SigBlk)' /proc/self/status
ls -l /dev | awk '{$6=$7=$8=""; print}'
mount | awk '$3 !~ "^/dev/(null|zero|full|random|urandom|tty)$" {print $3, $5}' | sort
stat -c '%n %a %F %U' /dev/shm /dev/pts /dev/mqueue /proc/kcore /proc/keys /sys/firmware 2>/dev/null
wc -c /proc/keys /proc/timer_list; ls /sys/firmware /proc/acpi; ls -l /proc/self/fd | awk 'NR>1 && $9<3 {print $9}'
ip -o link; ip addr show lo | grep inet; cat /proc/self/oom_score_adj"""


@as_root
@pytest.mark.parametrize("user", ["", "web"])
def test_the_same_bundle_is_the_same_container_under_runc(box: Box, user: str, tmp_path: Path) -> None:
    place = box.create("sh", "-c", INSIDE, user=user, overlay=False, cwd="/etc")
    ours = bundles.run(place, box.ids)
    words = [require("runc"), "--root", str(tmp_path / "state"), "run", "--bundle", str(place), f"minirt-{os.getpid()}"]
    theirs = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert theirs.returncode == 0, theirs.stderr
    assert ours.stdout.splitlines() == theirs.stdout.splitlines()
    assert ours.stderr == theirs.stderr


def test_dockers_defaults(box: Box) -> None:
    status = box.run("cat", "/proc/self/status").stdout
    sets = dict(line.split(":\t") for line in status.splitlines() if line.startswith(("Cap", "NoNewPrivs")))
    assert sets == {
        "CapInh": "0000000000000000", "CapPrm": "00000000a80425fb", "CapEff": "00000000a80425fb",
        "CapBnd": "00000000a80425fb", "CapAmb": "0000000000000000", "NoNewPrivs": "1",
    }  # fmt: skip
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn"))
    assert int(ignored.split()[1], 16) & 0x7FFFFFFF == 0  # posix_spawn(3) ignores 32 and 33
    assert box.sh("grep NoNewPrivs /proc/self/status", no_new_privileges=False) == "NoNewPrivs:\t0\n"
    assert box.run("env", env=["A=1"]).stdout.splitlines() == [spec.PATH, "HOSTNAME=box", "A=1", "HOME=/root"]
    assert box.sh("pwd; ls -d /a/b; touch /a/b/file", cwd="/a/b") == "/a/b\n/a/b\n"
    assert "Read-only" in box.run("touch", "/file", readonly=True).stderr
    assert box.run("touch", "/proc/sys/kernel/hostname", "/sys/x").exit_code == 1
    # Nothing but stdin, stdout, stderr (and the listing itself) is open.
    assert box.sh("ls /proc/self/fd") == "0\n1\n2\n3\n"
    assert box.sh("echo out > /dev/stdout; echo null > /dev/null; cat /dev/stdin") == "out\n"


@as_root
@pytest.mark.parametrize("folder", ["", "/dev", "/dev/shm", "/tmp"])
@pytest.mark.parametrize("overlay", [True, False])
def test_a_device_that_the_container_makes_opens_nothing(box: Box, folder: str, overlay: bool) -> None:
    # /dev/net/tun: any root may open it on the host, and by no default of docker's a container's.
    assert subprocess.run(["head", "-c", "0", "/dev/net/tun"], check=False).returncode == 0
    made = box.run("sh", "-c", f"mknod {folder}/tun c 10 200 && head -c 0 {folder}/tun", overlay=overlay)
    reason = "Permission denied" if folder == "/dev/shm" else "Operation not permitted"
    assert made.exit_code == 1 and reason in made.stderr
    assert box.sh("head -c 3 /dev/zero | wc -c; echo x > /dev/null", overlay=overlay) == "3\n"


def test_the_hosts_network_is_shared_only_when_asked(box: Box) -> None:
    ours = {line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]}
    devices = 'tail -n +3 /proc/net/dev | awk -F: \'{gsub(" ",""); print $1}\' '
    assert box.sh(devices) == "lo\n"
    assert set(box.sh(devices, network="host").split()) == ours


@pytest.mark.parametrize(
    ("args", "text", "code"),
    [
        (["nope"], 'exec: "nope": executable file not found in $PATH', 127),
        ([""], 'exec: "": executable file not found in $PATH', 127),
        (["/nope"], 'exec: "/nope": stat /nope: no such file or directory', 127),
        (["etc/plain"], 'exec: "etc/plain": permission denied', 126),
        (["/etc"], 'exec: "/etc": permission denied', 126),
    ],
)
def test_a_command_that_cannot_start_says_what_docker_says(box: Box, args: list[str], text: str, code: int) -> None:
    place = box.create(*args)
    with pytest.raises(StartError) as caught:
        container.start(place, box.ids)
    assert (str(caught.value), caught.value.exit_code) == (text, code)
    assert container.status(place).state == "created"


def test_what_is_no_program_fails_on_stderr_as_under_docker(box: Box) -> None:
    assert box.run("garbage") == (1, "", "exec /bin/garbage: exec format error\n")
    assert box.run("orphan") == (1, "", "exec /bin/orphan: no such file or directory\n")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"user": "nobody"}, "unable to find user nobody: no matching entries in passwd file"),
        ({"user": "0:nogrp"}, "unable to find group nogrp: no matching entries in group file"),
        ({"user": "4294967296"}, "uids and gids must be in range 0-2147483647"),
        ({"cwd": "/etc/plain"}, "Cannot mkdir: /etc/plain is not a directory"),
        ({"cwd": "/proc/self/fd/3"}, "working directory /proc/self/fd/3"),  # CVE-2024-21626
        ({"cwd": "/proc/1/root/tmp"}, "working directory /proc/1/root/tmp"),
        ({"extra_mounts": ({"destination": "/x", "type": "bind", "source": "/no/such"},)}, "mount /x: No such file"),
        ({"extra_mounts": ({"destination": "/x", "type": "nofs", "source": "x"},)}, "mount /x: No such device"),
    ],
)
def test_a_failed_step_means_the_command_does_not_run(box: Box, options: dict[str, Any], text: str) -> None:
    place = box.create("touch", "/ran", **options)
    with pytest.raises(StartError, match=text.replace("(", r"\(")) as caught:
        container.start(place, box.ids)
    assert caught.value.exit_code == 125
    assert "\n" not in str(caught.value)
    assert not (place / "upper" / "ran").exists()


def _hostile(box: Box, links: dict[str, str]) -> Path:
    folder = box.folder / "hostile"
    subprocess.run(["cp", "-a", box.image, folder], check=True)
    for name, target in links.items():
        (folder / name).parent.mkdir(exist_ok=True)
        os.symlink(target, folder / name)
    return folder


@pytest.mark.parametrize("name", ["proc", "dev", "sys"])
def test_a_symlinked_kernel_tree_is_refused(box: Box, name: str) -> None:
    image = _hostile(box, {name: "/tmp"})
    with pytest.raises(StartError, match=f"mount /{name}: a symbolic link .* refused"):
        box.run("true", image=image)


def test_mount_targets_never_leave_the_rootfs(box: Box, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "hosts").write_text("precious\n")
    up = "../" * 30 + str(outside).lstrip("/")
    image = _hostile(
        box, {"etc/hosts": f"{outside}/hosts", "etc/hostname": f"{up}/made", "etc/resolv.conf": "../run/r"}
    )
    assert "localhost" in box.sh(f"cat {outside}/hosts; cat {outside}/made; cat /run/r", image=image)
    assert os.listdir(outside) == ["hosts"]
    assert (outside / "hosts").read_text() == "precious\n"


def test_a_target_may_not_be_led_into_proc(box: Box) -> None:
    image = _hostile(box, {"etc/hosts": "/proc/self/attr/exec"})  # CVE-2019-19921
    with pytest.raises(StartError, match="leads to /proc"):
        box.run("true", image=image)


def test_streams_stay_apart_and_the_log_keeps_every_byte(box: Box) -> None:
    place = box.create("sh", "-c", "cat; echo end >&2; head -c 40000 /dev/zero; printf 'no newline'")
    data = os.urandom(300_000)
    given, out = os.pipe(), os.pipe()
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.extend(iter(lambda: os.read(out[0], 65536), b"")))
    writer = threading.Thread(target=lambda: (os.write(given[1], data), os.close(given[1])))
    container.start(place, box.ids, given[0], out[1], None)
    os.close(given[0]), os.close(out[1])
    reader.start(), writer.start()
    assert container.wait(place, 20) == 0
    writer.join(), reader.join()
    os.close(out[0])
    expected = data + bytes(40000) + b"no newline"
    assert b"".join(received) == expected
    pieces = list(log.read(place / "log"))
    assert b"".join(piece for stream, piece in pieces if stream == "stdout") == expected
    assert [piece for stream, piece in pieces if stream == "stderr"] == [b"end\n"]


def test_a_reader_that_goes_away_stops_nothing(box: Box) -> None:
    place = box.create("sh", "-c", "seq 1 20000; echo done >&2")
    out = os.pipe()
    container.start(place, box.ids, None, out[1], None)
    os.close(out[1]), os.close(out[0])
    assert container.wait(place, 20) == 0
    pieces = list(log.read(place / "log"))  # in order within a stream, not between two
    assert b"".join(piece for stream, piece in pieces if stream == "stdout").endswith(b"19999\n20000\n")
    assert ("stderr", b"done\n") in pieces


def test_a_reader_that_stalls_and_leaves_after_the_end_holds_nothing_up(box: Box) -> None:
    place = box.create("head", "-c", "150000", "/dev/zero")  # more than a pipe holds, less than all on the way do
    out = os.pipe()
    container.start(place, box.ids, None, out[1], None)
    os.close(out[1])
    for _ in range(200):
        if container.status(place).state == "exited":
            break
        time.sleep(0.05)
    with pytest.raises(TimeoutError):  # it has ended, but its output is not handed over yet
        container.wait(place, 0.1)
    os.close(out[0])
    assert container.wait(place, 10) == 0
    assert sum(len(piece) for _, piece in log.read(place / "log")) == 150000


@as_root
def test_inheritable_capabilities_of_the_starter_stop_at_the_container(box: Box) -> None:
    place = box.create("grep", "^Cap[IA]", "/proc/self/status")  # CVE-2022-29162
    script = f"""if 1:
        from pathlib import Path
        from minirt import linux, userns
        from minirt.runtime import container
        linux.capset(*[linux.capget()[1]] * 3)
        for capability in (0, 1, 10):
            linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_RAISE, capability)
        container.start(Path({str(place)!r}), userns.IdMapping())
        container.wait(Path({str(place)!r}))"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent.parent)
    assert [piece.split()[1] for _, piece in log.read(place / "log")] == [b"0" * 16] * 2


def test_exit_status_and_signals(box: Box) -> None:
    assert box.run("sh", "-c", "exit 3").exit_code == 3
    place = box.create("sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done")
    out = os.pipe()
    pid = container.start(place, box.ids, None, out[1])
    assert container.status(place).state == "running"
    assert container.status(place).pid == pid
    assert os.read(out[0], 3) == b"up\n"
    with pytest.raises(Conflict):
        container.start(place, box.ids)
    with pytest.raises(TimeoutError):
        container.wait(place, 0.05)
    container.signal(place, signal.SIGTERM)
    assert container.wait(place, 10) == 7
    os.close(out[0]), os.close(out[1])
    end = container.status(place)
    assert (end.state, end.exit_code, end.started < end.finished) == ("exited", 7, True)
    with pytest.raises(Conflict):
        container.signal(place, signal.SIGTERM)
    # It can be started again, and killed.
    container.start(place, box.ids)
    container.signal(place, signal.SIGKILL)
    assert container.wait(place, 10) == 137
    with pytest.raises(NotFound):
        container.wait(box.create("true"))


def test_nothing_outlives_the_shim(box: Box) -> None:
    user = "" if box.ids.single else "web"  # a change of user clears PR_SET_PDEATHSIG: that alone would not do
    place = box.create("sh", "-c", "sleep 60 & sleep 60", user=user)
    container.start(place, box.ids)
    run = state.read_json(str(place / "run.json"))
    assert run is not None
    init = os.pidfd_open(run["init"]["pid"])
    os.kill(run["shim"]["pid"], signal.SIGKILL)
    assert state.ended(init, 10)
    os.close(init)
    assert container.wait(place, 10) == 137
    assert container.status(place).state == "dead"
    assert str(place) not in Path("/proc/self/mountinfo").read_text()


def test_a_recycled_pid_is_nobody(box: Box) -> None:
    place = box.create("sleep", "60")
    container.start(place, box.ids)
    run = json.loads((place / "run.json").read_text())
    for change in ({"boot_id": "another"}, {"init": {**run["init"], "start_time": 1}}):
        (place / "run.json").write_text(json.dumps({**run, **change}))
        with pytest.raises(Conflict):
            container.signal(place, signal.SIGKILL)
    (place / "run.json").write_text(json.dumps({**run, "shim": {**run["shim"], "start_time": 1}}))
    assert container.status(place).state == "dead"
    (place / "run.json").write_text(json.dumps(run))
    assert container.status(place).state == "running"


def test_the_hosts_interpreter_cannot_be_reached(box: Box) -> None:
    place = box.create("sleep", "60")  # CVE-2019-5736: what runs as /proc/PID/exe until the command does
    container.start(place, box.ids)
    shim = json.loads((place / "run.json").read_text())["shim"]["pid"]
    assert os.readlink(f"/proc/{shim}/exe").startswith("/memfd:")
    with pytest.raises(OSError):
        os.open(f"/proc/{shim}/exe", os.O_WRONLY)


@as_root
def test_overlay_of_127_layers_with_and_without_lowerdir_plus(box: Box, tmp_path: Path) -> None:
    place = box.create("sh", "-c", "cat /which; ls /bin/busybox /only1 /only126")
    rootfs = json.loads((place / "rootfs.json").read_text())
    deep = tmp_path / ("d" * 100) / "with:colon,comma"
    layers = [deep / f"{number:064d}" for number in range(126)]
    for number, layer in enumerate(layers):
        layer.mkdir(parents=True)
        (layer / "which").write_text(f"{number}\n")
        (layer / f"only{number + 1}").touch()
    rootfs["lowers"] = [*map(str, layers), str(box.image)]
    (place / "rootfs.json").write_text(json.dumps(rootfs))
    assert bundles.run(place, box.ids).stdout == "0\n/bin/busybox\n/only1\n/only126\n"
    script = f"""if 1:
        import json, os
        from minirt import linux
        from minirt.runtime import rootfs
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        folder = {str(place)!r}
        rootfs._overlay_by_links(folder, folder + "/rootfs", json.load(open(folder + "/rootfs.json")))
        print(open(folder + "/rootfs/which").read(), os.path.exists(folder + "/rootfs/only126"))"""
    words = [sys.executable, "-c", script]
    result = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert result.stdout == "0\n True\n", result.stderr


def test_a_bundle_belongs_to_one_mapping(box: Box) -> None:
    with pytest.raises(StartError, match="another id mapping"):
        container.start(box.create("true"), userns.IdMapping(((0, 4242, 1),), ((0, 4242, 1),)))


def test_doctor_finds_out_by_trying(ids: userns.IdMapping) -> None:
    rows = {row["capability"]: row for row in doctor.probe()}
    assert {"kernel", "user namespace", "pid namespace", "overlay", "/proc mount", "cgroups", "seccomp"} <= set(rows)
    assert rows["pid namespace"]["works"] and rows["mount namespace"]["works"]  # else no test above would have run
    for row in rows.values():
        assert row["works"] or row["hint"]
        assert "\n" not in row["detail"] + row["hint"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"args": []}, "no command specified"),
        ({"cwd": "rel"}, "the working directory 'rel' is invalid, it needs to be an absolute path"),
        ({"network": "mars"}, "network mars not found"),
        ({"args": ["a\0b"]}, "NUL"),
    ],
)
def test_what_no_container_can_be(change: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        spec.generate(spec.ContainerOptions(**{"args": ["true"], "env": [], **change}))
