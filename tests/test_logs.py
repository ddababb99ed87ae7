"""Logs: what a container wrote comes back to the byte, also while it is written, cut, and kept within a size."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minirt.engine import Engine, logs
from minirt.errors import InvalidInput, MinirtError, Unsupported
from minirt.runtime import log
from minirt.runtime.log import MAX_PART, Log

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux")

Pieces = list[tuple[str, bytes]]


def joined(pieces: Iterator[tuple[str, bytes]] | Pieces) -> dict[str, bytes]:
    """The bytes of each stream."""
    found = {"stdout": b"", "stderr": b""}
    for stream, data in pieces:
        if stream:
            found[stream] += data
    return found


@pytest.fixture
def writer() -> Iterator[tuple[int, Callable[[], None]]]:
    """A pidfd of a process that stands for the shim, and what ends it."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert process.stdin
    fd = os.pidfd_open(process.pid)
    yield fd, lambda: (process.stdin.close(), process.wait())[0]  # type: ignore[union-attr, func-returns-value]
    process.kill()
    process.wait()
    os.close(fd)


_CHUNKS = st.lists(
    st.tuples(
        st.sampled_from(["stdout", "stderr"]),
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from(
                [b"\n", b"\n\n", b"\0\xff\r\n", b"x" * (MAX_PART - 1), b"y" * MAX_PART, b"z" * 40000 + b"\n"]
            ),
        ),
    ),
    max_size=25,
)


@given(_CHUNKS, st.sampled_from([0, 1, 50, 3000]), st.integers(1, 12), st.integers(0, 200))
@settings(deadline=None, max_examples=100)
def test_bytes_come_back(chunks: Pieces, limit: int, tail: int, torn: int) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = f"{folder}/log"
        book = Log(path, limit, 1000)
        for stream, data in chunks:
            book.write(stream, data)
        book.close()
        whole = list(log.read(path))
        assert joined(whole) == joined(chunks)
        assert list(log.read(path, tail=tail)) == whole[-tail:]
        assert list(log.read(path, tail=0)) == []
        for stream in "stdout", "stderr":
            assert list(log.read(path, [stream])) == [piece for piece in whole if piece[0] == stream]
        size = os.path.getsize(path)
        if whole and size:  # its last line is torn by a crash: it is lost, and the rest is as before
            os.truncate(path, max(0, size - 1 - torn % size))
            left = list(log.read(path))
            assert left == whole[: len(left)] and len(left) < len(whole)
            again = Log(path, limit, 1000)
            again.write("stdout", b"after\n")
            again.close()
            found = list(log.read(path))
            assert found[: len(left)] == left and found[-1] == ("stdout", b"after\n") and len(found) <= len(left) + 2


@pytest.mark.parametrize("files", [1, 2, 4])
def test_kept_within_a_size(files: int, tmp_path: Path) -> None:
    folder = tmp_path / "container"
    folder.mkdir()
    book = Log(str(folder / "log"), 1000, files)
    for number in range(500):
        book.write("stdout", b"%d\n" % number)
    book.close()
    there = sorted(path.name for path in folder.iterdir())
    assert there == ["log", *(f"log.{number}" for number in range(1, files))]
    assert all(path.stat().st_size < 1100 for path in folder.iterdir())
    numbers = [int(data) for _, data in log.read(folder / "log")]
    assert numbers == list(range(numbers[0], 500)) and len(numbers) > 15 * (files - 1)
    assert [int(data) for _, data in log.read(folder / "log", tail=30)] == numbers[-30:]


def test_a_full_disk_ends_the_log_and_not_the_container(tmp_path: Path) -> None:
    book = Log(str(tmp_path / "log"), 100, 2)
    tmp_path.joinpath("log.new").mkdir()  # no file can be made here: as if there was no room
    book.write("stdout", b"x" * 200 + b"\n")
    book.write("stdout", b"lost\n")
    book.close()
    assert book.error == "log: Is a directory"
    assert joined(log.read(tmp_path / "log"))["stdout"] == b"x" * 200 + b"\n"


@pytest.mark.parametrize(("limit", "files"), [(0, 1), (3000, 200)])
def test_followed_without_loss(limit: int, files: int, writer: tuple[int, Callable[[], None]], tmp_path: Path) -> None:
    """Nothing is missed and nothing comes twice, whatever file it is in when it is read."""
    fd, end = writer
    book = Log(str(tmp_path / "log"), limit, files)
    book.write("stdout", b"0\n1\n")
    found: list[Pieces] = [[], [], []]
    how: list[dict[str, Any]] = [{}, {"tail": 0}, {"timestamps": True, "tail": 1}]
    threads = [
        threading.Thread(target=lambda f=f, h=h: f.extend(log.read(tmp_path / "log", writer=fd, **h)))  # type: ignore[misc]
        for f, h in zip(found, how, strict=True)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    for number in range(2, 8000):
        book.write("stdout" if number % 3 else "stderr", b"%d\n" % number)
        if number % 50 == 0:
            time.sleep(0.005)
    book.write("stdout", b"no newline")
    book.close()
    end()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    lines = [[data for stream, data in each if stream] for each in found]
    assert lines[0][-1] == lines[1][-1] == b"no newline"
    assert [int(line) for line in lines[0][:-1]] == list(range(8000))
    assert [int(line) for line in lines[1][:-1]] == list(range(2, 8000))
    assert [int(line.split()[1]) for line in lines[2][:-1]] == list(range(1, 8000))


def test_a_follower_hears_once_a_second_that_there_is_nothing(
    writer: tuple[int, Callable[[], None]], tmp_path: Path
) -> None:
    fd, end = writer
    book = Log(str(tmp_path / "log"))
    start, pieces = time.monotonic(), log.read(tmp_path / "log", writer=fd)
    assert [next(pieces), next(pieces)] == [("", b"")] * 2
    assert 1.8 < time.monotonic() - start < 10
    book.write("stderr", b"x\n")
    assert next(piece for piece in pieces if piece[0]) == ("stderr", b"x\n")
    book.close()
    end()
    assert [piece for piece in pieces if piece[0]] == []


def test_times(tmp_path: Path) -> None:
    rows = [(second, f"line {second}") for second in range(10, 60, 10)]
    path = tmp_path / "log"
    path.write_text("".join(f"2026-01-01T00:00:{s}.000000500Z stdout F {text}\n" for s, text in rows))
    zero = 1767225600

    def lines(**how: Any) -> list[str]:
        return [data.decode().rstrip("\n") for _, data in log.read(path, **how)]

    assert lines(since=zero + 30) == ["line 30", "line 40", "line 50"]
    assert lines(since=zero + 30.000002) == ["line 40", "line 50"]
    assert lines(until=zero + 20.1) == ["line 10", "line 20"]
    assert lines(since=zero + 15, until=zero + 45, tail=4) == ["line 20", "line 30", "line 40"]
    assert lines(until=zero + 20, tail=1) == []  # docker's: the tail is cut first
    assert lines(tail=1, timestamps=True) == ["2026-01-01T00:00:50.000000500Z line 50"]


def test_the_parts_of_a_long_line_have_one_time(tmp_path: Path) -> None:
    book = Log(str(tmp_path / "log"))
    book.write("stdout", b"x" * 40000 + b"\ny\n")
    book.close()
    text = joined(log.read(tmp_path / "log", timestamps=True))["stdout"]
    assert [line[30:31] for line in text.splitlines()] == [b" ", b" "]
    assert [line[31:] for line in text.splitlines()] == [b"x" * 40000, b"y"]


@pytest.mark.parametrize(
    ("driver", "options", "told"),
    [
        ("syslog", {}, 'plugin "syslog" not found'),
        ("json-file", {"nix": "1"}, "unknown log opt 'nix' for json-file log driver"),
        ("none", {"max-size": "1k"}, "unknown log opt 'max-size' for none log driver"),
        ("json-file", {"max-size": "x"}, "invalid size: 'x'"),
        ("json-file", {"max-size": "0"}, "invalid size: '0'"),
        ("local", {"max-file": "0"}, "max-file cannot be less than 1"),
        ("json-file", {"max-size": "1k", "max-file": "x"}, "max-file cannot be less than 1"),
        ("json-file", {"max-file": "2"}, "max-file needs max-size"),
        ("json-file", {"compress": "true"}, "log opt 'compress' is not supported"),
    ],
)
def test_what_cannot_be_asked_for(driver: str, options: dict[str, str], told: str) -> None:
    with pytest.raises(MinirtError, match=told):
        logs.limits({"Type": driver, "Config": options})


@pytest.mark.parametrize(
    ("config", "settled"),
    [
        (None, (0, 1)),
        ({"Type": "", "Config": None}, (0, 1)),
        ({"Type": "json-file", "Config": {"max-size": "1.5k", "max-file": "3", "compress": "false"}}, (1536, 3)),
        ({"Type": "local", "Config": {}}, (20 << 20, 5)),
        ({"Type": "none"}, (0, 0)),
    ],
)
def test_limits(config: dict[str, Any] | None, settled: tuple[int, int]) -> None:
    found = logs.limits(config)
    assert (found["limit"], found["files"]) == settled


@pytest.fixture
def engine(root: Path) -> Iterator[Engine]:
    engine = Engine(root, "embedded")
    for _ in engine.pull("toolbox"):
        pass
    yield engine
    engine.close()


def started(engine: Engine, script: str, **log_config: Any) -> str:
    body = {"Image": "toolbox", "Cmd": ["sh", "-c", script], "HostConfig": {"LogConfig": log_config}}
    identity = str(engine.containers.create(body)["Id"])
    engine.containers.start(identity)
    return identity


def test_of_a_container(engine: Engine) -> None:
    """Followed to its end, over lives and files; a container that does not run is not waited for."""
    script = "for i in $(seq 40); do echo out $i; echo err $i >&2; sleep 0.01; done; printf end"
    options = {"Type": "json-file", "Config": {"max-size": "1k", "max-file": "20"}}
    name = started(engine, script, **options)
    expected = {
        "stdout": "".join(f"out {i}\n" for i in range(1, 41)).encode() + b"end",
        "stderr": "".join(f"err {i}\n" for i in range(1, 41)).encode(),
    }
    assert joined(engine.containers.logs(name, follow=True)) == expected
    assert joined(engine.containers.logs(name)) == expected
    assert joined(engine.containers.logs(name, stderr=False, tail=3))["stdout"].endswith(b"out 40\nend")
    assert len(list(engine.containers.folder(engine.containers.find(name)).glob("log*"))) > 2
    assert engine.containers.inspect(name)["HostConfig"]["LogConfig"] == options
    engine.containers.start(name)
    engine.containers.wait(name)
    twice = {stream: data * 2 for stream, data in expected.items()}
    assert joined(engine.containers.logs(name, follow=True)) == twice
    with pytest.raises(InvalidInput, match="you must choose at least one stream"):
        engine.containers.logs(name, stdout=False, stderr=False)


def test_none_is_kept(engine: Engine) -> None:
    name = started(engine, "echo x", Type="none")
    engine.containers.wait(name)
    with pytest.raises(Unsupported, match="configured logging driver does not support reading"):
        engine.containers.logs(name)
    assert engine.containers.inspect(name)["LogPath"] == ""
    assert not list(engine.containers.folder(engine.containers.find(name)).glob("log*"))


def test_files_that_are_being_renamed(tmp_path: Path) -> None:
    """A hole is one for a moment; where the one who renames was killed it stays, and is read over."""
    for name, number in ("log.2", 1), ("aside", 2), ("log", 3):
        (tmp_path / name).write_text(f"2026-01-01T00:00:00.000000000Z stdout F {number}\n")
    assert joined(log.read(tmp_path / "log"))["stdout"] == b"1\n3\n"
    timer = threading.Timer(0.1, lambda: (tmp_path / "aside").rename(tmp_path / "log.1"))
    timer.start()
    assert joined(log.read(tmp_path / "log"))["stdout"] == b"1\n2\n3\n"
    timer.join()
