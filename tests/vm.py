"""A small virtual machine: Debian's own kernel and systemd, for what this machine's kernel or set-up does not offer.

It has cgroup v2 only, AppArmor, every capability, and a plain user `learner` (uid 1000, subordinate ids, a systemd user
manager with delegated cgroups). The disk is made once, without a mount on this machine, and kept in the cache folder;
each run boots it, adds this checkout, and throws away what it wrote. The processor is emulated (TCG), so that it works
inside another virtual machine too: everything there takes ten to twenty times as long.
"""

from __future__ import annotations

import base64
import compileall
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
import realimages
from peers import require
from said import said

_HERE = Path(__file__).parent
_TOP = _HERE.parent

SUITE = "bookworm"
PACKAGES = [
    *("linux-image-cloud-amd64", "systemd", "systemd-sysv", "udev", "libpam-systemd", "dbus", "dbus-user-session"),
    *("apparmor", "kmod", "procps", "python3", "uidmap", "busybox-static", "libseccomp2", "iproute2", "nftables"),
    *("iptables", "fuse-overlayfs", "slirp4netns", "passt", "proot", "ca-certificates"),
    *("runc", "crun", "docker.io", "podman", "netavark"),
]
# What the system needs once; nothing runs in it that no test asks for.
SET_UP = """
    rm -rf /var/cache/apt /var/lib/apt/lists /usr/share/doc /usr/share/locale /usr/share/man
    useradd --create-home --shell /bin/sh learner
    mkdir -p /var/lib/systemd/linger /etc/docker
    touch /var/lib/systemd/linger/learner
    echo vm > /etc/hostname
    echo '127.0.0.1 localhost vm' > /etc/hosts
    echo 0123456789abcdef0123456789abcdef > /etc/machine-id  # an unknown one makes systemd set the system up anew
    systemd-sysusers
    mkdir -p /etc/systemd/journald.conf.d
    printf '[Journal]\nStorage=volatile\n' > /etc/systemd/journald.conf.d/vm.conf
    cd /etc/systemd/system
    for unit in docker.service docker.socket containerd.service podman.service podman.socket podman-restart.service \
        podman-auto-update.service podman-auto-update.timer apt-daily.timer apt-daily-upgrade.timer fstrim.timer \
        dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service getty@tty1.service systemd-pstore.service \
        apparmor.service  # it only loads profiles, which takes seconds to compile
    do rm -f *.wants/$unit; done
    rm -f /etc/systemd/user/*.wants/podman*
    for unit in serial-getty@ttyS0.service modprobe@dm_mod.service modprobe@loop.service modprobe@configfs.service \
        modprobe@drm.service systemd-binfmt.service systemd-update-utmp.service systemd-random-seed.service \
        systemd-journal-flush.service systemd-sysusers.service dev-hugepages.mount sys-kernel-tracing.mount
    do ln -s /dev/null $unit; done
    ln -s ../agent.service multi-user.target.wants/
"""
DISK_BYTES = 3 << 30
MEMORY_MIB = 2048
# What is slow to emulate stays out: wide registers in the C library's string functions, page tables of five levels.
CPU = "max,-avx,-avx2,-la57"
BOOT_SECONDS = 240.0
# Of this environment, for Python in the machine: those that do not fit its version are not loaded there.
WHEELS = [
    *("pytest", "pytest-timeout", "iniconfig", "packaging", "pluggy", "pygments"),
    *("requests", "urllib3", "idna", "certifi", "charset-normalizer", "isal", "zstandard"),
]


def disk() -> Path:
    """The folder with `disk` (an ext4 image) and `kernel`, made at the first call. As root."""
    key = hashlib.sha256(json.dumps([SUITE, PACKAGES, SET_UP, DISK_BYTES]).encode()).hexdigest()[:12]
    with realimages.kept(f"vm-{SUITE}-{key}") as path:
        if not path.exists():
            if os.geteuid():
                pytest.skip("only root can make the virtual machine's disk")
            require("debootstrap")
            folder = path.with_name(f"{path.name}.making")  # one that was interrupted is in the way
            shutil.rmtree(folder, ignore_errors=True)
            try:
                _make(folder)
                os.rename(folder, path)
                for old in path.parent.glob("vm-*-????????????"):  # with other packages
                    if old != path:
                        shutil.rmtree(old, ignore_errors=True)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    return path


def _make(folder: Path) -> None:
    root = folder / "root"
    root.mkdir(parents=True)
    try:
        suite, *mirror = realimages.apt_source()
    except AssertionError:
        suite = ""
    if suite != SUITE:
        mirror = []  # debootstrap knows where Debian lies
    # What it mounts and starts ends with it, in namespaces of its own. INITRD: we bring our own first program.
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "env", "INITRD=No"]
    words = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root), *mirror]
    realimages.run(*alone, *words)
    realimages.run(*alone, "chroot", str(root), "sh", "-euc", SET_UP)
    (kernel,) = root.glob("boot/vmlinuz-*")
    shutil.copy(kernel, folder / "kernel")
    shutil.copy(root / "bin/busybox", folder / "busybox")
    options = ["-q", "-O", "^has_journal", "-E", "root_owner=0:0", "-d", str(root), str(folder / "disk")]
    realimages.run(require("mkfs.ext4"), *options, f"{DISK_BYTES >> 10}k")
    shutil.rmtree(root)


@dataclass
class Machine:
    """A running machine. `seconds` is how long it took to boot."""

    process: subprocess.Popen[bytes]
    port: socket.socket
    console: IO[bytes]
    seconds: float = 0.0
    silent: bool = False  # it did not answer once: emulated machines have stood still under load

    def run(
        self, script: str, user: str = "root", timeout: float = 60, check: bool = True, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell script (`set -eu`, below 128 KiB) there; another user than root gets a login session. With
        `check`, a failure fails the test with all it said. `timeout` is in seconds; status 124 says that it ran out."""
        request = {"script": script, "user": user, "timeout": timeout, "stdin": base64.b64encode(stdin).decode()}
        self.port.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._line(timeout + 60))
        out, err = (base64.b64decode(answer[name]).decode(errors="replace") for name in ("stdout", "stderr"))
        err = said(err)
        result = subprocess.CompletedProcess([script], answer["status"], out, err)
        assert not check or result.returncode == 0, f"{user}: {script}\n{result.returncode}\n{out}{err}"
        return result

    def python(self, script: str, user: str = "root", timeout: float = 60, check: bool = True) -> str:
        """What this Python script prints there."""
        return self.run("exec python3 -", user, timeout, check, script.encode()).stdout

    def log(self) -> str:
        """What the machine wrote on its console."""
        size = os.fstat(self.console.fileno()).st_size
        return os.pread(self.console.fileno(), size, 0).decode(errors="replace")

    def _line(self, timeout: float) -> bytes:
        data, end = bytearray(), time.monotonic() + timeout
        while not data.endswith(b"\n"):
            self.port.settimeout(max(end - time.monotonic(), 0.01))
            try:
                piece = self.port.recv(1 << 16)
            except TimeoutError:
                piece = b""
            if not piece:
                self.silent = True
                raise AssertionError(f"the virtual machine does not answer: {self.log()[-3000:]}")
            data += piece
        return bytes(data)


@contextlib.contextmanager
def started(options: str = "", devices: Sequence[str] = ()) -> Iterator[Machine]:
    """Boot a machine, with more `options` on the kernel's command line and more `devices` of qemu's. It ends with the
    block or this process. With the option `minirt.bare` no systemd runs in it, which takes a fifth of the time."""
    if platform.machine() != "x86_64":
        pytest.skip("the virtual machine is an x86_64 one")
    qemu, made = require("qemu-system-x86_64"), disk()
    begin = time.monotonic()
    ours, theirs = socket.socketpair()
    initrd = os.memfd_create("initrd")
    with ours, open(initrd, "wb") as file, tempfile.TemporaryFile() as console:
        file.write(_initrd(made))
        file.flush()
        line = f"console=ttyS0 quiet panic=-1 apparmor=1 security=apparmor mitigations=off {options}"
        words = [
            *("setpriv", "--pdeathsig", "KILL", qemu, "-accel", "tcg", "-cpu", CPU, "-smp", "2"),
            *(
                "-m",
                str(MEMORY_MIB),
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
                "-serial",
                "stdio",
            ),
            *("-kernel", str(made / "kernel"), "-initrd", f"/dev/fd/{initrd}", "-append", line),
            *("-drive", f"if=none,id=disk,format=raw,snapshot=on,cache=unsafe,file={made / 'disk'}"),
            *("-device", "nvme,serial=disk,drive=disk", "-device", "virtio-serial", "-device", "virtio-rng"),
            *(
                "-chardev",
                f"socket,id=agent,fd={theirs.fileno()}",
                "-device",
                "virtserialport,chardev=agent,name=agent",
            ),
            *devices,
        ]
        with theirs:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=console, stderr=console, pass_fds=[theirs.fileno(), initrd]
            )
        try:
            machine = Machine(process, ours, console)
            machine._line(BOOT_SECONDS)
            machine.seconds = time.monotonic() - begin
            yield machine
        finally:
            process.kill()
            process.wait()


class Machines:
    """The run's machine, and another where that one has fallen silent."""

    def __init__(self, held: contextlib.ExitStack) -> None:
        self._held = held
        self._now: Machine | None = None

    def now(self) -> Machine:
        if self._now is None or self._now.silent:
            self._held.close()
            self._now = self._held.enter_context(started())
        return self._now


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    with contextlib.ExitStack() as held:
        yield Machines(held)


@pytest.fixture
def vm(machines: Machines) -> Machine:
    """One machine for all tests of the run; a missing qemu skips (in CI it fails)."""
    return machines.now()


def _initrd(made: Path) -> bytes:
    """The first file system: busybox and `init`, and under /brought all that this run adds to the disk."""
    compileall.compile_dir(_TOP / "minirt", quiet=2)  # there each process of the plain user would compile anew
    files: dict[str, Path | bytes] = {"init": _HERE / "vm/init", "bin/busybox": made / "busybox"}
    files |= {"dev/": b"", "system/": b""}
    here, site = "brought/srv/minirt", "brought/usr/lib/python3/dist-packages"
    files["brought/etc/systemd/system/agent.service"] = _HERE / "vm/agent.service"
    files[f"{site}/minirt.pth"] = b"/srv/minirt\n"
    for top in ("minirt", "tests"):
        files |= {f"{here}/{path.relative_to(_TOP)}": path for path in (_TOP / top).rglob("*") if path.is_file()}
    files[f"{here}/pyproject.toml"] = _TOP / "pyproject.toml"
    for name, source in ("minirt", "minirt/__main__.py"), ("minirt-oci", "minirt/runtime/__main__.py"):
        files[f"brought/usr/bin/{name}"] = (_TOP / source).read_bytes()  # as hatch_build.py has them installed
    for name in WHEELS:
        for file in importlib.metadata.files(name) or []:
            if ".." not in file.parts and Path(file.locate()).is_file():
                files[f"{site}/{file}"] = Path(file.locate())
    return _cpio(files)


def _cpio(files: dict[str, Path | bytes]) -> bytes:
    """An archive as the kernel unpacks it (newc; initramfs-buffer-format in its documentation), all root's."""
    folders = {str(folder) for name in files for folder in Path(name).parents} - {"."}
    parts = []
    entries = [(name.rstrip("/"), stat.S_IFDIR | 0o755, 0, b"") for name in sorted(folders)]
    for name, content in files.items():
        if name.endswith("/"):
            entries.append((name[:-1], stat.S_IFDIR | 0o755, 0, b""))
        elif isinstance(content, bytes):
            entries.append((name, stat.S_IFREG | (0o755 if content[:2] == b"#!" else 0o644), 0, content))
        else:
            found = content.stat()
            mode = stat.S_IFREG | (0o755 if found.st_mode & 0o100 or name == "init" else 0o644)
            entries.append((name, mode, int(found.st_mtime), content.read_bytes()))
    for number, (name, mode, changed, data) in enumerate([*entries, ("TRAILER!!!", 0, 0, b"")]):
        fields = (number, mode, 0, 0, 1, changed, len(data), 0, 0, 0, 0, len(name.encode()) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        parts += [head.ljust(-(-len(head) // 4) * 4, b"\0"), data.ljust(-(-len(data) // 4) * 4, b"\0")]
    return b"".join(parts)
