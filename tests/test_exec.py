"""exec, pause, update, top, stats, stop and kill of running containers, held against docker's own answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import said
from bundles import tree
from dockerd import Dockerd
from peers import require
from test_cli_terminal import COMMAND
from test_terminal import Person, until_size
from users import plain_user

from minirt.cli.stats import row
from minirt.client import Client
from minirt.engine.signals import number
from minirt.errors import Conflict, InvalidInput, NotFound

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux")

LOOP = ["sh", "-c", "trap 'exit 3' USR1; while :; do sleep 0.05; done"]


def minirt(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    settings = {"capture_output": True, "text": True, "check": False, **settings}
    if "input" not in settings:
        settings.setdefault("stdin", subprocess.DEVNULL)
    return said.run([*COMMAND, *words], **settings)


def good(*words: str, **settings: Any) -> str:
    result = minirt(*words, **settings)
    assert result.returncode == 0, result.stderr
    return str(result.stdout)


@pytest.fixture
def one(root: Path) -> str:
    """A running container named one; its id."""
    good("pull", "-q", "toolbox")
    return good("run", "-d", "--network=none", "--name", "one", "toolbox", *LOOP).strip()


@pytest.fixture
def limited() -> None:
    """Root with cgroups to write in."""
    if os.geteuid() or not os.access("/sys/fs/cgroup", os.W_OK):
        pytest.skip("needs root and cgroups")


def state(field: str, name: str = "one") -> str:
    return good("inspect", "-f", f"{{{{.State.{field}}}}}", name).strip()


def test_streams_status_and_environment(one: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    result = subprocess.run([*COMMAND, "exec", "-i", "one", "cat"], input=data, capture_output=True, check=True)
    assert result.stdout == data
    result = minirt("exec", "one", "sh", "-c", "echo out; echo err >&2; cat; exit 9", input="not asked for")
    assert (result.returncode, result.stdout, result.stderr) == (9, "out\n", "err\n")
    (tmp_path / "env").write_text("B=2\nC=3\n")
    words = ["-e", "A=1", "--env-file", str(tmp_path / "env"), "-e", "C=4", "-w", "/tmp", "-u", "65534:12", "one"]
    script = "pwd; id -u; id -g; echo $A $B $C $HOSTNAME $TERM"
    assert good("exec", *words, "sh", "-c", script).split() == ["/tmp", "65534", "12", "1", "2", "4", one[:12]]


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["one", "nosuch"], 127, 'exec: "nosuch": executable file not found in $PATH'),
        (["one", "/etc"], 126, 'exec: "/etc": permission denied'),
        (["-w", "/nowhere", "one", "pwd"], 126, 'chdir to cwd ("/nowhere") set in config.json failed'),
        (["-w", "relative", "one", "pwd"], 126, "not an absolute path"),
        (["-u", "nobody_there", "one", "id"], 126, "unable to find user nobody_there"),
        (["-d", "one", "nosuch"], 1, "executable file not found"),
        (["none", "true"], 1, "No such container: none"),
        (["--nope", "one", "true"], 125, "unknown flag: --nope"),
        (["-it", "one", "true"], 1, "the input device is not a TTY"),
        (["one"], 1, "requires at least 2 arguments"),
        (["one", "sh", "-c", "kill -9 $$"], 137, ""),
        (["one", "sh", "-c", "kill -TERM $$"], 143, ""),
    ],
)
def test_exit_status_is_docker_s(words: list[str], status: int, told: str, one: str) -> None:
    result = minirt("exec", *words)
    # Of a command that could not be started docker's daemon tells in the stream, which has begun.
    text, none = (result.stdout, result.stderr) if status in (126, 127) else (result.stderr, result.stdout)
    assert (result.returncode, none) == (status, "")
    assert told in text and "Traceback" not in text
    assert bool(text) == bool(told)


def test_failed_execs_leave_nothing(one: str, root: Path) -> None:
    """No process that would keep the container from ending, and no descriptor in its shim."""
    (run,) = root.glob("containers/*/run.json")
    fds = Path("/proc", str(json.loads(run.read_text())["shim"]["pid"]), "fd")
    before = len(list(fds.iterdir()))
    for words in (["one", "nosuch"], ["-u", "none", "one", "id"], ["one", "true"], ["-t", "one", "true"]):
        minirt("exec", *words)
    end = time.monotonic() + 10
    while len(list(fds.iterdir())) > before and time.monotonic() < end:
        time.sleep(0.01)
    assert len(list(fds.iterdir())) == before
    begun = time.monotonic()
    good("kill", "one")
    assert (good("wait", "one"), time.monotonic() - begun < 5) == ("137\n", True)


def test_an_exec_on_a_terminal(one: str) -> None:
    person = Person(*COMMAND, "exec", "-it", "one", "env", "PS1=ready> ", "sh", rows=13, columns=57)
    person.read("ready> ")
    person.ask("stty size; echo $TERM", "13 57\r\nxterm")
    person.resize(14, 58)
    person.ask(until_size("14 58"), "resi2ed")
    person.type(b"exit 6\r")
    assert person.leave()[0] == 6
    person = Person(*COMMAND, "exec", "-it", "--detach-keys=ctrl-a", "one", "env", "PS1=ready> ", "sh")
    person.read("ready> ")
    person.type(b"\x01")
    status, shown = person.leave()
    assert status == 1 and shown.endswith("read escape sequence\r\n")
    assert "sh" in [line.split(None, 1)[1] for line in good("top", "one", "-o", "pid,args").splitlines()], "it goes on"


def test_a_killed_client_does_not_kill_what_it_began(one: str) -> None:
    script = "echo on; cat; echo over > /tmp/over"
    with subprocess.Popen([*COMMAND, "exec", "-i", "one", "sh", "-c", script], stdin=-1, stdout=-1) as client:
        assert client.stdout and client.stdout.readline() == b"on\n"
        client.kill()
    script = "until [ -e /tmp/over ]; do sleep 0.01; done; cat /tmp/over"
    assert good("exec", "one", "sh", "-c", script, timeout=20) == "over\n"


def test_a_reader_who_stalls_holds_up_nobody_else(one: str) -> None:
    """Its exec has ended, its output is not read: the container goes on, and others exec in it."""
    with subprocess.Popen([*COMMAND, "exec", "one", "sh", "-c", "seq 1 16000"], stdout=-1) as stalled:
        deadline = time.monotonic() + 20
        while "seq" in good("top", "one", "-o", "pid,comm") and time.monotonic() < deadline:
            pass
        assert good("exec", "one", "echo", "here", timeout=10) == "here\n"
        assert stalled.stdout and stalled.stdout.read().count(b"\n") == 16000
        assert stalled.wait() == 0


def test_last_words_on_both_streams(one: str) -> None:
    """Both are handed on in the same moment, often: once told, the exec is over once."""
    for _ in range(8):
        result = minirt("exec", "one", "sh", "-c", "echo out; echo err >&2")
        assert (result.returncode, result.stdout, result.stderr) == (0, "out\n", "err\n")
    assert state("Running") == "true"


def test_an_exec_s_record(one: str, root: Path) -> None:
    """Who did not start it can ask how it goes, also another process; it ends with its container."""
    with Client(root) as client:
        identity = client.create_exec(one, {"Cmd": ["sh", "-c", "exit 4"], "AttachStdout": True, "User": "0"})
        fresh = client.inspect_exec(identity)
        assert (fresh["Running"], fresh["ExitCode"], fresh["Pid"], fresh["ContainerID"]) == (False, None, 0, one)
        with client.start_exec(identity, tty=False) as attached:
            assert list(attached.output()) == []
        assert client.inspect_exec(identity)["ExitCode"] == 4
        with pytest.raises(Conflict, match="already run"):
            client.start_exec(identity, tty=False)
        going = client.create_exec("one", {"Cmd": ["sleep", "1000"], "Tty": True})
        client.start_exec(going, tty=True).close()
    with Client(root) as client:
        assert client.inspect_exec(identity)["ExitCode"] == 4
        known = client.inspect_exec(going)
        assert known["Running"] and Path(f"/proc/{known['Pid']}/cmdline").read_bytes() == b"sleep\x001000\0"
        assert known["ProcessConfig"]["entrypoint"] == "sleep" and known["ProcessConfig"]["tty"]
        client.resize_exec(going, 90, 30)
        client.kill(one)
        client.wait(one)
        known = client.inspect_exec(going)
        assert (known["Running"], known["ExitCode"]) == (False, 137)
        client.start(one)
        for name in going, "x/../../../containers/one", "0" * 64:
            with pytest.raises(NotFound, match="No such exec instance|page not found"):
                client.inspect_exec(name)


def test_privileged(one: str) -> None:
    """Every capability, where a container's own root has docker's fourteen; a user but root has none in either."""
    sets = ["sh", "-c", "grep -E 'CapEff|CapBnd' /proc/self/status"]
    plain, full = (re.findall(r"[0-9a-f]{16}", good("exec", *more, "one", *sets)) for more in ([], ["--privileged"]))
    assert int(full[0], 16) > int(plain[0], 16) and int(full[1], 16) > int(plain[1], 16)
    assert int(full[0], 16) & 1 << 21, "CAP_SYS_ADMIN"
    for more in [], ["--privileged"]:
        assert int(re.findall(r"[0-9a-f]{16}", good("exec", "-u", "1000", *more, "one", *sets))[0], 16) == 0


def test_pause(one: str, limited: None) -> None:
    assert good("pause", "one") == "one\n"
    assert re.fullmatch(r"Up .* \(Paused\)\|paused\n", good("ps", "--format", "{{.Status}}|{{.State}}"))
    assert (state("Status"), state("Running"), state("Paused")) == ("paused", "true", "true")
    for words, told in (
        (["pause", "one"], f"Container {one} is already paused"),
        (["exec", "one", "true"], "Container one is paused, unpause the container before exec"),
        (["attach", "one"], "You cannot attach to a paused container, unpause it first"),
        (["rm", "one"], "container is paused: unpause and then stop"),
    ):
        result = minirt(*words)
        assert result.returncode == 1 and told in result.stderr
    assert "sh -c" in good("top", "one")
    assert good("unpause", "one") == "one\n"
    result = minirt("unpause", "one", "none")
    assert (result.returncode, result.stdout) == (1, "")
    assert f"Container {one} is not paused" in result.stderr and "No such container: none" in result.stderr
    good("pause", "one")
    good("stop", "-s", "USR1", "one")
    assert state("ExitCode") == "3", "a stop lets it go on, to end in its own way"
    for end in ["kill"], ["rm", "-f"]:
        good("start", "one")
        good("pause", "one")
        assert good(*end, "one", timeout=20) == "one\n"
        if end == ["kill"]:
            good("wait", "one")
    result = minirt("pause", "one")
    assert result.returncode == 1 and "No such container" in result.stderr


def test_update(one: str, limited: None) -> None:
    """What a running container may use changes at once, and its next start has the same."""
    folder = Path("/sys/fs/cgroup")
    v2 = (folder / "cgroup.controllers").exists()
    files = {"memory": "memory.max", "cpu": "cpu.max", "pids": "pids.max"}
    if not v2:
        files = {"memory": "memory.limit_in_bytes", "cpu": "cpu.cfs_quota_us", "pids": "pids.max"}

    def limits() -> list[str]:
        return [
            (folder / ("" if v2 else kind) / "minirt" / one / name).read_text().split()[0]
            for kind, name in files.items()
        ]

    words = ["-m", "64m", "--memory-swap", "64m", "--cpus", "0.5", "--pids-limit", "77", "one"]
    assert good("update", *words) == "one\n"
    assert limits() == [str(64 << 20), "50000", "77"]
    host = json.loads(good("inspect", "one"))[0]["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (64 << 20, 5 * 10**8, 77)
    for words, told in (
        (["--cpu-quota", "5000"], "CPU Quota cannot be updated as NanoCPUs has already been set"),
        (["-m", "100m"], "Memory limit should be smaller than already set memoryswap limit"),
        (["-m", "1m"], "Minimum memory limit allowed is 6MB"),
        (["--cpuset-cpus", "999"], "Requested CPUs are not available - requested 999"),
        (["--restart", "always"], "RestartPolicy cannot be changed"),
    ):
        result = minirt("update", *words, "one")
        assert (result.returncode, result.stdout) == (1, "") and told in result.stderr
    assert limits() == [str(64 << 20), "50000", "77"], "a refused update changes nothing"
    result = minirt("update", "one")
    assert (result.returncode, result.stderr) == (
        1,
        "minirt: you must provide one or more flags when using this command\n",
    )
    good("kill", "-s", "USR1", "one")
    good("wait", "one")
    good("update", "--pids-limit", "-1", "one")
    good("start", "one")
    assert limits() == [str(64 << 20), "50000", "max"]


def test_out_of_memory_is_told(root: Path, limited: None) -> None:
    good("pull", "-q", "toolbox")
    words = ["--network=none", "--name", "one", "-m", "16m", "--memory-swap", "16m"]
    result = minirt("run", *words, "toolbox", "sh", "-c", "exec tail /dev/zero")
    assert result.returncode == 137
    assert (state("OOMKilled"), state("ExitCode")) == ("true", "137")


def test_top_shows_the_container_s_processes_alone(one: str) -> None:
    good("exec", "-d", "one", "sleep", "1111")
    head, *lines = good("top", "one").splitlines()
    assert head.split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert {line.split(None, 7)[7] for line in lines} >= {"sleep 1111", " ".join(LOOP)} and len(lines) <= 3
    assert good("top", "one", "-o", "pid,cmd").splitlines()[0] == "PID".ljust(20) + "CMD"
    for words, told in (["-o", "cmd"], "Couldn't find PID field in ps output"), (["--nope"], "ps: "):
        result = minirt("top", "one", *words)
        assert (result.returncode, result.stdout) == (1, "") and told in result.stderr
    good("rm", "-f", "one")
    assert "No such container" in minirt("top", "one").stderr


def test_stats(one: str, limited: None) -> None:
    good("run", "--name", "over", "--network=none", "toolbox", "true")
    shown = good("stats", "--no-stream", "-a").splitlines()
    assert shown[0].split("  ")[0] == "CONTAINER ID" and shown[0].endswith("PIDS")
    rows = [json.loads(line) for line in good("stats", "--no-stream", "-a", "--format=json").splitlines()]
    found = {each["Name"]: each for each in rows}
    assert found["over"]["CPUPerc"] == "0.00%" and found["over"]["MemUsage"] == "0B / 0B"
    assert re.fullmatch(r"[\d.]+[KM]iB / [\d.]+GiB", found["one"]["MemUsage"]) and int(found["one"]["PIDs"]) >= 1
    with subprocess.Popen([*COMMAND, "stats", "--format={{.Name}} {{.PIDs}}"], stdout=-1, text=True) as client:
        assert client.stdout
        assert all(re.fullmatch(r"one \d+\n", client.stdout.readline()) for _ in range(3))
        client.send_signal(signal.SIGINT)
        assert client.wait() == 130
    result = minirt("stats", "--no-stream", "none")
    assert (result.returncode, result.stdout) == (1, "") and "No such container: none" in result.stderr


def test_the_arithmetic_of_stats() -> None:
    """docker's: a share of one CPU between two looks; memory without the cache that goes first; decimal traffic."""
    found = {
        "id": "abcdef0123456789",
        "name": "/one",
        "precpu_stats": {"cpu_usage": {"total_usage": 10**9}, "system_cpu_usage": 10 * 10**9},
        "cpu_stats": {"cpu_usage": {"total_usage": 25 * 10**8}, "system_cpu_usage": 14 * 10**9, "online_cpus": 4},
        "memory_stats": {"usage": 300 << 20, "limit": 400 << 20, "stats": {"inactive_file": 100 << 20}},
        "networks": {"eth0": {"rx_bytes": 1234, "tx_bytes": 5}, "eth1": {"rx_bytes": 1, "tx_bytes": 1}},
        "blkio_stats": {"io_service_bytes_recursive": [{"op": "read", "value": 4096}, {"op": "Write", "value": 10**6}]},
        "pids_stats": {"current": 7},
    }
    assert row("x", found) == {
        "BlockIO": "4.1kB / 1MB", "CPUPerc": "150.00%", "Container": "x", "ID": "abcdef012345", "MemPerc": "50.00%",
        "MemUsage": "200MiB / 400MiB", "Name": "one", "NetIO": "1.24kB / 6B", "PIDs": "7",
    }  # fmt: skip
    v1 = {"usage": 300 << 20, "limit": 400 << 20, "stats": {"total_inactive_file": 200 << 20, "inactive_file": 1}}
    assert row("x", found | {"memory_stats": v1})["MemUsage"] == "100MiB / 400MiB"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("KILL", 9),
        ("sigterm", 15),
        ("15", 15),
        (10, 10),
        ("RTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("rtmax-3", 61),
        ("64", 64),
    ],
)
def test_signals_by_any_of_their_names(text: str | int, value: int) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["", "0", "65", "BAD", "RTMIN-1", "RTMIN+31", "RTMAX+1", "-9", "9.0", "_DFL", "٩"])
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(InvalidInput, match="Invalid signal"):
        number(text)


def test_stop_and_kill_with_what_was_asked(root: Path) -> None:
    """The container's stop signal and time, a real-time signal, and a stop that is told otherwise."""
    good("pull", "-q", "toolbox")
    script = "trap 'exit 7' RTMIN+3; trap 'exit 8' USR1; trap '' TERM; while :; do sleep 0.05; done"
    words = ["-d", "--network=none", "--name", "one", "--stop-signal", "RTMIN+3", "--stop-timeout", "1"]
    good("run", *words, "toolbox", "sh", "-c", script.replace("RTMIN+3", "37"))
    for act, code in (
        (["stop"], "7"),
        (["kill", "-s", "SIGRTMIN+3"], "7"),
        (["kill", "-s", "10"], "8"),
        (["stop", "-s", "usr1"], "8"),
        (["stop", "-s", "TERM"], "137"),  # after its own second
        (["stop", "-s", "TERM", "--time", "0"], "137"),
    ):
        begun = time.monotonic()
        good(*act, "one")
        assert good("wait", "one") == f"{code}\n", act
        assert time.monotonic() - begun < 8, "not the usual ten seconds"
        good("start", "one")
    result = minirt("kill", "-s", "BAD", "one")
    assert (result.returncode, result.stderr) == (1, "minirt: Invalid signal: BAD\n")


@pytest.fixture(scope="module")
def docker(dockerd: Dockerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Dockerd, Path]]:
    """The same image and running container under dockerd and in a store of ours."""
    folder = tmp_path_factory.mktemp("both")
    tree(folder / "tree", require("busybox"))
    files = subprocess.run(["tar", "-C", str(folder / "tree"), "-c", "."], capture_output=True, check=True).stdout
    dockerd.docker("import", "-", "box", stdin=files)
    (folder / "box.tar").write_bytes(dockerd.docker("save", "box").stdout)
    shutil.rmtree(folder / "tree")
    root = folder / "root"
    with Client(root, hub="embedded") as client, open(folder / "box.tar", "rb") as archive:
        for _ in client.load(archive):
            pass
    words = ["run", "-d", "--network=none", "--name", "one", "--hostname", "box", "-e", "FROM=run"]
    words += ["box", "sh", "-c", "while :; do sleep 0.1; done"]
    dockerd.docker(*words)
    good("--root", str(root), *words)
    yield dockerd, root
    dockerd.docker("rm", "-f", "one")
    good("--root", str(root), "rm", "-f", "one")


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "exec one env",
        "exec -t one env",
        "exec -t -e A=1 -e HOME=/x -e FROM -u web one env",
        "exec -u web one id",
        "exec -u 5:6 one id",
        "exec -u 1000:extra one id",
        "exec -w /etc one pwd",
        "exec one sh -c exit|9",
        "exec one sh -c kill|-9|$$",
        "exec one /bin/garbage",
        "exec one /bin/orphan",
        "exec one grep Cap /proc/self/status",
        "exec -u web one grep Cap /proc/self/status",
        "exec -d one true",
        "exec -dit one true",
        "exec none true",
        "exec -it one true",
        "attach none",
        "pause none",
        "unpause one",
        "update one",
        "update --cpus 9999 one",
        "update -m 1m one",
        "update -m 64m one",
        "update --cpuset-cpus 999 one",
        "update -m 64m --memory-swap 64m one",
        "top none",
        "top one -o cmd",
        "top one -o pid=x,cmd",
        "stats --no-stream none",
        "kill -s BAD one",
        "kill -s 0 one",
        "kill -s RTMIN+3 none",
        "wait none",
    ],
)
def test_as_docker_does(line: str, docker: tuple[Dockerd, Path]) -> None:
    """The same exit status, the same output, and the same words for what is wrong."""
    dockerd, root = docker
    words = [word.replace("|", " ") for word in line.split()]
    theirs = dockerd.docker(*words, check=False)
    ours = minirt("--root", str(root), *words)
    assert ours.returncode == theirs.returncode, ours.stderr + theirs.stderr.decode()
    assert ours.stdout == theirs.stdout.decode().replace("\r\n", "\n")  # as text mode gives ours
    said = theirs.stderr.decode()
    for prefix in "Error response from daemon: ", "Error: ":
        said = said.removeprefix(prefix)
    mine = ours.stderr.removeprefix("minirt: ")
    assert re.sub("[0-9a-f]{64}", "ID", mine) == re.sub("[0-9a-f]{64}", "ID", said)


@pytest.mark.parametrize("subuids", [True, False], ids=["subuids", "one id"])
def test_without_cgroups_one_line_says_why(subuids: bool) -> None:
    """A plain user on a machine whose cgroups are root's: exec and top work, the rest says what is missing."""
    with plain_user(subuids) as user:
        script = f"""
import os, sys
sys.path.insert(0, "tests")
os.environ |= {{"MINIRT_HUB": "embedded", "MINIRT_ROOT": {str(user.home / "root")!r}}}
import test_exec as t
t.good("pull", "-q", "toolbox")
t.good("run", "-d", "--network=none", "--name", "one", "toolbox", *t.LOOP)
assert t.good("exec", "-i", "one", "cat", input="hello") == "hello"
t.good("exec", "-d", "one", "sleep", "1111")
assert "sleep 1111" in t.good("top", "one")
from minirt.client import Client
from minirt.runtime import container
client = Client()
record = client.inspect_container("one")
from pathlib import Path
if container.cgroup(Path(record["BundlePath"])) is None:
    for words in ["pause", "one"], ["update", "-m", "64m", "--memory-swap", "64m", "one"], ["stats", "--no-stream"]:
        result = t.minirt(*words)
        assert result.returncode == 1 and result.stdout == "", result
        assert result.stderr.count("\\n") == 1 and "cgroup" in result.stderr, result
t.good("rm", "-f", "one")
print("fine")
"""
        assert user.python(script).endswith("fine\n")
