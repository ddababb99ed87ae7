"""Which registry answers for a name.

Names on Docker Hub follow the `hub` setting: `docker.io` is the real one, `embedded` the one this machine makes, and
`auto` asks the real one and, where it cannot be reached, serves the embedded hub's own names (saying so); that failure
is remembered for ten minutes so the next pull does not wait again. Any other registry is asked as it is.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from minirt.errors import Forbidden, InvalidInput, Unauthorized
from minirt.hub.names import REPOSITORIES
from minirt.image.reference import DEFAULT_DOMAIN, Reference

if TYPE_CHECKING:
    from minirt.hub.server import Hub
    from minirt.registry.client import Registry

HUBS = ("auto", "embedded", "docker.io")
_REMEMBER = 600  # seconds
_CONNECT, _PATIENT = 3.0, 10.0  # seconds to connect: for auto, and where there is no other way
T = TypeVar("T")


class Sources:
    """Registries by domain, opened on first use and kept; thread-safe."""

    def __init__(
        self, root: Path, hub: str, throttle: int | None, auth: tuple[str, dict[str, Any]] | None = None
    ) -> None:
        """`auth`: a domain, and what to show it instead of what this user's docker login left."""
        if hub not in HUBS:
            raise InvalidInput(f"hub {hub!r} is unknown: MINIRT_HUB is one of {', '.join(HUBS)}")
        self._root, self._hub, self._throttle, self._auth = root, hub, throttle, auth
        self._offline = root / "hub-offline"
        self._open: dict[str, Registry] = {}
        self._server: Hub | None = None
        self._lock = threading.Lock()

    @property
    def hub(self) -> str:
        return self._hub

    def ask(self, reference: Reference, verb: Callable[[Registry], T]) -> tuple[Registry, T, str]:
        """Do `verb` with the registry that answers for `reference`; returns it, the answer, and a note for the user.

        Raises what the registry raises.
        """
        from minirt.registry.client import Unreachable

        if reference.domain != DEFAULT_DOMAIN or self._hub == "docker.io":
            registry = self._registry(reference.domain)
            return registry, verb(registry), ""
        if self._hub == "embedded":
            registry = self._embedded()
            return registry, verb(registry), ""
        ours = reference.path in REPOSITORIES
        if not (ours and self._was_offline()):
            registry = self._registry(reference.domain)
            try:
                return registry, verb(registry), ""
            except Unreachable:
                with contextlib.suppress(OSError):  # only a memory: a full disk must not hide the real answer
                    self._offline.touch()
                if not ours:
                    raise
        registry = self._embedded()
        return registry, verb(registry), "Docker Hub cannot be reached: this image is made by the embedded hub"

    def writable(self, reference: Reference) -> Registry:
        """The registry to push a name to. Raises Forbidden where that is the embedded hub."""
        if reference.domain == DEFAULT_DOMAIN and self._hub == "embedded":
            last = reference.path.rpartition("/")[2]
            raise Forbidden(
                f"{reference.familiar_name} would go to Docker Hub, and the hub here is the embedded one, which is "
                f"read-only: tag it for another registry, as localhost:5000/{last}, and push that"
            )
        return self._registry(reference.domain)

    def login(self, domain: str) -> str:
        """Show a registry what we were given; what it gives in the password's place. Raises Unauthorized (401)."""
        try:
            return self._registry(domain).login()
        except Unauthorized as error:
            error.status = 401
            raise

    def tags(self, reference: Reference) -> list[str]:
        return self.ask(reference, lambda registry: registry.tags(reference.path))[1]

    def close(self) -> None:
        for registry in self._open.values():
            registry.close()
        self._open.clear()
        if self._server:
            self._server.close()
            self._server = None

    def _was_offline(self) -> bool:
        try:
            return 0 <= time.time() - self._offline.stat().st_mtime < _REMEMBER
        except FileNotFoundError:
            return False

    def _registry(self, domain: str) -> Registry:
        from minirt.registry.client import Registry
        from minirt.registry.credentials import Given
        from minirt.registry.settings import Settings

        with self._lock:
            if domain not in self._open:
                timeout = _CONNECT if self._hub == "auto" and domain == DEFAULT_DOMAIN else _PATIENT
                shown = Given(*self._auth) if self._auth else None
                self._open[domain] = Registry(domain, Settings.load(), connect_timeout=timeout, credentials=shown)
            return self._open[domain]

    def _embedded(self) -> Registry:
        from minirt.hub.server import Hub
        from minirt.registry.client import Registry
        from minirt.registry.settings import Settings

        with self._lock:
            if self._server is None:
                self._server = Hub(self._root / "hub", throttle=self._throttle)
                self._server.start()
                self._open["embedded"] = Registry(DEFAULT_DOMAIN, Settings.load(), endpoint=self._server.url)
            return self._open["embedded"]
