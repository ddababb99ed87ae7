"""The real docker command drives our daemon as it drives a dockerd, and our command drives a dockerd as docker does.

Each script runs with `d` as one command on one daemon, and again with the other, and must say the same
and give the same exit statuses: docker 28 and 20.10 (what of them the machine has) on both daemons, and docker and ours
on one dockerd. What may differ stands in `SAME` (times, ids), or with its reason in `DIFFERENT`; one that no longer
differs fails.
Sources: docker's own documentation of these commands.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import busyboxes
import dockerd
import pytest
from dockerd import Dockerd
from peers import require
from twins import Twins, on_terminal

pytestmark = pytest.mark.slow
MINIRT = str(Path(sys.executable).with_name("minirt"))

# Pattern, replacement, reason.
SAME = [
    (r"\x1b\[\d*[A-Zn]|\r", "", "bars go up and down as layers come"),
    (r"\b[0-9a-f]{64}\b", "ID", "ids are drawn by lot"),
    (r"\b[0-9a-f]{12}\b", "SHORT", "the same"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| ?\+\d\d:?\d\d( UTC)?)", "TIME", "times are times"),
    (r"(Less than a second|About a minute|\d+ seconds?|\d+ minutes?) ago", "AGO", "one of the two is a moment older"),
    (r"\bUp (Less than a second|\d+ seconds?)", "Up AGO", "the same"),
    (
        r'(?m)^time=".*" level=error msg="(error waiting for|error getting events from daemon|Can.t (add file|close tar)).*\n',
        "",
        "by chance",
    ),
    (r"(?m)^(\x1b\[\d*m)?ERRO(\x1b\[\d*m)?\[\d+\] error waiting for .*\n", "", "the same, on a terminal"),
    (
        r"(?m)(failed to create shim task: )?OCI runtime \w+ failed: .*unable to start container process: (.*): unknown",
        r"\2",
        "runc's own way of saying that it was runc",
    ),
    ("no such image: (NAME|nope): No", "No", "a newer dockerd says it once"),
    (r"(?m)^See 'docker run --help'.\n", "", "20.10 says it of a create: there ours looks for the network, not later"),
    ("Invalid filter", "invalid filter", "a newer dockerd's word"),
    (r"(digest: sha256:ID size:) \d+", r"\1 SIZE", "one is docker's form, one OCI's"),
    (r"127.0.0.1:\d+", "127.0.0.1:PORT", "ports are drawn by lot"),
    (r" \(there are: [^)]*\)", "", "ours says which filters there are"),
    (r"(?m)[ \t]{2,}", "  ", "so columns have another width"),
    (r"(?m)[ \t]+$", "", "the same"),
]


@dataclass(frozen=True)
class Side:
    """A command on a daemon."""

    command: tuple[str, ...]
    environment: str = ""

    @property
    def argv(self) -> list[str]:
        return [*(["env", self.environment] if self.environment else []), *self.command]


class Both(Twins):
    """In a script `d` is the one command on its daemon, or the other on its own; $R a registry that both reach."""

    names = ("docker", "minirt")
    same_ = SAME

    def __init__(self, folder: Path, docker: Side, minirt: Side, registry: str) -> None:
        super().__init__(folder)
        self.sides, self._registry = {"docker": docker, "minirt": minirt}, registry

    def prelude(self, runtime: str) -> str:
        return f"""export LC_ALL=C; R={self._registry}; cd $V; d() {{ {" ".join(self.sides[runtime].argv)} "$@"; }}
            i() {{ d inspect -f "$@" $N; }}"""

    def clean(self, runtime: str) -> None:
        left = f"""d ps -aq --filter name=$N | xargs -r {" ".join(self.sides[runtime].argv)} rm -fv"""
        self.execute(f"N=name-{runtime}; V=/; {self.prelude(runtime)}\n{left}")


# name: (script, what must be seen …)
SCRIPTS: dict[str, tuple[str, ...]] = {
    "run": (
        """d run --rm hello-world; echo $?; for words in true 'sh -c "exit 3"' nope /nope/x /etc/passwd /etc \\
          'sh -c "kill -9 \\$\\$"'; do eval "d run --rm busybox $words"; echo "$words: $?"; done
        d run --rm busybox sh -c 'echo out; echo err >&2'; seq 20000 | d run -i --rm busybox md5sum
        d run --rm -e A=b -e C -w /tmp -u web -h box busybox sh -c 'env | sort; pwd; id; hostname'
        d run --name $N busybox true; d run --name $N busybox true; echo $?; d run --rm --entrypoint id busybox -u
        d run --rm --nope busybox 2>&1 | head -1; d run --rm busybox:nope true >/dev/null 2>&1; echo $?
        d run -d --rm --name $N-2 busybox sleep 99; d rm -f $N-2; d run 2>&1 | head -1; d run --rm Busybox; echo $?
        d run --rm -m 1k busybox true; echo $?; d run --rm -w rel busybox true; echo $?
        d run --rm --user nobody-there busybox true; echo $?; d run --rm -v rel/x:/y busybox true; echo $?""",
        "nope: 127$", "passwd: 126$", '3": 3$', "^A=b$", "is already in use",
    ),
    "run -d, logs": (
        """d run -d --name $N busybox sh -c 'for i in 1 2 3; do echo out $i; echo err $i >&2; sleep 0.1; done'
        d logs -f $N; d wait $N; d logs $N 2>/dev/null; d logs --tail 2 $N 2>/dev/null; d logs -n 0 $N; d logs -t $N
        d logs --since 1h $N 2>&1 | wc -l; d logs --until 1h $N; d logs --since 2100-01-01 $N; d logs --tail x $N 2>&1|wc -l
        d logs nope; echo $?; d run -d --name $N-2 busybox sh -c 'echo up; sleep 2; echo end'; d logs -f --tail 0 $N-2
        d logs --since nope $N; echo $?; d logs --details $N 2>&1 | wc -l""",
        "^out 3$", "^err 3$", "No such container: nope",
    ),
    "exec": (
        """d run -d --name $N busybox sleep 99; d exec -u web -w /tmp -e A=b $N sh -c 'id; pwd; env | sort'
        for words in true 'sh -c "exit 7"' nope /etc/passwd 'sh -c "kill -9 \\$\\$"'; do
        eval "d exec $N $words"; echo "$words: $?"; done; d exec nope true; echo $?; echo hi | d exec -i $N cat
        d exec -d $N touch /tmp/f; echo $?; until d exec $N ls /tmp/f 2>/dev/null; do :; done; d exec -d $N nope; echo $?
        d exec -w /nope $N true; echo $?; d exec -u nobody-there $N true; echo $?; d exec $N; echo $?
        d exec $N sh -c 'echo out; echo err >&2'; d exec -t $N sh -c 'tty'; d exec -e =b $N true; echo $?
        d stop -t 0 $N; d exec $N true; echo $?; d pause $N; echo $?""",
        "^A=b$", 'exit 7": 7$', "passwd: 126$", "^hi$", "is not running",
    ),
    "ps": (
        """d run -d --name $N -l a=b -p 127.0.0.1::80 busybox sleep 99; d run --name $N-2 -l a=c busybox sh -c 'exit 3'
        d create --name $N-3 busybox true
        d ps -a --filter name=$N; d ps --filter name=$N; d ps -aq --no-trunc --filter name=$N; d ps -q -f status=running -f name=$N
        d ps -a -f name=$N --format '{{.ID}} {{.Image}} {{.Command}} {{.Names}} {{.State}} {{.Status}} {{.Labels}} {{.Networks}} {{.Mounts}}'
        d ps -a -f name=$N --format 'table {{.Names}}\\t{{.Status}}\\t{{.Size}}'; d ps -a -f label=a=c -f name=$N --format '{{.Names}}'
        d ps -a -f exited=3 -f name=$N --format '{{.Names}}'; d ps -a -f status=created -f name=$N --format '{{.Names}}'
        d ps -a -f ancestor=busybox -f name=$N --format '{{.Names}}'; d ps -a -f before=$N-2 -f name=$N --format '{{.Names}}'
        d ps -a -f since=$N-2 -f name=$N --format '{{.Names}}'; d ps -a -f name=^/$N\\$ --format '{{.Names}}'
        d ps -f status=nope; echo $?; d ps -f nope=x; echo $?; d ps -f before=nope; echo $?; d ps -f exited=x; echo $?
        d ps -f name=$N -n 1 --format '{{.Names}}' | wc -l; d ps x; echo $?; d ps -sa -f name=$N""",
        "Exited \\(3\\)", "^NAME-3$",
    ),
    "stop, start, kill, restart, pause, rename, wait": (
        """d run -d --name $N busybox sh -c "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done"
        until d logs $N | grep up; do :; done; d stop $N; echo $?; d logs $N; i '{{.State.ExitCode}} {{.State.Status}}'
        d stop $N; echo $?; d start $N; d start $N; echo $?; d restart -t 1 $N; d pause $N; d pause $N; echo $?; d stop -t 1 $N
        d unpause $N; echo $?; d start $N; d pause $N; d kill $N; i '{{.State.Status}}'; d unpause $N; d unpause $N
        d kill -s nope $N; echo $?; d kill -s HUP $N-no $N; echo $?; d wait $N; d kill $N; echo $?; d rename $N $N-2; d rename $N $N-3
        d rename $N-2 $N; d rename $N $N; echo $?; d rename $N bad/; echo $?; d create --name $N-4 busybox true; d rename $N $N-4
        d rm $N-4 nope; echo $?; d start nope; echo $?; d restart nope; echo $?; d wait nope; echo $?; d stop nope; echo $?
        d start $N; d rm $N; echo $?; d kill -s 99 $N; echo $?; d kill -s KILL $N; d wait $N; d start -a $N-no; echo $?; d rm $N
        d rename nope x; d pause nope; d unpause nope; d create --name .bad busybox sh; d stop -t x $N; d restart -t 0 $N""",
        "^bye$", "^5 exited$", "is not running",
    ),
    "top, stats, port, update": (
        """d run -d --name $N -m 64m -p 127.0.0.1::80 --expose 99 busybox sleep 99; d top $N | awk '{print $1,$8,$9}'; d top $N -o pid,cmd | awk '{print $1 ~ /[0-9]/, $2, $3}'
        d top $N nope 2>&1 | head -1; d stats --no-stream --format '{{.Name}} {{.PIDs}} {{.ID}}' $N; d stats --no-stream $N | head -1 | tr -s ' '
        d stats --no-stream nope; echo $?; d port $N 80 | sed s/[0-9]*$//; d port $N | sed s/[0-9]*$//; d port $N 99; echo $?; d port nope; echo $?
        d update -m 128m --memory-swap 256m --cpus 0.5 $N; i '{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.NanoCpus}}'
        d update -m 1k $N; echo $?; d update nope --cpus 1; echo $?; d update $N; echo $?; d update --restart no $N; d update --cpus 1000 $N
        d stop -t 0 $N; d top $N; echo $?; d stats --no-stream --format '{{.PIDs}} {{.MemUsage}}' $N; d port $N; d update --cpus 1 $N""",
        "^1 sleep 99$", "134217728",
    ),
    "inspect": (
        """d create --name $N -it -e A=b -l x=y -w /tmp --user web -v /data --tmpfs /t -h box busybox sh -c 'exit 3'
        i '{{json .Config}}' | sed 's/,/,\\n/g'; i '{{json .HostConfig}}' | sed 's/,/,\\n/g' ; i '{{json .State}}'
        i '{{.Name}} {{.Path}} {{json .Args}} {{.RestartCount}} {{.Driver}} {{.Platform}} {{.AppArmorProfile}} {{json .ExecIDs}} {{.ProcessLabel}}'
        i '{{range .Mounts}}{{.Type}} {{.Destination}} {{.RW}} {{.Driver}} {{.Mode}} {{.Propagation}}{{end}}'; i '{{.Nope}}'; echo $?
        i '{{json .NetworkSettings}}' | sed 's/,/,\\n/g'; d inspect $N | sed -n 's/^    *"\\([A-Z][A-Za-z]*\\)":.*/\\1/p' | sort | uniq -c
        d inspect nope; echo $?; d inspect --type image $N; d inspect -s -f '{{.SizeRw}}' $N; d container inspect -f '{{.Id}}' $N nope; echo $?
        d image inspect -f '{{json .Config}} {{.Os}} {{.Architecture}} {{.RepoTags}} {{json .RootFS}}' hello-world; d image inspect nope""",
        "No such",
    ),
    "cp": (
        """d run -d --name $N busybox sleep 99; echo hello >x; mkdir -p dir/sub; echo a >dir/a; ln -s a dir/link; chmod 640 dir/a
        d cp x $N:/tmp/x; echo $?; d exec $N cat /tmp/x; d cp x $N:/tmp; d cp dir $N:/tmp/; d cp dir/. $N:/root; d exec $N sh -c 'cd /tmp/dir; stat -c "%n %a %F" * sub; ls /root'
        d cp $N:/tmp/dir back; ls -l back | awk '{print $1,$NF}'; d cp $N:/etc/passwd - | tar t; d cp $N:/tmp/x y; cat y; tar c dir | d cp - $N:/root; d exec $N ls /root
        d cp nope $N:/tmp; echo $?; d cp $N:/nope .; echo $?; d cp x $N:/nope/dir; echo $?; d cp x $N:/nope/; echo $?; d cp x nope:/tmp; echo $?; d cp dir $N:/tmp/x; echo $?
        d cp $N:/tmp/dir/link l; ls -l l | awk '{print $1,$NF}'; d cp -L $N:/tmp/dir/link l2; cat l2; d cp x y; echo $?; d cp $N:/a $N:/b; echo $?; d cp -q x $N:/q; echo $?
        d cp x $N:/etc/passwd/; echo $?; d stop -t 0 $N; d cp x $N:/tmp/stopped; d cp $N:/tmp/stopped - | tar xO; d cp $N:/proc/version p; echo $?""",
        "^hello$", "^passwd$", "No such container:path|Could not find the file",
    ),
    "diff, commit, export, import": (
        """d run --name $N busybox sh -c 'touch /new; mkdir /d; echo >/d/f; rm /plain; chmod 700 /etc'; d diff $N | sort; d diff nope; echo $?
        d commit -a me -m why -c 'ENV A=b' -c 'CMD ["sh"]' $N $N:v1; d run --rm $N:v1 ls /new /plain; d history --no-trunc --format '{{.CreatedBy}} {{.Comment}}' $N:v1
        d image inspect -f '{{.Author}} {{.Comment}} {{json .Config.Cmd}} {{.Config.Env}} {{len .RootFS.Layers}}' $N:v1; d commit $N; d commit nope; echo $?; d commit $N Bad; echo $?
        d commit -c nope $N; echo $?; d commit -c 'FROM x' $N; echo $?
        d export $N | tar t | grep -E '^(new|d/f|plain)$' | sort; d export -o e.tar $N; d import -c 'ENV X=y' -m said e.tar $N:imported; cat e.tar | d import - $N:imported2
        d image inspect -f '{{.Comment}} {{.Config.Env}}' $N:imported; d run --rm $N:imported cat /etc/passwd | head -1; d export nope; echo $?; echo no | d import - x:y; echo $?
        d import nope.tar; echo $?; d import - Bad </dev/null; echo $?; d rmi $N:v1 $N:imported $N:imported2 >/dev/null; d rmi $N:v1; echo $?""",
        "^A /new$", " why$", "^d/f$",
    ),
    "save, load, tag, history, rmi, images": (
        """d tag busybox $N:one; d tag busybox $N:two; d tag nope $N; echo $?; d tag busybox Bad; echo $?; d images $N; d images -q $N; d images $N --format '{{.Repository}} {{.Tag}} {{.Size}}'
        d images --filter reference=$N:o* --format '{{.Tag}}'; d images --filter nope=x; echo $?; d images --no-trunc $N; d images nope; d images --filter dangling=true -q $N
        d save $N:one $N:two -o s.tar; tar tf s.tar | grep -x manifest.json; d save nope; echo $?; d rmi $N:one $N:two; d load -i s.tar; cat s.tar | d load; d load -q -i s.tar
        d rmi nope; echo $?; d rmi $N:one nope $N:two; echo $?; echo no | d load; echo $?; d load -i nope; echo $?; d history hello-world --format '{{.CreatedBy}}'; d history -q hello-world
        d create --name $N hello-world; d tag hello-world $N:h; d rmi $N:h; d rmi hello-world; echo $?; d image inspect -f '{{.Id}}' hello-world; d history nope; echo $?
        d images -a --format '{{.Repository}}' | sort -u | grep -E 'hello|busy'; d images --digests $N""",
        "^Untagged: NAME:one$", "^Loaded image: NAME:two",
    ),
    "push, pull, login": (
        """export HOME=$V; mktemp -u >f; tar c f | d import - $N:base >/dev/null; d tag $N:base $R/$N/app:1; d push $R/$N/app:1; d push $R/$N/app:1; echo $?; d push $R/$N/app; echo $?
        d push $R/$N/nope; echo $?; d tag $N:base $R/$N/other:1; d tag $N:base $R/$N/other:2; d push -a $R/$N/other; d push -q $R/$N/other:2
        d push -a $R/$N/other:1; echo $?; d push $R/$N/x@sha256:$(seq -s '' 40 | cut -c1-64); echo $?; d push Bad; echo $?; d push 2>/dev/null; echo $?
        d images --digests $R/$N/other; g=$(d images --digests --format '{{.Digest}}' $R/$N/app); d rmi $R/$N/app:1 $R/$N/other:1 $R/$N/other:2
        d pull -a $R/$N/other | grep -v exists | sort; d images --format '{{.Tag}} {{.Digest}}' $R/$N/other; d pull $R/$N/app@$g | grep -v exists; d images --digests $R/$N/app; d pull -q $R/$N/app:1
        d pull --platform linux/arm64 $R/$N/app:1; echo $?; d pull $R/$N/app:nope; echo $?; d pull -a $R/$N/app:1; echo $?
        d rmi $R/$N/app@$g $R/$N/app:1; d rmi $R/$N/other:1 $R/$N/other:2 $N:base; d login -u a -p b $R; echo $?; d logout $R; d pull 127.0.0.1:1/x 2>&1 | grep -ic refused""",
        "^SHORT: Pushed", "Layer already exists", "Mounted from NAME/app", "^1: digest: sha256:ID size: SIZE", "^Login Succeeded",
    ),
    "events": (
        """sleep 1.1; s=$(date +%s); d run --name $N --rm busybox true; d create --name $N busybox true; d start -a $N; d rename $N $N-2; d rm $N-2; d run -d --name $N busybox sleep 99
        d exec $N true; d pause $N; d unpause $N; d kill -s HUP $N; d restart -t 0 $N; d stop -t 0 $N; d update --cpus 1 $N; d tag busybox $N:e; d rmi $N:e; d rm $N; sleep 1
        u=$(($(date +%s) + 1)); d events --since $s --until $u --filter type=container --format '{{.Type}} {{.Action}} {{index .Actor.Attributes "name"}} {{.From}} {{index .Actor.Attributes "exitCode"}} {{index .Actor.Attributes "signal"}}' | grep $N
        d events --since $s --until $u --filter container=$N --filter event=die --format '{{.Status}}'; d events --since nope; echo $?; d events --since $s --until $u -f type=image --format '{{.Action}} {{.ID}}' | sort -u
        d events --since $s --until $u -f type=container | grep "name=$N" | sed 's/.*container/container/' | head -3; d events --since $s --until $u --format '{{json .}}' -f event=create | head -1 | sed 's/"time.*//'""",
        "container exec_create", "container die NAME busybox 0",
    ),
    "volumes and networks": (
        """d volume create $N; d volume create -l a=b $N-2; d volume ls -f name=$N; d volume ls -q -f label=a=b -f name=$N; d volume inspect $N -f '{{.Name}} {{.Driver}} {{.Scope}} {{json .Options}} {{json .Labels}}'
        d volume create $N; d run --rm -v $N:/v busybox sh -c 'echo kept >/v/f'; d run --rm -v $N:/v:ro busybox sh -c 'cat /v/f; echo >/v/g'; d run -d --name $N -v $N:/v busybox sleep 99
        d volume rm $N; echo $?; i '{{range .Mounts}}{{.Type}} {{.Name}} {{.Destination}} {{.RW}} {{.Driver}} {{.Mode}} {{.Propagation}}{{end}}'; d rm -f $N; d volume rm $N $N-2; d volume rm $N; echo $?
        d volume inspect nope; echo $?; d volume create bad/name; echo $?; d volume rm -f nope; echo $?; d volume ls -f nope=x; echo $?; d volume create -d nope x; echo $?
        d volume ls --format '{{.Name}} {{.Mountpoint}}' -f name=nope; d volume inspect x; d volume create -o type=nope $N-3 >/dev/null; echo $?; d volume rm $N-3
        d network ls --format '{{.Name}} {{.Driver}} {{.Scope}}' | sort; d network ls -q | wc -l; d network ls -f driver=null; d network inspect none -f '{{.Name}} {{.Driver}} {{.Scope}} {{.Internal}} {{.IPAM.Driver}}'
        d network inspect nope; echo $?; d network inspect bridge -f '{{range .IPAM.Config}}{{len .Subnet | lt 5}}{{end}} {{json .Containers}}'; d network rm bridge; echo $?; d network rm nope; echo $?; d network ls -f nope=x
        d run --rm --network nope busybox true; echo $?; d run --rm --network host busybox true; echo $?; d run --rm --network none busybox ls /sys/class/net; d run --rm busybox ls /sys/class/net""",
        "^kept$", "Read-only file system", "volume is in use", "^none null local$",
    ),
    "attach, create and start": (
        """d create --name $N busybox sh -c 'echo hi; echo err >&2; exit 4'; d start -a $N; echo $?; d start $N; d wait $N; d attach $N; echo $?; d logs $N 2>/dev/null
        d create -i --name $N-2 busybox sh -c 'read x; echo got $x; exit 6'; echo word | d start -ai $N-2; echo $?; d start -a $N-no; d create busybox:nope 2>/dev/null; echo $?
        d run -d --name $N-3 busybox sh -c 'sleep 0.7; echo late; exit 5'; d attach $N-3; echo $?; d attach nope; echo $?; d run -d --name $N-4 busybox sleep 99; d pause $N-4; d attach $N-4; echo $?
        d start -a $N $N-2; echo $?; d create --name $N-5 busybox nope; d start $N-5; echo $?; d start -a $N-5; echo $?; d inspect -f '{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}' $N-5; d start nope $N; echo $?
        d run --cidfile cid --name $N-6 busybox true; wc -c <cid; d run --cidfile cid busybox true; echo $?; d run -a stderr --name $N-7 busybox sh -c 'echo out; echo err >&2'; d create --help | head -3 >/dev/null""",
        "^hi$", "^got word$", "^late$", "^5$",
    ),
    "info, version, df": (
        """d version --format '{{.Server.Os}}/{{.Server.Arch}}'; d version --format '{{.Client.Version}}' | wc -l; d info --format '{{.OSType}} {{.Architecture}} {{.NCPU}} {{.MemTotal}} {{.KernelVersion}} {{.Driver}} {{.LoggingDriver}} {{.CgroupDriver}} {{.CgroupVersion}} {{.Swarm.LocalNodeState}} {{.OperatingSystem}}'
        d system df | head -1; d system df --format '{{.Type}}'; d system df -v | grep -E '^[A-Z]'; d version --format '{{.Nope}}' >/dev/null 2>&1; echo $?; d info --format '{{.Nope}}' >/dev/null 2>&1; echo $?""",
        "^linux/", "^Images$",
    ),
    "prunes": (
        """d run --name $N busybox true; d create --name $N-2 -l a=$N busybox true; d volume create $N; d run --rm -v $N:/v busybox true
        d tag busybox $N:x; d rmi $N:x; d container prune -f --filter label=a=$N | sed 1,2d; d ps -aq -f name=$N | wc -l; d container prune -f --filter nope=x; echo $?
        d volume prune -f --filter label=none; d volume ls -q -f name=$N; d image prune -f --filter label=none; d network prune -f; d builder prune -f 2>/dev/null
        d system prune -f --filter label=none; echo $?; d system prune -af --filter label=none; echo $?; d system prune -f --volumes --filter label=none; echo $?
        echo n | d system prune 2>&1 | grep -c '^  - '; d volume rm $N""",
        "^Total reclaimed space: 0B$", "^0$",
    ),
    "what is not there yet": (
        "d node ls >/dev/null 2>&1; echo $?; d service ls >/dev/null 2>&1; echo $?",
        "^1$",
    ),
}  # fmt: skip

_PREFIXES = r"(?m)^(docker|minirt|Error)( \w+)?: (Error response from daemon: )?|^Error response from daemon: "
OURS = [  # more that is the same, between docker and our command
    (_PREFIXES, "", "our command says by its name who speaks"),
    (r"(?m)^(Usage: |Run 'docker|See '(docker|minirt)).*$", "", "each has its own pages of help"),
    (r"'(docker|minirt) (\w+)' (requires|accepts)", r"\2' \3", "the same"),
    (r"\n+", "\n", "the same"),
]
# What of it our command is held against docker's: the others use templates and verbs that it has not.
COMMAND = {
    "run", "run -d, logs", "exec", "ps", "stop, start, kill, restart, pause, rename, wait", "attach, create and start",
    "top, stats, port, update", "save, load, tag, history, rmi, images", "push, pull, login",
}  # fmt: skip
OLDER = {
    "prunes",
    "push, pull, login",
    "run",
    "exec",
    "ps",
    "inspect",
    "events",
    "attach, create and start",
    "info, version, df",
}
_TAR = r"(Error response from daemon: )?Error processing tar file\(exit status 1\): unexpected EOF"
_OUR_TAR = "Error response from daemon: archive ends in the middle of a header"
_MODES = ": networks other than bridge, host, none, pasta, slirp4netns and container:<name|id> are not supported"
# way: script: (pattern in what docker says, what ours says there, reason). The way is the daemon, or the command.
DIFFERENT: dict[str, dict[str, list[tuple[str, str, str]]]] = {
    "daemon": {
        "exec": [("^nope: 126$", "nope: 127", "a newer dockerd's exit status")],
        "ps": [
            ("no such container nope", "No such container: nope", "as all others"),
            (r'strconv.Atoi: parsing "x": invalid syntax', "invalid filter 'exited=x': a number is wanted", "plainer"),
        ],
        "stop, start, kill, restart, pause, rename, wait": [
            (
                "You cannot remove a running container ID. Stop the container before attempting removal or force",
                'cannot remove container "/NAME": container is running: stop the container before removing or force',
                "a newer dockerd's words",
            ),
            ("Cannot kill .*signal 99$", "Invalid signal: 99", "as for other words that are no signal"),
        ],
        "inspect": [
            ('"NetworkMode":"default"', '"NetworkMode":"bridge"', "a newer dockerd resolves it, too"),
            ('"CgroupnsMode":"host"', '"CgroupnsMode":"private"', "docker's own default on cgroup v2"),
            ('"Runtime":"runc"', '"Runtime":"minirt"', "it is ours that runs it"),
            (
                r'"/proc/asound",\n"/proc/acpi",',
                r'"/proc/acpi",\n"/proc/asound",\n"/proc/interrupts",',
                "a newer dockerd's list",
            ),
            (r'"/sys/firmware"\]', r'"/sys/firmware",\n"/sys/devices/virtual/powercap"]', "the same"),
            ("overlay2", "overlay", "the name of our driver"),
            ("^  1 CapAdd$", r"  1 BundlePath\n  1 CapAdd", "where the OCI bundle is, for the course"),
        ],
        "diff, commit, export, import": [(_TAR, _OUR_TAR, "ours says what is wrong")],
        "save, load, tag, history, rmi, images": [
            (rf"(?s)(No such image: nope)$(.*?)^{_TAR}", rf"\1:latest\2{_OUR_TAR}", "the name as all others; as above"),
        ],
        "push, pull, login": [
            (
                r"(?s)^1: Pulling from NAME/app\nDigest: sha256:ID\nStatus: Image is up to date for \S+\n(\S+NAME/app:1)\n0\n(.*)"
                "(?=Error response from daemon: manifest for)",
                r"1: Pulling from NAME/app\n1\n\2image with reference \1 was found but does not match the specified "
                "platform: wanted linux/arm64, actual: linux/amd64\n",
                "a newer dockerd looks at an image without an index, too",
            ),
            ("manifest unknown: manifest unknown", "manifest unknown", "said once"),
        ],
        "volumes and networks": [
            ('missing required option: "device"', r"a volume with options (type) is not supported", "there are none"),
            (
                "^(docker: .*nope not found)(.?)$",
                rf"\1{_MODES}\2",
                "ours says which there are",
            ),
        ],
        "info, version, df": [("overlay2", "overlay", "the name of our driver")],
    },
    "command": {
        "run": [(r" \(library/Busybox\)", "", "what was typed has no library/")],
        "run -d, logs": [
            ('invalid value for "since": .*', "'nope' is no time: write 10m, TIME, or seconds since 1970", "plainer")
        ],
        "stop, start, kill, restart, pause, rename, wait": [
            (r"^failed to (rename|start) contain.*\n", "", "the reason is told, once"),
            ('strconv.ParseInt: parsing "x": invalid syntax', "not a number", "plainer"),
        ],
        "save, load, tag, history, rmi, images": [
            ("Error parsing reference: .*repository/tag: ", "", "the reason is told, once"),
            ("open nope: (no such .*)", r"\1: nope", "as of all other files"),
        ],
        "attach, create and start": [("^failed to start containers: .*\n", "", "the reason is told, once")],
    },
}


def _clients() -> dict[str, str]:
    """The docker commands of this machine, newest first: `docker VERSION` and the path."""
    found: dict[str, str] = {}
    for folder in os.environ["PATH"].split(":"):
        if os.access(path := f"{folder}/docker", os.X_OK):
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            if version := re.search(r"version (\d+\.\d+)", said):
                found.setdefault(f"docker {version[1]}", path)
    return dict(sorted(found.items(), reverse=True))


CLIENTS = _clients()
WAYS = [*CLIENTS, "minirt"] if CLIENTS else ["docker"]


@dataclass(frozen=True)
class Daemons:
    """A dockerd, and ours beside it, in the same network namespace."""

    real: Dockerd
    ours: str
    registry: str

    def both(self, way: str) -> Both:
        require("docker")
        newest = next(iter(CLIENTS.values()))
        theirs = f"unix://{self.real.folder}/docker.sock"
        docker = Side((CLIENTS.get(way, newest), "-H", theirs))
        minirt = Side((MINIRT,), f"MINIRT_HOST={theirs}") if way == "minirt" else Side((CLIENTS[way], "-H", self.ours))
        return Both(self.real.folder / "test", docker, minirt, self.registry)


@pytest.fixture(scope="module")
def daemons() -> Iterator[Daemons]:
    if os.geteuid():
        pytest.skip("dockerd needs root")
    for peer in ("dockerd", "docker", "runc", "bash", "unshare", "nsenter", "setpriv", "ip", "iptables"):
        require(peer)
    with dockerd.started() as real, real.registry() as registry:
        folder = real.folder / "minirt"
        folder.mkdir(mode=0o700)
        host = f"unix://{folder}/sock"
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "MINIRT_HUB": "embedded"}
        words = real.inside("setpriv", "--pdeathsig", "TERM", MINIRT, "-H", host, "--root", f"{folder}/root", "daemon")
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                assert process.stdout and process.stdout.readline()
                found = Daemons(real, host, registry)
                here = ["docker", "-H", host]
                for command in here, real.command():
                    subprocess.run([*command, "import", "-", "busybox"], input=busyboxes.image(), check=True)
                subprocess.run([*here, "pull", "-q", "hello-world"], check=True)
                saved = subprocess.run([*here, "save", "hello-world"], check=True, capture_output=True).stdout
                real.docker("load", stdin=saved)
                yield found
                left = subprocess.run([*here, "ps", "-aq"], capture_output=True, text=True, check=True).stdout.split()
                subprocess.run([*here, "rm", "-fv", *left], check=bool(left), capture_output=True)
            finally:
                process.terminate()
                said = process.communicate(timeout=30)[1].decode()
        assert "Traceback" not in said, said


def told(way: str, what: str) -> bool:
    """An older docker differs in what it asks for, not in how files and streams are carried."""
    return what in COMMAND if way == "minirt" else what in OLDER or way == WAYS[0]


@pytest.mark.parametrize(("way", "what"), [(way, what) for way in WAYS for what in SCRIPTS if told(way, what)])
def test_same_words(daemons: Daemons, way: str, what: str) -> None:
    both = daemons.both(way)
    script, *expected = SCRIPTS[what]
    with ThreadPoolExecutor(1 if way == "minirt" else 2) as pool:
        theirs, ours = pool.map(lambda runtime: both.said(runtime, script), both.names)
    for pattern in expected:
        assert re.search(pattern, theirs, re.MULTILINE), f"{pattern!r} is not in:\n{theirs}"
    if way == "minirt":
        for pattern, replacement, _ in OURS:
            theirs, ours = (re.sub(pattern, replacement, text) for text in (theirs, ours))
    for pattern, replacement, _ in DIFFERENT["command" if way == "minirt" else "daemon"].get(what, []):
        theirs, times = re.subn(pattern, replacement, theirs, flags=re.MULTILINE)
        assert times, f"no longer needed: {pattern!r}"
    different = difflib.unified_diff(theirs.splitlines(), ours.splitlines(), *both.names, n=1, lineterm="")
    assert "\n".join(different) == ""


_OLD_API = """d version --format '{{.Client.APIVersion}}'; d run --name $N-3 busybox sh -c 'echo out; exit 3'; echo $?
d rm $N-3; d run -d --name $N busybox sh -c 'echo up; exec sleep 99'; d exec $N sh -c 'echo in; exit 4'; echo $?; d ps -f name=$N
until d logs $N | grep up; do :; done; i '{{.State.Status}} {{.HostConfig.NetworkMode}}' | cut -c1-7; d top $N -o pid,cmd | tail -1 | cut -d' ' -f2-
d stats --no-stream --format '{{.Name}} {{.PIDs}}' $N; echo x >x; d cp x $N:/x; d cp $N:/x - | tar t; d diff $N | grep x; d rename $N $N-2
d pause $N-2; d unpause $N-2; d commit $N-2 $N:1; d rmi $N:1 | head -1; d volume create $N; d volume ls -qf name=$N; d volume rm $N
d network ls -q | wc -l; d images --format '{{.Repository}}' | grep busy; d system df --format '{{.Type}}'; d container prune -f
d stop -t 0 $N-2; d wait $N-2; d start $N-2; d kill $N-2; d rm -f $N-2; d info --format '{{.OSType}}'; d history -q hello-world"""


@pytest.mark.parametrize("version", ["1.24", "1.30", "1.41"])
def test_an_older_api_s_words(daemons: Daemons, version: str) -> None:
    """What the newest command says to a daemon where it may use no more than this.

    Without --rm: before 1.25 the command removes by itself, and by chance is over before it has.
    """
    both = daemons.both(WAYS[0])
    for name, side in both.sides.items():
        both.sides[name] = replace(side, environment=f"DOCKER_API_VERSION={version}")
    theirs, ours = (both.said(name, _OLD_API) for name in both.names)
    assert re.match(rf"{version}\nout\n3\nNAME-3\nID\nin\n4\n", ours), ours
    different = difflib.unified_diff(theirs.splitlines(), ours.splitlines(), *both.names, n=1, lineterm="")
    assert "\n".join(different) == ""


_NEW = """for _ in $(seq 100); do [ "$(stty size)" = "33 77" ] && sleep 0.05; done; stty size"""
_WAIT = """until [ -n "$(stty size 2>/dev/null | grep -v '^0 ')" ]; do :; done"""
# name: (container's options and command, what is typed when, what must be seen …)
SESSIONS: dict[str, tuple[list[str], list[tuple[str, bytes]], tuple[str, ...]]] = {
    "keys, ctrl-c, a new size, the status": (
        ["run", "-it", "--rm", "--name", "NAME", "busybox", "sh", "-c",
         f"{_WAIT}; trap 'echo caught' INT; stty size; echo ready; sleep 9; echo again; read x; {_NEW}; exit 9"],
        [("ready", b"\x03"), ("again", b"word\n")],
        ("caught", "33 77", "44 99", "^exit 9"),
    ),
    "a shell": (
        ["run", "-it", "--rm", "--name", "NAME", "-e", "PS1=prompt: ", "busybox", "sh"],
        [("prompt: ", b"""PS1="nex""t: "; echo $((6*7)); tty\n"""), ("next: ", b"\x04")],
        ("^42", "^exit 0"),
    ),
    "detach keys": (
        ["run", "-it", "--name", "NAME", "busybox", "sh", "-c", "echo ready; exec sleep 99"],
        [("ready", b"\x10"), ("ready", b"\x11")],
        ("^exit 0", "^running"),
    ),
    "detach keys of one's own": (
        ["run", "-it", "--detach-keys=ctrl-a,x", "--name", "NAME", "busybox", "sh", "-c", "echo ready; exec sleep 99"],
        [("ready", b"\x01x")],
        ("^exit 0", "^running"),
    ),
    "a command that is not there": (["run", "-it", "--rm", "--name", "NAME", "busybox", "nope"], [], ("^exit 127",)),
}  # fmt: skip
LATER: dict[str, tuple[list[str], list[tuple[str, bytes]], tuple[str, ...]]] = {
    "exec": (
        ["exec", "-it", "-e", "A=b", "-u", "web", "-w", "/tmp", "NAME", "sh", "-c",
         f"{_WAIT}; stty size; echo $A; id; pwd; echo ready; read x; {_NEW}; tty; exit 8"],
        [("ready", b"word\n")],
        ("33 77", "44 99", "^uid=1000", "^/tmp", "^exit 8"),
    ),
    "exec, detach keys": (
        ["exec", "-it", "NAME", "sh", "-c", "echo ready; exec sleep 98"], [("ready", b"\x10\x11")],
        ("read escape sequence", "^exit 1", "^running"),
    ),
    "attach": (["attach", "NAME"], [("", b"typed\n"), ("got typed", b"end\n")], ("got typed", "^exit 7", "^exited")),
    "attach, detach keys": (
        ["attach", "--detach-keys", "q", "NAME"], [("", b"typed\n"), ("got typed", b"q")],
        ("read escape sequence", "^exit 1", "^running"),
    ),
    "logs -f, ctrl-c": (["logs", "-f", "NAME"], [("up", b"\x03")], ("^up", "^running")),
}  # fmt: skip


@pytest.mark.parametrize("what", [*SESSIONS, *LATER])
@pytest.mark.parametrize("way", WAYS)
def test_same_on_a_terminal(daemons: Daemons, way: str, what: str) -> None:
    words, typed, expected = (SESSIONS | LATER)[what]
    both = daemons.both(way)

    def play(runtime: str) -> str:
        side, name = both.sides[runtime], f"tty-{runtime}"

        def run(*words: str) -> str:
            return subprocess.run([*side.argv, *words], capture_output=True, text=True, check=False).stdout

        try:
            if what in LATER:
                loop = "echo up; while read x; do echo got $x; [ $x = end ] && exit 7; done"
                run("run", "-dit", "--name", name, "busybox", "sh", "-c", loop)
            keys = [(seen.replace("NAME", name), data) for seen, data in typed]
            size = (44, 99) if any("44 99" in each for each in expected) else None
            ours = ["setsid", "-w", "-c"] if what == "logs -f, ctrl-c" else []  # our own terminal
            said, code = on_terminal(
                [*ours, *side.argv, *(name if word == "NAME" else word for word in words)], keys, size
            )
            state = run("inspect", "-f", "{{.State.Status}}", name)
        finally:
            run("rm", "-fv", name)
        text = f"{said}\nexit {code}\n{state}".replace("\r", "").replace(name, "NAME")
        text = re.sub(r"child \d+ did", "child N did", text)  # of the terminal's own setsid
        text = re.sub(
            r"(\w+: )\x1b\[6n\1", r"\1", text.replace("prompt: prompt: ", "prompt: ")
        )  # a line editor's redrawing
        for pattern, replacement, _ in (*SAME, *(OURS if way == "minirt" else ())):
            text = re.sub(pattern, replacement, text)
        return text

    with ThreadPoolExecutor(2) as pool:
        theirs, ours = pool.map(play, both.names)
    for pattern in expected:
        assert re.search(pattern, ours, re.MULTILINE), f"{pattern!r} is not in:\n{ours}\nbut in:\n{theirs}"
    assert ours == theirs


@pytest.mark.parametrize("way", WAYS)
def test_pull_with_bars(daemons: Daemons, way: str) -> None:
    """The same words for each layer, with bars on a terminal; then all is there already; and what is not there."""
    both = daemons.both(way)
    with daemons.real.registry() as domain:
        name = f"{domain}/team/app:1"
        with tempfile.TemporaryDirectory(dir=daemons.real.folder) as folder:
            Path(folder, "data").write_bytes(os.urandom(30 << 20))
            data = subprocess.run(["tar", "c", "-C", folder, "data"], check=True, capture_output=True).stdout
            daemons.real.docker("import", "-", "base", stdin=data)
            daemons.real.docker("create", "--name", "big", "base", "nothing")
            daemons.real.docker("cp", f"{folder}/data", "big:/again")
        for words in ["commit", "big", name], ["push", name], ["rm", "big"], ["rmi", name, "base"]:
            daemons.real.docker(*words)
        screens: list[list[str]] = []
        for side in both.sides.values():
            wide = ["sh", "-c", 'stty cols 140; exec "$@"', "sh", *side.argv]
            said, code = on_terminal([*wide, "pull", name], [])
            assert code == 0, said
            assert re.search(r"Downloading +\[=*>", said) and re.search(r"Extracting +\[=*>", said), said[:3000]
            again, wrong = (
                subprocess.run([*side.argv, "pull", each], capture_output=True, text=True, check=False)
                for each in (name, f"{domain}/team/nope")
            )
            screens.append([*_screen(said), again.stdout, str(wrong.returncode)])
            subprocess.run([*side.argv, "rmi", name], capture_output=True, check=True)
    known = "[0-9a-f]{12}: Already exists\n"  # ours tells it of each layer again, as the course shows
    assert bool(re.search(known, screens[1][-2])) == (way != "minirt")
    screens[1][-2] = re.sub(known, "", screens[1][-2])
    assert screens[0] == screens[1]
    assert sum("Pull complete" in line for line in screens[0]) == 2


def _screen(said: str) -> list[str]:
    """What stands on a terminal in the end: lines, the cursor goes up and down, and lines are erased."""
    lines, row = [""], 0
    for up, down, erased, end, text in re.findall(
        r"\x1b\[(\d*)A|\x1b\[(\d*)B|(\x1b\[(?:\d*K|J))|(\r?\n|\r)|([^\x1b\r\n]+)", said
    ):
        if up:
            row = max(0, row - int(up))
        elif down:
            row += int(down)
        elif erased.endswith("J"):  # all that is below
            lines[row:] = [""]
        elif erased:  # without a number only what is right of the text
            lines[row] = "" if "2" in erased else lines[row]
        elif end:
            row += "\n" in end
        else:
            lines[row] = text
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines if line.strip()]
