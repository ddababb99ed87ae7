"""A source that works ahead in a thread: order, errors in their place, an end before the end, bounded memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from minirt.errors import UnpackError
from minirt.store.ahead import ahead


@pytest.fixture(autouse=True)
def _two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})


def pieces(count: int, error: Exception | None = None) -> tuple[Callable[[], bytes], list[int]]:
    """A source of so many pieces, then `error` or the end; and which threads were asked."""
    asked: list[int] = []

    def source() -> bytes:
        asked.append(threading.get_ident())
        if len(asked) <= count:
            return b"%d" % len(asked)
        if error:
            raise error
        return b""

    return source, asked


def test_all_pieces_in_order_from_another_thread() -> None:
    source, asked = pieces(50)
    with ahead(source) as taken:
        found = [taken() for _ in range(52)]
    assert found == [b"%d" % number for number in range(1, 51)] + [b"", b""]
    assert threading.get_ident() not in asked and len(asked) == 51


def test_an_error_comes_where_its_piece_would_and_stays() -> None:
    source, _ = pieces(3, UnpackError("truncated"))
    with ahead(source) as taken:
        assert [taken() for _ in range(3)] == [b"1", b"2", b"3"]
        for _ in range(2):
            with pytest.raises(UnpackError, match="truncated"):
                taken()


def test_whoever_does_not_read_on_holds_it_still_and_may_leave() -> None:
    source, asked = pieces(1000)
    with ahead(source) as taken:
        assert taken() == b"1"
        time.sleep(0.2)
        assert len(asked) <= 11  # one taken, eight that wait, one in hand
    count = len(asked)
    assert source() and len(asked) == count + 1  # the thread is gone: the source is ours again
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("(work)")]


def test_one_processor_has_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    source, asked = pieces(2)
    with ahead(source) as taken:
        assert [taken(), taken(), taken()] == [b"1", b"2", b""]
    assert set(asked) == {threading.get_ident()}
