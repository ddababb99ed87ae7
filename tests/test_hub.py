"""The hub's images: made here, the same everywhere (but toolbox), kept once, and they run."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import require

from minirt.errors import StoreError, Unsupported
from minirt.hub import catalog, elf, greeter, hello, layout, toolbox
from minirt.hub.layer import MTIME, Tree
from minirt.hub.layout import Layout
from minirt.hub.names import REPOSITORIES
from minirt.image.config import ImageConfig
from minirt.image.descriptor import Descriptor
from minirt.image.digest import Digest
from minirt.image.manifest import Index, Manifest, parse
from minirt.image.platform import Platform

# When one of these changes, notebooks and users' caches change: raise layout.RECIPE with it.
HELLO = "sha256:1c00612c2e42c4ca83a68f104f5915be38a3dbcb347a211ed6a23c1b06028af2"
GREETER_LAYERS = {
    "1.0": "sha256:0e556a52dd97ace934fe904c7d9f1e6c229897c3835b40a14894403d3af526da",
    "2.0": "sha256:6a45755615f7248cff0ed3b46ac704f8f98293eb8b9c796eb0995f935a5c3820",
}
NATIVE = Platform.host().architecture
QEMU = {"amd64": "qemu-x86_64-static", "arm64": "qemu-aarch64-static"}
linux = pytest.mark.skipif(sys.platform != "linux", reason="images run on Linux only")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return Layout(tmp_path_factory.mktemp("hub"))


def opened(kept: Layout, descriptor: Descriptor) -> tuple[Manifest, ImageConfig]:
    manifest = parse(kept.path(descriptor.digest).read_bytes(), descriptor.media_type)
    assert isinstance(manifest, Manifest)
    return manifest, ImageConfig.parse(kept.path(manifest.config.digest).read_bytes())


def unpack(archives: list[bytes], folder: Path) -> Path:
    for archive in archives:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extraction_filter = staticmethod(lambda member, path: member)  # type: ignore[method-assign]
            tar.extractall(folder)
    return folder


def chroot(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run inside the tree, as root or as root of a user namespace; skips where neither may be had."""
    enter = ["chroot"] if os.getuid() == 0 else ["unshare", "--map-root-user", "chroot"]
    if subprocess.run([*enter, "/", "true"], capture_output=True).returncode:
        if os.environ.get("CI") == "true":
            pytest.fail("neither root nor a user namespace to run the image in")
        pytest.skip("neither root nor a user namespace to run the image in")
    return subprocess.run(
        [*enter, str(root), *command],
        env={"PATH": toolbox.PATH},
        text=True,
        capture_output=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


# --- hello-world ------------------------------------------------------------------------------------------------------


def test_hello_world_has_the_same_digest_on_every_machine(kept: Layout) -> None:
    assert catalog.image(kept, "library/hello-world", "latest").digest == HELLO


def test_hello_world_is_an_index_of_whole_images(kept: Layout) -> None:
    found = catalog.image(kept, "library/hello-world", "latest")
    index = parse(kept.path(found.digest).read_bytes(), found.media_type)
    assert isinstance(index, Index)
    assert [str(entry.platform) for entry in index.manifests] == ["linux/amd64", "linux/arm64"]
    for entry in index.manifests:
        manifest, config = opened(kept, entry)
        content = kept.path(manifest.layers[0].digest).read_bytes()
        archive = gzip.decompress(content)
        assert (config.platform, config.command()) == (entry.platform, ["/hello"])
        assert config.diff_ids == (Digest.of(archive),) and len(content) == manifest.layers[0].size
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            assert [(m.name, m.mode, m.uid, m.mtime) for m in tar] == [("hello", 0o755, 0, MTIME)]


@linux
@pytest.mark.parametrize("architecture", hello.ARCHITECTURES)
def test_hello_runs(architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "hello"
    path.write_bytes(elf.program(architecture, hello.MESSAGE.encode()))
    path.chmod(0o755)
    command = [str(path)] if architecture == NATIVE else [require(QEMU[architecture]), str(path)]
    done = subprocess.run(command, capture_output=True, env={})
    assert (done.stdout.decode(), done.stderr, done.returncode) == (hello.MESSAGE, b"", 0)
    for box in ("client", "daemon", "local cache", "registry", "container", "file snapshot"):
        assert box in hello.MESSAGE


@linux
@settings(max_examples=12, deadline=None)
@given(st.binary(max_size=0xFFFF))
def test_any_message_is_printed_as_it_is(message: bytes) -> None:
    if NATIVE not in hello.ARCHITECTURES:
        pytest.skip(f"no assembler for {NATIVE}")
    binary = elf.program(NATIVE, message)
    assert elf.interpreter(binary) is None
    file = os.memfd_create("program", 0)
    try:
        os.write(file, binary)
        done = subprocess.run([f"/proc/self/fd/{file}"], pass_fds=[file], capture_output=True, env={})
    finally:
        os.close(file)
    assert (done.returncode, done.stdout) == (0, message)


@pytest.mark.parametrize("architecture", hello.ARCHITECTURES)
def test_readelf_agrees(architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "hello"
    path.write_bytes(elf.program(architecture, b"x" * 100))
    done = subprocess.run([require("readelf"), "-hlW", str(path)], capture_output=True, text=True, env={})
    assert not done.stderr and "Warning" not in done.stdout
    assert re.search({"amd64": r"Machine:.*X86-64", "arm64": r"Machine:.*AArch64"}[architecture], done.stdout)
    size = path.stat().st_size
    assert re.search(rf"LOAD +0x0+ 0x0+400000 0x0+400000 0x0*{size:x} 0x0*{size:x} R E ", done.stdout)
    assert re.search(r"GNU_STACK.* RW ", done.stdout), "the stack must not be executable"


# --- how layers are written -------------------------------------------------------------------------------------------

names = st.from_regex(r"[a-zé][a-zé._-]{0,40}(/[a-zé][a-zé._-]{0,40}){0,3}", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, st.binary(max_size=2000), max_size=6))
def test_tarfile_reads_what_a_tree_writes(files: dict[str, bytes]) -> None:
    tree = Tree()
    folders = {"/".join(path.split("/")[:n]) for path in files for n in range(1, path.count("/") + 1)}
    files = {path: content for path, content in files.items() if path not in folders}
    for path, content in files.items():
        tree.file(path, content, 0o640)
    layer = tree.layer()
    archive = gzip.decompress(layer.content)
    assert layer.diff_id == Digest.of(archive)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
        assert {m.name for m in tar if m.isdir()} == folders
        assert [m.mode for m in tar if m.isfile()] == [0o640] * len(files)
        assert all(not tar.getmember(os.path.dirname(path)).isfile() for path in files if "/" in path)
    assert found == files


def test_a_layer_over_one_gzip_block_and_every_kind_of_entry() -> None:
    tree = Tree()
    tree.file("b", bytes(range(256)) * 1000)
    tree.hardlink("a", "b")
    tree.symlink("c", "somewhere/else")
    tree.folder("tmp", 0o1777, 1000)
    deep = "/".join(["d" * 30] * 7)
    tree.file(deep, b"deep")
    for content in (tree.layer().content, tree.layer(compress=True).content):
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            entries = {m.name: m for m in tar}
        assert list(entries)[-1] == "a" and entries["a"].islnk() and entries["a"].linkname == "b"
        assert entries["b"].size == 256000 and entries["c"].linkname == "somewhere/else" and entries[deep].isfile()
        assert (entries["tmp"].mode, entries["tmp"].uid, entries["tmp"].gid) == (0o1777, 1000, 1000)
    tree.file("e" * 101, b"")
    with pytest.raises(Unsupported, match="too long"):
        tree.tar()


# --- toolbox ----------------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("way", ["busybox", "machine"])
def test_toolbox_runs(way: str, tmp_path: Path) -> None:
    if way == "busybox":
        require("busybox")
        busybox = toolbox.static_busybox()
        if busybox is None:
            pytest.skip("this machine's busybox is not static")
        tree, source = toolbox.from_busybox(busybox)
        assert re.fullmatch(r"busybox \d\S+, static", source)
    else:
        tree, source = toolbox.from_machine()
        assert re.match(r"\d+ programs and \d+ libraries of ", source)
    root = unpack([tree.tar()], tmp_path / "root")
    script = """
        echo a b | tr a c | sed s/b/d/; id -u app; . /etc/os-release; echo $ID; cd /tmp && touch x && ls; ls / | wc -l
        mkdir y; cp x y/z; find y -type f; printf '%s\\n' 2 1 | sort | head -n 1; stat -c %a /tmp; date -u -d @0 +%Y
        ls -ld /home/app | grep -c 'app .*app' || true; true && ! false && env | grep -c PATH
        /bin/cat /etc/group | grep root
    """
    done = chroot(root, "sh", "-e", "-c", script)
    assert not done.stderr
    owner = "1" if os.getuid() == 0 else "0"  # only root could unpack another's folder
    lines = [
        "c d",
        "1000",
        "toolbox",
        "x",
        str(len(os.listdir(root))),
        "y/z",
        "1",
        "1777",
        "1970",
        owner,
        "1",
        "root:x:0:",
    ]
    assert done.stdout.splitlines() == lines


@linux
def test_toolbox_from_the_machine_has_all_that_its_programs_need(tmp_path: Path) -> None:
    """Every program starts: its loader finds each library inside the tree alone."""
    tree, _ = toolbox.from_machine()
    root = unpack([tree.tar()], tmp_path / "root")
    script = 'for tool in $(find /usr/bin /usr/sbin -type f); do echo "$tool"; "$tool" --version; done'
    done = chroot(root, "sh", "-c", script)
    assert done.stdout.count("\n/usr/bin/") > 40
    for complaint in ("shared librar", "not found", "relocat"):
        assert complaint not in done.stderr + done.stdout


@linux
def test_a_library_from_an_unusual_place_is_found_inside(tmp_path: Path) -> None:
    """Outside, ld.so.cache knows it; inside there is no cache, so it needs a link beside the C library."""
    tree = toolbox.Tree()
    usual = sorted(Path("/usr/lib").glob("*/libc.so.6")) or sorted(Path("/lib").glob("**/libc.so.*"))
    odd = tmp_path / "libodd.so.1"
    odd.write_bytes(b"odd")
    if len(str(odd)) > 100 or not usual:
        pytest.skip("this machine keeps its C library or its temporary files in an uncommon place")
    toolbox._add_libraries(tree, {str(usual[0]), str(odd)})
    root = unpack([tree.tar()], tmp_path / "root")
    link = root / str(usual[0].parent).lstrip("/") / "libodd.so.1"
    assert os.readlink(link) == str(odd) and (root / str(odd).lstrip("/")).read_bytes() == b"odd"


def test_no_tools_no_toolbox(monkeypatch: pytest.MonkeyPatch, kept: Layout, tmp_path: Path) -> None:
    monkeypatch.setattr(toolbox, "PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="use hello-world"):
        catalog.image(Layout(tmp_path / "hub"), "library/toolbox", "latest")
    assert not (tmp_path / "hub" / "index.json").exists()


@linux
def test_interpreter_is_what_readelf_says() -> None:
    for program in (sys.executable, shutil.which("sh") or "/bin/sh"):
        done = subprocess.run([require("readelf"), "-lW", program], capture_output=True, text=True, env={})
        said = re.search(r"program interpreter: ([^\]]+)", done.stdout)
        assert elf.interpreter(Path(program).read_bytes()) == (said[1] if said else None)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.lists(st.tuples(st.integers(0, 175), st.integers(0, 255)), max_size=8))
def test_a_damaged_program_is_refused_or_read_never_worse(noise: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(elf.program("amd64", b"hello"))
    for at, value in changes:
        damaged[at] = value
    for binary in (b"\x7fELF" + noise, noise, bytes(damaged), bytes(damaged[: len(noise)])):
        with contextlib.suppress(ValueError):
            elf.interpreter(binary)


# --- greeter ----------------------------------------------------------------------------------------------------------


@linux
def test_the_greeters_share_a_layer_and_greet(kept: Layout, tmp_path: Path) -> None:
    base, _ = opened(kept, catalog.image(kept, "library/toolbox", "latest"))
    for tag, digest in GREETER_LAYERS.items():
        manifest, config = opened(kept, catalog.image(kept, "library/greeter", tag))
        assert [layer.digest for layer in manifest.layers] == [base.layers[0].digest, digest]
        archives = [gzip.decompress(kept.path(layer.digest).read_bytes()) for layer in manifest.layers]
        assert config.diff_ids == tuple(Digest.of(archive) for archive in archives)
        assert len([step for step in config.history if not step.get("empty_layer")]) == 2
        root = unpack(archives, tmp_path / tag)
        done = chroot(root, *config.command())
        assert (done.stdout, done.stderr) == (f"greeter {tag} with greetlib {tag}.0: Hello, world\n", "")
        assert chroot(root, "greeter", "Ada Lovelace").stdout.endswith(": Hello, Ada Lovelace\n")
    # The conflict is real: the command of 1.0 over the library of 2.0 breaks.
    shutil.copy(tmp_path / "2.0/usr/lib/greetlib/greet.sh", tmp_path / "1.0/usr/lib/greetlib/greet.sh")
    done = chroot(tmp_path / "1.0", "greeter")
    assert done.returncode == 127 and "greet: not found" in done.stderr


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input", "--no-index"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_pip_refuses_both_and_takes_either(tmp_path: Path) -> None:
    wheels = greeter.wheels(tmp_path / "wheels")
    assert sorted(path.name.split("-")[0] for path in wheels) == ["greeter_one", "greeter_two", "greetlib", "greetlib"]
    links = ["--find-links", str(tmp_path / "wheels")]
    done = pip("download", *links, "-d", str(tmp_path / "out"), "greeter_one", "greeter_two")
    assert done.returncode == 1
    assert "ResolutionImpossible" in done.stderr and "conflicting dependencies" in done.stderr
    site = tmp_path / "site"
    done = pip("install", *links, "--target", str(site), "greeter_two")
    assert done.returncode == 0, done.stderr
    code = f"import sys; sys.path[:0] = [{str(site)!r}]; import greeter_two; greeter_two.main()"
    ran = subprocess.run([sys.executable, "-c", code, "Ada"], capture_output=True, text=True)
    assert ran.stdout == "greeter 2.0 with greetlib 2.0.0: Hello, Ada\n"


# --- the folder -------------------------------------------------------------------------------------------------------

MAKE_ALL = """
import sys; from pathlib import Path
from minirt.hub import catalog; from minirt.hub.layout import Layout; from minirt.hub.names import REPOSITORIES
kept = Layout(Path(sys.argv[1]))
for name, tags in REPOSITORIES.items():
    for tag in tags: print(name, tag, catalog.image(kept, name, tag).digest)
"""


def maker(folder: Path) -> subprocess.Popen[str]:
    path = str(Path(layout.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", MAKE_ALL, str(folder)], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": path}
    )


def check_whole(folder: Path) -> None:
    named = [
        e["annotations"]["org.opencontainers.image.ref.name"]
        for e in json.loads((folder / "index.json").read_bytes())["manifests"]
    ]
    assert sorted(named) == sorted(f"{name}:{tag}" for name, tags in REPOSITORIES.items() for tag in tags)
    for path in (folder / "blobs/sha256").iterdir():
        assert Digest.of(path.read_bytes()).hex == path.name


@linux
def test_many_processes_make_each_image_once(tmp_path: Path) -> None:
    makers = [maker(tmp_path / "hub") for _ in range(4)]
    said = {process.communicate(timeout=60)[0] for process in makers}
    assert len(said) == 1 and said.pop().count("\n") == 4 and not any(process.returncode for process in makers)
    check_whole(tmp_path / "hub")
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == ["blobs", "index.json", "lock", "oci-layout"]


@linux
def test_one_makes_while_others_wait(tmp_path: Path) -> None:
    """Each `Layout` takes the lock file for itself, as each process does. No name is lost from the index."""
    made: list[str] = []

    def ask(number: int) -> None:
        name = f"image:{number % 2}"

        def make(kept: Layout) -> Descriptor:
            made.append(name)
            time.sleep(0.15)
            return kept.add(name.encode(), "text/plain")

        assert Layout(tmp_path).image(name, make).digest == Digest.of(name.encode())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == ["image:0", "image:1"]
    assert len(json.loads((tmp_path / "index.json").read_bytes())["manifests"]) == 2


@linux
def test_a_killed_maker_leaves_nothing_that_hurts(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    for moment in range(4):
        process = maker(folder)
        deadline = time.monotonic() + 30
        while len(list(folder.glob("blobs/*/*"))) <= moment * 3 and process.poll() is None:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = maker(folder)
    assert process.communicate(timeout=60)[0].count("\n") == 4
    check_whole(folder)


def cut(folder: Path) -> None:
    (folder / "index.json").write_bytes(b'{"manifests": [{')


def sweep(folder: Path) -> None:
    max((folder / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size).unlink()


def shorten(folder: Path) -> None:
    path = max((folder / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(path, 100)


def age(folder: Path) -> None:
    """What an older minirt may have left: whole, under the same name, but not what is made today."""
    wrong = json.loads((folder / "index.json").read_text())
    older = json.loads((folder / "blobs/sha256" / wrong["manifests"][0]["digest"][7:]).read_bytes())["manifests"][0]
    wrong["manifests"][0] |= {key: older[key] for key in ("mediaType", "digest", "size")}
    wrong["manifests"][0]["annotations"]["io.minirt.hub.recipe"] = "0"
    (folder / "index.json").write_text(json.dumps(wrong))


@pytest.mark.parametrize("damage", [cut, sweep, shorten, age])
def test_what_is_damaged_or_old_is_made_anew(damage: Callable[[Path], None], tmp_path: Path) -> None:
    assert catalog.image(Layout(tmp_path), "library/hello-world", "latest").digest == HELLO
    damage(tmp_path)
    assert catalog.image(Layout(tmp_path), "library/hello-world", "latest").digest == HELLO
    assert len(json.loads((tmp_path / "index.json").read_bytes())["manifests"]) == 1
    for path in (tmp_path / "blobs/sha256").iterdir():
        assert Digest.of(path.read_bytes()).hex == path.name


def test_what_is_kept_is_not_made_again(tmp_path: Path) -> None:
    first = catalog.image(Layout(tmp_path), "library/hello-world", "latest")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert Layout(tmp_path).image("library/hello-world:latest", lambda _: pytest.fail("made again")) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=": the hub cannot write .*file"):
        catalog.image(Layout(tmp_path / "file"), "library/hello-world", "latest")


@linux
def test_skopeo_reads_the_folder_as_it_lies(kept: Layout, tmp_path: Path) -> None:
    skopeo = require("skopeo")
    for name, tags in REPOSITORIES.items():
        for tag in tags:
            digest = catalog.image(kept, name, tag).digest
            source = f"oci:{kept.folder}:{name}:{tag}"
            done = subprocess.run([skopeo, "inspect", "--raw", source], capture_output=True)
            assert Digest.of(done.stdout) == digest, done.stderr
            copy = [skopeo, "--insecure-policy", "copy", "-q", "--all", source, f"dir:{tmp_path / tag}"]
            done = subprocess.run(copy, capture_output=True)
            assert done.returncode == 0, done.stderr


def test_names_are_safe_to_ask_on_the_run_path() -> None:
    """The engine asks for REPOSITORIES on every failed pull: that must not load the server."""
    slow = ("http", "socket", "subprocess", "minirt.hub.")
    code = f"import sys, minirt.hub.names; print([m for m in sys.modules if m.startswith({slow})])"
    path = str(Path(layout.__file__).parents[2])
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert done.stdout == "['minirt.hub.names']\n", done.stderr
