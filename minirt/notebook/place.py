"""Where a widget works: a store and a registry to ask, and the language it speaks.

Every widget takes one. A chapter is one (its own store, the embedded hub); alone, as in `RunPanel("hello-world")`, a
widget works where the `minirt` command does.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

from minirt.client import Client, default_root
from minirt.errors import InvalidInput
from minirt.notebook.catalogue import Strings


class Place:
    """`root` is the store, `hub` as in MINIRT_HUB (None: what the environment says), `text` the words.

    `here` are the boxes of the flow map that are marked, `later` those not met yet. In `folder` a panel's commands
    find and leave files (None: where this process is).
    """

    SLOW = 250_000  # bytes a second of the throttled hub
    here: Collection[str] = ()
    later: Collection[str] = ()
    folder: Path | None = None
    ours = False  # whether it may be emptied: a chapter's own
    number = ""  # of the chapter

    def __init__(self, root: Path | None = None, hub: str | None = None, lang: str = "en") -> None:
        self.root, self.hub, self.text = root or default_root(), hub, Strings(lang)

    def client(self, slow: bool = False) -> Client:
        """A client of this store; `slow` pulls from the throttled hub."""
        return Client(self.root, hub=self.hub, throttle=self.SLOW if slow else None)

    def images(self) -> list[str]:
        """The names in the local cache, sorted."""
        with self.client() as client:
            return sorted(str(tag) for image in client.images() for tag in image.get("RepoTags") or ())

    def way(self) -> str:
        """How containers run here: `root`, `subuids`, `single id`, `proot`, or `refused`; "" of a daemon not ours."""
        if sys.platform != "linux":
            return "refused"
        with self.client() as client:
            told = dict(row for row in client.info().get("DriverStatus") or () if len(row) == 2)
        return str(told.get("User ids", ""))

    def empty(self) -> None:
        """Remove all images and containers; a chapter's place can do that. Raises InvalidInput: this one is yours."""
        raise InvalidInput("this is your own store: only a chapter's is emptied, with begin()")
