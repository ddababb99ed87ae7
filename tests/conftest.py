"""What all tests share: no test sees this user's own settings or images, and quick tests run before slow ones.

A run of a folder, and so of everything, is spread over worker processes, file by file; named files run in this process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerd import dockerd, dockerd_of_the_run
from vm import machines, vm

__all__ = ["dockerd", "dockerd_of_the_run", "machines", "vm"]

MACHINE = "_vm.py"  # so end the files whose tests run in the virtual machine
LONG = {
    "test_browser_chapters",
    "test_notebook_strict",
    "test_oci_docker",
    "test_plain_user",
}  # minutes each: first of all slow ones


def pytest_configure() -> None:
    """A shell starts its background jobs with these ignored, and a child would inherit that; tests send them."""
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


# Optional: in the virtual machine tests run without xdist.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: one more than there are processors, as many tests wait; none where files or tests are named."""
    return (os.cpu_count() or 1) + 1 if any(Path(given).is_dir() for given in config.args) else 0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay together and in order (cells, daemons of a module); all of the virtual machine share it."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            name = str(super()._split_scope(nodeid))
            if name.endswith("test_browser_chapters.py"):  # minutes: a language each
                name += nodeid.rpartition("[")[2][:2]
            return MACHINE if name.endswith(MACHINE) else name

    config.option.loadscopereorder = False  # files begin in the order below
    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Quick tests, then notebooks, then what takes many seconds. Within each the order stays: cells need it.

    The virtual machine takes longest: beside other workers it begins at once, else it comes last.
    """
    spread = hasattr(config, "workerinput")

    def rank(item: pytest.Item) -> int:
        if item.path.name.endswith(MACHINE):
            return -1 if spread else 4
        if item.get_closest_marker("slow"):
            return 2 if item.path.stem in LONG else 3
        return int(item.path.suffix == ".ipynb")

    items.sort(key=rank)
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.flaky(reruns=0))  # a cell again would have to begin at the first one
        elif item.path.name.endswith(MACHINE) or item.path.stem in LONG:
            item.add_marker(pytest.mark.timeout(900))  # the first may have to make the disk or an image


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """The virtual machine ends with the last test that is in it: it takes processor time while it waits, too."""
    machine = getattr(item, "funcargs", {}).get("vm")
    yield
    if machine and not (nextitem and nextitem.path.name.endswith(MACHINE)):
        machine.process.kill()
        machine.silent = True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why what was run once more had failed."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"failed at first: {report.nodeid}", "_")
        terminalreporter.write_line(report.longreprtext[-3000:])


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HOME and XDG folders of the test's own: no ~/.docker, no ~/.config/minirt, no store of this user's."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MINIRT_ROOT", "MINIRT_HUB", "MINIRT_HOST"):
        monkeypatch.delenv(name, raising=False)
    # Seconds: each test has a root folder of its own, and a daemon of its own ends soon after it.
    monkeypatch.setenv("MINIRT_DAEMON_IDLE", "5")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh MINIRT_ROOT with the embedded hub; containers still there at the end are removed."""
    folder = tmp_path / "minirt"
    monkeypatch.setenv("MINIRT_ROOT", str(folder))
    monkeypatch.setenv("MINIRT_HUB", "embedded")
    yield folder
    if (folder / "containers").is_dir():
        from minirt.client import Client

        client = Client(folder)
        for container in client.containers(all=True):
            client.remove(container["Id"], force=True)
