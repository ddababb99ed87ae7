"""Chapters 03, 05 and 06: what their panels and cells claim, two environments that differ, every check and question."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import learners
import pytest
from test_chapters_00_02 import chapter, found, number, of, press

import minirt
from minirt.errors import MinirtError
from minirt.notebook import Chapter
from minirt.notebook.catalogue import languages
from minirt.notebook.chapters import text_of
from minirt.notebook.chapters.c03 import Host

__all__ = ["chapter", "number"]  # fixtures

PREDICTIONS = [("03", "create"), ("03", "disks"), ("03", "walls"), ("03", "hosts")]
PREDICTIONS += [("05", "holds"), ("05", "command"), ("05", "layer"), ("06", "disk"), ("06", "first")]


def say(chapter: Chapter, *commands: str) -> list[bytes]:
    """What the chapter's panel shows for each of these commands."""
    panel = chapter.panel(*commands)
    return [press(panel, index) for index in range(len(commands))]


# Chapter 03


@of("03")
def test_create_runs_nothing_and_start_runs_it_each_time(chapter: Chapter) -> None:
    status = "ps -a --format '{{.Names}} from {{.Image}}: {{.Status}}'"
    said = say(chapter, "create --name box greeter:1.0", status, "logs box", "start -a box", "start -a box", status)
    assert said[1] == b"box from greeter:1.0: Created\n" and said[2] == b""
    assert said[3] == said[4] == b"greeter 1.0 with greetlib 1.0.0: Hello, world\n"
    assert said[5].startswith(b"box from greeter:1.0: Exited (0)")
    logs, gone, again = say(chapter, "logs box", "rm box", "logs box")
    assert logs == 2 * said[3] and gone == b"box\n" and b"No such container" in again


@of("03")
def test_what_one_container_writes_another_does_not_see(chapter: Chapter) -> None:
    say(chapter, "run -d --name one toolbox sleep 600", "run -d --name two toolbox sleep 600")
    image = minirt.inspect("toolbox")["Id"]
    read, missing, mine, other = say(
        chapter, "exec one sh -c 'echo I am one > /note; cat /note'", "exec two cat /note", "diff one", "diff two"
    )
    assert read == b"I am one\n" and b"No such file" in missing and (mine, other) == (b"A /note\n", b"")
    assert minirt.inspect("toolbox")["Id"] == image and minirt.run("toolbox", ["ls", "/note"]).exit_code != 0


@of("03")
def test_a_container_sees_itself_and_this_machine_sees_it(chapter: Chapter) -> None:
    words = ("hostname", "ps -o pid,args", "id -un", "cat /etc/os-release")
    start = "run -d --name box -h inside toolbox sleep 600"
    _id, host, processes, user, system, outside = say(
        chapter, start, *(f"exec box {w}" for w in words), "top box -o pid,args"
    )
    assert host == b"inside\n" and user == b"root\n" and b'NAME="toolbox"' in system
    assert re.search(rb"^ *1 +sleep 600$", processes, re.M) and len(processes.splitlines()) <= 3
    pid = minirt.inspect("box")["State"]["Pid"]
    assert pid != 1 and str(pid).encode() in outside and b"sleep 600" in outside


@of("03")
def test_two_environments_that_differ_give_the_same_output(chapter: Chapter) -> None:
    minirt.pull("greeter:1.0")
    development = Host(chapter, "development", LANG="C", HOME="/srv/dev")
    staging = Host(chapter, "staging", LANG="ko_KR.UTF-8", TZ="Asia/Seoul", HOME="/srv/app")
    assert staging.root != development.root == chapter.root
    assert [host.shell("echo $HOME $LANG $TZ") for host in (development, staging)] == [
        "/srv/dev C",
        "/srv/app ko_KR.UTF-8 Asia/Seoul",
    ]
    assert development.shell("echo $PATH") != staging.shell("echo $PATH")
    with pytest.raises(MinirtError, match="^staging: minirt: No such image: greeter:1.0$"):
        staging.minirt("inspect", "--type=image", "greeter:1.0")
    try:
        assert staging.minirt("load", given=development.minirt("save", "greeter:1.0")) == b"Loaded image: greeter:1.0\n"
        daemon = (Path(f"/proc/{_daemon(staging)}/environ").read_bytes()).split(b"\0")
        assert b"TZ=Asia/Seoul" in daemon and b"HOME=/srv/app" in daemon, "it lives in this environment"
        for words in (["greeter:1.0"], ["-h", "box", "greeter:1.0", "env"]):
            ours, theirs = (host.minirt("run", "--rm", *words) for host in (development, staging))
            assert ours == theirs and ours
        assert b"Asia" not in theirs
    finally:
        assert staging.end() == []
    end = time.monotonic() + 20
    while _daemon(staging):
        assert time.monotonic() < end, "staging's daemon is still there"
        time.sleep(0.05)
    assert development.end() == [] and chapter.images() == ["greeter:1.0"], "the chapter's own store is the chapter's"


def _daemon(host: Host) -> int:
    """The process that listens for this host's store, 0 where there is none."""
    root = str(host.root).encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            if b"minirt.daemon" in b" ".join(words) and root in words:
                return int(entry)
    return 0


@of("03")
def test_an_image_in_use_is_not_removed(chapter: Chapter) -> None:
    *_, refused, removed, gone = say(
        chapter, "run --name box greeter:1.0", "rmi greeter:1.0", "rm box", "rmi greeter:1.0"
    )
    assert refused.startswith(b'minirt: conflict: unable to remove repository reference "greeter:1.0" (must force)')
    assert removed == b"box\n" and b"Untagged: greeter:1.0" in gone and chapter.images() == []


@of("03")
def test_exercise_03_wants_a_note_on_one_of_two_disks(chapter: Chapter) -> None:
    chapter.exercise("note")
    write = "sh -c 'echo {} > /note'"
    steps = (
        ([], "none", "named mine"),
        (["run --name mine greeter:1.0"], "image", "greeter:1.0"),
        (["rm mine", "create --name mine toolbox"], "none", "named other"),
        (["create --name other greeter:1.0"], "image", "other was made"),
        (["rm other", "create --name other toolbox"], "missing", "/note"),
        (["rm mine", f"run --name mine toolbox {write.format('bye')}"], "text", '"bye"'),
        (["rm mine", f"run --name mine toolbox {write.format('hello')}"], "right", "two disks"),
        (["rm other", f"run --name other toolbox {write.format('hello')}"], "both", "other"),
        (["rm other", "commit mine toolbox", "create --name other toolbox"], "image", "mine"),
    )
    for commands, key, words in steps:
        say(chapter, *commands)
        assert found(chapter, "note") == key and words in chapter.check("note")
    chapter.exercise("note")  # the stage is set again
    assert found(chapter, "note") == "none"


@of("03")
def test_a_note_that_is_a_folder_is_no_note(chapter: Chapter) -> None:
    chapter.exercise("note")
    say(chapter, "run --name mine toolbox mkdir /note", "create --name other toolbox")
    assert found(chapter, "note") == "text"
    with chapter.client() as client:
        assert text_of(client, "other", "/etc/os-release").startswith('NAME="toolbox"')


# Chapter 05


@of("05")
def test_a_run_brings_its_own_command_and_the_files_stay(chapter: Chapter) -> None:
    own, mina, listed, program = say(
        chapter,
        "run greeter:1.0",
        "run greeter:1.0 greeter Mina",
        "run greeter:1.0 ls /usr/lib/greetlib",
        "run --entrypoint cat greeter:1.0 /usr/bin/greeter",
    )
    assert own.endswith(b"Hello, world\n") and mina.endswith(b"Hello, Mina\n")
    assert listed.split() == [b"METADATA", b"VERSION", b"__init__.py", b"greet.sh"]
    assert program.startswith(b"#!/bin/sh\n# greeter 1.0")
    assert minirt.inspect("greeter:1.0")["Config"]["Cmd"] == ["greeter"]


@of("05")
def test_an_entrypoint_takes_what_stands_behind_the_images_name(chapter: Chapter) -> None:
    *_, you, mina, listed = say(
        chapter,
        "create --name box greeter:1.0",
        """commit --change 'ENTRYPOINT ["greeter"]' --change 'CMD ["you"]' box talker""",
        "run talker",
        "run talker Mina",
        "run --entrypoint ls talker /usr/lib/greetlib",
    )
    assert you.endswith(b"Hello, you\n") and mina.endswith(b"Hello, Mina\n") and b"greet.sh" in listed


@of("05")
def test_a_file_comes_from_the_highest_layer_that_has_it(chapter: Chapter) -> None:
    minirt.pull("greeter:1.0")
    before = {file.path: (file.layer, file.kind) for file in chapter.files("greeter:1.0")}
    assert before["/usr/bin/greeter"] == (2, "code") and before["/usr/bin/sh"] == (1, "runtime")
    assert before["/usr/lib/greetlib/greet.sh"] == (2, "libraries") and before["/etc/passwd"] == (1, "settings")
    assert {kind for _layer, kind in before.values()} >= {"code", "runtime", "tools", "libraries", "settings"}
    say(
        chapter,
        "run --name box greeter:1.0 sh -c 'echo 3.0 > /usr/lib/greetlib/VERSION; rm /etc/passwd'",
        "commit box patched",
    )
    after = {file.path: file.layer for file in chapter.files("patched")}
    assert after["/usr/lib/greetlib/VERSION"] == 3 and after["/usr/lib/greetlib/greet.sh"] == 2
    assert "/etc/passwd" not in after


@of("05")
def test_an_image_without_a_shell_says_so(chapter: Chapter) -> None:
    panel = chapter.panel("run hello-world sh")
    assert b'exec: "sh": executable file not found in $PATH' in press(panel, 0)


@of("05")
def test_exercise_05_wants_a_layer_and_a_command(chapter: Chapter) -> None:
    chapter.exercise("mine")
    write = "run --name work greeter:1.0 sh -c 'echo good morning > /etc/motd'"
    cat = """--change 'CMD ["cat", "/etc/motd"]'"""
    steps = (
        ([], "none", "named mine"),
        (["pull toolbox", "tag toolbox mine"], "base", "greeter:1.0"),
        (["rmi mine", "tag greeter:1.0 mine"], "layers", "has 2 layers"),
        (["rmi mine", write, "commit work mine"], "command", "sh -c"),
        (["rmi mine", f"commit {cat} work mine"], "right", "layer 3"),
        (["rmi mine", "commit --change 'CMD cat /etc/motd' work mine"], "right", "layer 3"),
        (["rmi mine", """commit --change 'CMD ["cat", "/etc/issue"]' work mine"""], "command", "cat /etc/issue"),
        (["run --name more mine sh -c 'echo > /x'", f"commit {cat} more mine"], "layers", "has 4 layers"),
        (["run --name none greeter:1.0 sh -c 'echo > /x'", f"commit {cat} none mine"], "file", "/etc/motd"),
    )
    for commands, key, words in steps:
        say(chapter, *commands)
        assert found(chapter, "mine") == key and words in chapter.check("mine")
    with chapter.client() as client:
        assert {c["Names"][0] for c in client.containers(all=True)} == {"/work", "/more", "/none"}, (
            "a check leaves none"
        )
    chapter.exercise("mine")  # the stage is set again
    assert found(chapter, "mine") == "none" and chapter.images() == ["greeter:1.0"]


# Chapter 06


@of("06")
def test_containers_are_not_copies_and_write_into_a_layer_of_their_own(chapter: Chapter) -> None:
    minirt.pull("toolbox")
    with chapter.client() as client:
        made = [client.create({"Image": "toolbox"})["Id"] for _ in range(3)]
        assert [client.inspect_container(box, size=True)["SizeRw"] for box in made] == [0, 0, 0]
    *_, changes, fresh = say(
        chapter,
        "run -d --name box toolbox sleep 600",
        "exec box sh -c 'echo hello > /etc/motd'",
        "exec box sh -c 'echo more >> /etc/os-release'",
        "exec box rm /etc/group",
        "diff box",
        "run --rm toolbox ls /etc",
    )
    assert sorted(changes.decode().splitlines()) == ["A /etc/motd", "C /etc", "C /etc/os-release", "D /etc/group"]
    assert b"group" in fresh.split() and b"motd" not in fresh.split()


@of("06")
def test_the_command_is_process_one_and_its_end_is_the_containers(chapter: Chapter) -> None:
    _id, listed, stopped, state, started = say(
        chapter,
        "run -d --name box toolbox sleep 600",
        "exec box ps -o pid,args",
        "stop -t 1 box",
        "ps -a --format '{{.Names}}: {{.Status}}'",
        "start box",
    )
    assert re.search(rb"^ *1 +sleep 600$", listed, re.M) and stopped == started == b"box\n"
    assert state.startswith(b"box: Exited (137)") and minirt.inspect("box")["State"]["Status"] == "running"


@of("06")
def test_a_container_whose_command_is_not_there_was_made_all_the_same(chapter: Chapter) -> None:
    failed, state, code, removed = say(
        chapter,
        "run --name broken toolbox no-such-command",
        "ps -a --format '{{.Names}}: {{.Status}}'",
        "inspect --format '{{.State.ExitCode}}' broken",
        "rm broken",
    )
    assert b"executable file not found" in failed and state == b"broken: Created\n"
    assert (code, removed) == (b"127\n", b"broken\n")


@of("06")
def test_exercise_06_wants_the_file_in_a_new_container(chapter: Chapter) -> None:
    chapter.exercise("carry")
    changes = say(chapter, "diff busy")[0].decode().splitlines()
    assert "A /var/tmp/answer" in changes and "C /etc/os-release" in changes and "D /etc/group" in changes
    steps = (
        ([], "none", "named next"),
        (["create --name next greeter:1.0"], "image", "greeter:1.0"),
        (["rm next", "create --name next toolbox"], "missing", "docker diff busy"),
        (["rm next", "run --name next toolbox sh -c 'echo 7 > /var/tmp/answer'"], "text", '"7"'),
    )
    for commands, key, words in steps:
        say(chapter, *commands)
        assert found(chapter, "carry") == key and words in chapter.check("carry")
    with chapter.client() as client:
        _stat, pieces = client.get_archive("busy", "/var/tmp/answer")
        client.put_archive("next", "/var/tmp", list(pieces))
        assert found(chapter, "carry") == "right" and "/var/tmp/answer" in chapter.check("carry")
        client.remove("busy")
        assert found(chapter, "carry") == "gone"
    chapter.exercise("carry")  # the stage is set again
    assert found(chapter, "carry") == "none"


# Questions


@pytest.mark.parametrize("number", ["03", "05", "06"], indirect=True)
@pytest.mark.parametrize("lang", languages())
def test_every_option_of_the_quiz_has_its_reason(chapter: Chapter, lang: str) -> None:
    learners.answer_all(Chapter(chapter.number, lang))


@pytest.mark.parametrize("number, name", PREDICTIONS, indirect=["number"])
@pytest.mark.parametrize("lang", languages())
def test_a_prediction_is_noted_and_not_judged(chapter: Chapter, name: str, lang: str) -> None:
    spoken = Chapter(chapter.number, lang)
    (question,) = spoken.predict(name).questions
    assert len(question.options) == 3
    for index, option in enumerate(question.options):
        question.chosen = index
        question.click()
        assert question.answer == spoken.text("choice.noted", option=option) and question.verdict == ""


def test_all_predictions_of_these_chapters_are_asked() -> None:
    assert sorted(PREDICTIONS) == sorted(
        (number, name) for number in ("03", "05", "06") for name in Chapter(number).text.table(f"{number}.predict")
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", ["03", "05", "06"])
def test_cells_hold_for_who_presses_each_button_on_the_way(tmp_path: Path, number: str) -> None:
    """A panel's first press empties the chapter's store: no later cell may count on what an earlier one put there."""
    words = [sys.executable, "-m", "minirt.notebook.recording", f"--into={tmp_path}", number]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / f"{number}.json").stat().st_size > 1000
