"""Whom https is taken from: the machine's certificate authorities, and what is put down for one registry.

    …/certs.d/HOST[:PORT]/*.crt           who else may sign this registry's certificate
                          *.cert, *.key   what we show where it wants to know who we are: only to the registry itself

`…` is `~/.config/minirt`, and docker's own place: `/etc/docker` for root, `~/.config/docker` for others.
`SSL_CERT_FILE` (or `REQUESTS_CA_BUNDLE`) names another file of authorities than the machine's.
Source: docker's documentation, "Verify repository client with certificates"; moby registry.ReadCertsDirectory.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

from urllib3.util.ssl_ import create_urllib3_context

from minirt.errors import InvalidInput


def roots() -> str | bool:
    """The file of authorities the user names; True where none is named."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or True


def context(authority: str, insecure: bool, ours: bool) -> ssl.SSLContext:
    """How to meet `authority` (`host` or `host:port`) and, not `ours`, who it sends us to. Raises InvalidInput.

    `insecure`: whoever answers is believed. `ours`: our own certificate may be shown.
    """
    made = create_urllib3_context()
    if insecure:
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    else:
        made.check_hostname, made.verify_mode = True, ssl.CERT_REQUIRED
        if roots() is True:
            made.load_default_certs()
    for folder in folders():
        for path in _files(folder / authority):
            try:
                _load(made, path, ours)
            except (ssl.SSLError, OSError) as error:
                raise InvalidInput(f"{path}: {error.strerror or error}") from error
    return made


def folders() -> list[Path]:
    """Where `certs.d` may be."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"))
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    return [config / "minirt/certs.d", Path("/etc/docker/certs.d") if root else config / "docker/certs.d"]


def _files(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise InvalidInput(f"{folder}: {error.strerror}") from error


def _load(made: ssl.SSLContext, path: Path, ours: bool) -> None:
    """One file, by its ending, as docker takes it."""
    if path.suffix == ".crt":
        made.load_verify_locations(path)
    elif path.suffix == ".cert":
        key = path.with_suffix(".key")
        if not key.exists():
            raise InvalidInput(
                f"missing key {key} for client certificate {path}. CA certificates must use the extension .crt"
            )
        if ours:
            made.load_cert_chain(path, key)
    elif path.suffix == ".key" and not path.with_suffix(".cert").exists():
        raise InvalidInput(f"missing client certificate {path.with_suffix('.cert')} for key {path}")
