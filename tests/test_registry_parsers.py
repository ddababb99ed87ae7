"""What the registry client reads: WWW-Authenticate, the user's settings, docker's credentials."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minirt.errors import InvalidInput
from minirt.registry.challenge import Challenge, parse
from minirt.registry.credentials import Credential, Credentials
from minirt.registry.settings import Settings, locality
from minirt.store.limits import Limits

_NAMES = st.text("abcXYZ09!#$%&'*+.^_`|~-", min_size=1, max_size=8)
_CHALLENGES = st.lists(
    st.tuples(_NAMES, st.dictionaries(_NAMES.map(str.lower), st.text(max_size=12), max_size=3)), max_size=4
)


@settings(max_examples=80, deadline=None)
@given(_CHALLENGES, st.sampled_from([",", ", ", " ,\t, "]), st.sampled_from(["=", " = "]))
def test_challenges_come_back_as_they_were_written(
    challenges: list[tuple[str, dict[str, str]]], comma: str, equals: str
) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    written = comma.join(
        f"{scheme} {comma.join(f'{name.upper()}{equals}{quoted(value)}' for name, value in parameters.items())}".rstrip(
            " "
        )
        for scheme, parameters in challenges
    )
    assert parse(written) == [Challenge(scheme.lower(), parameters) for scheme, parameters in challenges]


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet='aB ,="\\\t\n:/é', max_size=60))
def test_no_header_breaks_the_parser(header: str) -> None:
    for challenge in parse(header):
        assert challenge.scheme == challenge.scheme.lower() != ""


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push"',
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.example/token",
                        "service": "r.example",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        ('Negotiate YII=, BASIC Realm="x, y"', [("negotiate", {}), ("basic", {"realm": "x, y"})]),
        (
            "Bearer realm=https://a.example/t?x,service=r",
            [("bearer", {"realm": "https://a.example/t?x", "service": "r"})],
        ),
        ('Bearer realm="a",realm="b"', [("bearer", {"realm": "a"})]),
        ('Bearer realm="never closed, Basic realm=x', [("bearer", {})]),
        ('realm="of nothing"', []),
        ("", []),
    ],
)
def test_challenges_seen_in_the_wild(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [(c.scheme, dict(c.parameters)) for c in parse(header)] == expected


def test_a_hostile_header_is_read_in_linear_time() -> None:
    assert parse('a="' + ',a="' * 16_000) == []
    assert len(parse("a=," * 20_000)) >= 0


def test_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load(tmp_path / "absent") == Settings()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "minirt" / "config.toml"
    file.parent.mkdir()
    file.write_text(
        'registry-mirrors = ["https://m.example/"]\ninsecure-registries = ["R.example:5000", "10.1.0.0/16"]\n'
    )
    loaded = Settings.load()
    assert loaded.registry_mirrors == ("https://m.example",)
    assert [loaded.insecure(a) for a in ("r.example:5000", "192.0.2.1:5000", "10.1.2.3:80", "10.2.0.1")] == [
        True,
        False,
    ] * 2


def test_limits_are_read_and_else_generous(tmp_path: Path) -> None:
    assert Limits.load(tmp_path / "absent") == Limits()
    file = tmp_path / "config.toml"
    file.write_text('[limits]\nentries = 7\nbytes-out = "2 GiB"\nmemory = 500_000_000\n')
    assert Limits.load(file) == Limits(entries=7, bytes_out=2 << 30, memory=500_000_000)
    assert Settings.load(file) == Settings()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("registry-mirrors = [", "config.toml: "),
        ('registry-mirrors = "https://m.example"', "registry-mirrors is not a list of strings"),
        ('mirrors = ["x"]', "unknown key 'mirrors'"),
        ('registry-mirrors = ["m.example"]', "is not a URL"),
        ('registry-mirrors = ["https://["]', "is not a URL"),
        ('registry-mirrors = ["https://m.example:99999"]', "is not a URL"),
        ('registry-mirrors = ["http://m.example"]', "plain http"),
        ("limits = 5", "limits is not a table"),
        ("[limits]\nsecond = 5", "unknown limit 'second'; the limits are entries, depth, bytes-out"),
        ("[limits]\nbytes_out = 5", "unknown limit"),
        ("[limits]\nentries = -1", "limits.entries is not a whole number above 0"),
        ("[limits]\nentries = true", "limits.entries is not a whole number"),
        ('[limits]\nentries = "5k"', "limits.entries is not a whole number"),
        ('[limits]\nmemory = "much"', "limits.memory: 'much' is not a size"),
        ("[limits]\nmemory = 0", "limits.memory is not a size like 2GiB above 0"),
        ('registry-mirrors = ["https://me:pw@m.example"]', "no user or password"),
        ('insecure-registries = ["http://r.example"]', "is not host"),
        ('insecure-registries = ["10.0.0.0/33"]', "is not host"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=reason) as caught:
        Settings.load(file) and Limits.load(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value) and "pw" not in str(caught.value)


def test_which_addresses_are_near() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "LocalHost", "0.0.0.0", "::", "::ffff:127.0.0.1"):
        assert locality(host) == "loopback", host
    for host in ("169.254.169.254", "fe80::1%eth0", "::ffff:169.254.1.1"):
        assert locality(host) == "link-local", host
    for host in ("10.0.0.1", "registry.example", "localhost.example", "8.8.8.8"):
        assert locality(host) == "", host


def _auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def test_credentials_of_docker_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert Credentials().look_up("r.example") is None
    auths = {
        "https://index.docker.io/v1/": _auth("hub:a:b\0"),
        "r.example:5000": {"username": "u", "password": "p"},
        "https://old.example/v2/": _auth("old:pw"),
        "i.example": {**_auth("00000000-0000-0000-0000-000000000000:"), "identitytoken": "refresh"},
        "bad.example": {"auth": "%%%"},
    }
    (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
    known = Credentials()
    assert known.look_up("docker.io") == Credential("hub", "a:b")
    assert known.look_up("r.example:5000") == Credential("u", "p")
    assert known.look_up("old.example") == Credential("old", "pw")
    assert known.look_up("r.example") is None
    found = known.look_up("i.example")
    assert found and found.identity_token == "refresh" and "refresh" not in repr(found)
    with pytest.raises(InvalidInput, match="base64"):
        known.look_up("bad.example")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidInput, match="not valid JSON"):
        known.look_up("docker.io")


def test_credential_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-fake"
    helper.write_text(
        "#!/bin/sh\nread -r host || :\ncase $1,$host in\n"
        'get,r.example) echo \'{"Username": "u", "Secret": "s"}\';;\n'
        'get,https://index.docker.io/v1/) echo \'{"Username": "<token>", "Secret": "refresh"}\';;\n'
        "*) echo 'credentials not found in native keychain'; exit 1;;\nesac\n"
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps({"credsStore": "fake", "credHelpers": {"gone.example": "gone", "evil.example": "../../x"}})
    )
    known = Credentials(file)
    assert known.look_up("r.example") == Credential("u", "s")
    assert known.look_up("docker.io") == Credential("", identity_token="refresh")
    assert known.look_up("unknown.example") is None and "no credentials for unknown.example" in known.note
    assert known.look_up("gone.example") is None and "docker-credential-gone: No such file" in known.note
    with pytest.raises(InvalidInput, match="not the name of a credential helper"):
        known.look_up("evil.example")
