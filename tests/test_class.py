"""A class on one machine: root's shared store, and learners of each kind who use it and try to change it.

The learners stand in a mount namespace where everybody may open /dev/fuse, as on a usual machine, and where the store
is mounted read-only. `python tests/test_class.py IMAGE.tar COMMAND…` shows the figures of ten learners for any image.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import io
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import users
from engines import image_tar
from peers import require
from tars import BLOCK, CHAR, DIR, FIFO, SYMLINK, archive, entry, pax

HERE = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root has a store for others"),
]

# acl(5) as an xattr: version 2, then tag, permissions, id each. User 12345 may write.
ACL = bytes.fromhex("02000000 01000600ffffffff 0200060039300000 04000400ffffffff 10000600ffffffff 20000400ffffffff")
CAPABILITY = bytes.fromhex("0000000201000000000000000000000000000000")  # cap_chown+ep, version 2


def image(tag: str, *layers: bytes) -> bytes:
    """A docker archive of one image."""
    config = {
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]},
    }  # fmt: skip
    names = [f"{number}.tar" for number in range(len(layers))]
    table = [{"Config": "config.json", "RepoTags": [tag], "Layers": names}]
    files = {"manifest.json": json.dumps(table).encode(), "config.json": json.dumps(config).encode()}
    return archive(
        *(entry(name, content=content) for name, content in (files | dict(zip(names, layers, strict=True))).items())
    )


def odd() -> bytes:
    """Everything a layer may have that differs between users, over busybox, and a layer that hides some of it."""
    more = archive(
        entry("tmp", DIR, mode=0o1777), entry("etc/shadow", content=b"secret", mode=0o640, gid=42),
        entry("home/web", DIR, uid=33, gid=33, mode=0o700), entry("home/web/own", content=b"w", uid=33, mode=0o600),
        entry("home/nobody", content=b"n", uid=65534, gid=65534, mode=0o644),
        entry("bin/su", content=b"#!/bin/sh\n", mode=0o6755), entry("fifo", FIFO, mode=0o644),
        entry("link", SYMLINK, linkname="etc/shadow"), entry("owned", SYMLINK, linkname="fifo"),
        entry("implied/deep/file", content=b"i"), entry("disk", BLOCK, devmajor=8, mode=0o666),
        entry("mem", CHAR, devmajor=1, devminor=1, mode=0o666),
        pax({"SCHILY.xattr.security.capability": CAPABILITY, "SCHILY.xattr.user.kept": b"kept"}),
        entry("bin/ping", content=b"p", mode=0o755),
        pax({"SCHILY.xattr.user.containers.override_stat": b"0:0:0777"}), entry("liar", content=b"l", mode=0o600),
        entry("gone/a", content=b"a"), entry("gone/b", content=b"b"), entry("kept/a", content=b"a"),
    )  # fmt: skip
    top = archive(
        entry("gone/.wh.a"), entry("kept/.wh..wh..opq"), entry("kept/new", content=b"new"),
        entry("etc/new", content=b"n"), entry("home/.wh.none"),
    )  # fmt: skip
    return image("odd:1", image_tar(), more, top)


SHELL = ["/bin/busybox", "sh", "-c"]
# What a container sees of its image, and then what becomes of what it changes.
STAT = "/bin/busybox find / -xdev -not -path '/proc*' -not -path '/sys*' -not -path '/dev*' -not -path '/etc/*host*' \
-not -path /etc/resolv.conf -exec /bin/busybox stat -c '%n %F %a %u:%g %h %s %Y %N' {} + | /bin/busybox sort"
LOOK = f"""b=/bin/busybox; cd /; {STAT}
echo; $b cat etc/shadow home/web/own kept/new; $b ls gone kept; test -e gone/a || echo no a"""
CHANGE = """b=/bin/busybox; cd /; echo more >> etc/shadow; $b chmod 4711 home/nobody; $b mkdir etc/d; $b rm -r kept data
$b mkdir kept; $b ln -s nowhere etc/l; $b mv two three; $b touch -d @1000 one; echo x > home/web/x; $b rm link
$b chown 1:2 home/web/own home 2> /dev/null && $b chown -h 3:3 owned; $b chmod 700 implied
$b stat -c '%n %a %u:%g %s' etc etc/shadow home home/nobody home/web home/web/own home/web/x kept etc/d etc/l three \\
one implied owned"""
AS_NOBODY = """b=/bin/busybox; echo > /tmp/first; echo mine > /tmp/mine; echo again >> /tmp/mine
$b stat -c '%n %a %u:%g' /tmp/mine; $b cat /etc/shadow 2> /dev/null || echo closed; $b cat /tmp/mine"""


class School:
    """Root's store, shared. `minirt` runs a command on it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "store"

    def minirt(self, *words: str, check: bool = True) -> str:
        env = {**os.environ, "MINIRT_ROOT": str(self.root), "MINIRT_HUB": "embedded", "MINIRT_ADDITIONAL_STORES": ""}
        command = [sys.executable, "-m", "minirt", *words]
        done = subprocess.run(command, env=env, cwd=HERE, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + ("" if check else done.stderr)

    def state(self) -> dict[str, Any]:
        """Every file of what others read."""
        found: dict[str, Any] = {}
        for path in sorted((*self.root.glob("oci/**/*"), *self.root.glob("layers/shared/**/*"), self.root)):
            status = path.lstat()
            found[str(path)] = (status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return found


class Learner:
    """A plain user of the class. `minirt` runs a command as that user, in the class's mount namespace or ours."""

    def __init__(self, user: users.User, holder: int, library: Path, store: Path | None, subuids: bool) -> None:
        self.user, self._holder, self._library, self._store, self.subuids = user, holder, library, store, subuids

    def run(self, *words: str, fuse: bool = True, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        user = self.user
        env = {"HOME": str(user.home), "PATH": os.environ["PATH"], "PYTHONPATH": str(self._library), "USER": user.name}
        env |= {"MINIRT_HUB": "embedded", "MINIRT_DAEMON_IDLE": "5", "PYTHONDONTWRITEBYTECODE": "1", **more}
        env |= {"MINIRT_ADDITIONAL_STORES": str(self._store)} if self._store else {}
        inside = ["nsenter", "--target", str(self._holder), "--mount"] if fuse else ["unshare", "--mount"]
        hide = "" if fuse else "mount --bind /dev/full /dev/fuse; "
        identity = f"setpriv --reuid {user.uid} --regid {user.gid} --clear-groups"
        shell = ["sh", "-c", f'{hide}cd "$HOME" && exec {identity} "$@"', "sh", *words]
        done = subprocess.run([*inside, *shell], env=env, capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def words(self, *words: str) -> list[str]:
        """The command line of `minirt words`."""
        return [self.user.interpreter, "-m", "minirt", *words]

    def minirt(self, *words: str, **more: Any) -> str:
        return self.run(*self.words(*words), **more).stdout

    def container(self, command: str, *options: str) -> str:
        return self.minirt("run", "--network", "none", *options, "odd:1", *SHELL, command)

    @property
    def root(self) -> Path:
        return self.user.home / ".local/share/minirt"

    def layers(self) -> list[str]:
        """What was unpacked for this user alone."""
        return [path.name for path in self.root.glob("layers/*/*[0-9a-f]")]

    def disk(self) -> int:
        """Bytes of this user's own store."""
        found = subprocess.run(["du", "-s", "-B1", str(self.root)], capture_output=True, text=True, check=True)
        return int(found.stdout.split()[0])


@contextlib.contextmanager
def school() -> Iterator[School]:
    with tempfile.TemporaryDirectory(prefix="minirt-class-") as folder:
        os.chmod(folder, 0o755)
        made = School(Path(folder))
        try:
            yield made
        finally:
            made.minirt("daemon", "stop", check=False)


@contextlib.contextmanager
def classroom(store: Path, more: str = "true") -> Iterator[int]:
    """The process that holds the class's mount namespace: `store` read-only, /dev/fuse for everybody."""
    for peer in ("fuse-overlayfs", "unshare", "nsenter", "setpriv", "newuidmap"):
        require(peer)
    with tempfile.TemporaryDirectory(prefix="minirt-room-") as folder:
        script = f"""mount -t tmpfs none {folder} && mknod -m 666 {folder}/fuse c 10 229 || exit
mount --bind {folder}/fuse /dev/fuse && mount --bind {store} {store} && mount -o remount,bind,ro {store} || exit
{more} || exit; echo ready; exec sleep 1000"""
        words = ["unshare", "--mount", "sh", "-c", script]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout and process.stdout.readline() == "ready\n"
                yield process.pid
            finally:
                process.kill()


@contextlib.contextmanager
def learner(subuids: bool, holder: int, store: Path) -> Iterator[Learner]:
    with users.plain_user(subuids) as user:
        made = Learner(user, holder, user.home, store, subuids)
        try:
            yield made
        finally:
            for line in made.minirt("ps", "-aq", check=False).split():
                made.minirt("rm", "-f", line, check=False)
            made.minirt("daemon", "stop", check=False)


@pytest.fixture(autouse=True)
def _anew(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test begins with a daemon in the class's namespace, whatever another left."""
    yield
    if "one" in request.fixturenames:
        request.getfixturevalue("one").minirt("daemon", "stop", check=False)


@pytest.fixture(scope="module")
def taught() -> Iterator[School]:
    """A school with the image `odd:1`, loaded before the store was shared, and `acl:1`, loaded after."""
    with school() as made:
        archive_ = made.root.parent / "image.tar"
        archive_.write_bytes(odd())
        made.minirt("load", "-q", "-i", str(archive_))
        said = made.minirt("system", "share")
        assert said.splitlines()[0].startswith("Others can read 1 image(s), 3 layer(s)")
        assert f'additional-stores = ["{made.root}"]' in said
        acl = [pax({"SCHILY.xattr.system.posix_acl_access": ACL}), entry("acl", content=b"a", mode=0o664)]
        archive_.write_bytes(image("acl:1", archive(*acl)))  # which only root can unpack with its list
        made.minirt("load", "-q", "-i", str(archive_))
        yield made


@pytest.fixture(scope="module", params=[True, False], ids=["subuids", "single id"])
def one(request: pytest.FixtureRequest, taught: School) -> Iterator[Learner]:
    with classroom(taught.root) as holder, learner(request.param, holder, taught.root) as made:
        yield made


def test_a_shared_layer_is_nobodys_danger(taught: School) -> None:
    """On disk all is root's and plain: a set-uid file, a capability, an access list, a device would be everybody's."""
    shared, count = taught.root / "layers/shared", 0
    for path in shared.glob("*/**/*"):
        status, count = path.lstat(), count + 1
        assert (status.st_uid, status.st_gid) == (0, 0), path
        if stat.S_ISCHR(status.st_mode):
            assert status.st_rdev == 0, path  # a whiteout
        elif not stat.S_ISLNK(status.st_mode):
            assert stat.S_IMODE(status.st_mode) in (0o755, 0o644), path
            assert not stat.S_ISBLK(status.st_mode)
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            mine = {"user.containers.override_stat", "user.kept", "user.overlay.opaque"}
            assert set(os.listxattr(path)) <= mine and "user.containers.override_stat" in os.listxattr(path)
    assert count > 60
    for name in ("containers", "ingest", "layers/trusted", "gc.lock", "daemon.log", "rights.json"):
        path = taught.root / name
        assert not path.exists() or not path.stat().st_mode & 0o077, name


def test_a_container_sees_what_it_would_see_if_unpacked_for_it(one: Learner, taught: School) -> None:
    """Owners, modes, times, links, whiteouts, and what becomes of changes: the same by fuse-overlayfs over root's
    layers as in layers of one's own; nothing is unpacked for the first."""
    before = taught.state()
    ways = []
    for fuse in (True, False):
        done = one.run(*one.words("run", "--network", "none", "--name", "look", "odd:1", *SHELL, LOOK), fuse=fuse)
        assert ("layers are shared from" in done.stderr) == fuse
        one.minirt("run", "--network", "none", "--name", "changed", "odd:1", *SHELL, CHANGE, fuse=fuse)
        one.minirt("commit", "changed", "made:1", fuse=fuse)
        assert len(one.layers()) == (1 if fuse else 4)
        one.minirt("save", "-o", "made.tar", "made:1", fuse=fuse)
        ways.append({
            "looks": done.stdout.splitlines(),
            "changed": one.minirt("logs", "changed", fuse=fuse).splitlines(),
            "diff": one.minirt("diff", "changed", fuse=fuse).splitlines(),
            "commit": top_layer(one.user.home / "made.tar"),
            "made": one.minirt("run", "--rm", "--network", "none", "made:1", *SHELL, STAT, fuse=fuse).splitlines(),
        })  # fmt: skip
        one.minirt("rm", "look", "changed", fuse=fuse)
        one.minirt("rmi", "made:1", fuse=fuse)
        one.minirt("system", "prune", "-af", fuse=fuse)
        assert one.layers() == [] and one.minirt("system", "check", fuse=fuse) == "Everything in the store verifies\n"
        one.minirt("daemon", "stop", fuse=fuse)
    for what, shared in ways[0].items():
        assert [_neutral(line) for line in shared] == [_neutral(line) for line in ways[1][what]], what
    assert any(line.startswith("/etc/shadow regular file 640 0:42 ") for line in ways[0]["looks"]) == one.subuids
    assert len(ways[0]["looks"]) > 50 and len(ways[0]["changed"]) == 14 and taught.state() == before


def _neutral(line: str) -> str:
    """Without a directory's size and links, which file systems count as they like, times of this minute, and that of a
    link that was copied up, which fuse-overlayfs forgets."""
    line = re.sub(r"^(\S+ directory \S+ \S+) \d+ \d+", r"\1", line)
    line = re.sub(r"^(/owned .*) 0 |^(.*) 1[78]\d{8} ", r"\1\2 now ", line)
    return re.sub(r"^((?:etc|home|kept|home/web|etc/d|implied) \d+ \S+) \d+$", r"\1", line)


def top_layer(path: Path) -> list[str]:
    """The last layer of an image in docker's archive, an entry a line."""
    with tarfile.open(path) as outer:
        table = json.load(outer.extractfile("manifest.json") or io.BytesIO())
        inner = (outer.extractfile(table[0]["Layers"][-1]) or io.BytesIO()).read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as layer:
        return [f"{m.name} {m.type!r} {m.mode:o} {m.uid}:{m.gid} {m.linkname} {sorted(m.pax_headers)}" for m in layer
                if "time" not in m.name]  # fmt: skip


def test_a_user_of_the_container_is_held_to_the_images_modes(one: Learner) -> None:
    """Every file is open on disk; in the container it is as closed as the image says; `nobody` owns what it makes."""
    if one.subuids:
        said = one.container(AS_NOBODY, "--rm", "-u", "65534:65534").splitlines()
        assert said == ["/tmp/mine 644 65534:65534", "closed", "mine", "again"]
    assert one.container("/bin/busybox stat -c %a /bin/su; test -e /mem || echo none", "--rm") == "6755\nnone\n"


TRY = """
import errno, fcntl, os, sys
root, done = sys.argv[1], []
def tried(what, call):
    try:
        call()
    except PermissionError:
        return
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EBUSY):  # mounted read-only; "." has no name to change
            return
        raise
    done.append(what)
for path, folders, files in os.walk(root):
    for name in (".", *folders, *files):
        place = os.path.join(path, name)
        if os.path.islink(place):
            continue
        tried(f"chmod {place}", lambda: os.chmod(place, 0o777))
        tried(f"xattr {place}", lambda: os.setxattr(place, "user.x", b""))
        tried(f"rename {place}", lambda: os.rename(place, place + "x"))
        if os.path.isdir(place):
            tried(f"make in {place}", lambda: os.mkdir(place + "/made"))
        elif os.path.isfile(place):
            tried(f"write {place}", lambda: os.close(os.open(place, os.O_WRONLY)))
            tried(f"unlink {place}", lambda: os.unlink(place))
for name in ("gc.lock", "oci/.lock", "daemon.lock", "containers.lock"):
    if os.path.exists(os.path.join(root, name)):
        tried(f"lock {name}", lambda: fcntl.flock(os.open(os.path.join(root, name), os.O_RDONLY), fcntl.LOCK_SH))
for name in ("containers", "ingest", "layers/trusted", "rights.json"):
    if os.path.exists(os.path.join(root, name)):
        tried(f"read {name}", lambda: (os.listdir if name[0] in "cil" else open)(os.path.join(root, name)))
print(len(done), *done[:5])
"""


def test_a_learner_cannot_change_it(one: Learner, taught: School) -> None:
    """By hand (also where it is not mounted read-only), by minirt's verbs, as root of a container."""
    before = taught.state()
    for fuse in (True, False):
        assert one.run(one.user.interpreter, "-c", TRY, str(taught.root), fuse=fuse).stdout == "0\n"
    for words, why in {
        "rmi odd:1": "cannot remove read-only image",
        "rmi -f odd:1": "cannot remove read-only image",
        "system share": "only root's store can be shared",
    }.items():
        done = one.run(*one.words(*words.split()), check=False)
        assert done.returncode and why in done.stderr.splitlines()[-1]
    one.minirt("tag", "acl:1", "odd:1")
    assert one.minirt("rmi", "odd:1") == "Untagged: odd:1\n"
    one.minirt("system", "prune", "-af")
    one.container("cd /; /bin/busybox rm -rf etc bin home data 2> /dev/null; echo x > new", "--rm")
    assert "odd" in one.minirt("images") and "secret" in one.container("/bin/busybox cat /etc/shadow", "--rm")
    assert taught.state() == before


def test_its_owner_removes_an_image_in_use(one: Learner, taught: School) -> None:
    """What a running container stands on stays till it has ended; the next start says in one line that it went."""
    only = archive(entry("only", content=one.user.name.encode()))
    file = taught.root.parent / "brief.tar"
    file.write_bytes(image("brief:1", image_tar(), only))
    taught.minirt("load", "-q", "-i", str(file))
    layer = taught.root / "layers/shared" / hashlib.sha256(only).hexdigest()
    one.minirt("run", "-d", "--name", "using", "--network", "none", "brief:1", *SHELL, "exec /bin/busybox sleep 1000")
    assert "Untagged: brief:1" in taught.minirt("rmi", "brief:1") and layer.is_dir()
    assert "brief" not in one.minirt("images")
    assert one.minirt("exec", "using", "/bin/busybox", "cat", "/only") == one.user.name
    one.minirt("kill", "using")
    one.minirt("wait", "using")
    taught.minirt("system", "prune", "-f")
    assert not layer.exists()
    done = one.run(*one.words("start", "using"), check=False)
    assert done.returncode and done.stderr.count("\n") <= 2
    assert f"was removed from the additional store it is in ({layer}): pull the image again" in done.stderr
    one.minirt("rm", "using")


# Ten learners

MACHINE = """mkdir /tmp/etc-$$ && mount -t tmpfs none /tmp/etc-$$ && mkdir /tmp/etc-$$/u /tmp/etc-$$/w &&
mount -t overlay none -o lowerdir=/etc,upperdir=/tmp/etc-$$/u,workdir=/tmp/etc-$$/w /etc && mkdir -p /etc/minirt &&
echo 'additional-stores = ["STORE"]' > /etc/minirt/config.toml && umount -l /tmp/etc-$$ && rmdir /tmp/etc-$$"""


def ten(made: School, name: str, command: list[str], tell: Callable[[str], None]) -> list[tuple[Learner, str]]:
    """Ten learners at once, each with a container of image `name`: theirs is what /etc/minirt/config.toml says."""
    with contextlib.ExitStack() as held:
        first = held.enter_context(users.plain_user(True, 1))
        first.home.chmod(0o755)  # the others have its package
        class_ = [(first, True)]
        for number in range(2, 11):
            subuids = number % 2 == 0
            class_.append((held.enter_context(users.plain_user(subuids, number, first)), subuids))
        holder = held.enter_context(classroom(made.root, MACHINE.replace("STORE", str(made.root))))
        learners = [Learner(user, holder, first.home, None, subuids) for user, subuids in class_]
        for each in learners:
            held.callback(each.minirt, "daemon", "stop", check=False)

        def run(each: Learner) -> str:
            return each.minirt("run", "--network", "none", name, *command)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            said = list(pool.map(run, learners))
        store = subprocess.run(["du", "-s", "-B1", made.root], capture_output=True, text=True, check=True)
        tell(f"the shared store: {int(store.stdout.split()[0]):,} bytes")
        for each in learners:
            kind = "subuids" if each.subuids else "single id"
            tell(f"{each.user.name} ({kind}): {each.disk():,} bytes, {len(each.layers())} layers unpacked")
            assert each.layers() == [] and [*each.root.glob("oci/blobs/*/*")] == []
        return [(each, text) for each, text in zip(learners, said, strict=True)]


def test_ten_learners_one_store(taught: School) -> None:
    """Each runs a container; the store, mounted read-only, is as it was, and nobody has a copy of anything."""
    before, lines = taught.state(), list[str]()
    found = ten(taught, "odd:1", [*SHELL, "/bin/busybox cat /etc/shadow; echo hi > /tmp/x"], lines.append)
    print("\n".join(lines))
    assert [text for _, text in found] == ["secret"] * 10 and len(lines) == 11
    assert taught.state() == before
    own = [int(re.sub(r"\D", "", line.partition(": ")[2].partition(" bytes")[0])) for line in lines]
    assert max(own[1:]) < 400_000 < own[0]


if __name__ == "__main__":
    with school() as shown:
        shown.minirt("system", "share")
        shown.minirt("load", "-q", "-i", sys.argv[1])
        name = shown.minirt("images", "--format", "{{.Repository}}:{{.Tag}}").split()[0]
        print(*{text for _, text in ten(shown, name, sys.argv[2:], print)}, sep="\n")
