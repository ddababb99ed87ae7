"""Everything that can go wrong, in the field's words.

Each error is one line that a user can act on. `status` is the code the Docker Engine API answers with for that kind of
failure, and `exit_code` what `minirt` exits with (docker's: 125 for its own failures in `run`, 126 and 127 for the
command's). Nothing below `cli` prints: rooms raise, the front shows `str(error)`.
"""

from __future__ import annotations


class MinirtError(Exception):
    """A failure with one clear line. Base of the family; also an internal limit with no better name."""

    status = 500
    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback: in a notebook, too, a failure is one line."""
        return [f"{type(self).__name__}: {self}"]


class InvalidInput(MinirtError):
    """The caller's words do not parse: a name, a digest, an option (HTTP 400)."""

    status = 400


class Forbidden(MinirtError):
    """It is marked read-only (HTTP 403)."""

    status = 403


class NotFound(MinirtError):
    """No such image, container, manifest or blob (HTTP 404)."""

    status = 404


class Conflict(MinirtError):
    """The state forbids it: name taken, image in use, container running (HTTP 409)."""

    status = 409


class Unauthorized(MinirtError):
    """The registry refuses these credentials, or asks for some."""

    status = 404  # as dockerd's answer: at a 401 docker's command asks its user to log in, and tries again


class RegistryError(MinirtError):
    """The registry cannot be reached, or does not speak the distribution-spec."""


class VerificationError(MinirtError):
    """Bytes are not what their digest, size or media type promised. Nothing unverified is kept."""


class UnpackError(MinirtError):
    """A layer's archive is malformed, hostile or over a limit; names the entry."""


class StoreError(MinirtError):
    """The local store cannot be read or written: permissions, disk, or a format from elsewhere."""


class Unsupported(MinirtError):
    """This machine cannot do that (or we do not, yet); says what to do instead (HTTP 501)."""

    status = 501


class StartError(MinirtError):
    """The container's command did not start. `exit_code` is docker's: 127 not found, 126 not executable, else 125."""

    status = 400

    def __init__(self, message: str, exit_code: int = 125) -> None:
        super().__init__(message)
        self.exit_code = exit_code
