"""The command end to end, as a user types it: embedded hub, fresh root, real containers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import said
from users import plain_user

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux")

COMMAND = [sys.executable, "-m", "minirt"]


def minirt(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    settings = {"capture_output": True, "text": True, "check": False, **settings}
    if "input" not in settings:
        settings.setdefault("stdin", subprocess.DEVNULL)
    return said.run([*COMMAND, *words], **settings)


def good(*words: str, **settings: Any) -> str:
    """Output of a command that must succeed."""
    result = minirt(*words, **settings)
    assert result.returncode == 0, result.stderr
    return str(result.stdout)


def test_hello_world_twice(root: Path) -> None:
    """docker's words on the first run, not one on the second; the same message both times."""
    first, second = minirt("run", "--rm", "hello-world"), minirt("run", "--rm", "hello-world")
    assert re.fullmatch(
        r"""Unable to find image 'hello-world:latest' locally
latest: Pulling from library/hello-world
([0-9a-f]{12}): Pulling fs layer
\1: (?:Verifying Checksum\n\1: )?Download complete
\1: Pull complete
Digest: sha256:[0-9a-f]{64}
Status: Downloaded newer image for hello-world:latest
""",
        first.stderr,
    )
    assert (second.stderr, first.returncode, second.returncode) == ("", 0, 0)
    assert first.stdout == second.stdout and "hello-world" in first.stdout
    assert good("ps", "-aq") == ""


def test_pull_words(root: Path) -> None:
    first = good("pull", "hello-world").splitlines()
    assert first[0] == "Using default tag: latest"
    assert first[-1] == "docker.io/library/hello-world:latest"
    assert good("pull", "hello-world").splitlines()[-2:] == [
        "Status: Image is up to date for hello-world:latest",
        "docker.io/library/hello-world:latest",
    ]
    assert good("pull", "-q", "hello-world") == "docker.io/library/hello-world:latest\n"
    good("pull", "greeter:1.0")
    assert good("pull", "greeter:2.0").count(": Already exists\n") == 1


def test_exit_status(root: Path) -> None:
    good("pull", "toolbox")
    for words, status, told in (
        (["toolbox", "sh", "-c", "exit 7"], 7, ""),
        (["toolbox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"], 137, ""),
        (["toolbox", "nosuch"], 127, 'exec: "nosuch": executable file not found in $PATH'),
        (["toolbox", "/etc"], 126, "permission denied"),
        (["--pull=never", "nothing"], 125, "No such image: nothing:latest"),
        (["nothing"], 125, "nothing"),
        (["Bad"], 125, "must be lowercase"),
        (["--network=mars", "toolbox"], 125, "mars"),
        (["-w", "relative", "toolbox"], 125, "absolute path"),
    ):
        result = minirt("run", "--rm", *words)
        assert (result.returncode, result.stdout) == (status, ""), words
        ours = [line for line in result.stderr.splitlines() if line.startswith("minirt: ")]
        assert (told in ours[0] and len(ours) == 1) if told else ours == []
        assert "Traceback" not in result.stderr
    assert good("ps", "-aq") == "", "a failed --rm run leaves a container"


def test_options_reach_the_container(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "yes")
    script = "echo $A $FROM_HERE; hostname; pwd; id -u; touch /x 2>/dev/null || echo read-only; cat"
    words = ["-i", "-eA=1", "-e", "FROM_HERE", "-h", "host", "-w", "/tmp", "--read-only", "toolbox", "sh", "-c", script]
    result = minirt("run", "--rm", "-q", *words, input="in\n")
    assert (result.stdout, result.stderr) == ("1 yes\nhost\n/tmp\n0\nread-only\nin\n", "")
    assert good("run", "--rm", "--entrypoint", "echo", "toolbox", "-n", "--rm") == "--rm"
    assert good("run", "--rm", "toolbox", "cat", input="not for it") == ""


def test_bytes_stay_bytes(root: Path) -> None:
    good("pull", "toolbox")
    data = os.urandom(1 << 20)
    script = ["sh", "-c", "tee /dev/stderr"]
    result = subprocess.run([*COMMAND, "run", "-i", "--rm", "toolbox", *script], input=data, capture_output=True)
    assert result.stdout == data and result.stderr == data


def test_signals_are_the_container_s(root: Path) -> None:
    good("pull", "toolbox")
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT:
        script = f"trap 'echo got; exit 5' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
        with subprocess.Popen(
            [*COMMAND, "run", "--rm", "toolbox", "sh", "-c", script], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout and process.stdout.readline() == "ready\n"
            process.send_signal(number)
            assert process.communicate(timeout=10) == ("got\n", None)
        assert process.returncode == 5


def test_three_interrupts_end_what_ignores_them(root: Path) -> None:
    good("pull", "toolbox")
    words = ["run", "--rm", "toolbox", "sh", "-c", "trap '' INT; echo ready; while :; do sleep 0.05; done"]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert "killing the container" in process.communicate(timeout=10)[1]
    assert process.returncode == 137
    assert good("ps", "-aq") == ""


def test_life_of_a_container(root: Path) -> None:
    identity = good(
        "run", "-dq", "--name", "one", "-l", "a=b", "toolbox", "sh", "-c", "echo out; echo err >&2; sleep 60"
    )
    assert re.fullmatch("[0-9a-f]{64}\n", identity)
    assert good("ps", "--format", "{{.Names}} {{.State}} {{.Labels}}").startswith("one running a=b")
    refused = minirt("rm", "one", "nothing")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert [line.partition(":")[0] for line in refused.stderr.splitlines()] == ["minirt", "minirt"]
    deadline = time.monotonic() + 5
    while not (logs := minirt("logs", "one")).stderr and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (logs.stdout, logs.stderr) == ("out\n", "err\n")
    assert good("stop", "-t0", "one") == "one\n"
    assert good("wait", "one") == "137\n"
    assert good("ps", "-q") == ""
    assert good("ps", "-ql") == identity[:12] + "\n"
    assert re.search(r"Exited \(137\) .* ago", good("ps", "-a"))
    assert good("start", "one") == "one\n"
    assert good("kill", "one") == "one\n"
    good("wait", "one")
    assert good("container", "rm", "one") == "one\n"
    again = minirt("rm", "-f", "one")
    assert (again.returncode, again.stderr) == (0, "minirt: No such container: one\n")
    assert minirt("run", "--name", "two", "toolbox", "sh", "-c", "exit 3").returncode == 3
    assert minirt("start", "-a", "two").returncode == 3


def test_save_and_load(root: Path, tmp_path: Path) -> None:
    good("pull", "-q", "hello-world")
    good("tag", "hello-world", "mine:1")
    archive = tmp_path / "archive.tar"
    good("save", "-o", str(archive), "mine:1")
    with tarfile.open(archive) as tar:
        assert "manifest.json" in tar.getnames()
    piped = subprocess.run([*COMMAND, "save", "mine:1"], capture_output=True, check=True).stdout
    assert good("rmi", "mine:1").startswith("Untagged: mine:1\n")
    assert good("load", "-i", str(archive)) == "Loaded image: mine:1\n"
    assert subprocess.run([*COMMAND, "load", "-q"], input=piped, capture_output=True, check=True).stdout.startswith(
        b"Loaded image"
    )
    assert "mine:1\n" in good("images", "--format", "{{.Repository}}:{{.Tag}}")
    missing = minirt("save", "-o", str(tmp_path / "no.tar"), "nothing")
    assert (missing.returncode, [p.name for p in tmp_path.glob("*.tar")]) == (1, ["archive.tar"])
    broken = minirt("load", input="this is no tar")
    assert broken.returncode == 1 and len(broken.stderr.splitlines()) == 1


def test_system(root: Path) -> None:
    good("run", "-q", "hello-world")
    assert good("system", "check") == "Everything in the store verifies\n"
    assert "Images          1 " in good("system", "df")
    refused = minirt("system", "prune", input="n\n")
    assert refused.stdout.endswith("[y/N] ")
    assert (refused.returncode, refused.stderr) == (0, "")
    assert re.search(r"Deleted Containers:\n[0-9a-f]{64}\n\nTotal reclaimed space: ", good("system", "prune", "-f"))
    assert json.loads(good("version", "--format", "json"))["Server"]["Version"]
    assert f" Docker Root Dir: {root}\n" in good("info")
    assert good("info", "-f", "{{.Containers}} {{.Images}}") == "0 1\n"
    blob = next(blob for blob in (root / "oci/blobs/sha256").iterdir())
    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes() + b"x")
    damaged = minirt("system", "check")
    assert damaged.returncode == 1 and blob.name[:12] in damaged.stdout


def test_doctor(root: Path) -> None:
    rows = json.loads(good("doctor", "--json"))
    shown = good("doctor").splitlines()
    assert shown[0].split() == ["CAPABILITY", "WORKS", "TRIED", "DETAIL"]
    cells = [re.split("  +", line)[:3] for line in shown[1 : len(rows) + 1]]
    assert cells == [[row["capability"], "yes" if row["works"] else "no", row["tried"]] for row in rows]
    for row in rows:
        assert all(any(text in line for line in shown) for text in (row["cost"], row["hint"]))


def test_hub_serves_until_it_is_told_to_stop(root: Path, tmp_path: Path) -> None:
    with subprocess.Popen([*COMMAND, "hub", "--port=0"], stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout
        line, example = hub.stdout.readline(), hub.stdout.readline()
        url = re.search(r"http://(127\.0\.0\.1:\d+)", line)
        assert url and example.startswith(f"  docker pull {url[1]}/library/")
        name = f"{url[1]}/library/hello-world"
        assert good("--root", str(tmp_path / "other"), "pull", "-q", name) == f"{name}:latest\n"
        busy = minirt("hub", f"--port={url[1].partition(':')[2]}")
        assert busy.returncode == 1 and len(busy.stderr.splitlines()) == 1
        hub.send_signal(signal.SIGTERM)
        assert hub.wait(10) == 0


def test_no_permission(tmp_path: Path) -> None:
    """A root that cannot be made is told in one line."""
    (tmp_path / "file").write_text("")
    result = minirt("--root", str(tmp_path / "file/root"), "images")
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert str(tmp_path / "file") in result.stderr and "bug" not in result.stderr


def test_a_cached_run_loads_nothing_slow(root: Path) -> None:
    """What runs, and how, is the daemon's business: of the package the client loads its own rooms alone."""
    good("run", "--rm", "hello-world")
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "minirt", "run", "--rm", "hello-world"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    loaded = {line.rpartition("|")[2].strip() for line in shown.splitlines()}
    slow = {"requests", "http", "ssl", "argparse", "asyncio", "email", "logging", "ipywidgets", "IPython"}
    slow |= {"subprocess", "ctypes", "tempfile", "hashlib", "fractions", "dataclasses", "minirt.cli.progress"}
    assert loaded & slow == set()
    rooms = {name.split(".")[1] for name in loaded if name.startswith("minirt.")}
    assert rooms <= {"__main__", "child", "cli", "client", "errors", "keys", "lean", "trace", "units"}


@pytest.mark.parametrize("subuids", [True, False], ids=["subuids", "one uid"])
def test_as_a_plain_user(subuids: bool, tmp_path: Path) -> None:
    """With no option and no setting but the hub: the store is the user's own, containers run, failures are one line."""
    with plain_user(subuids) as user:
        command = ["env", "MINIRT_HUB=embedded", *COMMAND]
        first, second = (user.run([*command, "run", "--rm", "hello-world"]) for _ in range(2))
        assert "Pull complete" in first.stderr and second.stderr == "" and first.stdout == second.stdout
        ended = user.run([*command, "run", "-q", "--rm", "toolbox", "sh", "-c", "id -u; exit 4"], check=False)
        assert (ended.returncode, ended.stdout) == (4, "0\n")
        assert f"Docker Root Dir: {user.home}/.local/share/minirt\n" in user.run([*command, "info"]).stdout
        tmp_path.chmod(0o700)
        refused = user.run([*command, "--root", str(tmp_path / "root"), "images"], check=False)
        assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1
        assert "denied" in refused.stderr and "bug" not in refused.stderr


def test_a_daemon_serves_its_own_folder() -> None:
    """Not that of another home, and not one of the same name that was made after its own was removed."""
    with plain_user(False) as user:

        def names(home: Path, *words: str) -> str:
            command = ["env", f"HOME={home}", "MINIRT_HUB=embedded", "MINIRT_DAEMON_IDLE=5", *COMMAND, *words]
            return user.run(command).stdout

        other = user.home / "other"
        names(user.home, "pull", "-q", "hello-world")
        for _ in range(2):
            assert names(other, "images", "-q") == "" != names(user.home, "images", "-q")
        for _ in range(2):
            shutil.rmtree(user.home / ".local/share/minirt")
            assert names(user.home, "images", "-q") == ""
            assert "Hello" in names(user.home, "run", "--rm", "hello-world")


def test_a_runtime_folder_that_is_too_long_for_a_socket_is_left(tmp_path: Path, root: Path) -> None:
    deep = tmp_path.joinpath(*["deep-folder"] * 8)
    deep.mkdir(parents=True)
    words = [*COMMAND, "run", "--rm", "hello-world"]
    done = subprocess.run(words, env={**os.environ, "XDG_RUNTIME_DIR": str(deep)}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Hello from a container!"), done.stderr
    assert list(deep.iterdir()) == []
