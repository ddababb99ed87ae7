"""docs/hostile.md: the page is what the tests are."""

from __future__ import annotations

import hostile


def test_every_clause_has_its_tests_and_the_page_says_so() -> None:
    found = hostile.page(hostile.collected())
    assert hostile.PAGE.read_text("utf-8") == found, "run `python tests/hostile.py`"
