"""A tar extracted into a tree that is there already: a container's, a volume's. What `docker cp` does at its far end.

Unlike a layer's, `.wh.` names mean nothing here, and what has an entry's name makes room for it, but for a directory
under a directory, which stays with what is in it. No link in the tree is followed: one in an entry's way is refused, so
nothing is written elsewhere, also while a container that swaps it runs (CVE-2018-15664, CVE-2020-1726).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable

from minirt.errors import InvalidInput, UnpackError
from minirt.store import tar
from minirt.store.applier import Applier, Owner, clean
from minirt.store.limits import Limits

_LIMITS = Limits()


class Extractor(Applier):
    """Into the directory behind `fd`. `owners` turns the archive's ids into the disk's; `kinds_stay`: a directory is
    not replaced by a file, nor a file by a directory; `place` is the directory's name in that error."""

    def __init__(
        self, fd: int, owner: Owner, owners: Callable[[int, int], tuple[int, int]], kinds_stay: bool, place: str = "/"
    ) -> None:
        super().__init__(f"/proc/self/fd/{fd}", owner, _LIMITS)
        self._owners, self._kinds_stay, self._place = owners, kinds_stay, place

    def _apply(self, entry: tar.Entry, reader: tar.Reader) -> None:
        path = clean(entry.name)
        if not path:
            return  # the directory itself stays as it is
        if path.count(b"/") > _LIMITS.depth:
            raise UnpackError(f"entry {entry.name[:200]!r} lies deeper than {_LIMITS.depth} directories")
        entry.uid, entry.gid = self._owners(entry.uid, entry.gid)
        above, _, name = path.rpartition(b"/")
        parent = self._parent(above)
        if self._kinds_stay:
            with contextlib.suppress(FileNotFoundError):
                here = stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
                if here != (entry.type == tar.DIRECTORY):
                    old, new = ("directory", "non-directory") if here else ("non-directory", "directory")
                    full = os.path.join(self._place, os.fsdecode(path))
                    raise InvalidInput(f'cannot overwrite {old} "{full}" with {new} "{self._place}"')
        self._make(entry, path, parent, reader)

    def _parent(self, path: bytes) -> int:
        """The directory `path`; what is missing of it becomes root's, whoever that is on disk."""
        try:
            return self._tree.directory(path)
        except FileNotFoundError:
            above, _, name = path.rpartition(b"/")
            parent = self._parent(above)
            os.mkdir(name, 0o755, dir_fd=parent)
            if self._owner.chown:
                os.chown(name, *self._owners(0, 0), dir_fd=parent, follow_symlinks=False)
            return self._tree.directory(path)
