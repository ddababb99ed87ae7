"""The Engine API's objects, ours beside those of a real dockerd for the same requests: each difference has a reason.

A difference is a key that only one of the two has, or a value of another JSON type; in the parts that say what was
asked for (`_SAID`) also another value. What both commands, docker's of two ages, print of ours is held in the end.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from dockerd import Dockerd

from minirt.engine import Engine
from minirt.errors import MinirtError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux")

_ID = re.compile(r"[0-9a-f]{64}")
# Of these the values count, too.
_SAID = r"\.(Path|Args|Config\..*|HostConfig\..*|State\..*|Mounts.*|Labels.*|Command|Names.*|Type|Status|State|Driver)$"
# What is where we differ, and why.
REASONS = [
    (r"container\.BundlePath is ours", "where the OCI bundle is: chapter 08 looks into it"),
    (r"container\.State\.(Pid|StartedAt|FinishedAt|Error): ", "of the moment; a failure in our runtime's words"),
    (r"container\.Config\.Hostname: ", "the id"),
    (
        r"(container|summary)\.HostConfig\.NetworkMode: ",
        "we say which network the default is, as docker does from version 23 on",
    ),
    (r"container\.HostConfig\.RestartPolicy\.Name: ", "docker's command says it itself"),
    (r"container\.HostConfig\.Runtime(: | is ours)", "the runtime is ours; docker settles it at the first start"),
    (r"container\.HostConfig\.MaskedPaths: ", "docker 28's list, which is longer"),
    (r"container\.HostConfig\.SecurityOpt: ", "docker's way to have no SELinux label"),
    (r"container\.HostConfig\.CgroupnsMode: ", "on cgroup v1 we give a namespace where docker does not"),
    (r"(container\.GraphDriver\.Name|container\.Driver|info\.Driver): ", "docker's overlay2 is our overlay"),
    (r"(container|summary)\.SizeRw is ours", "docker leaves it out where it is 0"),
    (r"image\.(Descriptor|Manifest|Blobs) is ours", "of the OCI layout: chapter 05 looks into it"),
    (r"image\.Store is ours|df\.AdditionalStores is ours", "docker has no additional stores"),
    (r"image\.GraphDriver\.Data\.(MergedDir|WorkDir) is docker's", "an image of ours is never mounted by itself"),
    (r"image\.GraphDriver\.Data\.LowerDir is ours", "docker leaves it out where there is one layer"),
    (
        r"(images\.\*|image|df\.Images\.\*)\.RepoDigests",
        "docker's was loaded and has no name by digest; ours was pulled",
    ),
    (r"version\.PythonVersion is ours", "what it is written in"),
    (r"network(\.\*)?\.Options\.com\..* is docker's", "settings of the bridge that cannot be chosen here"),
    (
        r"network(\.\*)?\.IPAM\.Config\.\*",
        "our bridge has a subnet while somebody is in it, another one, and a gateway",
    ),
    (r"info\.Runtimes\.", "other runtimes"),
    (r"df\.Unfinished is ours", "downloads that can be resumed"),
    (r"df\.BuildCache: ", "a list in the API's reference, and null with docker where there is nothing"),
]


def differences(theirs: Any, ours: Any, at: str) -> Iterator[str]:
    """Each as a line that begins with its place; items of lists are compared by place, but for ids as keys."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        theirs, ours = ({_ID.sub("ID", key): value for key, value in each.items()} for each in (theirs, ours))
        for key in sorted(theirs.keys() | ours.keys()):
            place = f"{at}.{key}"
            if key not in ours:
                yield f"{place} is docker's"
            elif key not in theirs:
                yield f"{place} is ours"
            else:
                yield from differences(theirs[key], ours[key], place)
    elif isinstance(theirs, list) and isinstance(ours, list) and not re.search(_SAID, at):
        named = all(isinstance(each, dict) and each.get("RepoTags") for each in (*theirs, *ours))
        if named:  # images of one second come in any order
            theirs, ours = (sorted(rows, key=lambda row: str(row["RepoTags"])) for rows in (theirs, ours))
        for one, other in zip(theirs, ours, strict=False):
            yield from differences(one, other, f"{at}.*")
        if bool(theirs) != bool(ours):
            yield f"{at}.* is {'ours' if ours else chr(100) + 'ocker' + chr(39) + 's'}"
    elif type(theirs) is not type(ours) or (re.search(_SAID, at) and theirs != ours):
        yield f"{at}: docker {json.dumps(theirs)[:70]}, ours {json.dumps(ours)[:70]}"


class Docker:
    """Calls of the Engine API over dockerd's socket."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection("d")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self._path)
        content = json.dumps(body).encode() if body is not None else None
        connection.request(method, f"/v1.41{path}", content, {"Content-Type": "application/json"})
        answer = connection.getresponse().read()
        connection.close()
        return json.loads(answer) if answer else None


_BODIES: dict[str, dict[str, Any]] = {
    "plain": {"Image": "greeter:1.0"},
    "full": {
        "Image": "toolbox", "Cmd": ["sleep", "1000"], "Env": ["A=1", "PATH=/bin"], "Labels": {"a": "1"},
        "User": "0:0", "WorkingDir": "/tmp", "StopSignal": "SIGQUIT", "StopTimeout": 3, "OpenStdin": True,
        "ExposedPorts": {"80/tcp": {}, "90/udp": {}},
        "HostConfig": {
            "Memory": 64 << 20, "Binds": ["/usr:/host:ro"], "Tmpfs": {"/t": "size=1m"}, "CapDrop": ["NET_RAW"],
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}}, "PidsLimit": 100, "Dns": ["1.1.1.1"],
            "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}, "CpusetCpus": "0",
            "Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 200}], "ExtraHosts": ["h:1.2.3.4"],
        },
    },
    "ended": {"Image": "toolbox", "Cmd": ["-c", "exit 3"], "Entrypoint": ["sh"], "Tty": True, "Env": [],
        "HostConfig": {"LogConfig": {"Type": "", "Config": {}}, "Dns": []}},
    "privileged": {"Image": "greeter:1.0", "Entrypoint": ["sleep", "9"], "HostConfig": {"Privileged": True}},
    "failed": {"Image": "toolbox", "Cmd": ["/nix"], "HostConfig": {"NetworkMode": "none", "ReadonlyRootfs": True}},
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(tmp_path_factory.mktemp("shapes"), "embedded")
    for name in "toolbox", "greeter:1.0", "hello-world":
        for _ in engine.pull(name):
            pass
    yield engine
    for record in engine.containers.summaries(all=True):
        engine.containers.remove(record["Id"], force=True)
    engine.close()


@pytest.fixture(scope="module")
def docker(dockerd: Dockerd, engine: Engine) -> Docker:
    images = b"".join(engine.images.save(["toolbox", "greeter:1.0", "hello-world"]))
    dockerd.docker("load", stdin=images)
    return Docker(f"{dockerd.folder}/docker.sock")


@pytest.fixture(scope="module")
def found(docker: Docker, engine: Engine) -> list[str]:
    """All differences."""
    out: list[str] = []
    for name, body in _BODIES.items():
        docker("DELETE", f"/containers/{name}?force=1")  # of a run that failed here
        with contextlib.suppress(MinirtError):
            engine.containers.remove(name, force=True)
        made = [docker("POST", f"/containers/create?name={name}", body), engine.containers.create(body, name)]
        assert all(each["Warnings"] == [] for each in made), made
        if name not in ("plain", "privileged"):  # a runc that may not have all rights cannot start the second
            refusal = docker("POST", f"/containers/{name}/start")
            assert (refusal is None) == (name != "failed"), refusal
            try:
                engine.containers.start(name)
            except MinirtError:
                assert name == "failed"
        if name == "ended":
            docker("POST", f"/containers/{name}/wait")
            engine.containers.wait(name)
        both = docker("GET", f"/containers/{name}/json?size=1"), engine.containers.inspect(name, size=True)
        out += differences(*both, "container")
    rows: list[dict[str, Any]]
    theirs: list[dict[str, Any]]
    theirs, rows = docker("GET", "/containers/json?all=1&size=1"), engine.containers.summaries(all=True, size=True)
    assert [row["Names"] for row in theirs] == [row["Names"] for row in rows]
    for one, other in zip(theirs, rows, strict=True):
        for row in one, other:
            row["Status"] = re.sub(r"\d+ seconds?|Less than a second", "some time", row["Status"])
            row["Ports"].sort(key=lambda port: port["PrivatePort"])
        out += differences(one, other, "summary")
    by_tag: Callable[[dict[str, Any]], str] = lambda image: str(image["RepoTags"])  # noqa: E731
    out += differences(sorted(docker("GET", "/images/json"), key=by_tag),
                       sorted(engine.images.summaries(), key=by_tag), "images")  # fmt: skip
    for image in "toolbox", "greeter:1.0", "hello-world":
        out += differences(docker("GET", f"/images/{image}/json"), engine.images.inspect(image), "image")
    networks = [
        sorted(each, key=lambda n: str(n["Name"])) for each in (docker("GET", "/networks"), engine.networks.list())
    ]
    assert [[network["Name"] for network in each] for each in networks] == [["bridge", "host", "none"]] * 2
    out += differences(*networks, "network")
    for name in "bridge", "none":
        out += differences(docker("GET", f"/networks/{name}"), engine.networks.inspect(name), "network")
    out += differences(docker("GET", "/version"), engine.version(), "version")
    out += differences(docker("GET", "/info"), engine.info(), "info")
    df, our_df = docker("GET", "/system/df"), engine.df()
    for usage in df, our_df:
        usage["Images"].sort(key=by_tag)
        usage["Containers"] = []
    out += differences(df, our_df, "df")
    prunes = (
        ("containers", engine.containers.prune), ("images", engine.prune_images), ("volumes", engine.volumes.prune),
    )  # fmt: skip
    for noun, prune in prunes:
        text = quote('{"label":{"nothing.has.it":true}}')
        pruned = [docker("POST", f"/{noun}/prune?filters={text}"), prune({"label": ["nothing.has.it"]})]
        assert [set(each) for each in pruned] == [set(pruned[0])] * 2
        assert not any(value for each in pruned for value in each.values())
    return sorted(set(out))


def test_each_difference_has_a_reason(found: list[str]) -> None:
    unexplained = [line for line in found if not any(re.match(pattern, line) for pattern, _ in REASONS)]
    assert not unexplained, "\n".join(unexplained)


def test_each_reason_has_a_difference(found: list[str]) -> None:
    assert [pattern for pattern, _ in REASONS if not any(re.match(pattern, line) for line in found)] == []


# Words of docker's command, and what it must print (a pattern), with ours behind it.
_PRINTED = [
    ("version", r"Server: minirt\n Engine:\n  Version: .*\n  API version: +1\.44 \(minimum version 1\.24\)"),
    ("info", r"Storage Driver: overlay\n(.*\n)* Runtimes:.* minirt.*\n Default Runtime: minirt\n(.*\n)*.*seccomp"),
    ("ps -a --format {{.Names}}:{{.Status}}:{{.Networks}}", r"^failed:Created:none\n.*\nended:Exited \(3\) "),
    ("ps --format {{.Names}}|{{.Ports}}", r"^full\|90/udp, 127\.0\.0\.1:\d+->80/tcp$"),
    ("ps -a --filter exited=3 --filter ancestor=toolbox --format {{.Names}}", r"^ended$"),
    ("ps -a --filter before=ended --filter network=bridge --format {{.Names}}", r"^full\nplain$"),
    ("ps --filter publish=80 --filter expose=80-90/udp --filter volume=/host --filter label=a=1 -q", r"^[0-9a-f]{12}$"),
    ("ps -a --filter since=full --filter status=created --filter name=^f -q --filter health=none", r"^[0-9a-f]{12}$"),
    ("ps --filter nix=1", r"invalid filter 'nix'"),
    ("ps --filter status=nix", r"invalid filter 'status=nix'"),
    ("ps --filter before=nix", r"No such container: nix"),
    ("inspect full --format {{.State.Status}}|{{.HostConfig.LogConfig.Type}}", r"^running\|json-file$"),
    ("network ls --format {{.Name}}|{{.Driver}}", r"^bridge\|bridge\nhost\|host\nnone\|null$"),
    ("network ls --filter driver=host -q", r"^[0-9a-f]{12}$"),
    ("network inspect bridge --format {{range|.Containers}}{{.Name}}{{end}}", r"^full$"),
    ("network inspect nix", r"(?i)no such network: nix|network nix not found"),
    ("system df -v", r"(?m)^greeter +1\.0 +[0-9a-f]{12}.* 2$"),
    ("images --filter reference=greeter --filter label=io.minirt.made-from --format {{.Tag}}", r"^1\.0$"),
    ("images --filter dangling=true -q", r"^$"),
    ("images --filter dangling=nix", r"invalid filter 'dangling=\[nix\]'"),
    ("image inspect toolbox --format {{.RootFS.Type}}{{len|.Config.Env}}", r"^layers1$"),
    ("logs -t ended", r"^$"),
    ("container prune -f --filter until=24h", r"^Total reclaimed space: 0B$"),
    ("image prune -af --filter label!=io.minirt.made-from", r"(?s)untagged: hello-world:latest.*Total reclaimed"),
]  # fmt: skip


@pytest.mark.parametrize("program", ["/usr/bin/docker", "/usr/local/bin/docker"])
def test_both_commands_print_ours(program: str, found: list[str], engine: Engine, tmp_path: Path) -> None:
    if not Path(program).exists():
        pytest.skip(f"{program} is not here")
    for _ in engine.pull("hello-world"):
        pass
    words = "import sys; from minirt.daemon import main; sys.exit(main(*sys.argv[1:]))"
    command = [sys.executable, "-c", words, str(engine.store.root), f"{tmp_path}/d/sock", "embedded", "", ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
        try:
            assert daemon.stdout and b"listening" in daemon.stdout.readline()
            wrong = []
            for line, pattern in _PRINTED:
                arguments = [
                    word.replace("|", " ") if "{{range" in word or "{{len" in word else word for word in line.split()
                ]
                result = subprocess.run(
                    [program, "-H", f"unix://{tmp_path}/d/sock", *arguments],
                    stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
                )  # fmt: skip
                if not re.search(pattern, (result.stdout + result.stderr).strip()):
                    wrong.append(f"{line}: {result.stdout}{result.stderr}")
            assert not wrong, "\n".join(wrong)
        finally:
            daemon.terminate()
