"""Resources and device rules as what the kernel is given, on paper: test_cgroups.py tries it on real groups."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirt.errors import InvalidInput, Unsupported
from minirt.runtime import cgroups
from minirt.runtime.cgroups import devices, resources, systemd


def _rule(kind: str, major: int, minor: int, access: str = "rwm", allow: bool = True) -> dict[str, Any]:
    return {"allow": allow, "type": kind, "major": major, "minor": minor, "access": access}


def run_program(code: bytes, kind: int, major: int, minor: int, access: int) -> int:
    """Interpret the few eBPF instructions we use (kernel Documentation/bpf/standardization/instruction-set.rst)."""
    steps = [struct.unpack_from("=BBhi", code, at) for at in range(0, len(code), 8)]
    registers, words, at = [0] * 11, {0: access << 16 | kind, 4: major, 8: minor}, 0
    while True:
        op, both, offset, value = steps[at]
        target, source = both & 15, both >> 4
        at += 1
        if op == 0x95:
            return registers[0]
        if op == 0x61:
            registers[target] = words[offset]
        elif op in (0xBF, 0xB7):
            registers[target] = registers[source] if op == 0xBF else value
        elif op == 0x77:
            registers[target] >>= value
        elif op == 0x57:
            registers[target] &= value
        else:
            assert op in (0x15, 0x55) and offset >= 0
            at += offset if (registers[target] == value) is (op == 0x15) else 0


NUMBERS = st.sampled_from([-1, 200, 201])
RULES = st.builds(
    _rule, st.sampled_from("abc"), NUMBERS, NUMBERS, st.sampled_from(["r", "w", "m", "rw", "rwm"]), st.booleans()
)


@given(st.lists(RULES, max_size=6))
def test_rules_hold_in_their_order(rules: list[dict[str, Any]]) -> None:
    """Against each possible request decided on its own; the program, as an interpreter runs it, and v1's lines."""
    allowed = set[tuple[str, int, int, str]]()
    universe = set(itertools.product("bc", (200, 201), (200, 201), "rwm"))
    for rule in rules:
        hit = {
            one for one in universe
            if rule["type"] in ("a", one[0]) and rule["major"] in (-1, one[1]) and rule["minor"] in (-1, one[2])
            and one[3] in rule["access"]
        }  # fmt: skip
        allowed = allowed | hit if rule["allow"] else allowed - hit
    try:
        policy = devices.policy(rules)
    except InvalidInput:
        return
    if not policy.default:
        allowed |= {one for one in universe if one[3] == "m"}
    code = devices.program(policy)
    bits = {"m": 1, "r": 2, "w": 4}
    for kind, major, minor in itertools.product("bc", (200, 201), (200, 201)):
        for letter in "rwm":
            assert policy.allows(kind, major, minor, bits[letter]) is ((kind, major, minor, letter) in allowed)
        for access in range(1, 8):
            verdict = run_program(code, {"b": 1, "c": 2}[kind], major, minor, access)
            assert verdict == policy.allows(kind, major, minor, access)


@given(st.lists(RULES, max_size=5), st.lists(RULES, max_size=5))
def test_v1_changes_lead_from_one_policy_to_the_other(
    before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> None:
    try:
        had, wanted = devices.policy(before), devices.policy(after)
    except InvalidInput:
        return
    listed = "a *:* rwm" if had.default else "\n".join(devices._line(*row) for row in had.exceptions.items())
    default, state = had.default, {} if had.default else set(listed.splitlines())
    held = {line.rpartition(" ")[0]: set(line.rpartition(" ")[2]) for line in state}
    for file, line in devices.v1_changes(listed, wanted):
        allow = file == "devices.allow"
        if line == "a":
            default, held = allow, {}
            continue
        device, _, access = line.rpartition(" ")
        held[device] = held.get(device, set()) | set(access) if allow != default else held[device] - set(access)
    assert default == wanted.default
    lines = [devices._line(*row) for row in wanted.exceptions.items()]
    assert {d: a for d, a in held.items() if a} == {x.rpartition(" ")[0]: set(x.rpartition(" ")[2]) for x in lines}


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}, "hugepageLimits"),
        ({"blockIO": {"weight": 10}}, "blockIO"),
        ({"network": {"classID": 1}}, "network"),
        ({"rdma": {"mlx5_1": {"hcaHandles": 3}}}, "rdma"),
        ({"memory": {"checkBeforeUpdate": True}}, "memory.checkBeforeUpdate"),
        ({"memory": {"limit": "5"}}, "memory.limit"),
        ({"memory": {"limit": True}}, "memory.limit"),
        ({"cpu": {"cpus": "0\n1"}}, "cpu.cpus"),
        ({"unified": {"../cgroup.procs": "1"}}, "cgroup.procs"),
        ({"unified": {"cgroup.procs": "1"}}, "cgroup.procs"),
        ({"unified": {"memory.high": 1}}, "memory.high"),
    ],
)
def test_what_we_do_not_do_is_refused_by_name(limits: dict[str, Any], error: str) -> None:
    with pytest.raises((InvalidInput, Unsupported), match=error):
        cgroups.check(limits)


@pytest.mark.parametrize(
    "rule", [{}, {"allow": True, "type": "p"}, {"allow": 1}, _rule("c", 2**31, 0), _rule("c", 1, 1, "x")]
)
def test_bad_device_rules(rule: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="is not a rule"):
        devices.policy([rule])


def test_empty_values_set_nothing() -> None:
    zeros = {
        "memory": {"limit": 0, "swap": 0, "disableOOMKiller": False},
        "cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": ""},
        "pids": {"limit": 0},
        "blockIO": {"weight": 0, "weightDevice": None, "throttleReadBpsDevice": []},
        "hugepageLimits": None,
        "network": {},
    }
    cgroups.check(zeros)
    assert resources.v1(zeros, lambda file: "") == resources.v2(zeros, lambda file: "") == []


@pytest.mark.parametrize(
    ("limits", "files"),
    [
        ({"cpu": {"shares": 1024}}, {"cpu.weight": "39"}),
        ({"cpu": {"shares": 2}}, {"cpu.weight": "1"}),
        ({"cpu": {"shares": 262144}}, {"cpu.weight": "10000"}),
        ({"cpu": {"quota": 50000}}, {"cpu.max": "50000"}),
        ({"cpu": {"quota": -1, "period": 50000}}, {"cpu.max": "max 50000"}),
        ({"cpu": {"period": 50000}}, {"cpu.max": "7 50000"}),
        ({"cpu": {"idle": 0}}, {"cpu.idle": "0"}),
        ({"memory": {"limit": 10, "swap": 30}}, {"memory.max": "10", "memory.swap.max": "20"}),
        ({"memory": {"limit": 10, "swap": 10}}, {"memory.max": "10", "memory.swap.max": "0"}),
        ({"memory": {"limit": -1}}, {"memory.max": "max", "memory.swap.max": "max"}),
        ({"memory": {"limit": 10, "swap": -1}}, {"memory.max": "10", "memory.swap.max": "max"}),
        ({"memory": {"swap": 30}}, {"memory.swap.max": "23"}),
        ({"memory": {"reservation": 9, "kernel": 5}}, {"memory.low": "9"}),
        ({"pids": {"limit": -1}}, {"pids.max": "max"}),
        ({"unified": {"memory.high": "max"}}, {"memory.high": "max"}),
    ],
)
def test_v2_values_are_runcs(limits: dict[str, Any], files: dict[str, str]) -> None:
    """The figures of runc's own tests and documentation (docs/systemd.md, libcontainer/cgroups)."""
    assert dict(resources.v2(limits, {"cpu.max": "7 1000", "memory.max": "7\n", "memory.swap.max": "1"}.get)) == files


@pytest.mark.parametrize(
    "memory", [{"swap": 5}, {"limit": 10, "swap": 5}, {"swappiness": 5}, {"disableOOMKiller": True}]
)
def test_v2_refuses_what_it_has_not(memory: dict[str, Any]) -> None:
    with pytest.raises((InvalidInput, Unsupported), match="linux.resources.memory"):
        resources.v2({"memory": memory}, lambda file: None)


def test_systemd_limits() -> None:
    settings = [("memory.max", "max"), ("cpu.max", "15500 100000"), ("cpuset.cpus", "0-2,9"), ("pids.max", "5")]
    assert systemd._limits(settings) == [
        ("MemoryMax", "t", str(2**64 - 1)), ("AllowedCPUs", "ay", "2", "7", "2"), ("TasksMax", "t", "5"),
        ("CPUQuotaPerSecUSec", "t", "160000"), ("CPUQuotaPeriodUSec", "t", "100000"),
    ]  # fmt: skip
    with pytest.raises(InvalidInput, match="no cpu"):
        systemd._limits([("cpuset.cpus", "0-99999999999")])
