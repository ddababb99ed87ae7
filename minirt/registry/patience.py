"""Trying again: how often, how long we pause, and who hears of it.

A pause doubles each time and is random below that (full jitter), so that clients do not march in step; a server's own
`Retry-After` comes before it, up to half a minute. Who waits is told each second, in docker's words.
"""

from __future__ import annotations

import email.utils
import math
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC

from minirt.errors import RegistryError

_MAX_RETRY_AFTER = 30.0  # seconds we wait because a registry says so
_MAX_BACKOFF = 8.0
Tell = Callable[[str], None]
_tell: ContextVar[Tell | None] = ContextVar("tell", default=None)


class Unreachable(RegistryError):
    """No registry answers there: no such host, connection refused, timed out, or no TLS to be had."""


class Transient(RegistryError):
    """Worth another try: reset, stall, 5xx, 429. `after`: seconds the server asked for, if it did."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


@contextmanager
def telling(tell: Tell) -> Iterator[None]:
    """Meanwhile `tell` hears, each second, what is waited for here (threads: `contextvars.copy_context`)."""
    token = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(token)


class Patience:
    """What is left of it: `attempts` in all; `backoff` is the longest first pause, in seconds."""

    def __init__(self, attempts: int, backoff: float) -> None:
        self._left, self._pause = attempts, backoff

    def wait(self, error: Transient | Unreachable) -> None:
        """Sleep before another try; raises `error` where there were enough, or the server asks for too long."""
        self._left -= 1
        after = error.after if isinstance(error, Transient) else None
        if self._left <= 0 or (after or 0) > _MAX_RETRY_AFTER:
            raise error
        jitter = random.uniform(0, self._pause)
        _sleep(jitter if after is None else after + min(jitter, 1), str(error))
        self._pause = min(self._pause * 2, _MAX_BACKOFF)


def _sleep(seconds: float, why: str) -> None:
    """Count down, as docker does: `Retrying in 3 seconds`."""
    tell, until = _tell.get(), time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        whole = math.ceil(left)
        if tell:
            tell(f"Retrying in {whole} second{'s' if whole > 1 else ''}: {why}")
        time.sleep(left - (whole - 1))


def retry_after(value: str) -> float | None:
    """Seconds, from either form of a Retry-After header (RFC 9110, section 10.2.3); None where it is neither."""
    if number := re.fullmatch("[ \t]*([0-9]{1,9})[ \t]*", value, re.ASCII):
        return float(number[1])
    try:
        moment = email.utils.parsedate_to_datetime(value)
        # A date without a zone is meant as GMT, as any HTTP date is.
        return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
