"""Pure cgroup v2 and systemd, in the virtual machine: test_cgroups.py as its root, and what a plain user gets there."""

from __future__ import annotations

import pytest
from vm import Machine

pytestmark = pytest.mark.slow

# As a plain user in a login session: a scope of their own systemd, from outside of it.
SCOPE = """
import json, os, subprocess, time
from minirt.runtime import cgroups
sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
group = cgroups.locate("", "vmtest", systemd=False, rootless=True)
group.create({"memory": {"limit": 64 << 20, "swap": 64 << 20}, "pids": {"limit": 9}}, sleepers[0].pid)
group = cgroups.Cgroup.from_json(json.loads(json.dumps(group.to_json())))
group.add(sleepers[1].pid)
until = time.time() + 5
while len(group.pids()) < 2 and time.time() < until:
    time.sleep(0.05)
found = {"all": group.pids() == sorted(each.pid for each in sleepers), "where": group.groups[""]}
group.update({"memory": {"limit": 96 << 20, "swap": 96 << 20}})
subprocess.run(["systemctl", "--user", "daemon-reload"], check=True)
found |= {"memory": group.stats()["memory"]["limit"] >> 20, "pids": group.stats()["pids"]["limit"]}
group.freeze()
found["frozen"] = group.frozen
group.kill(9)
found["ends"] = [each.wait() for each in sleepers]
group.delete()
found["left"] = os.path.exists(group.groups[""])
print(json.dumps(found))
"""
# Beside a group of our own in a delegated one, made by hand; no systemd is asked.
BESIDE = """
import json, subprocess, os
from minirt.runtime import cgroups
group = cgroups.locate("", "vmtest", systemd=False, rootless=True)
group.create({"pids": {"limit": 9}})
pid, enter = group.fork()
if pid == 0:
    enter()
    os._exit(0 if open("/proc/self/cgroup").read().endswith("/minirt-vmtest\\n") else 1)
print(json.dumps({"unit": group.unit, "code": os.waitpid(pid, 0)[1], "pids": group.stats()["pids"]["limit"]}))
group.delete()
"""


def test_root(vm: Machine) -> None:
    words = "python3 -m pytest -q -c /dev/null --rootdir /srv/minirt/tests -p no:cacheprovider"
    done = vm.run(
        f"cd /srv/minirt/tests && {words} -o timeout=120 -o markers=slow test_cgroups.py 2>&1", timeout=210, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "systemd runs here" not in done.stdout


def test_user_has_a_scope(vm: Machine) -> None:
    found = vm.python(SCOPE, user="learner", timeout=120)
    assert '"all": true' in found and found.count("\n") == 1, found
    assert '"memory": 96, "pids": 9, "frozen": true, "ends": [-9, -9], "left": false' in found
    assert "/user@1000.service/user.slice/minirt-vmtest.scope" in found


def test_user_beside_a_delegated_group(vm: Machine) -> None:
    run = "systemd-run --user --quiet --pipe --wait -p Delegate=yes"
    script = f"mkdir -p /tmp/beside && cat > /tmp/beside/it.py <<'END'\n{BESIDE}\nEND\n"
    script += "cat > /tmp/beside/leaf <<'END'\ng=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)\nmkdir $g/leaf\n"
    script += "echo $$ > $g/leaf/cgroup.procs\nexec python3 /tmp/beside/it.py\nEND\n"
    script += f"{run} sh -eu /tmp/beside/leaf"
    found = vm.run(script, user="learner", timeout=120)
    assert found.stdout == '{"unit": "", "code": 0, "pids": 9}\n', found


def test_user_is_told_which_controllers_are_missing(vm: Machine) -> None:
    script = SCOPE.split("group.create")[0]
    script += (
        "try: group.create({'cpu': {'cpus': '0'}}, sleepers[0].pid)\nexcept cgroups.Unsupported as error: print(error)"
    )
    script += "\nfor each in sleepers: each.kill()\n"
    said = vm.python(script, user="learner", timeout=120)
    assert "does not pass cpuset on" in said and "Delegate=" in said
