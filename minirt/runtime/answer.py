"""What a shim answers whoever started it, in one line of JSON: `{"pid"}` once the command runs, or `{"error",
"exit_code"}`. Taught in chapter 08.
"""

from __future__ import annotations

import json
import os
from typing import Any

from minirt.errors import StartError
from minirt.runtime import namespaces

STATUS = 3  # the descriptor


def tell(answer: dict[str, Any]) -> None:
    """Say it, and hold the starter up no longer."""
    try:
        os.write(STATUS, json.dumps(answer).encode() + b"\n")
    except BrokenPipeError:
        return  # the starter went away; run.json says what there is to know
    finally:
        hush()


def hush(shim: int = 0) -> None:
    """Hold the starter up no longer: a shim once it is told, a child of it at birth. The number stays taken."""
    if not shim or os.getppid() == shim:
        os.dup2(2, STATUS, inheritable=False)


def tell_failure(error: Exception) -> None:
    """Tell the starter, in one line, why there is no container."""
    tell({"error": namespaces.describe(error), "exit_code": error.exit_code if isinstance(error, StartError) else 125})
