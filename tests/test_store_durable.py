"""What was received is not received again: after the daemon's death, by another process, over damaged bytes, over a
failed fsync; and a clock that goes back changes nothing. What each system call may do is in test_faults.py.
"""

from __future__ import annotations

import gzip
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from peers import require
from registries import Scripted, stall
from tars import archive, entry

from minirt.client import Client
from minirt.client.place import peer, told
from minirt.image.digest import Digest
from minirt.image.platform import Platform
from minirt.store.store import Store

BIG = gzip.compress(archive(entry("big", content=random.Random("big").randbytes(6 << 20))), mtime=0)
SMALL = gzip.compress(archive(entry("small", content=b"small")), mtime=0)
PULL = """
import os, sys
from pathlib import Path
from minirt.engine import Engine
os.cpu_count = lambda: 1
for line in Engine(Path(sys.argv[1]), "embedded").pull(sys.argv[2]): pass
"""


@pytest.fixture
def hub() -> Iterator[Scripted]:
    with Scripted(auth="none", redirects=False) as made:
        made.image("team/app", "1", [SMALL, BIG], (Platform.host().architecture,))
        yield made


@pytest.fixture
def client(root: Path) -> Iterator[Client]:
    with Client(root) as made:
        yield made


def name(hub: Scripted) -> str:
    return f"{hub.domain}/team/app:1"


def pull(client: Client, hub: Scripted) -> None:
    assert [line["status"] for line in client.pull(name(hub))][-1].startswith("Status: ")


def by_another_process(root: Path, hub: Scripted, *under: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.run(
        [*under, sys.executable, "-c", PULL, str(root), name(hub)], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def ingest(root: Path) -> Path:
    return root / "ingest" / f"sha256-{Digest.of(BIG).hex}"


def asked(hub: Scripted) -> list[int]:
    """From which byte on the big layer was asked for, request by request."""
    ranges = [request.headers.get("range", "bytes=0-") for request in hub.seen("registry", Digest.of(BIG).hex)]
    return [int(re.sub(r"\D", "", text)) for text in ranges]


def cut_short(client: Client, hub: Scripted) -> int:
    """Pull until some MB are here and no more come, and kill the daemon; bytes of the big layer on the disk."""
    hub.script("registry", Digest.of(BIG).hex, stall(3 << 20))
    process = subprocess.Popen([sys.executable, "-m", "minirt", "pull", name(hub)], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: ingest(client.root).exists() and ingest(client.root).stat().st_size > 2 << 20)
    os.kill(peer(told(client.root)), signal.SIGKILL)
    assert "daemon went away" in process.communicate(timeout=60)[1]
    # The worker goes on until its input ends.
    wait_for(lambda: not list(client.root.glob("layers/*/.*")))
    return ingest(client.root).stat().st_size


def wait_for(ready: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("who", ["the next daemon", "another process"])
def test_a_killed_daemon_s_download_goes_on_at_its_last_byte(client: Client, hub: Scripted, who: str) -> None:
    have = cut_short(client, hub)
    if who == "the next daemon":
        assert client.check() == []
        pull(client, hub)
    else:
        done = by_another_process(client.root, hub)
        assert done.returncode == 0, done.stderr
    assert asked(hub) == [0, have] and have > 2 << 20
    assert client.check() == [] and len(client.images()) == 1


def test_what_lay_damaged_is_received_again(client: Client, hub: Scripted) -> None:
    """As a power cut may leave it on a file system that does not order its writes: the right size, other bytes."""
    have = cut_short(client, hub)
    ingest(client.root).write_bytes(bytes(have))
    pull(client, hub)
    assert asked(hub) == [0, have, 0] and client.check() == []
    # A whole blob: the layer is not unpacked any more, as for another user's rights.
    blob = Store(client.root).layout.blob(Digest.of(BIG))
    blob.write_bytes(bytes(len(BIG)))
    (folder,) = [path for path in client.root.glob("layers/*/*/big")]
    subprocess.run(["mv", folder.parent, client.root.parent / "gone"], check=True)
    pull(client, hub)
    assert asked(hub) == [0, have, 0, 0] and client.check() == []


def test_bytes_whose_fsync_failed_are_written_anew(client: Client, hub: Scripted) -> None:
    """The kernel takes their pages for written (fsync(2)): another fsync of the same file would say all is well."""
    if os.geteuid():
        pytest.skip("under a plain user's strace newuidmap has no privileges")
    pull(client, hub)
    client.remove_image(name(hub))
    client.prune()
    before = len(asked(hub))
    log = client.root.parent / "log"
    under = [require("strace"), "-f", "-qqq", "-y", "-o", str(log), "-e", "trace=fsync,rename"]
    paths = ["-P", str(ingest(client.root)), "-P", f"{ingest(client.root)}.anew"]
    inject = [*paths, "-e", "inject=fsync:error=EIO"]
    done = by_another_process(client.root, hub, *under, *inject)
    assert done.returncode and "Input/output error" in done.stderr.splitlines()[-1], done.stderr
    assert "(INJECTED)" in log.read_text() and len(asked(hub)) == before + 1
    assert f'rename("{ingest(client.root)}.anew", "{ingest(client.root)}")' in log.read_text()
    assert ingest(client.root).read_bytes() == BIG
    assert client.check() == []
    pull(client, hub)
    assert len(asked(hub)) == before + 1 and client.check() == []


def test_a_clock_that_goes_back(client: Client, hub: Scripted) -> None:
    """All that is there was made in what is now the future."""
    pull(client, hub)
    client.tag(name(hub), "mine:1")
    made = client.create({"Image": "mine:1", "Cmd": ["/big"]}, name="old")["Id"]
    client.close()
    os.kill(peer(told(client.root)), signal.SIGKILL)
    for path in client.root.rglob("*"):
        os.utime(path, (4e9, 4e9), follow_symlinks=False)
    record = client.root / "containers" / made / "container.json"
    record.write_text(re.sub('"Created": "2[0-9]{3}', '"Created": "2096', record.read_text()))
    assert client.check() == []
    pull(client, hub)
    (old,) = client.containers(all=True)
    assert (old["State"], len(asked(hub))) == ("created", 1)
    client.create({"Image": "mine:1", "Cmd": ["/big"]}, name="new")
    listed = subprocess.run([sys.executable, "-m", "minirt", "ps", "-a"], capture_output=True, text=True, check=True)
    assert "-" not in listed.stdout.partition("CREATED")[2].replace("0->", ""), listed.stdout
    client.remove("old"), client.remove("new")
    client.remove_image("mine:1")
    client.remove_image(name(hub))
    client.prune()
    assert client.check() == [] and client.df()["LayersSize"] == 0
