"""From a name in `names` to what is kept for it: the one place that knows how each image is made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from minirt.errors import NotFound
from minirt.hub import greeter, hello, toolbox
from minirt.hub.layout import Layout
from minirt.hub.names import REPOSITORIES
from minirt.image.descriptor import Descriptor
from minirt.image.digest import Digest

_RECIPES: dict[str, Callable[[Layout], Descriptor]] = {
    "library/greeter:1.0": partial(greeter.make, "1"),
    "library/greeter:2.0": partial(greeter.make, "2"),
    "library/hello-world:latest": hello.make,
    greeter.BASE: toolbox.make,
}


def image(layout: Layout, repository: str, tag: str) -> Descriptor:
    """The manifest or index behind a tag, made now if need be. Raises NotFound for a tag that is not offered."""
    name = f"{repository}:{tag}"
    if name not in _RECIPES:
        raise NotFound(f"{repository} has no tag {tag[:128]!r}: there are {', '.join(REPOSITORIES[repository])}")
    return layout.image(name, _RECIPES[name])


def blob(layout: Layout, repository: str, digest: Digest) -> Path:
    """The file behind a digest. Who asks by digest first finds nothing made yet: then all of `repository` is made.

    Raises NotFound.
    """
    path = layout.path(digest)
    if not path.is_file():
        for tag in REPOSITORIES[repository]:
            image(layout, repository, tag)
    if not path.is_file():
        raise NotFound(f"{repository} has no content {digest}")
    return path
