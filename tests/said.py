"""What a command says on standard error, but for the line that tells of a daemon it had to start."""

from __future__ import annotations

import re
import subprocess
from typing import Any

_STARTED = re.compile(r"minirt: started the daemon \(process \d+\), listening on unix://\S+\n")


def said(text: str) -> str:
    return _STARTED.sub("", text, count=1)


def run(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run`, with text."""
    result = subprocess.run(command, **settings)
    if result.stderr:
        result.stderr = said(result.stderr)
    return result
