"""Files of containers: cp both ways, diff, export, commit, import, held against a real dockerd; nothing leads out."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from engines import DIRECTORY, HARDLINK, LINK, Both, Ours, both, image_tar, packed, unpacked
from peers import require
from users import plain_user

from minirt.engine import Engine
from minirt.engine.recipe import applied, merged
from minirt.errors import InvalidInput, NotFound, UnpackError
from minirt.store import pack, tar
from minirt.store.applier import Owner
from minirt.store.extract import Extractor

__all__ = ["both"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux")

PATHS = (
    "/data", "/data/", "/data/.", "/data/file", "/data/link", "/data/hard", "/up", "/up/passwd", "/abs", "/abs/.",
    "/abs/deep", "/dangling", "/dangling/", "/nope", "nope/x", "data", "./data/../one", "/pipe", "/suid",
    "/" + "x" * 120, "/이름", "/tmp", "/proc/self", "/vol/made", "/bound/",
)  # fmt: skip
TREE = packed(("f", b"new", 0o600, 5), ("d", DIRECTORY), ("d/x", b"x"))


@pytest.fixture(scope="module")
def folder(both: Both) -> Path:
    path = Path(both.sides[1].folder) / "bound"
    path.mkdir()
    (path / "file").write_text("of the machine")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("runs", [True, False], ids=["running", "created"])
def test_cp_out_is_dockers(runs: bool, both: Both, folder: Path) -> None:
    begin = both.start if runs else both.create
    pair = begin(HostConfig={"Binds": ["seen:/vol", f"{folder}:/bound"]})
    volume = packed(("made", DIRECTORY), ("made/x", b"x"))
    pair.same(lambda side, box: side.put(box, "/vol", volume))
    for path in PATHS:
        pair.same(lambda side, box, path=path: side.get(box, path))  # type: ignore[misc]
    for path in ("/data/file/", "/data/file/x"):
        pair.same(lambda side, box, path=path: side.get(box, path), "not a directory")  # type: ignore[misc]
    pair.same(lambda side, box: side.get(box, "/loop/x"), "too many l")


@pytest.mark.slow
def test_cp_in_is_dockers(both: Both) -> None:
    pair = both.start(HostConfig={"Binds": ["in:/vol", "ro:/ro:ro"], "Tmpfs": {"/tm": ""}})

    def same(path: str, archive: bytes, text: str = "", **how: bool) -> Any:
        def ask(side: Ours, box: str) -> Any:
            side.put(box, path, archive, **how)
            return side.get(box, path)[1]

        return pair.same(ask, text)

    for path in ("/kept", "/kept/", "/vol", "/abs", "/tm"):
        assert (path.strip("/") + "/f", b"0", "0o600", 5, 5, "", b"new") in same(path, TREE) or path == "/abs"
    same("/nope", TREE)
    same("/dangling", TREE)
    same("/one", TREE, "extraction point is not a directory")
    same("/data/link", TREE, "extraction point is not a directory")
    same("/ro", TREE, "mounted volume is marked read-only")
    file, folder = packed(("d", b"now a file")), packed(("f", DIRECTORY))
    same("/vol", file, 'cannot overwrite directory "/vol/d" with non-directory "/vol"', keep=True)
    same("/vol", folder, 'cannot overwrite non-directory "/vol/f" with directory "/vol"', keep=True)
    same("/vol", file)
    same("/vol", folder)
    same("/kept", packed((".wh.a", b""), ("new/deep/er", b"1"), ("hl", (HARDLINK, "a"))))
    same("/kept", packed(("lnk", (LINK, "/etc/passwd"))))
    same("/kept", packed(("lnk", b"in place of the link")))
    same("/kept", packed(("/absolute", b"")))
    same("/kept", packed((".", DIRECTORY, 0o700, 9), ("./dotted", b"")))
    same("/kept", packed(("../out", b"")), "../out")
    same("/kept", b"not a tar at all" * 100, "tar")
    same("/kept", b"")
    same("/", packed(("etc/hosts", b"h")), "usy")
    same("/kept", packed(("mine", b"u", 0o644, 5)), chown=True)

    locked = both.start(HostConfig={"ReadonlyRootfs": True, "Binds": ["in2:/vol"]})
    locked.same(lambda side, box: side.put(box, "/kept", TREE), "container rootfs is marked read-only")
    locked.same(lambda side, box: (side.put(box, "/vol", TREE), side.get(box, "/vol"))[1][1])


CHANGES = """b=/bin/busybox; $b rm -rf /gone; $b mkdir /gone; echo n > /gone/c; $b rm /kept/a; echo m >> /kept/b
$b chmod 600 /mode; $b rm one; $b mkdir one; echo i > one/i; $b rm -r two; $b mkdir -p new/deep/er
$b touch new/deep/er/f; $b ln -s x newlink; $b rm -r dir; echo f > dir; $b chown 3 data/sub; $b rm /dangling
$b mv /data/file /data/moved; $b mkfifo np; $b ln same linked; $b touch -r suid suid; $b chmod 4755 suid
$b chown 7:8 new; $b ln new/deep/er/f new/again; echo ready; exec $b sleep 1000"""


@pytest.mark.slow
def test_diff_export_and_commit_are_dockers(both: Both) -> None:
    began = int(time.time())
    pair = both.start(CHANGES, HostConfig={"Binds": ["diff:/made/mount"]})

    def diff(side: Ours, box: str) -> list[tuple[str, int]]:
        return sorted((change["Path"], change["Kind"]) for change in side.diff(box))

    listed = pair.same(diff)
    assert {("/gone/a", 2), ("/gone/c", 1), ("/kept/b", 0), ("/mode", 0), ("/two", 2), ("/made/mount", 1)} <= {*listed}
    assert not {("/same", 0), ("/suid", 0), ("/etc", 0), ("/dev", 0)} & {*listed}

    # docker's own mount points (.dockerenv, dev/console …) lie in its image's place; ours only where there is none.
    own = (".dockerenv", "dev", "etc/h", "etc/r", "etc/mtab")

    def export(side: Ours, box: str) -> dict[str, Any]:
        entries = unpacked(side.export(box))
        return {entry[0]: entry[1:] for entry in entries if not entry[0].startswith(own)}

    exported = pair.same(export)
    assert exported["dir"][-1] == b"f\n" and "gone/a" not in exported and "made/mount" in exported

    def commit(side: Ours, box: str, **more: Any) -> Any:
        image = side.commit(box, **more)
        config = {k: v for k, v in (image["Config"] or {}).items() if v and k not in ("Image", "Hostname")}
        return config, image["Author"], image["Comment"], len(image["RootFS"]["Layers"])

    asked: list[dict[str, Any]] = [
        {"author": "a", "comment": "c"},
        {"changes": ["CMD echo hi", 'ENV A=b C="d e"', "ENV F g $A ${A}h"]},
        {"changes": ['ENTRYPOINT ["/x"]', "EXPOSE 80 90/udp", "LABEL a=b", "USER user", "VOLUME /v /w"]},
        {"changes": ["WORKDIR /here", "WORKDIR there", "ONBUILD RUN x", 'CMD ["y"]', "ENTRYPOINT z"]},
        {"changes": ["RUN x"]}, {"changes": ["FOO x"]}, {"changes": ["ENV"]}, {"changes": ["STOPSIGNAL 9"]},
        {"config": {"Cmd": ["z"], "Labels": {"l": "m"}}}, {"changes": ["EXPOSE 70000"]}, {},
    ]  # fmt: skip
    for more in asked:
        pair.same(lambda side, box, more=more: commit(side, box, **more))  # type: ignore[misc]
    shown = 'cd /; /bin/busybox find . -xdev | /bin/busybox grep -vE \'^./(proc|sys|dev|etc|.dockerenv)\' |\
 /bin/busybox sort | while read f; do /bin/busybox stat -c \'%n %F %a %u %g %h %Y\' "$f"; /bin/busybox readlink "$f";\
 /bin/busybox test -f "$f" && /bin/busybox md5sum "$f"; done; true'

    def look(side: Ours) -> set[str]:
        lines = side.run(shown, Image="made:1")[1].splitlines()
        # What was made a moment apart has another time: the export has told of that.
        lines = [re.sub(r" (\d+)$", lambda m: " now" if int(m[1]) >= began else m[0], line) for line in lines]
        return {line for line in lines if not line.startswith((". ", "./np", "./new", "./one", "./gone", "./made"))}

    assert len(both.same(look)) > 40


@pytest.mark.slow
def test_others_read_what_we_commit(tmp_path: Path) -> None:
    """umoci unpacks the committed image in our store, skopeo copies it: whiteouts, owners and layers are right."""
    ours = Ours(tmp_path / "store")
    try:
        ours.load(image_tar(), "files")
        box = ours.create(CHANGES)
        ours.start(box)
        ours.commit(box)
        layout = tmp_path / "store/oci"
        for copy in (f"oci:{layout}:made:1", "unpack"):
            if copy == "unpack":
                words = [require("umoci"), "unpack", "--image", f"{layout}:made:1", str(tmp_path / "bundle")]
                words += ["--rootless"] if os.geteuid() else []
            else:
                words = [require("skopeo"), "--insecure-policy", "copy", copy, f"docker-archive:{tmp_path}/made.tar"]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        found = tmp_path / "bundle/rootfs"
        assert (found / "data/moved").read_text() == "in the image" and not (found / "data/file").exists()
        assert sorted(os.listdir(found / "gone")) == ["c"] and (found / "dir").read_text() == "f\n"
        assert not list(found.rglob(".wh.*"))
        assert ours.engine.check() == []
    finally:
        ours.close()


SWAPPER = """cd /; while true; do
/bin/busybox mv -T kept away 2>/dev/null; /bin/busybox ln -s {outside} kept; /bin/busybox rm kept
/bin/busybox mv -T away kept; echo ready; done"""


def test_no_link_of_a_container_leads_out(tmp_path: Path) -> None:
    """CVE-2018-15664: also while the container swaps a directory for a link (the command runs as fast as it can)."""
    ours, outside = Ours(tmp_path / "store"), tmp_path / "outside"
    outside.mkdir(mode=0o777)
    (outside / "secret").write_text("the machine's")
    try:
        ours.load(image_tar(), "files")
        box = ours.create(f"/bin/busybox ln -s {outside} /out; echo ready; {SWAPPER.format(outside=outside)}")
        ours.start(box)
        with pytest.raises(NotFound, match="Could not find the file /out/secret in container"):
            ours.get(box, "/out/secret")
        with pytest.raises(NotFound):
            ours.put(box, "/out", TREE)
        with pytest.raises((UnpackError, InvalidInput, NotFound)):
            ours.put(box, "/", packed(("out/through", b"")), keep=True)
        end = time.monotonic() + 6
        seen = set()
        while time.monotonic() < end:
            for ask in (
                lambda: ours.put(box, "/", packed(("kept/w", b""))),
                lambda: ours.put(box, "/kept", packed(("w", b""))),
                lambda: seen.update(entry[-1] for entry in ours.get(box, "/kept/")[1]),
                lambda: seen.update(entry[-1] for entry in unpacked(ours.export(box))),
                lambda: ours.diff(box),
            ):
                with contextlib.suppress(NotFound, UnpackError, InvalidInput):  # it was a link just then
                    ask()
        assert os.listdir(outside) == ["secret"] and b"the machine's" not in seen
    finally:
        ours.close()


def test_a_container_that_ends_or_goes_while_its_files_are_read(tmp_path: Path) -> None:
    ours = Ours(tmp_path / "store")
    try:
        ours.load(image_tar(), "files")
        box = ours.create("/bin/busybox dd if=/dev/zero of=/big bs=1M count=20 2>/dev/null; echo ready; read x",
                          OpenStdin=True)  # fmt: skip
        ours.start(box)
        stat, pieces = ours.engine.files.get_archive(box, "/big")
        next(pieces)
        killer = threading.Thread(target=ours.remove, args=(box,))
        killer.start()
        assert sum(map(len, pieces)) > 19 << 20  # what is read stays, as an open file does
        killer.join(20)
        assert stat["size"] == 20 << 20 and not killer.is_alive()
        with pytest.raises(NotFound, match="No such container"):
            ours.diff(box)

        other = ours.create("true")
        _, pieces = ours.engine.files.get_archive(other, "/bin")
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]  # who asked went away: the container is free again at once
        ours.remove(other)
        assert ours.engine.check() == []
    finally:
        ours.close()


USER = """
import io, os, sys, tarfile
from pathlib import Path
sys.path.insert(0, "tests")
from engines import Ours, image_tar, packed, unpacked
ours = Ours(Path.home() / "store")
ours.load(image_tar(), "files")
box = ours.create("/bin/busybox chown 5:6 /one; /bin/busybox rm -r /gone; echo x > /vol/x; echo ready; read x",
                  OpenStdin=True, HostConfig={"Binds": ["named:/vol", "filled:/data"]})
ours.start(box)
for runs in (True, False):
    ours.put(box, "/vol", packed(("in/put", b"p", 0o644, 5)))
    print(ours.get(box, "/one")[1], ours.get(box, "/vol/")[1], ours.get(box, "/data/file")[1])
    print(sorted((c["Path"], c["Kind"]) for c in ours.diff(box)))
    ours.commit(box)
    print(ours.run("/bin/busybox stat -c '%n %u %g' one; /bin/busybox ls /gone 2>&1", Image="made:1")[1], end="")
    print([e[3:5] for e in unpacked(ours.export(box)) if e[0] == "one"])
    if runs:
        ours.engine.containers.stop(box, 0)
print(ours.engine.check())
ours.close()
print(ours.volume("prune", {"all": ["true"]})["VolumesDeleted"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("subuids", [True, False], ids=["subuids", "one id"])
def test_a_plain_users_files(subuids: bool) -> None:
    with plain_user(subuids) as user:
        told = user.python(USER).splitlines()
    owner, group = (5, 6) if subuids else (0, 0)
    file = ("in/put", b"0", "0o644", 5 if subuids else 0)
    for at in (0, 5):
        assert f"[('one', b'0', '0o644', {owner}, {group}, '', b'1')]" in told[at]
        assert f"('vol/{file[0]}', {file[1]!r}, '{file[2]}', {file[3]}, " in told[at]
        assert f"('file', b'0', '0o640', {7 if subuids else 0}, " in told[at] and "in the image" in told[at]
        assert told[at + 1].startswith("[('/gone', 2), ") and ("('/one', 0)" in told[at + 1]) == subuids
        assert told[at + 2] == f"one {owner} {group}" and "No such file" in told[at + 3]
        assert told[at + 4] == f"[({owner}, {group})]"
    assert told[10:] == ["[]", "['filled', 'named']"]


def test_import(tmp_path: Path) -> None:
    import gzip

    with_engine = Engine(tmp_path, "embedded")
    try:
        archive = gzip.compress(image_tar())
        done = list(with_engine.files.import_image(io.BytesIO(archive), "imp", "2", "said", ["CMD x"], "linux/arm64"))
        image = with_engine.images.inspect("imp:2")
        assert done == [{"status": image["Id"]}] and image["Architecture"] == "arm64"
        assert image["Config"]["Cmd"] == ["/bin/sh", "-c", "x"]
        assert with_engine.images.history("imp:2")[0]["Comment"] == "said"
        with pytest.raises(UnpackError):
            list(with_engine.files.import_image(io.BytesIO(b"no tar" * 200), "imp", "3"))
        unnamed = list(with_engine.files.import_image(io.BytesIO(image_tar())))[0]["status"]
        assert with_engine.images.inspect(unnamed)["RepoTags"] == []
        with_engine.images.remove("imp:2")
        with_engine.images.remove(unnamed)
        assert with_engine.check() == [] and not list((tmp_path / "oci/blobs/sha256").iterdir())
    finally:
        with_engine.close()


def test_headers_hold_what_ustar_has_no_room_for() -> None:
    """Read back by our reader and by Python's."""
    entries = [
        tar.Entry(b"n" * 300, tar.REGULAR, 0o644, 3_000_000, 2**32 - 2, 0, 10**9, b""),
        tar.Entry("이름\udcff".encode("utf-8", "surrogateescape"), tar.SYMLINK, 0o777, 0, 0, 0, -5, b"l" * 200),
        tar.Entry(b"big", tar.REGULAR, 0o600, 0, 0, 9 << 30, 1_600_000_000_123_456_789, b""),
        tar.Entry(b"x", tar.DIRECTORY, 0o1777, 1, 2, 0, -(10**9) - 1, b"", xattrs={"user.a": b"\0\xff=\n"}),
    ]
    for entry in entries:
        read = next(iter(tar.Reader(iter([pack.header(entry), b""]).__next__)))
        assert all(getattr(read, field) == getattr(entry, field) for field in tar.Entry.__slots__)
        size = 0 if entry.type != tar.REGULAR else entry.size
        with tarfile.open(
            fileobj=io.BytesIO(pack.header(entry) + bytes(1024)), mode="r:", errors="surrogateescape"
        ) as t:
            other = t.next()
        assert other and os.fsencode(other.name) == entry.name and other.size == size and other.uid == entry.uid


def test_a_tree_comes_out_of_its_archive_as_it_was(tmp_path: Path) -> None:
    """Packed and extracted again: kinds, owners, times to the nanosecond, holes, extended attributes, odd names."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old / "sub", new):
        folder.mkdir(parents=True)
    (old / os.fsdecode(b"n\xff\n")).write_bytes(b"x")
    (old / "sub/empty").touch(mode=0o604)
    os.link(old / "sub/empty", old / "again")
    os.symlink("/nowhere" * 40, old / "link")
    os.mkfifo(old / "fifo")
    with open(old / "sparse", "wb") as file:
        file.truncate(3 << 20)
    attribute = "user.note"
    with contextlib.suppress(OSError):
        os.setxattr(old / "sub", attribute, b"\0\xff")
    os.utime(old / "sub", ns=(1, 1_234_567_890_123_456_789))
    fds = [os.open(folder, os.O_PATH | os.O_DIRECTORY) for folder in (old, new)]
    pieces = pack.Packer(precise=True).tree(fds[0], b"", b"")
    owner = Owner(chown=os.geteuid() == 0, mknod=False)
    Extractor(fds[1], owner, lambda uid, gid: (uid, gid), False).run(tar.Reader(lambda: next(pieces, b"")))

    def described(folder: Path) -> list[Any]:
        out = []
        for path in sorted(folder.rglob("*")):
            status = path.lstat()
            link = os.readlink(path) if path.is_symlink() else {x: os.getxattr(path, x) for x in os.listxattr(path)}
            content = path.read_bytes() if path.is_file() else b""
            shape = status.st_mode, status.st_uid, status.st_mtime_ns, status.st_nlink, link, content
            out.append((path.relative_to(folder), *shape))
        return out

    assert described(new) == described(old) and len(described(old)) == 7
    for fd in fds:
        os.close(fd)


def test_settings_of_an_image_made_of_a_container() -> None:
    own = {"Env": ["A=1", "B=2"], "Cmd": ["c"], "Labels": {"x": "y"}, "User": "u"}
    assert merged({"Env": ["A=3"], "Entrypoint": ["e"]}, own)["Env"] == ["A=3", "B=2"]
    assert "Cmd" not in merged({"Entrypoint": ["e"]}, own)
    assert applied(own, ["ENV A=2 \\\n C=3"])["Env"] == ["A=2", "B=2", "C=3"]
    for wrong in ("ENV A", "ENV A=1 B", "EXPOSE x", 'LABEL "a', "CMD"):
        with pytest.raises(InvalidInput):
            applied({}, [wrong])
    assert json.dumps(own) == json.dumps({"Env": ["A=1", "B=2"], "Cmd": ["c"], "Labels": {"x": "y"}, "User": "u"})
