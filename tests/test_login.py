"""Logins: kept as docker keeps them, in the file or by a helper; our command says and writes what docker's does."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import require
from registries import PASSWORD, USER, Scripted, docker_registry
from twins import on_terminal

from minirt.client import Client
from minirt.client.place import socket_path
from minirt.errors import InvalidInput, MinirtError
from minirt.registry.credentials import Credential, Credentials, host

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a daemon needs Linux")
MINIRT = str(Path(sys.executable).with_name("minirt"))
TOKEN = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
HELPER = """#!/bin/sh
# A helper that keeps one login in a file beside it, and says what it was asked.
here=$(dirname "$0"); line=$(cat); echo "$1 $line" >> "$here/asked"
case $1 in
get) test -e "$here/kept" || { echo "credentials not found in native keychain"; exit 1; }; cat "$here/kept" ;;
store) echo "$line" > "$here/kept" ;;
erase) test -e "$here/kept" || { echo "credentials not found in native keychain"; exit 1; }; rm "$here/kept" ;;
esac
"""


@pytest.fixture
def client(root: Path) -> Iterator[Client]:
    with Client(root) as made:
        yield made


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `docker-credential-fake`, which is found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "docker-credential-fake").write_text(HELPER)
    (folder / "docker-credential-fake").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


# --- the file -------------------------------------------------------------------------------------------------------


def test_the_file_keeps_what_else_is_in_it(tmp_path: Path) -> None:
    """Ours to read alone, a link stays a link, and nothing is written where nothing changes."""
    (tmp_path / "dotfiles").mkdir()
    real, path = tmp_path / "dotfiles" / "docker.json", tmp_path / "docker" / "config.json"
    path.parent.mkdir()
    path.symlink_to(real)
    real.write_text(
        json.dumps({"psFormat": "이름", "other": {"b": [1], "a": None}, "auths": {"old.example": {"auth": "eA=="}}})
    )
    real.chmod(0o666)
    kept = Credentials(path)
    assert kept.keep("new.example:5000", Credential(USER, PASSWORD)) == str(path)
    assert path.is_symlink() and stat.S_IMODE(real.stat().st_mode) == 0o600
    assert json.loads(real.read_text()) == {
        "auths": {"old.example": {"auth": "eA=="}, "new.example:5000": {"auth": TOKEN}},
        "psFormat": "이름",
        "other": {"b": [1], "a": None},
    }
    before = real.stat().st_ino
    assert kept.keep("new.example:5000", Credential(USER, PASSWORD)) == "" and real.stat().st_ino == before
    assert kept.look_up("new.example:5000") == Credential(USER, PASSWORD)
    kept.keep("docker.io", Credential(USER, "", "identity"))
    assert json.loads(real.read_text())["auths"]["https://index.docker.io/v1/"] == {
        "auth": base64.b64encode(f"{USER}:".encode()).decode(),
        "identitytoken": "identity",
    }
    assert kept.look_up("docker.io") == Credential(USER, "", "identity")
    assert kept.forget("new.example:5000") == kept.forget("docker.io") == []
    assert json.loads(real.read_text())["auths"] == {"old.example": {"auth": "eA=="}}
    assert [each.name for each in real.parent.iterdir()] == ["docker.json"]


def test_a_new_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "home" / ".docker" / "config.json"
    old = os.umask(0)
    try:
        Credentials(path).keep("a.example", Credential("u", "p"))
    finally:
        os.umask(old)
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path.parent, path)] == [0o700, 0o600]


def test_a_file_that_cannot_be_written_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"auths": {}}')

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InvalidInput, match="cannot keep logins in .*: No space left on device"):
        Credentials(path).keep("a.example", Credential("u", "p"))
    assert path.read_text() == '{"auths": {}}' and [each.name for each in tmp_path.iterdir() if each.is_file()] == [
        "config.json"
    ]
    path.write_text("{")
    with pytest.raises(InvalidInput, match="not valid JSON"):
        Credentials(path).keep("a.example", Credential("u", "p"))
    assert path.read_text() == "{"


@pytest.mark.parametrize(
    ("server", "domain"),
    [
        ("", "docker.io"), ("docker.io", "docker.io"), ("https://index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"), ("https://r.example:5000/v2/", "r.example:5000"),
        ("r.example", "r.example"), ("http://r.example", "r.example"),
    ],
)  # fmt: skip
def test_a_server_is_a_registry(server: str, domain: str) -> None:
    assert host(server) == domain


@pytest.mark.parametrize("how", ["credsStore", "credHelpers"])
def test_a_helper_keeps_it(tmp_path: Path, helper: Path, how: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({"credsStore": "fake"} if how == "credsStore" else {"credHelpers": {"a.example": "fake"}})
    )
    kept = Credentials(path)
    assert kept.look_up("a.example") is None and "has no credentials for a.example" in kept.note
    assert kept.keep("a.example", Credential(USER, PASSWORD)) == "", "nothing to warn of"
    assert json.loads((helper / "kept").read_text()) == {"ServerURL": "a.example", "Username": USER, "Secret": PASSWORD}
    assert PASSWORD not in path.read_text() and TOKEN not in path.read_text()
    assert json.loads(path.read_text())["auths"] == {"a.example": {}}
    assert kept.look_up("a.example") == Credential(USER, PASSWORD)
    kept.keep("a.example", Credential(USER, "", "identity"))
    assert kept.look_up("a.example") == Credential("", identity_token="identity")
    assert kept.forget("a.example") == []
    assert kept.look_up("a.example") is None and json.loads(path.read_text())["auths"] == {}
    asked = [line.split(" ")[0] for line in (helper / "asked").read_text().splitlines()]
    assert asked == ["get", "store", "get", "store", "get", "erase", "erase", "erase", "get"]


def test_a_helper_that_fails_is_told(tmp_path: Path, helper: Path) -> None:
    path = tmp_path / "config.json"
    (helper / "docker-credential-fake").write_text("#!/bin/sh\necho it is locked; exit 3\n")
    path.write_text('{"credsStore": "fake"}')
    kept = Credentials(path)
    with pytest.raises(InvalidInput, match="^docker-credential-fake store: it is locked$"):
        kept.keep("a.example", Credential("u", "p"))
    assert kept.forget("a.example") == ["docker-credential-fake erase: it is locked"] * 3
    path.write_text('{"credsStore": "none-such"}')
    with pytest.raises(InvalidInput, match=r"docker-credential-none-such \(named in .*\): No such file or directory"):
        kept.keep("a.example", Credential("u", "p"))
    path.write_text('{"credsStore": "../../x"}')
    with pytest.raises(InvalidInput, match="is not the name of a credential helper"):
        kept.keep("a.example", Credential("u", "p"))


# --- the command, beside docker's -----------------------------------------------------------------------------------

SCRIPT = """
say() { printf '%s\\n' "$@"; }
d login -u ada -p wrong $R; say $?; say wrong | d login -u ada --password-stdin $R; say $?
say x | d login --password-stdin $R; say $?; d login -u a -p b --password-stdin $R; say $?
say 'correct horse' | d login -u ada --password-stdin $R; say $?
cat $C/config.json; say; stat -c '%a %n' $C $C/config.json
d login $R >/dev/null; say $?; d login -u ada -p 'correct horse' https://$R/v2/; say $?
d logout $R; say $?; cat $C/config.json; d logout $R; d logout
d login 127.0.0.1:1 -u a -p b 2>&1 | grep -c refused; d login a b 2>/dev/null; say $?
say '{"psFormat": "x", "credsStore": "fake"}' > $C/config.json; say 'correct horse' | d login -u ada --password-stdin $R
cat $C/config.json; d logout $R; cat $C/config.json; uniq $B/asked; rm $B/asked
"""


def test_docker_s_words_and_files(client: Client, tmp_path: Path, helper: Path) -> None:
    """docker's command and ours on one daemon of ours: the same lines, statuses, files and calls of helpers."""
    docker = require("docker")
    client.version()
    said = []
    with docker_registry(tmp_path, "htpasswd") as registry:
        for command in f"{docker} -H unix://{socket_path(client.root)}", f"{MINIRT} --root {client.root}":
            folder = tmp_path / "docker"
            folder.mkdir(mode=0o700)
            script = f'd() {{ {command} "$@"; }}; R={registry.domain}; C={folder}; B={helper}\n{SCRIPT}'
            done = subprocess.run(
                ["bash", "-c", script], env=os.environ | {"DOCKER_CONFIG": str(folder)}, capture_output=True, text=True,
                stdin=subprocess.DEVNULL, timeout=120,
            )  # fmt: skip
            error = done.stderr.replace("Error response from daemon: ", "minirt: ").replace("minirt: ", "")
            said.append((done.stdout, [line for line in error.splitlines() if line.strip() and "refused" not in line]))
            for left in folder.iterdir():
                left.unlink()
            folder.rmdir()
    assert said[1][0] == said[0][0]
    if "docs.docker.com/go" in "".join(said[0][1]):  # an older docker has other words for it
        unlike = ("Authenticating with", " Info -> ", "Usage", "Run 'docker", "See '")
        theirs, ours = ([line for line in each[1] if not line.startswith(unlike)] for each in said)
        assert ours == theirs
    assert "Login Succeeded" in said[1][0] and "failed with status: 401 Unauthorized" in "".join(said[1][1])


def test_on_a_terminal(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The password is not echoed; what is there already is used."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with Scripted("basic") as hub:
        words = [MINIRT, "--root", str(client.root), "login", hub.domain]
        typed = [("Username: ", b"ada\n"), ("Password: ", PASSWORD.encode() + b"\n")]
        said, code = on_terminal(words, typed)
        assert code == 0 and "Login Succeeded" in said and PASSWORD not in said, said
        assert Credentials().look_up(hub.domain) == Credential(USER, PASSWORD)
        said, code = on_terminal(words, [])
        assert code == 0 and f"existing credentials... [Username: {USER}]" in said and "Login Succeeded" in said
        said, code = on_terminal([*words[:-1], "-u", "ada", hub.domain], [("Password: ", b"wrong\n")])
        assert code == 1 and "401 Unauthorized" in said
        assert Credentials().look_up(hub.domain) == Credential(USER, PASSWORD), "what did not work is not kept"


# --- the daemon -----------------------------------------------------------------------------------------------------


def test_a_token_in_the_password_s_place(client: Client) -> None:
    """Where the registry gives one, it is kept instead, and opens what the password did."""
    with Scripted() as hub:
        token = client.login({"username": USER, "password": PASSWORD, "serveraddress": hub.domain})
        assert token == "identity"
        assert client.login({"username": USER, "identitytoken": token, "serveraddress": hub.domain}) in ("", token)
        Credentials().keep(hub.domain, Credential(USER, "", token))
        for _ in client.pull("hello-world"):
            pass
        client.tag("hello-world", f"{hub.domain}/private/app:1")
        assert "digest: " in list(client.push(f"{hub.domain}/private/app:1"))[-2]["status"]
        assert ("private/app", "1") in hub.manifests


@pytest.mark.parametrize("auth", ["htpasswd", "token"])
def test_who_is_let_in(client: Client, tmp_path: Path, auth: str) -> None:
    with docker_registry(tmp_path, auth) as registry:
        assert client.login({"username": USER, "password": PASSWORD, "serveraddress": registry.domain}) == ""
        for wrong, words in (
            ({"username": USER, "password": "x"}, "401 Unauthorized|incorrect username or password"),
            ({"username": USER}, "a user name and a password are needed"),
        ):
            with pytest.raises(MinirtError, match=words) as refused:
                client.login(wrong | {"serveraddress": registry.domain})
            assert refused.value.status == (401 if "password" in wrong else 400)
