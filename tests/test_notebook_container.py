"""The container card and the doctor's table: what they show of real containers and of this machine."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import learners
import pytest
from learners import HOSTILE, start, until

from minirt.errors import NotFound
from minirt.notebook import Chapter, ContainerCard, Doctor, Place, process
from minirt.notebook.catalogue import Strings
from minirt.notebook.markup import VIEW
from minirt.runtime import doctor as probe


@pytest.fixture
def chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chapter]:
    with learners.a_chapter(tmp_path, monkeypatch) as chapter:
        yield chapter


def seen(card: ContainerCard) -> str:
    card.wait(30)
    return str(card._card.value)


def test_a_card_shows_a_container_as_the_machine_sees_it(chapter: Chapter) -> None:
    limits = {"Memory": 64 << 20} if os.geteuid() == 0 else {}
    start(chapter, "box", "sleep", "600", **limits)
    card = chapter.card("box", "nobody")
    with chapter.client() as client:
        pid = client.inspect_container("box")["State"]["Pid"]
        shown = seen(card)
        assert card.status.value == "Look 1: 1 of 2 running." and not card.look_again.disabled
        assert f"process number (pid) {pid}<" in shown and "process number (pid) 1<" in shown
        assert "<code>sleep 600</code>" in shown and "nobody: there is no container of this name." in shown
        for name in ("mnt", "pid", "net", "uts", "ipc", "cgroup"):
            theirs, ours = os.readlink(f"/proc/{pid}/ns/{name}"), os.readlink(f"/proc/self/ns/{name}")
            assert theirs != ours
            row = f"<code>{name}</code></td><td>≠ another: a wall</td><td><code>{theirs}</code></td>"
            assert f"{row}<td><code>{ours}</code>" in shown
        assert "overlay: a write layer of its own over 1 read-only layers" in shown or "copy of the image" in shown
        if os.geteuid() == 0:
            assert "= the same: no wall" in shown and "No wall for: users." in shown and "64MiB at most" in shown
            cgroup = Path(f"/proc/{pid}/cgroup").read_text().splitlines()[-1].split(":", 2)[2]
            assert f"<code>{cgroup}</code>" in shown and "of memory," in shown
        client.stop("box", timeout=0)
        card.look_again.click()
        assert "box: exited with code 137" in seen(card) and "no process any more" in seen(card)
        assert card.status.value == "Look 2: 0 of 2 running."
        client.create({"Image": "toolbox"}, "fresh")
    assert "fresh: created, not started yet" in seen(ContainerCard("fresh", place=Place(chapter.root, "embedded")))


def test_a_paused_one_and_one_that_cannot_be_counted(chapter: Chapter) -> None:
    start(chapter, "box", "sleep", "600")
    card = chapter.card("box")
    if "not counted" not in seen(card):
        with chapter.client() as client:
            client.pause("box")
            card.look_again.click()
            assert "box: paused: its process is there" in seen(card)
            client.unpause("box")


def test_nothing_of_a_container_becomes_markup(chapter: Chapter) -> None:
    with chapter.client() as client:
        for _message in client.pull("toolbox"):
            pass
        host = {"NetworkMode": "none", "Binds": ["kept:/<img src=x>"]}
        body = {"Image": "toolbox", "Cmd": ["sh", "-c", "sleep 600", HOSTILE], "Labels": {HOSTILE: HOSTILE}}
        client.create(body | {"HostConfig": host, "Env": [f"A={HOSTILE}"]}, "box")
        client.start("box")
        try:
            card = chapter.card("box", HOSTILE)
            shown = seen(card)
            assert "&lt;script&gt;" in shown and "/&lt;img src=x&gt;" in shown
            for markup in (shown, card.page):
                assert not re.search("<script|<img", markup)
        finally:
            client.remove("box", force=True)
            client.remove_volume("kept")


def test_the_button_comes_back_whatever_happens(chapter: Chapter, monkeypatch: pytest.MonkeyPatch) -> None:
    start(chapter, "box", "sleep", "600")
    card = chapter.card("box")
    for _ in range(3):  # pressed while it looks: one look at a time
        card.look_again.click()
    assert "box: running" in seen(card) and not card.look_again.disabled
    learners.kill_daemon(chapter)
    card.look_again.click()
    assert "box: running" in seen(card) and "1 of 1 running" in card.status.value  # the container did not mind
    panel = chapter.panel("run toolbox sleep 60")  # a card is looked at beside a panel at work
    panel.run[0].click()
    until(lambda: "running" in panel._map.value)
    card.look_again.click()
    assert "box: running" in seen(card) and "1 of 1 running" in card.status.value
    panel.stop.click()
    panel.wait(20)
    with monkeypatch.context() as broken:  # a mistake of ours must not leave a dead button
        broken.setattr(Chapter, "client", lambda self: 1 / 0)
        card.look_again.click()
        seen(card)
    assert card.status.value.startswith("It failed: division by zero Press the button again.")
    assert not card.look_again.disabled
    nowhere = ContainerCard("box", place=Place(Path("/dev/null/nowhere"), "embedded"))
    nowhere.wait(30)
    assert nowhere.status.value.startswith("It failed: /dev/null/nowhere") and not nowhere.look_again.disabled


def test_a_process_that_has_ended_and_a_hostile_mount() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = process.look(child.pid)
    assert found.inside == child.pid and found.uid == os.getuid()
    assert all(namespace.apart is False for namespace in found.namespaces.values()) and not found.refused
    child.send_signal(signal.SIGKILL)
    child.wait()
    with pytest.raises(NotFound, match=f"process {child.pid} has ended"):
        process.look(child.pid)
    line = rb"36 35 98:0 /a /with\040blank rw,noatime shared:1 - ext3 /dev/x rw,errors=continue"
    assert process._mount(line) == process.Mount("/with blank", "ext3", "rw,noatime", "rw,errors=continue")


SHOW = """
import learners
from minirt.notebook.process import look
learners.start(chapter, "box", "sleep", "600")
card = chapter.card("box")
card.wait(30)
print(chapter.way(), "|", card.status.value)
print(card._card.value)
print("refused:", look(1).refused)
"""


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["subuids", "single id", "proot"])
def test_as_a_plain_user(machine: str) -> None:
    """What the kernel does not let us read is said; by proot the missing walls are."""
    with learners.a_learner(machine) as run:
        shown = run("import sys; sys.path.insert(0, 'tests')" + SHOW)
    assert shown.startswith(f"{machine} | Look 1: 1 of 1 running.")
    assert "not counted:" in shown and "/proc/1/ns/mnt" in shown.partition("refused:")[2]
    if machine == "proot":
        assert "No wall for: files and mounts; processes; network; host name; shared memory; users; view" in shown
        assert shown.count("= the same: no wall") == 7 and "proot shows the command" in shown
        assert "It has no mounts of its own." in shown
    else:
        assert shown.count("≠ another: a wall") == 7 and "It has a wall of every kind." in shown
        assert re.search(r"User 0 inside is user \d+ outside\.", shown)
        assert ("Users 1 to 65536 inside" in shown) == (machine == "subuids")


def test_the_doctor_tries_when_its_button_is_pressed(chapter: Chapter) -> None:
    doctor = chapter.doctor()
    assert doctor._table.value == "" and "Nothing has been tried yet" in doctor.status.value
    doctor.ask.click()
    doctor.ask.click()
    doctor.wait(60)
    with chapter.client() as client:
        rows = client.doctor()
    assert not doctor.ask.disabled and doctor.status.value.startswith("Containers run here.")
    works = sum(row["works"] for row in rows)
    assert f"{works} of {len(rows)} attempts worked" in doctor.status.value
    shown = doctor._table.value
    assert shown.count("✓\xa0works") == works and shown.count("✗ does not work") == len(rows) - works
    for row in rows:  # each has its words
        assert f"<strong>{row['capability']}</strong><br>" in shown
        assert f"<strong>{row['capability']}</strong><br></td>" not in shown
    learners.kill_daemon(chapter)
    doctor.ask.click()
    doctor.wait(60)
    assert doctor.status.value.startswith("Containers run here.")
    alone = Doctor(place=Place(Path("/dev/null/nowhere"), "embedded"))
    alone.ask.click()
    alone.wait(60)
    assert alone.status.value.startswith("It failed: /dev/null/nowhere") and not alone.ask.disabled


def test_the_doctors_words_are_text(chapter: Chapter) -> None:
    row = dict.fromkeys(("capability", "tried", "detail", "cost", "hint"), HOSTILE)
    assert not re.search("<script", "".join(Doctor(chapter)._row(row | {"works": False})))


def test_the_doctors_sentences_are_the_probes_and_are_told_in_korean(chapter: Chapter) -> None:
    english, korean = (Doctor(Place(chapter.root, "embedded", lang)) for lang in ("en", "ko"))
    with chapter.client() as client:
        rows = client.doctor()
    for row in rows:
        for part in ("tried", "detail", "hint"):
            assert english._said(row[part]) == row[part]
        assert row["tried"] == "unshare(2)" or re.search("[가-힣]", korean._said(row["tried"])), row["tried"]
    assert korean._said("install Linux 5.12 or newer") == "리눅스 5.12 이상을 설치하세요"
    assert korean._said("65536 ids") == "번호 65536개" and korean._said("/opt/{n}/proot") == "/opt/{n}/proot"
    source = Path(probe.__file__).read_text(encoding="utf-8")
    errors = {os.strerror(number).lower() for number in errno.errorcode}
    for sentence in Strings("en").table("doctor.said").values():
        pattern = re.escape(sentence).replace(r"\{n\}", r"(\{.*?\}|[\d.]+)")
        assert sentence.lower() in errors or re.search(f'"{pattern}"', source), sentence


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["proot", "refused"])
def test_the_doctor_where_namespaces_are_refused(machine: str) -> None:
    script = "doctor = chapter.doctor()\ndoctor.ask.click()\ndoctor.wait(60)\n"
    script += "print(doctor.status.value, doctor._table.value)"
    with learners.a_learner(machine) as run:
        shown = run(script)
    if machine == "proot":
        assert shown.startswith("Containers run here without walls, by proot.") and "no wall keeps them apart" in shown
    else:
        assert shown.startswith("Containers do not run here.") and "No container runs. You can pull" in shown
    assert "seccomp=unconfined" in shown and "Containers run only by proot, without walls." in shown


def test_stable_forms_for_a_page_without_kernel(chapter: Chapter) -> None:
    def make() -> list[ContainerCard | Doctor]:
        return [chapter.card("box"), chapter.doctor()]

    for one, two in zip(make(), make(), strict=True):
        bundle, again = one._repr_mimebundle_(), two._repr_mimebundle_()
        assert bundle.pop(VIEW)["model_id"] != again.pop(VIEW)["model_id"]
        assert bundle == again and bundle["text/html"].startswith("<p>")
        assert bundle["text/plain"].startswith("Run this cell in JupyterLab")
        one.wait(30)
        two.wait(30)
