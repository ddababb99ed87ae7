"""The client's calls on images and on registries (chapters 04 and 05)."""

from __future__ import annotations

from minirt.client.answer import login, part, pieces, progress
from minirt.errors import InvalidInput

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, BinaryIO

    from minirt.client.answer import Answer


class Images:
    """A part of `Client`."""

    if TYPE_CHECKING:
        _hub: str | None
        _throttle: int | None
        _host: str | None

        def _ask(self, method: str, path: str, query: Any = None, body: Any = None, headers: Any = None) -> Answer: ...
        def _get(self, path: str, **query: Any) -> Any: ...
        def _post(self, path: str, body: Any = None, **query: Any) -> Any: ...
        def _bytes(self, path: str, **query: Any) -> Iterator[bytes]: ...
        def _own(self, what: str, query: Any = None, headers: Any = None) -> Any: ...

    def pull(self, name: str, platform: str | None = None, all_tags: bool = False) -> Iterator[dict[str, Any]]:
        """Progress objects as they come; raises MinirtError where it fails."""
        from minirt.image.reference import Reference

        reference = Reference.parse(name)
        if all_tags and (reference.digest or name.rpartition("/")[2].count(":")):
            raise InvalidInput("tag can't be used with --all-tags/-a")
        tag = "" if all_tags else str(reference.digest or reference.tag)
        headers = {"X-Minirt-Hub": self._hub} if self._hub else {}
        if self._throttle:
            headers["X-Minirt-Throttle"] = str(self._throttle)
        if self._host:  # a daemon of our own looks itself
            headers |= login(reference.domain)
        query = {"fromImage": reference.name, "tag": tag, "platform": platform}
        with self._ask("POST", "/images/create", query, None, headers) as answer:
            yield from progress(answer.head)

    def push(self, name: str, all_tags: bool = False) -> Iterator[dict[str, Any]]:
        """Progress objects as they come; raises MinirtError where it fails. The login shown is this user's."""
        from minirt.image.reference import Reference

        reference = Reference.parse(name)
        if reference.digest:
            raise InvalidInput("cannot push a digest reference")
        if all_tags and name.rpartition("/")[2].count(":"):
            raise InvalidInput("tag can't be used with --all-tags/-a")
        headers = {"X-Minirt-Hub": self._hub} if self._hub else {}
        # A dockerd wants the header in any case: an empty object is nobody's login.
        headers |= login(reference.domain) or {"X-Registry-Auth": "e30="}
        path = f"/images/{part(reference.familiar_name)}/push"
        with self._ask("POST", path, {"tag": None if all_tags else reference.tag}, None, headers) as answer:
            yield from progress(answer.head)

    def login(self, auth: dict[str, str]) -> str:
        """Show `username`, `password` to the registry `serveraddress`; what it gives in the password's place."""
        return str(self._post("/auth", auth).get("IdentityToken") or "")

    def manifests(self, name: str, verbose: bool = False) -> list[dict[str, Any]]:
        """The document that the registry has by this name, its `Raw` in base64; where `verbose`, after an index the
        manifests that it lists."""
        from minirt.image.reference import Reference

        headers = login(Reference.parse(name).domain) | ({"X-Minirt-Hub": self._hub} if self._hub else {})
        return list(self._own(f"manifests/{part(name)}", {"verbose": verbose}, headers))

    def images(self, all: bool = False, filters: dict[str, list[str]] | None = None) -> list[dict[str, Any]]:
        """Stored images, newest first. `all` is docker's; we keep no intermediate images."""
        return list(self._get("/images/json", all=all, filters=filters))

    def inspect_image(self, name: str) -> dict[str, Any]:
        return dict(self._get(f"/images/{part(name)}/json"))

    def history(self, name: str) -> list[dict[str, Any]]:
        return list(self._get(f"/images/{part(name)}/history"))

    def tag(self, source: str, target: str) -> None:
        from minirt.image.reference import Reference

        reference = Reference.parse(target)
        if reference.digest:
            raise InvalidInput("refusing to create a tag with a digest reference")
        self._post(f"/images/{part(source)}/tag", repo=reference.name, tag=reference.tag)

    def remove_image(self, name: str, force: bool = False) -> list[dict[str, str]]:
        with self._ask("DELETE", f"/images/{part(name)}", {"force": force}) as answer:
            return list(answer.head.json())

    def save(self, names: list[str]) -> Iterator[bytes]:
        """A tar archive in pieces."""
        return self._bytes("/images/get", names=names)

    def load(self, stream: BinaryIO) -> Iterator[dict[str, Any]]:
        with self._ask("POST", "/images/load", {}, pieces(stream), {"Content-Type": "application/x-tar"}) as answer:
            yield from progress(answer.head)

    def import_image(
        self, stream: BinaryIO, repo: str, tag: str, message: str, changes: list[str], platform: str | None
    ) -> Iterator[dict[str, Any]]:
        """An image of one layer, of a tar archive's files."""
        query = {
            "fromSrc": "-", "repo": repo, "tag": tag, "message": message, "changes": changes, "platform": platform
        }  # fmt: skip
        headers = {"Content-Type": "application/x-tar"}
        with self._ask("POST", "/images/create", query, pieces(stream), headers) as answer:
            yield from progress(answer.head)
