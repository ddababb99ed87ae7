"""The hand of faults.py: a program that does one verb after another, each in a process forked for it, and lets strace
make a chosen system call of a chosen thread fail, or kill it there. As root or as a plain user.

A job is a line of JSON: `root`, `verbs` (lists of words), and perhaps `strace` ({thread: options}): `engine` is the
thread that does the verb, `layer` the one that brings layers, `worker N` the N-th process that unpacks or removes. The
first verb is the one under strace. The answer is what each verb said: `[true, value]` or `[false, kind, text]`; fewer
answers than verbs where the process was killed. It comes when all processes of the job are gone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from minirt import child, linux
from minirt.engine import Engine
from minirt.errors import MinirtError, NotFound
from minirt.image.reference import Reference
from minirt.store import archive, inflate  # noqa: F401 (loaded before the fork, so that no import is under strace)
from minirt.store.layers import Layers

_PATIENCE = 60.0  # seconds


def do(engine: Engine, words: list[str]) -> Any:
    verb, *rest = words
    if verb == "pull":
        return [line for line in engine.pull(rest[0]) if line][-1]
    if verb == "tag":
        return engine.images.tag(*rest)
    if verb == "rmi":
        return engine.images.remove(rest[0])
    if verb == "rmi if there":
        try:
            return engine.images.remove(rest[0], force=True)
        except NotFound:
            return None
    if verb == "forget":
        return engine.store.names.remove([Reference.parse(rest[0])])
    if verb == "prune":
        return engine.prune()
    if verb == "load":
        with open(rest[0], "rb") as file:
            return list(engine.images.load(file))
    if verb == "save":
        Path(rest[1]).write_bytes(b"".join(engine.images.save([rest[0]])))
        return None
    if verb == "create":
        host = {"NetworkMode": "none", "Binds": ["kept:/kept"]}
        return engine.containers.create({"Image": rest[0], "Cmd": ["/hello"], "HostConfig": host})["Id"]
    if verb == "clear":  # all that has a name, and then what nothing reaches
        for record in list(engine.containers.records()):
            engine.containers.remove(record["Id"], force=True)
        for volume in engine.volumes.list()["Volumes"]:
            engine.volumes.remove(volume["Name"])
        engine.store.names.remove(named.reference for named in engine.store.names.all())
        return engine.prune()
    if verb == "check":
        return engine.check()
    if verb == "know":  # what this machine can do is tried once, and written down
        return engine.store.driver
    assert verb == "begin"  # what a daemon does first
    return engine.mend()


def attach(options: list[str]) -> None:
    """Let strace hold this thread from now on."""
    tid = threading.get_native_id()
    process = subprocess.Popen(["strace", "-p", str(tid), *options], stderr=subprocess.PIPE, text=True)
    status = Path(f"/proc/self/task/{tid}/status")
    end = time.monotonic() + _PATIENCE
    while "TracerPid:\t0\n" in status.read_text():
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"strace does not attach: {process.stderr and process.stderr.read()}")
        time.sleep(0.001)
    time.sleep(0.005)  # it is there, but what it was asked to do may come a moment later


def watch(straced: dict[str, list[str]]) -> None:
    """Have workers and the layers' thread begin under strace where that is wished."""
    count = 0
    command, fetch, mine = child.command, Layers.fetch, threading.local()

    def watched(module: str, *arguments: str) -> list[str]:
        nonlocal count
        words = command(module, *arguments)
        if module != "minirt.store.worker":
            return words
        count += 1
        options = straced.get(f"worker {count}")
        return words if options is None else ["strace", *options, *words]

    def fetch_watched(*arguments: Any, **options: Any) -> bool:
        if (
            "layer" in straced
            and threading.current_thread() is not threading.main_thread()
            and not hasattr(mine, "attached")
        ):
            mine.attached = True
            attach(straced["layer"])
        return fetch(*arguments, **options)

    child.command = watched
    setattr(Layers, fetch.__name__, fetch_watched)
    if "engine" in straced:
        attach(straced["engine"])


def job(root: str, verbs: list[list[str]], straced: dict[str, list[str]], say: int) -> None:
    engine = None
    for number, words in enumerate(verbs):
        if number == 0 and straced:
            watch(straced)
        try:
            engine = engine or Engine(Path(root), "embedded")
            answer = [True, do(engine, words)]
        except (MinirtError, OSError) as error:
            answer = [False, type(error).__name__, str(error)]
        os.write(say, json.dumps(answer).encode() + b"\n")


def main() -> None:
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    os.cpu_count = lambda: 1  # layers one after the other: always the same order
    for line in sys.stdin:
        given = json.loads(line)
        take, say = os.pipe()
        if os.fork() == 0:
            os.close(take)
            status = 1
            try:
                job(given["root"], given["verbs"], given.get("strace") or {}, say)
                status = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(say)
        with os.fdopen(take, "rb") as pipe:
            answers = [json.loads(each) for each in pipe.read().splitlines()]
        while True:  # orphans, too, come to us
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
