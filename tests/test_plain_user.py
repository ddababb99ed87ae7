"""The store's own tests again, as the users a class has: one with subordinate ids, one with a single id."""

from __future__ import annotations

import sys

import pytest
import users


@pytest.mark.slow
@pytest.mark.parametrize("subuids", [True, False])
def test_unpacking_and_the_store_hold_for_a_plain_user(subuids: bool) -> None:
    with users.plain_user(subuids) as user:
        result = user.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "tests/test_applier.py",
             "tests/test_store.py", "tests/test_store_durable.py", "tests/test_registry_hostile.py"],
            timeout=600, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
        assert " passed" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("subuids", [True, False])
def test_images_go_out_and_certificates_hold_for_a_plain_user(subuids: bool) -> None:
    with users.plain_user(subuids) as user:
        result = user.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "tests/test_trust.py",
             "tests/test_login.py", "tests/test_push.py", "-k", "trust or owner_alone or token_in or compressed"],
            timeout=300, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
        assert " passed" in result.stdout and "skipped" not in result.stdout
