"""Unpacking: what honest layers become on disk, and every way a hostile one tries to get out of its folder.

Each archive goes through the real worker process, as whoever runs the tests. A canary outside must never change.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attacks import CONTAINED, REFUSED
from tars import BLOCK, CHAR, DIR, FIFO, HARDLINK, SYMLINK, archive, chunks, entry, pax

from minirt import linux
from minirt.errors import MinirtError, UnpackError, VerificationError
from minirt.image.descriptor import OCI_LAYER, Descriptor
from minirt.image.digest import Digest
from minirt.store.applier import Applier, Owner, clean
from minirt.store.inflate import inflate
from minirt.store.layers import Layers, work
from minirt.store.limits import Limits
from minirt.store.store import Store
from minirt.store.tar import Reader
from minirt.store.tree import Tree
from minirt.userns import IdMapping

ROOT = os.geteuid() == 0
OPAQUE = ("trusted" if ROOT else "user") + ".overlay.opaque"


class Lab:
    """A store with a canary beside it; `unpack` gives the layer's folder."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root / "store")
        self.layers: Layers = self.store.layers
        self.canary = root / "canary"
        self.canary.write_text("alive")
        self._before = self.canary.stat()

    def unpack(self, *entries: bytes, raw: bytes | None = None) -> Path:
        content = archive(*entries) if raw is None else raw
        diff_id = Digest.of(content)
        blob = gzip.compress(content, mtime=0)
        layer = Descriptor(OCI_LAYER + "+gzip", Digest.of(blob), len(blob))
        self.layers.fetch(layer, diff_id, lambda offset: chunks(blob[offset:], 1000))
        return self.layers.path(diff_id)

    def notes(self, path: Path) -> str:
        return str(self.layers.facts(Digest(f"sha256:{path.name}"))["notes"])

    def unharmed(self) -> None:
        now = self.canary.stat()
        assert self.canary.read_text() == "alive"
        assert (now.st_mode, now.st_uid, now.st_mtime_ns, now.st_nlink) == (
            self._before.st_mode, self._before.st_uid, self._before.st_mtime_ns, self._before.st_nlink,
        )  # fmt: skip


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    if made.store.ids is None:
        pytest.skip("user namespaces are refused here: layers stay packed")
    yield made
    made.unharmed()
    # Trees of mapped owners are removed by who may.
    made.store.remove_folder(made.layers.folder, made.store.ids)


def owner(lab: Lab, uid: int) -> int:
    """What a layer's `uid` is on the host."""
    for inside, outside, count in (lab.store.ids or IdMapping()).uids:
        if inside <= uid < inside + count:
            return outside + uid - inside
    return uid if ROOT else os.geteuid()


def test_every_kind_of_entry(lab: Lab) -> None:
    layer = lab.unpack(
        entry("./", DIR, mode=0o751, mtime=5),
        entry("d/", DIR, mode=0o1777, mtime=7, uid=3, gid=4),
        entry("d/f", content=b"hi", mode=0o4755, uid=1, gid=2, mtime=123),
        entry("d/h", HARDLINK, linkname="d/f"),
        entry("d/s", SYMLINK, linkname="/etc/passwd", mtime=9, uid=5),
        entry("p", FIFO, mode=0o600, mtime=8),
        entry("implied/by/x", content=b"x"),
    )
    d, f = layer / "d", (layer / "d" / "f").lstat()
    assert stat.S_IMODE(layer.parent.stat().st_mode) == 0o700  # set-id programs of an image are no other user's
    assert stat.S_IMODE(layer.stat().st_mode) == 0o751 and layer.stat().st_mtime == 5
    assert stat.S_IMODE(d.stat().st_mode) == 0o1777 and d.stat().st_mtime == 7
    assert (d / "f").read_bytes() == b"hi" and stat.S_IMODE(f.st_mode) == 0o4755 and f.st_mtime == 123
    assert (d / "h").lstat().st_ino == f.st_ino
    assert os.readlink(d / "s") == "/etc/passwd" and (d / "s").lstat().st_mtime == 9
    assert stat.S_ISFIFO((layer / "p").lstat().st_mode)
    assert stat.S_IMODE((layer / "implied").stat().st_mode) == 0o755
    single = lab.store.ids is not None and lab.store.ids.single
    if not single:
        assert (
            f.st_uid == owner(lab, 1) and d.stat().st_uid == owner(lab, 3) and (d / "s").lstat().st_uid == owner(lab, 5)
        )
    assert single == ("only one user id" in lab.notes(layer))


def test_names_are_bytes(lab: Lab) -> None:
    layer = lab.unpack(pax({"path": b"\xff\xfe\n"}) + entry("x", content=b"1"))
    assert os.listdir(os.fsencode(layer)) == [b"\xff\xfe\n"]


def test_later_entries_replace_earlier_ones_of_any_kind(lab: Lab) -> None:
    layer = lab.unpack(
        entry("a", DIR), entry("a/b", DIR), entry("a/b/c", content=b"1"), entry("a", SYMLINK, linkname="/tmp"),
        entry("s", SYMLINK, linkname="/"), entry("s", DIR), entry("s/in", content=b"2"),
        entry("f", content=b"3"), entry("f", DIR), entry("g", content=b"4"), entry("g", content=b"5"),
        entry("h", content=b"6"), entry("i", content=b"7"), entry("h", HARDLINK, linkname="i"),
        entry("twice/f", content=b"8"), entry("twice", content=b"9"), entry("twice", DIR), entry("twice/g"),
        entry("deep/er/x", content=b"8"), entry("deep", content=b"9"), entry("deep", DIR),
        entry("deep/er", content=b"10"),
    )  # fmt: skip
    assert os.readlink(layer / "a") == "/tmp"
    assert (layer / "s").is_dir() and not (layer / "s").is_symlink() and (layer / "s" / "in").read_bytes() == b"2"
    assert (layer / "f").is_dir() and (layer / "g").read_bytes() == b"5" and (layer / "h").read_bytes() == b"7"
    assert (layer / "deep" / "er").read_bytes() == b"10" and os.listdir(layer / "twice") == ["g"]


def whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def opaque(path: Path) -> bool:
    return OPAQUE in os.listxattr(path) and os.getxattr(path, OPAQUE) == b"y"


def test_whiteouts_take_overlay_form_and_hide_lower_layers_only(lab: Lab) -> None:
    layer = lab.unpack(
        entry("d", DIR), entry("d/.wh.gone", content=b""), entry("new/.wh.x"),
        entry("o", DIR), entry("o/.wh..wh..opq"), entry("o/kept", content=b"1"),
        entry("here", content=b"2"), entry(".wh.here"),
        entry(".wh.again"), entry("again", content=b"3"),
        entry(".wh.fresh"), entry("fresh", DIR), entry("fresh/f", content=b"4"),
        entry("first", DIR), entry("first/f", content=b"5"), entry(".wh.first"),
        entry(".wh..wh.plnk", DIR),
    )  # fmt: skip
    assert whiteout(layer / "d" / "gone") and whiteout(layer / "new" / "x")
    assert opaque(layer / "o") and (layer / "o" / "kept").read_bytes() == b"1"
    assert (layer / "here").read_bytes() == b"2" and (layer / "again").read_bytes() == b"3"
    assert opaque(layer / "fresh") and opaque(layer / "first") and (layer / "first" / "f").read_bytes() == b"5"
    assert not opaque(layer / "d") and "AUFS" in lab.notes(layer)


def test_a_root_level_opaque_marks_the_layer_itself(lab: Lab) -> None:
    assert opaque(lab.unpack(entry(".wh..wh..opq"), entry("x", content=b"1")))


def test_xattrs_are_kept_or_left_out_by_policy(lab: Lab) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    records = {
        "SCHILY.xattr.security.capability": capability,
        "SCHILY.xattr.trusted.overlay.opaque": b"y",
        "SCHILY.xattr.user.overlay.opaque": b"y",
        "SCHILY.xattr.user.mine": b"\0\xff",
    }
    layer = lab.unpack(pax(records) + entry("f", content=b"1"), pax(records) + entry("d", DIR))
    assert os.getxattr(layer / "f", "security.capability")[4:8] == capability[4:8]
    for path in (layer / "f", layer / "d"):
        assert not [key for key in os.listxattr(path) if "overlay" in key]
    assert "trusted.overlay.opaque" in lab.notes(layer)
    if "user.mine left out" not in lab.notes(layer):  # tmpfs has no user xattrs before Linux 6.6
        assert os.getxattr(layer / "f", "user.mine") == b"\0\xff"


def test_what_was_left_out_is_told_on_few_clear_lines(lab: Lab) -> None:
    """The names are the image's: thousands of them, and a terminal's control characters among them."""
    records = {f"SCHILY.xattr.trusted.\x1b[31m\n{number}": b"y" for number in range(3000)}
    layer = lab.unpack(pax(records) + entry("f"))
    notes = lab.layers.facts(Digest(f"sha256:{layer.name}"))["notes"]
    assert all(note.isprintable() for note in notes) and len(notes) <= 22
    assert sum(times for note, times in notes.items() if note.startswith(("xattr", "other"))) == 3000


def test_devices_are_made_by_root_and_left_out_by_others(lab: Lab) -> None:
    layer = lab.unpack(entry("n", CHAR, devmajor=1, devminor=3), entry("b", BLOCK, devmajor=7, devminor=0), entry("x"))
    if ROOT:
        assert (layer / "n").lstat().st_rdev == os.makedev(1, 3) and stat.S_ISBLK((layer / "b").lstat().st_mode)
    else:
        assert sorted(os.listdir(layer)) == ["x"] and "device nodes left out" in lab.notes(layer)


@pytest.mark.parametrize("name", REFUSED)
def test_an_escape_is_refused_and_leaves_nothing(lab: Lab, name: str) -> None:
    with pytest.raises(UnpackError) as caught:
        lab.unpack(entry("before", content=b"1"), *REFUSED[name](lab.canary.parent))
    assert "\n" not in str(caught.value)
    lab.unharmed()
    assert os.listdir(lab.layers.folder) == []
    assert [p for p in (lab.store.root / "ingest").iterdir()] == []


@pytest.mark.parametrize("name", CONTAINED)
def test_what_is_not_refused_stays_in_its_folder(lab: Lab, name: str) -> None:
    entries, expected = CONTAINED[name]
    layer = lab.unpack(*entries(lab.canary.parent))
    lab.unharmed()
    found = {str(path.relative_to(layer)) for path in layer.rglob("*")}
    assert found == expected or (not expected and all(path in f"{lab.canary}"[1:] for path in found)), found
    assert sorted(path.name for path in lab.canary.parent.iterdir()) == ["canary", "home", "store"]


PLAIN = Owner(chown=False, mknod=False, xattr="plain", closed=False)


@pytest.mark.parametrize("name", [*REFUSED, *CONTAINED])
def test_the_form_of_plain_whiteouts_holds_the_same(tmp_path: Path, name: str) -> None:
    """Where the kernel's overlay is none of ours, `.wh.` files stay: another path through the applier."""
    canary = tmp_path / "out" / "canary"
    canary.parent.mkdir()
    canary.write_text("alive")
    before = canary.stat(), canary.parent.stat()
    (tmp_path / "layer").mkdir()
    entries = REFUSED[name](canary.parent) if name in REFUSED else CONTAINED[name][0](canary.parent)
    pieces = iter(chunks(archive(*entries), 512))
    applier = Applier(tmp_path / "layer", PLAIN, Limits())
    with pytest.raises(UnpackError) if name in REFUSED else contextlib.nullcontext():
        applier.run(Reader(lambda: next(pieces, b"")))
    assert (canary.stat(), canary.parent.stat()) == before and canary.read_text() == "alive"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "layer", "out"]


def test_a_layer_of_other_content_than_its_diff_id_is_refused(lab: Lab) -> None:
    """The blob is what the manifest promised; what it unpacks to is not what the config promised."""
    blob = gzip.compress(archive(entry("x", content=b"1")), mtime=0)
    layer, promised = Descriptor(OCI_LAYER + "+gzip", Digest.of(blob), len(blob)), Digest.of(b"other content")
    with pytest.raises(VerificationError, match="DiffID"):
        lab.layers.fetch(layer, promised, lambda offset: [blob[offset:]])
    assert os.listdir(lab.layers.folder) == [] and not lab.layers.ready(promised)
    assert not lab.store.layout.has(layer.digest) and list((lab.store.root / "ingest").iterdir()) == []


def test_absolute_and_dotted_names_stay_inside(lab: Lab) -> None:
    layer = lab.unpack(entry("/etc/x", content=b"1"), entry("/../../y", content=b"2"), entry("a/./../z", content=b"3"))
    assert sorted(os.listdir(layer)) == ["etc", "y", "z"]


def test_a_hardlink_to_a_symlink_links_the_symlink(lab: Lab) -> None:
    layer = lab.unpack(
        entry("l", SYMLINK, linkname=str(lab.canary)), entry("h", HARDLINK, linkname="l", mode=0o777, mtime=1, uid=77)
    )
    assert (layer / "h").is_symlink() and (layer / "h").lstat().st_ino == (layer / "l").lstat().st_ino


@pytest.mark.parametrize(
    ("limits", "entries", "reason"),
    [
        ({"entries": 10}, [entry(f"f{n}") for n in range(20)], "more than 10 entries"),
        ({"bytes_out": 5000}, [entry("f", content=bytes(9000))], "limit of 5000 bytes"),
        (
            {"file_size": 1 << 20},
            [pax({"GNU.sparse.map": b"0,1", "GNU.sparse.size": b"1099511627776"}) + entry("f", content=b"x")],
            "larger than the limit",
        ),
    ],
)
def test_limits_stop_bombs(tmp_path: Path, limits: dict[str, int], entries: list[bytes], reason: str) -> None:
    bound = Limits(**limits)
    pieces = iter(chunks(archive(*entries), 512))
    plain = inflate(lambda: next(pieces, b""), bound.bytes_out, bound.ratio)
    (tmp_path / "layer").mkdir()
    with pytest.raises(UnpackError, match=reason):
        Applier(tmp_path / "layer", Owner(chown=False, mknod=False, xattr="user"), bound).run(Reader(plain))


@pytest.mark.parametrize(
    ("text", "entries", "key"),
    [
        ("entries = 10", lambda: [entry(f"f{n}") for n in range(20)], "entries"),
        ("depth = 3", lambda: [entry("a/b/c/d/e")], "depth"),
        ('bytes-out = "5kB"', lambda: [entry("f", content=bytes(9000))], "bytes-out"),
        ("file-size = 100", lambda: [entry("f", content=bytes(101))], "file-size"),
        ("seconds = 1", lambda: [entry("d", DIR) * 200_000], "seconds"),
        ('memory = "40MiB"', lambda: _long_folders(9_000), "memory"),
    ],
)
def test_limits_are_the_users_and_say_how_to_raise_them(
    lab: Lab, text: str, entries: Callable[[], list[bytes]], key: str
) -> None:
    """By the worker, in a process of its own. What was too much before goes through once its limit is raised."""
    config = Path(os.environ["HOME"], ".config", "minirt", "config.toml")
    config.parent.mkdir(parents=True)
    config.write_text(f"[limits]\n{text}\n")
    content = archive(*entries())
    with pytest.raises(UnpackError, match=rf"if you trust it, raise `{key}` under \[limits\] in .*config.toml"):
        lab.unpack(raw=content)
    assert os.listdir(lab.layers.folder) == [] and list((lab.store.root / "ingest").iterdir()) == []
    if key not in ("seconds", "memory"):
        config.unlink()
        lab.unpack(raw=content)


def _long_folders(count: int) -> list[bytes]:
    """Folders whose names are as long as any may be: what is remembered of each is 4 kB."""
    above = "/".join(["d" * 250] * 15)
    raw = pax({"path": f"{above}/00000000".encode()}) + entry("x", DIR)
    return [raw.replace(b"/00000000\n", b"/%08d\n" % number) for number in range(count)]


BOMBS: dict[str, Callable[[], bytes]] = {
    "records of a megabyte": lambda: archive(*([pax({"comment": b"x" * 1_040_000}) + entry("f")] * 50)),
    "many records": lambda: archive(pax({f"k{n}": b"v" for n in range(30_000)}) + entry("f")),
    "names of a megabyte": lambda: archive(*([entry("././@LongLink", b"L", content=b"d/" * 500_000)] * 50), entry("f")),
    "a sparse map of many regions": lambda: archive(
        pax({"GNU.sparse.map": b",".join(b"%d,1" % (2 * n) for n in range(60_000)), "GNU.sparse.size": b"200000"})
        + entry("f", content=bytes(60_000))
    ),
    "a terabyte of nothing": lambda: archive(
        pax({"GNU.sparse.map": b"0,0", "GNU.sparse.size": b"60000000000"}) + entry("f")
    ),
    "zeros": lambda: archive(entry("f", content=bytes(100 << 20))),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_unpacked_or_refused_in_bounded_memory(tmp_path: Path, name: str) -> None:
    """The most that the unpack worker ever held; what this Python takes alone is about 15 MB."""
    (tmp_path / "raw").write_bytes(gzip.compress(BOMBS[name](), 1, mtime=0))
    code = f"""
import gzip, hashlib, resource, sys
from pathlib import Path
from minirt.errors import UnpackError
from minirt.image.descriptor import OCI_LAYER, Descriptor
from minirt.image.digest import Digest
from minirt.store.store import Store
blob = Path({str(tmp_path / "raw")!r}).read_bytes()
plain = hashlib.sha256()
with gzip.open({str(tmp_path / "raw")!r}) as file:
    while piece := file.read(1 << 20):
        plain.update(piece)
store = Store(Path({str(tmp_path / "store")!r}))
if store.ids is None:
    sys.exit()
try:
    layer = Descriptor(OCI_LAYER + "+gzip", Digest.of(blob), len(blob))
    store.layers.fetch(layer, Digest("sha256:" + plain.hexdigest()), lambda offset: [blob[offset:]])
except UnpackError as error:
    print(error, file=sys.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
store.remove_folder(store.layers.folder, store.ids)
"""
    path = os.pathsep.join(word for word in sys.path if word)
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert not done.stdout or int(done.stdout) < 64 << 10, done.stdout + done.stderr


def test_a_whiteout_touches_no_other_layer_image_or_container(lab: Lab) -> None:
    base = lab.unpack(entry("etc/passwd", content=b"all"), entry("etc/group", content=b"users"), entry("d/x"))
    upper = lab.store.containers / "c" / "upper" / "etc"
    upper.mkdir(parents=True)
    (upper / "passwd").write_text("mine")

    def look() -> list[tuple[str, int, int, int]]:
        paths = [*base.rglob("*"), base, *lab.store.containers.rglob("*")]
        return [(str(path), (s := path.lstat()).st_mode, s.st_mtime_ns, s.st_ino) for path in sorted(paths)]

    before = look()
    top = lab.unpack(entry("etc/.wh.passwd"), entry("d/.wh..wh..opq"), entry(".wh.nothing"))
    assert look() == before
    assert merged(lab, base) == {"etc/passwd", "etc/group", "d/x"}
    assert merged(lab, base, top) == {"etc/group"}


def test_a_folder_masks_the_link_of_a_lower_layer(lab: Lab) -> None:
    """Were the link followed where layers meet, the file would be written outside."""
    outside = str(lab.canary.parent)
    lower = lab.unpack(entry("etc", DIR), entry("l", SYMLINK, linkname=outside), entry("m", SYMLINK, linkname="etc"))
    upper = lab.unpack(entry("l", DIR), entry("l/canary", content=b"dead"), entry("m/canary", content=b"dead"))
    assert merged(lab, lower, upper) == {"l/canary", "m/canary"}
    over = lab.unpack(entry("l", SYMLINK, linkname=outside))
    assert merged(lab, lower, upper, over) == {"m/canary", "l"}
    gone = lab.unpack(entry(".wh.l"), entry(".wh.m"))
    assert merged(lab, lower, gone) == set()


def merged(lab: Lab, *layers: Path) -> set[str]:
    """The files and links of the layers laid over each other, base first, as a container without overlayfs has them."""
    target = lab.store.root / ".trial-merged"
    target.mkdir()
    lowers = [str(layer) for layer in reversed(layers)]
    work({"action": "copy", "lowers": lowers, "target": str(target)}, lab.store.ids)
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_symlink() or not path.is_dir()}
    lab.store.remove_folder(target, lab.store.ids)
    return found


@pytest.mark.parametrize("openat2", [True, False])
def test_a_parent_that_another_process_swaps_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, openat2: bool
) -> None:
    """Nobody else may write to a half-made layer; but if somebody does, a link in its path is still not followed."""
    if not openat2:
        monkeypatch.setattr(linux, "openat2", _no_openat2)
    outside, layer = tmp_path / "outside", tmp_path / "layer"
    outside.mkdir()
    (layer / "a").mkdir(parents=True)
    (layer / "l").symlink_to(outside)
    swap = "import ctypes\nlibc = ctypes.CDLL(None)\nwhile True: libc.renameat2(-100, b'a', -100, b'l', 2)"  # exchange
    swapping = subprocess.Popen([sys.executable, "-c", swap], cwd=layer)
    tried = refused = 0
    entries = archive(entry("a/f"), entry("a/d", DIR))  # few: an open folder stays the one it was
    try:
        end = time.monotonic() + 20
        while time.monotonic() < end and (refused < 200 or tried < 1000):
            tried += 1
            pieces = iter([entries])
            try:
                Applier(layer, Owner(False, False, "plain", False), Limits()).run(Reader(lambda: next(pieces, b"")))  # noqa: B023
            except (UnpackError, OSError):
                refused += 1
            assert os.listdir(outside) == []
    finally:
        swapping.kill()
        swapping.wait()
    assert os.listdir(outside) == [] and refused >= 200


def _no_openat2(*arguments: object) -> int:
    raise OSError(errno.ENOSYS, "no")


def test_deep_nesting_is_bounded(lab: Lab) -> None:
    deep = "/".join("d" for _ in range(250))
    layer = lab.unpack(entry(deep, DIR), entry("d", content=b"flat again"))
    assert (layer / "d").read_bytes() == b"flat again"
    with pytest.raises(UnpackError, match="deeper than 256"):
        lab.unpack(entry(deep + "/d" * 10, DIR))


def test_removal_has_no_limit_of_depth(tmp_path: Path) -> None:
    from minirt.store.tree import remove, walk

    fd = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("t", dir_fd=fd)
    for _ in range(3000):  # deeper than PATH_MAX, as a container can make it
        below = os.open("t", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        os.mkdir("t", dir_fd=fd)
        os.close(os.open("f", os.O_CREAT, dir_fd=fd))
        os.chmod(fd, 0o555)
    os.close(fd)
    assert sum(1 for _ in walk(tmp_path)) > 500
    remove(str(tmp_path / "t"))
    assert not (tmp_path / "t").exists()


def test_sparse_files_have_holes(lab: Lab) -> None:
    layer = lab.unpack(
        pax({"GNU.sparse.map": b"1000000,3,2000000,2", "GNU.sparse.size": b"50000000"}) + entry("f", content=b"abcde")
    )
    status = (layer / "f").stat()
    assert status.st_size == 50_000_000 and status.st_blocks * 512 < 1_000_000
    with open(layer / "f", "rb") as file:
        file.seek(999_999)
        assert file.read(5) == b"\0abc\0"


def test_without_openat2_the_walk_holds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "openat2", _no_openat2)
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "l").symlink_to("/tmp")
    tree = Tree(tmp_path / "in")
    assert os.fstat(tree.directory(b"a/b/c", create=True)).st_ino == (tmp_path / "in" / "a" / "b" / "c").stat().st_ino
    for path in (b"l", b"l/x", b"a/../l"):
        with pytest.raises(OSError, match="Not a directory|Too many levels"):
            tree.directory(path, create=True)
    tree.close()


@pytest.mark.parametrize(
    ("name", "path"), [(b"./a//b/", b"a/b"), (b"/", b""), (b".", b""), (b"//x", b"x"), (b"/../x", b"x"), (b"a/..", b"")]
)
def test_names_are_cleaned_lexically(name: bytes, path: bytes) -> None:
    assert clean(name) == path


@pytest.mark.parametrize("name", [b"..", b"../x", b"a/../../x", b"", b"a" * 5000])
def test_names_that_leave_are_refused(name: bytes) -> None:
    with pytest.raises(MinirtError):
        clean(name)
