"""The commands `minirt` and `minirt-oci`, as the build makes them: scripts of our own, where they can be.

The one that pip makes of an entry point loads `re` first (to cut `.exe` off a name): 6 ms of each `minirt run`, as long
as Python itself takes to start. Windows starts no script by its first line, so there they stay entry points.
Source: hatchling's custom build and metadata hooks.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

ENTRY_POINTS = {"minirt": "minirt.cli:program", "minirt-oci": "minirt.child:oci_runtime"}
SCRIPTS = {"minirt/__main__.py": "minirt", "minirt/runtime/__main__.py": "minirt-oci"}


class EntryPoints(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        metadata["scripts"] = ENTRY_POINTS if sys.platform == "win32" else {}


class Scripts(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if sys.platform != "win32":
            for source in SCRIPTS:
                Path(self.root, source).chmod(0o755)  # a copy of the sources may have lost it, and pip keeps it
            build_data["shared_scripts"].update(SCRIPTS)
