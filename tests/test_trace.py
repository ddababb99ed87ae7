"""The trace: what a client said to its daemon and what came of it, in order, and nobody else's."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import busyboxes
import pytest
from dockerd import Dockerd
from peers import require
from registries import PASSWORD, USER, docker_registry, write_layout

from minirt.client import Client
from minirt.client.http import Connection
from minirt.client.place import socket_path
from minirt.client.tracing import Tracer
from minirt.errors import NotFound
from minirt.trace import Event, Events

TOKEN = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux")


def told(event: Event) -> str:
    """An event in a few words."""
    detail = event.detail
    if event.box == "client":
        path = re.sub(r"[0-9a-f]{64}", "ID", detail["path"].partition("?")[0])
        said = f"{detail['method']} {path}"
        return said if event.action == "request" else f"{detail['status']} {said}"
    if event.action == "exchange":
        return f"{detail['status']} {re.sub('.*/v2/', '/v2/', detail['url'])[:30]}"
    if event.action == "progress":
        return str(detail["status"])
    return f"{event.box} {event.action}{' ' + str(detail['found']) if 'found' in detail else ''}"


def closed(events: Events) -> list[Event]:
    events.close()
    return sorted(events, key=lambda event: event.at)


def test_a_cold_run_is_told_whole_and_in_order(root: Path) -> None:
    """The order of chapter 04's picture, on the command line."""
    done = subprocess.run(
        [sys.executable, "-m", "minirt", "--trace", "run", "--quiet", "hello-world"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    lines = [line for line in done.stderr.splitlines() if re.match(r" *[\d.]+ ms  ", line)]
    at = [float(line.split()[0]) for line in lines]
    assert at == sorted(at) and at[0] == 0
    said = [re.sub(r"[0-9a-f]{64}", "ID", " ".join(line.split()[2:])) for line in lines if " progress " not in line]
    expected = [
        r"client request POST /containers/create",
        r"cache look-up hello-world: not here",
        r"client response 404 POST /containers/create \(.* ms\)",
        r"client request POST /images/create\?fromImage=.*",
        r"registry exchange GET http://127.0.0.1:\d+/v2/: 200 .*",
        r"registry exchange GET .*/manifests/latest: 200 .*",
        r"registry exchange GET .*/manifests/sha256:ID: 200 .*",
        r"registry exchange GET .*/blobs/sha256:ID: 200 .*",
        r"registry exchange GET .*/blobs/sha256:ID: 200 .*",
        r"image unpacked 1 layer\(s\)",
        r"cache stored hello-world:latest, \d+ bytes, sha256:.*",
        r"client response 200 POST /images/create.*",
        r"client request POST /containers/create",
        r"cache look-up hello-world: found",
        r"container create id ID, name \w+, image hello-world",
        r"client response 201 POST /containers/create .*",
        r"client request POST /containers/ID/attach.*",
        r"container attach id ID.*",
        r"client response 101 POST /containers/ID/attach.*",
        r"client request POST /containers/ID/wait\?condition=next-exit",
        r"client request POST /containers/ID/start",
        r"container start id ID.*pid \d+",
        r"client response 204 POST /containers/ID/start .*",
        r"container exit id ID.*exit_code 0",
        r"client response 200 POST /containers/ID/wait.*",
    ]
    assert len(said) == len(expected), said
    for line, pattern in zip(said, expected, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)


def test_exec_logs_and_stop_are_told(root: Path) -> None:
    with Client(root) as client:
        for _ in client.import_image(io.BytesIO(busyboxes.image()), "busybox", "latest", "", [], None):
            pass
        made = client.create({"Image": "busybox", "Cmd": ["sleep", "1000"], "StopSignal": "KILL"})["Id"]
        client.start(made)
        with Events() as events:
            assert list(client.logs(made, tty=False)) == []
            process = client.create_exec(made, {"Cmd": ["true"], "AttachStdout": True})
            with client.start_exec(process, tty=False) as attached:
                assert list(attached.output()) == []
            assert client.inspect_exec(process)["ExitCode"] == 0
            with client.waiting(made) as waiting:
                client.stop(made)
                assert waiting.result() == 137
            client.stop(made)
            with pytest.raises(NotFound):
                client.start("nobody")
            found = [told(event) for event in closed(events)]
    assert found == [
        "GET /containers/ID/logs", "200 GET /containers/ID/logs",
        "POST /containers/ID/exec", "201 POST /containers/ID/exec",
        "POST /exec/ID/start", "container exec", "101 POST /exec/ID/start",
        "GET /exec/ID/json", "200 GET /exec/ID/json",
        "POST /containers/ID/wait", "POST /containers/ID/stop", "container exit",
        "204 POST /containers/ID/stop", "200 POST /containers/ID/wait",
        "POST /containers/ID/stop", "304 POST /containers/ID/stop",
        "POST /containers/nobody/start", "404 POST /containers/nobody/start",
    ]  # fmt: skip


def test_two_clients_do_not_hear_each_other(tmp_path: Path, root: Path) -> None:
    """Two processes traced at once on one daemon: each hears its own, and all of it."""
    with Client(root) as client:
        client.version()
    script = """if True:
        import sys
        from minirt.client import Client
        from minirt.trace import Events
        with Client() as client, Events() as events:
            for _ in range(10):
                for _ in client.pull(sys.argv[1]):
                    pass
                client.create({"Image": sys.argv[1]})
            events.close()
            for event in events:
                print(event.box, event.action, event.detail.get("image", ""), event.detail.get("url", ""))
    """
    said: dict[str, str] = {}

    def act(image: str) -> None:
        done = subprocess.run([sys.executable, "-c", script, image], capture_output=True, text=True, timeout=120)
        said[image] = done.stdout + done.stderr

    images = "hello-world:latest", "greeter:1.0"
    threads = [threading.Thread(target=act, args=(image,)) for image in images]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, other in (images, images[::-1]):
        text = said[mine]
        assert text.count("container create") == text.count(f"cache stored {mine}") == 10, text
        assert text.count("client request") == text.count("client response") == 20
        assert other.partition(":")[0] not in text


def test_an_answer_is_told_after_all_that_came_of_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they come, not sorted, however late the daemon's side is."""
    listen = Tracer._listen

    def late(lines: Any) -> Any:
        for line in lines:
            time.sleep(0.2)
            yield line

    monkeypatch.setattr(Tracer, "_listen", lambda self, lines: listen(self, late(lines)))
    with Client(root) as client, Events() as events:
        with pytest.raises(NotFound):
            client.create({"Image": "hello-world"})
        events.close()
        found = [told(event) for event in events]
    assert found == ["POST /containers/create", "cache look-up False", "404 POST /containers/create"]


def test_off_it_costs_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second connection, no header; and after it was on, none either."""
    asked: list[tuple[str, dict[str, str]]] = []
    made: list[Any] = []
    real_request, real_init = Connection.request, Connection.__init__

    def request(self: Connection, method: str, target: str, headers: dict[str, str], body: Any = None) -> Any:
        asked.append((target, dict(headers)))
        return real_request(self, method, target, headers, body)

    def init(self: Connection, path: str) -> None:
        real_init(self, path)
        made.append(self)

    with Client(root) as client:
        client.version()
    monkeypatch.setattr(Connection, "request", request)
    monkeypatch.setattr(Connection, "__init__", init)
    with Client(root) as client:
        client.version()
        client.images()
        assert len(made) == 1 and "minirt.client.tracing" not in repr(client._tracer)
        assert all("X-Minirt-Trace" not in headers for _, headers in asked)
        with Events():
            client.version()
        assert [target for target, _ in asked[2:]] == ["/minirt/trace?tag=" + asked[2][0][-16:], "/version"]
        assert asked[3][1]["X-Minirt-Trace"].partition("/")[0] == asked[2][0][-16:]
        client.version()
        assert "X-Minirt-Trace" not in asked[4][1] and len(made) == 2


def test_no_credentials_are_told(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with docker_registry(tmp_path, "htpasswd") as registry:
        registry.push(write_layout(tmp_path / "layout", "one", [b""]), "one", "team/app:1")
        logged_in(tmp_path / "docker", registry.domain)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
        with Client(root) as client, Events() as events:
            for _ in client.pull(f"{registry.domain}/team/app:1"):
                pass
            found = closed(events)
    exchanges = [event.detail for event in found if event.action == "exchange"]
    answered = [each for each in exchanges if each["status"]]  # https is tried first
    assert [each["status"] for each in answered][:2] == [401, 200]
    assert answered[1]["request"]["Authorization"] == "Basic …"
    text = repr(found)
    assert PASSWORD not in text and TOKEN not in text


def test_a_host_is_shown_what_its_client_logged_in_with(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through MINIRT_HOST the client's docker login counts; without one, the daemon's (here: none)."""
    with docker_registry(tmp_path, "htpasswd") as registry:
        registry.push(write_layout(tmp_path / "layout", "one", [b""]), "one", "team/app:1")
        with Client(root) as client:
            client.version()  # the daemon's DOCKER_CONFIG is none
        host = f"unix://{socket_path(root)}"
        logged_in(tmp_path / "docker", registry.domain)
        for folder, works in ("nothing", False), ("docker", True), ("nothing", False):
            monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / folder))
            with Client(host=host) as client:
                if works:
                    assert list(client.pull(f"{registry.domain}/team/app:1"))[-1]["status"].startswith("Status: ")
                else:
                    with pytest.raises(Exception, match=r"docker login|denied|authori"):
                        list(client.pull(f"{registry.domain}/team/app:1"))


@pytest.mark.slow
def test_docker_logged_in_pulls_through_our_daemon(root: Path, tmp_path: Path) -> None:
    with docker_registry(tmp_path, "htpasswd") as registry:
        registry.push(write_layout(tmp_path / "layout", "one", [b""]), "one", "team/app:1")
        with Client(root) as client:
            client.version()
        logged_in(tmp_path / "docker", registry.domain)
        for folder, status in ("nothing", 1), ("docker", 0):
            words = ["--config", str(tmp_path / folder), "-H", f"unix://{socket_path(root)}", "pull", "-q"]
            name = f"{registry.domain}/team/app:1"
            done = subprocess.run(
                [require("docker"), *words, name], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
            )
            assert done.returncode == status, done.stderr


@pytest.mark.slow
def test_a_dockerd_tells_the_client_s_side_alone(dockerd: Dockerd) -> None:
    with Client(host=f"unix://{dockerd.folder}/docker.sock") as client, Events() as events:
        client.version()
        client.images()
        found = [told(event) for event in closed(events)]
    assert found == ["GET /version", "200 GET /version", "GET /images/json", "200 GET /images/json"]


def logged_in(folder: Path, domain: str) -> None:
    """What `docker login` leaves."""
    folder.mkdir()
    (folder / "config.json").write_text(f'{{"auths": {{"{domain}": {{"auth": "{TOKEN}"}}}}}}')
