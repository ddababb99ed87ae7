"""The Engine API from one process that stays: the same few requests to any daemon's socket."""

from __future__ import annotations

import http.client
import json
import socket
import time
from typing import Any


class Refused(Exception):
    """The daemon said no."""


class _Line(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class Api:
    """One connection. `version` is one that all daemons here speak."""

    def __init__(self, path: str, version: str = "v1.41") -> None:
        self._line, self._version = _Line(path), version

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data is not None else {}
        self._line.request(method, f"/{self._version}{path}", data, headers)
        answer = self._line.getresponse()
        content = answer.read()
        if answer.status >= 400:
            raise Refused(f"{method} {path}: {answer.status} {content.decode(errors='replace')[:300]}")
        return json.loads(content) if content.strip() else None

    def create(self, image: str = "hello-world", **host: Any) -> str:
        """A container; its id."""
        return str(self.ask("POST", "/containers/create", {"Image": image, "HostConfig": host})["Id"])

    def start_to_exit(self, identity: str) -> float:
        """Start it and wait for its end; seconds."""
        begin = time.perf_counter()
        self.ask("POST", f"/containers/{identity}/start")
        code = self.ask("POST", f"/containers/{identity}/wait")["StatusCode"]
        seconds = time.perf_counter() - begin
        if code:
            raise Refused(f"the container exited with {code}")
        return seconds

    def remove(self, identity: str) -> None:
        self.ask("DELETE", f"/containers/{identity}?force=1")

    def close(self) -> None:
        self._line.close()
