"""Authorization, as objects that escalate: Anonymous → Basic or Bearer, driven by what a 401 asks for.

A *token* opens one repository for minutes. The registry's challenge names who gives it (realm), for which registry
(service) and for what (scope, `repository:library/ubuntu:pull`); we ask with the user's credentials or anonymously.
Sources: distribution `docs/spec/auth/token.md` and `oauth.md`; RFC 7617 for Basic. Taught in chapter 04.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit

from minirt.errors import RegistryError, Unauthorized, VerificationError
from minirt.image.manifest import load_json
from minirt.registry.challenge import Challenge
from minirt.registry.credentials import Credential
from minirt.registry.transport import Transport, checked

MAX_TOKEN = 1 << 20  # bytes of a token service's answer
_LEAST_LIFE = 60  # seconds: the token spec's default, and the least docker counts on
_LEEWAY = 5


class Auth(Protocol):
    """What goes with a request."""

    def header(self, scope: str) -> str | None:
        """The Authorization for a request in `scope`; may fetch a token."""


class Anonymous:
    """Where everyone starts."""

    def header(self, scope: str) -> str | None:
        return None


class Basic:
    """User and password with each request."""

    def __init__(self, credential: Credential) -> None:
        self._header = basic(credential)

    def header(self, scope: str) -> str | None:
        return self._header


class Bearer:
    """A token per scope, fetched when first needed and when it runs out. Thread-safe: layers wait for one fetch."""

    def __init__(self, challenge: Challenge, credential: Credential | None, transport: Transport) -> None:
        self._realm, self._service = _service(challenge)
        checked(self._realm)
        self._credential, self._transport = credential, transport
        self.identity = ""  # what the service gives in the password's place, where `offline` asks for it
        self.offline = False
        self._tokens: dict[str, tuple[str, float, float]] = {}  # scope → token, fetched and good until (monotonic)
        self._named: dict[str, str] = {}  # our scope → the scope the registry named for it
        self._lock = threading.Lock()

    def serves(self, challenge: Challenge) -> bool:
        """Is it this token service that the challenge wants asked?"""
        return _service(challenge) == (self._realm, self._service)

    def header(self, scope: str) -> str | None:
        with self._lock:
            scope = self._named.get(scope, scope)
            token, _, until = self._tokens.get(scope, ("", 0.0, 0.0))
            if time.monotonic() >= until:
                fetched = time.monotonic()
                token, life = self._fetch(scope)
                self._tokens[scope] = (token, fetched, fetched + life - _LEEWAY)
            return f"Bearer {token}"

    def renew(self, used: str | None, scope: str, challenge: Challenge, since: float) -> bool:
        """`used` was refused with `challenge`: is there any sense in another token?

        Not where this one was made since the request began, for the very scope that is asked for.
        """
        with self._lock:
            before = self._named.get(scope, scope)
            now = self._named[scope] = challenge.parameters.get("scope") or before
            token, fetched, _ = self._tokens.get(before, ("", 0.0, 0.0))
            if used == f"Bearer {token}":
                del self._tokens[before]
                return now != before or fetched < since
            return True

    def _fetch(self, scope: str) -> tuple[str, float]:
        """Ask the realm; the token and its life in seconds. `scope` may be several, with a blank between."""
        asked = {"service": self._service} if self._service else {}
        parts, credential, headers = urlsplit(self._realm), self._credential, {"Accept": "application/json"}
        if credential and credential.identity_token:
            form = {"grant_type": "refresh_token", "client_id": "minirt", "refresh_token": credential.identity_token}
            response = self._transport.send(
                self._realm, headers, form={**form, **asked, **({"scope": scope} if scope else {})}
            )
        else:
            asked |= {"account": credential.username} if credential else {}
            asked |= {"offline_token": "true", "client_id": "minirt"} if self.offline else {}
            scopes = [("scope", each) for each in scope.split()]
            query = urlencode([*parse_qsl(parts.query), *asked.items(), *scopes])
            url = parts._replace(query=query).geturl()
            response = self._transport.send(url, headers, basic(credential) if credential else None)
        if response.status_code in (400, 401, 403):
            words = self._transport.said(response)[1]
            why = "incorrect username or password" if credential else "authentication required"
            raise Unauthorized(f"unauthorized: {why}{': ' + words if words else ''} ({parts.netloc})")
        if response.status_code != 200:
            response.close()
            raise RegistryError(f"the token service at {parts.netloc} answers {response.status_code}")
        body = self._transport.read(response, MAX_TOKEN, f"the token from {parts.netloc}")
        token, life, identity = read_token(body, parts.netloc)
        if self.offline:
            self.identity = identity
        return token, life


def _service(challenge: Challenge) -> tuple[str, str]:
    return challenge.parameters.get("realm", ""), challenge.parameters.get("service", "")


def read_token(body: bytes, host: str) -> tuple[str, float, str]:
    """A token service's answer: the token, its life in seconds, and what may be shown for a password from now on ("").

    Raises RegistryError.
    """
    try:
        answer: dict[str, Any] = load_json(body, f"the token from {host}")
    except VerificationError as error:
        raise RegistryError(str(error)) from error
    token, life = answer.get("token") or answer.get("access_token"), answer.get("expires_in")
    if not isinstance(token, str) or not re.fullmatch("[!-~]+", token):
        raise RegistryError(f"the token service at {host} gives no token")
    identity = answer.get("refresh_token")
    return token, max(life if isinstance(life, int) else 0, _LEAST_LIFE), identity if isinstance(identity, str) else ""


def basic(credential: Credential) -> str:
    """RFC 7617, in UTF-8."""
    return "Basic " + base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()
