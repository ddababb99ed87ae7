"""The user's logins, as docker keeps them: `~/.docker/config.json` (or `$DOCKER_CONFIG/config.json`).

    auths                    host → {"auth": base64("user:password")} or username/password, or an identitytoken
    credHelpers, credsStore  host → X: the program `docker-credential-X` keeps them: `get`, `store`, `erase`

The file is changed as docker changes it: what else stands there stays, nobody else may read it, and it is the old one
or the new one, never half. Formats: docker/cli `cli/config/configfile`, docker/docker-credential-helpers. Docker Hub's
key is a URL of the v1 era. Nothing is looked up before a registry asks.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import tempfile
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
        keys = _keys(authority)
        if helper := _helper(config, keys):
            return self._ask(helper, keys[0])
        entries = {**{_bare(key): value for key, value in _table(config, "auths").items()}, **_table(config, "auths")}
        entry = next((entries[key] for key in keys if isinstance(entries.get(key), dict)), None)
        return self._stored(entry) if entry else None

    def keep(self, authority: str, credential: Credential) -> str:
        """Remember a login. Returns the file's name where a password is now in it for all who may read it, else "".

        Raises InvalidInput where it cannot be kept.
        """
        config, key = self._read(), key_of(authority)
        auths = _table(config, "auths")
        entry: dict[str, str] = {}
        if helper := _helper(config, _keys(authority)):
            secret = credential.identity_token or credential.password
            name = "<token>" if credential.identity_token else credential.username
            words = {"ServerURL": key, "Username": name, "Secret": secret}
            self._run(helper, "store", json.dumps(words, separators=(",", ":")))
        else:
            word = "" if credential.identity_token else credential.password
            entry["auth"] = base64.b64encode(f"{credential.username}:{word}".encode()).decode()
            if credential.identity_token:
                entry["identitytoken"] = credential.identity_token
        if auths.get(key) == entry:
            return ""
        self._write({"auths": auths | {key: entry}, **{k: v for k, v in config.items() if k != "auths"}})
        return str(self._path) if "auth" in entry and credential.password and not credential.identity_token else ""

    def forget(self, authority: str) -> list[str]:
        """Forget a login; what could not be forgotten, a line each. Raises InvalidInput."""
        config = self._read()
        key, trouble = key_of(authority), []
        forms = [key] if "://" in key else [key, f"http://{key}", f"https://{key}"]
        if helper := _helper(config, _keys(authority)):
            for form in forms:
                try:
                    self._run(helper, "erase", form)
                except InvalidInput as error:
                    if "not found" not in str(error):
                        trouble.append(str(error))
        auths = {k: v for k, v in _table(config, "auths").items() if k not in forms}
        if auths != _table(config, "auths"):
            self._write(config | {"auths": auths})
        return trouble

    def _write(self, config: dict[str, Any]) -> None:
        try:
            path = Path(os.path.realpath(self._path))  # a link stays one, as docker leaves it
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Made for this user alone (mkstemp), and complete on the disk before it has the name.
            fd, aside = tempfile.mkstemp(prefix="config.json", dir=path.parent)
            try:
                with os.fdopen(fd, "w", encoding="utf-8") as file:
                    json.dump(config, file, indent="\t", ensure_ascii=False)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(aside, path)
            except BaseException:
                os.unlink(aside)
                raise
        except OSError as error:
            raise InvalidInput(f"cannot keep logins in {self._path}: {error.strerror}") from error

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
        """Ask a helper. One that knows nothing, or fails, leaves a note."""
        program = self._program(helper)
        try:
            done = _call(program, "get", key)
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

    def _run(self, helper: str, verb: str, text: str) -> None:
        """`store` or `erase`. Raises InvalidInput with what the helper says."""
        program = self._program(helper)
        try:
            done = _call(program, verb, text)
        except OSError as error:
            raise InvalidInput(f"{program} (named in {self._path}): {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise InvalidInput(f"{program} {verb}: no answer in {_HELPER_TIMEOUT:.0f} seconds") from error
        if done.returncode:
            words = " ".join((done.stdout + done.stderr).decode(errors="replace").split())[:200]
            raise InvalidInput(f"{program} {verb}: {words or f'status {done.returncode}'}")

    def _program(self, helper: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", helper):
            raise InvalidInput(f"{self._path}: {helper[:80]!r} is not the name of a credential helper")
        return f"docker-credential-{helper}"


def _call(program: str, verb: str, text: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([program, verb], input=text.encode(), capture_output=True, timeout=_HELPER_TIMEOUT)


def host(server: str) -> str:
    """The registry that `docker login SERVER` means: `https://registry.example/v1/` is `registry.example`."""
    bare = _bare(server)
    return "docker.io" if not bare or bare in HUB_KEYS else bare


def key_of(authority: str) -> str:
    """Under which word a registry's login is kept."""
    return _keys(authority)[0]


def _keys(authority: str) -> tuple[str, ...]:
    return HUB_KEYS if authority == "docker.io" else (authority,)


def _helper(config: dict[str, Any], keys: tuple[str, ...]) -> str:
    """The name of the helper that keeps a registry's login, "" where the file itself does."""
    helpers = _table(config, "credHelpers")
    helper = next((helpers[key] for key in keys if key in helpers), config.get("credsStore"))
    return helper if isinstance(helper, str) else ""


def _table(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""


def _bare(key: str) -> str:
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
