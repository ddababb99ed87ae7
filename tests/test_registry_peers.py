"""The registry client against Debian's docker-registry, filled by skopeo: open, htpasswd, token."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from registries import PASSWORD, USER, docker_registry, image_config, write_layout

from minirt.errors import NotFound, Unauthorized, VerificationError
from minirt.image.descriptor import OCI_MANIFEST
from minirt.image.digest import Digest
from minirt.image.manifest import Manifest, parse
from minirt.registry.client import Registry
from minirt.registry.credentials import Credentials
from minirt.registry.settings import Settings

LAYERS = [b"base" * 700_000, b"top"]  # 2.8 MB


def client(domain: str, tmp_path: Path, password: str | None) -> Registry:
    """A client whose user has logged in with `password`, or not at all."""
    config = tmp_path / f"login-{password}.json"
    auths = {domain: {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}} if password else {}
    config.write_text(json.dumps({"auths": auths}))
    return Registry(domain, Settings(), credentials=Credentials(config), backoff=0.01, attempts=2)


@pytest.mark.parametrize("auth", ["none", "htpasswd", "token"])
def test_pull_from_docker_registry(tmp_path: Path, auth: str) -> None:
    layout = write_layout(tmp_path / "layout", "one", LAYERS)
    with docker_registry(tmp_path, auth) as real:
        real.push(layout, "one", "private/app:1")
        real.push(layout, "one", "private/app:2")
        registry = client(real.domain, tmp_path, PASSWORD if auth != "none" else None)
        content, media_type, digest = registry.manifest("private/app", "1")
        assert digest == json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
        assert media_type == OCI_MANIFEST
        assert registry.manifest("private/app", digest) == (content, media_type, digest)
        manifest = parse(content, media_type)
        assert isinstance(manifest, Manifest)
        chunks = [list(registry.blob("private/app", layer)) for layer in manifest.layers]
        assert [b"".join(chunk) for chunk in chunks] == LAYERS
        assert len(chunks[0]) < 8 and max(map(len, chunks[0])) <= 1 << 20
        assert b"".join(registry.blob("private/app", manifest.config)) == image_config(LAYERS)
        assert b"".join(registry.blob("private/app", manifest.layers[0], 2_000_001)) == LAYERS[0][2_000_001:]
        assert sorted(registry.tags("private/app")) == ["1", "2"]
        missing = f"manifest for {real.domain}/private/app:3 not found: manifest unknown"
        with pytest.raises(NotFound, match=f"^{missing}$"):
            registry.manifest("private/app", "3")
        with pytest.raises(NotFound, match="repository .*/private/none not found"):
            registry.tags("private/none")
        with pytest.raises(NotFound, match="blob sha256:.* not found: blob unknown"):
            list(registry.blob("private/app", type(manifest.config)("x", Digest.of(b"?"), 1)))
        registry.close()
        if auth == "none":
            lie(real.folder, manifest, registry)
        else:
            denied = f"pull access denied for {real.domain}/private/app, repository does not exist or may require"
            with pytest.raises(Unauthorized, match=denied):
                client(real.domain, tmp_path, None).manifest("private/app", "1")
            wrong = "incorrect username or password" if auth == "token" else denied
            with pytest.raises(Unauthorized, match=wrong):
                client(real.domain, tmp_path, "wrong").manifest("private/app", "1")
        if auth == "token":  # the token service lets anyone pull from team/
            real.push(layout, "one", "team/app:1")
            assert client(real.domain, tmp_path, None).manifest("team/app", "1")[2] == digest


def lie(storage: Path, manifest: Manifest, registry: Registry) -> None:
    """A registry whose disk was tampered with: docker-registry serves it, we notice."""
    top = manifest.layers[1]
    (data,) = storage.rglob(f"{top.digest.hex}/data")
    data.write_bytes(b"longer than top")
    with pytest.raises(VerificationError, match="the registry sends 15 bytes where 3 are left"):
        list(registry.blob("private/app", top))
