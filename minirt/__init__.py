"""minirt: what Docker does, small enough to read.

    import minirt
    minirt.pull("hello-world")                  # an Image: .id .name .digest .size
    minirt.run("toolbox", ["echo", "hi"])       # a Result: .stdout .stderr .exit_code
    minirt.images()                             # what is in the local cache
    minirt.inspect("hello-world")               # everything known of an image or container
    with minirt.events() as events: ...         # an iterator of what happens, box by box

Importing this costs nothing: each name loads its room on first use.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from typing import Any

    from minirt.api import Image, Result, events, images, inspect, pull, run

__all__ = ["Image", "Result", "__version__", "events", "images", "inspect", "pull", "run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        from minirt import api

        return getattr(api, name)
    raise AttributeError(f"module 'minirt' has no attribute {name!r}")
