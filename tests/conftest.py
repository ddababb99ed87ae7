"""What all tests share: no test sees this user's own settings or images, and quick tests run before slow ones."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from dockerd import dockerd
from vm import vm

__all__ = ["dockerd", "vm"]


def pytest_configure() -> None:
    """A shell starts its background jobs with these ignored, and a child would inherit that; tests send them."""
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests, then notebooks, then what takes many seconds. Within each the order stays: cells need it."""
    items.sort(key=lambda item: 2 if item.get_closest_marker("slow") else int(item.path.suffix == ".ipynb"))


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
