"""The nouns: names, digests, platforms, manifests, configs. Pure, so every case is cheap."""

from __future__ import annotations

import contextlib
import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirt.errors import InvalidInput, MinirtError, NotFound, VerificationError
from minirt.image.config import ImageConfig
from minirt.image.descriptor import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)
from minirt.image.digest import Digest
from minirt.image.manifest import MAX_DOCUMENT, Index, Manifest, encode, parse
from minirt.image.platform import Platform
from minirt.image.reference import Reference

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "normalised", "familiar"),
    [
        ("ubuntu", "docker.io/library/ubuntu:latest", "ubuntu:latest"),
        ("a/b:t", "docker.io/a/b:t", "a/b:t"),
        ("library/ubuntu", "docker.io/library/ubuntu:latest", "ubuntu:latest"),
        ("docker.io/ubuntu:24.04", "docker.io/library/ubuntu:24.04", "ubuntu:24.04"),
        ("index.docker.io/x/y", "docker.io/x/y:latest", "x/y:latest"),
        (f"localhost:5000/x@{DIGEST}", f"localhost:5000/x@{DIGEST}", f"localhost:5000/x@{DIGEST}"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("Example.COM/x", "Example.COM/x:latest", "Example.COM/x:latest"),
        ("UPPER/x", "UPPER/x:latest", "UPPER/x:latest"),
        ("[2001:db8::1]:5000/a/b:v1", "[2001:db8::1]:5000/a/b:v1", "[2001:db8::1]:5000/a/b:v1"),
        ("[::1]/a", "[::1]/a:latest", "[::1]/a:latest"),
        (f"x:v1@{DIGEST}", f"docker.io/library/x:v1@{DIGEST}", f"x:v1@{DIGEST}"),
        ("a__b-c--d/e.f:_T.-9", "docker.io/a__b-c--d/e.f:_T.-9", "a__b-c--d/e.f:_T.-9"),
        ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("localhost:8080/a:" + "t" * 128, "localhost:8080/a:" + "t" * 128, "localhost:8080/a:" + "t" * 128),
        ("127.0.0.1:5000/x:y", "127.0.0.1:5000/x:y", "127.0.0.1:5000/x:y"),
        ("g" * 64, "docker.io/library/" + "g" * 64 + ":latest", "g" * 64 + ":latest"),
    ],
)
def test_names_parse_as_docker_parses_them(text: str, normalised: str, familiar: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == normalised
    assert reference.familiar == familiar
    assert Reference.parse(familiar) == reference


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("Ubuntu", "must be lowercase"),
        ("a/B", "must be lowercase"),
        ("a b", "white space"),
        (" ubuntu", "white space"),
        ("ubuntu\n", "white space"),
        ("a//b", "not a name"),
        ("/a", "not a name"),
        ("a/", "not a name"),
        ("-a", "not a name"),
        ("a_/b", "not a name"),
        ("a___b", "not a name"),
        ("a..b", "not a name"),
        ("x:", "not a tag"),
        ("x:-t", "not a tag"),
        ("x:" + "t" * 129, "not a tag"),
        ("x:a:b", "not"),
        ("x@", "not a digest"),
        ("x@sha256:zz", "not a digest"),
        ("x@sha256:" + "a" * 63, "digest length"),
        ("x@sha256:" + "A" * 64, "checksum digest format"),
        ("x@md5:" + "a" * 32, "unsupported digest algorithm"),
        (HEX, "64-byte hexadecimal"),
        ("[fe80::1%eth0]:5000/a", "not a name"),
        ("localhost:port/a", "not"),
        ("a" * 256, "more than 255"),
        ("aa/asdf$$^/aa", "not a name"),
        ("ubuntu:tag@" + DIGEST + "x", "not a digest"),
        ("a_b.example/x", "not a name"),
        ("웹/서버", "not a name"),
    ],
)
def test_a_name_that_does_not_parse_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        Reference.parse(text)


@given(st.text(alphabet=string.ascii_letters + string.digits + "._-/:@[]", max_size=80))
def test_any_text_parses_to_its_own_normal_form_or_is_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidInput:
        return
    assert Reference.parse(str(reference)) == reference
    assert reference.tag or reference.digest
    assert not set(reference.path) & set("@:% ?#\\") and ".." not in reference.path.split("/")


@pytest.mark.parametrize(
    "text", ["", "sha256", "sha256:../..", "sha256:" + "g" * 64, "SHA256:" + HEX, "sha512:" + HEX, "x:" + HEX]
)
def test_a_digest_is_well_formed_or_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Digest(text)


def test_digests_name_their_content() -> None:
    digest = Digest.of(b"hello")
    hasher = digest.hasher()
    hasher.update(b"hello")
    assert digest.matches(hasher) and digest.short == "2cf24dba5fb0" and digest.algorithm == "sha256"


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("amd64", Platform("linux", "amd64")),
        ("linux/aarch64", Platform("linux", "arm64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/arm", Platform("linux", "arm", "v7")),
        ("linux/arm/6", Platform("linux", "arm", "v6")),
        ("Linux/x86_64", Platform("linux", "amd64")),
    ],
)
def test_platforms_parse(text: str, platform: Platform) -> None:
    assert Platform.parse(text) == platform


@pytest.mark.parametrize("text", ["", "linux/", "linux/amd64/v1/x", "lin ux/amd64", "toaster"])
def test_platforms_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InvalidInput, match="os/arch"):
        Platform.parse(text)


def _descriptor(media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": DIGEST, "size": 7, **more}


def _index(*platforms: dict[str, str] | None, **more: Any) -> bytes:
    entries = [_descriptor(OCI_MANIFEST, **({"platform": p} if p else {})) for p in platforms]
    return encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, **more})


def _manifest(**more: Any) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor(OCI_CONFIG),
        "layers": [_descriptor(OCI_LAYER + "+gzip")],
    }
    return encode({key: value for key, value in (document | more).items() if value is not None})


def test_an_index_gives_the_best_manifest_for_a_platform() -> None:
    amd, arm6, arm7 = (
        {"os": "linux", "architecture": a, **({"variant": v} if v else {})}
        for a, v in (("amd64", ""), ("arm", "v6"), ("arm", "v7"))
    )
    index = parse(_index(arm6, amd, arm7), OCI_INDEX)
    assert isinstance(index, Index)
    assert index.choose(Platform("linux", "arm", "v7")).platform == Platform("linux", "arm", "v7")
    assert index.choose(Platform("linux", "arm", "v6")).platform == Platform("linux", "arm", "v6")
    assert index.choose(Platform("linux", "amd64")).platform == Platform("linux", "amd64")
    with pytest.raises(NotFound, match="linux/s390x.*there are: linux/amd64, linux/arm/v6, linux/arm/v7"):
        index.choose(Platform("linux", "s390x"))


def test_both_kinds_of_manifest_parse_and_the_twin_keeps_content() -> None:
    docker = _manifest(
        mediaType=DOCKER_MANIFEST, config=_descriptor(DOCKER_CONFIG), layers=[_descriptor(DOCKER_LAYER + ".gzip")]
    )
    manifest = parse(docker, DOCKER_MANIFEST)
    assert isinstance(manifest, Manifest)
    twin = parse(manifest.as_oci(), OCI_MANIFEST)
    assert isinstance(twin, Manifest)
    assert twin.config.media_type == OCI_CONFIG and twin.layers[0].media_type == OCI_LAYER + "+gzip"
    assert twin.config.digest == manifest.config.digest and twin.layers[0].digest == manifest.layers[0].digest


@pytest.mark.parametrize(
    ("content", "announced", "reason"),
    [
        (b"[]", OCI_MANIFEST, "not a JSON object"),
        (b"{", OCI_MANIFEST, "not valid JSON"),
        (b'{"a":1,"a":2}', OCI_MANIFEST, "twice"),
        (b'{"a":NaN}', OCI_MANIFEST, "NaN is no JSON value"),
        (b'{"a":-Infinity}', OCI_MANIFEST, "-Infinity is no JSON value"),
        (b'{"a":"\\ud800"}', OCI_MANIFEST, "surrogates not allowed"),
        (b'{"\\uDC00":1}', OCI_MANIFEST, "surrogates not allowed"),
        (b"[" * 100_000, OCI_MANIFEST, "not valid JSON"),
        (b" " * (MAX_DOCUMENT + 1), OCI_MANIFEST, "larger than"),
        (_manifest(), OCI_INDEX, "came as"),
        (_manifest(), DOCKER_MANIFEST, "came as"),
        (_manifest(mediaType=None), OCI_INDEX, "not an image manifest or index"),
        (_manifest(manifests=[]), OCI_MANIFEST, "ambiguous"),
        (_index(layers=[]), OCI_INDEX, "ambiguous"),
        (_index(config={}), OCI_INDEX, "ambiguous"),
        (_manifest(schemaVersion=1), OCI_MANIFEST, "schema 1"),
        (
            encode({"schemaVersion": 1, "fsLayers": []}),
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "schema 1",
        ),
        (_manifest(schemaVersion=3), OCI_MANIFEST, "schemaVersion"),
        (_manifest(config=None), OCI_MANIFEST, "config"),
        (
            _manifest(config=_descriptor("application/vnd.cncf.helm.config.v1+json")),
            OCI_MANIFEST,
            "not a container image",
        ),
        (_manifest(config=_descriptor(OCI_CONFIG, size=MAX_DOCUMENT + 1)), OCI_MANIFEST, "larger than"),
        (_manifest(layers=[_descriptor("application/x-thing")]), OCI_MANIFEST, "unsupported layer"),
        (_manifest(layers={}), OCI_MANIFEST, "not a list"),
        (_manifest(layers=[_descriptor(OCI_LAYER, size=-1)]), OCI_MANIFEST, "size"),
        (_manifest(layers=[_descriptor(OCI_LAYER, size=True)]), OCI_MANIFEST, "size"),
        (_manifest(layers=[_descriptor(OCI_LAYER, size="7")]), OCI_MANIFEST, "size"),
        (_manifest(layers=[_descriptor(OCI_LAYER, digest="sha256:../..")]), OCI_MANIFEST, "digest"),
        (_manifest(layers=[_descriptor(OCI_LAYER, digest=7)]), OCI_MANIFEST, "layers"),
        (_manifest(), "text/html", "came as"),
        (_manifest(mediaType=None), "text/html", "not an image manifest"),
    ],
)
def test_a_document_that_is_not_what_it_says_is_refused(content: bytes, announced: str, reason: str) -> None:
    with pytest.raises(VerificationError, match=reason):
        parse(content, announced)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["mediaType", "digest", "size", "x"]), inner)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests"]), _json | st.just(2)
    )
)
def test_no_manifest_escapes_the_error_family(document: dict[str, Any]) -> None:
    for announced in (OCI_MANIFEST, OCI_INDEX, DOCKER_INDEX):
        with contextlib.suppress(MinirtError):
            parse(json.dumps(document).encode(), announced)


_settings = ["Entrypoint", "Cmd", "Env", "WorkingDir", "User", "Labels", "Volumes", "ExposedPorts", "StopSignal"]


@given(
    st.dictionaries(st.sampled_from(["os", "architecture", "history", "created"]), _json),
    st.dictionaries(st.sampled_from(_settings), _json),
)
def test_no_config_escapes_the_error_family(document: dict[str, Any], settings: dict[str, Any]) -> None:
    try:
        config = ImageConfig.parse(
            json.dumps({**document, "config": settings, "rootfs": {"diff_ids": [DIGEST]}}).encode()
        )
    except VerificationError:
        return
    assert all(
        isinstance(word, str)
        for word in (*config.entrypoint, *config.cmd, *config.env, config.working_dir, config.user)
    )


def test_the_command_follows_docker() -> None:
    config = ImageConfig.parse(json.dumps({"config": {"Entrypoint": ["e"], "Cmd": ["c"]}}).encode())
    assert config.command() == ["e", "c"]
    assert config.command(("x",)) == ["e", "x"]
    assert config.command((), ("o",)) == ["o"]
    assert config.command(("x",), ("o",)) == ["o", "x"]
