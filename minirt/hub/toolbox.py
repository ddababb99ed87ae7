"""`toolbox`: a shell and the usual tools, made from what this machine has.

Two ways. A static busybox needs nothing but itself: one file, and a link per tool. Else this machine's own tools are
taken along with every library they load, "everything the program needs": the loader itself is asked for the list.
Invariant: tools and libraries lie at the paths they were built for; /bin, /sbin and /lib* are links into /usr.
The digest is this machine's own: never print it as if it were everyone's. Taught in chapters 01 and 05.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from minirt.errors import Unsupported
from minirt.hub import elf
from minirt.hub.layer import PATH, Tree
from minirt.hub.layout import Layout
from minirt.image.descriptor import Descriptor
from minirt.image.platform import Platform

# Those this machine lacks are left out.
TOOLS = """
sh awk base64 basename cat chgrp chmod chown cksum comm cp cut date dd df dirname du echo env expand
expr false find fold grep head hostname id install kill ln ls md5sum mkdir mkfifo mktemp mount mv nice nl nohup nproc od
paste pgrep pkill printenv printf ps pwd readlink realpath rm rmdir sed seq sha256sum sleep sort split stat stty sync
tac tail tar tee test timeout top touch tr true truncate tty umount uname uniq wc which whoami xargs yes"""

_FOLDERS = (
    ("dev", 0o755, 0), ("proc", 0o555, 0), ("sys", 0o555, 0), ("run", 0o755, 0), ("root", 0o700, 0), ("tmp", 0o1777, 0),
    ("home/app", 0o755, 1000), ("mnt", 0o755, 0), ("usr/local/bin", 0o755, 0), ("usr/sbin", 0o755, 0),
    ("var/tmp", 0o1777, 0),
)  # fmt: skip
_ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
    "app:x:1000:1000:app:/home/app:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\ndaemon:x:1:\napp:x:1000:\nnogroup:x:65534:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "os-release": 'NAME="toolbox"\nID=toolbox\nPRETTY_NAME="toolbox, a sample image of minirt"\n',
}


def make(layout: Layout) -> Descriptor:
    """Keep the image's blobs in `layout`; returns its manifest. Raises Unsupported where there are no Linux tools."""
    busybox = static_busybox()
    tree, source = from_busybox(busybox) if busybox else from_machine()
    settings = {"Env": [f"PATH={PATH}"], "Cmd": ["sh"], "Labels": {"io.minirt.made-from": source}}
    layer = layout.add_layer(tree.layer(compress=True))
    return layout.add_image(Platform.host(), [layer], settings, [f"take tools from {source}"])


def static_busybox() -> Path | None:
    """This machine's busybox, if it has one that loads no library."""
    found = shutil.which("busybox", path=PATH) if sys.platform == "linux" else None
    try:
        return Path(found) if found and elf.interpreter(Path(found).read_bytes()) is None else None
    except ValueError:  # a script of that name
        return None


def from_busybox(busybox: Path) -> tuple[Tree, str]:
    """The tree, and in words what it was made from."""
    tree = _skeleton()
    tree.file("usr/bin/busybox", busybox.read_bytes(), 0o755)
    for applet in _output(str(busybox), "--list").split():
        if applet != "busybox" and "/" not in applet:
            tree.symlink(f"usr/bin/{applet}", "busybox")
    version = re.match(r"BusyBox v(\S+)", _output(str(busybox), "--help"))
    return tree, f"busybox {version[1] if version else ''}, static".replace(" ,", ",")


def from_machine() -> tuple[Tree, str]:
    """The tree, and in words what it was made from. Raises Unsupported on a machine without a Linux shell."""
    shell = shutil.which("sh", path=PATH)
    if sys.platform != "linux" or shell is None:
        raise Unsupported("toolbox is made from the tools of a Linux machine, and there are none here: use hello-world")
    tree, libraries, first_name = _skeleton(), set[str](), dict[str, str]()
    for found in filter(None, (shutil.which(tool, path=PATH) for tool in TOOLS.split())):
        content, path = Path(found).read_bytes(), _merged(found)
        try:
            loader = elf.interpreter(content)
        except ValueError:  # a script: its interpreter may be missing inside
            continue
        # Several names of one file stay one file: some systems have all tools in a single program.
        known = first_name.setdefault(os.path.realpath(found), path)
        if known == path:
            tree.file(path, content, 0o755)
        else:
            tree.hardlink(path, known)
        if loader:
            libraries |= {loader, *_libraries(loader, found)}
    _add_libraries(tree, libraries)
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        system = "this machine"
    return tree, f"{len(first_name)} programs and {len(libraries)} libraries of {system}"


def _skeleton() -> Tree:
    tree = Tree()
    for folder in _FOLDERS:
        tree.folder(*folder)
    for name, text in _ETC.items():
        tree.file(f"etc/{name}", text.encode())
    for name in ("bin", "sbin", "lib"):
        tree.folder(f"usr/{name}")
        tree.symlink(name, f"usr/{name}")
    return tree


def _merged(path: str) -> str:
    """Where a file of this machine lies in the image: what is in /bin, /sbin or /lib* moves to /usr, for links lead
    there."""
    path = os.path.normpath(path).lstrip("/")
    return f"usr/{path}" if re.match(r"(bin|sbin|lib\w*)/", path) else path


def _libraries(loader: str, binary: str) -> set[str]:
    """The files `binary` makes its loader open, as the loader itself tells (ld.so(8), `--list`; musl's does too).

    The environment is empty: LD_LIBRARY_PATH will not be there inside either.
    """
    return set(re.findall(r"(?:^|\s)(/\S+) \(0x", _output(loader, "--list", binary)))


def _add_libraries(tree: Tree, libraries: set[str]) -> None:
    """Put libraries at their paths. The loader's cache stays behind, so each gets a link beside the C library as well,
    where the loader always looks. Before glibc 2.34, users' names came from a library that `--list` does not tell."""
    homes = {os.path.dirname(path) for path in libraries if os.path.basename(path).startswith("libc.so")}
    names = {os.path.join(home, "libnss_files.so.2") for home in homes}
    for path in sorted(libraries | {path for path in names if os.path.exists(path)}):
        inside, top = _merged(path), path.split("/")[1]
        if inside.startswith(f"usr/{top}/") and top not in tree:  # such as /lib64
            tree.symlink(top, f"usr/{top}")
        tree.file(inside, Path(path).read_bytes(), 0o755)
        for home in homes:
            beside = _merged(f"{home}/{os.path.basename(path)}")
            if beside not in tree:
                tree.symlink(beside, f"/{inside}")


def _output(*command: str) -> str:
    """What a program of this machine prints. Raises Unsupported where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={"LC_ALL": "C"}, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unsupported(f"toolbox cannot be made: {' '.join(command)}: {error}") from error
    return done.stdout
