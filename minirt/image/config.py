"""An image's config: the start-up command, its settings, and the DiffIDs of the file snapshot.

Source: OCI image-spec config.md. Docker's config is the same shape. Every field is checked here once, so that later
rooms can trust types. `raw` keeps the document whole for `inspect`. Taught in chapter 05.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minirt.errors import InvalidInput, VerificationError
from minirt.image.digest import Digest
from minirt.image.manifest import load_json
from minirt.image.platform import Platform


@dataclass(frozen=True)
class ImageConfig:
    """What a container of this image starts with. Lists are empty where the image says nothing."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    env: tuple[str, ...]
    working_dir: str
    user: str
    stop_signal: str
    labels: dict[str, str]
    volumes: tuple[str, ...]
    exposed_ports: tuple[str, ...]
    created: str
    history: tuple[dict[str, Any], ...]
    raw: dict[str, Any]

    @classmethod
    def parse(cls, content: bytes) -> ImageConfig:
        """Parse and check the config blob. Raises VerificationError."""
        document = load_json(content, "image config")
        settings = _typed(document, "config", dict, {})
        rootfs = _typed(document, "rootfs", dict, {})
        if rootfs.get("type", "layers") != "layers":
            raise VerificationError("image config: rootfs.type is not 'layers'")
        try:
            diff_ids = tuple(Digest(text) for text in _strings(rootfs, "diff_ids"))
        except InvalidInput as error:
            raise VerificationError(f"image config: rootfs.diff_ids: {error}") from error
        history = _typed(document, "history", list, [])
        if not all(isinstance(entry, dict) for entry in history):
            raise VerificationError("image config: history is not a list of objects")
        labels = _typed(settings, "Labels", dict, {})
        return cls(
            platform=Platform.from_json(document),
            diff_ids=diff_ids,
            entrypoint=_strings(settings, "Entrypoint"),
            cmd=_strings(settings, "Cmd"),
            env=_strings(settings, "Env"),
            working_dir=_typed(settings, "WorkingDir", str, ""),
            user=_typed(settings, "User", str, ""),
            stop_signal=_typed(settings, "StopSignal", str, ""),
            labels={str(k): str(v) for k, v in labels.items()},
            volumes=tuple(sorted(_typed(settings, "Volumes", dict, {}))),
            exposed_ports=tuple(sorted(_typed(settings, "ExposedPorts", dict, {}))),
            created=_typed(document, "created", str, ""),
            history=tuple(history),
            raw=document,
        )

    def command(self, arguments: tuple[str, ...] = (), entrypoint: tuple[str, ...] | None = None) -> list[str]:
        """The argv: an overridden entrypoint drops the image's Cmd; arguments replace Cmd (docker's rule)."""
        if entrypoint is not None:
            return [*entrypoint, *arguments]
        return [*self.entrypoint, *(arguments or self.cmd)]


def _typed(document: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = document.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise VerificationError(f"image config: {key} is not a {kind.__name__}")
    return value


def _strings(document: dict[str, Any], key: str) -> tuple[str, ...]:
    values = _typed(document, key, list, [])
    if not all(isinstance(value, str) and "\0" not in value for value in values):
        raise VerificationError(f"image config: {key} is not a list of strings")
    return tuple(values)
