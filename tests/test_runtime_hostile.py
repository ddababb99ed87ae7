"""What a hostile image or command, a full disk or bad timing may not do to a container, its user or the machine."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import stat
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import bundles
import pytest
from peers import require
from test_cli_run import COMMAND, good, minirt
from test_runtime import Box, as_root, box, ids, image

from minirt.client import Client
from minirt.errors import Conflict, MinirtError, StartError
from minirt.runtime import container, state, user
from minirt.runtime.mounts import Root

__all__ = ["box", "ids", "image"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux")


def _until(ready: object, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


def _copy(box: Box) -> Path:
    return Path(shutil.copytree(box.image, box.folder / "hostile", symlinks=True))


# The right columns are what `docker run -u` gives over the same files.
@pytest.mark.parametrize(
    ("text", "uid", "gid", "groups"),
    [
        ("1000", 1000, 0, [0]),
        ("web:2000", 1001, 2000, [2000]),
        ("01001", 1001, 1001, [1001, 2001]),
        ("+1001", 1001, 1001, [1001, 2001]),
    ],
)
def test_a_number_is_an_id_whatever_the_image_calls_it(
    tmp_path: Path, text: str, uid: int, gid: int, groups: list[int]
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text(
        "1000:x:0:0::/:\nodd:x:²:1::/:\nlong\x85root:x:0:0::/:\nweb:x:1001:1001::/:\n"
    )
    (tmp_path / "etc" / "group").write_text("2000:x:0:\nweb:x:1001:\nextra:x:2001:web\n")
    found = user.resolve(Root(str(tmp_path)), text)
    assert (found["uid"], found["gid"], found["additionalGids"]) == (uid, gid, groups)


def test_only_root_begins_with_capabilities(box: Box) -> None:
    if box.ids.single:
        pytest.skip("one id: nobody but root to be")
    copy = _copy(box)
    shutil.copy(copy / "bin" / "busybox", copy / "bin" / "private")
    (copy / "bin" / "private").chmod(0o700)
    for name in "private", "/bin/private":
        with pytest.raises(StartError, match="^exec /bin/private: permission denied$") as caught:
            box.run(name, image=copy, user="web")
        assert caught.value.exit_code == 126
    place = box.create("grep", "^Cap[PE]", "/proc/self/status", user="web")
    assert [line.split()[1] for line in bundles.run(place, box.ids).stdout.splitlines()] == ["0" * 16] * 2
    sets = json.loads((place / "config.json").read_text())["process"]["capabilities"]
    assert (sets["effective"], sets["permitted"], len(sets["bounding"])) == ([], [], 14)


def test_a_path_through_a_file_is_dockers_125(box: Box) -> None:
    with pytest.raises(StartError, match="not a directory") as caught:
        box.run("/etc/passwd/x")
    assert caught.value.exit_code == 125


@pytest.mark.parametrize("kind", ["fifo", "directory", "link"])
@pytest.mark.parametrize("name", ["dev/null", "dev/pts", "dev/shm", "etc/hosts", "etc/passwd", "proc", "sys"])
def test_what_stands_in_the_place_of_a_mount(box: Box, name: str, kind: str, tmp_path: Path) -> None:
    """It is covered or refused in one line, at once; nothing outside is opened, made or changed."""
    copy, outside = _copy(box), tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("root:x:0:0:::\n")
    place = copy / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to(outside / "file")
    try:
        seen = box.run("sh", "-c", "stat -c %F /dev/null; stat -f -c %T /proc /dev/shm", image=copy)
        assert seen.stdout == "character special file\nproc\ntmpfs\n"
    except StartError as error:
        assert "\n" not in str(error)
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "root:x:0:0:::\n"


def test_nothing_of_the_starter_is_left(box: Box) -> None:
    place = box.create("sh", "-c", "ls /proc/self/fd; env; cat /proc/1/environ; cat /proc/1/cmdline; ls /proc")
    script = f"""if 1:
        import os
        from pathlib import Path
        from minirt import userns
        from minirt.runtime import container
        os.set_inheritable(os.open("/", os.O_RDONLY), True)
        os.dup2(os.open("/", os.O_RDONLY), 77)
        container.start(Path({str(place)!r}), userns.detect(), None, 1, 1)
        container.wait(Path({str(place)!r}))"""
    secret = {"MINIRT_ROOT": "/secret", "PYTHONPATH": str(Path(__file__).parent.parent), "LD_BIND_NOW": "secret"}
    words = [sys.executable, "-c", script]
    seen = subprocess.run(words, check=True, stdout=subprocess.PIPE, env={**os.environ, **secret}, text=True).stdout
    assert seen.split()[:4] == ["0", "1", "2", "3"] and "77" not in seen.split()
    assert not any(word in seen for word in ("MINIRT", "PYTHON", "LD_", "secret", "minirt.runtime"))


def test_two_starts_at_once_are_one(box: Box) -> None:
    place, answers = box.create("sleep", "60"), []
    barrier = threading.Barrier(5)

    def start() -> None:
        barrier.wait()
        try:
            answers.append(container.start(place, box.ids))
        except Conflict:
            answers.append(0)

    threads = [threading.Thread(target=start) for _ in range(5)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert sorted(answers)[:4] == [0] * 4
    assert container.status(place).pid == max(answers) > 0


@as_root
def test_a_full_disk_loses_no_exit_status(box: Box, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run([require("mount"), "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], check=True)
    try:
        box.folder = small
        place = box.create("sh", "-c", "head -c 9000000 /dev/zero > /fill; echo full >&2; exit 3")
        result = bundles.run(place, box.ids)
        assert (result.exit_code, container.status(place).state) == (3, "exited")
        assert result.stderr.endswith("\nfull\n") and len(result.stderr.splitlines()) == 2
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@as_root
def test_memfds_may_be_made_without_leave_to_execute(box: Box) -> None:
    if not Path("/proc/sys/vm/memfd_noexec").exists():
        pytest.skip("this kernel has no vm.memfd_noexec")
    place = box.create("true")
    words = "echo 1 > /proc/sys/vm/memfd_noexec && exec " + " ".join([sys.executable, "-c", '"$0"'])
    script = f"""if 1:
        from pathlib import Path
        from minirt import userns
        from minirt.runtime import container
        container.start(Path({str(place)!r}), userns.IdMapping())
        print(container.wait(Path({str(place)!r})))"""
    inside = [require("unshare"), "--pid", "--fork", "--mount-proc", "sh", "-c", words, script]
    result = subprocess.run(inside, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("0\n", "")


def test_a_container_removed_by_force_was_killed(box: Box) -> None:
    place, codes = box.create("sleep", "60"), []
    container.start(place, box.ids)
    waiter = threading.Thread(target=lambda: codes.append(container.wait(place)))
    waiter.start()
    time.sleep(0.2)
    gone = place.rename(place.with_name("gone"))
    os.kill(json.loads((gone / "run.json").read_text())["shim"]["pid"], signal.SIGKILL)
    waiter.join(10)
    assert codes == [137]


def test_runs_leave_nothing(box: Box) -> None:
    def holdings() -> tuple[int, int, str]:
        return (
            len(os.listdir("/proc/self/fd")),
            Path("/proc/self/mountinfo").read_text().count(str(box.folder)),
            Path("/proc/self/cgroup").read_text(),
        )

    assert box.run("true").exit_code == 0
    before = holdings()
    places = [box.create("sh", "-c", "(sleep 60 &) ; exec 1>&- 2>&-; exit 4") for _ in range(20)]
    threads = [threading.Thread(target=container.start, args=(place, box.ids)) for place in places]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert [container.wait(place, 20) for place in places] == [4] * 20
    assert holdings() == before
    for run in (state.read_json(str(place / "run.json")) for place in places):
        assert run is not None and state.open_process(run, "shim") is None and state.open_process(run, "init") is None


def test_output_nobody_reads_ends_a_foreground_run(root: Path) -> None:
    """`minirt run IMAGE yes | head -1`. docker's status is 1, but its container stays and its log fills the disk."""
    good("pull", "toolbox")
    words = [*COMMAND, "run", "--rm", "toolbox", "sh", "-c", "while :; do echo y; done"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(10) == 1
        assert process.stderr.read() == b""
    assert good("ps", "-aq") == ""


def test_a_silent_command_outlives_its_reader(root: Path) -> None:
    good("pull", "toolbox")
    words = [*COMMAND, "run", "--rm", "toolbox", "sh", "-c", "echo y; sleep 1; exit 3"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(10) == 3


def test_lost_output_is_told(root: Path) -> None:
    good("pull", "toolbox")
    with open("/dev/full", "wb") as full:
        words = [*COMMAND, "run", "--rm", "toolbox", "echo", "hi"]
        result = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (result.returncode, result.stderr) == (1, b"minirt: write /dev/stdout: no space left on device\n")
    assert good("ps", "-aq") == ""


def test_the_terminal_is_the_shells_again_when_the_client_dies(root: Path) -> None:
    good("pull", "toolbox")
    ours, theirs = pty.openpty()
    modes = termios.tcgetattr(theirs)
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    words = [*COMMAND, "run", "-i", "toolbox", "cat"]
    try:
        with subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE, start_new_session=True) as process:
            os.write(ours, b"one\n")
            assert process.stdout and process.stdout.readline() == b"one\n"
            process.kill()
        _until(lambda: good("ps", "-q") == "")  # its stdin ended with the client
        os.write(ours, b"two\n")
        assert select.select([theirs], [], [], 5)[0] and os.read(theirs, 100) == b"two\n"
    finally:
        os.close(ours), os.close(theirs)


def test_a_stalled_reader_holds_up_neither_rm_nor_stop(root: Path) -> None:
    good("pull", "toolbox")
    for name, end in ("one", ["rm", "-f", "one"]), ("two", ["stop", "-t", "0", "two"]):
        words = [*COMMAND, "run", "--name", name, "toolbox", "sh", "-c", "while :; do echo y; done"]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdout.read(2) == b"y\n"
            time.sleep(0.3)  # the pipe is full
            started = time.monotonic()
            good(*end)
            assert time.monotonic() - started < 5
            process.stdout.read()
            assert process.wait(10) == 137


def test_a_start_and_a_removal_at_once(root: Path) -> None:
    good("pull", "toolbox")
    client = Client(root)
    for _ in range(5):
        name = client.create({"Image": "toolbox", "Cmd": ["sleep", "60"]})["Id"]
        results = []

        def start(name: str = name, results: list[str] = results) -> None:
            try:
                Client(root).start(name)
            except (MinirtError, OSError) as error:
                results.append(str(error))

        thread = threading.Thread(target=start)
        thread.start()
        try:
            client.remove(name)
        except Conflict:
            assert client.inspect_container(name)["State"]["Running"]
            client.remove(name, force=True)
        thread.join()
        assert client.containers(all=True) == []
    found = [path for path in Path("/proc").glob("[0-9]*/cmdline") if _mentions(path, str(root))]
    shims = [path for path in found if not _mentions(path, "minirt.daemon")]
    assert shims == []


def _mentions(path: Path, text: str) -> bool:
    try:
        return text.encode() in path.read_bytes()
    except OSError:
        return False


def test_names_of_the_host(root: Path) -> None:
    good("pull", "toolbox")
    assert good("run", "--rm", "--network", "host", "toolbox", "cat", "/etc/hosts") == Path("/etc/hosts").read_text()
    for name in "my_host", "-x", "a" * 64:
        assert good("run", "--rm", "--hostname", name, "toolbox", "hostname") == f"{name}\n"
    assert minirt("run", "--hostname", "a" * 65, "toolbox", "true").returncode == 125


def test_folders_of_containers_are_closed(root: Path) -> None:
    good("run", "toolbox", "true")
    assert {stat.S_IMODE(path.stat().st_mode) for path in (root, *(root / "containers").iterdir())} == {0o700}


def test_every_mount_below_sys_is_read_only(box: Box) -> None:
    """Also where a plain user's container shares the network, and so gets the machine's /sys with all below it."""
    for network in "none", "host":
        lines = box.sh("cat /proc/self/mountinfo", network=network).splitlines()
        mounts = [line.split() for line in lines if line.split()[4].startswith("/sys")]
        assert mounts and all(mount[5].split(",")[0] == "ro" for mount in mounts), mounts
