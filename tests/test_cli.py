"""The command's own words: options, templates, progress, errors, and how fast it starts. No container runs here."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import said

from minirt.cli import VERBS, main, progress, table
from minirt.cli.flags import UsageError
from minirt.cli.run import create_body, run
from minirt.errors import InvalidInput

LAYER = "a1b2c3d4e5f6"


def minirt(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    settings = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "check": False, **settings}
    return said.run([sys.executable, "-m", "minirt", *words], **settings)


def parsed(*words: str) -> tuple[dict[str, Any], list[str]]:
    return run.parse("minirt run", list(words))


def test_options_end_at_the_image() -> None:
    values, arguments = parsed("--rm", "-ieA=b", "-e=C", "-w", "-x", "--name=n", "image", "-e", "D", "--rm=false", "--")
    assert arguments == ["image", "-e", "D", "--rm=false", "--"]
    assert (values["rm"], values["interactive"], values["detach"]) == (True, True, False)
    assert (values["env"], values["workdir"], values["name"]) == (["A=b", "C"], "-x", "n")


def test_switches_take_values_and_dashes_end_options() -> None:
    values, arguments = parsed("--rm=false", "-d=true", "--", "-image")
    assert (values["rm"], values["detach"], arguments) == (False, True, ["-image"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--foo", "x"], "unknown flag: --foo"),
        (["-iZ", "x"], "unknown shorthand flag: 'Z' in -iZ"),
        (["--name"], "flag needs an argument: --name"),
        (["-ie"], "flag needs an argument: 'e' in -ie"),
        (["--rm=maybe", "x"], 'invalid argument "maybe" for "--rm" flag'),
        ([], "'minirt run' requires at least 1 argument"),
    ],
)
def test_options_that_do_not_parse(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parsed(*words)


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "yes")
    monkeypatch.delenv("NOWHERE", raising=False)
    lines = tmp_path / "env"
    lines.write_text("# comment\n\n  A=1 2 # kept\nHERE\nNOWHERE\n")
    body = create_body(*parsed("--env-file", str(lines), "-e", "HERE", "-e", "NOWHERE", "-e", "A=", "image"))
    # docker sends a lone name too: its variable is taken away.
    assert body["Env"] == ["A=1 2 # kept", "HERE=yes", "HERE=yes", "NOWHERE", "A="]
    lines.write_text("A B=1\n")
    with pytest.raises(InvalidInput, match=r"env, line 1: white space"):
        create_body(*parsed("--env-file", str(lines), "image"))


@pytest.mark.parametrize(
    ("template", "printed"),
    [
        ("{{.A}}:{{ .B.C }}", "x:1"),
        ("{{json .B}} {{json .A}}", '{"C":1} "x"'),
        (r"{{.L}}\t{{.M}}\n", "[a b]\tmap[k:v z:<no value>]\n"),
        ("{{.T}} {{.N}}", "true <no value>"),
    ],
)
def test_template(template: str, printed: str) -> None:
    row = {"A": "x", "B": {"C": 1}, "L": ["a", "b"], "M": {"z": None, "k": "v"}, "T": True, "N": None}
    assert table.fill(table.parse(table.escapes(template)), row) == printed


@pytest.mark.parametrize(
    "template", ["{{range .L}}{{end}}", "{{.A", "{{index .L 0}}", "{{}}", "{{.}}", "{{.B.}}", "{{.Q}}"]
)
def test_template_outside_the_subset_is_refused(template: str) -> None:
    with pytest.raises(InvalidInput, match="--format: "):
        table.fill(table.parse(template), {"A": "x", "L": []})


def objects() -> list[dict[str, Any]]:
    """What a pull of two layers says, one of them there already."""

    def layer(status: str, **detail: int) -> dict[str, Any]:
        return {"status": status, "id": LAYER, "progressDetail": detail}

    return [
        {"status": "Pulling from library/x", "id": "latest"},
        layer("Pulling fs layer"),
        {"status": "Already exists", "id": "0" * 12, "progressDetail": {}},
        *(layer("Downloading", current=current, total=4000) for current in range(0, 4001, 10)),
        layer("Download complete"),
        *(layer("Extracting", current=current, total=4000) for current in range(0, 4001, 1000)),
        layer("Pull complete"),
        {"status": "Digest: sha256:\x1b[31mred"},
    ]


def test_progress_without_a_terminal_is_a_line_a_change() -> None:
    stream = io.StringIO()
    progress.show(objects(), stream)
    assert stream.getvalue().splitlines() == [
        "latest: Pulling from library/x",
        f"{LAYER}: Pulling fs layer",
        "000000000000: Already exists",
        f"{LAYER}: Download complete",
        f"{LAYER}: Pull complete",
        "Digest: sha256: [31mred",
    ]


def test_no_verb_shows_the_overview() -> None:
    result = minirt()
    assert (result.returncode, result.stderr) == (0, "")
    assert all(f"  {verb} " in result.stdout for verb in VERBS if " " not in verb)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage:  minirt {verb}")
    assert VERBS[verb][1] in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "status", "lines"),
    [
        (["zip"], 1, ["'zip' is not a minirt command.", "See 'minirt --help'."]),
        (["image", "zip"], 1, ["'image zip' is not a minirt command.", "See 'minirt --help'."]),
        (["run", "--foo"], 125, ["unknown flag: --foo", "See 'minirt run --help'."]),
        (["container", "ls", "x"], 1, ["'minirt ps' accepts no arguments", "See 'minirt ps --help'."]),
        (["run", "-it", "x"], 1, ["the input device is not a TTY"]),
        (["run", "--restart=always", "--rm", "x"], 125, ["Conflicting options: --restart and --rm"]),
        (["run", "--gpus=all", "x"], 125, ["--gpus is not supported"]),
        (
            ["run", "-m", "much", "x"],
            125,
            ['invalid argument "much" for "-m, --memory" flag: invalid size: \'much\'', "See 'minirt run --help'."],
        ),
        (["run", "--env-file", "/nowhere", "x"], 125, ["no such file or directory: /nowhere"]),
        (["run", "--pull=often", "x"], 125, ["invalid pull option: 'often'"]),
        (["images", "--format", "{{if .ID}}"], 1, ["--format: {{if .ID}} is not understood"]),
        (["hub", "--port", "99999"], 1, ["--port 99999 is not a port"]),
        (["pull", "UP"], 1, ["invalid reference format: repository name (library/UP) must be lowercase"]),
    ],
)
def test_mistakes_are_one_line(words: list[str], status: int, lines: list[str], root: Path) -> None:
    result = minirt(*words)
    assert (result.returncode, result.stdout) == (status, "")
    told = result.stderr.splitlines()
    assert told[0].startswith(f"minirt: {lines[0]}")
    assert (
        len(told) == 1
        or told[1] == f"See 'minirt{' ' + words[0] if words[0] in ('run',) else ''} --help'."
        or lines[1:]
    )


def test_where_there_is_no_linux(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for system, instead in ("darwin", "Linux virtual machine"), ("win32", "WSL 2"):
        monkeypatch.setattr(sys, "platform", system)
        assert main(["run", "hello-world"]) == 125
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("minirt: containers need a Linux kernel") and instead in line


def test_a_bug_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("minirt.client.Client.images", broken)
    assert main(["images"]) == 70
    assert capsys.readouterr().err.splitlines() == [
        "minirt: ZeroDivisionError: oops: this is a bug; 'minirt --debug …' shows where"
    ]
    assert main(["--debug", "images"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_streams_that_our_parent_closed(root: Path) -> None:
    for closed, words, status in (
        (1, ["images"], 0),
        (2, ["zip"], 1),
        (2, ["run", "x", "--foo"], 125),
        (0, ["load"], 1),
        (1, ["save", "x"], 1),
    ):
        result = minirt(*words, preexec_fn=lambda closed=closed: os.close(closed), stdin=None)
        assert (result.returncode, result.stdout) == (status, ""), words
        assert "bug" not in result.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nobody_reads(root: Path, unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that goes away ends us without a word; a full disk is told."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reader, writer = os.pipe()
    os.close(reader)
    result = minirt("--help", stdout=writer, capture_output=False, stderr=subprocess.PIPE)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            result = minirt("--help", stdout=full, capture_output=False, stderr=subprocess.PIPE)
        assert (result.returncode, result.stderr) == (1, "minirt: no space left on device\n")


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--foo", "x"],
        ["run", "-Z", "x"],
        ["run", "--name"],
        ["run", "-e"],
        ["images", "--foo"],
        ["run"],
        ["rmi"],
        ["tag", "a"],
        ["images", "a", "b"],
        ["ps", "extra"],
    ],
)
def test_usage_errors_are_docker_s(words: list[str], tmp_path: Path) -> None:
    from peers import require

    require("docker")
    docker = subprocess.run([shutil.which("docker") or "", *words], capture_output=True, text=True, check=False)
    ours = minirt(*words)
    # Older ones say '"docker run" requires … argument.' in other quotes and with a full stop.
    line = docker.stderr.splitlines()[0].removeprefix("docker: ").replace("docker", "minirt")
    line = re.sub(r'^"(minirt \S+)" (.*)\.$', r"'\1' \2", line).replace("exactly 2", "2")
    assert (ours.returncode, ours.stderr.splitlines()[0]) == (docker.returncode, f"minirt: {line}")
