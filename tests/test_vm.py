"""What takes another machine: pure cgroup v2 under systemd, AppArmor, every capability, refused user namespaces.

Everything here runs inside the virtual machine of vm.py, and slowly: few and small steps.
"""

from __future__ import annotations

import pytest
from vm import Machine

pytestmark = pytest.mark.slow


def test_the_machine_is_what_it_should_be(vm: Machine) -> None:
    done = vm.run(
        "stat -f -c %T /sys/fs/cgroup; cat /sys/module/apparmor/parameters/enabled; grep CapEff /proc/self/status"
    )
    assert done.stdout.split() == ["cgroup2fs", "Y", "CapEff:", "000001ffffffffff"]
    done = vm.run("id -u; cat /proc/self/cgroup; systemctl --user is-system-running", user="learner")
    user, group, manager = done.stdout.split()
    assert (user, manager) == ("1000", "running")
    assert group.startswith("0::/user.slice/user-1000.slice/session-")


def test_what_comes_back_is_what_the_script_did(vm: Machine) -> None:
    done = vm.run("cat; printf 'a\\0b' ; echo err >&2; exit 7", check=False, stdin=b"given\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "given\na\0b", "err\n")
    with pytest.raises(AssertionError, match="no such luck"):
        vm.run("echo no such luck; false; echo not reached")
    assert vm.run("sleep 60", timeout=1, check=False).returncode == 124
