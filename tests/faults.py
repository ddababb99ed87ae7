"""A fault at every system call by which a verb changes the store: SIGKILL, EIO or ENOSPC, by `strace --inject`.

A verb is done once with strace looking on, thread by thread (faults_hand.py has them begin under it). Each call that
changes something in the store is a *point*: the thread, the call's name, and the how manieth of that name in that
thread (`when=N`). Its *role* is what it does it to, with names that differ from run to run left out. Then for each
point the verb is done anew, on a fresh copy of the store, with the fault there. What has to hold afterwards:

    in the same process   where it lives (EIO, ENOSPC): one clear line or success, and `system check` is clean
    in the next one       after what a daemon does first `system check` is clean; the verb succeeds; a pull asks for no
                          byte that is on the disk
    after a prune         no file is there but what a name reaches, found without the package's help

Faults are per thread, and so one at a time: a killed engine's worker ends as it does in life, by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import users
from registries import Scripted

_HERE = Path(__file__).parent
FAULTS = {"SIGKILL": "signal=SIGKILL", "EIO": "error=EIO", "ENOSPC": "error=ENOSPC"}
THREADS = ["engine", "layer", *(f"worker {number}" for number in range(1, 8))]
# What strace is asked for. The first are those of a sweep of roles; of all points, the others too.
CALLS = [
    *("write", "pwrite64", "writev", "pwritev", "sendfile", "copy_file_range", "ftruncate", "truncate", "fallocate"),
    *("fsync", "fdatasync", "syncfs", "sync_file_range", "rename", "renameat", "renameat2", "openat", "creat"),
    *("link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "mknod", "mknodat"),
]
MORE_CALLS = [
    *("chmod", "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat", "utimensat", "setxattr", "lsetxattr"),
    *("fsetxattr", "removexattr", "flock"),
]
# Other tests make users: a store tries anew what this machine can do when /etc/subuid changes. (A mount over that file
# alone would go away when useradd renames another one to its name.)
_ALONE = """cp -a /etc "$1/etc"; mount --bind "$1/etc" /etc; shift; exec "$@" """
_CALL = re.compile(r"(\w+)\((.*)")


@dataclass(frozen=True)
class Point:
    thread: str
    call: str
    when: int
    role: str

    def __str__(self) -> str:
        return f"{self.thread}: {self.call} {self.when} ({self.role})"


@dataclass(frozen=True)
class Scenario:
    """The verb that meets the fault; what was done before in the store (None: there is none); what has to succeed
    afterwards. Words may name {image}, {other} and {archive}."""

    verb: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] | None
    again: tuple[tuple[str, ...], ...] = ()


_PULL, _OTHER, _KNOW = ("pull", "{image}"), ("pull", "{other}"), ("know",)
SCENARIOS = {
    "pull into nothing": Scenario(_PULL, None, (_PULL,)),
    "pull": Scenario(_PULL, (_KNOW,), (_PULL,)),
    "pull beside another": Scenario(_PULL, (_KNOW, _OTHER), (_PULL, _OTHER)),
    "pull of a moved tag": Scenario(_PULL, (_KNOW, _OTHER, ("tag", "{other}", "{image}")), (_PULL,)),
    "tag": Scenario(("tag", "{image}", "mine:1"), (_KNOW, _PULL), (("tag", "{image}", "mine:1"),)),
    "rmi": Scenario(("rmi", "{image}"), (_KNOW, _PULL, _OTHER), (("rmi if there", "{image}"), _PULL)),
    "prune": Scenario(
        ("prune",), (_KNOW, _OTHER, _PULL, ("create", "{image}"), ("forget", "{image}")), (("prune",), _OTHER, _PULL)
    ),
    "load": Scenario(("load", "{archive}"), (_KNOW,), (("load", "{archive}"),)),
    "create": Scenario(("create", "{image}"), (_KNOW, _PULL), (("create", "{image}"),)),
}


@dataclass
class Tally:
    """What was seen over a sweep."""

    points: Counter[str] = field(default_factory=Counter)  # by fault
    sent: Counter[str] = field(default_factory=Counter)  # bytes of blobs the registry sent before the fault, by fault
    refetched: Counter[str] = field(default_factory=Counter)  # of those, bytes sent again
    problems: list[str] = field(default_factory=list)


class Bench:
    """Where the sweep is done: a folder for stores, a registry with two images that share a layer, and the hand."""

    def __init__(self, folder: Path, hub: Scripted, images: dict[str, str], user: users.User | None) -> None:
        self.folder, self.hub, self.user = folder, hub, user
        self.words = images | {"archive": str(folder / "saved.tar")}
        self.root, self.model = folder / "root", folder / "model"
        self._seen: set[tuple[str, ...]] = set()  # roles
        env = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(user.home if user else _HERE.parent)}
        words = [user.interpreter if user else sys.executable, str(_HERE / "faults_hand.py")]
        if user:
            words = [*f"setpriv --reuid {user.uid} --regid {user.gid} --clear-groups --inh-caps=-all".split(), *words]
        if os.geteuid() == 0:
            words = ["unshare", "--mount", "sh", "-c", _ALONE, "sh", str(folder), *words]
        self._hand = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=env
        )

    def close(self) -> None:
        self._hand.stdin.close() if self._hand.stdin else None
        self._hand.wait(20)

    def do(self, *verbs: tuple[str, ...], strace: dict[str, list[str]] | None = None) -> list[Any]:
        words = [[word.format_map(self.words) for word in verb] for verb in verbs]
        assert self._hand.stdin and self._hand.stdout
        self._hand.stdin.write(json.dumps({"root": str(self.root), "verbs": words, "strace": strace}) + "\n")
        self._hand.stdin.flush()
        return list(json.loads(self._hand.stdout.readline()))

    def well(self, *verbs: tuple[str, ...]) -> list[Any]:
        answers = self.do(*verbs)
        assert len(answers) == len(verbs) and all(answer[0] for answer in answers), answers
        return [answer[1] for answer in answers]

    def fresh(self, source: Path | None = None) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        if source and source.exists():
            subprocess.run(["cp", "-a", source, self.root], check=True)

    def sent(self) -> int:
        """Bytes of blobs the registry was asked for so far."""
        total = 0
        for request in self.hub.seen("registry", "/blobs/"):
            start = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
            total += len(self.hub.blobs[request.path.rpartition("/")[2]]) - int(start[1] if start else 0)
        return total

    def here(self) -> int:
        """Bytes of the image's blobs on the disk, whole or unfinished."""
        blobs = {digest.partition(":")[2] for digest in self.hub.blobs}
        files = [*self.root.glob("oci/blobs/*/*"), *self.root.glob("ingest/*")]
        return sum(path.stat().st_size for path in files if path.name.removeprefix("sha256-") in blobs)

    def files(self) -> set[str]:
        """Every path, but the insides of layers."""
        found = set()
        for path, folders, names in os.walk(self.root):
            here = os.path.relpath(path, self.root)
            found |= {os.path.normpath(os.path.join(here, name)) for name in (*folders, *names)}
            if here.startswith("layers/"):
                folders.clear()
        return {_varied(name) if name.startswith("containers") else name for name in found}

    # the sweep

    def points(self, scenario: Scenario, calls: list[str]) -> list[Point]:
        """Make the store the scenario begins with; its points."""
        self.fresh()
        shutil.rmtree(self.model, ignore_errors=True)
        if scenario.before is not None:
            self.well(*scenario.before)
            os.rename(self.root, self.model)
        self.fresh(self.model)
        logs = Path(tempfile.mkdtemp(dir=self.folder))
        if self.user:
            os.chown(logs, self.user.uid, self.user.gid)
        straced = {name: self._options(logs / name, ["-e", f"trace={','.join(calls)}"]) for name in THREADS}
        answers = self.do(scenario.verb, strace=straced)
        assert answers[0][0], answers
        found = [point for name in THREADS if (logs / name).exists() for point in self._points(name, logs / name)]
        shutil.rmtree(logs)
        assert found, "strace saw nothing"
        return found

    @staticmethod
    def _options(log: Path, more: list[str]) -> list[str]:
        return ["-qqq", "-y", "-s", "0", "-o", str(log), *more]

    def _points(self, thread: str, log: Path) -> Iterator[Point]:
        counts: Counter[str] = Counter()
        for line in log.read_text(errors="replace").splitlines():
            if not (found := _CALL.match(line)):
                continue
            call, rest = found.groups()
            counts[call] += 1
            if str(self.root) in rest and (call != "openat" or "O_CREAT" in rest) and "EEXIST" not in rest:
                places = re.findall(rf'{re.escape(str(self.root))}([^">]*)(?:>, "([^"]*)")?', rest)
                role = " → ".join(_varied("/".join(filter(None, place))) for place in places)
                yield Point(thread, call, counts[call], role)

    def plan(self, name: str, every: bool, kinds: str = "engine layer worker") -> list[tuple[Point, str]]:
        """Every point with every fault; or each role (of a worker: that no scenario had before) once, with one fault
        after the other in turn."""
        points = self.points(SCENARIOS[name], CALLS + MORE_CALLS if every else CALLS)
        if every:
            return [(point, fault) for fault in FAULTS for point in points]
        plan = []
        for point in points:
            kind = point.thread.partition(" ")[0]
            role = (SCENARIOS[name].verb[0] if kind == "engine" else "", kind, point.call, point.role)
            if role not in self._seen and kind in kinds:
                plan.append((point, list(FAULTS)[len(self._seen) % len(FAULTS)]))
                self._seen.add(role)
        return plan

    def sweep(self, name: str, plan: list[tuple[Point, str]], tally: Tally) -> None:
        if not plan:
            return
        scenario = SCENARIOS[name]
        self.fresh(self.model)
        self.well(scenario.verb, *scenario.again, ("clear",))
        clean = self.files()
        for point, fault in plan:
            where = f"{name}, {fault} at {point}"
            tally.problems += [f"{where}: {what}" for what in self._at(scenario, point, fault, tally)]
            if not (cleared := self.do(("clear",))[:1]) or not cleared[0][0]:
                tally.problems.append(f"{where}: cannot be cleared: {cleared}")
            elif more := self.files() - clean:
                tally.problems.append(f"{where}: left {sorted(more)}")
            tally.points[fault] += 1

    def _at(self, scenario: Scenario, point: Point, fault: str, tally: Tally) -> Iterator[str]:
        log = self.folder / f"log-{os.urandom(4).hex()}"
        more = ["-e", f"trace={point.call}", "-e", f"inject={point.call}:{FAULTS[fault]}:when={point.when}"]
        for _ in range(3):
            self.fresh(self.model)
            before = self.sent()
            verbs = [scenario.verb, ("check",)]
            answers = self.do(*verbs, strace={point.thread: self._options(log, more)})
            text = log.read_text(errors="replace") if log.exists() else ""
            log.unlink(missing_ok=True)
            hit = "(INJECTED)" in text or "killed by SIGKILL" in text
            if hit:
                break
        else:
            yield "was never reached again"
            return
        if fault == "SIGKILL" and point.thread in ("engine", "layer"):
            if answers:
                yield f"it lives: {answers}"
        elif len(answers) < 2:
            yield f"it died: {answers}"
        else:
            if not answers[0][0] and ("\n" in answers[0][2] or not answers[0][2]):
                yield f"no clear line: {answers[0]}"
            # A removal that failed is listed, until a daemon begins or is asked to prune.
            rows = answers[1][1] if scenario.verb[0] == "prune" and "half made" in str(answers[1][1]) else []
            if answers[1] != [True, rows]:
                yield f"check in the same process: {answers[1]}"
        sent, here = self.sent(), self.here()
        answers = self.do(("begin",), ("check",), *scenario.again, ("check",))
        if [answer for answer in answers if not answer[0]] or len(answers) < 3 + len(scenario.again):
            yield f"again: {answers}"
        elif answers[1][1] or answers[-1][1]:
            yield f"check: {answers[1][1]}, {answers[-1][1]}"
        tally.sent[fault] += sent - before
        if scenario.verb[0] == "pull":
            again, lacking = self.sent() - sent, max(0, self._wanted(scenario) - here)
            if again > lacking:
                yield f"fetched {again} bytes where {lacking} were lacking"
            tally.refetched[fault] += max(0, again + sent - before - self._needed(scenario))

    def _wanted(self, scenario: Scenario) -> int:
        """Bytes of all blobs the scenario's store has in the end."""
        names = [self.words["image"]] + [self.words["other"]] * (_OTHER in (scenario.before or ()))
        return sum(self._sizes(names).values())

    def _needed(self, scenario: Scenario) -> int:
        """Those that its verb has to bring."""
        here = self._sizes([self.words["other"]]) if _OTHER in (scenario.before or ()) else {}
        wanted = self._sizes([self.words["image"]])
        return sum(size for digest, size in wanted.items() if digest not in here)

    def _sizes(self, names: list[str]) -> dict[str, int]:
        """Blobs of these images, for this machine's platform: not their manifests."""
        found: dict[str, int] = {}
        for name in names:
            path, _, tag = name.partition("/")[2].rpartition(":")
            index = json.loads(self.hub.manifests[path, tag][0])
            for each in index["manifests"]:
                manifest = json.loads(self.hub.manifests[path, each["digest"]][0])
                found |= {blob["digest"]: blob["size"] for blob in (manifest["config"], *manifest["layers"])}
        return found


def _varied(text: str) -> str:
    """A path with what differs from run to run, or from layer to layer, left out."""
    text = re.sub("[0-9a-f]{64}", "HEX", text)
    text = re.sub(r"\.[a-z0-9_]{8}\.new", ".NEW", text)
    text = re.sub(r"\.(load|trial)-[a-z0-9_]{8}", r".\1", text)
    text = re.sub(r"(\.load|\.trial|layers/[^/]+/[.HEX]+(?!\.json))/.*", r"\1/…", text)
    text = re.sub("(user|faked)-[0-9a-f]{12}", "FORM", text)
    return re.sub(r"\.removing-\d+-\d+", ".removing", text)


@contextlib.contextmanager
def bench(user: users.User | None, layers: list[bytes], platform: str) -> Iterator[Bench]:
    """`layers`: the first is shared by both images, the second is the image's, the third the other's."""
    folder = Path(tempfile.mkdtemp(prefix="minirt-faults-", dir="/dev/shm"))
    try:
        if user:
            os.chown(folder, user.uid, user.gid)
        with Scripted(auth="none", redirects=False) as hub:
            hub.image("team/app", "1", layers[:2], (platform,))
            hub.image("team/other", "1", [layers[0], layers[2]], (platform,))
            images = {"image": f"{hub.domain}/team/app:1", "other": f"{hub.domain}/team/other:1"}
            made = Bench(folder, hub, images, user)
            with contextlib.closing(made):
                made.well(_PULL, ("save", "{image}", "{archive}"))
                yield made
    finally:
        shutil.rmtree(folder)
