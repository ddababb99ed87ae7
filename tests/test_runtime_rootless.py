"""The same containers for a plain user: with subordinate ids, and with a single id. Root makes the users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import users
from peers import require

SCRIPT = """
import json, os, sys
from pathlib import Path
import bundles
from minirt import userns
from minirt.errors import MinirtError
from minirt.runtime import container, doctor
ids = userns.detect()
home = Path.home()
image = home / "image"
if not image.exists():
    bundles.tree(image, %r)
def run(*args, **options):
    place = bundles.create(home, image, list(args), ids, **options)
    try:
        return bundles.run(place, ids)
    except MinirtError as error:
        return str(error)
out = {}
%s
print(json.dumps(out))
"""

CHECKS = """
out["rows"] = [ids.uids, ids.gids]
for overlay in (True, False):
    out[f"id {overlay}"] = run("sh", "-c", "id; hostname; echo x > /root/made; stat -c %u /root/made", overlay=overlay)
out["caps"] = run("grep", "-E", "^(Cap|NoNew)", "/proc/self/status")
out["mounts"] = run("sh", "-c", "mount | awk '{print $3}' | sort")
out["dev"] = run("sh", "-c", "echo x > /dev/null; head -c 2 /dev/zero | wc -c; ls /dev; cat /proc/keys | wc -c")
out["sys"] = run("sh", "-c", "touch /proc/sys/kernel/hostname; touch /sys/x")
out["host"] = run("sh", "-c", "ls /sys/class/net; mount | grep ' /sys ' | grep -c ro", network="host")
out["web"] = run("sh", "-c", "id; echo me > /dev/stdout; cat /proc/self/status | grep CapEff", user="web")
out["77777"] = run("true", user="77777")
out["nope"] = run("nope")
out["doctor"] = {row["capability"]: row["works"] for row in doctor.probe()}
"""

MOUNTS = """/ /dev /dev/full /dev/mqueue /dev/null /dev/pts /dev/random /dev/shm /dev/tty /dev/urandom /dev/zero
    /etc/hostname /etc/hosts /etc/resolv.conf /proc /proc/bus /proc/fs /proc/irq /proc/sys /sys /sys/firmware"""


@pytest.fixture(scope="module", params=["subuids", "single"])
def user(request: pytest.FixtureRequest) -> Iterator[tuple[users.User, bool]]:
    with users.plain_user(request.param == "subuids") as made:
        yield made, request.param == "single"


def test_a_plain_users_container_is_like_roots(user: tuple[users.User, bool]) -> None:
    who, single = user
    out = json.loads(who.python(SCRIPT % (require("busybox"), CHECKS)))
    assert len(out["rows"][0]) == (1 if single else 2)
    groups = "" if single else " groups=0(root)"  # setgroups(2) is closed to a single id
    for overlay in (True, False):
        assert out[f"id {overlay}"] == [0, f"uid=0(root) gid=0(root){groups}\nbox\n0\n", ""]
    caps = "00000000a80425fb"
    assert out["caps"][1].split()[1::2] == ["0" * 16, caps, caps, caps, "0" * 16, "1"]
    assert set(MOUNTS.split()) <= set(out["mounts"][1].split())
    assert out["dev"][1].split()[0] == "2"
    assert {"null", "zero", "fd", "stdin", "ptmx", "shm", "pts"} <= set(out["dev"][1].split())
    assert out["dev"][1].split()[-1] == "0"
    assert out["sys"][0] == 1 and out["sys"][2].count("\n") == 2
    status, text, complaints = out["host"]
    seen = {name for name in text.split() if not name.startswith(("minirt-", "veth"))}  # other tests' come and go
    assert (status, complaints) == (0, "") and "lo" in seen and seen <= {*os.listdir("/sys/class/net"), "1"}
    if single:
        assert out["web"] == "uid 1000 does not exist here: this user has 1 id(s); see `minirt doctor`"
    else:
        groups = "uid=1000(web) gid=1000(web) groups=1000(web),2000(extra)"
        assert out["web"] == [0, f"{groups}\nme\nCapEff:\t{'0' * 16}\n", ""]
    assert out["77777"].startswith("uid 77777 does not exist here")
    assert out["nope"] == 'exec: "nope": executable file not found in $PATH'
    assert out["doctor"]["overlay"] and out["doctor"]["/proc mount"] and out["doctor"]["subuids"] is not single
    # Nothing is left: no process, no mount.
    assert subprocess.run(["pgrep", "-r", "R,S,D", "-u", str(who.uid)], capture_output=True, text=True).stdout == ""
    assert str(who.home) not in Path("/proc/self/mountinfo").read_text()


def test_a_rootless_runc_takes_the_bundle_as_it_is(user: tuple[users.User, bool]) -> None:
    who, _ = user
    bundle = """
script = "id; hostname; grep -E '^(Cap|NoNew)' /proc/self/status; cat /etc/hosts"
place = bundles.create(home, image, ["sh", "-c", script], ids, overlay=False)
out["ours"] = bundles.run(place, ids)
# Not yet started: a rootless runc sets no supplementary groups, and our start adds those of USER.
out["place"] = str(bundles.create(home, image, ["sh", "-c", script], ids, overlay=False))
"""
    out = json.loads(who.python(SCRIPT % (require("busybox"), bundle)))
    words = [require("runc"), "--root", str(who.home / "runc"), "run", "--bundle", out["place"], "minirt-test"]
    theirs = who.run(words, check=False)
    without_groups = out["ours"][1].replace(" groups=0(root)", "")
    assert (theirs.returncode, theirs.stdout.replace(" groups=0(root)", "")) == (0, without_groups), theirs.stderr


@pytest.mark.parametrize("runtime", ["", "--runtime=runc", "--runtime=crun"])
def test_what_is_the_machines_can_be_shared_with_a_plain_users_container(
    user: tuple[users.User, bool], runtime: str
) -> None:
    """A user namespace may neither mount the file systems of the machine's namespaces nor make a node: all is bound."""
    who, _ = user
    minirt = ["env", "MINIRT_HUB=embedded", sys.executable, "-m", "minirt"]
    ours = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "ipc")]

    def see(script: str, *options: str) -> list[str]:
        more = [runtime] if runtime else []
        words = ["run", "-q", "--rm", "--network=none", *more, *options, "toolbox", "sh", "-c", script]
        done = who.run([*minirt, *words], check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    try:
        who.run([*minirt, "pull", "-q", "toolbox"])
        look = "for kind in pid ipc; do readlink /proc/self/ns/$kind; done; ls -d /proc/[0-9]* | wc -l; echo $$"
        *apart, few, first = see(look)
        *shared, many, number = see(look, "--pid=host", "--ipc=host")
        assert not {*apart} & {*ours} and first == "1" and int(few) < 10
        assert shared == ours and number != "1" and int(many) > 10
        script = "for name in made zero; do head -c 3 /dev/$name | wc -c; stat -c %F /dev/$name; done"
        made = see(script, "--device=/dev/zero:/dev/made", "--device=/dev/zero")
        assert made == ["3", "character", "special", "file"] * 2
        assert see("grep -c ' /proc/sys ' /proc/mounts", "--pid=host") == ["1"]
    finally:
        who.run([*minirt, "daemon", "stop"], check=False)


def test_the_users_own_python_is_sealed_too(user: tuple[users.User, bool]) -> None:
    who, _ = user
    check = """
place = bundles.create(home, image, ["sleep", "60"], ids)
container.start(place, ids)
run = json.loads((place / "run.json").read_text())
out["shim"] = os.readlink(f"/proc/{run['shim']['pid']}/exe")
os.kill(run["shim"]["pid"], 9)
out["code"], out["state"] = container.wait(place, 10), container.status(place).state
"""
    out = json.loads(who.python(SCRIPT % (require("busybox"), check)))
    assert out == {"shim": "/memfd:python (deleted)", "code": 137, "state": "dead"}
