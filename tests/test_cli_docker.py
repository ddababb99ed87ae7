"""The same data, shown by `docker` and by us: the real docker CLI reads our client's answers through a thin Engine API.

The API below only carries `minirt.client`'s answers over a socket, so that both commands format the same store.
"""

from __future__ import annotations

import http.server
import json
import re
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from peers import require

from minirt.cli.run import create_body, run
from minirt.client import Client
from minirt.errors import MinirtError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux")


class _Api(http.server.BaseHTTPRequestHandler):
    """GET and DELETE as the client answers them; POST records the body and refuses."""

    protocol_version = "HTTP/1.1"
    client: Client
    created: dict[str, Any]

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in ("Content-Type", "application/json"), ("Api-Version", "1.44"), ("Ostype", "linux"):
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    def do_GET(self) -> None:
        url = urlsplit(re.sub(r"^/v[\d.]+", "", self.path))
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        filters = {key: list(values) for key, values in json.loads(query.get("filters", "{}")).items()}
        client, path = self.client, unquote(url.path)
        calls = {
            "/_ping": lambda: "OK",
            "/images/json": lambda: client.images(filters=filters),
            "/containers/json": lambda: client.containers("all" in query, size="size" in query, filters=filters),
            "/system/df": client.df,
            "/info": client.info,
            "/version": client.version,
        }
        for pattern, call in (
            ("/images/(.*)/history", client.history),
            ("/images/(.*)/json", client.inspect_image),
            ("/containers/(.*)/json", client.inspect_container),
        ):
            if path not in calls and (match := re.fullmatch(pattern, path)):
                calls[path] = lambda call=call, name=match[1]: call(name)  # type: ignore[misc]
        try:
            self._answer(200, calls[path]())
        except MinirtError as error:
            self._answer(error.status, {"message": str(error)})

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        name = unquote(urlsplit(self.path).path.partition("/images/")[2])
        self._answer(200, self.client.remove_image(name))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).created = body
        self._answer(500, {"message": "no"})


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the sample images, one more name, and two containers."""
    folder = tmp_path_factory.mktemp("store")
    with Client(folder, hub="embedded") as client:
        for name in "hello-world", "greeter:1.0", "greeter:2.0":
            for _ in client.pull(name):
                pass
        client.tag("hello-world", "localhost:5000/team/hello:v1")
        body = {"Image": "greeter:1.0", "Cmd": ["a", "rather long command", "line"], "Labels": {"b": "2", "a": "1"}}
        for name in "one", "two":
            client.create(body, name=name)
    return folder


@pytest.fixture(scope="module")
def api(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require("docker")
    path = str(tmp_path_factory.mktemp("s") / "s")
    _Api.client = Client(store, hub="embedded")
    with _Server(path, _Api) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"unix://{path}"
        server.shutdown()


# "5 seconds ago" may tick between the two commands, which a busy machine holds up.
_TRIES = 20


def both(api: str, store: Path, *words: str) -> list[subprocess.CompletedProcess[str]]:
    """docker's result and ours."""
    commands = [require("docker"), "--host", api], [sys.executable, "-m", "minirt", "--root", str(store)]
    return [
        subprocess.run([*command, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        for command in commands
    ]


@pytest.mark.parametrize(
    "line",
    [
        "images --digests",
        "images --no-trunc -a",
        "image ls greeter:2*",
        "images localhost:5000/team/hello",
        "images --filter=reference=hello* --format={{.Repository}}:{{.Tag}}|{{.Size}}|{{.CreatedAt}}",
        r"images --filter=reference=hello* --format=table|{{.ID}}\t{{.CreatedSince}}\t{{json|.Size}}",
        "ps -a",
        "ps -as --no-trunc",
        "ps -aq",
        r"container ls -a --format=table|{{.Names}}\t{{.Command}}\t{{.Networks}}\t{{.RunningFor}}",
        "history greeter:1.0",
        "history --no-trunc --human=false greeter:1.0",
        "history -q greeter:1.0",
        "system df",
        "system df --format={{json|.}}",
        "inspect one hello-world",
        "inspect -f={{.Config.Labels}}|{{.State.ExitCode}}|{{json|.Args}}|{{.Config.Tty}} one",
        "image inspect hello-world nothing",
        "container inspect hello-world",
        "inspect nothing",
    ],
)
def test_same_words_on_the_screen(line: str, api: str, store: Path) -> None:
    for _ in range(_TRIES):
        docker, ours = both(api, store, *(word.replace("|", " ") for word in line.split()))
        # docker shows the names of one image in no order, and before version 23 the labels of a container neither.
        order = list if "inspect" in line else sorted
        if order(ours.stdout.splitlines()) == order(docker.stdout.splitlines()):
            break
    assert order(ours.stdout.splitlines()) == order(docker.stdout.splitlines()), docker.stderr + ours.stderr
    assert ours.returncode == docker.returncode


@pytest.mark.parametrize("line", ["images --digests", "ps -a", "history greeter:1.0"])
def test_json_has_docker_s_fields(line: str, api: str, store: Path) -> None:
    for _ in range(_TRIES):
        rows = [
            [json.loads(row) for row in result.stdout.splitlines()]
            for result in both(api, store, *line.split(), "--format={{json .}}")
        ]
        for docker in rows[0]:
            docker.pop("Platform", None)  # always null
        for row in (*rows[0], *rows[1]):  # before version 23: labels in no order, and a field of an API older than ours
            row.pop("VirtualSize", None)
            if line == "ps -a":
                row.pop("Size")  # docker measures it for this format
            row["Labels"] = sorted(row.get("Labels", "").split(","))
        assert len(rows[0]) > 1
        docker, ours = (sorted(map(json.dumps, each)) for each in rows)
        if ours == docker:
            break
    assert ours == docker


def test_info_and_version_are_in_docker_s_words(api: str, store: Path) -> None:
    for verb in "info", "version":
        docker, ours = both(api, store, verb)
        theirs = docker.stdout.partition("Server:")[2].splitlines()
        lines = [line for line in ours.stdout.partition("Server:")[2].splitlines() if ":" in line]
        assert len(lines) > 3
        more = [line for line in lines if [*line.split()] not in [[*other.split()] for other in theirs]]
        # What dockerd has no word for.
        assert {line.split(":")[0].strip() for line in more} <= {"KernelVersion", "PythonVersion", "Default Runtime"}


def test_rmi(api: str, store: Path) -> None:
    """The name goes with docker's; then both say the same of a name that is not there."""
    Client(store).tag("hello-world", "again:1")
    docker, ours = both(api, store, "rmi", "again:1")
    assert docker.stdout == "Untagged: again:1\n"
    assert (ours.returncode, docker.returncode) == (1, 0)
    Client(store).tag("hello-world", "again:1")
    command = [sys.executable, "-m", "minirt", "--root", str(store), "image", "rm", "again:1"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == docker.stdout


def test_create_asks_what_docker_asks(api: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The create body of `docker run` with the same options, in every field we send."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "env").write_text("A=1\n# no\nB=2\n")
    line = f"""-i --rm --name n -e C=3 --env-file {tmp_path}/env -w /tmp -u 1:2 -h host --read-only --network host
        -l a=b -l c --entrypoint /bin/x --security-opt no-new-privileges=false image word -d --rm"""
    (tmp_path / "labels").write_text("from=file\n# no\nbare\n")
    (tmp_path / "profile").write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    more = f"""-a stdout -a STDERR --cap-add ALL --cap-drop CAP_KILL --cgroup-parent /p --cgroupns host --cpu-period 5
        --cpu-quota 6 --cpu-shares 7 --cpus 1.5 --cpuset-cpus 0 --cpuset-mems 1 --device /dev/a --device /dev/b/../c:r
        --device /dev/d:/dev/e/ --device-cgroup-rule a_*:*_rwm --dns 1.1.1.1 --dns-opt a --dns-option b --dns-search x.y
        --domainname d --expose 80-82 --expose 9/udp --group-add g --init --ipc host -l z=1
        --label-file {tmp_path}/labels -m 64m --memory-reservation 32M --memory-swap -1
        --memory-swappiness 9 --mount type=tmpfs,dst=/t,tmpfs-mode=700
        --mount type=bind,src=./x,target=/y,ro,bind-propagation=rslave --no-healthcheck --oom-kill-disable
        --oom-score-adj 3 --pid host --pids-limit 4 --privileged -p 8080:80 -p 127.0.0.1::81/udp -p 90-91:92-93 -P
        --runtime r --security-opt seccomp={tmp_path}/profile --security-opt systempaths=unconfined
        --security-opt apparmor:x --shm-size 1g --stop-signal USR1 --stop-timeout 5 --sysctl net.a=b --tmpfs /a:ro
        --tmpfs /b -t --ulimit nofile=1:2 --ulimit cpu=-1 --userns host --uts host -v /a:/b:ro -v ./r:/s image"""
    every = [word.replace("_", " ") if word.startswith("a_") else word for word in more.split()]
    for words in line.split(), ["image"], ["--entrypoint=", "-d", "image", "x"], every:
        subprocess.run([require("docker"), "--host", api, "run", *words], capture_output=True, check=False)
        ours = create_body(*run.parse("minirt run", words))
        host, theirs = ours.pop("HostConfig"), _Api.created
        for body in host, theirs["HostConfig"]:  # docker 20.10 sends what is given, newer ones make it absolute
            body["Binds"] = sorted(str(tmp_path / word) if word[0] == "." else word for word in body.get("Binds") or [])
            for mount in body.get("Mounts") or ():
                if mount.get("Source"):
                    mount["Source"] = str(tmp_path / mount["Source"])
        theirs_host = theirs["HostConfig"]
        assert {key: theirs[key] or value for key, value in ours.items()} == {k: v for k, v in ours.items()}
        assert {key: theirs[key] for key in ours if ours[key]} == {key: value for key, value in ours.items() if value}
        assert {key: theirs_host[key] for key in host} == host
