"""One HTTP exchange with a registry, its token service or its storage: where it may go, and what may go with it.

Invariants, whatever the other side answers:
- Authorization goes only to the origin (scheme, host, port) it was made for; a redirect elsewhere drops it for good.
  No `.netrc`, no cookies, no user or password inside a URL (CVE-2024-47081).
- What carries a body (an upload, a token's form) is never redirected; where an upload goes on is asked for, see upload.
- https never becomes http, and plain http goes only to loopback or to what the user listed as insecure.
- A redirect or a token realm reaches loopback or link-local addresses only where the registry itself is there. The
  address is checked on the connected socket, so a name that resolves differently the second time gains nothing.
- Bodies are raw (`Accept-Encoding: identity`) and read piecewise, faster than a floor, up to a cap; what comes
  compressed all the same is not inflated.

Each exchange is published to `minirt.trace`, without secrets.
"""

from __future__ import annotations

import http.client
import http.cookiejar
import json
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TypeVar
from urllib.parse import SplitResult, parse_qsl, urljoin, urlsplit

import requests
import urllib3
from requests.utils import get_environ_proxies

from minirt import trace
from minirt.errors import MinirtError, RegistryError, VerificationError
from minirt.registry import trust
from minirt.registry.guard import Adapter, keep_out
from minirt.registry.patience import Patience, Transient, Unreachable, retry_after
from minirt.registry.settings import Settings, locality

T = TypeVar("T")
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
_BUSY = (408, 429, 500, 502, 503, 504)
_READ = 256 << 10  # bytes asked of the socket at once
_FLOOR = 1 << 10  # bytes per second: a body slower than this for a whole stall time is a stall
_SLOW_ANSWER = 4  # times the stall time
_SHOWN_QUERY = frozenset({"service", "scope", "client_id", "n", "last", "digest", "mount", "from"})


class Sent(Protocol):
    """A request's body of known length, read as it is sent."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[bytes]: ...
    def read(self, size: int) -> bytes: ...


class Transport:
    """Exchanges on behalf of one registry at `home` (its base URL). Thread-safe: each thread has its own sessions."""

    def __init__(
        self, home: str, settings: Settings, connect_timeout: float, stall_timeout: float, attempts: int, backoff: float
    ) -> None:
        """Times in seconds; `attempts` at least 1; `backoff` is the longest first pause, doubled each time."""
        self._home, self._authority = _origin(checked(home)), _host(home)
        self._settings = settings
        self._plain = settings.insecure(urlsplit(home).netloc)
        self._near = locality(urlsplit(home).hostname or "")
        self._met = False  # has the registry ever answered?
        self._timeouts = (connect_timeout, stall_timeout)
        self._attempts, self._backoff = attempts, backoff
        self._local = threading.local()
        # Of threads that live: a daemon has a new one for each pull, and sessions keep connections.
        self._sessions: weakref.WeakSet[requests.Session] = weakref.WeakSet()
        self._lock = threading.Lock()
        if self._plain:  # the user knows that this registry's certificate is not checked
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    def at_home(self, response: requests.Response) -> bool:
        """Did the registry itself answer, rather than a host it redirected us to?"""
        return self.is_home(response.url)

    def is_home(self, url: str) -> bool:
        """Does this URL lead to the registry itself?"""
        return _origin(url) == self._home

    def persist(self, action: Callable[[], T]) -> T:
        """Call until it succeeds, with pauses, a bounded number of times; then raise its last error.

        A registry that cannot be reached is waited for only where it has answered before.
        """
        patience = self.patience()
        while True:
            try:
                return action()
            except (Transient, Unreachable) as error:
                if isinstance(error, Unreachable) and not self._met:
                    raise
                patience.wait(error)

    def patience(self) -> Patience:
        return Patience(self._attempts, self._backoff)

    def send(
        self,
        url: str,
        headers: Mapping[str, str],
        authorization: str | None = None,
        form: Mapping[str, str] | None = None,
        method: str = "",
        body: Sent | None = None,
    ) -> requests.Response:
        """GET (or `method`; POST where there is a `form`) `url`; the answer's body is unread. The caller closes it.

        A GET follows redirects. Raises Unreachable, Transient (also for a status that means "later") or RegistryError
        (refused, malformed).
        """
        method = method or ("GET" if form is None else "POST")
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._exchange(method, url, headers, authorization, body if form is None else form)
            location = response.headers.get("Location", "")
            if response.status_code not in _REDIRECTS or not location or method == "HEAD":
                return self._not_busy(response)
            self.said(response)
            try:
                target = urljoin(url, location)
                if _origin(target) != _origin(url):
                    authorization = None
            except ValueError as error:
                raise RegistryError(f"{_host(url)} redirects to a malformed URL") from error
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise RegistryError(f"{_host(url)} redirects from https to plain http: refused")
            if method != "GET":
                what = "an upload" if form is None else "a request that carries credentials"
                raise RegistryError(f"{_host(url)} redirects {what}: refused")
            url = target
        raise RegistryError(f"{_host(url)} redirects more than {_MAX_REDIRECTS} times")

    def _exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        authorization: str | None,
        data: Mapping[str, str] | Sent | None,
    ) -> requests.Response:
        parts, home = urlsplit(url), _origin(url) == self._home
        self._permit(parts, home)
        near = locality(parts.hostname or "")
        sent = {"User-Agent": "minirt", "Accept-Encoding": "identity", **headers}
        if authorization:
            sent["Authorization"] = authorization
        started = time.monotonic()
        status, answered = 0, {}
        # A registry may have to check what it was sent, and to carry it elsewhere, before it answers.
        patient = _SLOW_ANSWER if method in ("PUT", "PATCH") else 1
        try:
            insecure = self._settings.insecure(parts.netloc)
            response = self._session(home, parts.scheme, insecure).request(
                method,
                url,
                headers=sent,
                data=data,
                stream=True,
                allow_redirects=False,
                timeout=(self._timeouts[0], self._timeouts[1] * patient),
                verify=False if insecure else trust.roots(),
                proxies={} if near else get_environ_proxies(url),
            )
            status, answered = response.status_code, dict(response.headers)
            self._met = self._met or home
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            raise _failure(error, _host(url)) from error
        finally:
            trace.publish(
                "registry",
                "exchange",
                method=method,
                url=_shown_url(url),
                status=status,
                ms=round((time.monotonic() - started) * 1000, 1),
                request=_shown_headers(sent),
                response=_shown_headers(answered),
            )
        return response

    def _permit(self, parts: SplitResult, home: bool) -> None:
        """Refuse a URL before anything is sent to it."""
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RegistryError(f"the registry sends us to {parts.geturl()[:80]!r}: not an http URL")
        if "@" in parts.netloc:
            raise RegistryError(f"the registry sends us to {parts.hostname} with a user name in the URL: refused")
        if parts.scheme == "http" and not (self._plain and self._settings.insecure(parts.netloc)):
            raise RegistryError(f"plain http to {parts.netloc} is refused (only loopback or `insecure-registries`)")
        if not home:
            keep_out(parts.hostname, self._near)

    def _session(self, home: bool, scheme: str, insecure: bool) -> requests.Session:
        """This thread's session for the registry itself, or for everywhere else."""
        sessions: dict[tuple[bool, str, bool], requests.Session] = self._local.__dict__.setdefault("sessions", {})
        key = home, scheme, insecure
        if key not in sessions:
            tls = trust.context(self._authority, insecure, ours=home) if scheme == "https" else None
            session = sessions[key] = _Session()
            session.trust_env = False  # no .netrc; proxies are given by hand
            session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
            session.mount(f"{scheme}://", Adapter(None if home else self._near, tls))
            with self._lock:
                self._sessions.add(session)
        return sessions[key]

    def pieces(self, response: requests.Response) -> Iterator[bytes]:
        """The raw body as it arrives. Raises Transient on a reset, a stall or a drip; a short body just ends."""
        waited, got, stall = 0.0, 0, self._timeouts[1]
        while True:
            asked = time.monotonic()
            try:
                piece = response.raw.read1(_READ, decode_content=False)
            except (OSError, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
                why = "stalled" if isinstance(error, (TimeoutError, urllib3.exceptions.TimeoutError)) else "broke off"
                raise Transient(f"the transfer from {_host(response.url)} {why}") from error
            if not piece:
                return
            # Only our waiting counts, not the time the caller takes with a piece.
            waited, got = waited + time.monotonic() - asked, got + len(piece)
            if waited > stall:
                if got < _FLOOR * stall:
                    raise Transient(f"the transfer from {_host(response.url)} stalled")
                waited, got = 0.0, 0
            yield piece

    def read(self, response: requests.Response, limit: int, what: str) -> bytes:
        """The whole body, at most `limit` bytes, and the response closed. Raises VerificationError, Transient."""
        with response:
            announced = announced_size(response)
            if announced is not None and announced > limit:
                raise VerificationError(f"{what} is larger than {limit} bytes")
            encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
            if encoding not in ("", "identity"):  # a bomb, or a mistake: nobody asked for it
                raise VerificationError(f"{what} comes compressed ({printable(encoding)}), which was not asked for")
            body = bytearray()
            for piece in self.pieces(response):
                body += piece
                if len(body) > limit:
                    raise VerificationError(f"{what} is larger than {limit} bytes")
            if announced is not None and len(body) < announced:
                raise Transient(f"the transfer from {_host(response.url)} broke off")
            return bytes(body)

    def said(self, response: requests.Response) -> tuple[str, str]:
        """Code and message of an error body (distribution-spec, "Error Codes"), where it has them; closes it."""
        try:
            document = json.loads(self.read(response, 64 << 10, "error"))
            first = (document.get("errors") or [document])[0]
            return printable(str(first.get("code", ""))), printable(
                str(first.get("message") or first.get("details", ""))
            )
        except (MinirtError, ValueError, AttributeError, LookupError, TypeError, RecursionError):
            return "", ""  # the status alone must do

    def _not_busy(self, response: requests.Response) -> requests.Response:
        status, host = response.status_code, _host(response.url)
        if status not in _BUSY:
            return response
        after = retry_after(response.headers.get("Retry-After", ""))
        words = self.said(response)[1]
        if status != 429:
            line = f"{host}: received unexpected HTTP status: {status} {printable(response.reason)}"
            raise Transient(f"{line}: {words}" if words else line, after)
        line = f"toomanyrequests: {words or f'the rate limit of {host} is reached'}"
        if after is None:  # Docker Hub's pull limit lasts for hours
            raise RegistryError(line)
        raise Transient(f"{line} (it asks to wait {after:.0f} s)", after)

    def close(self) -> None:
        with self._lock:
            for session in self._sessions:
                session.close()
            self._sessions.clear()
            self._local = threading.local()


class _Session(requests.Session):
    """Follows nothing. Told `allow_redirects=False` only, requests still reads a redirect's whole body into memory."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


def checked(url: str) -> str:
    """The URL, whose host and port are such. Raises RegistryError; whoever names it, user or registry, may err."""
    try:
        _origin(url)
    except ValueError as error:
        raise RegistryError(f"cannot reach {printable(url)}: {error}") from error
    return url


def announced_size(response: requests.Response) -> int | None:
    """Content-Length, in bytes; None where there is none that is a number."""
    stated = response.headers.get("Content-Length", "").strip()
    return int(stated) if re.fullmatch("[0-9]{1,19}", stated, re.ASCII) else None


def printable(text: str) -> str:
    """A server's words on one line of ours: no control characters, at most 200 long."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() or c.isspace() else "?" for c in text[:200])).strip()


def _failure(error: Exception, host: str) -> RegistryError:
    """An exception of the HTTP library, in our words."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(reason, urllib3.exceptions.NewConnectionError):
        cause = reason.__cause__
        return Unreachable(f"cannot reach {host}: {getattr(cause, 'strerror', None) or reason}")
    if isinstance(error, requests.ConnectTimeout):
        return Unreachable(f"cannot reach {host}: no answer")
    if isinstance(error, (requests.exceptions.SSLError, requests.exceptions.ProxyError)):
        return Unreachable(f"cannot reach {host}: {printable(str(reason or error))}")
    if isinstance(error, requests.Timeout):
        return Transient(f"{host} does not answer")
    if isinstance(error, requests.ConnectionError):
        return Transient(f"{host} broke the connection off")
    return RegistryError(f"{host}: {printable(str(error))}")


def _origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what credentials belong to. Raises ValueError for a port that is none."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _shown_url(url: str) -> str:
    """Without what may be a secret: a signed URL's query is one."""
    try:
        parts = urlsplit(url)
    except ValueError:  # a registry's Location may be anything
        return "…"
    query = "&".join(f"{key}={value if key in _SHOWN_QUERY else '…'}" for key, value in parse_qsl(parts.query))
    return parts._replace(netloc=_host(url), query=query).geturl()


def _shown_headers(headers: Mapping[str, str]) -> dict[str, str]:
    shown = dict(headers)
    for name, value in headers.items():
        if name.lower() in ("authorization", "proxy-authorization"):
            shown[name] = value.partition(" ")[0] + " …"
        elif name.lower() in ("set-cookie", "cookie"):
            shown[name] = "…"
        elif name.lower() == "location":
            shown[name] = _shown_url(value)
    return shown
