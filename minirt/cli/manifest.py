"""`manifest inspect`: the document that a name points to in its registry (chapter 05)."""

from __future__ import annotations

import base64
import json
from typing import Any

from minirt.cli.console import Console
from minirt.cli.flags import Values, command


@command(
    "[MANIFEST_LIST] MANIFEST",
    """
        --insecure   Known, and not needed: `insecure-registries` says which may be
    -v, --verbose    Show the platform and the bytes as well, and of a list every manifest
    """,
)
def manifest_inspect(console: Console, values: Values, arguments: list[str]) -> None:
    found = console.client.manifests(arguments[-1], values["verbose"])
    if not values["verbose"]:
        document = _document(found[0])
        # docker's own indents
        console.print(json.dumps(document, indent=3 if "manifests" in document else "\t", ensure_ascii=False))
        return
    rows = [row | {_kind(row): _document(row)} for row in (found[1:] or found)]
    console.print(json.dumps(rows if found[1:] else rows[0], indent="\t", ensure_ascii=False))


def _document(row: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(base64.b64decode(row["Raw"])))


def _kind(row: dict[str, Any]) -> str:
    """What docker calls a manifest of this type."""
    return "OCIManifest" if ".oci." in row["Descriptor"]["mediaType"] else "SchemaV2Manifest"
