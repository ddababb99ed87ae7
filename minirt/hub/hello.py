"""`hello-world`: one static program we assemble ourselves, for two CPUs under one name.

Invariant: the same digest on every machine; a test pins it. Taught in chapters 00, 02 and 04.
"""

from __future__ import annotations

from minirt.hub import elf
from minirt.hub.layer import PATH, Tree
from minirt.hub.layout import Layout
from minirt.image.descriptor import OCI_INDEX, Descriptor
from minirt.image.manifest import encode
from minirt.image.platform import Platform

ARCHITECTURES = ("amd64", "arm64")
MESSAGE = """\
Hello from a container! A program of less than two kilobytes wrote this, and its image holds nothing else.

How it came to your screen:
  1. The client, which you typed the command into, asked the daemon for it.
  2. The daemon looked in the local cache: is there an image "hello-world"?
  3. There was not, so it was pulled from the registry and kept. (The next run skips this step.)
  4. The daemon made a container from the image, its file snapshot and its command, and ran that: /hello.

같은 순서를 우리말로:
  1. 클라이언트가 데몬에게 부탁했고,
  2. 데몬이 로컬 캐시에서 이미지를 찾아보았고,
  3. 없어서 레지스트리에서 받아 보관했고, (다음 실행부터는 건너뜁니다)
  4. 이미지의 파일 스냅샷과 시작 명령어로 컨테이너를 만들어 실행했습니다.
"""


def make(layout: Layout) -> Descriptor:
    """Keep the image's blobs in `layout`; returns its index, with a manifest for each architecture."""
    manifests = []
    for architecture in ARCHITECTURES:
        tree = Tree()
        tree.file("hello", elf.program(architecture, MESSAGE.encode()), 0o755)
        manifests.append(
            layout.add_image(
                Platform("linux", architecture),
                [layout.add_layer(tree.layer())],
                {"Env": [f"PATH={PATH}"], "Cmd": ["/hello"]},
                [f"assemble /hello for {architecture}"],
            )
        )
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry.to_json() for entry in manifests]}
    return layout.add(encode(index), OCI_INDEX)
