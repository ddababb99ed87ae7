"""The daemon is killed (SIGKILL) while containers run and clients are there: they go on, and the next one finds all.

So is its launcher, and a container's shim. As root and as a plain user.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import said
from learners import until
from test_cli_terminal import COMMAND, Terminal
from users import plain_user

from minirt import api
from minirt.client import Client
from minirt.client.place import peer, socket_path, told
from minirt.client.streams import Attached
from minirt.errors import MinirtError, NotFound

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux")

LINES = 400
COUNT = f"n=0; while test $n -lt {LINES}; do echo $n; n=$((n+1)); sleep 0.01; done"
COUNTED = "".join(f"{n}\n" for n in range(LINES))
READ = "while read x; do echo got $x; done"
GONE = "minirt: the daemon went away: containers go on, ask again\n"
STILL = "minirt: its streams are over, but the command still runs\n"
LOOP = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"


@pytest.fixture
def client(root: Path) -> Iterator[Client]:
    with Client(root) as client:
        for _ in client.pull("toolbox"):
            pass
        yield client


def minirt(*words: str) -> str:
    result = said.run([*COMMAND, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert result.returncode == 0, result.stderr
    return str(result.stdout).strip()


def run(*words: str, script: str) -> list[str]:
    """The words of a run in the toolbox."""
    return ["run", "--network=none", *words, "toolbox", "sh", "-c", script]


def opened(*words: str, **settings: Any) -> subprocess.Popen[str]:
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *words], text=True, **(streams | settings))


def ask(process: subprocess.Popen[str], line: str) -> str:
    """Type a line, and read one."""
    assert process.stdin and process.stdout
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline()


def daemon(root: Path) -> int:
    return peer(told(root))


def answers(root: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        return daemon(root) > 0
    return False


def kill(pid: int) -> None:
    """SIGKILL, and until it is gone; nobody's child, or a zombie that nobody reaps."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(ready: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)


def record(root: Path, container: str, name: str = "run.json") -> dict[str, Any]:
    """What its shim wrote."""
    return dict(json.loads((root / "containers" / container / name).read_bytes()))


def has_ended(root: Path, container: str) -> bool:
    """As its folder tells, without a daemon."""
    return (root / "containers" / container / "exit.json").exists()


def logs(client: Client, container: str) -> str:
    return b"".join(data for _, data in client.logs(container)).decode()


def no_traceback(root: Path) -> None:
    assert "Traceback" not in (root / "daemon.log").read_text()


def test_ten_containers_outlive_the_daemon(client: Client, root: Path) -> None:
    attached = opened(*run("--name=attached", script=COUNT + "; exit 4"))
    counting = minirt(*run("-d", "--name=counting", script=COUNT))
    following = opened("logs", "-f", "counting")
    shell = Terminal(*COMMAND, "run", "-it", "--network=none", "--name=shell", "toolbox", "env", "PS1=ready> ", "sh")
    typed = opened(*run("-i", "--name=typed", script=READ + "; echo over"))
    go = root.parent / "go"
    go.mkdir()
    until = "while ! test -e /go/now; do sleep 0.05; done; "
    gone = minirt(*run("-d", "--rm", "--name=gone", f"-v{go}:/go", script=until + "exit 5"))
    stays = minirt(*run("-d", "--rm", "--name=stays", script=LOOP))
    ended = minirt(*run("-d", "--name=ended", f"-v{go}:/go", script="echo said; " + until + "echo more; exit 6"))
    minirt(*run("-d", "--name=loop", script=LOOP))
    busy = minirt(*run("-d", "--name=busy", script=LOOP))
    minirt(*run("-d", "-i", "--name=kept", script=READ))
    kept = opened("attach", "kept")
    exec = client.create_exec(busy, {"Cmd": ["sh", "-c", "sleep 1; exit 7"]})
    client.start_exec_detached(exec, False)
    execing = opened("exec", "busy", "sh", "-c", "echo begun; exec sleep 1000")
    minirt(*run("-d", "--name=named", "-v", "volume:/data", script="echo data >/data/file; " + LOOP))
    shell.read("ready> ")
    shell.type(b"A=kept; stty size\r")
    shell.read(r"24 80\s+ready> ")
    assert ask(typed, "one") == ask(kept, "one") == "got one\n"
    assert execing.stdout and execing.stdout.readline() == "begun\n"
    before = {c["Names"][0]: c["Id"] for c in client.containers()}
    assert {*before} >= {"/attached", "/counting", "/shell", "/typed", "/stays", "/loop", "/busy", "/named"}
    client.close()

    kill(daemon(root))
    # Whoever was there is told in a line, and leaves.
    for process in attached, following, typed, kept:
        out, err = process.communicate(timeout=20)
        assert (process.returncode, said.said(err)) == (1, GONE), (process.args, err)
        assert process in (typed, kept) or COUNTED.startswith(out)
    shell.end()
    (go / "now").touch()
    for container in gone, ended, before["/attached"], counting:
        wait_for(lambda container=container: has_ended(root, container))
    assert record(root, ended, "exit.json")["exit_code"] == 6

    out, err = execing.communicate(timeout=30)
    assert execing.returncode == 1 and said.said(err) in (GONE, STILL)

    # The next client's daemon.
    names = {c["Names"][0]: c["Status"] for c in client.containers(all=True)}
    assert set(names) - {"/gone"} == {*before, "/ended"} - {"/gone"}
    assert names["/ended"].startswith("Exited (6)") and names["/shell"].startswith("Up")
    wait_for(lambda: not (root / "containers" / gone).exists())
    assert logs(client, "attached") == logs(client, "counting") == COUNTED
    assert logs(client, "ended") == "said\nmore\n"
    for name, code in ("attached", 4), ("counting", 0), ("ended", 6):
        assert client.wait(name) == code and minirt("wait", name) == str(code)
    wait_for(lambda: client.inspect_exec(exec)["ExitCode"] == 7)
    assert minirt("exec", "busy", "echo", "again") == "again"
    assert minirt("exec", "named", "cat", "/data/file") == "data"
    # Streams of theirs are still there.
    with_keys = Terminal(*COMMAND, "attach", "shell")
    with_keys.type(b"echo still $A\r")
    with_keys.read("still kept")
    with_keys.type(b"exit 8\r")
    assert with_keys.end() == 8
    kept = opened("attach", "kept")
    assert ask(kept, "two") == "got two\n"
    kept.kill(), kept.communicate()
    assert logs(client, "kept") == "got one\ngot two\n"
    typed = opened("attach", "typed")
    assert ask(typed, "three") == "got three\n"
    assert typed.communicate()[0] == "over\n" and typed.returncode == 0  # now somebody has said that it is
    assert logs(client, "typed") == "got one\ngot three\nover\n"
    minirt("stop", "loop", "stays")
    assert client.wait("loop") == 3
    wait_for(lambda: not (root / "containers" / stays).exists())
    minirt("restart", "busy")
    minirt("rm", "-f", *(c["Id"] for c in client.containers(all=True)))
    assert client.check() == [] and not list((root / "containers").iterdir())
    no_traceback(root)


def test_a_client_s_restart_is_not_needed(client: Client, root: Path) -> None:
    """The same client object, over daemons that are killed one after the other."""
    box = minirt(*run("-d", script=LOOP))
    for _ in range(3):
        assert client.inspect_container(box)["State"]["Running"]
        kill(daemon(root))
    waiting = client.waiting(box)
    minirt("stop", box)
    with waiting:
        assert waiting.result() == 3
    no_traceback(root)


def test_killed_again_and_again_while_containers_start(client: Client, root: Path) -> None:
    """Whenever it is killed, each container is made or not, runs or not, can be asked, and removed."""

    def one(number: int) -> str:
        result = said.run(
            [*COMMAND, *run("-d", f"--name=box{number}", script="echo hi; exec sleep 1000")],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip
        assert result.returncode == 0 or re.fullmatch("minirt: .*\n", result.stderr), result.stderr
        return str(result.stdout).strip()

    with ThreadPoolExecutor(4) as pool:
        for turn in range(4):
            asked = [pool.submit(one, turn * 10 + n) for n in range(4)]
            time.sleep(0.15 + turn * 0.11)
            wait_for(lambda: answers(root))  # one of them has started it; a killed one leaves its socket
            kill(daemon(root))
            for started in filter(None, [each.result() for each in asked]):
                assert client.inspect_container(started)["State"]["Running"]
                wait_for(lambda started=started: logs(client, started) == "hi\n")
    for container in client.containers(all=True):
        found = client.inspect_container(container["Id"])
        assert found["State"]["Status"] in ("created", "running", "exited")
        if found["State"]["Status"] == "created":
            client.start(container["Id"])
        client.remove(container["Id"], force=True)
    minirt("system", "prune", "-f")
    assert client.check() == []
    assert not list((root / "containers").iterdir())
    no_traceback(root)


def test_a_launcher_that_is_killed(client: Client, root: Path) -> None:
    """The next start makes another; what it had started goes on."""
    box = minirt(*run("-d", script=LOOP))
    for _ in range(2):
        children = Path(f"/proc/{daemon(root)}/task/{daemon(root)}/children")
        launchers = [int(pid) for pid in children.read_text().split()]
        launchers = [pid for pid in launchers if b"launcher" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(launchers) == 1
        os.kill(launchers[0], signal.SIGKILL)
        assert minirt(*run("--rm", script="echo here")) == "here"
    assert client.inspect_container(box)["State"]["Running"]
    no_traceback(root)


@pytest.mark.parametrize("awake", [True, False], ids=["before the daemon's eyes", "while no daemon runs"])
def test_a_shim_that_is_killed(client: Client, root: Path, awake: bool) -> None:
    """Its container is killed with it; that is an exit with 137."""
    box, removed = minirt(*run("-d", script=LOOP)), minirt(*run("-d", "--rm", script=LOOP))
    waiting = client.waiting(box) if awake else None
    if not awake:
        client.close()
        kill(daemon(root))
    shims = [record(root, each)["shim"]["pid"] for each in (box, removed)]
    inits = [record(root, each)["init"]["pid"] for each in (box, removed)]
    for pid in shims:
        os.kill(pid, signal.SIGKILL)
    for pid in (*shims, *inits):
        wait_for(lambda pid=pid: not alive(pid))
    if waiting:
        with waiting:
            assert waiting.result() == 137
    state = client.inspect_container(box)["State"]
    assert (state["Status"], state["ExitCode"], state["Running"]) == ("dead", 137, False)
    assert client.wait(box) == 137
    wait_for(lambda: not (root / "containers" / removed).exists())
    with pytest.raises(MinirtError, match="is not running"):
        client.create_exec(box, {"Cmd": ["true"]})
    client.start(box)  # it can be started again
    assert client.inspect_container(box)["State"]["Running"]
    client.remove(box, force=True)
    with pytest.raises(NotFound):
        client.inspect_container(box)
    assert not list((root / "containers").iterdir())
    no_traceback(root)


@pytest.mark.slow
@pytest.mark.parametrize("subuids", [True, False], ids=["subuids", "one id"])
def test_as_a_plain_user(subuids: bool) -> None:
    with plain_user(subuids) as user:
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", "tests/test_daemon_crash.py"]
        result = user.run([*words, "-k", "not plain"], timeout=280, check=False)
        assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
        assert " passed" in result.stdout


# a full disk


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted by root")
def test_a_daemon_starts_on_a_full_disk(tmp_path: Path) -> None:
    """And room can be made through it."""
    script = """mount -t tmpfs -o size=24m none disk; cd disk; run=$1; shift
        export MINIRT_ROOT=$PWD/root
        "$run" -m minirt run --name one toolbox echo first; "$run" -m minirt daemon stop
        cat /dev/zero >filler
        for line in 'ps -aq --no-trunc' 'run toolbox true' 'start one' 'rm one' 'image prune -af' 'daemon stop'; do
          "$run" -m minirt $line; echo "$line = $?"
        done
        rm filler; "$run" -m minirt run --rm toolbox echo third; "$run" -m minirt daemon stop"""
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", sys.executable], cwd=tmp_path,
        env=os.environ | {"MINIRT_HUB": "embedded"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    ends = re.findall("^(.*) = ([0-9]+)$", done.stdout, re.MULTILINE)
    assert [int(code) for _, code in ends] == [0, 125, 1, 0, 0, 0], done
    assert done.stdout.startswith("first\n") and done.stdout.endswith("\nthird\n") and done.returncode == 0, done
    told = re.findall("^minirt: .*no space left on device$", done.stderr, re.MULTILINE | re.IGNORECASE)
    assert len(told) == 2 and "Traceback" not in done.stderr, done


def test_who_came_as_the_door_closed_keeps_the_daemon(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has more to say: what it attached to here would be started by another daemon, and its output lost."""
    monkeypatch.setenv("MINIRT_DAEMON_IDLE", "1")
    with Client(root) as client:
        client.version()
    door = Path(socket_path(root))
    daemon, aside = peer(str(door)), door.with_name(f".{door.name}")
    until(aside.exists)
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(aside))
        until(door.exists)
        assert peer(str(door)) == daemon
    until(lambda: not door.exists() and not aside.exists())
    until(lambda: not Path(f"/proc/{daemon}").exists())


def test_what_is_typed_to_who_has_ended_ends_quietly(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is closed under the hands of the thread that types: no traceback of it reaches the user."""
    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    send = Attached.send

    def late(self: Attached, data: bytes, wait: bool = False) -> int:
        wait_for(lambda: self.fileno() < 0)
        return send(self, data, wait)

    monkeypatch.setattr(Attached, "send", late)
    api.pull("hello-world")
    for stdin in None, b"word":
        assert api.run("hello-world", stdin=stdin).exit_code == 0
    wait_for(lambda: not [each for each in threading.enumerate() if "_type" in each.name])
    assert raised == []
