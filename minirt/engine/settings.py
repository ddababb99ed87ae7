"""What a container is asked to be: the image's settings with the request's on top, by docker's rules."""

from __future__ import annotations

import os
from typing import Any

from minirt.errors import InvalidInput, Unsupported
from minirt.image.config import ImageConfig
from minirt.runtime.spec import ContainerOptions, environment
from minirt.userns import IdMapping


def settle(
    body: dict[str, Any], image: ImageConfig, identity: str, ids: IdMapping
) -> tuple[dict[str, Any], ContainerOptions]:
    """The Engine API's Config for the record, and what the runtime needs. Raises InvalidInput, Unsupported."""
    host = body.get("HostConfig") or {}
    entrypoint = body.get("Entrypoint")
    if isinstance(entrypoint, str):
        entrypoint = [entrypoint]
    # An entrypoint given as [""] clears the image's own.
    cleared = tuple(word for word in entrypoint if word) if entrypoint else None
    command = image.command(tuple(body.get("Cmd") or ()), cleared)
    if not command:
        raise InvalidInput("No command specified")
    network = str(host.get("NetworkMode") or "none")
    network = "none" if network in ("default", "") else network
    if network not in ("none", "host"):
        raise Unsupported(f"network {network!r} is not supported yet: use none or host")
    hostname = str(body.get("Hostname") or (os.uname().nodename if network == "host" else identity[:12]))
    if len(os.fsencode(hostname)) > 64:  # sethostname(2) takes no more, and as docker's any byte
        raise InvalidInput(f"invalid hostname: {hostname[:80]!r}")
    user = str(body.get("User") or image.user)
    cwd = str(body.get("WorkingDir") or image.working_dir or "/")
    if not cwd.startswith("/"):
        raise InvalidInput(f"the working directory {cwd[:80]!r} is invalid, it needs to be an absolute path")
    env = environment(hostname, image.env, [str(item) for item in body.get("Env") or []])
    config = {
        "Hostname": hostname,
        "User": user,
        "Tty": bool(body.get("Tty")),
        "OpenStdin": bool(body.get("OpenStdin")),
        "AttachStdin": bool(body.get("AttachStdin")),
        "AttachStdout": bool(body.get("AttachStdout")),
        "AttachStderr": bool(body.get("AttachStderr")),
        "Env": env,
        "Cmd": list(body.get("Cmd") or image.cmd),
        "Entrypoint": list(entrypoint or image.entrypoint) or None,
        "Image": body.get("Image"),
        "WorkingDir": cwd,
        "Labels": image.labels | (body.get("Labels") or {}),
        "StopSignal": body.get("StopSignal") or image.stop_signal,
        "Path": command,
    }
    options = ContainerOptions(
        args=command,
        env=env,
        cwd=cwd,
        hostname=hostname,
        network="host" if network == "host" else "none",
        no_new_privileges=_no_new_privileges(host.get("SecurityOpt") or []),
        readonly=bool(host.get("ReadonlyRootfs")),
        ids=ids,
    )
    return config, options


def _no_new_privileges(options: list[str]) -> bool:
    """On unless switched off: stricter than docker's default, as set-uid programs in an image are seldom wanted."""
    value = True
    for option in options:
        name, _, text = option.replace(":", "=", 1).partition("=")
        if name != "no-new-privileges" or text not in ("", "true", "false"):
            raise Unsupported(f"--security-opt {option[:80]!r} is not supported yet")
        value = text != "false"
    return value
