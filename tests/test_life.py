"""The life of containers under a daemon's engine: events as a real dockerd's, waiting, attaching before a start,
restart, rename, the launcher, and an engine that is killed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import Both, Ours, Theirs, both, image_tar, packed, wait_for
from users import plain_user

from minirt.engine import Engine
from minirt.engine.events import Events
from minirt.engine.monitor import Waiter
from minirt.errors import Conflict, InvalidInput, MinirtError, NotFound, StartError, Unsupported
from minirt.runtime import container as runtime
from minirt.runtime.control import Connection
from minirt.runtime.state import identify, parent

__all__ = ["both"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux")

LOOP = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"


@contextlib.contextmanager
def opened(root: Path) -> Iterator[Engine]:
    engine = Engine(root, "embedded")
    engine.open()
    try:
        yield engine
    finally:
        for record in list(engine.containers.records()):
            with contextlib.suppress(NotFound):
                engine.containers.remove(record["Id"], force=True)
        engine.close()


@pytest.fixture
def engine(root: Path) -> Iterator[Engine]:
    with opened(root) as engine:
        for _ in engine.pull("toolbox"):
            pass
        yield engine


def make(engine: Engine, script: str | list[str], stdin: bool = False, **host: Any) -> str:
    words = ["sh", "-c", script] if isinstance(script, str) else script
    body = {"Image": "toolbox", "Cmd": words, "OpenStdin": stdin, "StdinOnce": stdin}
    return str(engine.containers.create(body | {"HostConfig": {"NetworkMode": "none", **host}})["Id"])


def begin(engine: Engine, script: str, **host: Any) -> str:
    identity = make(engine, script, **host)
    assert engine.containers.start(identity)
    return identity


def said(engine: Engine, identity: str) -> str:
    return b"".join(data for _, data in engine.containers.logs(identity)).decode()


def readable(waiter: Waiter, seconds: float) -> bool:
    return bool(select.select([waiter], [], [], seconds)[0])


@pytest.mark.parametrize("then", ["start", "remove"])
def test_a_shim_that_has_said_its_last_word_is_waited_for(engine: Engine, then: str) -> None:
    """Its mounts would be in the way. In its place, something that takes half a second to end."""
    identity = begin(engine, "true")
    assert engine.containers.wait(identity) == 0
    path = engine.containers.folder({"Id": identity}) / "run.json"
    with subprocess.Popen(["sleep", "0.5"]) as slow:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"shim": identify(slow.pid)}))
        getattr(engine.containers, then)(identity)
        assert slow.poll() == 0


def test_started_again_at_once(engine: Engine) -> None:
    """As soon as its end is told; what it wrote is there."""
    identity = make(engine, "echo again >>/said; wc -l </said")
    for _ in range(20):
        assert engine.containers.start(identity)
        assert engine.containers.wait(identity) == 0
    assert said(engine, identity).split() == [str(number) for number in range(1, 21)]
    shims = [path for path in Path("/proc").glob("[0-9]*/mountinfo") if _mentions(path, identity)]
    wait_for(lambda: not [path for path in shims if _mentions(path, identity)])


def _mentions(path: Path, text: str) -> bool:
    try:
        return text in path.read_text()
    except OSError:  # it has ended
        return False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's shims are cloned ahead")
@pytest.mark.parametrize("network", ["none", "host"])
def test_the_shim_is_cloned_as_the_container_is_created(engine: Engine, network: str) -> None:
    """And has made a network namespace for it, which it keeps no longer than that is of use."""
    assert engine.containers.launcher
    before = _ahead(engine)
    identity = make(engine, "sleep 100", NetworkMode=network)
    wait_for(lambda: bool(_ahead(engine) - before))
    [waits] = _ahead(engine) - before
    time.sleep(0.2)
    assert _networks(waits) == (network == "none")
    assert engine.containers.start(identity)
    run = json.loads((engine.containers.folder({"Id": identity}) / "run.json").read_text())
    assert run["shim"]["pid"] == waits and _networks(waits) == 0
    engine.containers.remove(identity, force=True)
    # One that was cloned for another takes the next start, whatever that is.
    first, second = make(engine, "sleep 100"), make(engine, "sleep 100", NetworkMode="host")
    wait_for(lambda: bool(_ahead(engine)))
    for identity in second, first:
        assert engine.containers.start(identity)
        run = json.loads((engine.containers.folder({"Id": identity}) / "run.json").read_text())
        assert _networks(run["shim"]["pid"]) == 0
        theirs = os.readlink(f"/proc/{run['init']['pid']}/ns/net")
        assert (theirs == os.readlink("/proc/self/ns/net")) == (identity == second)


def _ahead(engine: Engine) -> set[int]:
    """The launcher's children that wait for a request."""
    assert engine.containers.launcher
    pid = engine.containers.launcher._pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = set()
    for child in children:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a shim that has just ended
            if Path(f"/proc/{child}/comm").read_text() == "minirt-ahead\n":
                found.add(int(child))
    return found


def _networks(pid: int) -> int:
    """How many network namespaces a process holds open."""
    return sum(os.readlink(path).startswith("net:") for path in Path(f"/proc/{pid}/fd").iterdir())


class Ends:
    """Pipes to somebody attached."""

    def __init__(self, engine: Engine, identity: str, stdin: bool = False) -> None:
        self.out, out = os.pipe()
        self.err, err = os.pipe()
        given, self.stdin = os.pipe() if stdin else (None, -1)
        self.line: Connection = engine.processes.attach(identity, (given, out, err))

    def all(self) -> tuple[bytes, bytes]:
        """Both to their ends, which close."""
        found = []
        for fd in (self.out, self.err):
            with os.fdopen(fd, "rb") as file:
                found.append(file.read())
        return found[0], found[1]


class Listener:
    """All that is told from now on."""

    def __init__(self, events: Events, **filters: list[str]) -> None:
        self._stream, self._over = events.subscribe(filters=filters), threading.Event()
        self.seen: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        for event in self._stream:
            if event:
                self.seen.append(event)
            if self._over.is_set():
                return

    @property
    def actions(self) -> list[str]:
        return [event["Action"] for event in self.seen]

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._stream.close()  # type: ignore[attr-defined]


@pytest.fixture
def listener(engine: Engine) -> Iterator[Listener]:
    listener = Listener(engine.events)
    yield listener
    listener.close()


# events


def test_events_past_and_to_come() -> None:
    events = Events()
    begun = time.time()
    for number in range(300):
        events.publish("container", "start", f"{number}", image="i", name="n")
    kept = [event for event in events.subscribe(begun, time.time()) if event]
    assert [event["id"] for event in kept] == [str(number) for number in range(300 - 256, 300)]
    assert list(kept[0]) == ["status", "id", "from", "Type", "Action", "Actor", "scope", "time", "timeNano"]
    assert kept[0]["Actor"] == {"ID": "44", "Attributes": {"image": "i", "name": "n"}}
    assert abs(kept[0]["timeNano"] / 1e9 - time.time()) < 60 and kept[0]["time"] == kept[0]["timeNano"] // 10**9
    middle = kept[100]["timeNano"] / 1e9
    assert 150 <= len([event for event in events.subscribe(middle, time.time()) if event]) <= 157
    assert [event for event in events.subscribe(None, begun) if event] == []
    slow, stream = events.subscribe(), events.subscribe(filters={"type": ["network"]})
    events.publish("container", "start", "x")
    events.publish("network", "connect", "x", type="bridge", id="label", self="label")
    assert next(stream) is None  # what another filter would pass
    network = next(stream)
    assert network and list(network) == ["Type", "Action", "Actor", "scope", "time", "timeNano"]
    assert network["Actor"]["Attributes"] == {"type": "bridge", "id": "label", "self": "label"}
    before = time.monotonic()
    assert next(stream) is None and 0.5 < time.monotonic() - before < 5
    for _ in range(3000):
        events.publish("container", "start", "many")
    taken = 0
    while next(slow):
        taken += 1
    assert taken == 1024  # a slow one misses what comes then
    assert events.listeners == 2
    for each in stream, slow:
        each.close()  # type: ignore[attr-defined]
    assert events.listeners == 0


FILTERS: list[dict[str, list[str]]] = [
    {"type": ["image"]}, {"type": ["container", "volume"]}, {"event": ["die"]}, {"event": ["exec_create"]},
    {"event": ["exec_create: /bin/busybox"]}, {"event": ["exec_"]}, {"event": ["die", "exec_die"]},
    {"scope": ["local"]},
    {"scope": ["swarm"]}, {"container": ["loop"]}, {"container": ["loo"]}, {"container": ["oop"]}, {"volume": ["vol"]},
    {"image": ["files"]}, {"image": ["files:1"]}, {"image": ["file"]}, {"image": ["made"]}, {"network": ["none"]},
    {"label": ["a"]}, {"label": ["a=b"]}, {"label": ["a=c"]}, {"label": ["a", "c=d"]}, {"label": ["a", "x"]},
    {"type": ["container"], "event": ["start", "die"], "container": ["loop"]}, {"type": []}, {"daemon": ["x_"]},
]  # fmt: skip


def scenario(side: Ours) -> list[Any]:
    """The same asked of either side: all it told of it, and what of that passes each filter."""
    begun = time.time()
    theirs = isinstance(side, Theirs)
    api: Any = getattr(side, "api", None)
    engine: Any = None if theirs else side.engine
    containers: Any = api or engine.containers

    def settled() -> None:  # dockerd tells some things late
        time.sleep(0.5)

    def executed(box: str, *words: str) -> None:
        if theirs:
            api.exec_start(api.exec_create(box, list(words))["Id"])
        else:
            identity = engine.processes.create_exec(box, {"Cmd": list(words)})["Id"]
            with contextlib.suppress(StartError), contextlib.closing(engine.processes.start_exec(identity)) as line:
                line.wait()
        settled()

    def rmi(name: str) -> None:
        api.remove_image(name) if theirs else engine.images.remove(name)

    side.load(image_tar(), "files")
    api.tag("files:1", "other", "2") if theirs else engine.images.tag("files:1", "other:2")
    rmi("other:2")
    archive = b"".join(api.get_image("files:1") if theirs else engine.images.save(["files:1"]))
    list(api.load_image(archive) if theirs else engine.images.load(io.BytesIO(archive)))

    box = side.create("exit 3", Labels={"a": "b", "c": "d"})
    containers.start(box)
    settled()
    side.remove(box)
    box = side.create("trap 'exit 4' TERM; echo ready; while :; do /bin/busybox sleep 0.05; done")
    containers.rename(box, "loop")
    side.start(box)
    executed(box, "/bin/busybox", "sh", "-c", "exit 5")
    executed(box, "/nosuch")
    (api or engine.limits).pause(box)
    (api or engine.limits).unpause(box)
    api.update_container(box, cpu_shares=100) if theirs else engine.limits.update(box, {"CpuShares": 100})
    (api or engine.processes).top(box)
    containers.kill(box, "WINCH")
    containers.restart(box)
    settled()
    side.get(box, "/etc")
    side.put(box, "/tmp", packed(("a", b"x")))
    side.export(box)
    side.diff(box)
    side.commit(box, comment="why")
    settled()
    rmi("made:1")
    containers.stop(box)
    settled()
    containers.start(box)
    side.remove(box)
    box = side.create("echo ready; exec /bin/busybox sleep 1000", HostConfig={"Binds": ["vol:/data:ro"]})
    side.start(box)
    side.remove(box)
    settled()
    side.volume("remove", "vol")
    box = side.create("", Cmd=["/bin/busybox", "sleep", "2"], Tty=True, HostConfig={"AutoRemove": True})
    containers.start(box)
    api.resize(box, 20, 30) if theirs else engine.processes.resize(box, 30, 20)
    time.sleep(3)
    limits = {"Memory": 8 << 20, "MemorySwap": 8 << 20}
    box = side.create("x=a; while :; do x=$x$x; done", HostConfig=limits)
    containers.start(box)
    time.sleep(2)
    containers.prune_containers() if theirs else containers.prune()
    api.prune_volumes() if theirs else engine.volumes.prune()
    api.prune_images() if theirs else engine.images.prune()
    now = time.time()

    def told(filters: dict[str, list[str]] | None = None) -> list[dict[str, Any]]:
        asked = {"since": begun, "until": now, "filters": filters}
        events = api.events(**asked, decode=True) if theirs else engine.events.subscribe(**asked)
        return [plain(event) for event in events if event]

    return [told(), *([f, [event["Action"] for event in told(f)]] for f in FILTERS)]


def plain(event: dict[str, Any]) -> dict[str, Any]:
    """Without what is this side's own."""
    event = json.loads(re.sub(r"[0-9a-f]{64}", "HEX", json.dumps(event)))
    for key in "name", "oldName":
        if "_" in event["Actor"]["Attributes"].get(key, ""):  # a random one
            event["Actor"]["Attributes"][key] = "NAME"
    for key in ("execDuration", "reclaimed"):
        event["Actor"]["Attributes"].pop(key, None)
    return {key: value for key, value in event.items() if not key.startswith("time")}


def test_events_are_a_dockerd_s(both: Both) -> None:
    """In order, with all their attributes. Told apart: dockerd mounts volumes for a moment to copy files."""
    ours, theirs = both.sides
    ours.engine.open()
    for mine, other in zip(scenario(ours), scenario(theirs), strict=True):
        for event, expected in zip(mine, other, strict=False):
            assert event == expected
        assert mine == other


def test_names_are_refused_as_a_dockerd_does(both: Both) -> None:
    pair, taken = both.create(), both.create()
    for side, box in zip(both.sides, taken.ids, strict=True):
        (side.api if isinstance(side, Theirs) else side.engine.containers).rename(box, "taken")

    def rename(side: Ours, box: str, new: str) -> Any:
        return (side.api if isinstance(side, Theirs) else side.engine.containers).rename(box, new)

    for new in "taken", "/taken":
        pair.same(lambda side, box, new=new: rename(side, box, new))
    for new in "a b", "x", "-a":
        pair.same(
            lambda side, box, new=new: rename(side, box, new), "Error when allocating new name: Invalid container"
        )
    taken.same(lambda side, box: rename(side, box, "taken"))
    pair.same(lambda side, box: rename(side, "no_such", "other"))
    pair.same(lambda side, box: rename(side, box, "/fine"))
    assert pair.same(lambda side, box: side.inspect("fine")["Name"]) == "/fine"


# waiting


def test_who_waits_is_told(engine: Engine) -> None:
    waiter = engine.containers.waiter
    box = make(engine, "sleep 0.3; exit 7")
    with contextlib.closing(waiter(box, "")) as now:
        assert now.result() == {"StatusCode": 0}
    early = {condition: waiter(box, condition) for condition in ("next-exit", "removed")}
    engine.containers.start(box)
    running = waiter(box, "not-running")
    assert not readable(running, 0) and not readable(early["next-exit"], 0)
    assert running.result() == early["next-exit"].result() == {"StatusCode": 7}
    late = waiter(box, "next-exit")
    assert waiter(box, "not-running").result() == {"StatusCode": 7}
    assert not readable(early["removed"], 0.1) and not readable(late, 0)
    engine.containers.remove(box)
    assert early["removed"].result() == late.result() == {"StatusCode": 7}
    for each in (running, late, *early.values()):
        each.close()
        each.close()
    with pytest.raises(NotFound):
        waiter(box)
    with pytest.raises(InvalidInput, match="invalid condition"):
        waiter(make(engine, "true"), "nonsense")
    assert not engine.containers.monitor._waiters  # type: ignore[union-attr]


def test_a_failed_start_tells_who_waits_for_the_removal(engine: Engine, listener: Listener) -> None:
    box = make(engine, ["/nosuch"], AutoRemove=True)
    ends, removed = Ends(engine, box), engine.containers.waiter(box, "removed")
    with pytest.raises(StartError) as error:
        engine.containers.start(box)
    assert error.value.exit_code == 127 and removed.result() == {"StatusCode": 127}
    assert ends.all() == (b"", b"") and ends.line.wait() is None
    with pytest.raises(NotFound):
        engine.containers.find(box)
    removed.close(), ends.line.close()
    wait_for(lambda: listener.actions == ["create", "attach", "destroy"])


def test_thirty_remove_themselves(engine: Engine, listener: Listener) -> None:
    boxes = [make(engine, f"sleep 0.{n}; exit {n}", AutoRemove=True) for n in range(30)]
    waiters = [engine.containers.waiter(box, "removed") for box in boxes]
    starts = [threading.Thread(target=engine.containers.start, args=(box,)) for box in boxes]
    for start in starts:
        start.start()
    assert [waiter.result() for waiter in waiters] == [{"StatusCode": n} for n in range(30)]
    for each in (*starts,):
        each.join()
    for waiter in waiters:
        waiter.close()
    assert list(engine.containers.records()) == [] and not list(engine.store.containers.iterdir())
    wait_for(lambda: len(listener.seen) == 30 * 6)
    for box in boxes:
        mine = [
            e["Action"] for e in listener.seen if box in (e["Actor"]["ID"], e["Actor"]["Attributes"].get("container"))
        ]
        assert mine == ["create", "connect", "start", "die", "disconnect", "destroy"]


def test_a_removal_is_told_when_its_volumes_are_gone_too(engine: Engine) -> None:
    """As by a dockerd: `docker run --rm -v /x` is over then."""
    volume = {"Type": "volume", "Target": "/x"}
    with contextlib.closing(Listener(engine.events, event=["destroy"])) as told:
        removed = make(engine, "true", Mounts=[volume])
        engine.containers.remove(removed, volumes=True)
        by_itself = make(engine, "true", Mounts=[volume], AutoRemove=True)
        with contextlib.closing(engine.containers.waiter(by_itself, "removed")) as waiter:
            engine.containers.start(by_itself)
            waiter.result()
        wait_for(lambda: len(told.seen) == 4)
        assert [event["Type"] for event in told.seen] == ["volume", "container"] * 2
    assert engine.volumes.list()["Volumes"] == []


def test_a_shim_that_is_killed(engine: Engine, listener: Listener) -> None:
    box = begin(engine, LOOP, AutoRemove=True)
    removed = engine.containers.waiter(box, "removed")
    run = json.loads((engine.store.containers / box / "run.json").read_text())
    os.kill(run["shim"]["pid"], signal.SIGKILL)
    assert removed.result() == {"StatusCode": 137}
    removed.close()
    wait_for(lambda: "destroy" in listener.actions)
    assert listener.actions.count("die") == 1


# the verbs


def test_what_is_so_already_is_said(engine: Engine) -> None:
    box = begin(engine, LOOP)
    assert not engine.containers.start(box)
    if runtime.cgroup(engine.store.containers / box):
        engine.limits.pause(box)
        with pytest.raises(Conflict, match="cannot start a paused container, try unpause instead"):
            engine.containers.start(box)
        with pytest.raises(Conflict, match="is paused, unpause the container before attach"):
            Ends(engine, box)
        engine.limits.unpause(box)
    assert engine.containers.stop(box)
    assert not engine.containers.stop(box)
    assert engine.containers.inspect(box)["State"]["ExitCode"] == 3


def test_restart(engine: Engine, listener: Listener) -> None:
    """A --rm container that is restarted stays, and goes when it is stopped."""
    box = begin(engine, LOOP, AutoRemove=True)
    wait_for(lambda: "ready" in said(engine, box))
    first = engine.containers.inspect(box)["State"]["Pid"]
    nextly = engine.containers.waiter(box, "next-exit")
    engine.containers.restart(box)
    assert nextly.result() == {"StatusCode": 3}
    assert engine.containers.inspect(box)["State"]["Pid"] not in (0, first)
    wait_for(lambda: said(engine, box).count("ready") == 2)
    with contextlib.closing(engine.containers.waiter(box, "removed")) as removed:
        engine.containers.stop(box)
        assert removed.result() == {"StatusCode": 3}
    nextly.close()
    box = make(engine, LOOP)
    engine.containers.restart(box)  # one that does not run is started
    assert engine.containers.inspect(box)["State"]["Running"]
    wait_for(lambda: listener.actions[-1] == "restart")
    shown = [action for action in listener.actions if action not in ("connect", "disconnect")]
    life = ["kill", "die", "stop"]
    if shown[9:11] == ["destroy", "stop"]:  # who stops it and who removes it are two
        shown[9:11] = ["stop", "destroy"]
    assert shown == ["create", "start", *life, "start", "restart", *life, "destroy", "create", "start", "restart"]


# who is attached


def test_no_byte_is_lost_to_who_is_attached_before_the_start(engine: Engine) -> None:
    box = make(engine, "cat; echo done; echo error >&2", stdin=True)
    many = [Ends(engine, box, stdin=n == 0) for n in range(60)]
    with pytest.raises(Conflict, match="has 60 attached already"):
        engine.processes.attach(box, (None, None, None))
    many[7].line.close()
    assert many[7].all() == (b"", b"")
    before = len(os.listdir("/proc/self/fd"))
    engine.containers.start(box)
    assert len(os.listdir("/proc/self/fd")) <= before
    os.write(many[0].stdin, b"x" * 4000 + b"\n")
    os.close(many[0].stdin)
    many[0].line.end_input()
    for ends in (*many[:7], *many[8:]):
        assert ends.all() == (b"x" * 4000 + b"\ndone\n", b"error\n")
        assert ends.line.wait() == {"exit_code": 0}
        ends.line.close()


def test_attached_and_gone(engine: Engine, listener: Listener) -> None:
    """Before the start, while it runs, and where there will be no start."""
    box = make(engine, "while :; do echo x; sleep 0.01; done")
    first, stays = Ends(engine, box), Ends(engine, box)
    engine.containers.start(box)
    second = Ends(engine, box)
    for ends in first, second, stays:
        assert os.read(ends.out, 1) == b"x"
    for ends in first, second:
        ends.line.close()
        assert set(ends.all()[0]) <= {10, 120}
    engine.processes.detached(box)
    assert os.read(stays.out, 1)
    engine.containers.kill(box)
    stays.all()
    assert stays.line.wait() == {"exit_code": 137}
    stays.line.close()
    never = make(engine, "true")
    ends = Ends(engine, never)
    engine.containers.remove(never)
    assert ends.all() == (b"", b"") and ends.line.wait() is None
    ends.line.close()
    wait_for(lambda: "detach" in listener.actions and listener.actions[-1] == "destroy")
    assert not engine.containers.attachments._waiting
    with pytest.raises(NotFound):
        Ends(engine, "nosuch")


def test_a_terminal_of_who_attached_before(engine: Engine) -> None:
    body = {"Image": "toolbox", "Cmd": ["sh", "-c", "stty size; read x; echo got $x"], "Tty": True, "OpenStdin": True}
    box = engine.containers.create(body | {"HostConfig": {"NetworkMode": "none"}})["Id"]
    ends = Ends(engine, box, stdin=True)
    engine.containers.start(box, size=(57, 13))
    first = b"".join(os.read(ends.out, 1) for _ in range(7))  # its echo would come before, where the shell is slow
    os.write(ends.stdin, b"it\n")
    assert (first, *ends.all()) == (b"13 57\r\n", b"it\r\ngot it\r\n", b"")
    os.close(ends.stdin)
    ends.line.close()


def test_execs_are_told_of(engine: Engine, listener: Listener) -> None:
    box = begin(engine, LOOP)
    for script, code in ("exit 4", 4), ("sleep 0.3; exit 5", 5), ("exec sleep 1000", 137):
        identity = engine.processes.create_exec(box, {"Cmd": ["sh", "-c", script]})["Id"]
        engine.processes.start_exec(identity).close()  # detached
        if code == 137:
            engine.processes.detached(identity)
            engine.containers.remove(box, force=True)
        wait_for(lambda: "exec_die" in listener.actions)
        end = [e for e in listener.seen if e["Action"] == "exec_die"][-1]["Actor"]["Attributes"]
        assert (end["execID"], end["exitCode"]) == (identity, str(code))
        listener.seen[:] = [e for e in listener.seen if e["Action"] == "exec_detach"]
    assert "exec_detach" in listener.actions


# the launcher, and an engine that dies


def launcher_of(engine: Engine) -> int:
    assert engine.containers.launcher
    return engine.containers.launcher._pid


def ended(pid: int) -> bool:
    """It is a zombie of ours."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_launcher_that_is_killed_is_made_again(engine: Engine) -> None:
    first = launcher_of(engine)
    box = begin(engine, LOOP)
    for times in range(3):
        pid = launcher_of(engine)
        os.kill(pid, signal.SIGKILL if times else signal.SIGTERM)
        wait_for(lambda pid=pid: ended(pid))
        assert engine.containers.wait(begin(engine, f"exit {times}")) == times
    assert engine.containers.inspect(box)["State"]["Running"] and first != launcher_of(engine)
    last = launcher_of(engine)
    engine.close()
    assert not Path(f"/proc/{last}").exists()
    engine.open()


def test_what_a_launched_shim_has(engine: Engine) -> None:
    """No descriptor of the engine's, the limit of open files that it began with, and above it only who reaps nobody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        os.kill(launcher_of(engine), signal.SIGKILL)  # the next one is begun under another limit
        wait_for(lambda: ended(launcher_of(engine)))
        box = begin(engine, "ulimit -n; exec sleep 1000")
        pid = launcher_of(engine)
        wait_for(lambda: bool(said(engine, box)))
        assert said(engine, box) == f"{soft}\n"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    run = json.loads((engine.store.containers / box / "run.json").read_text())
    shim = Path("/proc", str(run["shim"]["pid"]))
    alone = begin_alone(engine)
    run = json.loads((engine.store.containers / alone / "run.json").read_text())
    other = Path("/proc", str(run["shim"]["pid"]))

    def kinds(at: Path) -> list[str]:
        return sorted(re.sub(r"[0-9a-f]{64}|\d+", "", os.readlink(fd)) for fd in (at / "fd").iterdir())

    wait_for(lambda: kinds(shim) == kinds(other))
    ours = parent(run["shim"]["pid"])  # of the one that no launcher has started: an entry's, which is gone
    assert parent(int(shim.name)) == (pid if os.geteuid() == 0 else ours) and ours not in (pid, os.getpid())


def begin_alone(engine: Engine) -> str:
    """A container that no launcher has started."""
    launcher, engine.containers.launcher = engine.containers.launcher, None
    try:
        return begin(engine, "exec sleep 1000")
    finally:
        engine.containers.launcher = launcher


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_life import begin, make, Ends, Engine, LOOP
engine = Engine(Path({root!r}), "embedded")
engine.open()
for n in range(10):
    begin(engine, f"n=0; while test $n -lt 300; do echo $n; n=$((n+1)); sleep 0.01; done; test -e /tmp/x; exit {{n}}"
          if n < 8 else LOOP, AutoRemove=n in (2, 3))
ids = [record["Id"] for record in sorted(engine.containers.records(), key=lambda record: record["Created"])]
Ends(engine, ids[0])
Ends(engine, make(engine, "true"))
exec = engine.processes.create_exec(ids[9], {{"Cmd": ["sh", "-c", "sleep 5; exit 6"]}})["Id"]
engine.processes.start_exec(exec)
print(*ids, exec, flush=True)
time.sleep(1000)
"""


def test_an_engine_is_killed(engine: Engine) -> None:
    """Ten containers go on; a new engine lists, waits for, execs in and stops them, and no line of theirs is lost."""
    root = engine.store.root
    engine.close()
    script = KILLED.format(tests=str(Path(__file__).parent), root=str(root))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        *ids, exec = process.stdout.readline().split()
        process.kill()
    assert len(ids) == 10
    asleep = [i for i, box in enumerate(ids) if runtime.status(root / "containers" / box).runs]
    assert {8, 9} <= set(asleep)
    wait_for(lambda: not runtime.status(root / "containers" / ids[2]).runs)
    begun = time.time()
    with opened(root) as second:
        listener = Listener(second.events)
        try:
            wait_for(lambda: not (root / "containers" / ids[2]).exists())
            assert len(second.containers.summaries(all=True)) in (9, 10)  # the other --rm one may still run
            for number in (0, 1, 4, 5, 6, 7):
                with contextlib.closing(second.containers.waiter(ids[number])) as waiter:
                    assert waiter.result() == {"StatusCode": number}
                assert said(second, ids[number]) == "".join(f"{n}\n" for n in range(300))
            wait_for(lambda: not (root / "containers" / ids[3]).exists())
            wait_for(lambda: "exec_die" in listener.actions)
            assert second.processes.inspect_exec(exec)["ExitCode"] == 6
            assert second.containers.stop(ids[8])
            new = second.processes.create_exec(ids[9], {"Cmd": ["sh", "-c", "exit 9"]})["Id"]
            with contextlib.closing(second.processes.start_exec(new)) as line:
                assert line.wait() == {"exit_code": 9}
            late = Ends(second, ids[9])
            second.containers.restart(ids[9])
            late.all(), late.line.close()
            wait_for(lambda: listener.actions[-1] == "restart")
            assert listener.seen[0]["timeNano"] / 1e9 > begun
        finally:
            listener.close()
    engine.open()


def test_without_a_daemon_nobody_waits_in_vain(root: Path) -> None:
    """An engine that is not opened has no threads: whoever waits removes, and a waiter is refused."""
    engine = Engine(root, "embedded")
    for _ in engine.pull("toolbox"):
        pass
    threads = threading.active_count()
    box = begin(engine, "exit 5", AutoRemove=True)
    with pytest.raises(Unsupported):
        engine.containers.waiter(box)
    assert engine.containers.wait(box) == 5 and threading.active_count() == threads
    with pytest.raises(MinirtError):
        engine.containers.find(box)
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("subuids", [True, False], ids=["subuids", "one id"])
def test_as_a_plain_user(subuids: bool) -> None:
    with plain_user(subuids) as user:
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_life.py",
            "-n0", "-k", "not dockerd and not plain" if subuids else "attached or killed or remove"]  # fmt: skip
        result = user.run(words, timeout=300, check=False)
        assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
        assert " passed" in result.stdout
