"""How tight a container is: one probe, run by docker, podman and minirt (as root, and as a plain user), side by side.

test_confinement.py fails on a difference without a reason; with MINIRT_WRITE_DOCS=1 it writes docs/confinement.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

# Each line it prints is `fact: value`. Only what busybox has is used, so that the same probe runs in all of them.
PROBE = r"""
s() { grep "^$1:" /proc/self/status | cut -f2; }
for set in CapInh CapPrm CapEff CapBnd CapAmb; do echo "$set: $(s $set)"; done
echo "NoNewPrivs: $(s NoNewPrivs)"; echo "Seccomp mode: $(s Seccomp)"
echo "user and groups: $(id)"; echo "umask: $(umask)"; echo "oom_score_adj: $(cat /proc/self/oom_score_adj)"
echo "signals blocked, ignored: $(s SigBlk) $(s SigIgn)"
for path in /proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list \
  /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do
  if [ -d $path ]; then n=$(ls $path | wc -l); elif [ -e $path ]; then n=$(head -c 64 $path 2>/dev/null | wc -c)
  else n=absent; fi
  [ "$n" = 0 ] && n=hidden; [ "$n" = absent -o "$n" = hidden ] || n=visible; echo "$path: $n"
done
for path in /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger /sys /sys/fs/cgroup; do
  echo "$path is: $(awk -v p=$path '$2 == p { split($4, o, ","); w = o[1] } END { print w }' /proc/mounts)"
done
for path in /proc /dev /dev/pts /dev/shm /dev/mqueue /sys /etc/hosts; do
  echo "mount $path: $(awk -v p=$path '$2 == p { w = $3 " " $4 } END { print w }' /proc/mounts)"
done
echo "devices: $(ls -l /dev | awk '/^[cb]/ { print $1 "=" $NF }' | sort | tr '\n' ' ')"
mknod /tmp/tun c 10 200 2>/dev/null && { head -c 0 /tmp/tun 2>/dev/null && echo "a device made inside: opens" ||
  echo "a device made inside: refused"; } || echo "a device made inside: not made"
for kind in n u c s d l; do echo "ulimit -$kind: $(ulimit -S$kind 2>/dev/null) $(ulimit -H$kind 2>/dev/null)"; done
echo "environment: $(env | cut -d= -f1 | grep -v -e ^_ -e ^SHLVL -e ^PWD -e ^OLDPWD | sort | tr '\n' ' ')"
echo "PATH: $PATH"
echo "open descriptors: $(ls /proc/self/fd | grep -v -x 3 | tr '\n' ' ')"
echo "pid: $$"; echo "session: $(cut -d' ' -f6 /proc/self/stat)"
echo "hostname in hosts: $(grep -q "$(hostname)" /etc/hosts && echo yes || echo no)"
echo "processes seen: $(ls /proc | grep -c '^[0-9]*$' | awk '{ print ($1 < 9) ? "its own" : "the machine'"'"'s" }')"
echo "pids cgroup: $(head -1 /proc/self/cgroup | cut -d: -f3 | awk '{ print length($0) < 3 ? "/" : "a path" }')"
""".strip()

# What is the same whatever its number.
_SAME = [
    (r"size=\d+k?,?", ""), (r"(lower|upper|work)dir[^ ,]*,?", ""),
    (r"(discard|resv_strict|resuid=\d+|resgid=\d+),?", ""),
    (r",$", ""), (r"inode64,?", ""), (r"uid=[1-9]\d*,gid=[1-9]\d*", "uid=…,gid=…"), (r"gid=\d{4,}", "gid=…"),
    (r"relatime,+", "relatime,"), (r",+$", ""),
]  # fmt: skip


class Reason(NamedTuple):
    """Why `fact` is `theirs` (a pattern of the whole value) in these columns, where it is `docker` in docker's."""

    fact: str
    columns: str
    docker: str
    theirs: str
    why: str

    def explains(self, fact: str, column: str, docker: str, theirs: str) -> bool:
        named = self.columns in ("*", column) or column in self.columns.split("; ")
        return named and all(map(re.fullmatch, (self.fact, self.docker, self.theirs), (fact, docker, theirs)))


def reason_for(fact: str, column: str, values: dict[str, str], reasons: Sequence[Reason]) -> str:
    """Why this column's value of the fact is not docker's; empty where nobody knows."""
    docker, theirs = values["docker"], values[column]
    return next((reason.why for reason in reasons if reason.explains(fact, column, docker, theirs)), "")


def facts(output: str) -> dict[str, str]:
    """What the probe printed, by fact."""
    found = {}
    for line in output.splitlines():
        name, colon, value = line.partition(": ")
        if colon:
            for pattern, other in _SAME:
                value = re.sub(pattern, other, value)
            found[name] = value.strip()
    return found


def table(columns: dict[str, dict[str, str]], reasons: Sequence[Reason]) -> str:
    """docs/confinement.md."""
    names = list(columns)
    rows = [f"| | {' | '.join(names)} | |", f"|---|{'---|' * (len(names) + 1)}"]
    for fact in columns["docker"]:
        values = {name: columns[name].get(fact, "") for name in names}
        other = [name for name in names if values[name] != values["docker"]]
        why = "; ".join(dict.fromkeys(reason_for(fact, name, values, reasons) for name in other))
        rows.append(
            f"| {fact} | " + " | ".join(f"`{value}`" if value else "" for value in values.values()) + f" | {why} |"
        )
    return "\n".join([_HEAD, *rows]) + "\n"


_HEAD = """# How tight a container is

One probe (tests/confinement.py) over the same busybox image, in docker, podman and minirt: capabilities, filter, masks,
mounts, devices, limits, groups, environment. Each row where one is not as docker's says why; a value without a reason
fails tests/test_confinement.py. Numbers that only say how big a machine is are left out.
"""
