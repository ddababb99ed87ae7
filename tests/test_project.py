"""The project's own rules: style, types, arrows, sizes, and what README, CI and environment.yml say of each other."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))
SOURCES = sorted((TOP / "minirt").rglob("*.py"))
# Where conda-forge's name differs from PyPI's.
CONDA_NAMES = {"python-isal": "isal"}


def run(*arguments: str) -> None:
    """Run a tool of this environment over the whole project; its output is the failure's message."""
    result = subprocess.run([sys.executable, "-m", *arguments], cwd=TOP, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def readme_command(end: str) -> str:
    """README's one-line command that ends so. It may stand there more than once, but always the same."""
    lines = {line.strip() for line in (TOP / "README.md").read_text("utf-8").splitlines()}
    (command,) = (line for line in lines if line.startswith("python3 -m venv") and line.endswith(end))
    return command


def test_lint() -> None:
    run("ruff", "check")


def test_format() -> None:
    run("ruff", "format", "--check")


def test_types() -> None:
    run("mypy")


def test_arrows_between_rooms() -> None:
    code = "import sys; from importlinter.cli import lint_imports_command as c; sys.argv = ['lint-imports']; c()"
    result = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


# Lines of code a room may have: whoever wants more says so here. Modules beside the rooms count as one.
ROOMS = {
    "runtime": 6900, "engine": 5850, "notebook": 5150, "cli": 3060, "store": 3200, "daemon": 1350, "registry": 1450,
    "client": 950, "hub": 750, "image": 480, "": 930,
}  # fmt: skip


def test_sizes() -> None:
    """Each module can be read in ten minutes, and no room grows unnoticed."""
    lines = {str(path.relative_to(TOP)): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert {path: count for path, count in lines.items() if count > 400} == {}
    found: dict[str, int] = {}
    for path in SOURCES:
        room = path.relative_to(TOP / "minirt").parent.parts[:1]
        found["".join(room)] = found.get("".join(room), 0) + _code_lines(path.read_text("utf-8"))
    assert {room: count for room, count in found.items() if count > ROOMS.get(room, 0)} == {}


def _code_lines(source: str) -> int:
    """Lines that are not blank, comment or docstring."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            told |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    rows = enumerate(source.splitlines(), 1)
    return sum(bool(row.strip()) and not row.strip().startswith("#") and number not in told for number, row in rows)


def test_conda_environment_has_the_same_dependencies() -> None:
    environment = yaml.safe_load((TOP / "environment.yml").read_text("utf-8"))
    conda = [row for row in environment["dependencies"] if isinstance(row, str) and row != "pip"]
    named = {re.match(r"[A-Za-z0-9_-]+", row)[0]: row for row in conda}  # type: ignore[index]
    found = {CONDA_NAMES.get(name, name) + row.removeprefix(name) for name, row in named.items()}
    assert found == {f"python{PYPROJECT['project']['requires-python']}", *PYPROJECT["project"]["dependencies"]}


def test_ci_runs_readmes_test_command() -> None:
    command = readme_command("/pytest")
    lines = (TOP / ".ci/run").read_text("utf-8").splitlines()
    assert lines[-1] == command
    assert re.search(r"run: .*\.ci/run$", (TOP / ".github/workflows/ci.yml").read_text("utf-8"), re.MULTILINE)


def test_readme_opens_the_course_with_one_command() -> None:
    command = readme_command("lab")
    assert command == "python3 -m venv .venv && .venv/bin/pip install -q -e . && .venv/bin/minirt lab"


def test_the_run_path_loads_nothing_slow() -> None:
    """The start of `minirt run` is the user's wait: what only a pull or a notebook needs is imported only by them."""
    names = ["minirt", *(f"minirt.{room}" for room in ("cli", "client", "engine", "store", "runtime"))]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
slow = ["requests", "urllib3", "http.client", "ssl", "asyncio", "email", "ipywidgets", "IPython", "ctypes.util"]
slow += ["minirt.engine.answers"]  # types: no code reads them
print(*[name for name in slow if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout.split()) == (0, []), found.stdout + found.stderr


def test_the_commands_own_start_loads_little() -> None:
    """What `minirt run` loads in its own process, beside what Python itself does; as an installed command, too."""
    names = ["minirt.cli.run", "minirt.cli.exec", "minirt.cli.streams", "minirt.client.streams", "minirt.client"]
    # importlib itself loads some of what is looked for; the frozen one that Python begins with does not.
    code = f"""
import _frozen_importlib, sys
for name in {names}:
    _frozen_importlib._gcd_import(name)
slow = ["typing", "pathlib", "urllib", "dataclasses", "inspect", "argparse", "subprocess", "tempfile", "datetime"]
slow += ["json", "re", "enum", "functools", "collections", "contextlib", "signal", "socket", "threading", "queue"]
slow += ["minirt.engine", "minirt.image", "minirt.store", "minirt.runtime", "minirt.daemon", "ctypes", "hashlib"]
print(*[name for name in slow if name in sys.modules])
"""
    # -S: what an environment's .pth files load is not ours.
    words = [sys.executable, "-S", "-c", code]
    found = subprocess.run(words, cwd=TOP, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout.split()) == (0, []), found.stdout + found.stderr


def test_the_installed_commands_are_our_own_scripts() -> None:
    """Not pip's wrapper of an entry point, which loads re: see hatch_build.py."""
    for name, source in ("minirt", "minirt/__main__.py"), ("minirt-oci", "minirt/runtime/__main__.py"):
        installed = Path(sys.executable).with_name(name)
        first, _, rest = installed.read_text("utf-8").partition("\n")
        assert first.startswith("#!") and rest == (TOP / source).read_text("utf-8").partition("\n")[2]
        assert os.access(installed, os.X_OK)


# What CPython lacks elsewhere, of what this package uses anywhere.
NOT_ON_MACOS = [
    *("O_PATH", "memfd_create", "pidfd_open", "pipe2", "sched_getaffinity", "setresuid", "setresgid"),
    *("getxattr", "listxattr", "removexattr", "setxattr"),
]
NOT_ON_WINDOWS = [
    *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "pread", "pwrite", "sendfile", "statvfs"),
    *("chown", "fchown", "lchown", "major", "makedev", "minor", "mkfifo", "mknod", "openpty", "uname"),
    *(
        "fork",
        "forkpty",
        "getgid",
        "getegid",
        "geteuid",
        "getgroups",
        "getuid",
        "setgid",
        "setgroups",
        "setsid",
        "setuid",
    ),
]
NO_MODULES_ON_WINDOWS = ["fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"]


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_the_package_imports_elsewhere(platform: str) -> None:
    """macOS and Windows, played by taking away what CPython does not have there. The insides of runtime/ and the
    file worker run on Linux only; of them must import what the engine imports before it has to run something."""
    code = f"""
import importlib, pkgutil, sys
def load():
    import minirt
    for module in pkgutil.walk_packages(minirt.__path__, "minirt."):
        if not module.name.endswith(("__main__", "engine.filework")) and not module.name.startswith("minirt.runtime."):
            importlib.import_module(module.name)
load()  # the other packages, as they are on this machine
for name in [name for name in sys.modules if name.split(".")[0] == "minirt"]:
    del sys.modules[name]
import ctypes, os, signal, socket
sys.platform = {platform!r}
for name in {NOT_ON_MACOS}:
    delattr(os, name)
if sys.platform == "win32":
    for name in {NO_MODULES_ON_WINDOWS}:
        sys.modules[name] = None
    for name in {NOT_ON_WINDOWS}:
        delattr(os, name)
    for name in ("SIGKILL", "SIGWINCH", "SIGHUP", "SIGCHLD", "pthread_sigmask"):
        delattr(signal, name)
    import _socket
    del socket.AF_UNIX, _socket.AF_UNIX
    def absent(name, *more, **options):
        raise TypeError("bad argument type for built-in operation")
    ctypes.CDLL.__init__ = absent
load()
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
