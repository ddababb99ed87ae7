"""Files, volumes, networks and prunes on the command line: ours and docker's say the same, whatever daemon they drive.

Each script runs with `d` as the real docker command on a dockerd, as our command on that dockerd, and as our command on
a daemon of ours; what they print, their exit statuses and what lies on disk afterwards is compared.
Source: docker/cli cli/command/container/cp.go, moby pkg/archive/copy.go (the table of copies is theirs).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import busyboxes
import pytest
from dockerd import Dockerd
from peers import require

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux"),
    pytest.mark.skipif(hasattr(os, "getuid") and os.getuid() != 0, reason="compared as root"),
]
OURS = f"{sys.executable} -m minirt"
SAME = [
    (r"(?m)^minirt: started the daemon.*\n", ""),
    (r"\b[0-9a-f]{64}\b", "ID"),
    (r"\b[0-9a-f]{12}\b", "SHORT"),
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
    (r"(?m)^(?:minirt|docker): ", ""),
    (r"(?m)^(Error response from daemon|ERROR): ", ""),
    (r"(?m)^Error processing tar file\(exit status 1\): ", ""),
    (r"(?m)^time=.* (to tar|tar writer): io: .*\n", ""),  # docker's own noise
    (r"(?m)^lstat (.*): (no such file or directory|not a directory)$", r"\2: \1"),
    (r"[Ii](nvalid filter '[^']+').*", r"i\1"),
    (r"\n*\n(Run|See) '(docker|minirt) .*(?=\n)", ""),
    (r"[ \t]+", " "),
]


@dataclass
class Side:
    """A command, and the daemon it drives."""

    name: str
    command: str
    folder: Path

    def run(self, script: str, terminal: bool = False) -> str:
        """What it says (on a terminal), with what differs from run to run taken out."""
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        imported = ["sh", "-c", f"{self.command} import -c 'CMD [\"sh\"]' - busybox"]
        subprocess.run(imported, input=busyboxes.image(), check=True, capture_output=True)
        words = f'd() {{ {self.command} "$@"; }}; t() {{ echo "== $*"; "$@" 2>&1; echo "-> $?"; }}\n'
        words += 'e() { "$@" >/dev/null 2>&1; echo "$*: $?"; }\n'  # for what we say in words of our own
        command = ["sh", "-c", words + script]
        done = subprocess.run(
            ["script", "-qec", shlex.join(command), "/dev/null"] if terminal else command,
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        said = (done.stdout + done.stderr).replace(str(work), "WORK").replace(str(self.folder), "FOLDER")
        for pattern, instead in SAME:
            said = re.sub(pattern, instead, said)
        return said


@pytest.fixture
def sides(dockerd: Dockerd, root: Path, tmp_path: Path) -> Iterator[list[Side]]:
    docker = shutil.which("docker", path="/usr/local/bin") or require("docker")
    host = f"unix://{dockerd.folder}/docker.sock"
    yield [
        Side("docker", f"{docker} -H {host}", tmp_path / "docker"),
        Side("minirt on docker", f"env MINIRT_HOST={host} {OURS}", tmp_path / "both"),
        Side("minirt", OURS, tmp_path / "ours"),
    ]
    left = dockerd.docker("ps", "-aq").stdout.decode().split()
    dockerd.docker("rm", "-fv", "none", *left, check=False)


SCRIPTS = {
    "copies in": """
        mkdir -p src/sub; echo one >src/a; echo two >src/sub/b; ln -s a src/link; ln -s src dirlink; echo f >file
        ln src/a src/hard; chmod 4755 src/sub/b; ln -s /nowhere broken; mkfifo src/pipe
        d run -d --name cpin busybox sh -c 'mkdir /dir; echo x >/there; ln -s dir /tolink; ln -s there /tofile
        sleep 1000'
        sleep 1
        look() { d exec cpin find "$@" -exec stat -c '%n %F %a %u:%g %h' {} + | sort; }
        for target in /dir /dir/. /new1 /tolink/ /tofile /no/such /new2/; do
          for source in file src src/. dirlink/ broken nothing; do
            t d cp $source cpin:$target
          done
          look /dir; d exec cpin rm -rf /dir /new1 /new2 /there; d exec cpin sh -c 'mkdir /dir; echo x >/there'
        done
        for source in dirlink src/link broken dirlink/.; do t d cp -L $source cpin:/dir; look /dir; done
        t d cp -a file cpin:/dir/owned; t d cp file cpin:relative; look /dir/owned /relative
        chown 123:456 file; t d cp -a file cpin:/dir/owned2; t d cp file cpin:/dir/roots; look /dir/owned2 /dir/roots
        t d cp file cpin:/dev/null; t d cp file cpin:/there/x; t d cp file nobody:/; t d cp - cpin:/there </dev/null
        tar c src | t d cp - cpin:/dir; look /dir/src; t d cp - cpin:/no </dev/null; t d cp -q file cpin:/q
        t d cp file file; t d cp cpin:/a cpin:/b; t d cp '' cpin:/; t d cp cpin:/ ''; e d cp only
        d rm -f cpin""",
    "copies out": """
        d run -d --name cpout -v vol:/vol busybox sh -c 'mkdir -p /dir/sub; echo one >/dir/a; echo two >/dir/sub/b
          ln -s a /dir/link; ln -s dir /dirlink; ln -s /nowhere /broken; ln /dir/a /dir/hard; chmod 4711 /dir/sub/b
          mkfifo /dir/pipe; echo v >/vol/v; chown 5:6 /dir/a; mkdir /dir/locked; chmod 500 /dir/locked
          touch -d "2001-02-03 04:05:06" /dir/sub; sleep 1000'
        sleep 1
        look() { find "$@" -exec stat -c '%n %F %a %u:%g %h %Y' {} + | sed 's/ [12][0-9]\\{9\\}$//' | sort; }
        for target in here here/. new1 tolink tofile no/such new2/ .; do
          for source in /dir /dir/. /dir/a /dirlink /dirlink/ /nothing /vol; do
            mkdir -p T/here; (cd T; echo x >there; ln -s here tolink; ln -s there tofile
            t d cp cpout:$source $target; look .)
            rm -rf T
          done
        done
        for source in /dirlink /dirlink/ /dir/link /broken; do mkdir here; t d cp -L cpout:$source here; look here
        rm -rf here; done
        mkdir here; t d cp cpout:dir/a here/relative; t d cp cpout:/dir ./here:colon; look here here:colon
        t d cp cpout:/dir/a /dev/null; t d cp nobody:/x here; t d cp cpout:/ full; ls full/dir full/bin/busybox
        d cp cpout:/dir - | tar tv --numeric-owner | sed 's/ 20[0-9-]* [0-9:]* / /' | sort; t d cp cpout:/nothing -
        d stop -t 0 cpout; t d cp cpout:/vol/v stopped; cat stopped; d rm -f cpout; d volume rm vol""",
    "changes": """
        N=changed; d run --name $N -v vol2:/vol busybox sh -c 'echo 1 >/new; rm /bin/ls; echo x >>/etc/plain
        echo >/vol/v'
        d diff $N | sort; t d diff nobody; t d diff ''; e d diff; d export $N | tar t | grep -c . | sed 's/.*/some/'
        d export -o out.tar $N; tar t -f out.tar new vol bin/sh etc/plain; tar t -f out.tar bin/ls; t d export nobody
        e d export -o no/such.tar $N
        t d commit -a Ada -m 'a word' -c 'ENV A=1' -c 'LABEL x=y' -c 'CMD ["cat", "/new"]' $N img:v1; d run --rm img:v1
        d inspect -f '{{.Author}} {{.Comment}} {{json .Config.Labels}} {{.Config.Cmd}}' img:v1
        t d commit $N Img; t d commit nobody img; e d commit $N img@sha256:1234; t d commit -c 'RUN x' $N; e d commit
        d commit -p=false $N | sed 's/.*:.*/an id/'; t d commit $N a/b/c:tag
        d image inspect -f '{{.RepoTags}}' a/b/c:tag
        t d import -m 'imported' -c 'ENV B=2' out.tar imp:v1; d inspect -f '{{.Comment}} {{.Config.Env}}' imp:v1
        t d import - imp:v2 <out.tar; t d image import out.tar; e d import nothing.tar x; t d import out.tar Bad/Name
        echo no tar at all >bad.tar; d import bad.tar bad >/dev/null 2>&1; echo $?; t d run --rm imp:v2 cat /new
        d rm $N; d volume rm vol2; d rmi -f img:v1 imp:v1 imp:v2 a/b/c:tag >/dev/null
        d image prune -f >/dev/null""",
    "volumes": """
        t d volume create v1; t d volume create --label a=b --label c v2; t d volume create v10
        t d volume create -d x v3
        t d volume create 'bad/name'; t d volume create v1; d volume create | grep -c .; t d volume ls -f name=v
        t d volume ls -q -f label=a=b; t d volume ls --format '{{.Name}}|{{.Driver}}|{{.Labels}}|{{.Scope}}' -f name=v
        t d volume ls -f dangling=maybe; t d volume ls -f what=1
        t d volume inspect -f '{{.Name}} {{json .Labels}}' v1 v2
        t d volume inspect nothing; t d inspect --type volume -f '{{.Scope}}' v1; t d inspect -f '{{.Driver}}' v2
        t d inspect --type volume nothing; t d inspect --type network nothing
        d run --name user -v v1:/v -v /unnamed busybox sh -c 'echo data >/v/f; echo un >/unnamed/f'
        t d run --rm --volumes-from user busybox cat /v/f /unnamed/f
        t d run --rm --volumes-from user:ro busybox sh -c 'echo no >/v/f'
        t d run --rm --volumes-from nobody busybox true
        d create --volumes-from user --name heir busybox true >/dev/null
        d inspect -f '{{.HostConfig.VolumesFrom}}' heir
        d rm heir >/dev/null; t d volume rm v1; d ps -a --format '{{.Names}} {{.LocalVolumes}}'
        d inspect -s -f '{{.SizeRw}}' user | grep -c .; d inspect --type image -s busybox 2>&1 >/dev/null
        t d volume rm v2 nothing; t d volume rm -f nothing; d rm -v user; t d volume ls -qf name=v
        d volume ls -q | wc -l
        t d volume rm v1 v10; t d volume create keep
        older='s/remove all local/remove anonymous local/'  # before API 1.42
        echo n | t d volume prune | sed "$older"; echo; echo y | d volume prune --filter label=none | sed "$older"
        t d volume rm keep
        for v in $(d volume ls -q); do d volume rm $v >/dev/null; done""",
    "networks": """
        t d network ls; t d network ls -q -f name=host; t d network ls --no-trunc --format '{{.Name}} {{.ID}}'
        t d network ls -f driver=null; t d network ls -f what=1
        t d network inspect -f '{{.Name}} {{.Driver}}' bridge host
        t d network inspect nothing; t d inspect --type network -f '{{.Scope}}' none; t d inspect -f '{{.Name}}' host
        t d network prune -f; echo n | t d network prune""",
    "prunes": """
        d run --name p1 busybox true; d run -d --name p2 busybox sleep 1000; d create --label a=b --name p3 busybox
        echo
        t d container prune -f --filter label=a=b; d ps -aq | wc -l; echo n | t d container prune; echo
        t d container prune -f --filter what=1; echo y | d container prune >/dev/null; d ps -a --format '{{.Names}}'
        d commit p2 temp >/dev/null; d commit -m other p2 temp >/dev/null
        t d image prune --force --filter label=none; d image prune -f | sed 's/space: .*/space/; /^deleted/d' | sort
        echo n | t d image prune -a; echo; d image prune -af | sed 's/space: .*/space/
        /^deleted/d'
        d run --name p4 -v /un -v named:/n busybox true; d system prune -f | sed 's/space: .*/space/'
        d volume ls -q | wc -l
        echo n | t d system prune | grep -v 'build cache\\|layers and downloads'; d volume ls -q | wc -l
        echo n | t d system prune -a --volumes | sed 's/all anonymous/all/' | grep -v 'build cache\\|layers and'
        t d system prune --volumes --filter until=1h
        echo n | t d system prune --filter label=a --filter label=b | grep -v 'build cache\\|layers and'
        d rm -f p2; d system prune -f --volumes >/dev/null; d volume rm -f named; d volume ls -q
        d rmi busybox >/dev/null; d images -q""",
}


@pytest.fixture
def here(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, and a container `box` that runs in a daemon of ours."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    ours("import", "-", "busybox", stdin=busyboxes.image())
    ours("run", "-d", "--name", "box", "busybox", "sh", "-c", "mkdir -p /d/s; echo x >/d/f; ln -s / /d/l; sleep 1000")
    return folder


def ours(*words: str, stdin: bytes = b"", status: int = 0) -> str:
    """Our command; what it prints, or what it says is wrong."""
    done = subprocess.run([*OURS.split(), *words], input=stdin, capture_output=True, timeout=120)
    assert done.returncode == status, done.stderr
    said = done.stderr.decode().partition("minirt: ")[2] if status else done.stdout.decode()
    return said.rstrip("\n")


def test_files_go_in_and_out(here: Path) -> None:
    (here / "a").write_text("one")
    (here / "a").chmod(0o640)
    ours("cp", "a", "box:/d/s")
    ours("cp", "box:/d/.", "back")
    assert (here / "back/s/a").read_text() == "one" and (here / "back/s/a").stat().st_mode & 0o777 == 0o640
    assert os.readlink(here / "back/l") == "/" and (here / "back/f").read_text() == "x\n"
    data = subprocess.run([*OURS.split(), "cp", "box:/d", "-"], capture_output=True, check=True).stdout
    ours("exec", "box", "mkdir", "/to")
    ours("cp", "-", "box:/to", stdin=data)
    assert ours("exec", "box", "cat", "/to/d/s/a") == "one"
    assert {"A /to", "A /d", "A /d/s/a"} <= set(ours("diff", "box").splitlines())
    ours("cp", "a", "box:/d/f/x", status=1)
    assert ours("cp", "box:/no", ".", status=1) == "Could not find the file /no in container box"
    assert ours("cp", "a", "back", status=1).startswith("must specify at least one container source")


def test_a_container_s_links_lead_no_copy_elsewhere(here: Path) -> None:
    """What stands in the destination's folder as a link is replaced or refused, never gone through."""
    outside = here / "outside"
    outside.mkdir()
    (here / "to").mkdir()
    os.symlink(outside, here / "to/d")
    ours("cp", "box:/d", "to", status=1)
    assert list(outside.iterdir()) == [] and (here / "to/d").is_symlink()


@pytest.mark.slow
def test_on_a_terminal_it_tells_how_much(sides: list[Side]) -> None:
    """The size is the archive's."""
    script = "echo one >f; d create --name tt busybox >id; d cp f tt:/f; d cp tt:/f g; d cp tt:/ - | wc -c; d rm tt"
    said = [re.findall("Successfully copied .*", side.run(script, terminal=True)) for side in sides]
    assert said[0] == said[1] == said[2]
    assert len(said[0]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_they_say_the_same(sides: list[Side], name: str) -> None:
    said = {side.name: side.run(SCRIPTS[name]) for side in sides}
    for side in sides:
        print(f"#### {side.name}\n{said[side.name]}")
    assert said["minirt on docker"] == said["docker"]
    assert said["minirt"] == said["docker"]
