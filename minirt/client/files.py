"""The client's calls on containers' files and on volumes (chapter 03)."""

from __future__ import annotations

from minirt.client.answer import part, path_stat

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from minirt.client.answer import Answer


class Files:
    """A part of `Client`."""

    if TYPE_CHECKING:

        def _ask(self, method: str, path: str, query: Any = None, body: Any = None, headers: Any = None) -> Answer: ...
        def _get(self, path: str, **query: Any) -> Any: ...
        def _post(self, path: str, body: Any = None, **query: Any) -> Any: ...
        def _bytes(self, path: str, **query: Any) -> Iterator[bytes]: ...

    # their files

    def stat_path(self, container: str, path: str) -> dict[str, Any]:
        """docker's PathStat of a file in it: name, size, mode, mtime, linkTarget."""
        with self._ask("HEAD", f"/containers/{part(container)}/archive", {"path": path}) as answer:
            return path_stat(answer.head)

    def get_archive(self, container: str, path: str) -> tuple[dict[str, Any], Iterator[bytes]]:
        """A file or folder of it as a tar in pieces, and its PathStat."""
        answer = self._ask("GET", f"/containers/{part(container)}/archive", {"path": path})

        def pieces() -> Iterator[bytes]:
            with answer:
                yield from answer.head.chunks()

        return path_stat(answer.head), pieces()

    def put_archive(self, container: str, path: str, pieces: Iterable[bytes], **options: bool) -> None:
        """Unpack a tar in it. `options`: noOverwriteDirNonDir, copyUIDGID."""
        headers = {"Content-Type": "application/x-tar"}
        with self._ask("PUT", f"/containers/{part(container)}/archive", {"path": path} | options, pieces, headers):
            pass

    def changes(self, container: str) -> list[dict[str, Any]]:
        """`Path` and `Kind` (0 changed, 1 added, 2 deleted) of what it wrote."""
        return list(self._get(f"/containers/{part(container)}/changes") or ())

    def export(self, container: str) -> Iterator[bytes]:
        return self._bytes(f"/containers/{part(container)}/export")

    def commit(self, container: str, body: dict[str, Any] | None = None, **query: Any) -> str:
        """Make an image of it; its id. `query`: repo, tag, author, comment, changes (a list), pause."""
        return str(self._post("/commit", body or {}, container=container, **query)["Id"])

    # volumes

    def volumes(self, filters: dict[str, list[str]] | None = None) -> list[dict[str, Any]]:
        return list(self._get("/volumes", filters=filters)["Volumes"] or ())

    def create_volume(self, body: dict[str, Any]) -> dict[str, Any]:
        return dict(self._post("/volumes/create", body))

    def inspect_volume(self, name: str) -> dict[str, Any]:
        return dict(self._get(f"/volumes/{part(name)}"))

    def remove_volume(self, name: str, force: bool = False) -> None:
        with self._ask("DELETE", f"/volumes/{part(name)}", {"force": force}):
            pass
