"""The daemon and whoever means it ill, or is only clumsy: requests that are malformed, too large, half sent or out of
order, any JSON in any field, clients that vanish or never read, two hundred at once, a full disk. Each gets docker's
answer, costs bounded memory, and the next request works."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minirt import child
from minirt.engine.request import _HOST, BODY, EXEC, UPDATE, VOLUME

pytestmark = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="containers of root")

PING = b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"
SLEEP = ["sleep", "1000"]


class Daemon:
    """One of our own, in the foreground; `socket` is where it listens, `log` what it says of its own bugs."""

    def __init__(self, folder: Path, hub: str = "embedded", within: tuple[str, ...] = (), disk: str = "") -> None:
        self.root, self.socket = folder / disk / "root", str(folder / "run" / "minirt.sock")
        self.log = folder / "log"
        words = [*within, *child.command("minirt.daemon", str(self.root), self.socket, hub, "", "")]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: self.said() != "" or self.process.poll() is not None)
        assert "listening" in self.said(), self.said()

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def raw(self, data: bytes, seconds: float = 30) -> bytes:
        """What comes back until the daemon ends the connection, or says no more for a moment."""
        with self.connect(seconds) as line:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            return everything(line)

    def connect(self, seconds: float = 30) -> socket.socket:
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(seconds)
        line.connect(self.socket)
        return line

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """One request on a connection of its own: status, and the JSON or text."""
        data = b"" if body is None else json.dumps(body).encode()
        given = {"Host": "x", "Connection": "close", "Content-Length": str(len(data))}
        given |= {"Content-Type": "application/json"} if body is not None else {}
        lines = [
            f"{method} {path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in (given | (headers or {})).items()),
        ]
        answer = self.raw("\r\n".join([*lines, "", ""]).encode("latin-1") + data)
        return parsed(answer)

    def create(self, command: list[str], **more: Any) -> str:
        host = {"NetworkMode": "none"} | more.pop("HostConfig", {})
        status, made = self.ask(
            "POST", "/containers/create", {"Image": "toolbox", "Cmd": command, "HostConfig": host} | more
        )
        assert status == 201, made
        return str(made["Id"])

    def start(self, command: list[str], **more: Any) -> str:
        identity = self.create(command, **more)
        assert self.ask("POST", f"/containers/{identity}/start")[0] == 204
        return identity

    def remove(self, identity: str) -> None:
        assert self.ask("DELETE", f"/containers/{identity}?force=1")[0] in (204, 404)

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def field(self, name: str, file: str = "status") -> int:
        text = Path(f"/proc/{self.process.pid}/{file}").read_text()
        return int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]

    def children(self) -> int:
        return len(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split())

    def close(self) -> None:
        for row in self.ask("GET", "/containers/json?all=1")[1]:
            self.remove(row["Id"])
        self.process.terminate()
        assert self.process.wait(20) == 0
        assert not os.path.exists(self.socket)


def everything(line: socket.socket) -> bytes:
    out = b""
    with contextlib.suppress(ConnectionResetError):
        while data := line.recv(1 << 16):
            out += data
    return out


def parsed(answer: bytes) -> tuple[int, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if b"chunked" in head:
        body = b"".join(re.split(rb"(?:^|\r\n)[0-9a-f]+\r\n", body))
    try:
        return status, json.loads(body) if body.strip() else None
    except ValueError:
        return status, body


def wait_for(ready: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("daemon"))
    assert daemon.ask("POST", "/images/create?fromImage=toolbox&tag=latest")[0] == 200
    yield daemon
    daemon.close()


@pytest.fixture
def daemon(served: Daemon) -> Iterator[Daemon]:
    """The one of all tests; after each it answers, and has told of no bug."""
    before = len(served.said())
    yield served
    assert served.process.poll() is None
    assert served.ask("GET", "/_ping") == (200, b"OK")
    assert "Traceback" not in served.said()[before:], served.said()[before:][-3000:]


@pytest.fixture(scope="module")
def running(served: Daemon) -> str:
    return served.start(SLEEP)


@pytest.fixture(scope="module")
def stopped(served: Daemon) -> str:
    return served.create(["true"])


@contextlib.contextmanager
def unleaked(daemon: Daemon, kept: int = 0) -> Iterator[None]:
    """As many threads, descriptors and children afterwards as before, but for `kept` connections of a pool."""
    before = daemon.field("Threads"), daemon.fds(), daemon.children()
    yield

    def same() -> bool:
        now = daemon.field("Threads"), daemon.fds(), daemon.children()
        return all(n <= b + kept for n, b in zip(now, before, strict=True))

    try:
        wait_for(same, 20)
    except AssertionError:
        now = daemon.field("Threads"), daemon.fds(), daemon.children()
        raise AssertionError(f"threads, descriptors, children: {before} became {now}") from None


# requests that are not as they should be

HEAD = b"POST /containers/create HTTP/1.1\r\nHost: x\r\n"
TYPED = HEAD + b"Content-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\r\n\r\n", None),
        (b"hello\r\n\r\n", 400),
        (b"GET /_ping\x00 HTTP/1.1\r\n\r\n", (400, 404)),
        (b"GET /_ping HTTP/9.9\r\n\r\n", 505),
        (b"GET /_ping HTTP/1.x\r\n\r\n", 400),
        (b"GET /_ping FTP/1.1\r\n\r\n", 400),
        (b"GET / / HTTP/1.1\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET " + b"/" * 70000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /_ping HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"GET /_ping HTTP/1.1\r\nA: " + b"b" * 70000 + b"\r\n\r\n", 431),
        (b"GET /_ping HTTP/1.1\r\nno colon here\r\nHost: x\r\n\r\n", 400),
        (b"GET /_ping HTTP/1.1\r\nContent-Length : 5\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: +2\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: 1e3\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: 0x2\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400),
        (TYPED + b"Content-Length: 20\r\n\r\n{}", 400),  # half sent
        (TYPED + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n", 400),
        (TYPED + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n", 400),
        (TYPED + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n", 400),
        (TYPED + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 5000, 400),
        (TYPED + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}zz\r\n", 400),
        (TYPED + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{", 400),
        (TYPED + b"Transfer-Encoding: chunked\r\n\r\n", 400),
        (HEAD + b"Content-Length: 2\r\n\r\n{}", 400),  # no type
        (HEAD + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 400),
        (TYPED + b"Content-Length: 1\r\n\r\n{", 400),
        (TYPED + b"Content-Length: 2\r\n\r\n[]", 400),
        (TYPED + b"Content-Length: 4\r\n\r\nnull", 400),
        (TYPED + b"Content-Length: 2\r\n\r\n\xff\xff", 400),
        *((TYPED + b"Content-Length: %d\r\n\r\n" % len(body) + body, 400) for body in (
            b'{"Image":NaN}', b'{"Image":"a\\u0000b"}', b'{"Image":"\\ud800"}', b'{"a\\u0000":1}',
            b'{"a":%s1}' % (b"9" * 5000), b'{"a":9223372036854775808}',
        )),
        (b"BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n", 501),
    ],
)  # fmt: skip
def test_a_malformed_request_gets_an_answer_and_the_next_one_works(daemon: Daemon, sent: bytes, status: Any) -> None:
    answer = daemon.raw(sent)
    if status is None:
        return  # nothing was asked
    code, body = parsed(answer)
    assert code in (status if isinstance(status, tuple) else (status,)), answer[:300]
    assert body["message"]


def test_two_requests_in_one_connection_do_not_run_into_each_other(daemon: Daemon) -> None:
    bad = b"POST /containers/none/start HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    answer = daemon.raw(bad + bad + PING)
    assert [int(code) for code in re.findall(rb"^HTTP/1.1 (\d+)", answer, re.MULTILINE)] == [404, 404, 200]
    assert answer.endswith(b"OK")


@pytest.mark.parametrize("length", ["chunked", "known"])
def test_a_huge_body_is_refused_in_bounded_memory(daemon: Daemon, length: str) -> None:
    before, sent = daemon.field("VmHWM"), 0
    head = f"Content-Length: {1 << 31}" if length == "known" else "Transfer-Encoding: chunked"
    with daemon.connect() as line:
        line.sendall(TYPED + head.encode() + b"\r\n\r\n")
        piece = b"a" * (1 << 20) if length == "known" else b"100000\r\n" + b"a" * (1 << 20) + b"\r\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 200:
                line.sendall(piece)
                sent += 1
        code, body = parsed(everything(line))
    assert (code, "too large" in body["message"]) == (400, True)
    assert sent < 64
    assert daemon.field("VmHWM") - before < 80_000, "kB"


@contextlib.contextmanager
def peak(daemon: Daemon, most: int) -> Iterator[None]:
    """The daemon's memory grows by at most so many kB meanwhile, also for a moment."""
    Path(f"/proc/{daemon.process.pid}/clear_refs").write_text("5")  # VmHWM begins anew
    before = daemon.field("VmRSS")
    yield
    grown = daemon.field("VmHWM") - before
    assert grown < most, f"{grown} kB"


def test_a_body_of_small_chunks_costs_as_much_as_one_of_large_chunks(daemon: Daemon) -> None:
    body = b'{"Image":"nowhere","x":"' + b"a" * (3 << 20) + b'"}'
    pieces = b"".join(b"2\r\n%s\r\n" % body[at : at + 2] for at in range(0, len(body), 2))
    with peak(daemon, 40_000):
        code, said = parsed(
            daemon.raw(TYPED + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n")
        )
    assert code == 404 and "nowhere" in said["message"]


@pytest.mark.parametrize("value", [b"[]", b"{}", b"1", b'""'])
def test_a_body_of_many_values_is_refused(daemon: Daemon, value: bytes) -> None:
    """Read, they would take many times the memory, and nobody else would be served meanwhile."""
    body = b'{"Image":"nowhere","x":[' + (value + b",") * ((3 << 20) // (len(value) + 1)) + b"1]}"
    with peak(daemon, 40_000):
        code, said = parsed(daemon.raw(TYPED + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body))
    assert code == 400 and "too large" in said["message"]


def test_many_binds_hold_nobody_up(daemon: Daemon) -> None:
    """Who creates meanwhile waits for them to be looked over."""
    binds = [f"name:/{number}" for number in range(100_000)]
    body = {"Image": "toolbox", "Cmd": ["true"], "HostConfig": {"Binds": [*binds, binds[-1]]}}
    began = time.monotonic()
    status, said = daemon.ask("POST", "/containers/create", body)
    assert (status, said["message"]) == (400, "Duplicate mount point: /99999")
    assert time.monotonic() - began < 20


def test_many_large_heads_and_bodies_at_once(daemon: Daemon) -> None:
    head = b"GET /_ping HTTP/1.1\r\n" + b"".join(b"A%d: %s\r\n" % (n, b"b" * 65000) for n in range(90))
    body = TYPED + b"Content-Length: %d\r\n\r\n" % (1 << 30) + b"a" * (16 << 20)
    for sent, each in (head, 1_000), (body, 9_000):
        with unleaked(daemon), contextlib.ExitStack() as lines, peak(daemon, 30 * each):
            for _ in range(30):
                line = lines.enter_context(daemon.connect())
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    line.sendall(sent)
            assert daemon.ask("GET", "/_ping")[0] == 200


def test_a_full_command_line_and_environment_are_taken(daemon: Daemon) -> None:
    """As much as execve(2) takes is no hostile request."""
    words = ["true", *("a" * 100_000 for _ in range(9)), *("," * 20_000 for _ in range(10))]
    identity = daemon.create(words, Env=[f"V{n}={n}" for n in range(30_000)])
    assert len(daemon.ask("GET", f"/containers/{identity}/json")[1]["Config"]["Env"]) > 30_000
    assert daemon.ask("POST", f"/containers/{identity}/start")[0] == 204
    assert daemon.ask("POST", f"/containers/{identity}/wait")[1] == {"StatusCode": 0}
    daemon.remove(identity)


def test_deep_nesting_is_refused(daemon: Daemon) -> None:
    for deep in (101, 900, 5000, 200_000):
        for text in ("[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep):
            body = b'{"Image": "toolbox", "x": %s}' % text.encode()
            answer = daemon.raw(TYPED + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            code, said = parsed(answer)
            assert (code, said["message"][:12]) == (400, "invalid JSON")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1.23/version", 400), ("/v1.24/version", 200), ("/v1.44/version", 200), ("/v1.45/version", 400),
        ("/v999.1/version", 400), ("/v9999.1/version", 404), ("/v1.x/version", 404), ("/v1/version", 404),
        ("/v1.44", 404), ("/v1.44/v1.44/version", 404), ("/nowhere", 404), ("//version", 200), ("/version/", 200),
        ("/%76ersion", 404), ("http://host/version", 200), ("http:////[/version", 404), ("*", 404),
        ("/version#there", 200), ("/version?" + "a=b&" * 5000, 400), ("/version?" + "a" * 60000, 200),
        ("/containers/a%00b/json", 400), ("/containers/%2e%2e/json", 404), ("/containers/..%2f..%2fetc/json", 404),
        ("/containers/../json", 404), ("/containers/%ff%fe/json", 404), ("/containers/" + "a" * 5000 + "/json", 404),
        ("/containers/*/json", 404), ("/containers/%0a/json", 404), ("/containers/%/json", 404),
        ("/images/..%2f..%2fetc%2fpasswd/json", 400), ("/images/a%00/json", 400), ("/images//json", 405),
        ("/images/" + "a" * 5000 + "/json", (400, 404)), ("/images/get?names=..%2f..%2fetc", 400),
        ("/volumes/..%2f..%2fetc", 404), ("/volumes/%00", 400), ("/volumes/" + "a" * 5000, 404),
        ("/networks/..%2f", 404), ("/exec/..%2f../json", 404), ("/exec/" + "f" * 64 + "/json", 404),
        ("/containers/json?limit=x", 400), ("/containers/json?limit=" + "9" * 5000, 400),
        ("/containers/json?limit=1_0", 400), ("/containers/json?filters=x", 400),
        ("/containers/json?filters=[]", 400), ("/containers/json?filters=5", 400),
        ("/containers/json?filters=%7B%22name%22:5%7D", 400),
        ("/containers/json?filters=%7B%22name%22:%22x%22%7D", 400),
        ("/containers/json?filters=%7B%22nothing%22:[%22x%22]%7D", 400),
        ("/containers/json?filters=" + quote('{"name":' + "[" * 3000), 400),
        ("/images/json?filters=%7B%22x%22:[%22x%22]%7D", 400), ("/volumes?filters=%7B%22x%22:[%22x%22]%7D", 400),
        ("/networks?filters=%7B%22x%22:[%22x%22]%7D", 400), ("/events?until=nan", 400), ("/events?since=1e999", 400),
        ("/events?until=yesterday", 400),
    ],
)  # fmt: skip
def test_odd_paths_names_queries_and_versions(daemon: Daemon, path: str, status: Any) -> None:
    code, body = daemon.ask("GET", path)
    assert code in (status if isinstance(status, tuple) else (status,)), body
    if code >= 400:
        assert body["message"]


def test_other_methods_are_refused(daemon: Daemon) -> None:
    assert daemon.ask("POST", "/version")[0] == 405
    assert daemon.ask("PUT", "/containers/json")[0] == 405
    assert daemon.ask("DELETE", "/nowhere")[0] == 404
    assert daemon.raw(b"HEAD /nowhere HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\n")  # no body


def test_a_web_page_is_not_answered(daemon: Daemon) -> None:
    status, said = daemon.ask("GET", "/containers/json", headers={"Origin": "http://evil.example"})
    assert (status, said["message"]) == (403, "web pages are not answered")


def test_the_socket_is_its_users_alone(daemon: Daemon) -> None:
    assert stat.S_IMODE(os.stat(daemon.socket).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(daemon.socket)).st_mode) == 0o700
    # Who gets at it for all that (here: as another user, on a line that root has opened the way to) is not answered.
    script = "import os,socket,sys; s=socket.socket(socket.AF_UNIX); os.chdir(sys.argv[1]); os.setgid(65534); "
    script += "os.setuid(65534); s.connect('minirt.sock'); s.sendall(sys.argv[2].encode()); print(s.recv(100))"
    words = [sys.executable, "-c", script, os.path.dirname(daemon.socket), PING.decode()]
    refused = subprocess.run(words, capture_output=True, text=True)
    assert "PermissionError" in refused.stderr
    os.chmod(daemon.socket, 0o666)
    try:
        ignored = subprocess.run(words, capture_output=True, text=True)
    finally:
        os.chmod(daemon.socket, 0o600)
    assert "200 OK" not in ignored.stdout, ignored


# any JSON in any field

_WORDS = ["", "a", "host", "none", "container:x", "toolbox", "1", "-1", "80/tcp", "a=b", "../x", "ALL", "\udcff", "é"]
_TEXT = st.sampled_from(_WORDS) | st.text("ab:=,.*-é\n", max_size=6)  # no slash: a bind's folder would be made
_SCALAR = st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | _TEXT
_JSON = st.recursive(
    _SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3), max_leaves=6
)


def _near(shape: Any) -> st.SearchStrategy[Any]:
    """JSON of about this shape: what gets past the first look."""
    if isinstance(shape, type):
        return {str: _TEXT, int: st.integers(-3, 1 << 40), bool: st.booleans()}.get(shape, _JSON)
    if isinstance(shape, tuple):
        return st.lists(st.integers(-1, 70000), max_size=3)
    if isinstance(shape, list):
        return st.lists(_near(shape[0]), max_size=2)
    known = {name: _near(inner) for name, inner in shape.items() if name != "*"}
    maps = st.dictionaries(_TEXT, _near(shape["*"]), max_size=2) if "*" in shape else st.nothing()
    return (st.fixed_dictionaries({}, optional=known) if known else _JSON) | maps


def _any(shape: dict[str, Any]) -> st.SearchStrategy[tuple[str, Any]]:
    """A field, and something in it."""
    return st.sampled_from(sorted(shape)).flatmap(lambda name: st.tuples(st.just(name), _JSON | _near(shape[name])))


thorough = settings(
    max_examples=150 if os.environ.get("CI") else 600,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def judged(daemon: Daemon, status: int, body: Any, good: tuple[int, ...]) -> None:
    assert status in good or 400 <= status < 500 or status == 501, (status, body)
    if status >= 400:
        assert body["message"]


@thorough
@given(_any(BODY | {"Cmd": [str], "Entrypoint": [str]}))
@example(("User", "\udcff:\udcff"))
@example(("HostConfig", "text"))
@example(("Cmd", "text"))
@example(("NetworkingConfig", {"EndpointsConfig": {"bridge": None}}))
def test_any_value_in_any_field_of_create(daemon: Daemon, field: tuple[str, Any]) -> None:
    status, made = daemon.ask("POST", "/containers/create", {"Image": "toolbox", "Cmd": ["true"], field[0]: field[1]})
    judged(daemon, status, made, (201,))
    if status == 201:
        assert daemon.ask("GET", f"/containers/{made['Id']}/json")[0] == 200
        assert daemon.ask("GET", "/containers/json?all=1")[0] == 200
        daemon.remove(made["Id"])


@thorough
@given(_any(_HOST))
@example(("GroupAdd", ["\udcff"]))
@example(("LogConfig", {"Config": {"max-size": "1" * 400 + "g"}}))
@example(("Ulimits", [{"Name": "nofile", "Soft": 5, "Hard": 1}]))
@example(("Tmpfs", {"/x": "size=9" + "9" * 400}))
@example(("Mounts", [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"Mode": -1}}]))
@example(("PortBindings", {"80/tcp": [{"HostPort": "99999"}]}))
@example(("SecurityOpt", ["seccomp=" + "[" * 5000]))
@example(("SecurityOpt", ["seccomp={}"]))
@example(("SecurityOpt", ['seccomp={"syscalls":5}']))
@example(("CgroupParent", "../../.."))
def test_any_value_in_any_field_of_hostconfig(daemon: Daemon, field: tuple[str, Any]) -> None:
    test_any_value_in_any_field_of_create.hypothesis.inner_test(daemon, ("HostConfig", {field[0]: field[1]}))


def test_who_is_not_text_is_nobody(daemon: Daemon) -> None:
    for more in {"User": "\udcff"}, {"User": "0:\udcff"}, {"HostConfig": {"GroupAdd": ["\udcff"]}}:
        identity = daemon.create(["true"], **more)
        status, said = daemon.ask("POST", f"/containers/{identity}/start")
        assert status == 400 and "unable to find" in said["message"].lower(), said
        daemon.remove(identity)


def test_names_of_fields_are_taken_in_any_case(daemon: Daemon, running: str) -> None:
    """As Go takes them; docker-py sends some so. A map's keys are nobody's names."""
    mount = {"TYPE": "tmpfs", "target": "/t", "tmpfsoptions": {"MODE": 448}}
    host = {"networkmode": "none", "logconfig": {"type": "none"}, "mounts": [mount]}
    body = {"image": "toolbox", "cmd": ["true"], "LABELS": {"user": "x"}, "hostconfig": host}
    status, made = daemon.ask("POST", "/containers/create", body)
    assert status == 201, made
    found = daemon.ask("GET", f"/containers/{made['Id']}/json")[1]
    assert (found["Config"]["Cmd"], found["Config"]["Labels"]["user"], found["Config"]["User"]) == (["true"], "x", "")
    assert (found["HostConfig"]["NetworkMode"], found["HostConfig"]["LogConfig"]["Type"]) == ("none", "none")
    assert [mount["Destination"] for mount in found["Mounts"]] == ["/t"]
    assert daemon.ask("POST", "/containers/create", body | {"hostconfig": {"bINDS": 5}})[0] == 400
    daemon.remove(made["Id"])
    _, made = daemon.ask(
        "POST", f"/containers/{running}/exec", {"cmd": ["true"], "detachKeys": "x", "attachstdout": True}
    )
    found = daemon.ask("GET", f"/exec/{made['Id']}/json")[1]
    assert (found["DetachKeys"], found["OpenStdout"]) == ("x", True)


def test_an_old_client_removes_what_it_ran_itself(daemon: Daemon) -> None:
    """Before API 1.25: who removed it under its eyes would make that an error."""
    for version, kept in ("1.24", True), ("1.25", False):
        body = {"Image": "toolbox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none", "AutoRemove": True}}
        _, made = daemon.ask("POST", f"/v{version}/containers/create", body)
        assert daemon.ask("POST", f"/containers/{made['Id']}/start")[0] == 204
        daemon.ask("POST", f"/containers/{made['Id']}/wait")
        if not kept:
            wait_for(lambda: daemon.ask("GET", f"/containers/{made['Id']}/json")[0] == 404)  # noqa: B023
        assert daemon.ask("DELETE", f"/containers/{made['Id']}")[0] == (204 if kept else 404)


@thorough
@given(_any(EXEC | {"Cmd": [str]}))
def test_any_value_in_any_field_of_exec(daemon: Daemon, running: str, field: tuple[str, Any]) -> None:
    body = {"Cmd": ["true"], "AttachStdout": True, field[0]: field[1]}
    judged(daemon, *daemon.ask("POST", f"/containers/{running}/exec", body), (201,))


@pytest.mark.parametrize("field", [("ConsoleSize", 5), ("ConsoleSize", [1]), ("ConsoleSize", ["a", "b"]),
                                   ("ConsoleSize", [-1, 5]), ("Detach", "yes"), ("Tty", [])])  # fmt: skip
def test_any_value_in_any_field_of_a_start_of_an_exec(daemon: Daemon, running: str, field: tuple[str, Any]) -> None:
    _, made = daemon.ask("POST", f"/containers/{running}/exec", {"Cmd": ["true"]})
    assert daemon.ask("POST", f"/exec/{made['Id']}/start", dict([field]))[0] == 400


@thorough
@given(_any(UPDATE))
def test_any_value_in_any_field_of_update(daemon: Daemon, stopped: str, field: tuple[str, Any]) -> None:
    judged(daemon, *daemon.ask("POST", f"/containers/{stopped}/update", dict([field])), (200,))
    assert daemon.ask("GET", f"/containers/{stopped}/json")[0] == 200


@thorough
@given(_any(VOLUME))
def test_any_value_in_any_field_of_a_volume(daemon: Daemon, field: tuple[str, Any]) -> None:
    status, made = daemon.ask("POST", "/volumes/create", dict([field]))
    judged(daemon, status, made, (201,))
    assert daemon.ask("GET", "/volumes")[0] == 200
    if status == 201:
        assert daemon.ask("DELETE", f"/volumes/{quote(made['Name'])}")[0] == 204


@thorough
@given(st.sampled_from(["containers/json?all=1&", "images/json?", "volumes?", "networks?", "events?until=1&"]), _JSON)
def test_any_filter(daemon: Daemon, path: str, filters: Any) -> None:
    status, found = daemon.ask("GET", f"/{path}{urlencode({'filters': json.dumps(filters)}, errors='surrogatepass')}")
    assert status in (200, 400, 404), found


@thorough
@given(st.sampled_from(["name", "status", "since", "before", "exited", "label", "ancestor", "until", "dangling",
                        "reference", "health", "network", "volume", "publish", "expose", "is-task", "id", "driver",
                        "type", "scope", "isolation"]), st.lists(_TEXT, max_size=2))  # fmt: skip
def test_any_value_of_a_filter(daemon: Daemon, name: str, values: list[str]) -> None:
    query = urlencode({"filters": json.dumps({name: values})})
    for path in ("/containers/json?all=1&", "/images/json?", "/volumes?", "/networks?", "/events?until=1&"):
        status, found = daemon.ask("GET", path + query)
        assert status in (200, 400, 404), found


@pytest.mark.parametrize(
    "name", ["(((((" * 1000, "(" * 3000 + ")" * 3000, "a{99999999999}", "[", "*", "(?P<a>b)(?P<a>b)"]
)
def test_what_is_no_expression_is_refused(daemon: Daemon, running: str, name: str) -> None:
    query = urlencode({"filters": json.dumps({"name": [name]})})
    for path in ("/containers/json?all=1&", "/networks?"):
        status, said = daemon.ask("GET", path + query)
        assert status == 400 and "invalid filter" in said["message"], said


@pytest.mark.parametrize("name", ["^(a+)+$", "(.*)*(.*)*(.*)*x", "^(([a-z])+.)+[A-Z]$"])
def test_an_expression_that_takes_for_ever_holds_nobody_up(daemon: Daemon, name: str) -> None:
    body = {"Image": "toolbox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}
    _, made = daemon.ask("POST", f"/containers/create?name={'a' * 60}.", body)
    lines = [
        begun(daemon, "GET", path + urlencode({"filters": json.dumps({key: [name]})}))
        for path, key in (("/containers/json?all=1&", "name"), ("/networks?", "id"))
    ]
    slowest = 0.0
    for _ in range(20):
        began = time.monotonic()
        assert daemon.ask("GET", "/_ping")[0] == 200
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.05)
    assert slowest < 2
    for line in lines:
        with line:
            assert line.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 200")
    daemon.remove(made["Id"])


def test_expressions_find_names(daemon: Daemon) -> None:
    ids = {}
    for name in ("web.1", "web.2", "web-db", "aweb"):
        body = {"Image": "toolbox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}
        _, made = daemon.ask("POST", f"/containers/create?name={name}", body)
        ids[made["Id"]] = name
    for wanted, found in (
        ("web", "web.1 web.2 web-db aweb"), ("^web", "web.1 web.2 web-db"), ("^/web-db$", "web-db"),
        ("b.?[12]$", "web.1 web.2"),
        ("^/?a", "aweb"), ("db|1", "web.1 web-db"), ("^(web|x)-", "web-db"), ("web.1", "web.1"), ("nothing", ""),
        ("^web$", ""), ("b$", "web-db aweb"),
    ):  # fmt: skip
        query = urlencode({"filters": json.dumps({"name": [wanted]})})
        rows = daemon.ask("GET", "/containers/json?all=1&" + query)[1]
        assert sorted(ids[row["Id"]] for row in rows if row["Id"] in ids) == sorted(found.split()), wanted
    for identity in ids:
        daemon.remove(identity)


# not there yet


@pytest.mark.parametrize(
    ("asked", "instead"),
    [
        ("POST /build?t=x", "minirt load"), ("POST /session", "minirt load"),
        ("POST /networks/create", "there are bridge, host and none"), ("POST /networks/bridge/connect", "there are"),
        ("POST /networks/bridge/disconnect", "there are"), ("GET /images/search?term=x", "hub.docker.com"),
        ("GET /containers/x/attach/ws", "POST"),
        ("POST /images/create?fromSrc=http://x/y.tar", "import the file"),
    ],
)  # fmt: skip
def test_what_is_not_possible_yet_is_said(daemon: Daemon, asked: str, instead: str) -> None:
    """With what to do instead. An archive is taken to its end: docker's command reads no answer before."""
    method, path = asked.split()
    for length in (0, 30 << 20):
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        with daemon.connect() as line:
            line.sendall(head.encode() + b"x" * length)
            line.shutdown(socket.SHUT_WR)
            status, said = parsed(everything(line))
        assert status == 501 and "not possible" in said["message"] and instead in said["message"], said


def test_an_archive_for_nobody_has_no_end(daemon: Daemon) -> None:
    head = b"POST /build HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    began, sent = time.monotonic(), 0
    with unleaked(daemon), peak(daemon, 20_000), daemon.connect() as line, contextlib.suppress(BrokenPipeError):
        line.sendall(head)
        while time.monotonic() - began < 60:
            line.sendall(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
            sent += 1
    assert sent > 30 and time.monotonic() - began < 40


# out of order


def test_requests_out_of_order(daemon: Daemon, running: str, stopped: str) -> None:
    nobody = "f" * 64
    assert daemon.ask("POST", f"/exec/{nobody}/start", {})[0] == 404
    assert daemon.ask("POST", f"/exec/{nobody}/resize?h=1&w=1")[0] == 404
    assert daemon.ask("POST", f"/containers/{stopped}/resize?h=1&w=1")[0] == 409
    assert daemon.ask("POST", f"/containers/{running}/resize?h=-1&w=1")[0] == 400
    assert daemon.ask("POST", f"/containers/{running}/resize")[0] == 400
    assert daemon.ask("POST", f"/containers/{stopped}/exec", {"Cmd": ["true"]})[0] == 409
    assert daemon.ask("POST", f"/containers/{stopped}/kill")[0] == 409
    assert daemon.ask("POST", f"/containers/{stopped}/pause")[0] == 409
    assert daemon.ask("POST", f"/containers/{stopped}/stop")[0] == 304
    assert daemon.ask("POST", f"/containers/{running}/start")[0] == 304
    assert daemon.ask("POST", f"/containers/{running}/kill?signal=NONE")[0] == 400
    assert daemon.ask("POST", f"/containers/{running}/stop?t=x")[0] == 400
    assert daemon.ask("POST", f"/containers/{running}/wait?condition=never")[0] == 400
    assert daemon.ask("DELETE", f"/containers/{running}")[0] == 409
    assert daemon.ask("POST", f"/containers/{running}/rename?name=")[0] == 400
    assert daemon.ask("POST", f"/containers/{running}/rename?name=..%2fx")[0] == 400
    assert daemon.ask("GET", f"/containers/{running}/logs")[0] == 400
    assert daemon.ask("GET", f"/containers/{running}/logs?stdout=1&since=x")[0] == 400
    assert daemon.ask("GET", f"/containers/{running}/logs?stdout=1&tail=" + "9" * 5000)[0] == 200
    assert daemon.ask("GET", f"/containers/{running}/top?ps_args=" + quote("-o /etc/passwd"))[0] == 400
    assert daemon.ask("GET", f"/containers/{running}/archive")[0] == 400
    assert daemon.ask("GET", f"/containers/{running}/archive?path=a%00b")[0] == 400
    assert daemon.ask("GET", f"/containers/{running}/archive?path=" + "a/" * 5000)[0] in (400, 404, 500)
    assert daemon.ask("PUT", f"/containers/{running}/archive?path=/tmp")[0] == 200  # nothing is extracted
    assert daemon.ask("POST", "/commit?container=nobody")[0] == 404
    assert daemon.ask("POST", f"/commit?container={stopped}&repo=UPPER")[0] == 400
    assert daemon.ask("POST", f"/commit?container={stopped}&changes=FROM+x")[0] == 400
    assert daemon.ask("POST", "/images/create")[0] == 400
    assert daemon.ask("POST", "/images/create?fromImage=..%2f..")[0] == 400
    _, made = daemon.ask("POST", f"/containers/{running}/exec", {"Cmd": ["true"]})
    assert daemon.ask("POST", f"/exec/{made['Id']}/resize?h=1&w=1")[0] == 409
    assert daemon.ask("POST", f"/exec/{made['Id']}/start", {"Detach": True})[0] == 200
    assert daemon.ask("POST", f"/exec/{made['Id']}/start", {"Detach": True})[0] == 409


def test_archives_that_are_none(daemon: Daemon, running: str) -> None:
    for path in (f"/containers/{running}/archive?path=/tmp", "/images/load", "/images/create?fromSrc=-"):
        method = "PUT" if "archive" in path else "POST"
        for body in (b"x" * 2000, b"\x1f\x8b" + b"x" * 2000, b"\x28\xb5\x2f\xfd" + b"x" * 50):
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            status, said = parsed(daemon.raw(head.encode() + body))
            assert 400 <= status < 600 or "error" in said, said


# clients that vanish, or never read


def begun(
    daemon: Daemon, method: str, path: str, body: bytes = b"", *headers: str, seconds: float = 10
) -> socket.socket:
    """A request whose answer has begun."""
    line = daemon.connect(seconds)
    head = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
    line.sendall("\r\n".join([*head, "", ""]).encode() + body)
    return line


def vanish(line: socket.socket, how: str) -> None:
    if how == "half":  # its answer is read no more, either
        line.shutdown(socket.SHUT_RDWR)
    line.close()


UPGRADE = ("Connection: Upgrade", "Upgrade: tcp", "Content-Length: 0")
CHATTY = ["sh", "-c", "while :; do echo 0123456789012345678901234567890123456789; done"]
QUIET = ["sh", "-c", "echo one; exec sleep 1000"]


@pytest.mark.parametrize("how", ["closed", "half"])
@pytest.mark.parametrize("command", [QUIET, CHATTY], ids=["quiet", "chatty"])
def test_clients_that_vanish_leave_nothing(daemon: Daemon, command: list[str], how: str) -> None:
    identity = daemon.start(command, HostConfig={"LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}}})
    at = f"/containers/{identity}"
    paths = [
        ("POST", f"{at}/attach?stream=1&stdout=1&stderr=1&stdin=1"),
        ("POST", f"{at}/attach?stream=1&logs=1&stdout=1&stderr=1"),
        ("GET", f"{at}/logs?follow=1&stdout=1&stderr=1"),
        ("POST", f"{at}/wait?condition=removed"),
        ("POST", f"{at}/wait?condition=next-exit"),
        ("GET", f"{at}/stats"),
        ("GET", "/events"),
        ("GET", "/minirt/trace?tag=x"),
        ("GET", f"{at}/export"),
        ("GET", f"{at}/archive?path=/bin"),
        ("GET", "/images/toolbox/get"),
    ]
    try:
        with unleaked(daemon):
            for _ in range(3):
                for method, path in paths:
                    line = begun(daemon, method, path, b"", *(UPGRADE if "attach" in path else ("Content-Length: 0",)))
                    assert line.recv(12) in (b"HTTP/1.1 200", b"HTTP/1.1 101"), path
                    vanish(line, how)
                _, made = daemon.ask(
                    "POST", f"{at}/exec", {"Cmd": ["sleep", "2"], "AttachStdout": True, "AttachStdin": True}
                )
                body = b"{}"
                line = begun(daemon, "POST", f"/exec/{made['Id']}/start", body, "Connection: Upgrade", "Upgrade: tcp",
                             "Content-Type: application/json", f"Content-Length: {len(body)}")  # fmt: skip
                assert line.recv(12) == b"HTTP/1.1 101"
                vanish(line, how)
                for method, path in (
                    ("PUT", f"{at}/archive?path=/tmp"),
                    ("POST", "/images/load"),
                    ("POST", "/images/create?fromSrc=-"),
                ):
                    line = begun(daemon, method, path, b"5\r\nhello\r\n", "Transfer-Encoding: chunked")
                    time.sleep(0.05)
                    vanish(line, how)
        assert daemon.ask("GET", f"{at}/json")[1]["State"]["Running"]
    finally:
        daemon.remove(identity)


def test_a_client_that_vanishes_before_the_start_is_attached_no_more(daemon: Daemon) -> None:
    identity = daemon.create(["echo", "x"])
    with unleaked(daemon):
        for _ in range(5):
            line = begun(daemon, "POST", f"/containers/{identity}/attach?stream=1&stdout=1&stderr=1", b"", *UPGRADE)
            assert line.recv(12) == b"HTTP/1.1 101"
            line.close()
            waiting = begun(
                daemon, "POST", f"/containers/{identity}/wait?condition=next-exit", b"", "Content-Length: 0"
            )
            assert waiting.recv(12) == b"HTTP/1.1 200"
            waiting.close()
    assert daemon.ask("POST", f"/containers/{identity}/start")[0] == 204
    assert daemon.ask("POST", f"/containers/{identity}/wait")[1] == {"StatusCode": 0}
    daemon.remove(identity)


def test_readers_that_stall_hold_nobody_up(daemon: Daemon) -> None:
    identity = daemon.start(CHATTY, HostConfig={"LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}}})
    at, before = f"/containers/{identity}", daemon.field("VmRSS")
    lines = [begun(daemon, "POST", f"{at}/attach?stream=1&stdout=1", b"", *UPGRADE) for _ in range(3)]
    lines += [begun(daemon, "GET", f"{at}/logs?follow=1&stdout=1") for _ in range(3)]
    lines += [begun(daemon, "GET", path) for path in ("/events", "/minirt/trace?tag=", f"{at}/export")]
    try:
        began = time.monotonic()
        for _ in range(5):
            other = daemon.start(["echo", "hello"])
            assert daemon.ask("POST", f"/containers/{other}/wait")[1] == {"StatusCode": 0}
            daemon.remove(other)
        assert daemon.ask("GET", f"{at}/json")[0] == 200
        assert time.monotonic() - began < 30
        time.sleep(1)
        assert daemon.field("VmRSS") - before < 50_000, "kB"
    finally:
        for line in lines:
            line.close()
        daemon.remove(identity)


def test_a_reader_that_stalls_over_a_stopped_container_holds_up_that_one_alone(daemon: Daemon) -> None:
    identity = daemon.create(["true"])
    at = f"/containers/{identity}"
    with begun(daemon, "GET", f"{at}/export") as line:
        assert line.recv(12) == b"HTTP/1.1 200"
        refused, pruned, made = at_once(
            lambda: daemon.ask("POST", f"{at}/rename?name=busy"),
            lambda: daemon.ask("POST", "/containers/prune?filters=" + quote('{"label":["nobody"]}')),
            lambda: daemon.create(["true"]),
        )
        assert refused[0] == 409 and "is busy" in refused[1]["message"]
        assert pruned[0] == 200
        daemon.remove(made)
        assert identity not in str(daemon.ask("POST", "/containers/prune")[1])
        held = begun(daemon, "POST", f"{at}/start", b"", "Content-Length: 0")  # waits for it
        time.sleep(0.2)
    assert held.recv(12) == b"HTTP/1.1 204"
    held.close()
    daemon.remove(identity)


def test_a_pull_for_nobody_stops_and_keeps_its_bytes(daemon: Daemon) -> None:
    """With a slow hub: what came is there for the next pull."""
    pull = "/images/create?fromImage=greeter&tag=2.0"
    with unleaked(daemon, 5):  # the slow hub itself, and connections to it
        for _ in range(8):
            line = begun(daemon, "POST", pull, b"", "Content-Length: 0", "X-Minirt-Throttle: 2000")
            said = everything_until(line, b"Downloading")
            line.close()
    assert int(re.findall(rb'"current": (\d+)', said)[0]) > 300  # it went on where the one before stopped
    assert daemon.ask("GET", "/images/greeter:2.0/json")[0] == 404
    status, said = daemon.ask("POST", "/images/create?fromImage=greeter&tag=2.0")
    assert status == 200
    assert daemon.ask("GET", "/images/greeter:2.0/json")[0] == 200


# many at once


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each gives, or raises; all in threads of their own, begun together."""
    found: list[Any] = [None] * len(calls)
    gate = threading.Barrier(len(calls))

    def run(number: int) -> None:
        gate.wait()
        try:
            found[number] = calls[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_two_hundred_clients_at_once(daemon: Daemon, running: str) -> None:
    def executed() -> Any:
        status, made = daemon.ask("POST", f"/containers/{running}/exec", {"Cmd": ["echo", "x"], "AttachStdout": True})
        assert status == 201, made
        return daemon.ask("POST", f"/exec/{made['Id']}/start", {})[0]

    def ran() -> Any:
        identity = daemon.start(["echo", "x"])
        code = daemon.ask("POST", f"/containers/{identity}/wait")[1]
        said = daemon.ask("GET", f"/containers/{identity}/logs?stdout=1")
        daemon.remove(identity)
        assert code == {"StatusCode": 0}
        return said[0]

    mixed: list[Callable[[], Any]] = [executed] * 15 + [ran] * 15
    paths = ("/_ping", "/version", "/containers/json?all=1", f"/containers/{running}/json", "/images/json", "/volumes",
             f"/containers/{running}/logs?stdout=1", "/networks", f"/containers/{running}/top", "/info")  # fmt: skip
    mixed += [lambda path=path: daemon.ask("GET", path)[0] for path in paths for _ in range(17)]  # type: ignore[misc]
    with unleaked(daemon):
        found = at_once(*mixed)
    assert found == [200] * 200


def test_half_open_connections_hold_nobody_up(daemon: Daemon) -> None:
    before = daemon.field("VmRSS")
    with unleaked(daemon):
        lines = [daemon.connect() for _ in range(500)]
        for number, line in enumerate(lines):
            line.sendall(
                (b"GET /_ping HTT", b"POST /containers/create HTTP/1.1\r\nContent-Length: 9\r\n\r\n{", b"")[number % 3]
            )
        wait_for(lambda: daemon.field("Threads") > 400)
        began = time.monotonic()
        assert daemon.ask("GET", "/_ping")[0] == 200
        identity = daemon.start(["true"])
        assert daemon.ask("POST", f"/containers/{identity}/wait")[1] == {"StatusCode": 0}
        daemon.remove(identity)
        assert time.monotonic() - began < 15
        assert daemon.field("VmRSS") - before < 100_000, "kB"
        for line in lines:
            line.close()


def test_no_descriptor_left_and_then_there_are_again(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, within=("prlimit", "--nofile=60:60"))
    try:
        daemon.ask("POST", "/images/create?fromImage=toolbox&tag=latest")
        identity = daemon.start(["sleep", "3"])
        waiting = begun(daemon, "POST", f"/containers/{identity}/wait", b"", "Content-Length: 0", seconds=60)
        lines = [daemon.connect() for _ in range(80)]
        time.sleep(5)  # it ends while there is none left
        for line in lines:
            line.close()
        assert parsed(everything_until(waiting, b"}"))[1] == {"StatusCode": 0}
        waiting.close()
        wait_for(lambda: daemon.ask("GET", f"/containers/{identity}/json")[1]["State"]["Status"] == "exited")
        again = daemon.start(["true"])
        assert daemon.ask("POST", f"/containers/{again}/wait")[1] == {"StatusCode": 0}
    finally:
        daemon.close()


def everything_until(line: socket.socket, end: bytes) -> bytes:
    out = b""
    while end not in out:
        data = line.recv(4096)
        assert data, out
        out += data
    return out + b"\r\n0\r\n\r\n"


# races


def test_a_start_by_ten_at_once_is_one_start(daemon: Daemon) -> None:
    for _ in range(3):
        identity = daemon.create(SLEEP)
        found = at_once(*[lambda: daemon.ask("POST", f"/containers/{identity}/start")[0]] * 10)  # noqa: B023
        assert sorted(found) == [204] + [304] * 9
        daemon.remove(identity)


def test_a_name_taken_by_ten_at_once_is_ones(daemon: Daemon) -> None:
    body = {"Image": "toolbox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}
    found = at_once(*[lambda: daemon.ask("POST", "/containers/create?name=wanted", body)] * 10)
    assert sorted(status for status, _ in found) == [201] + [409] * 9
    ids = [daemon.create(["true"]) for _ in range(10)]
    named = at_once(*[lambda each=each: daemon.ask("POST", f"/containers/{each}/rename?name=other")[0] for each in ids])  # type: ignore[misc]
    assert sorted(named) == [204] + [409] * 9
    for identity in [*ids, "wanted"]:
        daemon.remove(identity)


def test_an_exec_started_by_five_at_once_runs_once(daemon: Daemon, running: str) -> None:
    for number in range(3):
        words = ["sh", "-c", f"echo x >> /tmp/ran{number}"]
        _, made = daemon.ask("POST", f"/containers/{running}/exec", {"Cmd": words})
        path = f"/exec/{made['Id']}/start"
        found = at_once(*[lambda: daemon.ask("POST", path, {"Detach": True})[0]] * 5)  # noqa: B023
        assert sorted(found) == [200] + [409] * 4
        wait_for(lambda: daemon.ask("GET", f"/exec/{made['Id']}/json")[1]["Running"] is False)  # noqa: B023
        _, counted = daemon.ask("POST", f"/containers/{running}/exec",
                                {"Cmd": ["cat", f"/tmp/ran{number}"], "AttachStdout": True, "Tty": True})  # fmt: skip
        assert daemon.ask("POST", f"/exec/{counted['Id']}/start", {"Tty": True})[1].split() == [b"x"]


def test_figures_of_a_container_that_goes_meanwhile(daemon: Daemon) -> None:
    identity = daemon.create(["sleep", "99"])
    assert daemon.ask("POST", f"/containers/{identity}/start")[0] == 204
    asked = threading.Thread(target=lambda: got.append(daemon.ask("GET", f"/containers/{identity}/stats?stream=0")))
    got: list[tuple[int, Any]] = []
    asked.start()
    time.sleep(0.4)  # it takes two looks, a second apart
    assert daemon.ask("DELETE", f"/containers/{identity}?force=1")[0] == 204
    asked.join()
    assert got == [(404, {"message": f"No such container: {identity}"})]


@pytest.mark.parametrize("auto", [False, True])
def test_everything_at_once_to_one_container(daemon: Daemon, auto: bool) -> None:
    """Start, stop, kill, remove, attach, wait, exec, rename of the same: each gets an answer that is docker's."""
    with unleaked(daemon, 4 if auto else 0):  # the threads that remove
        for _ in range(5):
            identity = daemon.create(["sh", "-c", "echo x; sleep 0.05"], HostConfig={"AutoRemove": auto})
            at = f"/containers/{identity}"
            asked = [("POST", f"{at}/start"), ("POST", f"{at}/start"), ("POST", f"{at}/stop?t=0"),
                     ("POST", f"{at}/kill"),
                     ("DELETE", f"{at}?force=1"), ("DELETE", at), ("POST", f"{at}/wait?condition=removed"),
                     ("POST", f"{at}/attach?stream=1&stdout=1"), ("GET", f"{at}/json"),
                     ("GET", f"{at}/logs?stdout=1&follow=1"),
                     ("POST", f"{at}/restart?t=0"), ("GET", "/containers/json?all=1"), ("GET", f"{at}/stats?stream=0"),
                     ("POST", f"{at}/rename?name=n{identity[:8]}"), ("POST", f"{at}/pause"), ("GET", f"{at}/export"),
                     ("POST", f"{at}/exec")]  # fmt: skip
            calls = [
                lambda method=method, path=path: daemon.ask(method, path, {"Cmd": ["true"]} if "exec" in path else None)  # type: ignore[misc]
                for method, path in asked
            ]
            for (method, path), got in zip(asked, at_once(*calls), strict=True):
                assert not isinstance(got, Exception), (method, path, got)
                # docker's 500s are those of a container that is gone under a stream or a start
                assert got[0] < 500 or "internal" not in str(got[1]), (method, path, got)
                assert got[0] < 500, (method, path, got)
            daemon.remove(identity)


# the machine


def test_a_full_disk_is_told_and_the_daemon_goes_on(tmp_path: Path) -> None:
    """A small one, in a mount namespace of its own."""
    (tmp_path / "disk").mkdir()
    mount = 'mount -t tmpfs -o size=24m none "$0" && exec "$@"'
    daemon = Daemon(tmp_path, within=("unshare", "-m", "sh", "-c", mount, str(tmp_path / "disk")), disk="disk")
    full = Path(f"/proc/{daemon.process.pid}/root{tmp_path}/disk")
    try:
        for name in ("toolbox&tag=latest", "greeter&tag=1.0"):  # the hub has made its images, too
            assert daemon.ask("POST", f"/images/create?fromImage={name}")[0] == 200
        identity = daemon.create(["sh", "-c", "echo hello"])
        filler = full / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        for method, path, body in (
            ("POST", "/containers/create", {"Image": "toolbox", "Cmd": ["true"]}),
            ("POST", "/volumes/create", {}),
            ("POST", f"/containers/{identity}/rename?name=another", None),
            ("POST", f"/commit?container={identity}&repo=x", None),
        ):
            status, said = daemon.ask(method, path, body)
            assert status == 500 and "no space left on device" in said["message"], (path, status, said)
        status, said = daemon.ask("POST", "/images/create?fromImage=greeter&tag=2.0")
        words = said.decode() if isinstance(said, bytes) else json.dumps(said)
        assert "no space left on device" in words or "500 Internal" in words, words  # of ours, or of the hub
        assert daemon.ask("GET", "/containers/json?all=1")[0] == 200
        filler.unlink()
        assert daemon.ask("POST", f"/containers/{identity}/start")[0] == 204
        assert daemon.ask("POST", f"/containers/{identity}/wait")[1] == {"StatusCode": 0}
        assert daemon.ask("GET", "/minirt/check")[1] == [], daemon.ask("GET", "/minirt/check")
        assert "Traceback" not in daemon.said(), daemon.said()
    finally:
        daemon.close()


def test_a_thousand_requests_cost_no_memory(daemon: Daemon, running: str) -> None:
    paths = ("/containers/json?all=1", f"/containers/{running}/json", "/images/json", "/version", "/nowhere", "/info")

    def thousand() -> None:
        for number in range(1000):
            assert daemon.ask("GET", paths[number % len(paths)])[0] in (200, 404)

    thousand()
    before = daemon.field("Pss", "smaps_rollup")
    thousand()
    assert daemon.field("Pss", "smaps_rollup") - before < 2000, "kB"
