"""docker-py drives a real dockerd and our daemon: the same assertions on both."""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from busyboxes import image as busybox_tar
from dockerd import Dockerd

docker = pytest.importorskip("docker")
from docker.errors import APIError, ContainerError, ImageLoadError, ImageNotFound, NotFound  # noqa: E402
from docker.models.containers import Container  # noqa: E402
from docker.types import Mount, Ulimit  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="dockerd needs Linux")]

IMAGE = "box:1"
LOOP = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"
COUNT = "for n in 1 2 3 4 5; do echo out $n; echo err $n >&2; done"
OUT, ERR = (b"".join(b"%s %d\n" % (name, n) for n in range(1, 6)) for name in (b"out", b"err"))


@contextlib.contextmanager
def our_daemon(dockerd: Dockerd) -> Iterator[str]:
    """`minirt daemon` in the same network namespace, so that both meet the same registry. Yields its socket."""
    folder = dockerd.folder / "minirt"
    folder.mkdir()
    path = folder / "run" / "minirt.sock"
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "MINIRT_ROOT": str(folder / "root"),
                   "MINIRT_HUB": "embedded", "MINIRT_HOST": f"unix://{path}"}  # fmt: skip
    command = dockerd.inside(sys.executable, "-m", "minirt", "daemon")
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
        )
    try:
        assert process.stdout and process.stdout.readline().endswith(b"minirt.sock\n")
        yield str(path)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()  # type: ignore[union-attr]
    assert (folder / "log").read_text() == "" and not path.exists()


@pytest.fixture(scope="module")
def registry(dockerd: Dockerd) -> Iterator[str]:
    """A registry that both reach, with our image as `/box:1` and `/box:2`."""
    with dockerd.registry() as domain:
        dockerd.docker("import", "--change", 'CMD ["sh", "-c", "echo default"]', "-", IMAGE, stdin=busybox_tar())
        for tag in "12":
            dockerd.docker("tag", IMAGE, f"{domain}/box:{tag}")
            dockerd.docker("push", f"{domain}/box:{tag}")
            dockerd.docker("rmi", f"{domain}/box:{tag}")
        yield domain


@pytest.fixture(scope="module", params=["dockerd", "minirt"])
def client(request: pytest.FixtureRequest, dockerd: Dockerd, registry: str) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        ours = request.param == "minirt"
        path = stack.enter_context(our_daemon(dockerd)) if ours else f"{dockerd.folder}/docker.sock"
        client = docker.DockerClient(base_url=f"unix://{path}", version="auto", timeout=60)
        stack.callback(client.close)
        client.images.pull(f"{registry}/box", tag="1").tag("box", "1")
        client.images.remove(f"{registry}/box:1")
        yield client


@pytest.fixture(autouse=True)
def _clean(client: Any) -> Iterator[None]:
    yield
    for container in client.containers.list(all=True):
        with contextlib.suppress(APIError):
            container.remove(force=True, v=True)
    for volume in client.volumes.list():
        volume.remove()


def run(client: Any, script: str, **more: Any) -> Any:
    """The output, or with `detach` the container."""
    return client.containers.run(IMAGE, ["sh", "-c", script], **({"network_mode": "none"} | more))


def begin(client: Any, script: str = LOOP, **more: Any) -> Container:
    """A running container, which has said `ready`."""
    container = run(client, script, detach=True, **more)
    wait_for(lambda: b"ready" in container.logs())
    return container


def wait_for(ready: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def packed(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), 1_600_000_000
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def unpacked(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isreg()}  # type: ignore[union-attr]


def frames(stream: socket.socket) -> dict[int, bytes]:
    """All of a framed stream until its end, by the number of the stream."""
    found = {1: b"", 2: b""}
    data = b"".join(iter(lambda: stream.recv(65536), b""))
    while data:
        number, length = struct.unpack(">BxxxL", data[:8])
        found[number] += data[8 : 8 + length]
        data = data[8 + length :]
    return found


def bare(stream: Any) -> socket.socket:
    """The socket under what docker-py gives."""
    found = getattr(stream, "_sock", stream)
    found.settimeout(20)
    return found  # type: ignore[no-any-return]


def refused(ask: Callable[[], Any], kind: type[APIError], status: int, text: str) -> None:
    with pytest.raises(kind) as error:
        ask()
    assert error.value.status_code == status and text in str(error.value.explanation)


# system


def test_the_system(client: Any) -> None:
    assert client.ping() is True
    version, info, df = client.version(), client.info(), client.df()
    assert version["Os"] == "linux" and version["MinAPIVersion"] in ("1.12", "1.24")
    assert {"Version", "Arch", "ApiVersion", "KernelVersion", "GitCommit", "GoVersion", "BuildTime"} <= set(version)
    assert info["OSType"] == "linux" and info["NCPU"] == os.cpu_count() and info["Images"] >= 1
    assert info["Containers"] == info["ContainersRunning"] + info["ContainersPaused"] + info["ContainersStopped"]
    assert {"LayersSize", "Images", "Containers", "Volumes", "BuildCache"} <= set(df)
    assert [n.name for n in sorted(client.networks.list(), key=lambda n: n.name)] == ["bridge", "host", "none"]
    network = client.networks.get("bridge")
    assert network.attrs["Driver"] == "bridge" and network.id == client.networks.list(names=["bridge"])[0].id
    assert client.networks.list(filters={"driver": "host"})[0].name == "host"
    refused(lambda: client.networks.get("nosuch"), NotFound, 404, "nosuch not found")


# images


def test_images(client: Any, registry: str) -> None:
    name = f"{registry}/box"
    first = client.images.pull(name, tag="1")
    assert set(first.tags) == {IMAGE, f"{name}:1"}
    assert first.id == client.images.get(IMAGE).id and re.fullmatch("sha256:[0-9a-f]{64}", first.id)
    assert first.attrs["RepoDigests"][0].startswith(f"{name}@sha256:")
    every = client.images.pull(name, all_tags=True)
    assert {tag for image in every for tag in image.tags} >= {f"{name}:1", f"{name}:2"}
    by_digest = client.images.pull(first.attrs["RepoDigests"][0])
    assert by_digest.id == first.id
    lines = list(client.api.pull(name, tag="2", stream=True, decode=True))
    assert lines[0] == {"status": "Pulling from box", "id": "2"}
    assert lines[-1] == {"status": f"Status: Image is up to date for {name}:2"}
    assert first.tag("team/other", tag="v1") is True
    assert client.images.get("team/other:v1").id == first.id
    assert [i.id for i in client.images.list("team/other")] == [first.id]
    assert client.images.list("nosuch") == [] and client.images.list(filters={"dangling": True}) == []
    assert client.images.list(filters={"reference": "team/*"})[0].id == first.id
    history = first.history()
    assert len(history) == 1 and history[0]["Id"] == first.id and history[0]["Size"] > 100_000
    client.images.remove("team/other:v1")
    for tag in "12":
        client.images.remove(f"{name}:{tag}")
    refused(lambda: client.images.get("team/other:v1"), ImageNotFound, 404, "No such image: team/other:v1")
    refused(lambda: client.images.remove("nosuch"), ImageNotFound, 404, "No such image: nosuch:latest")
    with pytest.raises(APIError) as error:
        client.images.pull(name, tag="nosuch")
    assert error.value.status_code == 404 and "manifest unknown" in error.value.explanation
    with pytest.raises(APIError):
        client.images.pull("UPPER")


def test_push(client: Any, registry: str) -> None:
    """A tag, then every tag; what the registry says of it; and in again by its digest."""
    name, image = f"{registry}/pushed", client.images.get(IMAGE)
    for tag in "12":
        assert image.tag(name, tag=tag)
    lines = list(client.images.push(name, tag="1", stream=True, decode=True))
    assert lines[0] == {"status": f"The push refers to repository [{name}]"}
    assert lines[1] == {"status": "Preparing", "progressDetail": {}, "id": lines[1]["id"]}
    done = lines[-1]["aux"]
    assert done["Tag"] == "1" and set(done) == {"Tag", "Digest", "Size"}
    assert lines[-2] == {"status": f"1: digest: {done['Digest']} size: {done['Size']}"}
    assert {line["status"] for line in lines if line.get("id") == lines[1]["id"]} <= {
        "Preparing", "Pushing", "Pushed", "Layer already exists", "Mounted from box"
    }  # fmt: skip
    every = [line["aux"]["Tag"] for line in client.images.push(name, stream=True, decode=True) if "aux" in line]
    assert every == ["1", "2"]
    assert f"{name}@{done['Digest']}" in client.images.get(f"{name}:1").attrs["RepoDigests"]
    found = client.images.get_registry_data(f"{name}:2")
    assert found.id == done["Digest"] and found.has_platform("linux/amd64") and not found.has_platform("linux/arm64")
    assert found.attrs["Descriptor"]["size"] == done["Size"] and found.pull().id == image.id
    for tag in "12":
        client.images.remove(f"{name}:{tag}")
    assert "does not exist locally" in client.images.push(f"{registry}/none", tag="1")
    refused(lambda: client.images.get_registry_data(f"{registry}/none:1"), NotFound, 404, "unknown")


def test_login(client: Any, registry: str) -> None:
    """The registry lets anybody in."""
    said = client.login("somebody", "secret", registry=registry, dockercfg_path="/nowhere")
    assert said == {"IdentityToken": "", "Status": "Login Succeeded"}
    with pytest.raises(APIError) as error:
        client.login("somebody", "secret", registry="127.0.0.1:1", dockercfg_path="/nowhere")
    assert "refused" in error.value.explanation.lower()


def test_save_and_load(client: Any) -> None:
    image = client.images.get(IMAGE)
    image.tag("kept", tag="1")
    archive = b"".join(client.images.get("kept:1").save(named="kept:1"))
    assert "manifest.json" in unpacked(archive)
    client.images.remove("kept:1")
    assert [i.id for i in client.images.load(archive)] == [image.id]
    assert "kept:1" in client.images.get(image.id).tags
    client.images.remove("kept:1")
    assert unpacked(b"".join(image.save()))["manifest.json"].count(b'"RepoTags":null')
    with pytest.raises((ImageLoadError, APIError)):
        client.images.load(b"no tar at all")


def test_prune_images(client: Any) -> None:
    made = client.api.import_image_from_data(packed(file=b"x"), repository="lone", tag="1")
    assert "sha256:" in made
    assert not client.images.prune()["ImagesDeleted"]
    image = client.images.get("lone:1")
    client.images.get(IMAGE).tag("lone", tag="1")
    assert [i.id for i in client.images.list(filters={"dangling": True})] == [image.id]
    assert {"Deleted": image.id} in client.images.prune({"dangling": True})["ImagesDeleted"]
    client.images.remove("lone:1")


# run


def test_run(client: Any) -> None:
    assert client.containers.run(IMAGE, network_mode="none") == b"default\n"
    assert run(client, "echo out; echo err >&2") == b"out\n"
    assert run(client, "echo out; echo err >&2", stderr=True, stdout=False) == b"err\n"
    assert sorted(run(client, "echo out; echo err >&2", stderr=True).splitlines()) == [b"err", b"out"]
    assert run(client, "echo out", remove=True) == b"out\n"
    assert b"".join(run(client, "echo a; echo b", stream=True)) == b"a\nb\n"
    assert run(client, "test -t 1 && echo terminal", tty=True) == b"terminal\r\n"
    with pytest.raises(ContainerError) as error:
        run(client, "echo out; echo bad >&2; exit 7", remove=True)
    assert (error.value.exit_status, error.value.stderr) == (7, b"bad\n")
    with pytest.raises(ContainerError) as error:
        run(client, "exit 8")
    assert error.value.exit_status == 8
    refused(lambda: client.containers.run(IMAGE, ["/nosuch"], network_mode="none"), APIError, 400, "no such file")
    refused(lambda: client.containers.create("nosuch:1"), ImageNotFound, 404, "No such image: nosuch:1")
    refused(lambda: client.containers.create(IMAGE, mem_limit="1m"), APIError, 400, "Minimum memory limit")


def test_settings_of_run(client: Any, tmp_path: Path) -> None:
    said = run(
        client,
        "id -u; id -g; pwd; echo $A $B; hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ulimit -n",
        user="web", working_dir="/tmp", environment={"A": "1", "B": "two words"}, hostname="name",
        ulimits=[Ulimit(name="nofile", soft=100, hard=200)], sysctls={"net.ipv4.ip_unprivileged_port_start": "7"},
    )  # fmt: skip
    assert said == b"1000\n1000\n/tmp\n1 two words\nname\n7\n100\n"
    (tmp_path / "file").write_text("of the host")
    volumes = {str(tmp_path): {"bind": "/host", "mode": "rw"}, "named": {"bind": "/named", "mode": "ro"}}
    assert run(client, "cat /host/file; echo new >/host/new; touch /named/x || echo ro", volumes=volumes) == (
        b"of the hostro\n"
    )
    assert (tmp_path / "new").read_text() == "new\n"
    mounts = [Mount("/mem", None, type="tmpfs", tmpfs_size=1 << 20), Mount("/n", "named", read_only=False)]
    assert b"/mem tmpfs" in run(client, "grep -o '/mem tmpfs' /proc/mounts; echo x >/n/x", mounts=mounts)
    assert run(client, "cat /named/x", volumes=["named:/named:ro"]) == b"x\n"
    assert run(client, "touch /x || echo no; ls /dev/shm", read_only=True) == b"no\n"
    assert run(client, "grep CapEff /proc/self/status", cap_drop=["ALL"]).split() == [b"CapEff:", b"0" * 16]
    assert run(client, "cat /proc/1/comm; hostname", entrypoint=["sh", "-c", "echo other"]) == b"other\n"
    container = begin(
        client, mem_limit="64m", nano_cpus=500_000_000, pids_limit=50, labels={"a": "b"}, init=False, name="set",
        restart_policy={"Name": "no"}, stop_signal="SIGTERM", extra_hosts={"host": "10.0.0.1"}, dns=["10.0.0.2"],
    )  # fmt: skip
    host = container.attrs["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (64 << 20, 500_000_000, 50)
    assert host["LogConfig"]["Type"] == "json-file" and host["NetworkMode"] == "none"
    assert container.labels == {"a": "b"} and container.name == "set" and container.image.tags == [IMAGE]
    container.reload()
    assert container.status == "running" and container.attrs["Config"]["Hostname"] == container.id[:12]
    assert container.short_id == container.id[:12] and container.attrs["State"]["Pid"] > 0


def test_networks_of_run(client: Any) -> None:
    assert run(client, "ls /sys/class/net", network_mode="none") == b"lo\n"
    first = begin(client)
    name = first.id[:12].encode() + b"\n"
    other = begin(client, "hostname; echo $HOSTNAME; echo ready", network_mode=f"container:{first.id}")
    assert other.logs() == name * 2 + b"ready\n"
    other = begin(client, network_mode=f"container:{first.id}")
    assert other.exec_run(["sh", "-c", "hostname; echo $HOSTNAME"]) == (0, name * 2)
    with pytest.raises(APIError, match="nosuch"):  # docker tells at the start, we at once
        run(client, "true", network_mode="nosuch")


def test_a_bridge(client: Any) -> None:
    box = begin(
        client,
        "echo ready; while :; do nc -l -p 80 -e echo hello; done",
        network_mode="bridge",
        ports={"80/tcp": ("127.0.0.1", None)},
    )
    box.reload()
    network = box.attrs["NetworkSettings"]["Networks"]["bridge"]
    assert run(client, f"until nc {network['IPAddress']} 80; do sleep 0.1; done", network_mode="bridge") == b"hello\n"
    assert network["Gateway"] in box.exec_run("ip route").output.decode()
    (port,) = box.ports["80/tcp"]
    assert port["HostIp"] == "127.0.0.1" and int(port["HostPort"]) > 1000
    bridge = client.networks.get("bridge")
    said = run(client, "cat /etc/resolv.conf; hostname", hostname="me", dns=["10.9.8.7"], network_mode=None)
    assert said == b"nameserver 10.9.8.7\nme\n"
    assert bridge.attrs["IPAM"]["Config"][0]["Subnet"] and box.id in {c.id for c in bridge.containers}


# create, list, get, prune


def test_create_and_list(client: Any) -> None:
    made = client.containers.create(IMAGE, "sh -c 'exit 5'", name="made", labels=["x"], network_mode="none")
    assert made.status == "created" and client.containers.list() == []
    running = begin(client, name="running", labels={"x": "1", "y": ""})
    assert [c.id for c in client.containers.list()] == [running.id]
    assert [c.name for c in client.containers.list(all=True)] == ["running", "made"]
    assert [c.name for c in client.containers.list(limit=1)] == ["running"]
    listed = lambda **filters: {c.name for c in client.containers.list(all=True, filters=filters)}  # noqa: E731
    assert listed(label="x") == {"made", "running"} and listed(label=["x=1"]) == {"running"}
    assert listed(status="created") == {"made"} and listed(name="ma") == {"made"} and listed(ancestor=IMAGE)
    assert listed(id=made.short_id) == {"made"} and listed(label=["x", "y"]) == {"running"}
    assert listed(before="running") == {"made"} and listed(since="made") == {"running"}
    assert [c.id for c in client.containers.list(sparse=True)] == [running.id]
    assert client.containers.get("made") == made and client.containers.get(made.id[:10]).id == made.id
    made.start()
    assert made.wait()["StatusCode"] == 5
    assert listed(exited=5) == {"made"} and listed(exited=4) == set()
    pruned = client.containers.prune()
    assert pruned["ContainersDeleted"] == [made.id] and pruned["SpaceReclaimed"] >= 0
    refused(lambda: client.containers.get("made"), NotFound, 404, "No such container: made")
    refused(running.remove, APIError, 409, "container before")
    refused(lambda: client.containers.create(IMAGE, name="running"), APIError, 409, "is already in use by container")
    refused(lambda: client.containers.create(IMAGE, name="a b"), APIError, 400, "Invalid container name")
    running.remove(force=True)
    refused(running.start, NotFound, 404, f"No such container: {running.id}")


# streams


def test_logs(client: Any) -> None:
    container = run(client, COUNT, detach=True)
    container.wait()
    lines = [b"%s %d" % (name, n) for name in (b"err", b"out") for n in range(1, 6)]
    assert sorted(container.logs().splitlines()) == lines
    assert container.logs(stdout=False) == ERR and container.logs(stderr=False) == OUT
    assert len(container.logs(tail=3).splitlines()) == 3 and container.logs(tail=0) == b""
    stamped = container.logs(timestamps=True, tail=1).decode()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (out|err) \d\n", stamped)
    assert container.logs(since=int(time.time()) + 100) == b"" == container.logs(until=int(time.time()) - 100)
    assert len(container.logs(since=int(time.time()) - 100, until=int(time.time()) + 100).splitlines()) == 10
    assert b"".join(container.logs(stream=True, stderr=False)) == OUT
    assert len(list(container.logs(stream=True, follow=False, tail=1))) == 1


def test_logs_followed(client: Any) -> None:
    container = run(client, "for n in 1 2 3; do echo $n; sleep 0.3; done", detach=True)
    assert list(container.logs(stream=True, follow=True)) == [b"1\n", b"2\n", b"3\n"]
    endless = begin(client, "while :; do echo ready; sleep 0.05; done")
    stream = endless.logs(stream=True, follow=True, tail=1)
    assert [next(stream) for _ in range(5)] == [b"ready\n"] * 5
    stream.close()
    tty = run(client, "echo a; echo b", detach=True, tty=True)
    tty.wait()
    assert tty.logs() == b"a\r\nb\r\n"


def test_attach(client: Any) -> None:
    container = client.containers.create(IMAGE, ["sh", "-c", COUNT], network_mode="none")
    stream = container.attach(stream=True, logs=True, demux=True)
    container.start()
    pairs = list(stream)
    assert b"".join(out for out, _ in pairs if out) == OUT
    assert b"".join(err for _, err in pairs if err) == ERR
    if ours(client):  # dockerd's come with the head of the answer, and docker-py loses them
        assert container.attach(stdout=True, stderr=False, logs=True) == OUT


def test_attach_socket(client: Any) -> None:
    container = client.containers.create(
        IMAGE, ["sh", "-c", "cat; echo end >&2; exit 4"], stdin_open=True, network_mode="none"
    )
    stream = container.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    container.start()
    connection = bare(stream)
    connection.sendall(b"typed\n")
    assert connection.recv(100) == b"\1\0\0\0\0\0\0\6typed\n"
    connection.sendall(b"more\n" * 5000)
    if container.attrs["Config"]["StdinOnce"] is False:  # its stdin stays open when we go
        connection.shutdown(socket.SHUT_WR)
        got = b""
        while len(got) < 5000:
            got += connection.recv(65536)
        container.kill()
    stream.close()
    body = {"Image": IMAGE, "Cmd": ["sh", "-c", "cat; echo end >&2; exit 4"], "OpenStdin": True, "StdinOnce": True,
            "AttachStdin": True, "HostConfig": {"NetworkMode": "none"}}  # fmt: skip
    container = client.containers.get(client.api.create_container_from_config(body)["Id"])
    stream = container.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    container.start()
    connection = bare(stream)
    connection.sendall(b"x" * 100_000)
    connection.shutdown(socket.SHUT_WR)
    assert frames(connection) == {1: b"x" * 100_000, 2: b"end\n"}
    assert container.wait()["StatusCode"] == 4
    stream.close()


def test_a_terminal(client: Any) -> None:
    container = client.containers.create(
        IMAGE, ["sh", "-c", "read x; stty size; echo got $x"], stdin_open=True, tty=True, network_mode="none"
    )
    stream = container.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    container.start()
    container.resize(33, 44)
    connection = bare(stream)
    connection.sendall(b"keys\n")
    assert b"".join(iter(lambda: connection.recv(1000), b"")) == b"keys\r\n33 44\r\ngot keys\r\n"
    assert container.wait()["StatusCode"] == 0
    stream.close()


def test_detach_keys_are_looked_for_by_the_daemon(client: Any) -> None:
    """Of who is attached, and of an exec; a first key alone goes in. What was left goes on."""

    def typed(connection: socket.socket, begin: bytes, shown: bytes, keys: bytes) -> None:
        seen = b""
        connection.sendall(begin)
        while not seen.endswith(shown):
            seen += connection.recv(1000)
        connection.sendall(keys + b"!")
        ended = b"".join(iter(lambda: connection.recv(1000), b""))  # by the daemon
        assert ended == b"" or ended.endswith(b"read escape sequence\r\n")  # dockerd's, of an exec

    script = ["sh", "-c", "stty -echo raw; echo ready; exec cat"]
    box = client.containers.create(IMAGE, script, stdin_open=True, tty=True, network_mode="none")
    every = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
    refused(lambda: box.attach_socket(params=every | {"detachKeys": "ctrl-1"}), APIError, 400, "ctrl-1")
    box.start()
    wait_for(lambda: b"ready" in box.logs())
    for more, begin, shown, keys in (
        ({}, b"a\x10b", b"a\x10b", b"\x10\x11"),
        ({"detachKeys": "ctrl-a,x"}, b"d\x10\x11", b"d\x10\x11", b"\x01x"),
    ):
        stream = box.attach_socket(params=every | more)
        typed(bare(stream), begin, shown, keys)
        stream.close()
        box.reload()
        assert box.status == "running"
    assert b"!" not in box.logs()
    identity = client.api.exec_create(box.id, script, stdin=True, tty=True, detach_keys="ctrl-b,q")["Id"]
    stream = client.api.exec_start(identity, tty=True, socket=True)
    connection, seen = bare(stream), b""
    while b"ready" not in seen:
        seen += connection.recv(1000)
    typed(connection, b"a\x02b", b"a\x02b", b"\x02q")
    if ours(client):  # dockerd 20.10 says that such an exec is over
        assert client.api.exec_inspect(identity)["Running"] is True
    stream.close()


# exec


def test_exec_run(client: Any) -> None:
    box = begin(client, environment={"FROM": "container"})
    for _ in range(20):  # no byte is lost, however early it comes
        assert box.exec_run(["echo", "a b"]) == (0, b"a b\n")
    assert box.exec_run("sh -c 'echo err >&2; exit 3'") == (3, b"err\n")
    assert box.exec_run(["sh", "-c", COUNT], demux=True)[1] == (
        OUT,
        ERR,
    )
    assert box.exec_run(["sh", "-c", COUNT], stdout=False)[1].splitlines()[0] == b"err 1"
    said = box.exec_run(["sh", "-c", "id -u; pwd; echo $FROM $A"], user="web", workdir="/tmp", environment={"A": "1"})
    assert said == (0, b"1000\n/tmp\ncontainer 1\n")
    assert box.exec_run(["tty"], tty=True)[0] == 0 and box.exec_run(["tty"])[0] == 1
    code, stream = box.exec_run(["sh", "-c", "echo 1; sleep 0.3; echo 2"], stream=True)
    assert code is None and list(stream) == [b"1\n", b"2\n"]
    assert not box.exec_run(["sh", "-c", "echo x >/tmp/detached"], detach=True).output
    wait_for(lambda: box.exec_run(["cat", "/tmp/detached"]) == (0, b"x\n"))
    code, said = box.exec_run(["/nosuch"])
    assert code in (126, 127) and b"no such file or directory" in said
    capabilities = [box.exec_run(["grep", "CapEff", "/proc/self/status"], privileged=p).output for p in (False, True)]
    assert capabilities[0] < capabilities[1]
    box.stop(timeout=5)
    refused(lambda: box.exec_run("true"), APIError, 409, "is not running")


def test_exec_socket(client: Any) -> None:
    box = begin(client)
    identity = client.api.exec_create(box.id, ["sh", "-c", "cat; echo end >&2; exit 6"], stdin=True)["Id"]
    assert client.api.exec_inspect(identity)["Running"] is False
    stream = client.api.exec_start(identity, socket=True)
    connection = bare(stream)
    connection.sendall(b"y" * 70_000)
    assert client.api.exec_inspect(identity)["Running"] is True
    connection.shutdown(socket.SHUT_WR)
    assert frames(connection) == {1: b"y" * 70_000, 2: b"end\n"}
    wait_for(lambda: client.api.exec_inspect(identity)["Running"] is False)
    known = client.api.exec_inspect(identity)
    assert (known["ExitCode"], known["ContainerID"], known["OpenStdin"]) == (6, box.id, True)
    stream.close()
    _, stream = box.exec_run("cat", stdin=True, socket=True)
    bare(stream).sendall(b"hello")
    assert bare(stream).recv(100) == b"\1\0\0\0\0\0\0\5hello"
    stream.close()
    identity = client.api.exec_create(box.id, ["sh", "-c", "read x; stty size"], stdin=True, tty=True)["Id"]
    stream = client.api.exec_start(identity, tty=True, socket=True)
    client.api.exec_resize(identity, 22, 99)
    bare(stream).sendall(b"\n")
    assert b"".join(iter(lambda: bare(stream).recv(1000), b"")).endswith(b"22 99\r\n")
    stream.close()
    with contextlib.suppress(APIError):  # docker 20.10 tells in the stream, and docker-py may lose that
        assert re.fullmatch(b"|Error: Exec command .* has already run\r\n", client.api.exec_start(identity))
    refused(lambda: client.api.exec_inspect("0" * 64), NotFound, 404, "No such exec instance")


# life


def test_wait(client: Any) -> None:
    container = begin(client, "echo ready; sleep 0.5; exit 9")
    assert container.wait()["StatusCode"] == 9 == container.wait(condition="not-running")["StatusCode"]
    box = begin(client)
    found: dict[str, Any] = {}
    threads = [
        threading.Thread(target=lambda c=condition: found.update({c: box.wait(condition=c)["StatusCode"]}))
        for condition in ("not-running", "next-exit", "removed")
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert not found
    box.stop()
    wait_for(lambda: len(found) == 2)
    assert found == {"not-running": 3, "next-exit": 3}
    box.remove()
    for thread in threads:
        thread.join(20)
    assert found == {"not-running": 3, "next-exit": 3, "removed": 3}
    with pytest.raises(APIError):
        client.api.wait("nosuch")
    import requests

    with pytest.raises(requests.exceptions.ConnectionError):
        begin(client).wait(timeout=1)


def test_life(client: Any) -> None:
    box = begin(client, name="life")
    box.pause()
    box.reload()
    assert box.status == "paused" and box.attrs["State"]["Paused"]
    refused(lambda: box.exec_run("true"), APIError, 409, "is paused, unpause the container before exec")
    box.unpause()
    box.rename("other")
    assert client.containers.get("other").id == box.id and box.update(mem_limit="32m", memswap_limit="64m") is not None
    box.reload()
    assert box.name == "other" and box.attrs["HostConfig"]["Memory"] == 32 << 20
    before = box.attrs["State"]["StartedAt"]
    box.restart(timeout=5)
    box.reload()
    assert box.status == "running" and box.attrs["State"]["StartedAt"] > before
    wait_for(lambda: box.logs().count(b"ready") == 2)
    box.kill("TERM")
    assert box.wait()["StatusCode"] == 3
    refused(box.kill, APIError, 409, "is not running")
    box.start()
    box.start()
    box.kill()
    assert box.wait()["StatusCode"] == 137
    box.stop()
    box.reload()
    assert box.status == "exited" and box.attrs["State"]["ExitCode"] == 137
    refused(box.pause, APIError, 409, "is not running")
    other = begin(client, name="second")
    refused(lambda: other.rename("other"), APIError, 409, "already in use by container")
    refused(lambda: other.kill("NONSENSE"), APIError, 400, "Invalid signal: NONSENSE")
    deaf = begin(client, "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    begun = time.monotonic()
    deaf.stop(timeout=1)
    assert 0.9 < time.monotonic() - begun < 9 and deaf.wait()["StatusCode"] == 137
    gone = begin(client, auto_remove=True)
    gone.stop()
    with contextlib.suppress(NotFound):
        gone.wait(condition="removed")
    wait_for(lambda: gone.id not in [c.id for c in client.containers.list(all=True)])


def ours(client: Any) -> bool:
    return "minirt" in str(client.version().get("Platform", client.version()))


def test_stats_and_top(client: Any) -> None:
    box = begin(client, mem_limit="64m")
    one = box.stats(stream=False)
    assert one["id"] == box.id and one["name"] == f"/{box.name}" and one["memory_stats"]["limit"] == 64 << 20
    assert one["cpu_stats"]["cpu_usage"]["total_usage"] > 0 < one["precpu_stats"]["cpu_usage"]["total_usage"]
    assert one["cpu_stats"]["system_cpu_usage"] > one["precpu_stats"]["system_cpu_usage"]
    assert one["pids_stats"]["current"] >= 1 and one["memory_stats"]["usage"] > 0
    stream = box.stats(decode=True)
    first, second = next(stream), next(stream)
    assert second["read"] > first["read"] and second["preread"] == first["read"]
    stream.close()
    assert box.stats(stream=False)["num_procs"] == 0
    top = box.top()
    assert top["Titles"] == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert any("trap" in row[-1] for row in top["Processes"])
    assert box.top(ps_args="-o pid,comm")["Titles"] == ["PID", "COMMAND"]
    box.stop()
    refused(box.top, APIError, 409, "is not running")


# files


def test_files(client: Any) -> None:
    box = begin(client)
    assert box.put_archive("/tmp", packed(one=b"1\n", two=b"22" * 100_000)) is True
    assert box.exec_run("cat /tmp/one")[1] == b"1\n"
    assert box.put_archive("/tmp", io.BytesIO(packed(three=b"3"))) is True
    pieces, stat = box.get_archive("/tmp/two")
    assert unpacked(b"".join(pieces)) == {"two": b"22" * 100_000}
    assert (stat["name"], stat["size"], stat["mode"], stat["linkTarget"]) == ("two", 200_000, 0o644, "")
    assert stat["mtime"].startswith("2020-09-13T")
    assert unpacked(b"".join(box.get_archive("/tmp", chunk_size=1000)[0])) == {
        "tmp/one": b"1\n",
        "tmp/two": b"22" * 100_000,
        "tmp/three": b"3",
    }
    refused(lambda: box.get_archive("/nosuch"), NotFound, 404, "Could not find the file /nosuch in container")
    refused(lambda: box.put_archive("/nosuch", packed()), NotFound, 404, "Could not find the file /nosuch")
    assert {"Path": "/tmp/one", "Kind": 1} in box.diff() and {"Path": "/tmp", "Kind": 0} in box.diff()
    assert unpacked(b"".join(box.export()))["tmp/one"] == b"1\n"
    image = box.commit(
        "made", tag="2", message="why", author="who", changes="ENV A=1", conf={"Cmd": ["cat", "/tmp/one"]}
    )
    assert client.containers.run("made:2", network_mode="none") == b"1\n" and image.tags == ["made:2"]
    assert (image.attrs["Author"], image.attrs["Comment"]) == ("who", "why")
    assert "A=1" in image.attrs["Config"]["Env"]
    for container in client.containers.list(all=True):
        container.remove(force=True)
    client.images.remove("made:2")


def test_volumes(client: Any) -> None:
    volume = client.volumes.create("data", labels={"x": "y"})
    assert (volume.name, volume.attrs["Driver"], volume.attrs["Labels"]) == ("data", "local", {"x": "y"})
    assert [v.name for v in client.volumes.list(filters={"label": "x=y"})] == ["data"]
    assert client.volumes.get("data").attrs["Mountpoint"].endswith("data/_data")
    box = begin(client, volumes=["data:/data"])
    assert box.attrs["Mounts"][0]["Name"] == "data" and box.attrs["Mounts"][0]["Type"] == "volume"
    refused(volume.remove, APIError, 409, f"volume is in use - [{box.id}]")
    box.remove(force=True)
    volume.remove()
    refused(lambda: client.volumes.get("data"), NotFound, 404, "get data: no such volume")
    anonymous = client.volumes.create()
    assert re.fullmatch("[0-9a-f]{64}", anonymous.name)
    assert not client.volumes.prune({"label": ["nosuch"]})["VolumesDeleted"]
    assert client.volumes.prune()["VolumesDeleted"] == [anonymous.name]


# events


def test_events(client: Any) -> None:
    begun = time.time()
    stream = client.events(decode=True, filters={"type": "container", "label": "mine"})
    seen: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: seen.extend(stream))
    thread.start()
    time.sleep(0.3)
    run(client, "exit 0", name="other")
    box = run(client, "exit 4", detach=True, labels={"mine": ""}, name="mine")
    box.wait()
    box.remove()
    wait_for(lambda: [e["Action"] for e in seen][-1:] == ["destroy"])
    assert [e["Action"] for e in seen] == ["create", "start", "die", "destroy"]
    assert {e["id"] for e in seen} == {box.id} and seen[2]["Actor"]["Attributes"]["exitCode"] == "4"
    assert seen[1]["Actor"]["Attributes"]["name"] == "mine" and seen[1]["from"] == IMAGE
    stream.close()
    thread.join(20)
    assert not thread.is_alive()
    past = list(client.events(decode=True, since=int(begun), until=time.time(), filters={"container": "mine"}))
    assert [e["Action"] for e in past if e["Type"] == "container"] == ["create", "start", "die", "destroy"]
    assert [
        e["Action"] for e in client.events(decode=True, since=begun, until=time.time(), filters={"event": "die"})
    ] == [
        "die",
        "die",
    ]
    assert all(isinstance(line, bytes) for line in client.events(since=begun, until=time.time()))
