"""Hooks: programs that somebody else wants run at a stage of a container's life, with its state on their stdin.

docker's network is one (`prestart`). A hook that fails before the command runs means that it does not run; later ones
are only told. Sources: runtime-spec config.md "POSIX-platform Hooks", runtime.md "Lifecycle". Taught in chapter 08.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

from minirt.errors import StartError


def run(config: dict[str, Any], stage: str, state: dict[str, Any], before: Callable[[], None] | None = None) -> None:
    """Run all hooks of a stage in order. Raises StartError at the first that fails, with what it said.

    `before` is called in each hook's process just before the hook begins.
    """
    for number, hook in enumerate((config.get("hooks") or {}).get(stage) or ()):
        env = dict(entry.split("=", 1) for entry in hook.get("env") or () if "=" in entry)
        name = f"{stage} hook #{number} ({hook['path']})"
        try:
            result = subprocess.run(
                hook.get("args") or [hook["path"]], executable=hook["path"], env=env, timeout=hook.get("timeout"),
                input=json.dumps(state).encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                preexec_fn=before,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise StartError(f"error running {name}: it took more than {hook['timeout']} s") from error
        except OSError as error:
            raise StartError(f"error running {name}: {error.strerror}") from error
        if result.returncode:
            said = result.stdout.decode(errors="replace").strip()[:1000]
            how = f"exit status {result.returncode}" if result.returncode > 0 else f"signal {-result.returncode}"
            raise StartError(f"error running {name}: {how}, {said}")
