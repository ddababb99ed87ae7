"""A busybox image for docker and podman, made from this machine's static busybox with every command it has.

`VIEW` is what a container of it says about itself: everything that confines it or that it is given, one thing a line.
"""

from __future__ import annotations

import io
import subprocess
import tarfile

from peers import require

PASSWD = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n"
GROUP = "root:x:0:\nweb:x:1000:\nextra:x:2000:web\n"
PATHS = """/proc/acpi /proc/asound /proc/bus /proc/fs /proc/interrupts /proc/irq /proc/kcore /proc/keys
 /proc/latency_stats /proc/sched_debug /proc/scsi /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/timer_list
 /sys/firmware /sys/dev/block /sys/devices/virtual/powercap /sys/kernel"""
WRITES = """/proc/sys/kernel/hostname /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_forward /proc/sys/vm/swappiness
 /proc/sysrq-trigger /proc/irq/default_smp_affinity /sys/kernel/uevent_helper /sys/fs/cgroup/x"""
VIEW = f"""
id; echo "hostname $(hostname)"; echo "cwd $(pwd)"
grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|SigBlk|SigIgn|Umask)' /proc/self/status
tail -n +2 /proc/self/limits | sed 's/  */ /g; s/^/limit /'
sed -n 's#^[^ ]* \\([^ ]*\\) \\([^ ]*\\) \\([^ ]*\\) .*#mount \\1 \\2 \\3#p' /proc/mounts |
  sed 's#^mount / \\([^ ]*\\) \\([^,]*,\\([^,]*time\\)\\).*#mount / \\1 \\2#' | sort
for f in /dev/* /dev/pts/* /dev/shm /dev/mqueue; do
  [ -h $f ] && echo "dev $f -> $(readlink $f)" || stat -c 'dev %n %A %u:%g %t,%T' $f; done | sort -u
stat -c 'path %n %F %a %u:%g %t,%T' / /etc /tmp /root
stat -c 'file %n %a %u:%g' /etc/hosts /etc/hostname /etc/resolv.conf
awk '{{print "hosts", NF > 1 ? "address name" : "other"}}' /etc/hosts | sort -u
env | sort | sed 's/^/env /'; echo "oom $(cat /proc/self/oom_score_adj)"
set -- /proc/$$/fd/*; for f in "$@"; do [ -e $f ] && echo "fd ${{f##*/}}"; done  # the glob's own is gone by then
[ $(stat -L -c %d /proc/$$/fd/0) = $(stat -c %d /dev/null) ] && echo "fd own null"
sed 's/^[0-9]*:/cgroup /; s#/[^/]*[0-9a-f]\\{{64\\}}[^/]*#/ID#' /proc/self/cgroup | sort
for p in {PATHS.replace(chr(10), "")}; do [ -e $p ] &&
  echo "masked $p $([ -d $p ] && echo $([ -z "$(ls $p)" ] && echo empty || echo full) ||
   (head -c1 $p | wc -c) 2>/dev/null)"; done
for p in {WRITES.replace(chr(10), "")}; do ( : >> $p ) 2>/dev/null && echo "writable $p"; done
for n in port_start:net/ipv4/ip_unprivileged_port_start ping:net/ipv4/ping_group_range; do
  echo sysctl ${{n%%:*}} $(cat /proc/sys/${{n#*:}}); done
ls /sys/class/net | sed 's/^/net /'; grep -q . /proc/keys && echo keys seen
cat /proc/self/uid_map | sed 's/  */ /g; s/^/uid_map/'
"""


def image() -> bytes:
    """A root file system as a tar."""
    busybox = require("busybox")
    names = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, mode in ("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777):
            _add(tar, name, tarfile.DIRTYPE, mode)
        with open(busybox, "rb") as file:
            _add(tar, "bin/busybox", tarfile.REGTYPE, 0o755, file.read())
        for name in names:
            if name != "busybox":
                _add(tar, f"bin/{name}", tarfile.SYMTYPE, 0o777, link="busybox")
        for name, text in ("passwd", PASSWD), ("group", GROUP), ("plain", "not a program\n"):
            _add(tar, f"etc/{name}", tarfile.REGTYPE, 0o644, text.encode())
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, kind: bytes, mode: int, content: bytes = b"", link: str = "") -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(content), link
    tar.addfile(entry, io.BytesIO(content))
