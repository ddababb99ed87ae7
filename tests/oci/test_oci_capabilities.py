"""The five sets of capabilities (runtime-spec config.md#linux-process, capabilities(7))."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ociruntime import raised

CHOWN, KILL, NET_BIND_SERVICE, NET_RAW = 1 << 0, 1 << 5, 1 << 10, 1 << 13
NAMES = {"CAP_CHOWN": CHOWN, "CAP_KILL": KILL, "CAP_NET_BIND_SERVICE": NET_BIND_SERVICE, "CAP_NET_RAW": NET_RAW}
SETS = {
    "inheritable": "CapInh",
    "permitted": "CapPrm",
    "effective": "CapEff",
    "bounding": "CapBnd",
    "ambient": "CapAmb",
}


def seen(one: Any) -> dict[str, int]:
    rows = dict(row.split(":\t") for row in one.output().splitlines())
    return {kind: int(rows[label], 16) for kind, label in SETS.items()}


def given(**sets: list[str]) -> tuple[dict[str, list[str]], dict[str, int]]:
    return dict(sets), {kind: sum(NAMES[name] for name in sets.get(kind, [])) for kind in SETS}


def test_each_set_is_what_was_asked(box: Any) -> None:
    one = box("grep", "^Cap", "/proc/self/status")
    one.process["capabilities"], wanted = given(
        bounding=["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"], permitted=["CAP_CHOWN", "CAP_KILL"],
        effective=["CAP_CHOWN", "CAP_KILL"], inheritable=[], ambient=[],
    )  # fmt: skip
    # Root gets its whole bounding set at execve(2), unless it has no_new_privs: then no more than it had.
    assert seen(one) == wanted


def test_a_plain_user_has_none(box: Any) -> None:
    one = box("grep", "^Cap", "/proc/self/status")
    names = ["CAP_CHOWN", "CAP_KILL"]
    one.process["capabilities"], wanted = given(bounding=names, permitted=names, effective=names)
    one.process["user"] = {"uid": 1000, "gid": 1000}
    assert seen(one) == wanted | {"permitted": 0, "effective": 0}


def test_a_plain_user_keeps_ambient_ones(box: Any) -> None:
    one = box("grep", "^Cap", "/proc/self/status")
    names = ["CAP_NET_BIND_SERVICE"]
    one.process["capabilities"], wanted = given(
        bounding=names, permitted=names, effective=names, inheritable=names, ambient=names
    )
    one.process["user"] = {"uid": 1000, "gid": 1000}
    assert seen(one) == wanted


@pytest.mark.parametrize("capabilities", [{}, {"bounding": [], "effective": [], "permitted": []}, None])
def test_none_asked_is_none_given(box: Any, capabilities: Any) -> None:
    one = box("grep", "^Cap", "/proc/self/status")
    if capabilities is None:
        del one.process["capabilities"]
        if one.runtime.name in ("runc", "crun"):
            pytest.skip("the spec leaves it open: runc and crun give different ones")
    else:
        one.process["capabilities"] = capabilities
    assert seen(one) == dict.fromkeys(SETS, 0)


def test_root_without_chown_cannot_chown(box: Any) -> None:
    script = "touch /tmp/x && chown 1:1 /tmp/x && echo done"
    one = box("sh", "-c", script)
    assert one.output() == "done\n"
    two = box("sh", "-c", script)
    two.process["capabilities"] = {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]}
    result = two.run()
    assert result.status != 0 and "Operation not permitted" in result.err


def test_an_unknown_name_gives_nothing(box: Any) -> None:
    """runc warns and goes on, crun and we refuse: both are safe."""
    one = box("grep", "^Cap", "/proc/self/status")
    for kind in ("bounding", "effective", "permitted"):
        one.process["capabilities"][kind] = ["CAP_CHOWN", "CAP_NOSUCH"]
    result = one.run()
    if result.status:
        assert raised(result, "CAP_NOSUCH", "invalid argument")
    else:
        assert int(result.out.partition("CapBnd:")[2].split()[0], 16) == CHOWN


def test_one_the_caller_lacks_is_not_given(box: Any) -> None:
    mine = int(Path("/proc/self/status").read_text().partition("CapBnd:")[2].split()[0], 16)
    if mine >> 24 & 1:
        pytest.skip("this machine has CAP_SYS_RESOURCE")
    one = box("grep", "^Cap", "/proc/self/status")
    for kind in ("bounding", "effective", "permitted"):
        one.process["capabilities"][kind] = ["CAP_CHOWN", "CAP_SYS_RESOURCE"]
    result = one.run()
    assert result.status != 0 or int(result.out.partition("CapEff:")[2].split()[0], 16) == CHOWN
