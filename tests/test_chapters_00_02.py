"""Chapters 00 to 02: installations that really fail, an image carried to another server, every check and question."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import learners
import pytest

import minirt
from minirt.errors import MinirtError, Unsupported
from minirt.hub import elf
from minirt.image.platform import Platform
from minirt.notebook import Chapter, begin
from minirt.notebook.attempt import Attempt, Outcome, Recipe, Step, Try
from minirt.notebook.catalogue import Strings, languages
from minirt.notebook.chapters import c01, c02
from minirt.notebook.markup import VIEW
from minirt.notebook.panel import Panel

TOP = Path(__file__).parent.parent
HOSTILE = "<script>alert(1)</script>"
PREDICTIONS = [("00", "first"), ("01", "conflict"), ("01", "side"), ("02", "verbs"), ("02", "move")]


@pytest.fixture
def number(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def chapter(number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chapter]:
    for name in ("MINIRT_ROOT", "MINIRT_HUB", "PATH", "SERVER"):  # begin() sets them: have them put back
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("MINIRT_COURSE", str(tmp_path / "course"))
    chapter = begin(number)
    yield chapter
    chapter.clean_up()


def of(number: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("number", [number], indirect=True)


def press(panel: Panel, *indices: int) -> bytes:
    """The output of the last of these presses."""
    for index in indices:
        panel.run[index].click()
        panel.wait(60)
    return panel.presses[-1].output


def install(attempt: Attempt) -> Outcome:
    attempt.button.click()
    attempt.wait(60)
    assert not attempt.button.disabled and attempt.stop.disabled and attempt.outcome
    return attempt.outcome


def found(chapter: Chapter, name: str) -> str:
    """Which finding the check has: the key of its text, which the learner reads with its fields filled in."""
    with chapter.client() as client:
        answer = chapter.tasks[name].check(client)
    key, fields = answer if isinstance(answer, tuple) else (answer, {})
    reason = chapter.text(f"{chapter.number}.exercise.{name}.{key}", **fields)
    assert chapter.check(name) == chapter.text(f"exercise.{'right' if key == 'right' else 'wrong'}", reason=reason)
    return key


# By hand


@of("01")
def test_pip_refuses_two_versions_of_one_library(chapter: Chapter) -> None:
    package = chapter.attempt("package")
    outcome = install(package)
    assert outcome.codes == [0, 1] and not outcome.done
    assert "ResolutionImpossible" in outcome.text and "ResolutionImpossible" in package._output.value
    assert outcome.error.splitlines() == [
        "greeter-one 1.0 depends on greetlib==1.*",
        "greeter-two 2.0 depends on greetlib==2.*",
    ]
    assert c01._conflict("    greeter_one 1.0 depends on greetlib==1.*\n") == outcome.error.splitlines()[:1]
    assert package.status.value == "Step 2 failed: exit code 1. The reason is below."
    assert [package._steps.value.count(sign) for sign in "\u2713\u2717\u2013"] == [1, 1, 1]
    assert list(chapter.folder.iterdir()) == [], "the scratch folder is still there"


@of("01")
def test_one_program_installs_and_two_in_folders_of_their_own(chapter: Chapter) -> None:
    alone = install(chapter.attempt("alone"))
    assert alone.done and alone.text.endswith("greeter 1.0 with greetlib 1.0.0: Hello, world\n") and alone.error == ""
    apart = chapter.attempt("apart")
    outcome = install(apart)
    assert outcome.done and apart.status.value == chapter.text("attempt.done")
    assert [line for line in outcome.text.splitlines() if line.startswith("greeter ")] == [
        "greeter 1.0 with greetlib 1.0.0: Hello, world",
        "greeter 2.0 with greetlib 2.0.0: Hello, world",
    ]
    counted = c01.tally(chapter.text, apart.commands, ["docker run greeter:1.0", "docker run greeter:2.0"])
    assert repr(counted) == "By hand: 6, Docker: 3"
    assert counted._repr_html_().count("<tr>") == 7 and "docker run greeter:2.0" in counted._repr_html_()


@of("01")
def test_a_program_for_another_cpu_is_not_run_by_the_kernel(chapter: Chapter) -> None:
    cpu = chapter.attempt("cpu")
    outcome = install(cpu)
    assert not outcome.done and cpu.install().codes == outcome.codes
    if outcome.emulated:
        assert "Hello from a container!" in outcome.text and "emulator" in cpu.status.value and outcome.error == ""
    else:
        assert outcome.codes == [0, 126] and outcome.error == "./hello: Exec format error"
        assert "exit code 126" in cpu.status.value
    assert cpu.download("hello")[18:20] != Path("/proc/self/exe").read_bytes()[18:20]


EMULATOR = r"""
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc || exit 77
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf '%s' ":qemu:M::$magic:$mask:$1:F" > /proc/sys/fs/binfmt_misc/register || exit
exec "$2" -c 'import sys
from pathlib import Path
from minirt.notebook.attempt import Attempt
from minirt.notebook.catalogue import Strings
from minirt.notebook.chapters.c01 import ATTEMPTS
shown = Attempt(Strings(), "01.attempt.cpu", ATTEMPTS["cpu"], Path(sys.argv[1]))
shown.button.click()
shown.wait(20)
print(shown.outcome.done, shown.status.value)' "$3"
"""


def test_an_emulator_is_told_from_this_cpu(tmp_path: Path) -> None:
    """With a real one, registered for a process of ours alone: since Linux 6.7 a user namespace can."""
    emulator = shutil.which("qemu-aarch64-static")
    if not emulator or Platform.host().architecture != "amd64":
        pytest.skip("no emulator of another CPU here")
    words = ["unshare", "-Urm", "sh", "-c", EMULATOR, "sh", emulator, sys.executable, str(tmp_path)]
    result = subprocess.run(words, cwd=TOP, capture_output=True, text=True, timeout=60)
    if result.returncode == 77 or "unshare failed" in result.stderr:
        pytest.skip(f"this kernel registers none for a namespace: {result.stderr}")
    assert result.stdout == f"False {Strings()('attempt.emulated')}\n", result.stderr


@of("01")
def test_an_emulators_success_is_not_ours(chapter: Chapter) -> None:
    recipe = Recipe(lambda shop: None, (Step("start", ("true",)),), foreign=True)
    shown = Attempt(chapter.text, "01.attempt.cpu", recipe, chapter.folder)
    outcome = install(shown)
    assert outcome.emulated and not outcome.done and shown.status.value == chapter.text("attempt.emulated")


@of("01")
def test_the_loader_misses_a_library_and_finds_it_when_it_is_there(chapter: Chapter) -> None:
    library = chapter.attempt("library")
    outcome = install(library)
    assert outcome.codes == [0, 127] and "libgreet.so.1" in outcome.error and not outcome.done
    needs = (elf.interpreter(library.download("greeter")) or "", "libc.so.6")
    assert Path(needs[0]).exists()
    program = elf.program(Platform.host().architecture, b"Hello, world\n", needs)
    present = Recipe(lambda shop: c01._program(shop / "greeter", program), c01.ATTEMPTS["library"].steps)
    assert Try(present, chapter.folder).run().text == "Hello, world\n"


@of("01")
def test_what_a_machine_cannot_try_is_one_line(chapter: Chapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Platform, "host", lambda: Platform("linux", "riscv64"))
    for name in ("cpu", "library"):
        shown = chapter.attempt(name)
        shown.button.click()
        shown.wait(20)
        assert shown.status.value == (
            "This machine cannot try that: the hub has no program for this CPU (riscv64): it has amd64 and arm64"
        )
        assert not shown.button.disabled and shown.stop.disabled
        with pytest.raises(Unsupported):
            shown.install()
    monkeypatch.setattr(c01.elf, "interpreter", lambda binary: None)
    with pytest.raises(Unsupported, match="load no libraries"):
        chapter.attempt("library").install()
    blocked = chapter.folder / "file"
    blocked.write_text("no folder")
    with pytest.raises(MinirtError, match="cannot use the scratch folder"):
        Try(c01.ATTEMPTS["alone"], blocked).run()


@of("01")
def test_a_python_without_pip_says_what_to_do(chapter: Chapter) -> None:
    step = Step("install", ("sh", "-c", "echo python3: No module named pip; exit 1"))
    shown = Attempt(chapter.text, "01.attempt.package", Recipe(lambda shop: None, (step,)), chapter.folder)
    assert install(shown).codes == [1] and "ensurepip" in shown.status.value


@of("01")
def test_stop_ends_a_try_with_all_its_processes(chapter: Chapter) -> None:
    steps = (Step("get", ("sh", "-c", "mktemp; sleep 77.5 & wait")), Step("start", ("true",)))
    shown = Attempt(chapter.text, "01.attempt.alone", Recipe(lambda shop: None, steps), chapter.folder)
    shown.button.click()
    end = time.monotonic() + 20
    while not list(chapter.folder.glob("by-hand-*/tmp.*")) and time.monotonic() < end:
        time.sleep(0.02)
    assert not shown.stop.disabled
    shown.stop.click()
    shown.wait(20)
    assert shown.outcome and shown.outcome.codes == [None] and not shown.outcome.done
    assert shown.status.value == "Stopped by you in step 1." and not shown.button.disabled
    left = Path(shown.outcome.text.strip())
    assert left.is_relative_to(chapter.folder) and not left.exists()
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if b"77.5" in _read(p)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


@of("01")
def test_a_try_is_not_the_users_own_pip(chapter: Chapter, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Path.home() / ".config" / "pip" / "pip.conf"
    config.parent.mkdir(parents=True)
    config.write_text("[global]\nfind-links = /nowhere\n")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    monkeypatch.setenv("FORCE_COLOR", "1")  # a notebook's kernel sets it
    said = chapter.attempt("package").install().text
    assert "depends on greetlib" in said and "nowhere" not in said and "\x1b" not in said


@of("01")
def test_nothing_a_try_prints_becomes_markup(chapter: Chapter) -> None:
    recipe = Recipe(lambda shop: None, (Step("start", ("printf", HOSTILE)),))
    shown = Attempt(chapter.text, "01.attempt.alone", recipe, chapter.folder)
    assert install(shown).text == HOSTILE
    for markup in (shown.page, shown._steps.value, shown._output.value):
        assert "<script" not in markup
    assert "&lt;script&gt;" in shown._output.value


@of("01")
@pytest.mark.parametrize("name", sorted(c01.ATTEMPTS))
def test_a_try_has_stable_forms_for_a_page_without_kernel(chapter: Chapter, name: str) -> None:
    one, two = chapter.attempt(name)._repr_mimebundle_(), chapter.attempt(name)._repr_mimebundle_()
    assert one.pop(VIEW) != two.pop(VIEW)
    assert one == two and one["text/html"].startswith("<p>") and "Run this cell in JupyterLab" in one["text/plain"]
    assert all(command in one["text/plain"] for command in chapter.attempt(name).commands)


# Side by side, and what one container breaks


@of("01")
def test_greeters_side_by_side_and_a_break_that_stays_in_its_container(chapter: Chapter) -> None:
    panel = chapter.panel("run greeter:1.0", "run greeter:2.0", fresh=True)
    assert b"with greetlib 1.0.0" in press(panel, 0) and b"with greetlib 2.0.0" in press(panel, 1)
    broken = chapter.panel("run greeter:1.0 sh -c 'rm /usr/lib/greetlib/greet.sh; greeter'", "run greeter:1.0")
    assert b"Hello" not in press(broken, 0) and broken.presses[-1].code != 0
    assert b"Hello, world" in press(broken, 1) and broken.presses[-1].code == 0


# To another server


@of("02")
def test_an_image_travels_in_a_file_to_a_server_that_asks_no_registry(chapter: Chapter) -> None:
    server = chapter.server()
    assert server.images() == [] and server.root != chapter.root
    packing = chapter.panel("pull greeter:1.0", "save -o greeter.tar greeter:1.0")
    arrival = server.panel("load -i greeter.tar", "run greeter:1.0")
    assert b"no such file" in press(arrival, 0).lower() and arrival.presses[-1].code != 0
    press(packing, 0, 1)
    assert packing.presses[-1].code == 0 and (chapter.folder / "greeter.tar").is_file()
    assert press(arrival, 0) == b"Loaded image: greeter:1.0\n"
    assert press(arrival, 1) == b"greeter 1.0 with greetlib 1.0.0: Hello, world\n"
    assert "everything came from the local cache" in arrival.status.value
    here, there = minirt.inspect("greeter:1.0"), minirt.inspect("greeter:1.0", root=server.root)
    assert here["Id"] == there["Id"] and here["RepoDigests"] and not there["RepoDigests"]
    assert chapter.clean_up() == [] and server.images() == [] and list(chapter.folder.iterdir()) == []


@of("02")
def test_the_same_four_verbs_manage_both_containers(chapter: Chapter) -> None:
    tick = "sh -c 'trap exit TERM; while true; do date; sleep 1; done'"
    start = ("run -d --name hello hello-world", f"run -d --name clock toolbox {tick}")
    both = chapter.panel(*start, "ps -a", "logs hello", "logs clock", "stop hello", "stop clock", "rm hello clock")
    press(both, 0, 1)
    with chapter.client() as client:
        client.wait("hello")
    listed = press(both, 2).decode().splitlines()
    assert [("Exited" in line, "Up" in line) for line in sorted(listed[1:], key=lambda line: line.split()[-1])] == [
        (False, True),
        (True, False),
    ]
    assert press(both, 3).startswith(b"Hello from a container!") and press(both, 4).count(b":") >= 2
    assert press(both, 5) == b"hello\n" and press(both, 6) == b"clock\n"
    assert press(both, 7) == b"hello\nclock\n"
    with chapter.client() as client:
        assert client.containers(all=True) == []
    busy = chapter.panel("run -d --name busy toolbox sleep 60", "rm busy", "rm -f busy")
    assert b"container is running" in press(busy, 0, 1) and busy.presses[-1].code == 1
    assert press(busy, 2) == b"busy\n"


@of("02")
def test_the_freight_picture_is_one_drawing_with_words(chapter: Chapter) -> None:
    for lang in languages():
        picture = c02.freight(Chapter("02", lang).text)
        page = picture._repr_html_()
        assert page.startswith('<img alt="') and repr(picture) == Chapter("02", lang).text("02.freight.alt")
    drawing = ElementTree.fromstring(base64.b64decode(re.search('base64,([^"]+)', page)[1]))  # type: ignore[index]
    assert len([e for e in drawing.iter() if e.tag.endswith("}text")]) == 3 + 2 * 7


# Exercises


@of("00")
def test_exercise_00_wants_a_container_called_first(chapter: Chapter) -> None:
    chapter.exercise("named")
    assert found(chapter, "named") == "none"
    with chapter.client() as client:
        minirt.run("toolbox", ["true"])
        minirt.pull("hello-world")
        for image, command, start, expected in (
            ("toolbox", ["true"], True, "other"),
            ("hello-world", None, False, "created"),
            ("hello-world", ["/hello"], True, "right"),
            ("hello-world", None, True, "right"),
        ):
            client.create({"Image": image, "Cmd": command}, "first")
            if start:
                with client.waiting("first", "next-exit") as waiting:
                    client.start("first")
                    waiting.result()
            assert found(chapter, "named") == expected
            client.remove("first")
        client.create({"Image": "toolbox", "Cmd": ["sh", "-c", "exit 3"]}, "first")
    exercise = chapter.exercise("named")  # the stage is set again: the container is gone
    exercise.button.click()
    exercise.wait(20)
    assert exercise.status.value == chapter.check("named") and found(chapter, "named") == "none"


@of("00")
def test_exercise_00_sees_a_run_that_failed(chapter: Chapter) -> None:
    minirt.pull("toolbox")
    with chapter.client() as client:
        client.tag("toolbox", "hello-world")  # only a program that can fail makes this visible
        client.create({"Image": "hello-world", "Cmd": ["sh", "-c", "exit 3"]}, "first")
        with client.waiting("first", "next-exit") as waiting:
            client.start("first")
            waiting.result()
    assert found(chapter, "named") == "failed" and "exit code 3" in chapter.check("named")


@of("01")
def test_exercise_01_wants_two_containers(chapter: Chapter) -> None:
    chapter.exercise("side")
    assert chapter.images() == ["greeter:1.0", "greeter:2.0"] and found(chapter, "side") == "none"

    def run(name: str, image: str, command: list[str] | None = None) -> None:
        with chapter.client() as client:
            client.create({"Image": image, "Cmd": command}, name)
            with client.waiting(name, "next-exit") as waiting:
                client.start(name)
                waiting.result()

    run("one", "greeter:1.0")
    assert found(chapter, "side") == "missing" and "called two" in chapter.check("side")
    run("two", "greeter:1.0")
    assert found(chapter, "side") == "other" and "greeter:2.0" in chapter.check("side")
    minirt_rm(chapter, "two")
    run("two", "greeter:2.0", ["sh", "-c", "exit 4"])
    assert found(chapter, "side") == "failed" and "exit code 4" in chapter.check("side")
    minirt_rm(chapter, "two")
    run("two", "greeter:2.0")
    assert found(chapter, "side") == "right"
    minirt_rm(chapter, "one")
    assert "called one" in chapter.check("side")
    chapter.exercise("side")
    assert found(chapter, "side") == "none"


def minirt_rm(chapter: Chapter, name: str) -> None:
    with chapter.client() as client:
        client.remove(name, force=True)


@of("02")
def test_exercise_02_wants_an_image_carried_and_not_pulled(chapter: Chapter) -> None:
    server = chapter.server()
    chapter.exercise("move")
    assert found(chapter, "move") == "none"

    def run(image: str, command: list[str] | None = None) -> None:
        with server.client() as there:
            there.create({"Image": image, "Cmd": command}, "moved")
            with there.waiting("moved", "next-exit") as waiting:
                there.start("moved")
                waiting.result()

    with chapter.client() as here, server.client() as there:
        for _ in there.pull("greeter:2.0"):
            pass
        assert found(chapter, "move") == "pulled"
        chapter.exercise("move")
        assert found(chapter, "move") == "none"
        for _ in there.pull("greeter:1.0"):
            pass
        there.tag("greeter:1.0", "greeter:2.0")
        assert found(chapter, "move") in ("other", "pulled")
        there.remove_image("greeter:2.0", force=True)
        list(there.load(io.BytesIO(b"".join(here.save(["greeter:2.0"])))))
        assert found(chapter, "move") == "waits"
        run("greeter:1.0")
        assert found(chapter, "move") == "stranger"
        there.remove("moved")
        run("greeter:2.0", ["sh", "-c", "exit 2"])
        assert found(chapter, "move") == "failed"
        there.remove("moved")
        run("greeter:2.0")
        assert found(chapter, "move") == "right"
    chapter.exercise("move")
    assert found(chapter, "move") == "none"


# Questions


@pytest.mark.parametrize("number", ["00", "01", "02"], indirect=True)
@pytest.mark.parametrize("lang", languages())
def test_every_option_of_the_quiz_has_its_reason(chapter: Chapter, lang: str) -> None:
    learners.answer_all(Chapter(chapter.number, lang))


@pytest.mark.parametrize("lang", languages())
def test_the_right_options_stand_in_different_places(lang: str) -> None:
    for number in ("00", "01", "02"):
        places = [
            [right for _option, right, _reason in entry["options"]].index(True)
            for entry in Chapter(number, lang).text.table(f"{number}.quiz")
        ]
        assert len(set(places)) > 1


@pytest.mark.parametrize(("number", "name"), PREDICTIONS, indirect=["number"])
@pytest.mark.parametrize("lang", languages())
def test_predictions_are_noted_and_not_judged(chapter: Chapter, name: str, lang: str) -> None:
    (question,) = Chapter(chapter.number, lang).predict(name).questions
    assert len(question.options) == 3
    for index, option in enumerate(question.options):
        question.chosen = index
        question.click()
        assert option in question.answer and question.verdict == ""


def test_every_prediction_is_asked_here() -> None:
    there = {(n, name) for n in ("00", "01", "02") for name in Chapter(n).text.table(f"{n}.predict")}
    assert there == set(PREDICTIONS)


@of("01")
def test_a_second_press_while_one_is_at_work_does_nothing(chapter: Chapter) -> None:
    shown = chapter.attempt("alone")
    shown.button.click()
    assert shown.button.disabled and not shown.stop.disabled  # a browser sends no click of a disabled button
    shown.button.click()
    assert shown.status.value == chapter.text("panel.busy")
    shown.wait(60)
    assert shown.outcome and shown.outcome.done and not shown.button.disabled
