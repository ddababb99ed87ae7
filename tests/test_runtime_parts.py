"""The parts of the runtime that need no container: users, the log, the environment, looking up inside a root."""

from __future__ import annotations

import os
from pathlib import Path

import bundles
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minirt.errors import StartError
from minirt.runtime import log, spec, user
from minirt.runtime.mounts import Root
from minirt.runtime.process import find

linux_only = pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="Linux only")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "rootfs"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc" / "passwd").write_text(bundles.PASSWD + "broken\nhalf:x:\nbig:x:4294967296:0::/:/bin/sh\n")
    (folder / "etc" / "group").write_text(bundles.GROUP)
    return folder


# The right column is what `docker run -u` gives over the same files.
@pytest.mark.parametrize(
    ("text", "uid", "gid", "groups"),
    [
        ("", 0, 0, [0]),
        ("root", 0, 0, [0]),
        ("web", 1000, 1000, [1000, 2000]),
        ("1000", 1000, 1000, [1000, 2000]),
        ("5555", 5555, 0, [0]),
        ("web:extra", 1000, 2000, [2000]),
        ("1000:2000", 1000, 2000, [2000]),
        (":2000", 0, 2000, [2000]),
        ("5555:7777", 5555, 7777, [7777]),
        ("2147483647", 2147483647, 0, [0]),
    ],
)
def test_user_is_found_as_docker_finds_it(root: Path, text: str, uid: int, gid: int, groups: list[int]) -> None:
    found = user.resolve(Root(str(root)), text)
    assert (found["uid"], found["gid"], found["additionalGids"]) == (uid, gid, groups)


@pytest.mark.parametrize("text", ["4294967296", "2147483648", "-1", "0:-5", "0:4294967296", "big", "9" * 5000])
def test_ids_out_of_range_are_refused(root: Path, text: str) -> None:
    with pytest.raises(StartError, match="uids and gids must be in range 0-2147483647"):
        user.resolve(Root(str(root)), text)


@pytest.mark.parametrize("text", ["nobody", "0:nogrp", "1e3", "half", "../root", "١"])
def test_unknown_names_are_refused(root: Path, text: str) -> None:
    with pytest.raises(StartError, match="unable to find (user|group) .*: no matching entries in (passwd|group) file"):
        user.resolve(Root(str(root)), text)


def test_passwd_is_the_images_own(root: Path, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("evil:x:6666:0::/:/bin/sh\n")
    passwd = root / "etc" / "passwd"
    for target in (f"{tmp_path}/passwd", "../../passwd", "/proc/self/root/etc/passwd"):
        passwd.unlink()
        passwd.symlink_to(target)
        with pytest.raises(StartError, match="unable to find user evil"):
            user.resolve(Root(str(root)), "evil")
    passwd.unlink()
    os.mkfifo(passwd)  # would block for ever
    with pytest.raises(StartError, match="not a regular file"):
        user.resolve(Root(str(root)), "root")
    passwd.unlink()
    assert user.resolve(Root(str(root)), "")["uid"] == 0
    assert user.home(Root(str(root)), 0) == "/"


def test_what_is_missing_is_made_inside_the_root(root: Path, tmp_path: Path) -> None:
    (root / "up").symlink_to("../../../made/here")
    (root / "abs").symlink_to(f"{tmp_path}/there")
    (root / "loop").symlink_to("loop")
    inside = Root(str(root))
    os.close(inside.make("/up/a"))
    os.close(inside.make("/abs", directory=False))
    os.close(inside.make("/x/../../y"))
    assert (root / "made/here/a").is_dir()
    assert (root / str(tmp_path).lstrip("/") / "there").is_file()
    assert (root / "y").is_dir()
    assert sorted(os.listdir(tmp_path)) == ["home", "rootfs"] or os.listdir(tmp_path) == ["rootfs"]
    for path in ("/loop", "/loop/x"):
        with pytest.raises(OSError):
            inside.make(path)
    with pytest.raises(OSError):
        inside.make("/up/b", links=False)


def test_find_searches_path_as_docker_does(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "program").mkdir(parents=True)
    second.mkdir()
    (second / "program").write_text("")
    with pytest.raises(StartError) as caught:
        find("program", f"{first}:{second}")
    assert caught.value.exit_code == 127  # there, but not executable: not found
    (second / "program").chmod(0o755)
    assert find("program", f"/no/such:{first}:{second}") == f"{second}/program"


def test_environment_has_dockers_order() -> None:
    # docker 20.10, image with ENV A=1 B=2 PATH=/bin, `-e C=3 -e A=9`
    found = spec.environment("box", ["A=1", "B=2", "PATH=/bin"], ["C=3", "A=9"])
    assert found == ["PATH=/bin", "HOSTNAME=box", "C=3", "A=9", "B=2"]
    assert spec.environment("box", ["A=1"], ["A", "HOSTNAME=mine", "E="]) == [spec.PATH, "HOSTNAME=mine", "E="]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=80), st.integers(0, 700))))
def test_the_log_gives_back_every_byte(tmp_path: Path, chunks: list[tuple[str, bytes, int]]) -> None:
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    writer = log.Log(str(path))
    for stream, data, times in chunks:
        writer.write(stream, data * times)
    writer.close()
    pieces = list(log.read(path))
    for name in ("stdout", "stderr"):
        expected = b"".join(data * times for stream, data, times in chunks if stream == name)
        assert b"".join(piece for stream, piece in pieces if stream == name) == expected
    for line in path.read_bytes().split(b"\n")[:-1]:
        assert len(line.split(b" ", 3)[3]) <= log.MAX_PART


def test_a_torn_last_line_of_the_log_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"2026-01-01T00:00:00.000000000Z stdout F whole\n2026-01-01T00:00:00.000000000Z stdout F ha")
    assert list(log.read(path)) == [("stdout", b"whole\n")]
    assert list(log.read(tmp_path / "none")) == []
