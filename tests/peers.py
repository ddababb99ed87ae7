"""The real programs that tests compare with. Where one is missing a test is skipped; with CI=true it fails."""

from __future__ import annotations

import os
import shutil

import pytest


def require(name: str) -> str:
    """The path of program `name`, also where only root's PATH has it."""
    found = shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")
    if found:
        return found
    reason = f"{name} is not installed"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
