"""Capabilities: root's power, cut into pieces (capabilities(7)).

A container's root keeps docker's 14 default pieces. The bounding set caps what any program can ever gain; inheritable
and ambient stay empty, so a program run as another user starts with none (CVE-2022-29162). Taught in chapter 07.
"""

from __future__ import annotations

import errno
from typing import Any

from minirt import linux
from minirt.errors import StartError

# In the kernel's numbering, from 0.
_ALL = """CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"""
_DOCKER = """CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT
    KILL AUDIT_WRITE"""
_MOST = 64  # bits of a set
NAMES = tuple(f"CAP_{name}" for name in _ALL.split())
DEFAULT = tuple(f"CAP_{name}" for name in _DOCKER.split())


def mask(names: list[str]) -> int:
    """A set as the kernel's bit mask. Raises StartError for an unknown name."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise StartError(f"unknown capability {unknown[0]!r}")
    return sum(1 << NAMES.index(name) for name in set(names))


def bound(sets: dict[str, Any]) -> None:
    """Take what is not in the bounding set out of reach, for ever. While still root."""
    keep = mask(sets.get("bounding") or [])
    for number in range(_MOST):  # the kernel says which is its last: a file in /proc may be the container's doing
        if not keep >> number & 1:
            try:
                linux.prctl(linux.PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return


def apply(sets: dict[str, Any]) -> None:
    """Set the other sets, after the change of user (with PR_SET_KEEPCAPS). What this machine lacks is left out."""
    ours = linux.capget()[1]
    effective, permitted, inheritable = (
        mask(sets.get(k) or []) & ours for k in ("effective", "permitted", "inheritable")
    )
    linux.capset(effective, permitted, inheritable)
    linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    # Only what is inheritable too can be ambient; runc, too, leaves the rest out: its own `spec` asks for it.
    ambient = mask(sets.get("ambient") or []) & permitted & inheritable
    for number in range(len(NAMES)):
        if ambient >> number & 1:
            linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_RAISE, number)
