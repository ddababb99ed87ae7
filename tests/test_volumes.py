"""Volumes held against a real dockerd: which there are, what is mounted, what is copied into them, when they go."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from engines import Both, Ours, both, image_tar

from minirt.engine import files
from minirt.errors import Conflict, InvalidInput, MinirtError, NotFound, Unsupported

__all__ = ["both"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux")

LOOK = """b=/bin/busybox; for d in /data /abs/. /up/. /brandnew /hold /hn /etc /data/sub; do
test -d $d && $b stat -c '%n %u %g %a' $d && $b ls -A $d | $b grep -v mtab; done
$b touch /data/w 2>&1 | $b head -1; $b touch /hold/w 2>&1 | $b head -1
$b grep -E ' /(data|hold|hn|ht|brandnew|etc) ' /proc/mounts | $b cut -d' ' -f2,4 | $b cut -c1-10 | $b sort"""
SAME: dict[str, dict[str, Any]] = {
    "named": {"HostConfig": {"Binds": ["n1:/data"]}},
    "named again": {"HostConfig": {"Binds": ["n1:/brandnew"]}},
    "read-only": {"HostConfig": {"Binds": ["n1b:/data:ro"]}},
    "nocopy": {"HostConfig": {"Binds": ["n2:/data:nocopy"]}},
    "anonymous": {"Volumes": {"/data": {}}},
    "anonymous, new": {"Volumes": {"/brandnew": {}}},
    "mount": {"HostConfig": {"Mounts": [{"Type": "volume", "Source": "n3", "Target": "/data"}]}},
    "mount with options": {"HostConfig": {"Mounts": [
        {"Type": "volume", "Source": "n4", "Target": "/data", "ReadOnly": True,
         "VolumeOptions": {"Labels": {"a": "b"}, "NoCopy": True}}]}},
    "mount, anonymous": {"HostConfig": {"Mounts": [{"Type": "volume", "Target": "/data"}]}},
    "mount, tmpfs": {"HostConfig": {"Mounts": [{"Type": "tmpfs", "Target": "/data"}]}},
    "through a link": {"HostConfig": {"Binds": ["n5:/abs"]}},
    "through a link up and out": {"HostConfig": {"Binds": ["n6:/up"]}},
    "through a link to nowhere": {"HostConfig": {"Binds": ["n7:/dangling"]}},
    "bad name": {"HostConfig": {"Binds": [".x:/data"]}},
    "short name": {"HostConfig": {"Binds": ["x:/data"]}},
    "twice": {"HostConfig": {"Binds": ["n1:/data", "n2:/data"]}},
    "a name for the image's": {"Volumes": {"/data": {}}, "HostConfig": {"Binds": ["n1:/data"]}},
    "over /etc": {"HostConfig": {"Binds": ["n9:/etc"]}},
    "unknown driver": {"HostConfig": {"Binds": ["n10:/data"], "VolumeDriver": "nope"}},
    "label of SELinux": {"HostConfig": {"Binds": ["n11:/data:ro,Z"]}},
    "bind": {"HostConfig": {"Binds": ["/tmp:/ht:ro"]}},
    "another's": {"HostConfig": {"VolumesFrom": ["HOLDER"]}},
    "another's, read-only": {"HostConfig": {"VolumesFrom": ["HOLDER:ro"]}},
    "nobody's": {"HostConfig": {"VolumesFrom": ["nope_"]}},
    "another's, wrongly": {"HostConfig": {"VolumesFrom": ["HOLDER:zz"]}},
    "another's, one replaced": {"HostConfig": {"VolumesFrom": ["HOLDER"], "Binds": ["n1:/hold"]}},
}  # fmt: skip


def neutral(value: Any) -> str:
    """JSON without what is this side's own: ids, places, times."""
    text = re.sub(r"[0-9a-f]{64}", "HEX", json.dumps(value, sort_keys=True))
    text = re.sub(r'"Labels": {"com.docker.volume.anonymous": ""}', '"Labels": null', text)  # docker 23 has it, too
    return re.sub(r"20\d\d-[^\"]*Z", "TIME", re.sub(r"/dev/shm/[^\"]*?/volumes", "/volumes", text))


def listed(side: Ours, filters: dict[str, list[str]] | None = None) -> list[str]:
    return sorted(neutral(volume) for volume in side.volumes(filters))


@pytest.mark.slow
def test_volumes_are_dockers(both: Both) -> None:
    holder = {
        side: side.create("true", Volumes={"/hold": {}}, HostConfig={"Binds": ["hn:/hn", "/tmp:/ht:ro"]})
        for side in both.sides
    }

    def run(side: Ours, body: dict[str, Any]) -> Any:
        box, said = side.run(LOOK, **json.loads(json.dumps(body).replace("HOLDER", holder[side])))
        shown = side.inspect(box)
        return said.splitlines(), sorted(map(neutral, shown["Mounts"])), shown["Config"].get("Volumes")

    for name, body in SAME.items():
        found = both.same(lambda side, body=body: run(side, body))  # type: ignore[misc]
        if name in ("named", "anonymous", "mount"):
            assert found[0][:5] == ["/data 7 7 2750", "file", "hard", "link", "sub"], name
    on_file = {"Volumes": {"/one": {}}}
    both.same(lambda side: run(side, on_file), "cannot mount volume over existing file, file exists")

    both.same(listed)
    for filters in ({"dangling": ["true"]}, {"dangling": ["false"]}, {"name": ["n1"]}, {"label": ["a"]},
                    {"label": ["a=b"]}, {"label": ["a=c"]}, {"driver": ["local"]}):  # fmt: skip
        both.same(lambda side, filters=filters: listed(side, filters))  # type: ignore[misc]
    both.same(lambda side: listed(side, {"foo": ["x"]}), "nvalid filter 'foo'")
    both.same(lambda side: listed(side, {"dangling": ["maybe"]}), "nvalid filter 'dangling=[maybe]'")
    for ask in (
        ("create", {"Name": "vv", "Labels": {"x": "y"}}), ("create", {"Name": "vv"}), ("create", {}),
        ("create", {"Name": "a/b"}), ("create", {"Name": "ab", "Driver": "nope"}), ("inspect", "vv"),
        ("inspect", "nope"), ("remove", "nope"), ("remove", "hn"), ("remove", "vv"), ("inspect", "vv"),
    ):  # fmt: skip
        both.same(lambda side, ask=ask: neutral(side.volume(*ask)))  # type: ignore[misc]

    def gone(side: Ours) -> Any:
        first = side.create("true", Volumes={"/anon": {}}, HostConfig={"Binds": ["keepme:/k"]})
        second = side.create("true", HostConfig={"VolumesFrom": [first]})
        counts = [len(side.volumes())]
        for box in (first, second):
            side.remove(box, volumes=True)
            counts.append(len(side.volumes()) - counts[0])
        box = side.create("true", Volumes={"/anon": {}}, HostConfig={"AutoRemove": True})
        side.engine.containers.start(box)
        side.engine.containers.wait(box)
        kept = side.create("true", Volumes={"/anon": {}})
        side.remove(kept)
        return counts[1:], len(side.volumes()) - counts[0]

    assert gone(both.sides[0]) == (
        [0, -1],
        0,
    )  # the second had the last of it; --rm takes its own; without -v one stays


@pytest.fixture
def ours(tmp_path: Path) -> Any:
    side = Ours(tmp_path / "store")
    side.load(image_tar(), "files")
    yield side
    side.close()


def test_what_goes_and_what_stays(ours: Ours) -> None:
    box = ours.create("true", Volumes={"/anon": {}}, HostConfig={"Binds": ["named:/n"]})
    engine = ours.engine
    points = {point["Destination"]: point for point in ours.inspect(box)["Mounts"]}
    assert points["/n"]["Name"] == "named" and engine.containers.summaries(all=True)[0]["Mounts"]
    (Path(points["/n"]["Source"]) / "mine").write_bytes(b"x" * 8192)
    usage = {volume["Name"]: volume["UsageData"] for volume in engine.df()["Volumes"]}
    assert usage["named"]["RefCount"] == 1 and usage["named"]["Size"] >= 8192
    with pytest.raises(Conflict, match=f"remove named: volume is in use - \\[{box}\\]"):
        ours.volume("remove", "named")
    assert engine.volumes.prune({"all": ["true"]})["VolumesDeleted"] == []
    engine.containers.remove(box)  # without -v both stay
    engine.prune()
    assert len(ours.volumes({"dangling": ["true"]})) == 2
    assert engine.volumes.prune()["VolumesDeleted"] == [points["/anon"]["Name"]]
    with pytest.raises(InvalidInput, match="nvalid filter 'until'"):
        engine.volumes.prune({"until": ["1h"]})
    assert engine.volumes.prune({"all": ["1"], "label": ["x"]})["VolumesDeleted"] == []
    freed = engine.volumes.prune({"all": ["1"]})
    assert freed["VolumesDeleted"] == ["named"] and freed["SpaceReclaimed"] >= 8192
    engine.volumes.remove("named", force=True)
    with pytest.raises(NotFound, match="get named: no such volume"):
        engine.volumes.remove("named")
    for name in ("../x", "", "a" * 300):
        with pytest.raises(NotFound):
            engine.volumes.inspect(name)
    with pytest.raises(InvalidInput):
        engine.volumes.create({"Name": "a" * 300})
    with pytest.raises(Unsupported, match="with options"):
        engine.volumes.create({"Name": "nfs", "DriverOpts": {"type": "nfs"}})


def test_a_create_that_fails_leaves_no_volume(ours: Ours) -> None:
    for body in ({"Volumes": {"/new": {}, "/one": {}}}, {"Volumes": {"/new": {}}, "HostConfig": {"Binds": ["x:/y"]}}):
        with pytest.raises(InvalidInput):
            ours.create("true", **body)
    assert ours.volumes() == [] and ours.engine.check() == []
    (ours.engine.store.root / "volumes/half/_data").mkdir(parents=True)
    assert [row["what"] for row in ours.engine.check()] == ["volume half"] and ours.volumes() == []
    ours.engine.prune()
    assert ours.engine.check() == []


def test_copy_up_happens_once_and_keeps_everything(ours: Ours) -> None:
    """Owners, modes, times, links; only into an empty volume; and what a link of the image points to stays inside
    (CVE-2018-15664)."""
    ours.run("echo over > /v/file", HostConfig={"Binds": ["vv:/v"]})
    folder = Path(ours.volume("inspect", "vv")["Mountpoint"])
    ours.run("true", HostConfig={"Binds": ["vv:/data"]})
    assert sorted(os.listdir(folder)) == ["file"] and (folder / "file").read_text() == "over\n"  # it was not empty
    ours.run("true", HostConfig={"Binds": ["ww:/data", "up:/up", "top:/new"]})
    folder = Path(ours.volume("inspect", "ww")["Mountpoint"])
    status = os.stat(folder / "file")
    assert (folder / "file").read_text() == "in the image" and status.st_nlink == 2
    assert (status.st_uid, status.st_mode & 0o7777, status.st_mtime) == (7, 0o640, 1_600_000_000)
    assert os.readlink(folder / "link") == "sub/deep" and os.stat(folder).st_mode & 0o7777 == 0o2750
    inside = Path(ours.volume("inspect", "up")["Mountpoint"])
    assert (inside / "passwd").read_text().startswith("root:x:0:0::/:/bin/sh\nuser")  # the image's /etc, not ours
    assert not list(Path(ours.volume("inspect", "top")["Mountpoint"]).iterdir())


def test_where_the_image_has_nothing_no_process_looks_for_it(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody who creates a container waits for such a process."""
    asked: list[Any] = []

    class Counted(files.Worker):
        def __init__(self, *words: Any, **more: Any) -> None:
            asked.append(more["volumes"])
            super().__init__(*words, **more)

    monkeypatch.setattr(files, "Worker", Counted)
    ours.create("true", HostConfig={"Binds": ["aa:/new", "bb:/new/deep/er"]}, Volumes={"/other": {}})
    assert asked == []
    ours.create("true", HostConfig={"Binds": ["cc:/new", "dd:/data/new"]})
    assert [[place for place, _ in volumes] for volumes in asked] == [["/data/new"]]


def test_many_take_and_remove_one_volume_at_once(ours: Ours) -> None:
    """Whoever was given a volume has it, whoever removes at that moment."""
    failures: list[str] = []

    def create(number: int) -> None:
        for _ in range(4):
            try:
                box = ours.create("true", HostConfig={"Binds": ["shared:/s"]}, Volumes={"/anon": {}})
            except (MinirtError, OSError) as error:
                failures.append(str(error))
                continue
            failures.extend(p["Name"] for p in ours.inspect(box)["Mounts"] if not Path(p["Source"]).is_dir())
            ours.remove(box, volumes=True)

    def remove() -> None:
        while any(thread.is_alive() for thread in threads):
            try:
                ours.volume("remove", "shared")
            except (Conflict, NotFound):
                pass
            except MinirtError as error:
                failures.append(str(error))
            ours.volume("prune", {"all": ["1"]})

    threads = [threading.Thread(target=create, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    remove()
    assert failures == [] and ours.engine.check() == []
    assert len(ours.volumes()) <= 1
