"""Chapter 07, a container by hand: its exercise asks for a wall that keeps the image's files from being written to."""

from __future__ import annotations

from typing import Any

from minirt.client import Client
from minirt.notebook.byhand import Trial, attempt, kept
from minirt.notebook.chapters import Finding, Task

HERE = ("container",)
LATER = ()
_BELOW = ("own_user", "own_root")  # the walls that the learner's stands on
_WALL = "read_only"
# Run behind the learner's wall: what can be written, and whether it shows in the image's own folder.
_PROBE = """
def probe(host):
    found = {}
    for folder in ("etc", "usr", "tmp"):
        try:
            Path(f"/{folder}/written-by-the-check").write_text("")
            found[folder] = "written"
            os.unlink(f"/{folder}/written-by-the-check")
        except OSError as error:
            found[folder] = errno.errorcode[error.errno]
    found["own"] = os.stat("/tmp").st_dev != os.stat("/").st_dev
    return found
"""


def _nothing(client: Client) -> None:
    """The stage is the page's own container."""


def _wall(client: Client) -> Finding:
    sources = kept(client.root)
    if missing := [name for name in (*_BELOW, _WALL) if name not in sources]:
        return "missing", {"name": missing[0]}
    walls = {name: sources[name] for name in (*_BELOW, _WALL)}
    trial = attempt(client.root / "by-hand", walls, {}, look=("probe", _PROBE))
    if trial.stopped:
        key, fields = trial.stopped
        return key, {name: str(value) for name, value in fields.items()}
    return _judged(trial)


def _judged(trial: Trial) -> Finding:
    found: dict[str, Any] = trial.value or {}
    if open_ := [folder for folder in ("etc", "usr") if found.get(folder) == "written"]:
        return "open", {"folder": f"/{open_[0]}"}
    if found.get("tmp") != "written":
        return "closed", {"error": str(found.get("tmp"))}
    return "right" if found["own"] else "shared"


EXERCISES = {"read-only": Task(_nothing, _wall)}
