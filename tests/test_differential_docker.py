"""The same image under docker and under us: what is unpacked and what a container sees is the same, or has a reason.

The image is a debootstrap Debian with layers on top that hold what images hold seldom (devices, capabilities, huge ids,
whiteouts, an opaque folder), built and pushed by docker 20.10 (Docker v2s2), pulled by docker again and by us.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import realimages
from dockerd import Dockerd

pytestmark = pytest.mark.slow
TOP = Path(__file__).resolve().parent.parent

DOCKERFILE = """
FROM base
ADD extras.tar /
RUN rm -rf /usr/share/doc /etc/motd /var/log && mkdir -m 750 /var/log && touch /var/log/new && chmod 711 /opt \
 && ln /etc/debian_version /etc/second-name && ln -s /nowhere /etc/dangling && rm -rf /srv/opaque && mkdir /srv/opaque \
 && touch /srv/opaque/after && chown 7:8 /srv/opaque
RUN useradd --uid 4321 --groups audio,staff learner
ENV GREETING=hello EMPTY= SPACED="two words"
WORKDIR /srv/made/by/workdir
CMD ["sh", "-c", "echo $GREETING"]
"""


@dataclass(frozen=True)
class Both:
    """The image in docker and in a store of ours."""

    dockerd: Dockerd
    root: Path
    name: str

    def minirt(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.dockerd.folder), "MINIRT_ROOT": str(self.root)}
        command = self.dockerd.inside(sys.executable, "-m", "minirt", *arguments)
        environment["PYTHONPATH"] = str(TOP)
        return subprocess.run(command, input=b"", capture_output=True, env=environment, check=False)

    def run(self, *words: str) -> tuple[subprocess.CompletedProcess[bytes], subprocess.CompletedProcess[bytes]]:
        """`run --rm …` under docker and under us. `words` may begin with options, then "IMAGE" stands for the name."""
        words = tuple(self.name if word == "IMAGE" else word for word in words)
        arguments = ("run", "--rm", "--network=none", "--hostname=box", *words)
        return self.dockerd.docker(*arguments, check=False), self.minirt(*arguments)


@pytest.fixture(scope="module")
def both(dockerd: Dockerd) -> Iterator[Both]:
    with open(realimages.debian(), "rb") as file:
        subprocess.run(dockerd.command("import", "-", "base"), stdin=file, stdout=subprocess.DEVNULL, check=True)
    context = dockerd.folder / "context"
    context.mkdir()
    (context / "extras.tar").write_bytes(_extras())
    (context / "Dockerfile").write_text(DOCKERFILE)
    with dockerd.registry() as registry:
        name = f"{registry}/real/debian:1.0"
        dockerd.docker("build", "--network=none", "--tag", name, str(context))
        dockerd.docker("push", name)
        # docker unpacks it anew: what it built itself is not what it unpacks.
        dockerd.docker("rmi", "--force", name, "base")
        dockerd.docker("image", "prune", "--all", "--force")
        assert dockerd.docker("images", "--all", "--quiet").stdout == b""
        dockerd.docker("pull", name)
        result = Both(dockerd, dockerd.folder / "minirt", name)
        pulled = result.minirt("pull", name)
        assert pulled.returncode == 0, pulled.stderr.decode()
        yield result
        dockerd.docker("rmi", "--force", name)


def _extras() -> bytes:
    """A tar of the rarer kinds of entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(
            name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, content: bytes = b"", **more: object
        ) -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.size, entry.mtime = kind, mode, len(content), 1_234_567_890
            for key, value in more.items():
                setattr(entry, key, value)
            tar.addfile(entry, io.BytesIO(content))

        add("srv/kinds", tarfile.DIRTYPE, 0o2775, uid=1234, gid=5678, mtime=1_000_000_000)
        add("srv/kinds/set-uid", mode=0o6755, content=b"#!/bin/sh\n", uid=0, gid=42)
        add("srv/kinds/hard link", tarfile.LNKTYPE, 0o6755, linkname="srv/kinds/set-uid", gid=42)
        add("srv/kinds/absolute", tarfile.SYMTYPE, 0o777, linkname="/etc/passwd", uid=99, gid=99)
        add("srv/kinds/upward", tarfile.SYMTYPE, 0o777, linkname="../../../etc")
        add("srv/kinds/fifo", tarfile.FIFOTYPE, 0o600)
        add("srv/kinds/null", tarfile.CHRTYPE, 0o666, devmajor=1, devminor=3)
        add("srv/kinds/disk", tarfile.BLKTYPE, 0o660, devmajor=253, devminor=300)
        add("srv/kinds/huge ids", uid=3_000_000, gid=4_000_000_000, content=b"x")
        add("srv/kinds/" + "long/" * 30 + "n" * 200, content=b"deep")
        add("srv/kinds/이름-naïve", content=b"unicode")
        add("srv/kinds/sticky", tarfile.DIRTYPE, 0o1777, mtime=0)
        add("srv/kinds/before the epoch", mtime=-86_400)
        capability = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # vfs_cap_data, version 2: net_bind_service+ep
        xattr = {"SCHILY.xattr.security.capability": capability.decode("latin-1")}
        add("srv/kinds/capable", mode=0o755, content=b"#!/bin/sh\n", pax_headers=xattr)
        add("srv/opaque/gone", content=b"gone")
    return buffer.getvalue()


def _tree(top: Path) -> dict[str, dict[str, object]]:
    """Everything about every path below `top` (and `top` itself) that a file system can tell."""
    found: dict[str, dict[str, object]] = {}
    first: dict[tuple[int, int], str] = {}
    paths = [str(top)]
    for folder, folders, names in os.walk(top):
        paths += [os.path.join(folder, name) for name in folders + names]
    for path in sorted(paths):
        status = os.lstat(path)
        kind = stat.S_IFMT(status.st_mode)
        row: dict[str, object] = {"mode": oct(status.st_mode), "owner": (status.st_uid, status.st_gid)}
        # Overlay's whiteout is made when the layer is unpacked; the archive gives it no time.
        if not (kind == stat.S_IFCHR and status.st_rdev == 0):
            row["mtime"] = status.st_mtime_ns
        if kind == stat.S_IFREG:
            with open(path, "rb") as file:
                row["content"] = (status.st_size, hashlib.file_digest(file, "sha256").hexdigest())
        if kind == stat.S_IFLNK:
            row["target"] = os.readlink(path)
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            row["device"] = (os.major(status.st_rdev), os.minor(status.st_rdev))
        if kind != stat.S_IFDIR:
            row["same as"] = first.setdefault((status.st_dev, status.st_ino), os.path.relpath(path, top))
        row["xattrs"] = {name: os.getxattr(path, name, follow_symlinks=False) for name in _xattrs(path)}
        found[os.path.relpath(path, top)] = row
    return found


def _xattrs(path: str) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def test_every_layer_is_unpacked_as_docker_unpacks_it(both: Both) -> None:
    (image,) = json.loads(both.dockerd.docker("inspect", both.name).stdout)
    data = image["GraphDriver"]["Data"]
    theirs = [*reversed(data.get("LowerDir", "").split(":")), data["UpperDir"]]
    ours = [both.root / "layers/trusted" / diff_id.partition(":")[2] for diff_id in image["RootFS"]["Layers"]]
    assert len(theirs) == len(ours) == 5
    for their, our in zip(theirs, ours, strict=True):
        expected, found = _tree(Path(their)), _tree(our)
        # docker makes and removes a folder of its own in the layer's top, so that the time there is the unpacking's.
        del expected["."]["mtime"], found["."]["mtime"]
        assert sorted(expected.keys() ^ found.keys())[:20] == []
        different = [(path, expected[path], found[path]) for path in expected if expected[path] != found[path]]
        assert different[:5] == []


# Lines that only one of the two prints, and why. A reason that explains nothing any more fails too.
PRIVILEGES = [(r"NoNewPrivs: [01]", "we always set no_new_privs; docker does so with --security-opt no-new-privileges")]
EXCUSES: dict[str, list[tuple[str, str]]] = {
    "status": PRIVILEGES,
    "status of a user": PRIVILEGES,
    "ls": [
        (r"\S+ 1 root root 0 \.dockerenv", "docker's own marker file"),
        (
            r"d\S+ 1 root root \d+ (\.|\.\.|etc)",
            "the size is the write layer's: docker puts its marker and mount points there",
        ),
    ],
    "mounts": [
        (
            r"/ overlay rw,nodev,relatime",
            "a device node in the image or made on it opens nothing: docker has device rules",
        ),
        (r"/ overlay rw,relatime", "as above"),
        (r"/dev tmpfs rw,nosuid,(nodev,)?size=65536k,mode=755", "as above"),
        (r"/dev/(null|zero|full|random|urandom|tty) tmpfs rw,nosuid,size=65536k,mode=755", "so each device is a mount"),
        (
            r"/sys/fs/cgroup tmpfs r[ow],.*",
            "docker's config asks for read-only too, but its runc leaves this tmpfs writable",
        ),
        (
            r"/(proc|sys)/\S+ tmpfs ro,relatime(,size=4k,nr_inodes=1)?",
            "our masks hold nothing, and have a size that says so",
        ),
        (r"/proc/interrupts tmpfs rw,.*", "masked by newer docker, not yet by 20.10"),
    ],
}
COMMANDS = {
    "env": ("IMAGE", "env"),
    "env of options": ("--env=GREETING=bye", "--env=MORE=1", "--workdir=/tmp", "IMAGE", "sh", "-c", "env; pwd"),
    "id": ("IMAGE", "id"),
    "id of a user": ("--user=learner", "IMAGE", "sh", "-c", "id; echo $HOME"),
    "id of numbers": ("--user=77:88", "IMAGE", "sh", "-c", "id; echo $HOME"),
    "pwd": ("IMAGE", "pwd"),
    "status": ("IMAGE", "grep", "-E", "^(Uid|Gid|Groups|Cap|NoNewPrivs|NSpid)", "/proc/self/status"),
    "status of a user": (
        "--user=learner",
        "IMAGE",
        "grep",
        "-E",
        "^(Uid|Gid|Groups|Cap|NoNewPrivs)",
        "/proc/self/status",
    ),
    "ls": ("IMAGE", "ls", "-la", "--time-style=+", "/", "/dev"),
    "mounts": ("IMAGE", "sh", "-c", 'cut -d" " -f2-4 /proc/mounts | sort'),
    "limits": ("IMAGE", "cat", "/proc/self/limits"),
    "the image's command": ("IMAGE",),
    "streams and status": ("IMAGE", "sh", "-c", "echo out; echo err >&2; exit 3"),
    "no such command": ("IMAGE", "no-such-command"),
    "not a program": ("IMAGE", "/etc/passwd"),
    "pid 1 is out of its own reach": ("IMAGE", "sh", "-c", "kill -9 $$"),
}


def _lines(output: bytes) -> list[str]:
    """Lines with single blanks (ls and /proc pad), without what changes from run to run or with the store's path."""
    text = re.sub(r"^(d\S+) +\d+ (.*) (proc|sys)$", r"\1 N \2 \3", output.decode(), flags=re.MULTILINE)
    text = re.sub(r"^(/ overlay rw(,nodev)?,relatime),.*", r"\1", text, flags=re.MULTILINE)
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.mark.parametrize("what", COMMANDS)
def test_a_container_sees_what_it_sees_under_docker(both: Both, what: str) -> None:
    their, our = both.run(*COMMANDS[what])
    assert our.returncode == their.returncode, our.stderr.decode()
    expected, found = _lines(their.stdout), _lines(our.stdout)
    different = sorted(set(expected) ^ set(found))
    excuses = EXCUSES.get(what, [])
    unexplained = [line for line in different if not any(re.fullmatch(pattern, line) for pattern, _ in excuses)]
    assert unexplained == [], f"docker: {their.stdout.decode()}\nminirt: {our.stdout.decode()}"
    if what != "mounts":  # what there is to mask and to mount differs between machines
        assert [pattern for pattern, _ in excuses if not any(re.fullmatch(pattern, line) for line in different)] == []
    kept = [[line for line in lines if line not in different] for lines in (expected, found)]
    assert kept[0] == kept[1]


def test_debian_works(both: Both) -> None:
    release = both.minirt("run", "--rm", both.name, "cat", "/etc/os-release")
    with tarfile.open(realimages.debian()) as tar:
        file = tar.extractfile("./usr/lib/os-release")
        assert file is not None and release.stdout == file.read()
    version = both.minirt("run", "--rm", both.name, "apt-get", "--version")
    assert version.stdout.startswith(b"apt "), version.stderr.decode()
    assert version.returncode == 0
