"""What this runtime can do, as data (`features`), and a config.json to begin with (`spec`).

Sources: runtime-spec features.md, runc's `spec`. Taught in chapter 08.
"""

from __future__ import annotations

import os
from typing import Any

from minirt.runtime import capabilities, config, mounts, spec, standing
from minirt.userns import IdMapping


def features() -> dict[str, Any]:
    """The runtime-spec's features object."""
    hooks = list(config._FIELDS["hooks"])
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": standing.VERSION,
        "hooks": hooks,
        "mountOptions": mounts.OPTIONS,
        "linux": {
            "namespaces": list(config.NAMESPACES),
            "capabilities": list(capabilities.NAMES),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": True},
            "seccomp": {"enabled": True},
            "apparmor": {"enabled": os.path.exists("/sys/module/apparmor")},
            "selinux": {"enabled": False},
        },
    }


def example(rootless: bool) -> dict[str, Any]:
    """A shell over `rootfs/`; with `rootless`, as root of a user namespace of our one id."""
    one = IdMapping(((0, os.geteuid(), 1),), ((0, os.getegid(), 1),))
    options = spec.ContainerOptions(
        ["sh"], [spec.PATH, "TERM=xterm"], hostname="minirt", ids=one if rootless else IdMapping()
    )
    made = spec.generate(options)
    made["process"]["terminal"] = True
    made["mounts"] = [entry for entry in made["mounts"] if not entry["destination"].startswith("/etc/")]
    return made
