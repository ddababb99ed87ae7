"""Where each target begins: honest inputs of a few hundred bytes, made by code, and what earlier runs found.

`FOUND` holds inputs that once broke a promise; each is mended, and replayed by tests/test_fuzz.py for ever.
"""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import tarfile

import tars
import zstandard

from minirt.hub.elf import program
from minirt.image.descriptor import DOCKER_LAYER, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from minirt.image.digest import Digest
from minirt.image.manifest import encode

_SHA = "sha256:" + "0123456789abcdef" * 4
_ITEM = {"mediaType": OCI_LAYER, "digest": _SHA, "size": 5}
_CONFIG = {"mediaType": OCI_CONFIG, "digest": _SHA, "size": 9}
_MANIFEST = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": _CONFIG, "layers": [_ITEM]}
_PLATFORM = {"platform": {"os": "linux", "architecture": "arm", "variant": "v6"}}
_INDEX = {"schemaVersion": 2, "manifests": [{**_ITEM, **_PLATFORM, "mediaType": OCI_MANIFEST}]}
_IMAGE = {
    "architecture": "amd64",
    "os": "linux",
    "created": "2026-01-01T00:00:00Z",
    "config": {"Cmd": ["/a"], "Env": ["A=b"], "Entrypoint": None, "WorkingDir": "/", "User": "1", "Labels": {"a": "b"},
               "Volumes": {"/v": {}}, "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGINT"},
    "rootfs": {"type": "layers", "diff_ids": [_SHA]},
    "history": [{"created_by": "x", "empty_layer": True}],
}  # fmt: skip
_NAMED = {
    "mediaType": OCI_MANIFEST, "digest": _SHA, "size": 5,
    "annotations": {"io.minirt.name": "docker.io/library/a:1", "io.minirt.manifest": _SHA, "io.minirt.id": _SHA,
                    "io.minirt.created": "", "io.minirt.size": "7", "io.minirt.platform": "linux/amd64"},
}  # fmt: skip


def _tars() -> list[bytes]:
    plain = tars.entry("a", content=b"hi") + tars.entry("l", tars.SYMLINK, linkname="a")
    gnu = tarfile.TarInfo("n" * 120).tobuf(tarfile.GNU_FORMAT)
    sparse = {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.realsize": b"600"}
    return [
        plain,
        gnu,
        tars.pax({"path": b"\xff", "mtime": b"-1.5", "SCHILY.xattr.user.a": b"\0"}) + tars.entry("x"),
        tars.pax(sparse) + tars.entry("s", content=b"1\n3\n2\n".ljust(512, b"\0") + b"ab"),
        tars.pax({"GNU.sparse.map": b"5,1,7,1", "GNU.sparse.size": b"9"}) + tars.entry("s", content=b"ab"),
    ]


def _saved() -> list[bytes]:
    layer = tars.archive(tars.entry("a", content=b"hi"))
    config = encode({**_IMAGE, "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer))]}, "history": []})
    docker = json.dumps([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l/layer.tar"]}]).encode()
    named = {"manifest.json": docker, "c.json": config, "l/layer.tar": layer}
    described = [{**_CONFIG, "digest": str(Digest.of(config)), "size": len(config)}]
    layers = [{**_ITEM, "digest": str(Digest.of(layer)), "size": len(layer)}]
    manifest = encode({**_MANIFEST, "config": described[0], "layers": layers})
    index = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(manifest)), "size": len(manifest)}
    oci = {f"blobs/sha256/{Digest.of(part).hex}": part for part in (layer, config, manifest)}
    oci["index.json"] = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [index]})
    return [b"".join(tars.entry(name, content=part) for name, part in files.items()) for files in (named, oci)]


def _answers() -> list[bytes]:
    content = bytes(range(100))
    return [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + content,
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 50-99/100\r\nContent-Length: 50\r\n\r\n" + content[50:],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64;x=y\r\n" + content + b"\r\n0\r\nT: v\r\n\r\n",
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/x\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 429 No\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 401 U\r\nWWW-Authenticate: Basic realm="x"\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n',
        b"HTTP/1.1 416 R\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    ]


def _auths() -> list[bytes]:
    stored = {"auth": base64.b64encode(b"user:pass\0").decode(), "identitytoken": "t"}
    return [
        encode(
            {"auths": {"https://index.docker.io/v1/": stored, "r.example:5000": {"username": "u", "password": "p"}}}
        ),
        encode({"credsStore": "x", "credHelpers": {"r.example:5000": "y"}, "auths": {}}),
    ]


def _numbers(head: bytes, at: int, width: int) -> bytes:
    """The header with a negative number at that place, and its checksum."""
    raw = bytearray(head)
    raw[at : at + width] = b"\xff" * (width - 1) + b"\xfe" if at == 483 else b"\x80" + b"\x7f" * (width - 1)
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


SEEDS: dict[str, list[bytes]] = {
    "reference": [b"ubuntu", b"r.example:5000/a/b__c:1.0@" + _SHA.encode(), b"localhost/a", b"[::1]:5000/a:b", b"A/b"],
    "challenges": [
        b'Bearer realm="https://a/t",service="r",scope="repository:a/b:pull", Basic realm="x\\"y"',
        b"N a==",
    ],
    "manifest": [
        b"\0" + encode(_MANIFEST),
        b"\x01" + encode(_INDEX),
        b"\x02" + encode({**_MANIFEST, "mediaType": DOCKER_MANIFEST, "layers": [{**_ITEM, "mediaType": DOCKER_LAYER}]}),
    ],
    "config": [encode(_IMAGE), b"{}"],
    "archive": [b"\xff" + content for content in _tars()],
    "header": [b"\0" + content[:1024] for content in _tars()[:2]] + [b"\x0b11 path=ab\n" + _tars()[0][:600]],
    "pax": [b"\0\x0c12 mtime=1.5\n", b"\0\x2621 GNU.sparse.map=0,1\n17 GNU.sparse.size=2\nx", b"\0\x0b11 uid=1234\n"],
    "compressed": [
        b"\x01" + gzip.compress(b"abc" * 50, mtime=0),
        b"\xff" + gzip.compress(b"a", mtime=0) + bytes(9) + gzip.compress(bytes(99999), mtime=0),
        b"\x01" + zstandard.ZstdCompressor().compress(b"abc" * 50),
        b"\x01" + lzma.compress(b"abc" * 50),
        b"\x01" + bz2.compress(b"abc" * 50) + bytes(3) + bz2.compress(b"d"),
    ],
    "applier": [
        bytes([0, *(2, 0, 5, 0, 7), *(0, 18, 0, 9, 7)]),  # a link out, and a file through it
        bytes([1, *(5, 0, 0, 0, 9), *(0, 2, 0, 9, 9), *(2, 0, 0xF0, 0, 9), *(0, 2, 0, 9, 9), *(1, 1, 8, 0, 9)]),
        bytes([2, *(0, 5, 0, 0, 0), *(0, 7, 0, 0, 0), *(5, 0, 0, 0, 1), *(0x80, 6, 0, 3, 0), *(3, 0, 0, 1, 3)]),
    ],
    "retry-after": [b"120", b"Fri, 31 Dec 1999 23:59:59 GMT", b"Wed, 21 Oct 2015 07:28:00 -0000"],
    "links": [b'</v2/a/b/tags/list?last=x&n=2>; rel="next"', b"<http://127.0.0.1:1/v2/a/b/tags/list?x>; rel=next, <y>"],
    "docker-config": _auths(),
    "settings": [
        b'registry-mirrors = ["https://m.example"]\ninsecure-registries = ["10.0.0.0/8", "r.example:5000"]\n'
        b'[limits]\nmemory = "2GiB"\nentries = 5\n',
        b"fe80::1%eth0",
    ],
    "token": [b'{"token": "abc", "expires_in": 300}', b'{"access_token": "abc"}'],
    "elf": [program("amd64", b"hi"), program("arm64", b"hi", ("/lib/ld.so", "libx.so"))],
    "layout": [encode({"schemaVersion": 2, "manifests": [_NAMED]}), encode({"manifests": [_ITEM, None, 5]})],
    "saved": _saved(),
    "answer": _answers(),
}

FOUND: list[tuple[str, bytes]] = [
    ("answer", b"HTTP/1.1 307 T\r\nLocation: http://646.0.0.]1:1\r\nContent-Length: 0\r\n\r\n"),  # a ValueError
    ("answer", b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n" + bytes(range(100))),  # isdigit(), and no number
    ("answer", b"HTTP/1.1 200 OK\r\nContent-Length: " + b"1" * 5000 + b"\r\n\r\n"),  # a ValueError
    ("links", b'<http://[>; rel="next"'),  # a ValueError
    ("archive", b"\xff" + _numbers(tars.entry("n"), 136, 12)),  # a time that no file can have: an OverflowError
    ("archive", b"\xff" + _numbers(tars.entry("n", b"S"), 483, 12)),  # a sparse file of less than no bytes
    ("reference", b"docker.io/bdocker.io/bb"),  # shown as an image of another registry
    ("reference", b"docker.io/docker.io/b/bd"),  # shown as another image of this one
    ("settings", b'registry-mirrors = ["https://m.s = [le"]'),  # a ValueError
    ("retry-after", b"5\x1f"),  # stripped by one reader and not by the other: a ValueError
    ("layout", b'{"manifests": [{"annotations": "x"}]}'),  # an AttributeError
]


def seeds(target: str) -> list[bytes]:
    """All of a target's inputs, those found included."""
    return SEEDS[target] + [content for name, content in FOUND if name == target]
