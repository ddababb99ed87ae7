"""Certificates: whom we take a registry's from, and to whom we show ours.

Loopback is trusted as it is, so client and servers are on another address, in a network namespace of their own, with a
/etc/docker of their own. `python test_trust.py` is what runs there.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from peers import require

from minirt.errors import InvalidInput, MinirtError
from minirt.registry import trust

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces need Linux")
ADDRESS = "10.77.0.1"
BLOB = b"a layer's bytes"
# What is put where, and what comes of it: the start of an error, or nothing. `X`: the registry wants a certificate of
# ours; `S`: so does the storage that it sends us to.
CASES = {
    "nothing": "cannot reach 10.77.0.1",
    "minirt ca.crt": "",
    "docker ca.crt": "",
    "minirt other.crt": "cannot reach 10.77.0.1",
    "elsewhere ca.crt": "cannot reach 10.77.0.1",
    "SSL_CERT_FILE": "",
    "REQUESTS_CA_BUNDLE": "",
    "X minirt ca.crt": "cannot reach 10.77.0.1|10.77.0.1:[0-9]+ broke",
    "X docker ca.crt client.cert client.key": "",
    "X docker ca.crt client.cert": "missing key .*/client.key for client certificate .*/client.cert",
    "minirt ca.crt client.key": "missing client certificate .*/client.cert for key .*/client.key",
    "minirt broken.crt": ".*/broken.crt: ",
    "S minirt ca.crt client.cert client.key": "cannot reach 10.77.0.1|10.77.0.1:[0-9]+ broke|the transfer",
}


def openssl(folder: Path, *words: str) -> None:
    subprocess.run([require("openssl"), *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority (`ca`), what it signed (`server`, `client`), another authority, and what is none."""
    folder = tmp_path_factory.mktemp("certificates")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for name in "ca", "other":
        openssl(folder, "req", "-x509", *new, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}")
    (folder / "names").write_text(f"subjectAltName=IP:{ADDRESS}\n")
    for name in "server", "client":
        openssl(folder, "req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        sign = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-out", f"{name}.cert"]
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", *sign)
    (folder / "broken.crt").write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")
    return folder


def test_whom_we_trust(certificates: Path, tmp_path: Path) -> None:
    """As root, and as a user who is root in a namespace of their own: /etc/docker is theirs there."""
    for peer in "unshare", "ip", "mount":
        require(peer)
    here = Path(__file__).parent
    new = ["unshare", "--net", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    script = f"""set -e; ip link set lo up; ip addr add {ADDRESS}/32 dev lo; mkdir -p {tmp_path}/etc
        cp -a /etc/ssl {tmp_path}/etc/ 2>/dev/null || true; mkdir -p {tmp_path}/etc/docker
        mount --bind {tmp_path}/etc /etc
        exec {sys.executable} {here / "test_trust.py"} {certificates} {tmp_path}"""
    path = os.pathsep.join([str(here), str(here.parent)])
    done = subprocess.run(
        [*new, "sh", "-c", script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == CASES.keys()
    for case, words in CASES.items():
        assert re.match(f"(?:{words})" if words else "$", found[case]), f"{case}: {found[case]}"


def inside(certificates: Path, home: Path) -> None:
    """Every case, in the namespaces; what came of each as JSON."""
    from registries import Scripted, Server

    from minirt.image.descriptor import Descriptor
    from minirt.image.digest import Digest
    from minirt.registry.client import Registry
    from minirt.registry.credentials import Credentials
    from minirt.registry.settings import Settings

    def context(wants: bool) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(certificates / "server.cert", certificates / "server.key")
        made.load_verify_locations(certificates / "ca.crt")
        made.verify_mode = ssl.CERT_REQUIRED if wants else ssl.CERT_NONE
        return made

    found = {}
    for number, case in enumerate(CASES):
        words = case.split()
        config = home / f"config-{number}"
        os.environ["XDG_CONFIG_HOME"] = str(config)
        for name in "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE":
            os.environ.pop(name, None)
            if name in words:
                os.environ[name] = str(certificates / "ca.crt")
        with Scripted("none") as hub:
            servers = [
                Server(hub._registry, ADDRESS, context("X" in words)),
                Server(hub._storage, ADDRESS, context("S" in words)),
            ]
            hub.servers["storage"].close()
            hub.servers["storage"] = servers[1]
            layer = hub.blob(BLOB)
            places = {"minirt": config / "minirt", "docker": Path("/etc/docker"), "elsewhere": config / "minirt"}
            for place in set(words) & places.keys():
                domain = servers[0].domain if place != "elsewhere" else "10.77.0.1:1"
                folder = places[place] / "certs.d" / domain
                folder.mkdir(parents=True)
                for name in words:
                    if (certificates / name).is_file():
                        (folder / name).write_bytes((certificates / name).read_bytes())
            registry = Registry(
                servers[0].domain, Settings(), credentials=Credentials(home / "none"), attempts=1, stall_timeout=5
            )
            try:
                content = b"".join(registry.blob("x", Descriptor("x", Digest(layer.digest), len(BLOB))))
                found[case] = "" if content == BLOB else "other bytes"
            except MinirtError as error:
                found[case] = str(error)
            registry.close()
            servers[0].close()
    print(json.dumps(found))


def test_where_certificates_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    docker = Path("/etc/docker/certs.d") if os.geteuid() == 0 else tmp_path / "docker/certs.d"
    assert trust.folders() == [tmp_path / "minirt/certs.d", docker]
    (tmp_path / "minirt/certs.d/a.example:5000").mkdir(parents=True)
    (tmp_path / "minirt/certs.d/a.example:5000/README").write_text("not a certificate, and none of our business")
    assert trust.context("a.example:5000", insecure=False, ours=True).check_hostname
    assert not trust.context("a.example:5000", insecure=True, ours=True).check_hostname
    (tmp_path / "minirt/certs.d/a.example:5000/own.cert").write_text("")
    with pytest.raises(InvalidInput, match="CA certificates must use the extension .crt"):
        trust.context("a.example:5000", insecure=False, ours=False)


if __name__ == "__main__":
    inside(Path(sys.argv[1]), Path(sys.argv[2]))
