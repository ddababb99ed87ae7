"""Mounts: kinds, options, order, targets, propagation (runtime-spec config.md#mounts, config-linux.md)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ociruntime import raised


@pytest.fixture
def outside(runtime: Any) -> Path:
    """A folder of the host's, with a file and a folder in it."""
    folder = Path(runtime.home / "outside")
    (folder / "sub").mkdir(parents=True)
    (folder / "file").write_text("from outside\n")
    return folder


@pytest.fixture
def nested(outside: Path) -> Iterator[Path]:
    """The folder, with a file system of its own mounted on `sub`."""
    subprocess.run(["mount", "-t", "tmpfs", "inner", outside / "sub"], check=True)
    (outside / "sub" / "deep").write_text("deep\n")
    yield outside
    subprocess.run(["umount", outside / "sub"], check=True)


def options(text: str, point: str) -> set[str]:
    """The options of the mount on `point`, from the container's /proc/self/mountinfo."""
    (row,) = (row for row in text.splitlines() if row.split()[4] == point)
    return {*row.split()[5].split(","), *row.split(" - ")[1].split()[2].split(",")}


def test_a_folder_is_bound(box: Any, outside: Path) -> None:
    one = box("sh", "-c", "cat /mnt/file; echo back > /mnt/new")
    one.mount("/mnt", outside, "rbind", "rw")
    assert one.output() == "from outside\n"
    assert (outside / "new").read_text() == "back\n"


def test_a_file_is_bound_on_a_file_that_is_made(box: Any, outside: Path) -> None:
    one = box("cat", "/etc/new/name.conf")
    one.mount("/etc/new/name.conf", outside / "file", "bind")
    assert one.output() == "from outside\n"
    assert (one.rootfs / "etc/new/name.conf").read_bytes() == b""


def test_missing_targets_are_made(box: Any) -> None:
    one = box("stat", "-c", "%F", "/a/b/c")
    one.mount("/a/b/c", "tmpfs", kind="tmpfs")
    assert one.output() == "directory\n"
    assert (one.rootfs / "a/b/c").is_dir()


def test_a_source_that_is_missing_is_refused_by_its_name(box: Any, outside: Path) -> None:
    one = box("true")
    one.mount("/mnt", outside / "nosuch", "bind")
    assert raised(one.create(ok=False), "nosuch", "no such file or directory")
    assert not (outside / "nosuch").exists()


def test_a_relative_source_is_one_in_the_bundle(box: Any) -> None:
    one = box("cat", "/etc/name")
    (one.bundle / "name").write_text("bundled\n")
    one.mount("/etc/name", "name", "bind")
    assert one.output() == "bundled\n"


def test_a_folder_on_a_file_is_refused(box: Any, outside: Path) -> None:
    one = box("true")
    one.mount("/etc/plain", outside, "bind")
    assert raised(one.create(ok=False), "not a directory", "mount /etc/plain")


def test_read_only(box: Any, outside: Path) -> None:
    one = box("sh", "-c", "echo x > /mnt/new")
    one.mount("/mnt", outside, "bind", "ro")
    result = one.run()
    assert result.status != 0 and "Read-only file system" in result.err
    assert not (outside / "new").exists()


def test_rbind_takes_what_is_mounted_below(box: Any, nested: Path) -> None:
    one = box("ls", "/mnt/sub")
    one.mount("/mnt", nested, "rbind")
    assert one.output() == "deep\n"


def test_bind_does_not(box: Any, nested: Path) -> None:
    one = box("ls", "/mnt/sub")
    one.mount("/mnt", nested, "bind")
    assert one.output() == ""


def test_ro_is_the_top_alone_and_rro_is_all(box: Any, nested: Path) -> None:
    """runtime-spec: `ro` of an rbind leaves what is below as it is; `rro` (kernel 5.12) does not."""
    one = box("touch", "/mnt/sub/new")
    one.mount("/mnt", nested, "rbind", "ro")
    assert one.run().status == 0
    two = box("sh", "-c", "touch /mnt/sub/newer || touch /mnt/newer")
    two.mount("/mnt", nested, "rbind", "rro")
    result = two.run()
    assert result.err.count("Read-only file system") == 2


def test_options_become_flags(box: Any, outside: Path) -> None:
    one = box("cat", "/proc/self/mountinfo")
    one.mount("/mnt", outside, "bind", "nosuid", "nodev", "noexec", "noatime")
    assert {"rw", "nosuid", "nodev", "noexec", "noatime"} <= options(one.output(), "/mnt")


def test_a_later_option_wins(box: Any, outside: Path) -> None:
    one = box("cat", "/proc/self/mountinfo")
    one.mount("/mnt", outside, "bind", "ro", "nosuid", "rw", "suid")
    if one.runtime.name == "crun":
        pytest.skip("crun 1.8 adds them up")
    assert options(one.output(), "/mnt") & {"ro", "rw", "nosuid"} == {"rw"}


def test_noexec_holds(box: Any, outside: Path) -> None:
    one = box("sh", "-c", "/mnt/tool")
    (outside / "tool").write_text("#!/bin/sh\necho ran\n")
    (outside / "tool").chmod(0o755)
    one.mount("/mnt", outside, "bind", "noexec")
    result = one.run()
    assert (result.status, result.out) == (126, "")


def test_tmpfs_with_its_size_and_mode(box: Any) -> None:
    script = "stat -c %a /mnt; df -k /mnt | awk 'NR==2 {print $2}'; head -c 2000000 /dev/zero > /mnt/x || echo full"
    one = box("sh", "-c", script)
    one.config["linux"]["devices"] = [{"path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666}]
    one.mount("/mnt", "tmpfs", "size=1024k", "mode=1700", "nosuid", kind="tmpfs")
    assert one.output().split() == ["1700", "1024", "full"]


def test_tmpfs_with_an_owner(box: Any) -> None:
    one = box("stat", "-c", "%u:%g %a", "/mnt")
    one.mount("/mnt", "tmpfs", "uid=7", "gid=8", "mode=0710", kind="tmpfs")
    assert one.output() == "7:8 710\n"


def test_tmpfs_read_only(box: Any) -> None:
    one = box("touch", "/mnt/x")
    one.mount("/mnt", "tmpfs", "ro", kind="tmpfs")
    assert "Read-only" in one.run().err


def test_mounts_come_in_the_order_given(box: Any, outside: Path) -> None:
    one = box("sh", "-c", "ls /mnt; cat /mnt/in/file")
    one.mount("/mnt", "tmpfs", kind="tmpfs")
    one.mount("/mnt/in", outside, "bind")
    assert one.output() == "in\nfrom outside\n"


def test_a_later_mount_covers_an_earlier_one(box: Any, outside: Path) -> None:
    one = box("ls", "/mnt")
    one.mount("/mnt/in", outside, "bind")
    one.mount("/mnt", "tmpfs", kind="tmpfs")
    assert one.output() == ""


def test_symlinks_in_a_target_stay_inside(box: Any, outside: Path) -> None:
    one = box("cat", "/real/file")
    (one.rootfs / "link").symlink_to("/real")
    (one.rootfs / "real").mkdir()
    one.mount("/link", outside, "bind")
    assert one.output() == "from outside\n"


@pytest.mark.parametrize("up", ["../../../../../../../..", "/"])
def test_a_target_that_leads_out_does_not(box: Any, outside: Path, up: str) -> None:
    """CVE-2021-30465 and its kin: the host's own folder of that name stays as it is."""
    one = box("true")
    target = str(one.runtime.home / "victim")
    os.makedirs(target)
    (one.rootfs / "link").symlink_to(f"{up}{target}")
    one.mount("/link/made", outside, "bind")
    one.run()
    assert os.listdir(target) == []


def test_dot_dot_in_a_target_stays_inside(box: Any) -> None:
    one = box("cat", "/proc/self/mountinfo")
    one.mount("/../../inside", "tmpfs", kind="tmpfs")
    result = one.run()
    assert raised(result) if result.status else options(result.out, "/inside")
    assert not os.path.exists("/inside")


def test_proc_on_a_symlink_is_refused_or_inside(box: Any) -> None:
    """CVE-2019-19921: /proc of the image is a link to a folder that the attacker shares with another container."""
    one = box("cat", "/proc/self/attr/current", "/proc/version")
    (one.rootfs / "proc").rmdir()
    (one.rootfs / "elsewhere").mkdir()
    (one.rootfs / "proc").symlink_to("/elsewhere")
    result = one.run()
    assert result.status != 0 or "Linux" in result.out


def test_proc_is_of_the_containers_processes(box: Any) -> None:
    one = box("sh", "-c", "ls -d /proc/[0-9]*")
    assert one.output().split()[:1] == ["/proc/1"]


def test_an_unknown_file_system_is_refused(box: Any) -> None:
    one = box("true")
    one.mount("/mnt", "x", kind="nosuchfs")
    assert raised(one.create(ok=False), "no such device", "nosuchfs")


def test_an_unknown_option_is_refused(box: Any) -> None:
    one = box("true")
    one.mount("/mnt", "x", "nosuchoption", kind="tmpfs")
    assert raised(one.create(ok=False), "invalid argument", "nosuchoption")


def test_the_root_is_read_only_on_request(box: Any) -> None:
    one = box("sh", "-c", "touch /new; touch /tmp/new && echo there")
    one.config["root"]["readonly"] = True
    one.mount("/tmp", "tmpfs", kind="tmpfs")
    result = one.run()
    assert "Read-only file system" in result.err
    assert result.out == "there\n"
    assert not (one.rootfs / "new").exists()


def test_a_root_outside_the_bundle(box: Any, runtime: Any) -> None:
    one = box("cat", "/etc/plain")
    one.config["root"]["path"] = str(runtime.home / "moved")
    one.rootfs.rename(runtime.home / "moved")
    assert one.output() == "not a program\n"


def test_the_hosts_root_is_gone(box: Any) -> None:
    """After pivot_root no mount of the host's is in the table."""
    rows = [row.split() for row in box("cat", "/proc/self/mountinfo").output().splitlines()]
    points = {row[4] for row in rows}
    assert points >= {"/", "/proc", "/dev", "/dev/pts", "/sys"}
    assert not any(point.startswith(("/tmp", "/boot", "/run", "/var")) for point in points)


def test_without_pivot_root(box: Any) -> None:
    one = box("sh", "-c", "ls /; cat /etc/plain")
    assert "not a program" in one.output("--no-pivot")


# What is in a row of mountinfo after the options, up to the dash.
PROPAGATION = {
    "private": "", "rprivate": "", "slave": "master:", "rslave": "master:", "shared": "shared:", "rshared": "shared:",
    "unbindable": "unbindable", "runbindable": "unbindable",
}  # fmt: skip


@pytest.mark.parametrize("kind", PROPAGATION)
def test_propagation_of_a_mount(box: Any, nested: Path, kind: str) -> None:
    subprocess.run(["mount", "--make-shared", nested / "sub"], check=True)
    one = box("cat", "/proc/self/mountinfo")
    one.mount("/mnt", nested / "sub", "bind", kind)
    # As docker does: from a root that is private to begin with nothing can be shared (crun's is, runc's is a slave).
    one.linux["rootfsPropagation"] = "shared" if "shared" in kind else "slave"
    if one.runtime.name == "crun" and "unbindable" in kind:
        pytest.skip("crun 1.8 does not do that")
    (row,) = (row for row in one.output().splitlines() if row.split()[4] == "/mnt")
    words = row.split(" - ")[0].split()[6:]
    if PROPAGATION[kind]:
        assert any(word.startswith(PROPAGATION[kind]) for word in words), row
    else:
        assert words == []


def test_a_mount_made_outside_comes_in_when_slave(box: Any, outside: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "outer", outside / "sub"], check=True)
    try:
        subprocess.run(["mount", "--make-shared", outside / "sub"], check=True)
        (outside / "sub" / "later").mkdir()
        one = box("sh", "-c", "while ! [ -e /mnt/later/come ]; do sleep 0.01; done; echo seen; umount /mnt/later; ls /")
        one.mount("/mnt", outside / "sub", "rbind", "rslave")
        one.linux["rootfsPropagation"] = "rslave"
        one.create()
        subprocess.run(["mount", "-t", "tmpfs", "late", outside / "sub" / "later"], check=True)
        (outside / "sub" / "later" / "come").touch()
        one.start()
        one.wait()
        assert one.printed.startswith("seen\n")
    finally:
        subprocess.run(["umount", "-R", outside / "sub"], check=True)


@pytest.mark.parametrize("kind", ["private", "slave", "shared", "unbindable", "rprivate", "rslave", "rshared"])
def test_propagation_of_the_root(box: Any, kind: str) -> None:
    one = box("cat", "/proc/self/mountinfo")
    one.linux["rootfsPropagation"] = kind
    if one.runtime.name == "runc" and kind in ("shared", "rshared", "unbindable"):
        pytest.skip("runc 1.1 sets it before pivot_root only")
    (row,) = (row for row in one.output().splitlines() if row.split()[4] == "/")
    words = row.split(" - ")[0].split()[6:]
    if "shared" in kind:
        assert any(word.startswith("shared:") for word in words), row
    else:
        assert not any(word.startswith("shared:") for word in words), row


def test_an_unknown_propagation_of_the_root_is_refused(box: Any) -> None:
    one = box("true")
    one.linux["rootfsPropagation"] = "nosuch"
    if one.runtime.name == "crun":
        pytest.skip("crun 1.8 does not look")
    assert raised(one.create(ok=False))


def test_copy_up_fills_a_tmpfs(box: Any) -> None:
    """`tmpcopyup`, which podman sends for --tmpfs; a runtime may refuse it, by its name."""
    one = box("sh", "-c", "cat /data/name; stat -c %a /data; echo more > /data/new")
    (one.rootfs / "data").mkdir()
    (one.rootfs / "data").chmod(0o711)
    (one.rootfs / "data" / "name").write_text("copied\n")
    one.mount("/data", "tmpfs", "tmpcopyup", kind="tmpfs")
    result = one.run()
    if result.status:
        assert raised(result, "tmpcopyup")
    else:
        assert result.out.splitlines()[0] == "copied"
        assert os.listdir(one.rootfs / "data") == ["name"]


@pytest.mark.parametrize("path", ["/proc/timer_list", "/sys/firmware", "/etc/plain", "/masked"])
def test_masked_paths_read_as_nothing(box: Any, path: str) -> None:
    one = box("sh", "-c", f"if [ -d {path} ]; then ls {path}; touch {path}/x; else cat {path}; fi")
    (one.rootfs / "masked").mkdir()
    (one.rootfs / "masked" / "secret").touch()
    one.linux["maskedPaths"] = [path]
    result = one.run()
    assert result.out == ""
    assert not (one.rootfs / "masked" / "x").exists()


def test_masked_paths_that_are_missing_are_passed_over(box: Any) -> None:
    one = box("echo", "fine")
    one.linux["maskedPaths"] = ["/no/such/path"]
    one.linux["readonlyPaths"] = ["/no/such/path"]
    assert one.output() == "fine\n"


@pytest.mark.parametrize("path", ["/etc", "/etc/plain", "/proc/sys"])
def test_read_only_paths(box: Any, path: str) -> None:
    target = {"/etc": "/etc/new", "/etc/plain": "/etc/plain", "/proc/sys": "/proc/sys/kernel/domainname"}[path]
    one = box("sh", "-c", f"echo x > {target}")
    one.linux["readonlyPaths"] = [path]
    result = one.run()
    assert result.status != 0 and "Read-only file system" in result.err


def test_a_masked_path_behind_a_link_masks_what_is_inside(box: Any) -> None:
    """CVE-2025-31133: where /dev/null of the image leads elsewhere, or the path is a link, the host stays as it is."""
    one = box("cat", "/etc/secret")
    victim = one.runtime.home / "victim"
    victim.write_text("host\n")
    (one.rootfs / "etc" / "secret").symlink_to(f"../../../../../../..{victim}")
    one.linux["maskedPaths"] = ["/etc/secret"]
    assert "host" not in one.run().out
    assert victim.read_text() == "host\n"


def test_dev_null_of_the_image_masks_nothing_else(box: Any) -> None:
    """CVE-2025-31133: a link at /dev/null must not become the mask."""
    one = box("cat", "/etc/plain")
    one.config["mounts"] = [row for row in one.config["mounts"] if not row["destination"].startswith("/dev")]
    (one.rootfs / "dev" / "null").symlink_to("/etc/passwd")
    one.linux["maskedPaths"] = ["/etc/plain"]
    if one.runtime.name in ("runc", "crun"):
        pytest.skip("the ones of this machine are of before the fix")
    assert "root:" not in one.run().out
