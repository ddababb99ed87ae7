"""`greeter:1.0` and `greeter:2.0`: one command over two versions of a library that do not go together.

Outside, `pip` refuses: greeter_one needs greetlib 1, greeter_two needs greetlib 2, and a Python environment has room
for one. Inside, each image brings its own, over the one layer of `toolbox` they share. Invariant: apart from that layer
the same bytes on every machine. Taught in chapter 01.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from pathlib import Path

from minirt.errors import StoreError
from minirt.hub import toolbox
from minirt.hub.layer import Tree
from minirt.hub.layout import Layout
from minirt.image.config import ImageConfig
from minirt.image.descriptor import Descriptor
from minirt.image.manifest import Manifest, parse
from minirt.image.platform import Platform

BASE = "library/toolbox:latest"
# Version 2 renames the function and takes the greeting first: what was written for 1 breaks. (in sh, in Python)
_DEFINITION = {
    "1": ('greet() { echo "Hello, $1"; }', 'def greet(name):\n    return f"Hello, {name}"'),
    "2": ('make_greeting() { echo "$1, $2"; }', 'def make_greeting(word, name):\n    return f"{word}, {name}"'),
}
_CALL = {"1": ('greet "$name"', "greet(name)"), "2": ('make_greeting Hello "$name"', 'make_greeting("Hello", name)')}
_WORD = {"1": "one", "2": "two"}
_COMMAND = """\
#!/bin/sh
# greeter {major}.0, written for greetlib {major}.
. /usr/lib/greetlib/greet.sh
name=${{1:-world}}
greeting=$({call}) || exit
read -r version < /usr/lib/greetlib/VERSION
echo "greeter {major}.0 with greetlib $version: $greeting"
"""
_PROGRAM = """\
import sys

import greetlib


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "world"
    print(f"greeter {major}.0 with greetlib {{greetlib.__version__}}: " + greetlib.{call})
"""


def make(major: str, layout: Layout) -> Descriptor:
    """Keep the blobs of greeter `major` ("1" or "2") in `layout`; returns its manifest."""
    base = layout.image(BASE, toolbox.make)
    manifest = parse(layout.path(base.digest).read_bytes(), base.media_type)
    if not isinstance(manifest, Manifest):
        raise StoreError(f"the hub's {BASE} is not one image")
    config = ImageConfig.parse(layout.path(manifest.config.digest).read_bytes())
    tree = Tree()
    for name, text in (_library(major) | {"METADATA": _metadata("greetlib", f"{major}.0.0")}).items():
        tree.file(f"usr/lib/greetlib/{name}", text.encode())
    tree.file("usr/bin/greeter", _COMMAND.format(major=major, call=_CALL[major][0]).encode(), 0o755)
    layers = [*zip(manifest.layers, config.diff_ids, strict=True), layout.add_layer(tree.layer())]
    settings = {"Env": config.env, "Cmd": ["greeter"], "Labels": config.labels}
    steps = [config.history[0]["created_by"], f"install greetlib {major}.0.0 and greeter {major}.0"]
    return layout.add_image(Platform.host(), layers, settings, steps)


def wheels(folder: Path) -> list[Path]:
    """Write four wheels into `folder`: greetlib 1 and 2, and the two programs that need one each.

    `pip install --no-index --find-links FOLDER greeter_one greeter_two` then fails: their needs conflict.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for major, word in _WORD.items():
        name = f"greeter_{word}"
        library = {f"greetlib/{file}": text for file, text in _library(major).items()}
        program = {f"{name}.py": _PROGRAM.format(major=major, call=_CALL[major][1])}
        scripts = {"entry_points.txt": f"[console_scripts]\ngreeter = {name}:main\n"}
        needs = f"Requires-Dist: greetlib=={major}.*\n"
        out.append(_wheel(folder, library, {"METADATA": _metadata("greetlib", f"{major}.0.0")}))
        out.append(_wheel(folder, program, {"METADATA": _metadata(name, f"{major}.0") + needs, **scripts}))
    return out


def _library(major: str) -> dict[str, str]:
    version, (shell, python) = f"{major}.0.0", _DEFINITION[major]
    module = f'__version__ = "{version}"\n\n\n{python}\n'
    return {"__init__.py": module, "greet.sh": shell + "\n", "VERSION": version + "\n"}


def _metadata(name: str, version: str) -> str:
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"


def _wheel(folder: Path, files: dict[str, str], facts: dict[str, str]) -> Path:
    """One wheel: a zip with its `facts` beside its files (Python packaging, "Binary distribution format")."""
    name, version = (line.partition(": ")[2] for line in facts["METADATA"].splitlines()[1:3])
    facts["WHEEL"] = "Wheel-Version: 1.0\nGenerator: minirt\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    info = f"{name}-{version}.dist-info"
    files = files | {f"{info}/{fact}": text for fact, text in facts.items()}
    record = "".join(f"{file},sha256={_hash(text)},{len(text.encode())}\n" for file, text in files.items())
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for file, text in (files | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}).items():
            archive.writestr(zipfile.ZipInfo(file, (2024, 1, 1, 0, 0, 0)), text)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    path.write_bytes(content.getvalue())
    return path


def _hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
