"""What `docker login` left behind: `~/.docker/config.json` (or `$DOCKER_CONFIG/config.json`).

    auths                    host → {"auth": base64("user:password")} or username/password, or an identitytoken
    credHelpers, credsStore  host → X: the program `docker-credential-X get` knows (host on stdin, JSON on stdout)

Formats: docker/cli `cli/config/configfile`, docker/docker-credential-helpers. Docker Hub's key is a URL of the v1 era.
Nothing is looked up before a registry asks.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minirt.errors import InvalidInput

HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")
_HELPER_TIMEOUT = 60.0  # seconds: a helper may have to ask the user to unlock a keychain


@dataclass(frozen=True)
class Credential:
    """A user name and password, or an `identity_token` to trade for access tokens (OAuth2 refresh token)."""

    username: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


class Credentials:
    """The user's docker configuration. `note` tells why a helper gave nothing, for the error a refusal becomes."""

    def __init__(self, path: Path | None = None) -> None:
        folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
        self._path = path or Path(folder, "config.json")
        self.note = ""

    def look_up(self, authority: str) -> Credential | None:
        """What to show `authority` (`docker.io` for Docker Hub); None where the user never logged in there.

        Raises InvalidInput where the file cannot be read.
        """
        config = self._read()
        keys = HUB_KEYS if authority == "docker.io" else (authority,)
        helpers = _table(config, "credHelpers")
        helper = next((helpers[key] for key in keys if key in helpers), config.get("credsStore"))
        if isinstance(helper, str) and helper:
            return self._ask(helper, keys[0])
        entries = {**{_host(key): value for key, value in _table(config, "auths").items()}, **_table(config, "auths")}
        entry = next((entries[key] for key in keys if isinstance(entries.get(key), dict)), None)
        return self._stored(entry) if entry else None

    def _read(self) -> dict[str, Any]:
        try:
            config = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise InvalidInput(f"{self._path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{self._path} is not valid JSON: {error}") from error
        return config if isinstance(config, dict) else {}

    def _stored(self, entry: dict[str, Any]) -> Credential | None:
        username, password = _text(entry, "username"), _text(entry, "password")
        if encoded := _text(entry, "auth"):
            try:
                username, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
            except ValueError as error:
                raise InvalidInput(f"{self._path}: an 'auth' is not base64 of user:password") from error
            password = password.rstrip("\0")  # docker pads so
        identity = _text(entry, "identitytoken")
        return Credential(username, password, identity) if username or identity else None

    def _ask(self, helper: str, key: str) -> Credential | None:
        """Run `docker-credential-<helper> get`. One that knows nothing, or fails, leaves a note."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", helper):
            raise InvalidInput(f"{self._path}: {helper[:80]!r} is not the name of a credential helper")
        program = f"docker-credential-{helper}"
        try:
            done = subprocess.run([program, "get"], input=key.encode(), capture_output=True, timeout=_HELPER_TIMEOUT)
            answer = json.loads(done.stdout) if done.returncode == 0 else {}
        except (OSError, subprocess.TimeoutExpired, ValueError, RecursionError) as error:
            self.note = f"{program}: {getattr(error, 'strerror', None) or type(error).__name__}"
            return None
        if not isinstance(answer, dict) or not _text(answer, "Secret"):
            self.note = f"{program} has no credentials for {key}"
            return None
        username, secret = _text(answer, "Username"), _text(answer, "Secret")
        if username == "<token>":
            return Credential("", identity_token=secret)
        return Credential(username, secret)


def _table(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""


def _host(key: str) -> str:
    """`https://registry.example/v1/` → `registry.example`: older logins were stored under a URL."""
    return key.partition("://")[2].partition("/")[0] if "://" in key else key.partition("/")[0]


class Given(Credentials):
    """What a client of the daemon sent along (X-Registry-Auth): for one registry only."""

    def __init__(self, authority: str, auth: dict[str, Any]) -> None:
        super().__init__()
        self._authority = authority
        words = {key: str(auth.get(key) or "") for key in ("username", "password", "identitytoken")}
        self._credential = Credential(words["username"], words["password"], words["identitytoken"])

    def look_up(self, authority: str) -> Credential | None:
        return self._credential if authority == self._authority else None
