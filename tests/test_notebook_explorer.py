"""The image explorer and the layer stack, without a browser: real images and containers, and images made to deceive."""

from __future__ import annotations

import hashlib
import html.parser
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import learners
import pytest
from peers import require
from tars import DIR, FIFO, HARDLINK, SYMLINK, archive, entry
from users import plain_user

import minirt
from minirt.errors import InvalidInput, NotFound
from minirt.image.config import ImageConfig
from minirt.image.manifest import encode
from minirt.image.platform import Platform
from minirt.notebook import Chapter, ImageExplorer, LayerStack, Place, kinds, snapshot, stack
from minirt.notebook.catalogue import Strings, languages
from minirt.notebook.explorer import STEPS
from minirt.notebook.markup import VIEW
from minirt.notebook.overlay import Overlay, split
from minirt.notebook.snapshot import Snapshot

SCRIPT = "<script>alert(1)</script>"
HOSTILE = f"{SCRIPT}<img src=x onerror=alert(1)>&\"'"
# Elements and attributes that the course's own markup has; whatever else appears came from outside.
OURS = {"div", "p", "table", "caption", "tr", "th", "td", "code", "details", "summary", "pre", "strong", "em", "br"}
OURS |= {"svg", "rect", "text"}


@pytest.fixture
def chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chapter]:
    with learners.a_chapter(tmp_path, monkeypatch) as chapter:
        yield chapter


def press(shown: ImageExplorer, step: str) -> str:
    shown.step[step].click()
    shown.wait(60)
    return str(shown.panel[step].value)


def everything(shown: ImageExplorer) -> str:
    return "".join(press(shown, step) for step in STEPS) + str(shown._above.value)


def look(shown: LayerStack) -> str:
    shown.again.click()
    shown.wait(60)
    return str(shown.drawing.value + shown.tables.value)


def idle(shown: ImageExplorer) -> bool:
    return not any(button.disabled for button in (*shown.step.values(), shown.pull)) and shown.stop.disabled


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


class _Markup(html.parser.HTMLParser):
    """Collects what a browser would see as elements and attributes, and the text between."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.said = ""
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.said += data


def rows(markup: str) -> list[list[str]]:
    """The cells of all table rows, as text."""
    found = re.findall(r"<tr>(.*?)</tr>", markup, re.S)
    return [[_Markup(cell).said for cell in re.findall(r"<td>(.*?)</td>", row, re.S)] for row in found]


def load(chapter: Chapter, name: str, layers: list[bytes], **settings: Any) -> None:
    """Have an image of these tar layers in the cache, as `docker load` brings it."""
    config = {
        "architecture": Platform.host().architecture, "os": "linux", "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]},
        "history": [{"created_by": settings.get("Made", f"step {number}")} for number, _ in enumerate(layers, 1)],
    }  # fmt: skip
    names = [f"{number}.tar" for number, _ in enumerate(layers)]
    listed = encode([{"Config": "config.json", "RepoTags": [name], "Layers": names}])  # type: ignore[arg-type]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        documents = [("manifest.json", listed), ("config.json", encode(config)), *zip(names, layers, strict=True)]
        for file, content in documents:
            info = tarfile.TarInfo(file)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    out.seek(0)
    with chapter.client() as client:
        for _message in client.load(out):
            pass


def seen_by_a_container(chapter: Chapter, image: str) -> set[str]:
    """The paths of all that is no folder in a container of this image, as the runtime itself lays its layers."""
    with chapter.client() as client:
        made = client.create({"Image": image, "Cmd": ["/none"], "HostConfig": {"NetworkMode": "none"}})
        try:
            content = io.BytesIO(b"".join(client.export(str(made["Id"]))))
        finally:
            client.remove(str(made["Id"]), force=True)
    with tarfile.open(fileobj=content, errors="backslashreplace") as exported:
        return {"/" + member.name for member in exported if not member.isdir()}


# The explorer


def test_an_index_lists_all_platforms_and_marks_this_machines(chapter: Chapter) -> None:
    minirt.pull("hello-world")
    shown = chapter.explorer("hello-world")
    assert shown.status.value == chapter.text("explorer.ready") and idle(shown) and not shown.panel["index"].value
    index = press(shown, "index")
    ours, others = Platform.host().architecture, {"amd64", "arm64"} - {Platform.host().architecture}
    listed = {row[0]: row[3] for row in rows(index) if len(row) == 4 and row[0].startswith("linux/")}
    assert listed.keys() == {"linux/amd64", "linux/arm64"}
    assert listed[f"linux/{ours}"] == chapter.text("explorer.index.ours")
    assert [listed[f"linux/{other}"] for other in others] == [chapter.text("explorer.index.other")] * len(others)
    with chapter.client() as client:  # the name's row has the digest that docker shows
        digest = client.inspect_image("hello-world")["RepoDigests"][0].partition("sha256:")[2]
    assert digest[:12] in rows(index)[1][2] and shown.status.value.startswith("Step 1 Index")
    assert [(file.path, file.layer, file.kind) for file in chapter.files("hello-world")] == [("/hello", 1, "code")]


def test_an_image_for_another_machine_is_not_called_ours(chapter: Chapter) -> None:
    other = ({"amd64", "arm64"} - {Platform.host().architecture}).pop()
    minirt.pull("hello-world", platform=f"linux/{other}")
    listed = {row[0]: row[3] for row in rows(press(chapter.explorer("hello-world"), "index")) if len(row) == 4}
    assert listed[f"linux/{other}"] == chapter.text("explorer.index.kept")


def test_greeter_step_by_step(chapter: Chapter) -> None:
    for tag in ("1.0", "2.0"):
        minirt.pull(f"greeter:{tag}")
    shown = chapter.explorer("greeter:1.0")
    assert "straight to a manifest" in press(shown, "index")
    image = Snapshot.read(chapter.root, "greeter:1.0")
    manifest = _Markup(press(shown, "manifest")).said
    assert json.dumps(json.loads(image.documents["manifest"]), indent=2) in manifest
    config = press(shown, "config")
    assert ["start-up command", '["greeter"]'] in [row[:2] for row in rows(config)]
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert ["Env", f"PATH={path}"] in [row[:2] for row in rows(config)]
    assert ["User", "nothing set"] in [row[:2] for row in rows(config)]
    assert [row[2] for row in rows(config) if len(row) == 3 and row[0] in "123"] == [
        "1",
        "2",
        "settings only, no files",
    ]
    lowest, top = (row for row in rows(press(shown, "layers")) if len(row) == 7)
    assert (lowest[0], lowest[6], top[0], top[4], top[6]) == ("1", "greeter:2.0", "2", "5", "no other image here")
    assert top[1] == "install greetlib 1.0.0 and greeter 1.0"

    mine = {file.path: file for file in chapter.files("greeter:1.0")}
    brought = sorted(path for path, file in mine.items() if file.layer == 2)
    library = [f"/usr/lib/greetlib/{name}" for name in ("METADATA", "VERSION", "__init__.py", "greet.sh")]
    assert brought == ["/usr/bin/greeter", *library]
    assert [mine[path].kind for path in brought] == ["code", *["libraries"] * 4]
    kinds_of = {path: mine[path].kind for path in ("/usr/bin/sh", "/usr/bin/ls", "/etc/passwd")}
    assert kinds_of == {"/usr/bin/sh": "runtime", "/usr/bin/ls": "tools", "/etc/passwd": "settings"}
    assert repr(mine["/usr/bin/greeter"]) == "File(path='/usr/bin/greeter', layer=2, kind='code')"
    assert set(mine) == seen_by_a_container(chapter, "greeter:1.0")

    tree = press(shown, "files")
    assert f"{len(mine)} of {len(mine)} files" in tree and "layer 2: 5" in tree
    assert shown._filter.layout.display == "" and "All layers over each other" in shown._above.value
    shown.layer.value = 2
    found = {row[0]: row[1:3] for row in rows(shown.panel["files"].value) if row}
    assert found == {
        os.path.basename(path): ["2", chapter.text(f"explorer.kind.{mine[path].kind}")] for path in brought
    }
    shown.words.value = "greet.sh"
    assert [row[0] for row in rows(shown.panel["files"].value) if row] == ["greet.sh"]
    shown.kind.value = "settings"
    assert chapter.text("explorer.files.no") in shown.panel["files"].value
    five = {row[0]: row[1] for row in rows(press(shown, "kinds")) if len(row) == 5}
    assert (
        (five["code"], int(five["system libraries"]) >= 4) == ("1", True)
        and int(five["system tools"]) > 20
        and sum(map(int, five.values())) == len(mine)
    )


def deceiving() -> list[bytes]:
    """Four layers that hide and replace what lies below, in each way there is."""
    lowest = archive(
        entry("etc", DIR), entry("etc/kept", content=b"1"), entry("etc/changed", content=b"1"), entry("etc/gone"),
        entry("old/deep/a"), entry("old/deep/b"), entry("swap/x"), entry("tofolder"), entry("again/one"),
        entry("again/two"), entry("link", SYMLINK, linkname="etc/kept"), entry("hard", HARDLINK, linkname="etc/kept"),
        entry("pipe", FIFO), entry("both"),
    )  # fmt: skip
    second = archive(
        entry("etc/changed", content=b"22"), entry("etc/.wh.gone"), entry(".wh.old"), entry("swap"),
        entry("tofolder/in"), entry("again/.wh..wh..opq"), entry("again/two"), entry("again/three"),
    )  # fmt: skip
    third = archive(entry("etc/changed", content=b"333"), entry("etc/gone"), entry("both/now"), entry(".wh.both"))
    fourth = archive(
        entry(".wh.nothing"), entry(".wh..wh.plnk"), entry("./etc//twice"), entry("etc/twice", content=b"x")
    )
    return [lowest, second, third, fourth]


def test_each_file_says_which_layer_it_is_from(chapter: Chapter) -> None:
    load(chapter, "deceiving", deceiving())
    there = {file.path: file for file in chapter.files("deceiving")}
    assert set(there) == seen_by_a_container(chapter, "deceiving")
    assert {path: (file.layer, file.covers) for path, file in there.items()} == {
        "/again/three": (2, ()), "/again/two": (2, (1,)), "/both/now": (3, ()), "/etc/changed": (3, (1, 2)),
        "/etc/gone": (3, ()), "/etc/kept": (1, ()), "/etc/twice": (4, ()), "/hard": (1, ()), "/link": (1, ()),
        "/pipe": (1, ()), "/swap": (2, ()), "/tofolder/in": (2, ()),
    }  # fmt: skip
    assert (there["/etc/changed"].size, there["/etc/twice"].size, there["/link"].target) == (3, 1, "etc/kept")
    assert [there[path].type for path in ("/link", "/hard", "/pipe")] == ["symlink", "hardlink", "pipe"]
    image = Snapshot.read(chapter.root, "deceiving")
    gone = snapshot.merge([snapshot.content(image.layout, layer) for layer in image.layers], image.config).gone
    assert [(each.path, each.layer, each.by, each.how) for each in gone] == [
        ("/again/one", 1, 2, "opaque"), ("/both", 1, 3, "whiteout"), ("/etc/gone", 1, 2, "whiteout"),
        ("/old/deep/a", 1, 2, "whiteout"), ("/old/deep/b", 1, 2, "whiteout"), ("/swap/x", 1, 2, "replaced"),
        ("/tofolder", 1, 2, "replaced"),
    ]  # fmt: skip
    shown = chapter.explorer("deceiving")
    tree = press(shown, "files")
    assert ["changed", "3", "other", "3B", "replaces a file of layer 1, 2"] not in rows(tree)  # /etc is settings
    assert ["changed", "3", "settings", "3B", "replaces a file of layer 1, 2"] in rows(tree)
    assert ["/etc/gone", "1", "layer 2 has a whiteout for it"] in rows(tree)
    assert [row[5] for row in rows(press(shown, "layers")) if len(row) == 7] == [
        "nothing", *(f"paths of lower layers: {count}" for count in (3, 1, 1))
    ]  # fmt: skip


def test_nothing_in_an_image_becomes_markup(chapter: Chapter) -> None:
    names = [
        HOSTILE,
        b"\xff\xfe<b>",
        "a\x1b[31mred\x07",
        "line\nbreak",
        "\u202eesrever",
        b"\xff\xfe" + SCRIPT.encode(),
        "x" * 240,
    ]
    deep = "/".join([SCRIPT[:-9]] * 100)
    layer = archive(*(entry(name) for name in names), entry(deep), entry("l", SYMLINK, linkname=HOSTILE))
    gone = archive(entry(f".wh.{HOSTILE.replace('/', '')}"), entry(b".wh.\xff\xfe<script>alert(1)<"))
    settings = {
        "Cmd": [HOSTILE], "Entrypoint": [HOSTILE], "Env": [f"{HOSTILE}={HOSTILE}"], "User": HOSTILE, "Made": HOSTILE,
        "WorkingDir": f"/{HOSTILE}", "Labels": {HOSTILE: HOSTILE}, "Volumes": {HOSTILE: {}}, "StopSignal": HOSTILE,
        "ExposedPorts": {HOSTILE: {}},
    }  # fmt: skip
    load(chapter, "hostile", [layer, gone], **settings)
    shown = chapter.explorer("hostile")
    page = everything(shown)
    seen = _Markup(page)
    assert seen.elements <= OURS, seen.elements - OURS
    assert seen.attributes <= {"class", "style", "open", "scope", "tabindex", "role", "aria-label"}
    assert seen.said.count(SCRIPT) > 8 and "\x1b" not in page and "\x07" not in page
    listed = chapter.files("hostile")
    assert any(file.path.startswith("/\\xff\\xfe<b>") for file in listed) and repr(listed).isprintable()
    named = chapter.explorer(SCRIPT)  # no such name: a line, and no markup
    assert "invalid reference format" in named.status.value and "<script" not in named.page + named.children[0].value


def test_nothing_in_an_index_becomes_markup(chapter: Chapter, tmp_path: Path) -> None:
    minirt.pull("hello-world")
    table = chapter.root / "oci" / "index.json"
    document = json.loads(table.read_bytes())
    name = next(each for each in document["manifests"] if "io.minirt.name" in each["annotations"])
    index = json.loads((chapter.root / "oci/blobs/sha256" / name["digest"][7:]).read_bytes())
    for each in index["manifests"]:
        each["platform"]["os"] = each["platform"]["variant"] = HOSTILE
    index["manifests"] += [index["manifests"][0] | {"platform": {}}] * 3
    content = encode(index | {"annotations": {HOSTILE: HOSTILE}})
    digest = hashlib.sha256(content).hexdigest()
    (chapter.root / "oci/blobs/sha256" / digest).write_bytes(content)
    name |= {"digest": f"sha256:{digest}", "size": len(content)}
    table.write_text(json.dumps(document))
    seen = _Markup(press(chapter.explorer("hello-world"), "index"))
    assert seen.elements <= OURS and SCRIPT in seen.said and chapter.text("explorer.index.unnamed") in seen.said


def test_an_image_that_is_not_here_can_be_pulled_and_one_that_goes_is_gone(chapter: Chapter) -> None:
    shown = chapter.explorer("greeter:1.0")
    absent = chapter.text("explorer.absent", name="greeter:1.0", pull="Pull greeter:1.0")
    assert shown.status.value == absent and shown.pull.layout.display == ""
    missing = {
        step: chapter.text(
            "explorer.missing", step=shown.step[step].description, name="greeter:1.0", pull="Pull greeter:1.0"
        )
        for step in ("files", "index")
    }
    assert press(shown, "files") == "" and shown.status.value == missing["files"] and idle(shown)
    with pytest.raises(NotFound, match="No such image: greeter:1.0"):
        chapter.files("greeter:1.0")
    shown.pull.click()
    shown.wait(60)
    assert shown.status.value == chapter.text("explorer.pulled", name="greeter:1.0")
    assert shown.pull.layout.display == "none" and "greetlib" in press(shown, "files")
    with chapter.client() as client:  # the name moves on to another image
        for _message in client.pull("hello-world"):
            pass
        client.tag("hello-world", "greeter:1.0")
        assert "hello" in press(shown, "config") and shown.panel["files"].value == "" == shown._above.value
        assert "1 of 1 files" in press(shown, "files")
        client.remove_image("greeter:1.0")
    assert press(shown, "index") == "" == shown.panel["files"].value and shown.status.value == missing["index"]
    nobody = chapter.explorer("nosuch")
    nobody.pull.click()
    nobody.wait(60)
    assert "nosuch not found" in nobody.status.value and idle(nobody)


def test_a_damaged_store_is_a_line_and_the_buttons_come_back(chapter: Chapter, tmp_path: Path) -> None:
    minirt.pull("greeter:1.0")
    shown = chapter.explorer("greeter:1.0")
    image = Snapshot.read(chapter.root, "greeter:1.0")
    blob = image.layout.blob(image.layers[1].blob.digest)
    whole = blob.read_bytes()
    blob.write_bytes(whole[:700])
    assert press(shown, "layers") == "" and "gzip stream is truncated" in shown.status.value and idle(shown)
    blob.unlink()
    assert press(shown, "files") == "" and "layer 2 cannot be read" in shown.status.value and idle(shown)
    blob.write_bytes(whole)
    assert "greetlib" in press(shown, "files")
    config = image.layout.blob(image.named.id)
    kept = config.read_bytes()
    config.write_bytes(kept[:-1])
    press(shown, "config")
    assert "is damaged" in shown.status.value and idle(shown)
    config.write_bytes(kept)
    alone = ImageExplorer("greeter:1.0", place=Place(tmp_path / "nowhere", "embedded"))
    assert "not in the local cache" in alone.status.value


def many(count: int) -> bytes:
    return archive(*(entry(f"data/{number % 300:03}/file-{number:06}") for number in range(count)))


def test_tens_of_thousands_of_files_stay_usable(chapter: Chapter) -> None:
    load(chapter, "many", [many(30_000)])
    shown = chapter.explorer("many")
    before = time.monotonic()
    tree = press(shown, "files")
    assert time.monotonic() - before < 20 and "30000 of 30000 files" in tree
    assert tree.count("<tr>") < 2200 and len(everything(shown)) < 500_000
    assert "and 75 more files in this folder" in tree and "and more folders, 302 in all" in tree
    before = time.monotonic()
    shown.words.value = "file-029999"
    assert time.monotonic() - before < 2
    assert [row[0] for row in rows(shown.panel["files"].value) if row] == ["file-029999"]


def test_stop_ends_a_long_look_and_a_second_press_is_not_a_second_look(
    chapter: Chapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(chapter, "many", [many(500)])
    monkeypatch.setattr(snapshot, "_CHUNK", 512)  # bytes at a time: a disk that takes minutes
    slow = snapshot.inflate
    monkeypatch.setattr(
        snapshot, "inflate", lambda source, *limits: slow(lambda: time.sleep(0.01) or source(), *limits)
    )
    shown = chapter.explorer("many")
    shown.step["layers"].click()
    shown.step["files"].click()  # the browser may send what was pressed before it was told of the first
    until(lambda: "Reading layer 1 of 1" in shown.status.value or shown.status.value == chapter.text("panel.busy"))
    assert shown.step["files"].disabled and not shown.stop.disabled
    shown.stop.click()
    shown.wait(5)
    assert shown.status.value == chapter.text("looking.stopped") and idle(shown)
    assert shown.panel["layers"].value == "" == shown.panel["files"].value


def test_the_kinds_are_one_table_with_a_sentence_for_each_rule() -> None:
    examples = {
        "etc": "/etc/passwd", "dot": "/root/.bashrc", "interpreter": "/usr/local/bin/python3.12",
        "start": "/usr/bin/mine", "package": "/usr/lib/python3/dist-packages/x.so",
        "standard": "/usr/lib/python3.11/os.py", "shared": "/usr/lib/x86_64-linux-gnu/libc.so.6",
        "folder": "/app/notes.txt", "local": "/usr/local/bin/serve", "top": "/hello",
        "library": "/usr/lib/greetlib/VERSION", "source": "/usr/share/x/greet.sh", "label": "/x/VERSION",
        "bin": "/usr/sbin/useradd",
        "ending": "/var/lib/a.yaml",
    }  # fmt: skip
    config = ImageConfig.parse(encode({"config": {"Cmd": ["mine"], "Env": ["PATH=/sbin:/usr/bin"]}}))
    starts = kinds.started(config)
    assert starts == {"/sbin/mine", "/usr/bin/mine"}
    found = {name: kinds.rule(path, name != "etc", starts) for name, path in examples.items()}
    assert {name: rule and rule.name for name, rule in found.items()} == {name: name for name in examples}
    assert [rule.name for rule in kinds.RULES] == list(dict.fromkeys(rule.name for rule in kinds.RULES))
    assert {rule.name for rule in kinds.RULES} == set(examples)
    assert kinds.kind("/usr/share/doc/x", True) == kinds.kind("/data", False) == "other"
    for lang in languages():
        text = Strings(lang)
        assert set(text.table("explorer.rule")) == {*examples, "rest"}
        assert set(text.table("explorer.kind")) == set(kinds.KINDS)
    given = ImageConfig.parse(encode({"config": {"Entrypoint": ["./run", "/srv/x"], "WorkingDir": "/w"}}))
    assert kinds.started(given) == {"/w/run", "/srv/x"} and kinds.started(ImageConfig.parse(b"{}")) == set()


# The layer stack


def make(chapter: Chapter, name: str, image: str, script: str = "sleep 60", start: bool = True) -> str:
    with chapter.client() as client:
        for _message in client.pull(image):
            pass
        body = {"Image": image, "Cmd": ["sh", "-c", script], "HostConfig": {"NetworkMode": "none"}}
        made = str(client.create(body, name)["Id"])
        if start:
            client.start(name)
        return made


WRITES = "echo new > /root/new; echo >> /etc/passwd; rm /etc/group; touch /tmp/ready; exec sleep 60"


def test_a_container_that_changed_files(chapter: Chapter) -> None:
    shown = chapter.layers("box")
    assert shown.status.value == chapter.text("stack.none", name="box", again="Look again")
    make(chapter, "box", "greeter:1.0", WRITES)
    with chapter.client() as client:
        until(lambda: any(change["Path"] == "/tmp/ready" for change in client.changes("box")))
        pid, graph = client.inspect_container("box")["State"]["Pid"], client.inspect_container("box")["GraphDriver"]
        page = look(shown)
        kinds_of = {change["Path"]: "CAD"[change["Kind"]] for change in client.changes("box")}
        listed = [row for row in rows(page) if len(row) == 2]
        assert {path: word for word, path in listed} == {
            path: {"C": "C changed", "A": "A added", "D": "D deleted"}[kind] for path, kind in kinds_of.items()
        }
        assert (kinds_of["/root/new"], kinds_of["/etc/passwd"], kinds_of["/etc/group"]) == ("A", "C", "D")
        counted = {letter: list(kinds_of.values()).count(letter) for letter in "ACD"}
        words = {"added": counted["A"], "changed": counted["C"], "deleted": counted["D"]}
        assert chapter.text("stack.draw.write_files", **words) in page
        mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        ours = next(line.split(" - ")[1].split()[2] for line in mounts if line.split()[4] == "/")
        told = [(row[0], row[1]) for row in rows(page) if len(row) == 3]
        if graph["Name"] == "overlay":
            assert told[: ours.count(",") + 1] == split(ours) and f"/proc/{pid}/mountinfo" in page
            assert any(option == "upperdir" and value.endswith("/upper") for option, value in told)
        client.stop("box", timeout=0)
        page = look(shown)
        assert chapter.text("stack.mount.recipe") in _Markup(page).said and "box (not running)" in page
        assert ("upperdir", graph["Data"]["UpperDir"]) in [(row[0], row[1]) for row in rows(page) if len(row) == 3]
        assert "/root/new" in page  # what it wrote stays, until it is removed
        digests = re.findall("sha256:[0-9a-f]{12}", shown.drawing.value)
        assert len(set(digests)) == 2
        client.remove_image("greeter:1.0", force=True)
        look(shown)  # its layers stay, too
        assert re.findall("sha256:[0-9a-f]{12}", shown.drawing.value) == digests
        client.remove("box")
    assert look(shown) == "" and shown.status.value == chapter.text("stack.none", name="box", again="Look again")
    assert not shown.again.disabled


def test_two_containers_share_what_is_the_same_below(chapter: Chapter) -> None:
    for name, image in (("one", "greeter:1.0"), ("two", "greeter:1.0"), ("three", "greeter:2.0")):
        make(chapter, name, image, start=False)
    same = look(chapter.layers("one", "two"))
    assert "layer 1: read-only, shared by one, two" in same and "layer 2: read-only, shared by one, two" in same
    assert chapter.text("stack.alike", names="one, two", count=2) in same
    mixed = look(chapter.layers("one", "two", "three"))
    assert (
        "layer 1: read-only, shared by one, two, three" in mixed and "layer 2: read-only, shared by one, two<" in mixed
    )
    assert mixed.count("layer 2: read-only<") == 1 and chapter.text("stack.draw.write", name="three") in mixed
    drawing = ElementTree.fromstring(re.findall(r"<svg.*</svg>", mixed)[0])
    assert "three (not running): write layer" in drawing.attrib["aria-label"]
    wide = [float(box.attrib["width"]) for box in drawing if box.tag.endswith("rect")][1:]
    assert len(wide) == 6 and max(wide) > 2.9 * min(wide)
    partly = chapter.layers("one", "nobody")
    assert "one (not running)" in partly.drawing.value and "No container nobody yet" in partly.status.value
    for names in ((), tuple("abcde")):
        with pytest.raises(InvalidInput, match="one to 4 containers"):
            chapter.layers(*names)


def test_names_of_files_and_steps_are_not_markup_in_the_stack(chapter: Chapter) -> None:
    base = [archive(entry("usr/bin/x"), entry(HOSTILE))]
    load(chapter, "hostile", base, Made=HOSTILE, Cmd=["x"])
    with chapter.client() as client:
        client.create({"Image": "hostile", "HostConfig": {"NetworkMode": "none"}}, "box")
        names = [SCRIPT.encode(), b"\xff\xfe<b>", b"\x1b[31m<i>", b"<svg onload=alert(1)>" + b"y" * 200]
        client.put_archive("box", "/", [archive(*(entry(name) for name in names))])
    page = look(chapter.layers("box"))
    seen = _Markup(page)
    assert seen.elements <= OURS and "onload" not in seen.attributes and "\x1b" not in page
    assert seen.said.count(SCRIPT) >= 2 and "A added" in seen.said
    ElementTree.fromstring(re.findall(r"<svg.*</svg>", page)[0])
    named = chapter.layers(SCRIPT)
    assert "<script" not in named.page + named.children[0].value and SCRIPT in named.status.value


def overlay(name: str, count: int, **fields: Any) -> Overlay:
    """What cannot be had on this machine, or would take an image of a hundred layers."""
    layers = tuple((f"sha256:{number:064x}", f"step {number}") for number in range(1, count + 1))
    given = {"pid": 0, "driver": "overlay", "mount": None, "refused": "", "options": (), "changes": ()} | fields
    return Overlay(name, layers=layers, **given)


def test_many_layers_short_names_and_steps_down_are_told() -> None:
    text = Strings()
    drawn = stack.draw([overlay("tall", 100), overlay("low", 2)], text)
    assert "93 more read-only layers" in drawn and "layer 3: read-only" in drawn and "layer 97: read-only" in drawn
    assert "layer 50" not in drawn and drawn.count("<rect") == 1 + 2 + 1 + 1 + 4 + 2
    assert "8 more" not in stack.draw([overlay("eight", 8)], text)
    assert "writable" in stack.draw([overlay("empty", 0)], text)
    options = (("lowerdir", "/a"), ("upperdir", "/b"))
    linked = overlay("old", 1, pid=7, mount=("overlay", "rw,lowerdir=0:1,upperdir=u"), options=options)
    told = stack._tables(linked, text, True)
    assert [row[:2] for row in rows(told) if len(row) == 3] == [
        ["rw", ""], ["lowerdir", "0:1"], ["upperdir", "u"], ["lowerdir", "/a"], ["upperdir", "/b"]
    ]  # fmt: skip
    assert text("stack.mount.unnamed").split(".")[0] in told
    hidden = stack._tables(overlay("hidden", 1, pid=7, refused="Permission denied", options=options), text, True)
    assert "does not let us read its mounts (Permission denied)" in hidden
    copies = [overlay(name, 3, driver="proot") for name in ("aa", "bb")]
    drawn = stack.draw(copies, text)
    assert drawn.count(text("stack.draw.copy", count=3).split("'")[0]) == 2 and "shared" not in drawn
    assert "proot makes it look like /" in stack._tables(copies[0], text, True)
    assert split(r"rw,lowerdir=/a\,b,userxattr") == [("rw", ""), ("lowerdir", r"/a\,b"), ("userxattr", "")]
    changed = overlay("busy", 1, changes=tuple((1, f"/f{number}") for number in range(250)))
    assert (
        "and 50 more." in stack._tables(changed, text, True) and stack._tables(changed, text, True).count("<tr>") == 201
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount the overlay that the store lies on")
@pytest.mark.parametrize("driver", ["fuse-overlayfs", "directory"])
def test_where_the_kernel_lays_no_overlay(driver: str, tmp_path: Path) -> None:
    """On another overlay the layers are laid by fuse-overlayfs, else copied, and the stack says which."""
    require("fuse-overlayfs")
    for name in ("lower", "upper", "work", "place", "bin"):
        (tmp_path / name).mkdir()
    path = os.environ["PATH"]
    if driver == "directory":
        path = str(tmp_path / "bin")
        for name in ("sh", "mount", "rm", "busybox", "nft"):
            (tmp_path / "bin" / name).symlink_to(require(name))
    script = """
import subprocess, time
from pathlib import Path
from minirt.notebook import LayerStack, Place
options = "lowerdir=lower,upperdir=upper,workdir=work"
subprocess.run(["mount", "-t", "overlay", "-o", options, "none", "place"], check=True)
place = Place(Path("place/store").absolute(), "embedded")
with place.client() as client:
    for _ in client.pull("greeter:1.0"):
        pass
    body = {"Image": "greeter:1.0", "Cmd": ["sh", "-c", "echo > /made; sleep 60"]}
    client.create(body | {"HostConfig": {"NetworkMode": "none"}}, "box")
    client.start("box")
    try:
        while not any(change["Path"] == "/made" for change in client.changes("box")):
            time.sleep(0.1)
        shown = LayerStack("box", place=place)
        print(shown.status.value, shown.drawing.value, shown.tables.value)
    finally:
        client.remove("box", force=True)
"""
    words = [require("unshare"), "--mount", "--propagation", "private", sys.executable, "-c", script]
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parent.parent)}
    result = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    text = Strings()
    assert result.returncode == 0 and text(f"stack.mount.{driver}") in _Markup(result.stdout).said, result.stderr
    assert "/made" in result.stdout and "1 added" in result.stdout
    if driver == "directory":
        assert text("stack.draw.copy", count=2) in _Markup(result.stdout).said and "lowerdir" not in result.stdout
    else:
        assert "fuse.fuse-overlayfs" in result.stdout and text("stack.mount.unnamed") in _Markup(result.stdout).said
        assert any(row[0] == "lowerdir" for row in rows(result.stdout) if len(row) == 3)


# Both


def test_stored_forms_are_stable_in_every_language(chapter: Chapter) -> None:
    minirt.pull("greeter:1.0")

    def forms(lang: str) -> list[dict[str, Any]]:
        place = Place(chapter.root, "embedded", lang)
        made = [ImageExplorer("greeter:1.0", place=place), LayerStack("box", place=place)]
        for each in made:
            assert set(each._repr_mimebundle_()) == {VIEW, "text/plain", "text/html"}
        return [{k: v for k, v in each._repr_mimebundle_().items() if k != VIEW} for each in made]

    for lang in languages():
        before = forms(lang)
        make(chapter, "box", "greeter:1.0", start=False)
        with chapter.client() as client:
            client.remove_image("greeter:1.0", force=True)
            assert forms(lang) == before  # image and container came and went: the stored page says the same
            client.remove("box", force=True)
            for _message in client.pull("greeter:1.0"):
                pass
        explorer, layers = before
        assert "greeter:1.0" in explorer["text/plain"] and "JupyterLab" in explorer["text/plain"]
        assert '<img alt="' in layers["text/html"] and "data:image/svg+xml;base64," in layers["text/html"]
        assert "<svg" not in layers["text/html"] and "box" in layers["text/plain"]


@pytest.mark.parametrize("lang", languages())
def test_every_step_speaks_the_language(chapter: Chapter, lang: str) -> None:
    load(chapter, "deceiving", deceiving())
    place = Place(chapter.root, "embedded", lang)
    shown = ImageExplorer("deceiving", place=place)
    for step in STEPS:
        assert press(shown, step), shown.status.value
    assert place.text("explorer.files.gone_none") not in shown.panel["files"].value
    make(chapter, "box", "greeter:1.0", start=False)
    layers = LayerStack("box", place=place)
    assert place.text("stack.changes.empty") in layers.tables.value


def test_both_stand_alone(root: Path) -> None:
    minirt.pull("hello-world")
    shown = ImageExplorer("hello-world")
    assert "/hello" in press(shown, "config") and '["/hello"]' in _Markup(shown.panel["config"].value).said
    assert LayerStack("nobody").status.value.startswith("No container nobody yet")


@pytest.mark.slow
@pytest.mark.parametrize("subuids", [True, False], ids=["subuids", "single id"])
def test_as_a_plain_user(subuids: bool) -> None:
    with plain_user(subuids) as user:
        words = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-m", "not slow"]
        result = user.run([*words, "tests/test_notebook_explorer.py"], timeout=280, check=False)
        assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
        assert re.search(r"\d\d passed", result.stdout)
