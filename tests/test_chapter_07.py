"""Chapter 07: each wall of the notebook stops its escape, which works without it; nothing is left on the machine."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from peers import require
from users import plain_user

from minirt import userns
from minirt.errors import InvalidInput
from minirt.notebook import Chapter, begin, byhand
from minirt.notebook.byhand import ByHand, Table
from minirt.notebook.limit import Limit

NOTEBOOK = next((Path(__file__).parent.parent / "notebooks").glob("07-*.ipynb"))
# escape, its wall, and what the kernel answers behind it
PAIRS = [
    ("spy", "own_user", "EACCES"),
    ("read_file", "own_root", "ENOENT"),
    ("kill", "own_pids", "ESRCH"),
    ("read_name", "own_name", ""),
    ("read_memory", "own_memory", "EINVAL"),
    ("connect", "own_network", "ENETUNREACH"),
    ("see_group", "own_group", ""),
    ("uncover", "no_powers", "EPERM"),
    ("regain", "fewer_calls", "EPERM"),
]
MARK = f"  # started by test {os.getpid()}"  # in the command line of each process of a trial
# Where user namespaces are refused, the page says so; there is nothing to build.
needs_namespaces = pytest.mark.skipif(
    (ids := userns.detect()) is None or ids.faked, reason="this machine refuses user namespaces"
)


def cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def module(folder: Path, text: str) -> ModuleType:
    """`text` as a module with a file, so that its functions have a source."""
    path = folder / f"cells{time.monotonic_ns()}.py"
    heads = "import ctypes, os, signal, socket, struct\nfrom pathlib import Path\nfrom minirt import linux\n"
    path.write_text(heads + text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The functions of the notebook's cells."""
    texts = [ast.get_source_segment(cell, node) or "" for cell in cells() for node in ast.parse(cell).body
             if isinstance(node, ast.FunctionDef)]  # fmt: skip
    return module(tmp_path_factory.mktemp("page"), "\n\n".join(texts))


@pytest.fixture(scope="module")
def chapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chapter]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MINIRT_ROOT", "MINIRT_HUB", "PATH"):  # begin() sets them: have them put back
            patch.setenv(name, os.environ.get(name, ""))
        patch.setenv("MINIRT_COURSE", str(tmp_path_factory.mktemp("course")))
        chapter = begin("07")
        yield chapter
        chapter.empty()


@pytest.fixture(scope="module")
def unpacked(chapter: Chapter) -> ByHand:
    return ByHand(chapter)


@pytest.fixture
def container(unpacked: ByHand, monkeypatch: pytest.MonkeyPatch) -> Iterator[ByHand]:
    """Nothing is left of a trial: neither mounts, processes, shared memory, groups nor another name."""
    monkeypatch.setattr(byhand, "_BOOT", byhand._BOOT + MARK)
    monkeypatch.setattr(byhand, "_VICTIM", byhand._VICTIM + MARK)
    before = machine()
    unpacked.walls.clear()
    unpacked.escapes.clear()
    (unpacked.folder / "walls.json").unlink(missing_ok=True)
    yield unpacked
    assert machine() == before


def machine() -> dict[str, Any]:
    """What a trial must not change."""
    mine = [pid for pid in os.listdir("/proc") if pid.isdigit() and is_ours(pid)]
    memory = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    groups = [path for path, _, _ in os.walk("/sys/fs/cgroup") if path.endswith(f"by-hand-{os.getpid()}")]
    return {
        "name": os.uname().nodename, "processes": mine, "mounts": [p for p in places if "by-hand" in p],
        "memory": [row for row in memory if row.split()[4] == str(os.getpid())], "groups": groups,
        "spaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in ("user", "mnt", "uts", "pid", "net")},
    }  # fmt: skip


def is_ours(pid: str) -> bool:
    try:
        return MARK.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return False


def build(page: ModuleType, container: ByHand, count: int) -> None:
    for _escape, wall, _error in PAIRS[:count]:
        container.walls[wall] = byhand.source(getattr(page, wall))
    container.keep()


@needs_namespaces
@pytest.mark.parametrize("number", range(len(PAIRS)), ids=[wall for _, wall, _ in PAIRS])
def test_each_wall_stops_its_escape(page: ModuleType, container: ByHand, number: int) -> None:
    escape, wall, error = PAIRS[number]
    build(page, container, number)
    alone = container.escape(getattr(page, escape))
    assert alone.trial.stopped is None and alone.trial.outcomes[escape].out, alone
    both = container.wall(getattr(page, wall))
    assert both.trial.stopped is None, both
    found = both.trial.outcomes[escape]
    assert (found.out, found.error) == (False, error)
    text = container.place.text
    assert both.rows()[-1] == [
        escape, text("byhand.out"), text("byhand.shut", error=error) if error else text("byhand.shut_quietly"),
        text("byhand.mark"),
    ]  # fmt: skip


@needs_namespaces
def test_a_killed_process_is_really_dead(page: ModuleType, container: ByHand) -> None:
    build(page, container, 2)
    tell = (
        "def gone(host):\n    os.kill(host.pid, 9)\n    time.sleep(0.2)\n    state = Path(f'/proc/{host.pid}/stat')\n"
    )
    tell += "    return not state.exists() or state.read_text().split()[2] == 'Z'\n"
    assert container.escape(module(container.folder, tell).gone).trial.outcomes["gone"].out


@needs_namespaces
def test_chroot_is_no_wall(page: ModuleType, container: ByHand) -> None:
    escapes = [page.read_file, page.climb]
    weak = container.trial(page.own_user, page.only_chroot, escapes=escapes).trial.outcomes
    assert not weak["read_file"].out and weak["climb"].out
    strong = container.trial(page.own_user, page.own_root, escapes=escapes).trial.outcomes
    assert not strong["read_file"].out and strong["climb"] == byhand.Outcome(False, "ENOENT")
    assert container.walls == {} and container.escapes == {}


@needs_namespaces
def test_behind_all_walls_runs_a_program_of_the_image(page: ModuleType, container: ByHand) -> None:
    build(page, container, len(PAIRS))
    words = container.run("sh", "-c", "echo $$ $(hostname) $(id -u); grep -E '^(CapBnd|Seccomp):' /proc/self/status")
    assert words.split() == ["1", "by-hand", "0", "CapBnd:", "0" * 16, "Seccomp:", "2"]
    assert container.run("no-such-program").startswith("no-such-program failed with ENOENT")


@needs_namespaces
@pytest.mark.parametrize("call", ["sethostname(host.name)", "mount('tmpfs', host.root, 'tmpfs')", "unshare(0x4000000)"])
def test_without_a_user_namespace_nothing_reaches_the_machine(page: ModuleType, container: ByHand, call: str) -> None:
    own = module(container.folder, f"def careless(host):\n    linux.{call}\n    print('reached')\n").careless
    idle = module(container.folder, "def idle(host):\n    pass\n").idle
    for first in (own, idle):
        table = container.trial(first, own, page.own_root, escapes=[page.read_file])
        assert table.trial.outcomes == {} and f"{first.__name__} made none" in repr(table)
        assert "reached" not in table.trial.printed


@needs_namespaces
def test_mistakes_of_a_learner_are_one_line(
    page: ModuleType, container: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "def wrong(host):\n    nowhere.call()\n\ndef looks(host):\n    print('<b>hello</b>')\n    return host.nothing\n"
    )
    text += "\ndef seen(host):\n    return os.system(f\"grep -q 'started by test' /proc/{host.pid}/cmdline\") == 0\n"
    text += "\ndef hangs(host):\n    if os.fork() == 0:\n        os.setsid()\n    while True:\n        pass\n"
    made = module(container.folder, text)
    table = container.trial(page.own_user, made.wrong, escapes=[page.read_file])
    assert table.note() == "wrong failed with NameError: name 'nowhere' is not defined, at: nowhere.call()"
    assert container.trial(escapes=[made.seen]).trial.outcomes["seen"].out, "the mark would find no process"
    table = container.trial(page.own_user, escapes=[made.wrong, made.looks])
    assert table.rows()[0][1].startswith("stopped: NameError") and "<b>hello</b>" in repr(table)
    assert "&lt;b&gt;hello" in table._repr_html_() and "<b>hello" not in table._repr_html_()
    build(page, container, 1)
    told = repr(container.look(made.looks)).splitlines()
    assert told[1].startswith("looks failed with AttributeError") and told[1].endswith("at: return host.nothing")
    with pytest.raises(InvalidInput, match="this has no text"):
        container.escape(len)
    monkeypatch.setattr(byhand, "_SECONDS", 1)
    assert (
        container.trial(page.own_user, made.hangs, escapes=[]).note()
        == "It did not end within 1 seconds, and was ended."
    )
    until_gone()


def until_gone() -> None:
    end = time.monotonic() + 10
    while machine()["processes"]:
        assert time.monotonic() < end, "processes are left"
        time.sleep(0.05)


def test_a_machine_that_refuses_user_namespaces_is_told_so(page: ModuleType, container: ByHand) -> None:
    # In a user namespace of one's own, one may forbid further ones.
    order = json.dumps([str(container.folder), {"own_user": byhand.source(page.own_user)}])
    script = "import json, sys; from pathlib import Path; from minirt.notebook.byhand import Table, attempt\n"
    script += "from minirt.notebook import Place\nfolder, walls = json.loads(sys.argv[1])\n"
    script += "print(Table(Place(), attempt(Path(folder), walls, {'never': 'never'})))"
    shell = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    words = [
        require("unshare"),
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        shell,
        "sh",
        sys.executable,
        "-c",
        script,
        order,
    ]
    here = Path(__file__).parent.parent
    result = subprocess.run(words, capture_output=True, text=True, cwd=here, timeout=60, check=False)
    assert "This machine refuses user namespaces (ENOSPC)" in result.stdout, result.stdout + result.stderr


ANSWERS = {
    "linux.mount('tmpfs', '/tmp', 'tmpfs')\n    linux.mount_setattr(-100, '/', 0, linux.MOUNT_ATTR_RDONLY)": "right",
    "pass": "open",
    "linux.mount('tmpfs', '/tmp', 'tmpfs')": "open",
    "linux.mount_setattr(-100, '/', 0, linux.MOUNT_ATTR_RDONLY)": "closed",
    "linux.mount('/tmp', '/tmp', None, linux.MS_BIND)\n    linux.mount_setattr(-100, '/', 0, 1)": "shared",
    "linux.mount('/nowhere', '/tmp', None, linux.MS_BIND)": "failed",
    "1 / 0": "failed",
}


@needs_namespaces
@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: ANSWERS[answer])
def test_the_exercise_is_checked_by_building_it(
    page: ModuleType, container: ByHand, chapter: Chapter, answer: str
) -> None:
    assert "There is no own_user yet" in chapter.check("read-only")
    build(page, container, 2)
    assert "There is no read_only yet" in chapter.check("read-only")
    container.answer(module(container.folder, f"def read_only(host):\n    {answer}\n").read_only)
    entry = chapter.text.table(f"07.exercise.read-only.{ANSWERS[answer]}").split("{")[0]
    told = chapter.check("read-only")
    assert told.startswith("Right. " if ANSWERS[answer] == "right" else "Not yet. ") and entry in told
    container.walls["own_user"] = "def own_user(host):\n    pass\n"
    container.keep()
    assert "own_user is the first wall, and made no user namespace" in chapter.check("read-only")
    left = [path for path in container.root.rglob("written-by-the-check")]
    assert left == []


@needs_namespaces
def test_the_limit_is_real_where_a_group_can_be_made(page: ModuleType, container: ByHand) -> None:
    build(page, container, 7)
    widget = Limit(container, page.multiply, 16)
    assert widget.status.value == "Ready. Press the button."
    widget.ask.click()
    assert widget.ask.disabled
    widget.wait(60)
    told = widget.status.value
    assert not widget.ask.disabled and told.startswith("Without a limit it made 30 processes.")
    if os.geteuid() == 0:
        assert "In a control group with pids.max 16 it made 14; the next fork was refused." in told
    else:
        assert "it made 14" in told or "A limit cannot be set here: " in told
    container.walls["own_user"] = "def own_user(host):\n    raise ValueError(1)\n"
    widget.ask.click()
    widget.wait(60)
    assert widget.status.value.startswith("It failed: own_user failed with ValueError: 1") and not widget.ask.disabled


def test_a_wall_tried_again_compares_with_those_before_it(page: ModuleType, container: ByHand) -> None:
    before = byhand.Trial([], {"a": byhand.Outcome(True), "b": byhand.Outcome(False, "EPERM")})
    now = byhand.Trial(["w"], {"a": byhand.Outcome(False, "EPERM"), "b": byhand.Outcome(False, "ESRCH")})
    rows = Table(container.place, now, before).rows()
    assert rows[0][-1] == "stopped by this wall" and rows[1] == ["b", "stopped: EPERM", "stopped: ESRCH", ""]


@needs_namespaces
def test_clean_up_leaves_no_folder(page: ModuleType, chapter: Chapter) -> None:
    container = ByHand(chapter)
    assert (container.root / "etc").is_dir() and repr(container).startswith("The files of toolbox are unpacked")
    container.clean_up()
    assert not container.folder.exists()
    container.clean_up()
    assert chapter.clean_up() == []


@pytest.mark.slow
@pytest.mark.parametrize("subuids", [True, False], ids=["subuids", "single id"])
def test_as_a_plain_user(subuids: bool) -> None:
    with plain_user(subuids) as user:
        words = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "tests/test_chapter_07.py"]
        result = user.run([*words, "-k", "not plain_user"], timeout=250, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "passed" in result.stdout and "skipped" not in result.stdout, result.stdout
