"""The chapters under test work in a folder of this test run's own, never in this user's course."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

_KEY = pytest.StashKey[str]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before the kernel of the first cell starts, which inherits the environment."""
    if "MINIRT_COURSE" not in os.environ:
        item.config.stash[_KEY] = os.environ["MINIRT_COURSE"] = tempfile.mkdtemp(prefix="minirt-course-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if folder := config.stash.get(_KEY, ""):
        del os.environ["MINIRT_COURSE"]
        shutil.rmtree(folder, ignore_errors=True)
