"""A config.json that is wrong is refused in one line, and nothing of it is begun."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ociruntime import NAMES, Runtime, cgroups, raised


def refused(one: Any, *texts: str) -> bool:
    result = one.create(ok=False)
    assert raised(result, *texts)
    assert len(result.err.strip().splitlines()) == 1, result.err
    assert raised(one.runtime.call("state", one.id))
    return one.runtime.name == "crun" or cgroups(one) == []


def test_a_missing_file(box: Any, runtime: Runtime) -> None:
    one = box("true")
    result = runtime.call("create", "--bundle", one.bundle, one.id)
    assert raised(result, "config.json")


def test_a_missing_bundle(box: Any, runtime: Runtime) -> None:
    result = runtime.call("create", "--bundle", runtime.home / "nosuch", "minirt-test-x")
    assert raised(result, "no such file", "nosuch/config.json not found")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{} {}", "\0", '{"process": '])
def test_broken_json(box: Any, runtime: Runtime, text: str) -> None:
    one = box("true")
    (one.bundle / "config.json").write_text(text)
    if (runtime.name, text) == ("runc", "null"):
        pytest.skip("runc 1.1 panics")
    assert raised(runtime.call("create", "--bundle", one.bundle, one.id))


@pytest.mark.parametrize("name", ["process", "root", "ociVersion"])
def test_a_missing_part(box: Any, name: str) -> None:
    one = box("true")
    del one.config[name]
    if name == "ociVersion" and one.runtime.name in ("runc", "crun"):
        pytest.skip("runc 1.1 and crun 1.8 do not ask for the version")
    assert refused(one)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("process",), []),
        (("process", "args"), "true"),
        (("process", "args"), [1]),
        (("process", "env"), {"A": "b"}),
        (("process", "cwd"), 7),
        (("process", "user"), "root"),
        (("process", "capabilities"), ["CAP_CHOWN"]),
        (("root",), "rootfs"),
        (("mounts",), {}),
        (("mounts",), ["/proc"]),
        (("linux", "namespaces"), {"pid": True}),
        (("linux", "maskedPaths"), "/proc"),
        (("linux", "resources"), {"memory": 5}),
        (("linux", "resources"), {"memory": {"limit": "64m"}}),
        (("hooks",), {"prestart": {"path": "/bin/true"}}),
    ],
    ids=str,
)
def test_a_wrong_type(box: Any, place: tuple[str, ...], value: Any) -> None:
    one = box("true")
    into = one.config
    for name in place[:-1]:
        into = into[name]
    into[place[-1]] = value
    if one.runtime.name == "crun":
        pytest.skip("crun 1.8 reads what it can")
    assert refused(one)


@pytest.mark.parametrize("version", ["2.0.0", "nonsense", "0.1.0", ""])
def test_a_version_that_is_not_ours(box: Any, version: str) -> None:
    one = box("true")
    one.config["ociVersion"] = version
    if one.runtime.name in ("runc", "crun"):
        pytest.skip("runc 1.1 and crun 1.8 do not look")
    assert refused(one, "ociVersion")


@pytest.mark.parametrize("version", ["1.0.0", "1.0.2", "1.0.2-dev", "1.1.0", "1.2.0"])
def test_versions_that_are(box: Any, version: str) -> None:
    one = box("echo", "fine")
    one.config["ociVersion"] = version
    if (one.runtime.name, version) == ("crun", "1.2.0"):
        pytest.skip("crun 1.8 is of before 1.2")
    assert one.output() == "fine\n"


def test_a_root_that_is_missing(box: Any) -> None:
    one = box("true")
    one.config["root"]["path"] = "nosuch"
    assert refused(one, "nosuch")


def test_a_root_that_is_a_file(box: Any) -> None:
    one = box("true")
    one.config["root"]["path"] = "rootfs/etc/plain"
    assert raised(one.create(ok=False))


def test_a_name_nobody_knows_is_passed_over_or_told(box: Any) -> None:
    """runtime-spec config.md#extensibility. Ours refuses it by its name: better than a wish that is not granted."""
    one = box("echo", "fine")
    one.config["org.example.extension"] = {"a": 1}
    result = one.run()
    assert result.out == "fine\n" or (one.runtime.name == "ours" and raised(result, "org.example.extension"))


ours = pytest.mark.skipif("ours" not in NAMES, reason="minirt-oci does not exist yet")

# Fields of runtime-spec that minirt-oci does not do: each must be refused by its name, never passed over.
UNSUPPORTED: list[tuple[tuple[str, ...], Any]] = [
    (("linux", "intelRdt"), {"closID": "x", "l3CacheSchema": "L3:0=1"}),
    (("linux", "timeOffsets"), {"monotonic": {"secs": 1}}),
    (("linux", "personality"), {"domain": "LINUX32"}),
    (("linux", "resources", "hugepageLimits"), [{"pageSize": "2MB", "limit": 4 << 20}]),
    (("linux", "resources", "rdma"), {"mlx5_1": {"hcaHandles": 3}}),
    (("linux", "resources", "network"), {"classID": 1}),
    (("linux", "seccomp", "listenerPath"), "/run/notify.sock"),
    (("process", "scheduler"), {"policy": "SCHED_BATCH"}),
    (("process", "ioPriority"), {"class": "IOPRIO_CLASS_IDLE", "priority": 4}),
    (("process", "apparmorProfile"), "no-such-profile"),
    (("process", "selinuxLabel"), "system_u:system_r:svirt_lxc_net_t:s0"),
    (("linux", "mountLabel"), "system_u:object_r:svirt_sandbox_file_t:s0"),
    (("solaris",), {"milestone": "x"}),
    (("windows",), {"layerFolders": ["C:\\"]}),
    (("vm",), {"kernel": {"path": "/k"}}),
]


@ours
@pytest.mark.parametrize("runtime", ["ours"], indirect=True)
@pytest.mark.parametrize(("place", "value"), UNSUPPORTED, ids=[".".join(place) for place, _ in UNSUPPORTED])
def test_what_we_do_not_do_is_refused_by_its_name(box: Any, place: tuple[str, ...], value: Any) -> None:
    one = box("true")
    into = one.config
    for name in place[:-1]:
        into = into.setdefault(name, {"defaultAction": "SCMP_ACT_ALLOW"} if name == "seccomp" else {})
    into[place[-1]] = value
    assert refused(one, place[-1], "AppArmor profile no-such-profile")


@ours
@pytest.mark.parametrize("runtime", ["ours"], indirect=True)
def test_seccomp_notify_is_refused_by_its_name(box: Any) -> None:
    one = box("true")
    row = {"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}
    one.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [row]}
    assert refused(one, "syscalls[0].action: seccomp notify")


@ours
@pytest.mark.parametrize("runtime", ["ours"], indirect=True)
def test_a_mount_with_mappings_is_refused_or_mapped(box: Any) -> None:
    one = box("true")
    one.mount("/mnt", "/tmp", "bind")
    row = {"containerID": 0, "hostID": 1000, "size": 1}
    one.config["mounts"][-1] |= {"uidMappings": [row], "gidMappings": [row]}
    assert refused(one, "uidMappings", "mapping")


def test_numbers_too_large_are_refused(box: Any) -> None:
    one = box("true")
    text = json.dumps(one.config).replace('"uid": 0', '"uid": 99999999999999999999')
    (one.bundle / "config.json").write_text(text)
    if one.runtime.name == "crun":
        pytest.skip("crun 1.8 takes the largest there is")
    assert raised(one.runtime.call("create", "--bundle", one.bundle, one.id))
