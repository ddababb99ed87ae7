"""Inside the virtual machine: one container with every limit that a machine of another kind refuses, under any runtime.

Usage: confined.py RUNTIME [OPTION…]; prints as JSON what the container's command found. Only the standard library.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SCRIPT = """
cd /sys/fs/cgroup
for file in memory.max memory.swap.max pids.max cpu.max cpuset.cpus cpu.weight; do echo $file=$(cat $file); done
echo apparmor=$(cat /proc/self/attr/current)
echo oom=$(cat /proc/self/oom_score_adj)
echo files=$(ulimit -Hn)
echo capabilities=$(grep CapEff /proc/self/status | tail -c 17)
for device in null kmsg fuse; do (: < /dev/$device) 2>/dev/null && echo $device=opens || echo $device=refused; done
(: > /tmp/denied) 2>/dev/null && echo denied=written || echo denied=refused
(for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done) 2>/dev/null && echo processes=many || echo processes=few
"""


def config() -> dict[str, Any]:
    """runc's own example, and the rest."""
    whole: dict[str, Any] = json.loads(subprocess.run(["runc", "spec"], check=True) and Path("config.json").read_text())
    process, linux = whole["process"], whole["linux"]
    process |= {"terminal": False, "args": ["/bin/sh", "-c", SCRIPT], "env": ["PATH=/bin"], "oomScoreAdj": -500}
    process["rlimits"] = [{"type": "RLIMIT_NOFILE", "hard": 1 << 20, "soft": 4096}]
    process["apparmorProfile"] = "confined"
    status = Path("/proc/self/status").read_text()
    assert "CapEff:\t000001ffffffffff" in status
    names = ["CHOWN", "SYS_ADMIN", "SYS_RESOURCE", "SYS_MODULE", "SYS_RAWIO", "NET_ADMIN", "MAC_ADMIN", "BPF"]
    names = [f"CAP_{name}" for name in (*names, "CHECKPOINT_RESTORE")]
    process["capabilities"] = {kind: names for kind in ("bounding", "effective", "permitted")}
    whole["root"]["readonly"] = False
    linux["devices"] = [
        {"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666},
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666},
    ]
    linux["resources"] = {
        "memory": {"limit": 64 << 20, "swap": 96 << 20},
        "pids": {"limit": 8},
        "cpu": {"quota": 50_000, "period": 100_000, "cpus": "1", "shares": 512},
        "devices": [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
        ],
    }
    return whole


def main(runtime: str, *options: str) -> None:
    bundle = Path(tempfile.mkdtemp())
    os.chdir(bundle)
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        (bundle / "rootfs" / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", "rootfs/bin")
    subprocess.run(["chroot", "rootfs", "/bin/busybox", "--install", "-s", "/bin"], check=True)
    whole = config()
    name = f"confined-{os.getpid()}"
    whole["linux"]["cgroupsPath"] = f"system.slice:test:{name}" if "--systemd-cgroup" in options else f"/{name}"
    Path("config.json").write_text(json.dumps(whole))
    result = subprocess.run([runtime, *options, "run", name], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    shutil.rmtree(bundle)
    assert result.returncode == 0, (result.returncode, result.stdout, result.stderr)
    print(json.dumps(dict(line.split("=", 1) for line in result.stdout.splitlines())))


main(*sys.argv[1:])
