"""What a daemon of ours really sends, held against the shapes in `minirt.engine.answers`.

mypy holds the code to the shapes, but not what the code read from a file (a mount, a port, a volume): this does, and
it finds a shape that nothing sends.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from registries import Scripted

from minirt.engine.answers import Answer, containers, images, system
from minirt.runtime import doctor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux")


def wrong(value: Any, shape: Any, at: str) -> Iterator[str]:
    """What of `value` is not as its shape says, a line each."""
    if get_origin(shape) in (Union, UnionType):
        found = [list(wrong(value, each, at)) for each in get_args(shape)]
        yield from min(found, key=len)
    elif is_typeddict(shape):
        if not isinstance(value, dict):
            yield f"{at} is no object: {value!r}"
            return
        hints = get_type_hints(shape, include_extras=True)
        # Read from a text, as here, `NotRequired` is not told in `__required_keys__`.
        needed = {key for key in shape.__required_keys__ if get_origin(hints[key]) is not NotRequired}
        yield from (f"{at}.{key} is not there" for key in needed - value.keys())
        yield from (f"{at}.{key} is not of its shape" for key in value.keys() - hints.keys())
        for key in value.keys() & hints.keys():
            hint = hints[key]
            yield from wrong(value[key], get_args(hint)[0] if get_origin(hint) is NotRequired else hint, f"{at}.{key}")
    elif get_origin(shape) is list and isinstance(value, list):
        for each in value:
            yield from wrong(each, get_args(shape)[0], f"{at}.*")
    elif get_origin(shape) is dict and isinstance(value, dict):
        for each in value.values():
            yield from wrong(each, get_args(shape)[1], f"{at}.*")
    elif shape is not Any and type(value) is not (get_origin(shape) or shape) and not (shape is None and value is None):
        yield f"{at} is {value!r}, not {shape}"


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Any]:
    """Requests to a daemon: the status, and the objects of the answer, one a line."""
    path = f"{tmp_path}/d/sock"
    words = "import sys; from minirt.daemon import main; sys.exit(main(*sys.argv[1:]))"
    command = [sys.executable, "-c", words, str(tmp_path / "root"), path, "embedded", "", ""]

    def send(target: str, body: Any = None, first: bool = False) -> Any:
        method, _, place = target.partition(" ")
        connection = http.client.HTTPConnection("d", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(path)
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request(method, f"/v1.44{place}", content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.readline() if first else answer.read()
        stat = answer.headers.get("X-Docker-Container-Path-Stat")
        connection.close()
        if stat:
            return json.loads(base64.b64decode(stat))
        found = [json.loads(line) for line in text.splitlines() if line.startswith((b"{", b"[", b"null"))]
        return found[0] if len(found) == 1 else found

    with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
        try:
            assert daemon.stdout and b"listening" in daemon.stdout.readline()
            yield send
        finally:
            for row in send("GET /containers/json?all=1"):
                send(f"DELETE /containers/{row['Id']}?force=1&v=1")
            daemon.terminate()


def test_the_daemon_sends_these_shapes_and_no_others(ask: Any) -> None:
    problems: list[str] = []
    seen: set[Any] = set()

    def held(target: str, shape: Any, body: Any = None, first: bool = False) -> Any:
        found = ask(target, body, first)
        problems.extend(wrong(found, shape, target))
        seen.add((get_args(shape) or (shape,))[0])
        return found

    for name in "toolbox", "hello-world":
        lines = held(f"POST /images/create?fromImage={name}", list[images.CreateImageInfo])
        assert "Pull complete" in {line.get("status") for line in lines}
    body = {
        "Image": "toolbox", "Cmd": ["sleep", "1000"], "Labels": {"a": "1"}, "ExposedPorts": {"90/udp": {}},
        "HostConfig": {
            "Binds": ["/usr:/host:ro", "named:/named"], "Mounts": [{"Type": "tmpfs", "Target": "/t"}],
            **({"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}} if os.geteuid() == 0 else {}),
        },
    }  # fmt: skip
    held("POST /volumes/create", system.Volume, {"Name": "named", "Labels": {"a": "1"}})
    held("POST /containers/create?name=runs", containers.ContainerCreateResponse, body)
    assert ask("POST /containers/runs/start") == []
    ask("POST /containers/create?name=over", {"Image": "toolbox", "Cmd": ["sh", "-c", "echo 1 > /new; exit 3"]})
    ask("POST /containers/over/start")
    assert held("POST /containers/over/wait", containers.ContainerWaitResponse) == {"StatusCode": 3}
    rows = held("GET /containers/json?all=1&size=1", list[containers.ContainerSummary])
    assert [row["Names"] for row in rows] == [["/over"], ["/runs"]]
    for name in "runs", "over":
        found = held(f"GET /containers/{name}/json?size=1", containers.ContainerInspectResponse)
        assert found["State"]["Running"] == (name == "runs")
        stats = ask(f"GET /containers/{name}/stats?stream=0")
        if "it has no cgroup" not in stats.get("message", ""):
            problems += wrong(stats, containers.ContainerStats, "stats")
        seen.add(containers.ContainerStats)
    asked = held("POST /containers/runs/exec", system.IDResponse, {"Cmd": ["true"], "Tty": True})
    held(f"GET /exec/{asked['Id']}/json", containers.ExecInspectResponse)
    ask(f"POST /exec/{asked['Id']}/start", {"Detach": True})
    held(f"GET /exec/{asked['Id']}/json", containers.ExecInspectResponse)
    held("GET /containers/runs/top", containers.ContainerTopResponse)
    held("POST /containers/over/update", containers.ContainerUpdateResponse, {})
    changes = held("GET /containers/over/changes", list[containers.FilesystemChange])
    assert {"Path": "/new", "Kind": 1} in changes
    for path in "/new", "/bin":
        held(f"HEAD /containers/over/archive?path={path}", containers.ContainerPathStat)
    held("POST /commit?container=over&repo=made", system.IDResponse, {})
    rows = held("GET /images/json", list[images.ImageSummary])
    assert len(rows) == 3
    for name in "toolbox", "hello-world", "made":
        held(f"GET /images/{name}/json", images.ImageInspect)
        held(f"GET /images/{name}/history", list[images.HistoryResponseItem])
    for name in "volumes", "networks":
        held(f"GET /{name}", system.VolumeListResponse if name == "volumes" else list[system.Network])
    network = ask("GET /containers/runs/json")["HostConfig"]["NetworkMode"]
    held("GET /volumes/named", system.Volume)
    shown = held(f"GET /networks/{network}", system.Network)
    assert len(shown["Containers"]) == 1
    with Scripted("none") as hub:
        ask(f"POST /images/made/tag?repo={hub.domain}/team/made&tag=1")
        lines = held(f"POST /images/{hub.domain}/team/made/push?tag=1", list[images.PushImageInfo])
        assert "Pushed" in {line.get("status") for line in lines} and lines[-1]["aux"]["Tag"] == "1"
        failed = held(f"POST /images/{hub.domain}/team/none/push?tag=1", list[images.PushImageInfo])
        assert "does not exist locally" in failed[-1]["error"]
        held(f"GET /distribution/{hub.domain}/team/made:1/json", images.DistributionInspect)
        held(
            "POST /auth", system.AuthenticateOKResponse, {"username": "a", "password": "b", "serveraddress": hub.domain}
        )
        ask(f"DELETE /images/{hub.domain}/team/made:1")
    assert len(held("GET /minirt/manifests/hello-world?verbose=1", list[images.RemoteManifest])) == 3
    held("GET /version", system.SystemVersion)
    held("GET /info", system.SystemInfo)
    usage = held("GET /system/df", system.SystemDataUsageResponse)
    assert usage["Images"] and usage["Containers"] and usage["Volumes"]
    events = held(f"GET /events?since=1&until={time.time()}", list[system.EventMessage])
    assert {event["Type"] for event in events} >= {"container", "image", "volume", "network"}
    held("GET /minirt/doctor", list[doctor.Row])
    held("GET /minirt/check", list[system.Problem])
    held("GET /minirt/trace?tag=t", system.TraceEvent, first=True)
    held("GET /containers/nix/json", system.ErrorResponse)
    assert held("DELETE /images/made", list[images.ImageDeleteResponseItem])
    shared = held("POST /minirt/share", system.ShareResponse if os.geteuid() == 0 else system.ErrorResponse)
    seen.add(system.ShareResponse)
    assert ("Images" in shared) == (os.geteuid() == 0)
    held("POST /minirt/prune", system.PruneResponse)
    held("POST /containers/prune", containers.ContainerPruneResponse)
    held("POST /images/prune", images.ImagePruneResponse)
    held("POST /build/prune", images.BuildPruneResponse)
    held("POST /networks/prune", system.NetworkPruneResponse)
    held("POST /volumes/prune", system.VolumePruneResponse)
    assert not problems, "\n".join(problems)
    assert set(get_args(Answer)) == seen
