"""What a runtime tells of itself and of its containers: list, features, spec, --version; words it does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ociruntime import Runtime, raised

SLEEP = ("sleep", "60")


def test_a_list_of_nothing(runtime: Runtime) -> None:
    (runtime.home / "root").mkdir()
    assert runtime.call("list", "-q").out == ""
    result = runtime.call("list", "-f", "json")
    assert json.loads(result.out) in ([], None)  # runc prints null


def test_the_list_as_json(box: Any, runtime: Runtime) -> None:
    one, two, three = box(*SLEEP).up(), box(*SLEEP), box("true").up()
    two.create()
    three.wait()
    rows = {row["id"]: row for row in json.loads(runtime.call("list", "--format", "json").out)}
    assert {name: row["status"] for name, row in rows.items()} == {
        one.id: "running", two.id: "created", three.id: "stopped",
    }  # fmt: skip
    assert rows[one.id]["pid"] == one.pid
    assert Path(rows[one.id]["bundle"]) == one.bundle
    assert rows[one.id]["created"][:2] == "20"


def test_the_list_as_a_table(box: Any, runtime: Runtime) -> None:
    one = box(*SLEEP).up()
    head, row = runtime.call("list").out.splitlines()
    assert head.split()[0] in ("ID", "NAME") and "PID" in head and "STATUS" in head
    assert {one.id, str(one.pid), "running", str(one.bundle)} <= set(row.split())


def test_the_list_of_ids(box: Any, runtime: Runtime) -> None:
    names = {box(*SLEEP).up().id for _ in range(2)}
    assert set(runtime.call("list", "--quiet").out.split()) == names


def test_another_root_has_other_containers(box: Any, runtime: Runtime) -> None:
    box(*SLEEP).up()
    assert runtime.call("--root", runtime.home / "other", "list", "-q").out == ""


@pytest.fixture
def features(runtime: Runtime) -> dict[str, Any]:
    if runtime.name == "crun":
        pytest.skip("crun 1.8 has no features")
    result = runtime.call("features")
    assert result.status == 0, result
    return dict(json.loads(result.out))


def test_features_says_versions(features: dict[str, Any]) -> None:
    for name in ("ociVersionMin", "ociVersionMax"):
        assert features[name].startswith("1.")


def test_features_says_what_the_hooks_mounts_and_namespaces_are(features: dict[str, Any]) -> None:
    hooks = {"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}
    assert set(features["hooks"]) == hooks
    assert {"bind", "rbind", "ro", "rro", "nosuid", "private", "rslave"} <= set(features["mountOptions"])
    linux = features["linux"]
    assert {"cgroup", "ipc", "mount", "network", "pid", "user", "uts"} <= set(linux["namespaces"])
    assert {"CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_BPF"} <= set(linux["capabilities"])
    assert {"v1", "v2", "systemd", "systemdUser"} >= set(linux["cgroup"]) - {"rdma"}
    assert isinstance(linux["cgroup"]["v1"], bool) and isinstance(linux["cgroup"]["v2"], bool)


def test_features_says_what_the_filters_are(features: dict[str, Any]) -> None:
    seccomp = features["linux"]["seccomp"]
    assert seccomp["enabled"] is True
    wanted = {
        "actions": {"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL"},
        "operators": {"SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"},
        "archs": {"SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"},
    }
    for name, some in wanted.items():  # each may be missing; one that is there is complete
        assert some <= set(seccomp.get(name, some))


def test_every_mount_option_of_features_is_taken(box: Any, features: dict[str, Any]) -> None:
    """No option is promised that would be refused."""
    one = box("true")
    # Those that need something: another mount to change, a source that is user's, an id mapping, a label.
    special = {
        "defaults",
        "remount",
        "rbind",
        "bind",
        "idmap",
        "ridmap",
        "acl",
        "noacl",
        "mand",
        "nomand",
        "iversion",
        "noiversion",
    }
    special |= {"private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable", "loud"}
    names = [name for name in features["mountOptions"] if name not in special and "copy" not in name]
    for number, name in enumerate(names):
        one.mount(f"/mnt/{number}", "tmpfs", name, kind="tmpfs")
    assert one.run().status == 0


def test_the_spec_it_makes_runs(box: Any, runtime: Runtime) -> None:
    one = box("true")
    assert runtime.call("spec", cwd=one.bundle).status == 0
    config = json.loads((one.bundle / "config.json").read_text())
    assert config["process"]["args"] == ["sh"] and config["root"]["path"] == "rootfs"
    config["process"] |= {"terminal": False, "args": ["echo", "made"]}
    config["linux"]["cgroupsPath"] = f"/{one.cgroup}"
    (one.bundle / "config.json").write_text(json.dumps(config))
    assert runtime.call("run", one.id, cwd=one.bundle).out == "made\n"


def test_spec_does_not_overwrite(box: Any, runtime: Runtime) -> None:
    one = box("true")
    one.write()
    before = (one.bundle / "config.json").read_text()
    if runtime.name == "crun":
        pytest.skip("crun 1.8 overwrites")
    assert raised(runtime.call("spec", cwd=one.bundle), "exists")
    assert (one.bundle / "config.json").read_text() == before


def test_spec_in_a_bundle(box: Any, runtime: Runtime) -> None:
    one = box("true")
    assert runtime.call("spec", "--bundle", one.bundle).status == 0
    assert (one.bundle / "config.json").exists()


@pytest.mark.parametrize("word", ["--version", "-v"])
def test_the_version(runtime: Runtime, word: str) -> None:
    """docker reads these lines: NAME version X, commit: Y, spec: Z."""
    result = runtime.call(word)
    assert result.status == 0
    lines = result.out.splitlines()
    assert lines[0].split()[1] == "version" and lines[0].split()[2][0].isdigit()
    assert any(line.startswith("spec: 1.") for line in lines)


@pytest.mark.parametrize("words", [["nosuch"], ["--nosuch", "list"], ["list", "--nosuch"], ["create", "--nosuch", "x"]])
def test_unknown_words_are_refused(runtime: Runtime, words: list[str]) -> None:
    result = runtime.call(*words)
    if runtime.name == "runc" and words == ["nosuch"]:
        assert result.status == 3 or "No help topic" in result.err + result.out  # runc shows help
    else:
        assert raised(result, "nosuch", "unknown", "usage")


def test_what_a_verb_cannot_do_is_refused_and_not_passed_over(box: Any, runtime: Runtime) -> None:
    """An SELinux label where there is no SELinux; and crun's `--regex`, which ends every container that matches."""
    if runtime.name == "crun":
        pytest.skip("crun passes the label over, and knows --regex")
    one = box("sleep", "60").up()
    assert raised(one.exec("--process-label", "system_u:system_r:container_t:s0", one.id, "true"))
    for words in (["kill", "--regex", one.id, "KILL"], ["delete", "--force", "--regex", one.id]):
        assert raised(runtime.call(*words), "regex")
    assert one.status == "running"


@pytest.mark.parametrize("verb", ["create", "run", "start", "state", "kill", "delete", "exec", "pause", "resume", "ps"])
def test_a_verb_without_an_id_is_refused(runtime: Runtime, verb: str) -> None:
    assert raised(runtime.call(verb))


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"]])
def test_help(runtime: Runtime, words: list[str]) -> None:
    result = runtime.call(*words)
    assert result.status == 0 and "run" in result.out


def test_options_that_callers_send_are_taken(box: Any, runtime: Runtime) -> None:
    """containerd: --root --log --log-format; cri-o and podman: --systemd-cgroup only when that is asked for."""
    log = str(runtime.home / "log")
    one = box("true")
    one.write()
    result = runtime.call("run", "-b", one.bundle, one.id, options=("--log", log, "--log-format=json"))
    assert result == (0, "", "")
